package sqltext

import (
	"testing"
)

// TestShape holds apart what are different statements, and together what differs in its values only.
func TestShape(t *testing.T) {
	groups := map[uint64]string{}
	for _, group := range [][]string{
		{"select f(1)", "select f(23.5e3)", "select f('x')", "select f($1)", "select f(E'it\\'s')", "select f($q$ f(1), 'x' $q$)",
			"select f( 1 )", "select\n\tf(1) -- now", "/* a */ select f(1) /*traceparent='00-5bd6',action='x'*/", "select f(.5)", "select f('it''s')", "select f(e'\\\\')",
			"select f(1) -- it's"},
		{"select f(1, 2)", "select f($1,$2)", "select f ('a' , 1)", "select f(1 /* , */, 2)"},
		{"select f('a', 1, $3)", "select f(1, 2, 3)"},
		{"select f(1, array[1, 2, 3])", "select f($1, array[1])"},
		{"select f(g(1, 2))"},
		{"select f(g(1), 2)", "select f(g('a'), $1)"},
		{"select * from t where (a, 1) in ((1, 2), (3, 4))", "select * from t where (a, 1) in ((1, 2, 3), (4))"},
		{"select 1 from f(1, 2) where a in (1)", "select 1 from f(1, 2) where a in (1, 2, 3)"},
		{"values (1)", "values (1, 2, 3)"},
		{"select g(1)"},
		{"select f()"},
		{"select f(a)"},
		{"select f(a, 1)", "select f(a,2)"},
		{"select f(1, a)"},
		{`select "f"(1)`},
		{`select "f 1"(1)`},
		{`select "f 2"(1)`},
		{"select f1(1)", "select f1(2)"},
		{"select f2(1)"},
		{"select f(1) + 2"},
		{"select f(1) - 2"},
		{"select f(1) / 2"},
		{"select s.f(1)"},
		{"select f(-1)", "select f(-2)"},
		{"select f(1) from t where id in (1, 2)", "select f(1) from t where id in (1, 2, 3, 4)"},
		{"select f('unclosed"},
		{"select f('unclosed', ''"},
	} {
		for _, text := range group[1:] {
			if Shape(text) != Shape(group[0]) {
				t.Errorf("%q and %q have not the same shape", text, group[0])
			}
		}
		if other, ok := groups[Shape(group[0])]; ok {
			t.Errorf("%q has the shape of %q", group[0], other)
		}
		groups[Shape(group[0])] = group[0]
	}
	for _, c := range classifyCases {
		Shape(c.sql)
	}
	texts := []string{"select f(1)", benchmarkQuery(3000)}
	if n := testing.AllocsPerRun(10, func() {
		for _, text := range texts {
			Shape(text)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzShape expects shape to take any text, and to have no more of it than the comments and literals leave.
func FuzzShape(f *testing.F) {
	for _, c := range classifyCases {
		f.Add(c.sql)
	}
	f.Fuzz(func(t *testing.T, sql string) {
		h := Shape(sql)
		if classify(sql) == Read && Shape(" /* it's */ "+sql+" -- $$") != h {
			t.Errorf("a comment changes the shape: %q", sql)
		}
	})
}
