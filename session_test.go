package flyregion

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// TestSessionOrigin has a session go on under another primary, whose positions have nothing to do with the first one's.
func TestSessionOrigin(t *testing.T) {
	var s Session
	first, second := &identity{system: 7, server: 1}, &identity{system: 7, server: 2}
	late := clock.Add(1)
	s.wrote(position{system: 7, origin: 1, asked: clock.Add(1), flush: 500, insert: 500})
	s.wrote(position{system: 7, origin: 2, asked: clock.Add(1), flush: 90, insert: 95})
	if got := s.in(second); got != (sessionState{position: 95, origin: 2}) {
		t.Errorf("after a failover the session says %+v", got)
	}
	s.wrote(position{system: 7, origin: 2, asked: clock.Add(1), flush: 80, insert: 80})
	if got := s.in(second); got.position != 95 {
		t.Errorf("the session went back to %v", got.position)
	}
	s.wrote(position{system: 7, origin: 1, asked: late, flush: 600, insert: 600})
	if got := s.in(first); got.position != 95 || got.origin != 2 || got.unknown == 0 {
		t.Errorf("after a late answer of the first primary the session says %+v", got)
	}
}

// TestSessionOfClusters writes to more and more clusters in one session. What it says of one is not changed by writes to the
// others, until it has forgotten it.
func TestSessionOfClusters(t *testing.T) {
	var s Session
	cluster := func(i int) *identity { return &identity{system: uint64(100 + i), server: serverID(i)} }
	const n = 2 * maxClusters
	for i := 1; i <= n; i++ {
		if got := s.in(cluster(i)); (got == sessionState{}) != (i <= maxClusters+1) {
			t.Errorf("of cluster %d, which was not written to, the session says %+v", i, got)
		}
		if i%3 == 0 {
			s.wroteUnknown(uint64(100+i), 0)
		}
		if i%3 != 2 {
			s.wrote(position{system: uint64(100 + i), origin: serverID(i), asked: clock.Add(1), flush: LSN(i), insert: LSN(i)})
		} else {
			s.wroteUnknown(uint64(100+i), 0)
		}
		for j := 1; j <= i; j++ {
			switch got := s.in(cluster(j)); {
			case j <= i-maxClusters:
				if got.unknown == 0 || got.position != 0 {
					t.Errorf("of cluster %d, after %d, the session says %+v, want that it is not known", j, i, got)
				}
			case (got.unknown > 0) != (j%3 == 2) || j%3 != 2 && got != (sessionState{position: LSN(j), origin: serverID(j)}):
				t.Errorf("of cluster %d, after %d, the session says %+v", j, i, got)
			}
		}
		if i < maxClusters && s.in(cluster(n+1)) != (sessionState{}) {
			t.Errorf("of a cluster that was not written to the session says %+v", s.in(cluster(n+1)))
		}
	}
	if got := len(s.written.Load().others) + 1; got != maxClusters {
		t.Errorf("the session remembers %d clusters", got)
	}
	// A cluster that was forgotten and is written to again is known again.
	s.wrote(position{system: 101, origin: 1, asked: clock.Add(1), flush: 50, insert: 50})
	if got := s.in(cluster(1)); got != (sessionState{position: 50, origin: 1}) {
		t.Errorf("the session says %+v", got)
	}
	// What cannot be told apart is in doubt.
	for _, primary := range []*identity{nil, {}, {system: 99, server: 99, formerly: []uint64{101}}} {
		if got := s.in(primary); got.unknown == 0 {
			t.Errorf("to a pool of %+v the session says %+v", primary, got)
		}
	}
	s.wroteUnknown(0, 0)
	if got := s.in(cluster(1)); got.unknown == 0 {
		t.Errorf("after a write to nobody knows which cluster the session says %+v", got)
	}
	s.wrote(position{system: 101, origin: 1, asked: clock.Add(1), flush: 60, insert: 60})
	if got := s.in(cluster(1)); got != (sessionState{position: 60, origin: 1}) {
		t.Errorf("after the primary was asked the session says %+v", got)
	}
}

// TestSessionAllocations counts what reads and writes of a session allocate.
func TestSessionAllocations(t *testing.T) {
	var s Session
	primary := &identity{system: 1, server: 1}
	at := LSN(0)
	write := func(system uint64, grows LSN) func() {
		return func() {
			at += grows
			s.wrote(position{system: system, origin: serverID(system), asked: clock.Add(1), flush: at, insert: at})
		}
	}
	allocates := func(what string, want float64, f func()) {
		t.Helper()
		if got := testing.AllocsPerRun(100, f); got > want {
			t.Errorf("%s allocates %v times, want %v", what, got, want)
		}
	}
	allocates("a write", 1, write(1, 1))
	allocates("a write that does not advance", 0, write(1, 0))
	allocates("a read", 0, func() { s.in(primary) })
	write(2, 1)()
	allocates("a write to the same one of two clusters", 1, write(2, 1))
	allocates("a read of the other", 0, func() { s.in(primary) })
}

