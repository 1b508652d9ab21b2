package flyregion

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// soonerPool returns a pool in ord with a MinReplicaWait of 0, and a function that returns how many of its reads went to
// the primary because that was expected to answer sooner.
func soonerPool(t *testing.T, change ...func(*Config)) (pool *Pool, sooner func() int64) {
	recording := record(t)
	pool = poolIn(t, sharedCluster(t), "ord", append(change, waits(0, time.Minute), func(c *Config) {
		c.Telemetry.MeterProvider = recording.meters
	})...)
	awaitReplica(t, t.Context(), pool)
	return pool, func() int64 { return recording.statements(t)["primary "+string(becauseSooner)] }
}

// writer returns a function that writes to a table, reads at once and checks that the read sees the write. It reports
// whether the replica has answered.
func writer(t *testing.T, pool *Pool, table string) func(context.Context) bool {
	id := 0
	return func(ctx context.Context) (local bool) {
		t.Helper()
		id++
		if err := execs(ctx, pool, insertText(table, id)); err != nil {
			t.Fatal(err)
		}
		var seen int
		if err := pool.QueryRow(ctx, whereFrom(table)).Scan(&local, &seen); err != nil {
			t.Fatal(err)
		}
		if seen != id {
			t.Fatalf("%d rows of %d, replica: %v", seen, id, local)
		}
		return local
	}
}

// TestPrimarySooner has a replica become slow and fast again, and the primary far. Reads behind a write go where they are
// answered sooner, and see the write.
func TestPrimarySooner(t *testing.T) {
	cluster := sharedCluster(t)
	ord := cluster.Server("ord")
	ctx := t.Context()
	delay := func(t *testing.T, d time.Duration) {
		t.Helper()
		noError(t, ord.DelayReplay(ctx, d))
	}
	t.Cleanup(func() {
		cluster.SetLatency("ord", "nrt", 0)
		noError(t, ord.DelayReplay(context.Background(), 0))
	})

	for _, test := range []struct {
		name string
		ctx  context.Context
	}{{"pool's session", ctx}, {"session of its own", WithSession(ctx, &Session{})}} {
		t.Run(test.name, func(t *testing.T) {
			cluster.SetLatency("ord", "nrt", 20*time.Millisecond)
			name := table(t, cluster, "id int primary key, v text")
			pool, sooner := soonerPool(t)
			writeAndRead := writer(t, pool, name)
			delay(t, 300*time.Millisecond)
			eventually(t, "reads go to the primary", func() bool { writeAndRead(test.ctx); return sooner() > 3 })
			delay(t, 0)
			eventually(t, "the replica serves reads", func() bool { return writeAndRead(test.ctx) })
			silent(t, cluster, pool)
		})
	}
	t.Run("far primary", func(t *testing.T) {
		const conns = 2
		cluster.SetLatency("ord", "nrt", time.Millisecond)
		name := table(t, cluster, "id int primary key, v text")
		pool, sooner := soonerPool(t, func(c *Config) { c.MaxConns = conns })
		fromPrimary := func(n int) {
			var all sync.WaitGroup
			for range conns {
				all.Go(func() {
					for range n {
						if replicaServes(t, WithPrimary(ctx), pool) {
							t.Error("it is the replica's answer")
						}
					}
				})
			}
			all.Wait()
		}
		fromPrimary(3) // opens all connections, as each new one measures the round trip
		writeAndRead := writer(t, pool, name)
		delay(t, 80*time.Millisecond)
		eventually(t, "reads go to the primary", func() bool { writeAndRead(ctx); return sooner() > 3 })
		cluster.SetLatency("ord", "nrt", 100*time.Millisecond)
		fromPrimary(leastTimes)
		eventually(t, "the replica serves reads", func() bool { return writeAndRead(ctx) })
		silent(t, cluster, pool)
	})
}

// TestPrimarySoonerWhileFrozen halts replay, with the primary near. Reads go on there, also once there are no more writes,
// and to the replica again when replay goes on.
func TestPrimarySoonerWhileFrozen(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	pool, sooner := soonerPool(t)
	writeAndRead := writer(t, pool, name)
	thaw := freeze(t, cluster)
	eventually(t, "reads go to the primary", func() bool { writeAndRead(ctx); return sooner() > 3 })
	for range 20 {
		if replicaServes(t, ctx, pool) {
			t.Fatal("the replica serves while it is halted")
		}
	}
	eventually(t, "nobody looks any more", func() bool { return waiting(pool) == 0 })
	silent(t, cluster, pool)
	thaw()
	awaitReplica(t, ctx, pool)
	silent(t, cluster, pool)
}

