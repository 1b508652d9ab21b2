package flyregion

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/flyregion/flyregion/internal/sqltext"
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
		if set := r.set(sqltext.Shape(text)); shared[set] < len(set)-1 {
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

// TestLearning runs what the replica refuses, and looks where it goes from then on.
func TestLearning(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	name := table(t, cluster, "id int")
	for _, sql := range []string{
		"create function volatile_" + name + "(int) returns int language sql as 'insert into " + name + " values ($1) returning id'",
		// The replica is asked for what pretends to read only.
		"create function insert_" + name + "(int) returns int stable language sql as 'select volatile_" + name + "($1)'",
		"create function fail_" + name + "(int) returns int stable language plpgsql as $$ begin raise 'no' using errcode = '0A000'; end $$",
		"create unlogged table unlogged_" + name + " (id int)",
	} {
		if err := cluster.Leader().Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		drop := "drop function insert_" + name + ", volatile_" + name + ", fail_" + name + "; drop table unlogged_" + name
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
		if r := pool.router.route(ctx, c.first, args); r.to != targetReplica {
			t.Errorf("at first it goes to the %s: %s", r.to, c.first)
		}
		if _, err := pool.Exec(ctx, c.first, args...); sqlState(err) != c.code {
			t.Errorf("%v, want %q: %s", err, c.code, c.first)
		}
		want := route{to: targetReplica, why: becauseRead}
		if c.learned {
			want = route{to: targetPrimary, why: becauseRefused}
		}
		if r := pool.router.route(ctx, c.second, nil); r.to != want.to || r.why != want.why {
			t.Errorf("then it goes to the %s, %s: %s", r.to, r.why, c.second)
		}
		if r := pool.router.routeBatch(ctx, batchOf("select 1", c.second)); r.to != want.to || r.why != want.why {
			t.Errorf("then a batch goes to the %s, %s: %s", r.to, r.why, c.second)
		}
	}
}

func BenchmarkRefusals(b *testing.B) {
	var r refusals
	r.add("select enqueue($1)")
	b.Run("some", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r.contains(benchmarkShortQuery)
		}
	})
	b.Run("none", func(b *testing.B) {
		var r refusals
		for b.Loop() {
			r.contains(benchmarkShortQuery)
		}
	})
}
