package flyregion

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// regionsOf returns the regions of the replicas that reads prefer, in order.
func regionsOf(pool *Pool) (regions []string) {
	for _, r := range found(pool) {
		if !slices.Contains(regions, r.region) {
			regions = append(regions, r.region)
		}
	}
	return regions
}

// TestAutoRegions takes the regions from the TXT record: the own one first, then the nearer of the others. One that has no
// Machine any more is let go, and a name server that fails changes nothing.
func TestAutoRegions(t *testing.T) {
	cluster := sharedCluster(t)
	cluster.SetLatency("ord", "nrt", 250*time.Millisecond) // The difference to syd is more than a busy machine adds.
	cluster.SetLatency("ord", "syd", 20*time.Millisecond)
	t.Cleanup(func() {
		cluster.SetLatency("ord", "nrt", 0)
		cluster.SetLatency("ord", "syd", 0)
	})
	log := &warnings{}
	site := cluster.From("ord")
	var answer atomic.Pointer[func(context.Context, string) ([]string, error)]
	say := func(f func(context.Context, string) ([]string, error)) { answer.Store(&f) }
	say(site.LookupTXT)
	var asked atomic.Int64
	pool := poolIn(t, cluster, "ord", often, func(c *Config) {
		c.ReplicaRegions = []string{"auto"}
		c.LookupTXTFunc = func(ctx context.Context, name string) ([]string, error) {
			asked.Add(1)
			return (*answer.Load())(ctx, name)
		}
		c.ConnConfig.Tracer = log.tracer()
	})
	if asked.Load() > 0 {
		t.Error("NewPool has looked the regions up")
	}
	has := func(what string, want ...string) {
		t.Helper()
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("the regions are %v, the failures %v", regionsOf(pool), pool.Stat().ConnectFailures())
			}
		})
		eventually(t, what, func() bool {
			servedBy(t, cluster, pool, 5)
			return slices.Equal(regionsOf(pool), want)
		})
	}
	has("all regions are found", "ord", "syd", "nrt")
	if by := servedBy(t, cluster, pool, 20); by["ord"] != 20 {
		t.Errorf("reads run on %v", by)
	}

	for _, fail := range []func(context.Context, string) ([]string, error){
		func(_ context.Context, name string) ([]string, error) {
			return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
		},
		func(context.Context, string) ([]string, error) { return nil, errors.New("server misbehaving") },
		func(context.Context, string) ([]string, error) { return nil, nil },
		func(context.Context, string) ([]string, error) { return []string{"; drop", "vms", "us-east-1"}, nil },
	} {
		say(fail)
		before := asked.Load()
		eventually(t, "the regions are asked for a few times", func() bool {
			servedBy(t, cluster, pool, 5)
			return asked.Load() > before+5
		})
		if got := regionsOf(pool); !slices.Equal(got, []string{"ord", "syd", "nrt"}) {
			t.Errorf("the regions are %v", got)
		}
	}
	if n := log.count(); n != 1 {
		t.Errorf("the log has %d messages: %q", n, log.messages)
	}

	say(func(context.Context, string) ([]string, error) { return []string{"nrt,ord"}, nil })
	has("a region is let go", "ord", "nrt")
	say(site.LookupTXT)
	has("a region joins", "ord", "syd", "nrt")

	link := cluster.Link("ord", "ord")
	link.Cut()
	t.Cleanup(link.Restore)
	readOn(t, cluster, pool, "syd")
	link.Restore()
	readOn(t, cluster, pool, "ord")
	unused(t, pool)
}

// TestCloseWhileRegionsAreLookedUp has the name server answer at the moment at which the pool is closed. No replica is made then,
// as nobody would close it.
func TestCloseWhileRegionsAreLookedUp(t *testing.T) {
	cluster := sharedCluster(t)
	asked := make(chan struct{}, 1)
	pool := poolIn(t, cluster, "ord", func(c *Config) {
		c.ReplicaRegions = []string{"auto"}
		c.LookupTXTFunc = func(ctx context.Context, _ string) ([]string, error) {
			asked <- struct{}{}
			<-ctx.Done()
			return []string{"nrt,ord,syd"}, nil
		}
	})
	servedBy(t, cluster, pool, 1)
	<-asked
	pool.Close()
	for _, r := range pool.replicas.list() {
		if err := r.pool.Ping(t.Context()); !errors.Is(err, errClosedPool) {
			t.Errorf("the pool of %s is open after Close: %v", r.host.name, err)
		}
	}
}
