package compat

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flyregion/flyregion"
	"github.com/flyregion/flyregion/internal/pgcluster"
)

// cluster has its primary in nrt and a replica in ord, where the tests run, 20 ms away.
var cluster *pgcluster.Cluster

func TestMain(m *testing.M) {
	for _, name := range []string{"FLY_REGION", "MY_REGION", "PRIMARY_REGION", "FLY_APP_NAME"} {
		os.Unsetenv(name)
	}
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	var err error
	cluster, err = pgcluster.Start(context.Background(), pgcluster.Config{
		Replicas:   []string{"ord"},
		Parameters: map[string]string{"log_statement": "all"},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := cluster.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	cluster.SetLatency("ord", "nrt", 20*time.Millisecond)
	return m.Run()
}

// newPool returns the pool of an app in ord. When the test ends everything that it made is gone.
func newPool(t *testing.T, change ...func(*flyregion.Config)) *flyregion.Pool {
	t.Helper()
	config, err := flyregion.ParseConfig(cluster.URL())
	if err != nil {
		t.Fatal(err)
	}
	config.Region, config.PrimaryRegion = "ord", "nrt"
	config.ConnConfig.LookupFunc = cluster.From("ord").LookupHost
	config.ConnConfig.DialFunc = cluster.From("ord").DialContext
	for _, f := range change {
		f(config)
	}
	pool, err := flyregion.NewPoolWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A library may give a connection back a moment after its Close or Stop returned.
		deadline := time.Now().Add(10 * time.Second)
		for pool.Stat().AcquiredConns() > 0 && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		if n := pool.Stat().AcquiredConns(); n != 0 {
			t.Errorf("%d connections are still in use", n)
		}
		pool.Close()
		err := cluster.Leader().Exec(context.Background(), "drop schema if exists books cascade; drop schema public cascade; create schema public")
		if err != nil {
			t.Error(err)
		}
	})
	return pool
}

// setUp runs SQL on the primary, and waits until the replica has it too.
func setUp(t *testing.T, sql string) {
	t.Helper()
	if err := errors.Join(cluster.Leader().Exec(t.Context(), sql), cluster.Server("ord").WaitReplayed(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// onPrimary runs f, and fails the test unless a statement that contains text ran on the primary and none on the replica.
func onPrimary(t *testing.T, text string, f func() error) {
	t.Helper()
	if primary, replica := ran(t, text, f); primary == 0 || replica > 0 {
		t.Errorf("%q ran %d times on the primary and %d times on the replica, want the primary", text, primary, replica)
	}
}

// onReplica lets the replica catch up and runs f. It fails the test unless a statement that contains text ran on the
// replica and none on the primary.
func onReplica(t *testing.T, pool *flyregion.Pool, text string, f func() error) {
	t.Helper()
	if err := pool.WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}
	if primary, replica := ran(t, text, f); primary > 0 || replica == 0 {
		t.Errorf("%q ran %d times on the primary and %d times on the replica, want the replica", text, primary, replica)
	}
}

var marks atomic.Int64

// ran runs f and returns how many statements with text in them each server has logged meanwhile.
func ran(t *testing.T, text string, f func() error) (primary, replica int) {
	t.Helper()
	// What a server logs takes a moment to arrive, in order.
	count := func(region string) (n int) {
		server := cluster.Server(region)
		mark := fmt.Sprintf("mark %d.", marks.Add(1))
		if err := server.Exec(context.Background(), "select '"+mark+"'"); err != nil {
			t.Fatal(err)
		}
		for range 3000 {
			log, err := server.Log()
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(log, mark) {
				return strings.Count(strings.ToLower(log), strings.ToLower(text))
			}
			time.Sleep(time.Millisecond)
		}
		t.Fatalf("%s never logged %s", region, mark)
		return 0
	}
	primary, replica = -count("nrt"), -count("ord")
	if err := f(); err != nil {
		t.Errorf("%q: %v", text, err)
	}
	return primary + count("nrt"), replica + count("ord")
}

// equal compares what a library found with what it should have.
func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}
