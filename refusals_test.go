package flyregion

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
)

func TestRefusals(t *testing.T) {
	var r refusals
	if r.contains("") || r.contains("select f()") {
		t.Error("an empty table contains something")
	}
	r.add("")
	if r.any.Load() {
		t.Error("the empty text was remembered")
	}
	r.add("select f()")
	if !r.contains("select f()") || r.contains("select g()") {
		t.Error("not just the one that was added is remembered")
	}
	r.add("select f()")
	if n := r.size(); n != 1 {
		t.Errorf("one text fills %d entries", n)
	}
}

// size returns how many entries are in use.
func (r *refusals) size() (n int) {
	for i := range r.sets {
		for j := range r.sets[i] {
			if r.sets[i][j].Load() != 0 {
				n++
			}
		}
	}
	return n
}

// floodText returns the texts of a flood that nobody asks for twice.
func floodText(i int) string { return fmt.Sprintf("select * from t_%d where f_%d()", i, i) }

func TestRefusalsAreBounded(t *testing.T) {
	var r refusals
	capacity := len(r.sets) * len(r.sets[0])
	for i := range 20 * capacity {
		r.add(floodText(i))
	}
	if n := r.size(); n > capacity || n < capacity*9/10 {
		t.Errorf("%d of %d entries are in use", n, capacity)
	}
	// The latest are there.
	found := 0
	for i := range capacity / 8 {
		if r.contains(floodText(20*capacity - 1 - i)) {
			found++
		}
	}
	if found < capacity/8*3/4 {
		t.Errorf("of the latest %d texts %d are remembered", capacity/8, found)
	}
}

// TestRefusalsSurviveFlood asks for some texts now and then, while many others come that nobody asks for again.
func TestRefusalsSurviveFlood(t *testing.T) {
	var (
		r      refusals
		useful []string
		shared = map[*refusalSet]int{}
	)
	for i := 0; len(useful) < 50; i++ {
		text := fmt.Sprintf("select enqueue_%d($1)", i)
		// A set in which every entry is in use has no room for others.
		if set := r.set(shape(text)); shared[set] < len(set)-1 {
			shared[set]++
			useful = append(useful, text)
		}
	}
	const (
		start = 20_000 // until they were all asked for before others took their place
		flood = 200_000
	)
	for i := range flood {
		if text := useful[i/10%len(useful)]; i%10 == 0 && !r.contains(text) {
			r.add(text)
			if i > start {
				t.Errorf("forgotten after %d others: %s", i, text)
			}
		}
		r.add(floodText(i))
	}
}

// TestRefusalsGiveWay fills the table with texts in use, which then no longer are.
func TestRefusalsGiveWay(t *testing.T) {
	var r refusals
	capacity := len(r.sets) * len(r.sets[0])
	for i := range 2 * capacity {
		for range 5 {
			r.add(floodText(1_000_000 + i))
		}
	}
	found := 0
	for i := range 100 {
		text := fmt.Sprintf("select enqueue_%d($1)", i)
		for range 8 {
			r.add(text) // what was forgotten is refused again
		}
		if r.contains(text) {
			found++
		}
	}
	if found < 95 {
		t.Errorf("of 100 texts that came late %d are remembered", found)
	}
}

// TestRefusalsMakeRoomForEachOther adds two shapes, in turn, to a set of others that nobody asks for. They must not keep
// taking each other's place.
func TestRefusalsMakeRoomForEachOther(t *testing.T) {
	var s refusalSet
	for i := range uint64(len(s)) {
		s.insert((i + 1) << 8)
	}
	pair := []uint64{0x10_0000, 0x20_0000}
	for range 200 {
		for _, h := range pair {
			if !s.touch(h) {
				s.insert(h)
			}
		}
	}
	for _, h := range pair {
		if !s.touch(h) {
			t.Errorf("%x is forgotten", h)
		}
	}
}

func TestRefusalsConcurrently(t *testing.T) {
	var (
		r  refusals
		wg sync.WaitGroup
	)
	r.add("select enqueue($1)")
	for worker := range 8 {
		wg.Go(func() {
			for i := range 5000 {
				if i%4 == 0 && !r.contains("select enqueue($1)") {
					r.add("select enqueue($1)")
				}
				r.contains(floodText(i))
				r.add(floodText(worker*5000 + i))
			}
		})
	}
	wg.Wait()
	if !r.contains("select enqueue($1)") {
		t.Error("a text that everybody asks for is forgotten")
	}
	if n, capacity := r.size(), len(r.sets)*len(r.sets[0]); n > capacity {
		t.Errorf("%d of %d entries are in use", n, capacity)
	}
}