// TestSessionConcurrent writes to a session from many goroutines, to two clusters.
func TestSessionConcurrent(t *testing.T) {
	var s Session
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 1000 {
				origin := serverID(1 + i%2)
				s.wrote(position{system: uint64(origin), origin: origin, asked: clock.Add(1), flush: LSN(8*j + i), insert: LSN(8*j + i)})
			}
		})
	}
	wg.Wait()
	for i := range 2 {
		id := &identity{system: uint64(1 + i), server: serverID(1 + i)}
		if got := s.in(id); got != (sessionState{position: LSN(7998 + i), origin: id.server}) {
			t.Errorf("of cluster %d the session says %+v", i, got)
		}
	}
}

// TestIntents makes a context from others: it keeps what they ask, unless it asks for something else itself.
func TestIntents(t *testing.T) {
	var s Session
	ctx := WithSession(WithReplica(WithoutWait(t.Context())), &s)
	if got := intentOf(ctx); got != (intent{session: &s, target: targetReplica, wants: wantsAny}) {
		t.Errorf("the context asks %+v", got)
	}
	if got := intentOf(WithSession(WithPrimary(ctx), nil)); got != (intent{target: targetPrimary, wants: wantsAny}) {
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

// BenchmarkSession is what it costs to ask a session what a read has to see, by how many clusters it has written to.
func BenchmarkSession(b *testing.B) {
	for _, n := range []int{1, 2, maxClusters} {
		var s Session
		for i := range n {
			s.wrote(position{system: uint64(1 + i), origin: serverID(1 + i), asked: clock.Add(1), flush: 1, insert: 1})
		}
		p := primary{}
		p.identify(&report{system: 1, server: 1})
		b.Run(fmt.Sprintf("clusters=%d", n), func(b *testing.B) {
			for b.Loop() {
				if !p.covers(p.written(&s)) {
					b.Fatal("the session's position is not known")
				}
			}
		})
	}
}

// TestSessionRemembersTheTimeOfAWrite has a write whose position is not known at first.
func TestSessionRemembersTheTimeOfAWrite(t *testing.T) {
	var s Session
	primary := &identity{system: 1, server: 1}
	s.wroteUnknown(1, time.Second)
	s.wrote(position{system: 1, origin: 1, asked: clock.Add(1), flush: 10, insert: 10})
	if got := s.in(primary); got != (sessionState{position: 10, origin: 1, learned: time.Second}) {
		t.Errorf("after the first write the session says %+v", got)
	}
	s.wroteUnknown(1, 0) // it may have written nothing
	if got := s.in(primary); got.learned != time.Second || got.unknown == 0 {
		t.Errorf("after what may be a write the session says %+v", got)
	}
	s.wroteUnknown(1, 2*time.Second)
	s.wrote(position{system: 1, origin: 1, asked: clock.Add(1), flush: 20, insert: 20})
	if got := s.in(primary); got != (sessionState{position: 20, origin: 1, learned: 2 * time.Second}) {
		t.Errorf("after the second write the session says %+v", got)
	}
}

// TestUnknownWritesAtOnce has writes at once whose positions are not known. One that is noted must not give the session an
// earlier time than it has: an answer that the primary was asked for in between would seem to cover the later write.
func TestUnknownWritesAtOnce(t *testing.T) {
	var s Session
	var writers sync.WaitGroup
	primary := &identity{system: 1, server: 1}
	for range 8 {
		writers.Go(func() {
			var latest uint64
			for range 100_000 {
				s.wroteUnknown(1, 0)
				for range 5 { // others write in between
					unknown := s.in(primary).unknown
					if unknown < latest {
						t.Errorf("the latest unknown write was one of %d, and is one of %d", latest, unknown)
						return
					}
					latest = unknown
				}
			}
		})
	}
	writers.Wait()
}

// TestSessionAskedBetweenUnknownWrites has the primary asked between two writes whose positions are not known. The first one may
// have been committed asynchronously.
func TestSessionAskedBetweenUnknownWrites(t *testing.T) {
	var s Session
	s.wroteUnknown(1, 0)
	asked := clock.Add(1)
	s.wroteUnknown(1, 0)
	s.wrote(position{system: 1, origin: 1, asked: asked, flush: 10, insert: 20})
	if got := s.in(&identity{system: 1, server: 1}); got.position != 20 || got.unknown < asked {
		t.Errorf("the session says %+v", got)
	}
}
