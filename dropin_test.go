package flyregion

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// anyPool is what *pgxpool.Pool and *Pool have in common.
type anyPool interface {
	Acquire(ctx context.Context) (*pgxpool.Conn, error)
	AcquireAllIdle(ctx context.Context) []*pgxpool.Conn
	AcquireFunc(ctx context.Context, f func(*pgxpool.Conn) error) error
	Begin(ctx context.Context) (pgx.Tx, error)
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
	Close()
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, source pgx.CopyFromSource) (int64, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Ping(ctx context.Context) error
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Reset()
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// anyStat is what the statistics of both have in common.
type anyStat interface {
	AcquireCount() int64
	AcquireDuration() time.Duration
	AcquiredConns() int32
	CanceledAcquireCount() int64
	ConstructingConns() int32
	EmptyAcquireCount() int64
	EmptyAcquireWaitTime() time.Duration
	IdleConns() int32
	MaxConns() int32
	MaxIdleDestroyCount() int64
	MaxLifetimeDestroyCount() int64
	NewConnsCount() int64
	TotalConns() int32
}

var (
	_ anyPool = (*pgxpool.Pool)(nil)
	_ anyPool = (*Pool)(nil)
	_ anyStat = (*pgxpool.Stat)(nil)
	_ anyStat = (*Stat)(nil)
)

// kinds are the three ways in which every scenario runs.
var kinds = []string{"pgxpool", "one server", "two regions"}

// subject is one of three pools that a scenario runs on, and what it saw there. All three must see the same.
type subject struct {
	anyPool
	t       testing.TB
	cluster *pgcluster.Cluster
	config  *pgxpool.Config // that the pool was made from
	stat    func() anyStat
	ours    *Pool // the pool if it is one of ours
	regions *Pool // the pool if it spans two regions
	kept    int64 // connections that pgxpool destroys in the same place

	mu  sync.Mutex
	saw []string
}

// note adds to what was seen.
func (s *subject) note(what string, values ...any) {
	line := what + ":"
	for _, v := range values {
		if err, ok := v.(error); ok {
			line += " " + describeError(err)
		} else {
			line += fmt.Sprintf(" %v", v)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saw = append(s.saw, line)
}

// describeError tells all that code may look at in an error: the types of its chain, its text and its SQLSTATE.
func describeError(err error) string {
	var b strings.Builder
	for e := err; e != nil; e = errors.Unwrap(e) {
		fmt.Fprintf(&b, "%T > ", e)
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		fmt.Fprintf(&b, "%+v ", *pgErr)
	}
	text := err.Error()
	for _, host := range []string{"nrt.app.internal", "ord.app.internal", "top1.nearest.of.app.internal"} {
		text = strings.ReplaceAll(text, host, "app.internal")
	}
	return b.String() + text
}

// panics notes what f panics with.
func (s *subject) panics(what string, f func()) {
	defer func() { s.note(what, "panic", recover()) }()
	f()
}

// rows notes all there is to know of a query's rows that hold integers.
func (s *subject) rows(what string, rows pgx.Rows, err error) {
	s.note(what+" query", err)
	for rows.Next() {
		var n int
		s.note(what+" scan", rows.Scan(&n), n)
	}
	s.ended(what, rows)
}

// ended notes what is left of rows at their end.
func (s *subject) ended(what string, rows pgx.Rows) {
	rows.Close()
	rows.Close()
	tag := rows.CommandTag()
	s.note(what+" end", rows.Next(), rows.Err(), tag.String(), tag.RowsAffected(), tag.Select())
}

// settled waits until no connection is in use or being made, and returns how many were destroyed.
func (s *subject) settled() int64 {
	s.t.Helper()
	for range 2000 {
		stat := s.stat()
		if stat.AcquiredConns() == 0 && stat.ConstructingConns() == 0 {
			return stat.NewConnsCount() - int64(stat.TotalConns())
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.t.Errorf("%d connections stay in use", s.stat().AcquiredConns())
	return -1
}

// running waits until a statement that has marker in its text sleeps on one of the servers.
func (s *subject) running(marker string) {
	for range 3000 {
		for _, server := range []string{"nrt", "ord"} {
			// The sum divides by zero while nothing runs.
			sql := fmt.Sprintf("select 1 / count(*) from pg_stat_activity where wait_event = 'PgSleep' and query like '%%%s%%' and pid <> pg_backend_pid()", marker)
			if s.cluster.Server(server).Exec(context.Background(), sql) == nil {
				return
			}
		}
		time.Sleep(time.Millisecond)
	}
	s.t.Errorf("%s never ran", marker)
}

// servers are those that a scenario uses in two regions.
type servers int

const (
	anywhere servers = iota
	onReplicaOnly
	onPrimaryOnly
	onBoth
)

// scenario is something that an app does with its pool.
type scenario struct {
	name  string
	place servers
	// change, if not nil, changes the config that the pool is made from.
	change func(s *subject, c *pgxpool.Config)
	// cold leaves the pool without connections at first. Otherwise there is one to each server.
	cold bool
	run  func(ctx context.Context, s *subject)
}

// TestDropIn runs every scenario on a pgxpool.Pool, on a Pool with one server and on a Pool that reads from a replica in
// another region, and compares what they saw: results, errors with their types and texts, panics, and how many
// connections were destroyed.
func TestDropIn(t *testing.T) {
	t.Parallel()
	for name, scenarios := range map[string][]scenario{
		"statements": slices.Concat(rowScenarios, statementScenarios, modeScenarios),
		"others":     slices.Concat(transactionScenarios, batchScenarios, copyScenarios, poolScenarios, hookScenarios),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := withDropIn(t, ownCluster(t, nil))
			for _, sc := range scenarios {
				t.Run(sc.name, func(t *testing.T) {
					seen := map[string][]string{}
					for _, kind := range kinds {
						seen[kind] = runScenario(t, cluster, kind, sc)
					}
					for _, kind := range kinds[1:] {
						if !slices.Equal(seen[kind], seen["pgxpool"]) {
							t.Errorf("%s differs from pgxpool:\n%s", kind, difference(seen["pgxpool"], seen[kind]))
						}
					}
				})
			}
		})
	}
}

// dropInCluster is withDropIn for the shared cluster.
func dropInCluster(t testing.TB) *pgcluster.Cluster {
	t.Helper()
	return withDropIn(t, sharedCluster(t))
}

// withDropIn gives a cluster latency between its regions and a schema to work in, until the test ends.
func withDropIn(t testing.TB, cluster *pgcluster.Cluster) *pgcluster.Cluster {
	t.Helper()
	cluster.SetLatency("ord", "nrt", 5*time.Millisecond)
	t.Cleanup(func() { cluster.SetLatency("ord", "nrt", 0) })
	leader := cluster.Leader()
	err := leader.Exec(t.Context(), `
		create schema dropin;
		set search_path = dropin;
		create type mood as enum ('sad', 'ok', 'happy');
		create type point3 as (x int, y int, z int);
		create table r (id int primary key, name text, feels mood, at point3);
		insert into r select i, 'n' || i, 'ok', row(i, i, i)::point3 from generate_series(1, 5) i;
		create table w (id int primary key check (id > 0), v text default 'x', parent int references w deferrable initially deferred);
		create function hidden(i int) returns int language plpgsql as 'begin insert into w (id) values (i); return i; end'`)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := leader.Exec(context.Background(), "drop schema dropin cascade"); err != nil {
			t.Error(err)
		}
	})
	return cluster
}

// difference shows the first lines in which two lists differ.
func difference(want, got []string) string {
	const most = 4
	var b strings.Builder
	shown := 0
	for i := 0; i < max(len(want), len(got)) && shown < most; i++ {
		line := func(lines []string) string {
			if i < len(lines) {
				return lines[i]
			}
			return "(nothing)"
		}
		if line(want) != line(got) {
			fmt.Fprintf(&b, "\t want %s\n\t  got %s\n", line(want), line(got))
			shown++
		}
	}
	return b.String()
}

// newSubject opens a pool of a kind on an empty table w, and closes it when the test ends or done is called.
func newSubject(t testing.TB, cluster *pgcluster.Cluster, kind string, change func(*subject, *pgxpool.Config)) (s *subject, done func()) {
	t.Helper()
	if err := cluster.Leader().Exec(t.Context(), "delete from dropin.w"); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Server("ord").WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}

	region := "nrt"
	if kind == "two regions" {
		region = "ord"
	}
	config := configIn(t, cluster, region)
	config.MaxReplicaWait = time.Minute
	config.ConnConfig.RuntimeParams["search_path"] = "dropin"
	s = &subject{t: t, cluster: cluster, config: config.Config}
	if change != nil {
		change(s, config.Config)
	}
	if kind == "pgxpool" {
		pool, err := pgxpool.NewWithConfig(t.Context(), config.Config)
		if err != nil {
			t.Fatal(err)
		}
		s.anyPool, s.stat = pool, func() anyStat { return pool.Stat() }
	} else {
		pool, err := NewPoolWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		s.anyPool, s.stat, s.ours = pool, func() anyStat { return pool.Stat() }, pool
		if kind == "two regions" {
			s.regions = pool
		}
	}
	return s, func() {
		closed := make(chan struct{})
		go func() {
			s.Close()
			close(closed)
		}()
		select {
		case <-closed:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: a connection never came back", kind)
		}
	}
}