// TestReadsWithoutQuestions has reads that are sent to the primary without questions write all the same: the next read sees it.
func TestReadsWithoutQuestions(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	hide(t, cluster, name)
	ctx := t.Context()
	pool, _ := soonerPool(t)
	noError(t, execs(ctx, pool, insertText(name, 0)))
	awaitReplica(t, ctx, pool)
	freeze(t, cluster)
	session := &pool.primary.session
	id := 0
	eventually(t, "a read is sent without questions", func() bool {
		id++
		// As if the session had just written what the replica shows.
		state := session.written.Load().latest
		state.unknown, state.learned = 0, uptime()
		session.written.Store(&written{latest: state})
		pool.primary.stay(0)

		noError(t, pool.QueryRow(ctx, "select '0' operator(s_"+name+".<<<) $1::int", id).Scan(new(int)))
		unasked := pool.primary.written(session).unknown > 0
		var n int
		noError(t, pool.QueryRow(ctx, "select count(*) from "+name).Scan(&n))
		if n != id+1 {
			t.Fatalf("%d rows of %d, without questions: %v", n, id+1, unasked)
		}
		return unasked
	})
}

// stayForLong has the reads of a session in which something was written stay on the primary for an hour.
func stayForLong(pool *Pool, session *Session) {
	state := session.written.Load().latest
	state.unknown, state.learned = 0, uptime()+time.Hour
	session.written.Store(&written{latest: state})
	pool.primary.stayUntil.Store(int64(uptime() + time.Hour))
}

// TestWritesWithoutQuestions has writes whose sessions' reads stay on the primary while replay is halted. They are sent without
// questions if the primary is much sooner, and the next read sees them. The first read that does not stay asks.
func TestWritesWithoutQuestions(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	id := 0
	for _, own := range []bool{false, true} {
		var asked atomic.Int64
		pool, sooner := soonerPool(t, func(c *Config) {
			dial := c.ConnConfig.DialFunc
			c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dial(ctx, network, addr)
				return questionCounter{conn, &asked}, err
			}
		})
		ctx, session := t.Context(), &pool.primary.session
		if own {
			session = &Session{}
			ctx = WithSession(ctx, session)
		}
		write := func() {
			t.Helper()
			id++
			noError(t, execs(ctx, pool, insertText(name, id)))
		}
		// reads reads what was written, and checks how often the position was asked for since the last call.
		reads := func(step string, questions int64) {
			t.Helper()
			if n := counts(t, ctx, pool, name); n != id {
				t.Errorf("%s, session of its own: %v: %d rows of %d", step, own, n, id)
			}
			if n := asked.Swap(0); n != questions {
				t.Errorf("%s, session of its own: %v: the position was asked for %d times, want %d", step, own, n, questions)
			}
		}
		write()
		awaitReplica(t, ctx, pool)
		thaw := freeze(t, cluster)
		before := sooner() // asks for the position too
		stayForLong(pool, session)
		asked.Store(0)

		pool.primary.quiet.Store(true)
		write()
		reads("much sooner", 0)
		noError(t, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { id++; return execs(ctx, tx, insertText(name, id)) }))
		stayForLong(pool, session)
		asked.Store(0)
		write()
		reads("behind a transaction", 0)
		pool.primary.quiet.Store(false)
		write()
		if n := asked.Swap(0); n != 1 {
			t.Errorf("session of its own: %v: the position of a write was asked for %d times, want once", own, n)
		}
		stayForLong(pool, session)
		pool.primary.quiet.Store(true)
		write()
		pool.primary.stayUntil.Store(0)
		reads("does not stay", 1)
		if n := sooner() - before; n != 2 {
			t.Errorf("session of its own: %v: %d reads stay, want 2", own, n)
		}
		thaw()
		awaitReplica(t, ctx, pool)
		if n := counts(t, ctx, pool, name); n != id {
			t.Errorf("session of its own: %v: %d rows of %d on the replica", own, n, id)
		}
	}
}

// TestWritesWithoutQuestionsCountAtOnce reads what such a write has inserted while its rows or results are still open.
func TestWritesWithoutQuestionsCountAtOnce(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	pool, _ := soonerPool(t)
	db := OpenDB(pool)
	defer db.Close()
	id := 0
	insert := func() string { id++; return insertText(name, id) + " returning id" }
	paths := map[string]func(ctx context.Context, inserted func()) error{
		"rows": func(ctx context.Context, inserted func()) error {
			rows, err := pool.Query(ctx, insert())
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				inserted()
			}
			return rows.Err()
		},
		"results": func(ctx context.Context, inserted func()) error {
			results := pool.SendBatch(ctx, batchOf(insert(), "select 1"))
			err := results.QueryRow().Scan(new(int))
			inserted()
			return errors.Join(err, results.Close())
		},
		"callback": func(ctx context.Context, inserted func()) error {
			b := &pgx.Batch{}
			b.Queue(insert()).QueryRow(func(row pgx.Row) error {
				err := row.Scan(new(int))
				inserted()
				return err
			})
			return pool.SendBatch(ctx, b).Close()
		},
		"database/sql": func(ctx context.Context, inserted func()) error {
			rows, err := db.QueryContext(ctx, insert())
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				inserted()
			}
			return rows.Err()
		},
	}
	noError(t, execs(t.Context(), pool, insert()))
	awaitReplica(t, t.Context(), pool)
	freeze(t, cluster)
	shown := pool.primary.session.written.Load()
	for _, test := range []struct{ own, quiet bool }{{}, {own: true}, {quiet: true}, {own: true, quiet: true}} {
		for path, write := range paths {
			ctx, session := t.Context(), &pool.primary.session
			if test.own {
				session = &Session{}
				ctx = WithSession(ctx, session)
			}
			session.written.Store(shown)
			stayForLong(pool, session)
			pool.primary.quiet.Store(test.quiet)
			noError(t, write(ctx, func() {
				if n := counts(t, ctx, pool, name); n != id {
					t.Errorf("%s, %+v: %d rows of %d", path, test, n, id)
				}
			}))
		}
	}
}

