package flyregion

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// TestSessionCovers runs random writes and answers in any order against a simple model: what a session says must never
// be less than what was written in it.
func TestSessionCovers(t *testing.T) {
	for range 2000 {
		var s Session
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		var (
			log     LSN = 100 // the insert position
			flushed LSN = 100
			must    LSN // covers all writes of the session that have returned
			answers []position
		)
		for range 1 + r.IntN(20) {
			switch r.IntN(4) {
			case 0: // a write that nobody asked about, which may be asynchronous
				log += LSN(1 + r.IntN(10))
				if r.IntN(2) == 0 {
					flushed = log
				}
				must = log
				s.wroteUnknown()
			case 1: // somebody asks, and hears of it later
				answers = append(answers, position{origin: 1, asked: clock.Add(1), flush: flushed, insert: log})
			case 2: // an answer comes
				if len(answers) > 0 {
					i := r.IntN(len(answers))
					s.wrote(answers[i])
					answers = append(answers[:i], answers[i+1:]...)
				}
			case 3: // a synchronous write whose position comes along
				log += LSN(1 + r.IntN(10))
				flushed = log
				must = log
				s.wrote(position{origin: 1, asked: clock.Add(1), flush: flushed, insert: log})
			}
			if state := s.load(); state.unknown == 0 && state.position < must {
				t.Fatalf("seed %d: the session says %v, and %v was written", seed, state.position, must)
			}
		}
	}
}

// TestSessionOrigin has a session go on under another primary, whose positions have nothing to do with the first one's.
func TestSessionOrigin(t *testing.T) {
	var s Session
	s.wrote(position{origin: 1, asked: clock.Add(1), flush: 500, insert: 500})
	s.wrote(position{origin: 2, asked: clock.Add(1), flush: 90, insert: 95})
	if got := s.load(); got != (sessionState{position: 90, origin: 2}) {
		t.Errorf("after a failover the session says %+v", got)
	}
	s.wrote(position{origin: 2, asked: clock.Add(1), flush: 80, insert: 80})
	if got := s.load(); got.position != 90 {
		t.Errorf("the session went back to %v", got.position)
	}
}

// TestSessionConcurrent writes to a session from many goroutines.
func TestSessionConcurrent(t *testing.T) {
	var s Session
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 1000 {
				s.wrote(position{origin: 1, asked: clock.Add(1), flush: LSN(8*j + i), insert: LSN(8*j + i)})
			}
		})
	}
	wg.Wait()
	if got := s.load(); got != (sessionState{position: 7999, origin: 1}) {
		t.Errorf("the session says %+v", got)
	}
}

// TestIntents makes a context from others: it keeps what they ask, unless it asks for something else itself.
func TestIntents(t *testing.T) {
	var s Session
	ctx := WithSession(WithReplica(WithoutWait(t.Context())), &s)
	if got := intentOf(ctx); got != (intent{session: &s, target: targetReplica, noWait: true}) {
		t.Errorf("the context asks %+v", got)
	}
	if got := intentOf(WithSession(WithPrimary(ctx), nil)); got != (intent{target: targetPrimary, noWait: true}) {
		t.Errorf("the context asks %+v", got)
	}
	if got := intentOf(t.Context()); got != (intent{}) {
		t.Errorf("a context without anything asks %+v", got)
	}
}

// TestWithSession has readers who do not wait for other people's writes, while the replica shows nothing new.
func TestWithSession(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	hide(t, cluster, name)
	ctx := t.Context()
	all := append(append(append([]writePath{}, writePaths...), hiddenPaths...), asyncPaths...)
	id := 0
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxReplicaWait = time.Minute })
	freeze(t, cluster)
	for _, path := range all {
		// Nobody can tell in which session a statement on the PgConn runs.
		if strings.Contains(path.name, "raw") || strings.HasPrefix(path.name, "view") {
			continue
		}
		t.Run(path.name, func(t *testing.T) {
			id++
			mine, other := WithSession(ctx, new(Session)), WithSession(ctx, new(Session))
			if err := path.write(mine, pool, name, id); err != nil {
				t.Fatal(err)
			}
			exists := "select exists (select from " + name + " where id = $1)"
			var seen bool
			if err := pool.QueryRow(mine, exists, id).Scan(&seen); err != nil || !seen {
				t.Errorf("the session sees its write: %v, %v", seen, err)
			}
			if err := pool.QueryRow(ctx, exists, id).Scan(&seen); err != nil || !seen {
				t.Errorf("without a session the write is seen: %v, %v", seen, err)
			}
			if err := pool.QueryRow(WithSession(mine, nil), exists, id).Scan(&seen); err != nil || !seen {
				t.Errorf("with no session the write is seen: %v, %v", seen, err)
			}
			// A read goes to the primary when the catalog's answers expire just while they are asked for.
			onReplica := func(who string, ctx context.Context, read func() error) {
				t.Helper()
				eventually(t, who+" does not see the write", func() bool {
					if err := read(); err != nil {
						t.Fatal(err)
					}
					return !seen && replicaServes(t, ctx, pool)
				})
			}
			onReplica("another session", other, func() error { return pool.QueryRow(other, exists, id).Scan(&seen) })
			noWait := WithoutWait(mine)
			onReplica("who does not wait", noWait, func() error { return pool.QueryRow(noWait, exists, id).Scan(&seen) })
			onReplica("a transaction that does not wait", noWait, func() error {
				return pgx.BeginTxFunc(noWait, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
					return tx.QueryRow(ctx, exists, id).Scan(&seen)
				})
			})
		})
	}
}

