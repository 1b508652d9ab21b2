package sqltext

import (
	"slices"
	"strings"
	"testing"
)

// TestUnknownCalls lists what is called and known to nobody, by the names that the server looks up.
func TestUnknownCalls(t *testing.T) {
	facts := Facts{Functions: map[string]Access{"mine": Read}, Called: map[string]Access{"asked": Read, "Asked": Write}}
	for sql, want := range map[string][]string{
		"select 1":                            nil,
		"select a.b from t where a in (1, 2)": nil,
		"select f(1)":                         {"f"},
		"select F (1), s.G(2), h /* x */ (3)": {"f", "g", "h"},
		`select "F"(1), "a""b"(2)`:            {"F", `a"b`},
		"select mine(1), asked(2), Asked(3)":  nil,
		"select pg_typeof(1), pg_sleep(1)":    nil,
		"select count(*), COALESCE(max(a), 0), now(), random(), uuid_generate_v4(), timezone('utc', a) from t": nil,
		"select a::numeric(10, 2), cast(a as geometry(point, 4326)), extract(year from b), left(c, 1) from t":  nil,
		"select rank() over (partition by (a)) from t where exists (select 1) and a = any (array(select 1))":   nil,
		"select count(*) filter (where a) from f(1) as x (a int), t as y(b)":                                   {"f"},
		"select 1 from t where exists (select 1) group by (a), cube (b) having every(a) order by by (a)":       nil,
		`select "left"(1), "Count"(1), (x)."Y" from t`:                                                         {"Count", "Y"},
		"select (1).f, $1.g, (x).a.b":                                       {"f", "g", "a", "b"},
		"select 'f(1)', $$g(1)$$ -- h(1)":                                   nil,
		"insert into t (a) values (f(1))":                                   nil,
		"with x(a) as (select 1) select * from x join lateral f(a) on true": {"f"},
		"copy (select f(1)) to stdout":                                      {"f"},
		"explain analyze select f(1)":                                       {"f"},
		"select 1; select f(2)":                                             {"f"},
		"select größe(1)":                                                   {"größe"},
		"select " + strings.Repeat("x", 70) + "(1)":                         {strings.Repeat("x", 63)},
	} {
		got := UnknownCalls(sql, facts)
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q: %s", got, want, sql)
		}
		s := Inspect(sql, facts)
		if s.Access == Read && s.UnknownCalls != (len(want) > 0) {
			t.Errorf("UnknownCalls is %v: %s", s.UnknownCalls, sql)
		}
	}
}

// TestFactsOfTheCatalog says what the catalog knows.
func TestFactsOfTheCatalog(t *testing.T) {
	facts := Facts{
		Functions: map[string]Access{"mine": Read},
		Called:    map[string]Access{"reads": Read, "writes": Write, "Writes": Read, "mine": Write, "pg_sleep": Write, "nextval": Read},
		Writing:   map[string]struct{}{"v": {}, "V 2": {}},
	}
	for sql, want := range map[string]Access{
		"select reads(1)":                             Read,
		"select writes(1)":                            Write,
		"select s.WRITES (1)":                         Write,
		`select "writes"(1)`:                          Write,
		`select "Writes"(1)`:                          Read,
		"select (1).writes":                           Write,
		"select t.writes from t":                      Read,
		"select mine(1)":                              Read,
		"select pg_sleep(1)":                          Write,
		"select nextval('s')":                         Write,
		"select ÄRGER(1)":                             Write, // a database in LATIN1 knows it as ärger
		"select ärger(1)":                             Read,
		"select Ärger(1), Größe(2)":                   Write,
		"select Größe(2)":                             Read,
		"select * from v":                             Write,
		"select * from s.V":                           Write,
		`select * from "v"`:                           Write,
		`select * from "V"`:                           Read,
		`select * from "V 2" x`:                       Write,
		"table v":                                     Write,
		"copy v to stdout":                            Write,
		"copy s.v (a) to stdout":                      Write,
		"copy (select * from v) to stdout":            Write,
		`copy "V 2" to stdout`:                        Write,
		"with x as (select 1 from v) select * from x": Write,
		"select 'v', $$v$$ from w -- v":               Read,
		`select * from U&"v"`:                         Write,
		`select * from U&"\0076"`:                     Write,
	} {
		if got := Inspect(sql, facts).Access; got != want {
			t.Errorf("%v, want %v: %s", got, want, sql)
		}
	}
}

// TestSchema tells the commands that may change a function, a view or a policy.
func TestSchema(t *testing.T) {
	for sql, want := range map[string]bool{
		"create function f() returns int language sql as 'select 1'": true,
		"select 1; alter function f() volatile":                      true,
		"drop schema s cascade":                                      true,
		"do $$ begin end $$":                                         true,
		"call p()":                                                   true,
		"import foreign schema s from server x into public":          true,
		"insert into t values (1)":                                   false,
		"select create()":                                            false,
		"notify x":                                                   false,
		"LISTEN x":                                                   false,
		"truncate t":                                                 false,
		"begin; lock table t; commit":                                false,
		"set search_path = a":                                        false,
		"create":                                                     true,
	} {
		if got := Inspect(sql, Facts{}).Schema; got != want {
			t.Errorf("%v, want %v: %s", got, want, sql)
		}
	}
}

func BenchmarkFactsOfTheCatalog(b *testing.B) {
	const sql = "select count(*), coalesce(max(a), 0), lower(b) from t where a = any($1) and c > date_trunc('day', now()) group by b"
	called := map[string]Access{}
	for _, name := range UnknownCalls(sql, Facts{}) {
		called[name] = Read
	}
	for name, facts := range map[string]Facts{
		"none":   {},
		"called": {Called: called},
		"names":  {Called: called, Writing: map[string]struct{}{"v": {}}},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Inspect(sql, facts)
			}
		})
	}
}
