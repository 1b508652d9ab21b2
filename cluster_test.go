package flyregion

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"go.uber.org/goleak"
)

// shared is the cluster that tests run on which leave it as they found it.
var shared struct {
	once    sync.Once
	cluster *pgcluster.Cluster
	err     error
}

func TestMain(m *testing.M) {
	for _, name := range []string{"FLY_REGION", "MY_REGION", "PRIMARY_REGION", "FLY_APP_NAME"} {
		os.Unsetenv(name)
	}
	code := m.Run()
	if shared.cluster != nil {
		if err := shared.cluster.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "cannot stop the shared cluster:", err)
			code = 1
		}
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// sharedCluster returns a primary in nrt and replicas in ord and syd. A test that uses it must restore what it breaks.
func sharedCluster(t testing.TB) *pgcluster.Cluster {
	t.Helper()
	shared.once.Do(func() {
		shared.cluster, shared.err = pgcluster.Start(context.Background(), pgcluster.Config{
			Replicas: []string{"ord", "syd"},
			Parameters: map[string]string{
				"log_statement": "all",
			},
		})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.cluster
}

// ownCluster returns a primary in nrt and a replica in ord for a test that kills servers.
func ownCluster(t testing.TB, parameters map[string]string) *pgcluster.Cluster {
	t.Helper()
	cluster, err := pgcluster.Start(t.Context(), pgcluster.Config{Replicas: []string{"ord"}, Parameters: parameters})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	return cluster
}

// configIn returns the configuration of an app in a region.
func configIn(t testing.TB, cluster *pgcluster.Cluster, region string) *Config {
	t.Helper()
	config, err := ParseConfig(cluster.URL())
	if err != nil {
		t.Fatal(err)
	}
	config.Region, config.PrimaryRegion = region, "nrt"
	site := cluster.From(region)
	config.ConnConfig.LookupFunc, config.ConnConfig.DialFunc = site.LookupHost, site.DialContext
	return config
}

// poolIn returns a pool as an app in a region has it.
func poolIn(t testing.TB, cluster *pgcluster.Cluster, region string, change ...func(*Config)) *Pool {
	t.Helper()
	config := configIn(t, cluster, region)
	for _, f := range change {
		f(config)
	}
	pool, err := NewPoolWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// table makes a table of the test's own and returns its name.
func table(t testing.TB, cluster *pgcluster.Cluster, columns string) string {
	t.Helper()
	name := fmt.Sprintf("t_%d", clock.Add(1))
	if err := cluster.Leader().Exec(context.Background(), "create table "+name+" ("+columns+")"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Leader().Exec(context.Background(), "drop table "+name); err != nil {
			t.Error(err)
		}
	})
	return name
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("it never happened that %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