// TestWaitReplayed waits for a session's writes, or the process's.
func TestWaitReplayed(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	pool := poolIn(t, cluster, "ord")
	ctx := t.Context()
	if err := pool.WaitReplayed(ctx); err != nil {
		t.Errorf("nothing was written: %v", err)
	}
	thaw := freeze(t, cluster)
	mine, other := WithSession(ctx, new(Session)), WithSession(ctx, new(Session))
	if err := execs(mine, pool, insertText(name, 1)); err != nil {
		t.Fatal(err)
	}
	if err := pool.WaitReplayed(other); err != nil {
		t.Errorf("nothing was written in the session: %v", err)
	}
	for _, ctx := range []context.Context{ctx, mine} {
		limited, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		if err := pool.WaitReplayed(limited); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while the replica shows nothing: %v", err)
		}
		cancel()
		canceled, cancel := context.WithCancel(ctx)
		cancel()
		if err := pool.WaitReplayed(canceled); !errors.Is(err, context.Canceled) {
			t.Errorf("in a context that has ended: %v", err)
		}
	}
	returned := make(chan error, 2)
	for _, ctx := range []context.Context{ctx, mine} {
		go func() { returned <- pool.WaitReplayed(ctx) }()
	}
	time.Sleep(50 * time.Millisecond)
	select {
	case err := <-returned:
		t.Fatalf("it returned although nothing was replayed: %v", err)
	default:
	}
	thaw()
	for range 2 {
		if err := <-returned; err != nil {
			t.Errorf("after the replay: %v", err)
		}
	}
	var n int
	if err := pool.Replica().QueryRow(ctx, "select count(*) from "+name).Scan(&n); err != nil || n != 1 {
		t.Errorf("the replica shows %d rows, %v", n, err)
	}

	// Of a write whose position nobody asked for, too.
	freeze(t, cluster)
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	err = raw(ctx, conn, insertText(name, 2))
	conn.Release()
	if err != nil {
		t.Fatal(err)
	}
	limited, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := pool.WaitReplayed(limited); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the replica shows nothing: %v", err)
	}
}

// TestAwaitWrites has writes return when the replica shows them.
func TestAwaitWrites(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	name := table(t, cluster, "id int primary key, v text")
	hide(t, cluster, name)
	ctx := t.Context()
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.AwaitWrites, c.MaxReplicaWait = true, time.Minute })
	id := 0
	for _, path := range append(append([]writePath{}, writePaths...), hiddenPaths...) {
		// What the tracer does not see, or what goes on on the connection, is not waited for.
		if strings.Contains(path.name, "raw") || strings.Contains(path.name, "acquired") || strings.HasPrefix(path.name, "view") {
			continue
		}
		id++
		ord := cluster.Server("ord")
		if err := ord.WaitReplayed(ctx); err != nil {
			t.Fatal(err)
		}
		if err := ord.PauseReplay(ctx); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(10*time.Millisecond, func() { _ = ord.ResumeReplay(context.Background()) })
		if err := path.write(ctx, pool, name, id); err != nil {
			t.Fatalf("%s: %v", path.name, err)
		}
		// Somebody else's pool knows nothing of the write.
		var n int
		if err := pool.Replica().QueryRow(ctx, "select count(*) from "+name+" where id = $1", id).Scan(&n); err != nil || n != 1 {
			t.Errorf("%s: when the write has returned the replica shows %d rows, %v", path.name, n, err)
		}
	}

	// It is no error if the replica does not show the write in time.
	slow := poolIn(t, cluster, "ord", func(c *Config) { c.AwaitWrites, c.MaxReplicaWait = true, 20*time.Millisecond })
	freeze(t, cluster)
	if err := execs(ctx, slow, insertText(name, 1_000_000)); err != nil {
		t.Error(err)
	}
	if n := counts(t, ctx, slow, name+" where id = 1000000"); n != 1 {
		t.Errorf("%d rows", n)
	}
}