// TestReadsOfConnsKeepNoConnection has reads of sql.Conns run on the primary: one that stays there, and one that learns the position
// of a write. When they have ended, others can use its connections.
func TestReadsOfConnsKeepNoConnection(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	pool, sooner := soonerPool(t)
	db := OpenDB(pool)
	defer db.Close()
	noError(t, execs(ctx, pool, insertText(name, 0)))
	for id, stays := range []bool{false, true} {
		stayForLong(pool, &pool.primary.session)
		pool.primary.quiet.Store(true)
		noError(t, execs(ctx, pool, insertText(name, 1+id)))
		if !stays {
			pool.primary.stayUntil.Store(0)
		}
		before := sooner()
		conn, err := db.Conn(ctx)
		noError(t, err)
		defer conn.Close()
		if onStandby(t, ctx, conn) || sooner()-before == 1 != stays {
			t.Fatalf("stays: %v: the read runs elsewhere", stays)
		}
		if n := pool.Primary().Stat().AcquiredConns(); n != 0 {
			t.Errorf("stays: %v: a read that has ended holds %d connections to the primary", stays, n)
		}
	}
}

// TestStayedReadsTakeNoSlot has more reads stay on the primary than there are slots for fallbacks.
func TestStayedReadsTakeNoSlot(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	pool, sooner := soonerPool(t)
	before := sooner()
	noError(t, execs(ctx, pool, insertText(name, 0)))
	stayForLong(pool, &pool.primary.session)
	pool.primary.quiet.Store(true)
	noError(t, execs(ctx, pool, insertText(name, 1)))
	for range 2 {
		rows, err := pool.Query(ctx, "select 1")
		noError(t, err)
		defer rows.Close()
	}
	if n := sooner() - before; n != 2 {
		t.Fatalf("%d reads stay on the primary, want 2", n)
	}
	if n := len(pool.primary.fallbacks); n != 0 {
		t.Errorf("%d reads have a slot", n)
	}
}

// TestPrimaryIsSooner has the primary answer in a millisecond, and says which replicas are slower.
func TestPrimaryIsSooner(t *testing.T) {
	const ms = time.Millisecond
	for _, test := range []struct {
		name         string
		minWait      time.Duration
		report       time.Duration // how soon the replica answers
		delay        time.Duration
		sinceWrite   time.Duration
		sooner, much bool
	}{
		{name: "nothing known"},
		{name: "fast replica", report: ms / 10, delay: ms / 2},
		{name: "delay", report: ms / 10, delay: 2 * ms, sooner: true},
		{name: "long delay", report: ms / 10, delay: 10 * ms, sooner: true, much: true},
		{name: "long delay is over", report: ms / 10, delay: 10 * ms, sinceWrite: 20 * ms, much: true},
		{name: "replica answers as soon", report: ms, sooner: true},
		{name: "answer behind the delay", report: ms / 2, delay: 3 * ms / 4, sooner: true},
		{name: "minimal wait", minWait: ms, report: 10 * ms, delay: 10 * ms, much: true},
	} {
		p := &primary{minWait: test.minWait, maxWait: time.Second}
		p.roundTrip.Store(int64(ms))
		rep := &replica{tracker: &tracker{}}
		for range leastTimes + 1 {
			rep.tracker.fastest.measured(test.report)
		}
		rep.tracker.delay.estimate.Store(int64(test.delay))
		state := sessionState{position: 1, learned: uptime() - test.sinceWrite}
		if got := (&reads{primary: p}).primarySooner(rep, state); got != test.sooner {
			t.Errorf("%s: the primary is sooner: %v", test.name, got)
		}
		if p.stay(test.delay); p.quiet.Load() != test.much {
			t.Errorf("%s: the primary is much sooner: %v", test.name, !test.much)
		}
	}
}
