package flyregion

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/flyregion/flyregion/internal/sqltext"
	"github.com/jackc/pgx/v5"
)

// contains reports whether a text's shape is remembered, whether or not it is time to try it.
func (r *refusals) contains(sql string) bool {
	h := sqltext.Shape(sql)
	return r.set(h).find(h) != nil
}

func (r *refusals) addText(sql string) { r.add(sqltext.Shape(sql), false) }

func TestRefusals(t *testing.T) {
	var r refusals
	if r.contains("") || r.contains("select f()") {
		t.Error("an empty table contains something")
	}
	r.addText("select f()")
	if !r.contains("select f()") || r.contains("select g()") {
		t.Error("not just the one that was added is remembered")
	}
	r.addText("select f()")
	if n := r.size(); n != 1 {
		t.Errorf("one text fills %d entries", n)
	}
}

// size returns how many entries are in use.
func (r *refusals) size() (n int) {
	for i := range r.sets {
		for j := range r.sets[i] {
			if r.sets[i][j].shape.Load() != 0 {
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
		r.addText(floodText(i))
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
			r.addText(text)
			if i > start {
				t.Errorf("forgotten after %d others: %s", i, text)
			}
		}
		r.addText(floodText(i))
	}
}

// TestRefusalsGiveWay fills the table with texts in use, which then no longer are.
func TestRefusalsGiveWay(t *testing.T) {
	var r refusals
	capacity := len(r.sets) * len(r.sets[0])
	for i := range 2 * capacity {
		for range 5 {
			r.addText(floodText(1_000_000 + i))
		}
	}
	found := 0
	for i := range 100 {
		text := fmt.Sprintf("select enqueue_%d($1)", i)
		for range 8 {
			r.addText(text) // what was forgotten is refused again
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
		s.insert((i+1)<<8, 0)
	}
	pair := []uint64{0x10_0000, 0x20_0000}
	for range 200 {
		for _, h := range pair {
			if s.find(h) == nil {
				s.insert(h, 0)
			}
		}
	}
	for _, h := range pair {
		if s.find(h) == nil {
			t.Errorf("%x is forgotten", h)
		}
	}
}

func TestRefusalsConcurrently(t *testing.T) {
	var (
		r  refusals
		wg sync.WaitGroup
	)
	r.addText("select enqueue($1)")
	for worker := range 8 {
		wg.Go(func() {
			for i := range 5000 {
				if i%4 == 0 && !r.contains("select enqueue($1)") {
					r.addText("select enqueue($1)")
				}
				r.contains(floodText(i))
				r.addText(floodText(worker*5000 + i))
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
	r.addText("select enqueue($1)")
	r.addPermanent(sqltext.Shape("select keep($1)"))
	for _, sql := range []string{benchmarkShortQuery, "select enqueue($1)", "select keep($1)"} {
		h := sqltext.Shape(sql)
		b.Run(sql, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r.refuses(h)
			}
		})
	}
}

// pass makes it time to try every shape again.
func (r *refusals) pass() {
	for i := range r.sets {
		for j := range r.sets[i] {
			if retry := &r.sets[i][j].retry; retry.Load() != neverRetry {
				retry.Store(retry.Load() & retryPause)
			}
		}
	}
}

// pause returns how long the replica is left alone between two tries of a text, -1 if it is not remembered.
func (r *refusals) pause(sql string) int64 {
	h := sqltext.Shape(sql)
	if entry := r.set(h).find(h); entry != nil {
		return entry.retry.Load() & retryPause
	}
	return -1
}

// TestRefusalsAreTriedAgain lets the pauses pass, and checks when a shape is tried on the replica again.
func TestRefusalsAreTriedAgain(t *testing.T) {
	var r refusals
	h, kept := sqltext.Shape("select f()"), sqltext.Shape("select kept()")
	expect := func(h uint64, wantRefused, wantTry bool) {
		t.Helper()
		if refused, try := r.refuses(h); refused != wantRefused || try != wantTry {
			t.Errorf("it is refused %v, tried %v, want %v, %v", refused, try, wantRefused, wantTry)
		}
	}
	expect(h, false, false)
	r.add(h, false)
	r.add(h, false) // many have run when the first was refused
	expect(h, true, false)
	for i := range int64(12) {
		if pause := r.pause("select f()"); pause != min(i, maxRetryPause) {
			t.Errorf("after %d tries the pause is %d", i, pause)
		}
		r.pass()
		expect(h, false, true) // one tries
		expect(h, true, false) // and others wait for what it finds
		r.add(h, true)
		expect(h, true, false)
	}
	if pause := minRetryPause << maxRetryPause; pause < time.Minute || pause > 10*time.Minute {
		t.Errorf("the longest pause is %v", pause)
	}
	r.pass()
	expect(h, false, true)
	r.remove(h)
	expect(h, false, false)

	r.addPermanent(kept)
	r.pass()
	expect(kept, true, false)
	r.remove(kept)
	expect(kept, true, false)
	r.add(h, false)
	r.addPermanent(h)
	r.pass()
	expect(h, true, false)
	if n := testing.AllocsPerRun(10, func() { r.refuses(h); r.refuses(kept) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// dispatcher makes a function that pretends to read only, and writes if its argument is above 0.
func dispatcher(t testing.TB, cluster *pgcluster.Cluster, name string) string {
	t.Helper()
	function := "dispatch_" + name
	if err := cluster.Leader().Exec(t.Context(), fmt.Sprintf(`
		create function %[1]s_w(int) returns int language sql as 'insert into %[2]s values ($1) returning id';
		create function %[1]s(int) returns int stable language plpgsql as
			$$ begin if $1 > 0 then return (select %[1]s_w($1)); end if; return 0; end $$;`, function, name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Leader().Exec(context.Background(), fmt.Sprintf("drop function %[1]s, %[1]s_w", function)); err != nil {
			t.Error(err)
		}
	})
	if err := cluster.Server("ord").WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}
	return function
}

// TestDispatcherComesBack calls a function that seldom writes: one refused call does not keep all others away for good.
func TestDispatcherComesBack(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	sql := "select " + dispatcher(t, cluster, name) + "($1::int)"
	for path, call := range map[string]func(ctx context.Context, p *Pool, i int) error{
		"QueryRow": func(ctx context.Context, p *Pool, i int) error { return p.QueryRow(ctx, sql, i).Scan(new(int)) },
		"Exec": func(ctx context.Context, p *Pool, i int) error {
			_, err := p.Exec(ctx, sql, i)
			return err
		},
		"SendBatch": func(ctx context.Context, p *Pool, i int) error {
			b := &pgx.Batch{}
			b.Queue("select 1")
			b.Queue(sql, i)
			return p.SendBatch(ctx, b).Close()
		},
		"sql.DB": func(ctx context.Context, p *Pool, i int) error {
			return inDB(p, func(db *sqlDB) error { return db.QueryRowContext(ctx, sql, i).Scan(new(int)) })
		},
	} {
		t.Run(path, func(t *testing.T) {
			telemetry := record(t)
			pool := poolIn(t, cluster, "ord", telemetry.into)
			writes := 0
			run := func(i int) {
				t.Helper()
				if err := call(t.Context(), pool, i); err != nil {
					t.Fatal(err)
				}
				if i > 0 {
					writes++
				}
				var n int
				if err := pool.Primary().QueryRow(t.Context(), "select count(*) from "+name).Scan(&n); err != nil || n != writes {
					t.Fatalf("%d rows after %d writes: %v", n, writes, err)
				}
			}
			locally := func(want bool) {
				t.Helper()
				if err := pool.WaitReplayed(t.Context()); err != nil {
					t.Fatal(err)
				}
				before := telemetry.statements(t)["replica read"]
				run(0)
				if local := telemetry.statements(t)["replica read"] > before; local != want {
					t.Errorf("the replica was asked: %v, want %v", local, want)
				}
			}
			defer func() {
				if err := cluster.Leader().Exec(context.Background(), "delete from "+name); err != nil {
					t.Error(err)
				}
			}()

			locally(true)
			run(1) // refused
			pool.router.refused.keepWaiting()
			locally(false)
			pool.router.refused.pass()
			locally(true)
			locally(true)
			for range 3 {
				run(2) // refused, as nobody knows any more that it may be
				pool.router.refused.pass()
				run(3) // tried, and refused
				pool.router.refused.keepWaiting()
				locally(false)
				pool.router.refused.pass()
				locally(true)
			}
		})
	}
}

// keepWaiting puts off every try, so that none is made because a test is slow.
func (r *refusals) keepWaiting() {
	for i := range r.sets {
		for j := range r.sets[i] {
			retry := &r.sets[i][j].retry
			if at := retry.Load(); at != 0 && at != neverRetry {
				retry.Store(retryAfter(time.Now().Add(time.Hour), at&retryPause))
			}
		}
	}
}

// TestLateRefusalIsKept runs a text that writes behind its first row, whose caller has got the error: it is not tried
// again.
func TestLateRefusalIsKept(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	sql := "select " + dispatcher(t, cluster, name) + "(i) from generate_series(-3, 1) i"
	pool := poolIn(t, cluster, "ord")
	query := func() error {
		rows, err := pool.Query(t.Context(), sql)
		if err != nil {
			return err
		}
		for rows.Next() {
		}
		return rows.Err()
	}
	if err := query(); sqlState(err) != "25006" {
		t.Fatalf("%v, want a refusal behind the first row", err)
	}
	for range 3 {
		pool.router.refused.pass()
		if err := query(); err != nil {
			t.Error(err)
		}
	}
}

// TestRecoveryRefusals provokes what a standby refuses with codes that other errors have too, by servers that speak
// German if they can.
func TestRecoveryRefusals(t *testing.T) {
	t.Setenv("LANGUAGE", "de")
	cluster := ownCluster(t, map[string]string{"lc_messages": "C.UTF-8"})
	ctx := t.Context()
	if err := cluster.Leader().Exec(ctx, `
		create unlogged table u (id int);
		create table t (id int, a int[]);
		create index b on t using brin (id);
		create index g on t using gin (a);
		create materialized view recovery_summary as select 1 as id with no data;
		create function summarize() returns int stable language sql as $$ select brin_summarize_new_values('b') $$;
		create function clean() returns bigint stable language sql as $$ select gin_clean_pending_list('g') $$;
		create function wal() returns pg_lsn stable language sql as $$ select pg_current_wal_lsn() $$;
		create function oid() returns oid stable language sql as $$ select lo_create(0) $$;
		create function xid() returns xid8 stable language sql as $$ select pg_current_xact_id() $$;
		create function raises() returns int stable language plpgsql as
			$$ begin raise 'recovery is in progress' using errcode = '55000'; end $$;
	`); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Server("ord").WaitReplayed(ctx); err != nil {
		t.Fatal(err)
	}
	pool := poolIn(t, cluster, "ord")
	var german bool
	for sql, want := range map[string]bool{
		"select * from u":                true,
		"select summarize()":             true,
		"select clean()":                 true,
		"select wal()":                   true,
		"select oid()":                   true,
		"select xid()":                   true,
		"select raises()":                false,
		"select * from recovery_summary": false,
		"select recovery_no_function()":  false,
	} {
		_, err := pool.Exec(WithReplica(ctx), sql)
		if err == nil {
			t.Errorf("a standby runs it: %s", sql)
			continue
		}
		german = german || strings.Contains(err.Error(), "Wiederherstellung")
		_, _ = pool.Exec(ctx, sql)
		if refused := pool.router.refused.contains(sql); refused != want {
			t.Errorf("it is remembered: %v, want %v: %s: %v", refused, want, sql, err)
		}
	}
	if german {
		t.Log("these servers speak German")
	} else {
		t.Log("these servers speak English only")
	}
}

// TestPreparedNamesAreNoSQL prepares names that have one shape as SQL.
func TestPreparedNamesAreNoSQL(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	function := dispatcher(t, cluster, name)
	pool := poolIn(t, cluster, "ord", func(c *Config) {
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			for prepared, text := range map[string]string{
				"get-user-1":    "select " + function + "(7)",
				"get-user-2":    "select 1",
				"select-user-1": "select " + function + "_w(8)",
			} {
				if _, err := conn.Prepare(ctx, prepared, text); err != nil {
					return err
				}
			}
			return nil
		}
	})
	if err := pool.Primary().Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, prepared := range []string{"get-user-1", "get-user-2", "select-user-1"} {
			if err := pool.WaitReplayed(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := pool.QueryRow(t.Context(), prepared).Scan(new(int)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for prepared, want := range map[string]reason{"get-user-1": becauseRefused, "get-user-2": becauseRead, "select-user-1": becauseWrite} {
		pool.router.refused.keepWaiting()
		if rt := pool.router.route(t.Context(), prepared, nil); rt.why != want {
			t.Errorf("%s runs on the %s: %s, want %s", prepared, rt.to, rt.why, want)
		}
	}
	var n int
	if err := pool.Primary().QueryRow(t.Context(), "select count(*) from "+name).Scan(&n); err != nil || n != 4 {
		t.Errorf("%d rows were written, want 4: %v", n, err)
	}
}
