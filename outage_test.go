package flyregion

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestReadsOutliveThePrimary takes the primary away for longer than a replica may be behind. Reads go on to run on the
// replica, but for those that are promised more. When the primary is back, they leave a replica that is too far behind.
func TestReadsOutliveThePrimary(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
	name := table(t, cluster, "id int primary key, v text")
	primary, link, replication := cluster.Server("nrt"), cluster.Link("ord", "nrt"), cluster.Replication("ord")
	const limit = 300 * time.Millisecond
	for id, test := range []struct {
		name           string
		fail, comeBack func()
	}{
		{"killed",
			func() { noError(t, primary.Kill()); replication.Cut() },
			func() { noError(t, primary.Start(context.Background())) }},
		{"silent", func() { replication.Cut(); link.Stall() }, link.Restore},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			settings := func(c *Config) {
				c.MaxReplicaLag, c.ConnConfig.ConnectTimeout = limit, time.Second // so that a silent primary is noticed soon
			}
			telemetry := record(t)
			pool := poolIn(t, cluster, "ord", settings, telemetry.into)
			noFallback := poolIn(t, cluster, "ord", settings, func(c *Config) { c.NoFallback = true })
			pools := []*Pool{pool, noFallback}
			noError(t, execs(ctx, pool, insertText(name, id)))
			noError(t, pool.WaitReplayed(ctx))
			for _, p := range pools {
				awaitReplica(t, ctx, p)
			}

			test.fail()
			for _, p := range pools {
				eventually(t, "the replica is too far behind", func() bool {
					if n := counts(t, ctx, p, name); n != id+1 {
						t.Fatalf("a read sees %d rows of %d", n, id+1)
					}
					return p.replicas.farBehind()
				})
			}
			for way, read := range readsOf(name) {
				for what, ctx := range map[string]context.Context{"": ctx, "WithoutWait": WithoutWait(ctx), "WithReplica": WithReplica(ctx)} {
					for _, p := range pools {
						if err := read(ctx, p); err != nil {
							t.Errorf("%s, %s: %v", way, what, err)
						}
					}
				}
			}
			if !replicaServes(t, ctx, pool) || counts(t, ctx, pool, name) != id+1 {
				t.Error("a read on the replica misses what its session has written")
			}
			if s := pool.Replicas()[0]; s.LeftAlone != "" || s.Lag <= limit {
				t.Errorf("the replica is left alone (%q) with a lag of %v", s.LeftAlone, s.Lag)
			}
			for what, ctx := range map[string]context.Context{"WithMaxLag": WithMaxLag(ctx, limit), "WithFresh": WithFresh(ctx)} {
				ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
				defer cancel()
				if _, err := pool.Exec(ctx, "select 1"); err == nil {
					t.Errorf("%s: no error", what)
				}
			}

			test.comeBack()
			eventually(t, "reads leave the replica", func() bool {
				return !replicaServes(t, WithoutWait(ctx), pool) && sentFor(pool, becauseBehind) > 0
			})
			eventually(t, "reads without a fallback fail", func() bool { return errors.Is(readsOf(name)["QueryRow"](ctx, noFallback), ErrReplicaLag) })
			replication.Restore()
			for _, p := range pools {
				eventually(t, "reads are local again", func() bool { return readsOf(name)["QueryRow"](ctx, p) == nil && replicaServes(t, ctx, p) })
			}
		})
	}
}

// TestBusyPrimary has all connections of the primary's pool in use. Reads wait for one: the primary can be reached.
func TestBusyPrimary(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := WithoutWait(t.Context())
	pool := poolIn(t, cluster, "ord", maxLag(300*time.Millisecond), func(c *Config) { c.MaxConns = 1 })
	awaitReplica(t, ctx, pool)
	freeze(t, cluster)
	noError(t, cluster.Leader().Exec(ctx, insertText(name, 1)))
	eventually(t, "reads leave the replica", func() bool { return !replicaServes(t, ctx, pool) })

	conn, err := pool.Acquire(ctx)
	noError(t, err)
	pool.primary.contact.doubt()
	sent := sentFor(pool, becauseBehind)
	read := make(chan error, 1)
	go func() {
		replica := false
		err := pool.QueryRow(ctx, readOnlySQL).Scan(&replica)
		if replica {
			err = errors.New("it has run on a replica that is too far behind")
		}
		read <- err
	}()
	eventually(t, "the read is on its way to the primary", func() bool { return sentFor(pool, becauseBehind) > sent || len(read) > 0 })
	conn.Release()
	noError(t, <-read)
}