// TestShape holds apart what are different statements, and together what differs in its values only.
func TestShape(t *testing.T) {
	for _, group := range [][]string{
		{"select f(1)", "select f(23.5e3)", "select f('x')", "select f($1)", "select f(E'it\\'s')", "select f($q$ f(1), 'x' $q$)",
			"select f( 1 )", "select\n\tf(1) -- now", "/* a */ select f(1) /*traceparent='00-5bd6',action='x'*/", "select f(.5)",
			"select f(1, 2, 3)", "select f($1,$2)", "select f('a', 1, $3)", "select f('it''s')", "select f(e'\\\\')",
			"select f(1) -- it's"},
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
			if shape(text) != shape(group[0]) {
				t.Errorf("%q and %q have not the same shape", text, group[0])
			}
		}
		for _, other := range []string{"select f(1)", "select g(1)", "select f(a)", "select f1(1)", "select f(1) + 2", "select f()"} {
			if group[0] != other && shape(group[0]) == shape(other) && !strings.Contains(other, group[0]) && group[0] != "select f('unclosed', ''" {
				t.Errorf("%q has the shape of %q", group[0], other)
			}
		}
	}
	for _, c := range classifyCases {
		shape(c.sql)
	}
	texts := []string{"select f(1)", benchmarkQuery(3000)}
	if n := testing.AllocsPerRun(10, func() {
		for _, text := range texts {
			shape(text)
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
		h := shape(sql)
		if Classify(sql) == Read && shape(" /* it's */ "+sql+" -- $$") != h {
			t.Errorf("a comment changes the shape: %q", sql)
		}
	})
}

// TestLearning runs what the replica refuses, and looks where it goes from then on.
func TestLearning(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	name := table(t, cluster, "id int")
	for _, sql := range []string{
		"create function insert_" + name + "(int) returns int language sql as 'insert into " + name + " values ($1) returning id'",
		"create function fail_" + name + "(int) returns int language plpgsql as $$ begin raise 'no' using errcode = '0A000'; end $$",
		"create unlogged table unlogged_" + name + " (id int)",
	} {
		if err := cluster.Leader().Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		drop := "drop function insert_" + name + ", fail_" + name + "; drop table unlogged_" + name
		if err := cluster.Leader().Exec(context.Background(), drop); err != nil {
			t.Error(err)
		}
	})
	if err := cluster.Server("ord").WaitReplayed(ctx); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		first, second string
		code          string // what the first fails with on the primary too
		learned       bool
	}{
		{"select insert_" + name + "(1)", "select insert_" + name + "( 2 ) /* now */", "", true},
		{"select insert_" + name + "($1)", "select insert_" + name + "('3')", "", true},
		{"select id from unlogged_" + name + " where id = 1", "select id from unlogged_" + name + " where id = 2", "", true},
		{"select fail_" + name + "(1)", "select fail_" + name + "(1)", "0A000", false},
		{"select 1/0", "select 1/0", "22012", false},
		{"select id from nosuch_" + name, "select id from nosuch_" + name, "42P01", false},
	} {
		pool := poolIn(t, cluster, "ord")
		var args []any
		if strings.Contains(c.first, "$1") {
			args = []any{1}
		}
		if r := pool.route(ctx, c.first, args); r.to != targetReplica {
			t.Errorf("at first it goes to the %s: %s", r.to, c.first)
		}
		if _, err := pool.Exec(ctx, c.first, args...); sqlState(err) != c.code {
			t.Errorf("%v, want %q: %s", err, c.code, c.first)
		}
		want := route{to: targetReplica, why: becauseRead}
		if c.learned {
			want = route{to: targetPrimary, why: becauseRefused}
		}
		if r := pool.route(ctx, c.second, nil); r != want {
			t.Errorf("then it goes to the %s, %s: %s", r.to, r.why, c.second)
		}
		if r := pool.routeBatch(ctx, batchOf("select 1", c.second)); r != want {
			t.Errorf("then a batch goes to the %s, %s: %s", r.to, r.why, c.second)
		}
	}
}

func BenchmarkRefusals(b *testing.B) {
	var r refusals
	r.add("select enqueue($1)")
	for _, sql := range []string{
		benchmarkShortQuery,
		benchmarkQuery(300),
		benchmarkQuery(3000),
	} {
		b.Run(fmt.Sprintf("%d_bytes", len(sql)), func(b *testing.B) {
			b.SetBytes(int64(len(sql)))
			b.ReportAllocs()
			for b.Loop() {
				r.contains(sql)
			}
		})
	}
	b.Run("none", func(b *testing.B) {
		var r refusals
		for b.Loop() {
			r.contains(benchmarkShortQuery)
		}
	})
}
