package flyregion

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Stat counts what the metric counts, with a meter provider and without.
func TestStatementCounts(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	telemetry := record(t)
	ctx := t.Context()
	for _, test := range []struct {
		name    string
		change  func(*Config)
		metered bool
	}{
		{"with OpenTelemetry", telemetry.into, true},
		{"without", func(*Config) {}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			pool := poolIn(t, cluster, "ord", test.change, waits(time.Millisecond, 10*time.Second))
			before := pool.Stat()
			if got := before.Statements(); got != nil {
				t.Errorf("before any statement the counts are %v", got)
			}
			exec := func(n int, sql string) {
				t.Helper()
				for range n {
					if _, err := pool.Exec(ctx, sql); err != nil {
						t.Fatal(err)
					}
				}
			}
			exec(40, "select 1")
			if err := pool.SendBatch(ctx, batchOf("select 1", "select 2")).Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := pool.Exec(WithReplica(ctx), "select 1"); err != nil {
				t.Fatal(err)
			}
			if _, err := pool.Exec(WithPrimary(ctx), "select 1"); err != nil {
				t.Fatal(err)
			}
			if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "select 'not counted'")
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if _, err := pool.Replica().Exec(ctx, "select 'not counted'"); err != nil {
				t.Fatal(err)
			}
			freeze(t, cluster)
			exec(2, "insert into "+name+" values (1)")
			exec(3, "select count(*) from "+name)

			stat := pool.Stat()
			want := []StatementCount{
				{"primary", "asked", 1}, {"primary", "replica_lag", 3}, {"primary", "transaction", 1}, {"primary", "write", 2},
				{"replica", "asked", 1}, {"replica", "read", 41},
			}
			if got := stat.Statements(); !slices.Equal(got, want) {
				t.Errorf("the counts are %v, want %v; the failures are %v", got, want, stat.ConnectFailures())
			}
			stat.Statements()[0].Count = 0
			exec(1, "insert into "+name+" values (1)")
			if got := stat.Statements(); !slices.Equal(got, want) {
				t.Errorf("the snapshot has become %v", got)
			}
			if before.Statements() != nil {
				t.Error("an early snapshot has changed")
			}
			if !test.metered {
				return
			}
			metered := telemetry.statements(t)
			for _, c := range pool.Stat().Statements() {
				if key := c.Target + " " + c.Reason; metered[key] != c.Count {
					t.Errorf("Stat says %d for %s, the metric %d", c.Count, key, metered[key])
				} else {
					delete(metered, key)
				}
			}
			if len(metered) > 0 {
				t.Errorf("Stat lacks %v", metered)
			}
		})
	}

	plain := poolIn(t, cluster, "nrt")
	if _, err := plain.Exec(ctx, "select 1"); err != nil {
		t.Fatal(err)
	}
	if got := plain.Stat().Statements(); got != nil {
		t.Errorf("a plain pool has counted %v", got)
	}
}

// No count is lost, whatever the reason and the connection, and counting allocates nothing.
func TestCountsOfManyGoroutines(t *testing.T) {
	const goroutines, each = 16, 1000
	var c statementCounts
	reasons := []reason{becauseRead, becauseAsked, becauseWrite, becauseLag, "a new reason"}
	var all sync.WaitGroup
	for g := range uint32(goroutines) {
		all.Go(func() {
			for i := range each {
				for _, why := range reasons {
					c.sent(targetReplica, why, g*1001+uint32(i%3))
					c.sent(targetPrimary, why, 0)
				}
				if i%100 == 0 {
					c.list()
				}
			}
		})
	}
	all.Wait()
	list := c.list()
	if len(list) != 2*len(reasons) {
		t.Errorf("%d counts: %v", len(list), list)
	}
	for _, n := range list {
		if n.Count != goroutines*each {
			t.Errorf("%v, want %d", n, goroutines*each)
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		c.sent(targetReplica, becauseRead, 1<<31)
		c.sent(targetPrimary, becauseWrite, 0)
	}); n != 0 {
		t.Errorf("counting allocates %v times", n)
	}
}
