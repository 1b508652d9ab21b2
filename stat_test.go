package flyregion

import (
	"context"
	"reflect"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

// statNumber returns what a method of a pgxpool.Stat or a Stat says.
func statNumber(stat any, method string) int64 {
	return reflect.ValueOf(stat).MethodByName(method).Call(nil)[0].Int()
}

// everySum checks that each number is the sum of those of the servers.
func everySum(t *testing.T, stat *Stat, regions ...string) {
	t.Helper()
	methods := reflect.TypeFor[*pgxpool.Stat]()
	for i := range methods.NumMethod() {
		name := methods.Method(i).Name
		want := statNumber(stat.Primary(), name)
		for _, region := range regions {
			want += statNumber(stat.Replica(region), name)
		}
		if got := statNumber(stat, name); got != want {
			t.Errorf("%s is %d, and the servers' sum %d", name, got, want)
		}
	}
}

func TestStat(t *testing.T) {
	cluster := sharedCluster(t)
	pool := poolIn(t, cluster, "ord", func(c *Config) {
		c.ReplicaRegions = []string{"ord", "syd"}
		c.MaxConns = 3
	})
	ctx := t.Context()

	before := pool.Stat()
	everySum(t, before, "ord", "syd")
	if before.MaxConns() != 9 || before.TotalConns() != 0 || before.AcquireCount() != 0 {
		t.Errorf("at first there are %d of %d connections, %d acquires", before.TotalConns(), before.MaxConns(), before.AcquireCount())
	}

	primary, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	replica, err := pool.Acquire(WithReplica(ctx))
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, err := pool.ReplicaIn("syd").Exec(ctx, "select 1"); err != nil {
			t.Fatal(err)
		}
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := pool.Acquire(canceled); err == nil {
		t.Error("a connection was acquired for a context that had ended")
	}

	during := pool.Stat()
	everySum(t, during, "ord", "syd")
	for what, got := range map[string][2]int64{
		"connections in use":           {int64(during.AcquiredConns()), 2},
		"connections in use on ord":    {int64(during.Replica("ord").AcquiredConns()), 1},
		"connections in use on nrt":    {int64(during.Primary().AcquiredConns()), 1},
		"connections in use on syd":    {int64(during.Replica("syd").AcquiredConns()), 0},
		"idle connections":             {int64(during.IdleConns()), 1},
		"connections":                  {int64(during.TotalConns()), 3},
		"new connections":              {during.NewConnsCount(), 3},
		"acquires":                     {during.AcquireCount(), 6},
		"acquires on syd":              {during.Replica("syd").AcquireCount(), 4},
		"acquires that were canceled":  {during.CanceledAcquireCount(), 1},
		"acquires that had to wait":    {during.EmptyAcquireCount(), 3},
		"connections that can be made": {int64(during.MaxConns()), 9},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %d, want %d", what, got[0], got[1])
		}
	}
	if during.AcquireDuration() <= 0 || during.EmptyAcquireWaitTime() <= 0 {
		t.Errorf("acquires took %v, and waited %v", during.AcquireDuration(), during.EmptyAcquireWaitTime())
	}
	for _, region := range []string{"nrt", "lax", ""} {
		if during.Replica(region) != nil {
			t.Errorf("there are statistics of a replica in %q", region)
		}
	}

	primary.Release()
	replica.Release()
	// A snapshot stays as it is.
	if during.AcquiredConns() != 2 || before.TotalConns() != 0 {
		t.Error("a snapshot has changed")
	}
	everySum(t, pool.Stat(), "ord", "syd")
}

func TestStatOfOneRegion(t *testing.T) {
	pool := poolIn(t, sharedCluster(t), "nrt")
	if err := pool.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	stat := pool.Stat()
	everySum(t, stat)
	if stat.AcquireCount() != 1 || stat.Replica("nrt") != nil || stat.Replica("ord") != nil {
		t.Errorf("%d acquires, replicas %v and %v", stat.AcquireCount(), stat.Replica("nrt"), stat.Replica("ord"))
	}
}

// TestStatOfReplicasThatLeave has one of two replicas in a region leave while a connection to it is in use.
func TestStatOfReplicasThatLeave(t *testing.T) {
	cluster := sharedCluster(t)
	names := namesFor(cluster, "ord", "syd")
	pool := poolIn(t, cluster, "ord", names.into, often)
	ctx := t.Context()
	readOn(t, cluster, pool, "ord", "syd")
	leaves, stays := pool.replicas.list()[0], pool.replicas.list()[1]
	conn, err := leaves.pool.Acquire(ctx)
	noError(t, err)
	defer conn.Release()

	// checkSums checks that no cumulative count has fallen.
	checkSums := func(last *Stat) *Stat {
		t.Helper()
		stat := pool.Stat()
		for _, counter := range []string{
			"AcquireCount", "AcquireDuration", "CanceledAcquireCount", "EmptyAcquireCount", "EmptyAcquireWaitTime",
			"MaxIdleDestroyCount", "MaxLifetimeDestroyCount", "NewConnsCount",
		} {
			if before, now := statNumber(last, counter), statNumber(stat, counter); now < before {
				t.Fatalf("%s has fallen from %d to %d", counter, before, now)
			}
		}
		return stat
	}
	last := pool.Stat()
	names.lead(ordName, cluster, "syd")
	eventually(t, "the replica has left", func() bool {
		_ = execs(ctx, pool, "select 1")
		last = checkSums(last)
		return len(found(pool)) == 1
	})
	if last.AcquiredConns() == 0 {
		t.Error("the connection in use does not count")
	}
	conn.Release()
	eventually(t, "its pool is closed", func() bool {
		last = checkSums(last)
		return last.AcquiredConns() == 0
	})
	eventually(t, "its counts are kept", func() bool { return len(checkSums(last).leaving) == 0 })

	if got, want := pool.Stat().Replica("ord").AcquireCount(), stays.pool.Stat().AcquireCount(); got != want {
		t.Errorf("%d acquires in ord, want %d of the replica that stays", got, want)
	}
	names.lead(ordName, cluster, "syd", "ord")
	readOn(t, cluster, pool, "ord", "syd")
	stays.health.doubt()
	if got, want := pool.Stat().Replica("ord").AcquireCount(), pool.ReplicaIn("ord").Stat().AcquireCount(); got != want || pool.ReplicaIn("ord") == stays.pool {
		t.Errorf("%d acquires, want %d of the replica that can be reached", got, want)
	}
}