// watch returns a function that fails the test unless the servers of place, and no others, did work since.
func (s *subject) watch(place servers) (check func()) {
	if s.regions == nil || place == anywhere {
		return func() {}
	}
	before := s.regions.Stat()
	return func() {
		s.t.Helper()
		after := s.regions.Stat()
		primary := after.Primary().AcquireCount() > before.Primary().AcquireCount()
		replica := after.Replica("ord").AcquireCount() > before.Replica("ord").AcquireCount()
		want := map[servers][2]bool{onPrimaryOnly: {true, false}, onReplicaOnly: {false, true}, onBoth: {true, true}}[place]
		if got := [2]bool{primary, replica}; got != want {
			s.t.Errorf("the primary and the replica did work: %v, want %v", got, want)
		}
	}
}

// warm makes a connection to each server.
func (s *subject) warm(ctx context.Context) {
	s.t.Helper()
	if err := errors.Join(s.Ping(ctx), s.QueryRow(ctx, "select 1").Scan(new(int))); err != nil {
		s.t.Fatal(err)
	}
}

func runScenario(t *testing.T, cluster *pgcluster.Cluster, kind string, sc scenario) []string {
	s, done := newSubject(t, cluster, kind, sc.change)
	defer done()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if !sc.cold {
		s.warm(ctx)
	}
	check := s.watch(sc.place)
	s.panics("scenario", func() { sc.run(ctx, s) })
	s.note("destroyed", s.settled()+s.kept)
	check()
	return s.saw
}
