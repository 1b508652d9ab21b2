package flyregion

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// clusterTable is a table (id int) of a cluster, and the row that was written last.
type clusterTable struct {
	name string
	last int
}

// insert returns the SQL that writes a row.
func (c *clusterTable) insert() string {
	c.last = int(clock.Add(1))
	return fmt.Sprintf("insert into %s values (%d)", c.name, c.last)
}

// seen fails the test if a read misses the row that was written last.
func (c *clusterTable) seen(t *testing.T, ctx context.Context, what string, pool *Pool) {
	t.Helper()
	var seen bool
	if err := pool.QueryRow(ctx, fmt.Sprintf("select exists (select from %s where id = %d)", c.name, c.last)).Scan(&seen); err != nil || !seen {
		t.Errorf("%s: the read sees the write: %v, %v", what, seen, err)
	}
}

// serveInTurn reports whether reads that alternate between pools all run on replicas.
func serveInTurn(t *testing.T, ctx context.Context, pools ...*Pool) bool {
	t.Helper()
	for range 2 {
		for _, pool := range pools {
			if !replicaServes(t, ctx, pool) {
				return false
			}
		}
	}
	return true
}

// TestSessionOfTwoClusters writes to two clusters in one session, and through two pools of one of them. The session's reads
// miss nothing, and what one cluster's replica does not show yet is no reason to read from the other's primary.
func TestSessionOfTwoClusters(t *testing.T) {
	east, west := sharedCluster(t), threeServers(t)
	a, b := &clusterTable{name: table(t, east, "id int")}, &clusterTable{name: trustTable(t, west)}
	patient := func(c *Config) { c.MaxReplicaWait = time.Minute }
	poolA, poolB, secondB := poolIn(t, east, "ord", patient), poolIn(t, west, "ord", patient), poolIn(t, west, "ord", patient)
	pools := []*Pool{poolA, poolB, secondB}
	newSession := func() context.Context { return WithSession(t.Context(), new(Session)) }
	comeHome := func(t *testing.T, ctx context.Context) {
		t.Helper()
		eventually(t, "the reads of all pools run on replicas", func() bool { return serveInTurn(t, ctx, pools...) })
	}

	t.Run("both replay", func(t *testing.T) {
		ctx := newSession()
		if !serveInTurn(t, ctx, pools...) {
			t.Error("before any write a read runs on a primary")
		}
		for range 3 {
			noError(t, execs(ctx, poolA, a.insert()))
			noError(t, execs(ctx, poolB, b.insert()))
			a.seen(t, ctx, "after both writes", poolA)
			b.seen(t, ctx, "after both writes", poolB)
			b.seen(t, ctx, "through the cluster's second pool", secondB)
		}
		comeHome(t, ctx)
	})

	t.Run("one halts", func(t *testing.T) {
		ctx := newSession()
		thaw := freeze(t, west)
		for _, pool := range []*Pool{poolB, secondB} {
			noError(t, execs(ctx, poolA, a.insert()))
			noError(t, execs(ctx, pool, b.insert()))
			a.seen(t, ctx, "beside a replica that halts", poolA)
			b.seen(t, ctx, "on a replica that halts", poolB)
			b.seen(t, ctx, "on a replica that halts, through the second pool", secondB)
		}
		eventually(t, "the replica that does not halt serves", func() bool { return replicaServes(t, ctx, poolA) })
		if replicaServes(t, ctx, poolB) || replicaServes(t, ctx, secondB) || !replicaServes(t, ctx, poolA) {
			t.Error("the replica serves that halts, or the other one does not")
		}
		if !serveInTurn(t, newSession(), pools...) {
			t.Error("in another session, which has written nothing, a read runs on a primary")
		}
		thaw()
		comeHome(t, ctx)
	})

	t.Run("a position is not known", func(t *testing.T) {
		ctx := newSession()
		noError(t, execs(ctx, poolA, a.insert()))
		comeHome(t, ctx)
		thaw := freeze(t, west)
		noError(t, secondB.AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return raw(ctx, conn, b.insert()) }))
		if !replicaServes(t, ctx, poolA) {
			t.Error("a read of the other cluster runs on its primary")
		}
		b.seen(t, ctx, "through the cluster's other pool", poolB)
		thaw()
		comeHome(t, ctx)
	})

	t.Run("a pool has not connected", func(t *testing.T) {
		ctx := newSession()
		freeze(t, west)
		noError(t, execs(ctx, poolB, b.insert()))
		noError(t, execs(ctx, poolA, a.insert()))
		b.seen(t, ctx, "through a pool that has not connected to the primary", poolIn(t, west, "ord", patient))
	})

	t.Run("concurrently", func(t *testing.T) {
		ctx := newSession()
		var wg sync.WaitGroup
		stop := make(chan struct{})
		wg.Go(func() {
			for _, c := range []interface {
				PauseReplay(context.Context) error
				ResumeReplay(context.Context) error
			}{west.Server("ord"), east.Server("ord")} {
				defer func() {
					if err := c.ResumeReplay(context.Background()); err != nil {
						t.Error(err)
					}
				}()
			}
			for i := 0; ; i++ {
				server := west.Server("ord")
				if i/2%2 == 0 {
					server = east.Server("ord")
				}
				change := server.PauseReplay
				if i%2 == 1 {
					change = server.ResumeReplay
				}
				if err := change(context.Background()); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
		})
		var clients sync.WaitGroup
		for range 4 {
			clients.Go(func() {
				mine := []*clusterTable{{name: a.name}, {name: b.name}}
				for i := range 40 {
					for j, pool := range []*Pool{poolA, pools[1+i%2]} {
						if err := execs(ctx, pool, mine[j].insert()); err != nil {
							t.Error(err)
						}
					}
					mine[0].seen(t, ctx, "concurrently", poolA)
					mine[1].seen(t, ctx, "concurrently", pools[1+i/2%2])
				}
			})
		}
		clients.Wait()
		close(stop)
		wg.Wait()
		comeHome(t, ctx)
	})

	t.Run("a failover", func(t *testing.T) {
		ctx := newSession()
		noError(t, execs(ctx, poolB, b.insert()))
		noError(t, execs(ctx, poolA, a.insert()))
		comeHome(t, ctx)
		noError(t, west.Promote(t.Context(), "syd"))
		// A connection to the server that was the primary is lost with the first read that uses it.
		reads := func(pool *Pool) {
			eventually(t, "the pool reads", func() bool { return execs(ctx, pool, "select from "+b.name) == nil })
			b.seen(t, ctx, "after the failover", pool)
		}
		reads(poolB)
		reads(secondB)
		if !replicaServes(t, ctx, poolA) {
			t.Error("a read of the other cluster runs on its primary")
		}
		eventually(t, "the new primary is written to", func() bool { return execs(ctx, poolB, b.insert()) == nil })
		reads(poolB)
		reads(secondB)
		noError(t, execs(ctx, poolA, a.insert()))
		comeHome(t, ctx)
	})
}
