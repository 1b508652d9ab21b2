package flyregion

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
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
	flag.Parse()
	parallel := false
	flag.Visit(func(f *flag.Flag) { parallel = parallel || f.Name == "test.parallel" })
	if !parallel {
		// The parallel tests mostly wait, for latencies and for servers.
		_ = flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)))
	}
	// Where there is no PostgreSQL this says so once.
	if err := pgcluster.Prepare(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if runsExamples() {
		setServers(sharedCluster(noTest{}))
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

//go:embed example_test.go
var exampleSource string

// runsExamples reports whether examples are among what is run.
func runsExamples() bool {
	if flag.Lookup("test.fuzzworker").Value.String() == "true" || flag.Lookup("test.list").Value.String() != "" {
		return false
	}
	pattern, err := regexp.Compile(flag.Lookup("test.run").Value.String())
	if err != nil {
		return false // which the testing package reports
	}
	examples := regexp.MustCompile(`(?m)^func (Example\w+)`).FindAllStringSubmatch(exampleSource, -1)
	return slices.ContainsFunc(examples, func(match []string) bool { return pattern.MatchString(match[1]) })
}

// setServers tells the examples where servers are, as an app is told: by its environment. The reads of DATABASE_URL go through
// read-only sessions on one server, PRIMARY_URL and ORD_URL lead to a primary and its replica.
func setServers(cluster *pgcluster.Cluster) {
	primary := cluster.Server("nrt").ConnString()
	os.Setenv("DATABASE_URL", primary+"&fly_simulate_replica=true")
	os.Setenv("PRIMARY_URL", primary)
	os.Setenv("ORD_URL", cluster.Server("ord").ConnString())
}

// noTest is the testing.TB of TestMain, which runs outside of any test.
type noTest struct{ testing.TB }

func (noTest) Helper()           {}
func (noTest) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// Where there is no PostgreSQL the tests say so once, before the first one runs.
func TestWithoutPostgres(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), "FLYREGION_POSTGRES="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v, want exit code 1", err)
	}
	if text := string(out); strings.Count(text, "pgcluster: ") != 1 || !strings.Contains(text, "FLYREGION_POSTGRES=") ||
		strings.Count(text, "\n") != 1 {
		t.Errorf("the tests say\n%s", text)
	}
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

// freeze lets the replica in ord catch up and then halts its replay until the test ends: what is written from here on it
// does not show. The returned function ends the halt earlier.
func freeze(t testing.TB, cluster *pgcluster.Cluster) (thaw func()) {
	t.Helper()
	ord := cluster.Server("ord")
	if err := ord.WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := ord.PauseReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	thaw = sync.OnceFunc(func() {
		if err := ord.ResumeReplay(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(thaw)
	return thaw
}

// replicaServes reports whether the replica answers the pool's next read.
func replicaServes(t testing.TB, ctx context.Context, pool *Pool) bool {
	t.Helper()
	var replica bool
	if err := pool.QueryRow(ctx, readOnlySQL).Scan(&replica); err != nil {
		t.Fatal(err)
	}
	return replica
}

// readOnlySQL is a question whose answer tells a replica from the primary, and that counts as a read, because its text does
// not show the name of the setting.
const readOnlySQL = "select current_setting('transaction_' || 'read_only') = 'on'"

func onConn(p *Pool, ctx context.Context, f func(*pgxpool.Conn) error) error {
	return p.AcquireFunc(ctx, f)
}

func insertSQL(table string) string { return "insert into " + table + " (id, v) values ($1, 'x')" }

func insertText(table string, id int) string {
	return fmt.Sprintf("insert into %s (id, v) values (%d, 'x')", table, id)
}

// raw runs texts one by one on the PgConn, past pgx's tracers.
func raw(ctx context.Context, conn *pgxpool.Conn, texts ...string) error {
	for _, text := range texts {
		if _, err := conn.Conn().PgConn().Exec(ctx, text).ReadAll(); err != nil {
			return err
		}
	}
	return nil
}

// execs runs texts one by one.
func execs(ctx context.Context, conn interface {
	Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
}, texts ...string,
) error {
	for _, text := range texts {
		if _, err := conn.Exec(ctx, text); err != nil {
			return err
		}
	}
	return nil
}

func batchOf(texts ...string) *pgx.Batch {
	b := &pgx.Batch{}
	for _, text := range texts {
		b.Queue(text)
	}
	return b
}

// sameError compares what an app can see of two errors.
func sameError(a, b error) bool {
	if a == nil || b == nil {
		return a == b
	}
	var pa, pb *pgconn.PgError
	if errors.As(a, &pa) != errors.As(b, &pb) {
		return false
	}
	if pa != nil {
		return fmt.Sprintf("%T", a) == fmt.Sprintf("%T", b) && pa.Code == pb.Code && pa.Severity == pb.Severity
	}
	return a.Error() == b.Error() || fmt.Sprintf("%T", a) == fmt.Sprintf("%T", b)
}

// rawPool is a pgxpool with the same view of the cluster that a Pool's primary has.
func rawPool(t testing.TB, cluster *pgcluster.Cluster, region string, change ...func(*Config)) *pgxpool.Pool {
	t.Helper()
	config := configIn(t, cluster, region)
	for _, f := range change {
		f(config)
	}
	config.ConnConfig.Host = cluster.Leader().Region() + ".app.internal"
	pool, err := pgxpool.NewWithConfig(t.Context(), config.Config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// queryOne asks a server directly.
func queryOne(ctx context.Context, s *pgcluster.Server, sql string, to any) error {
	conn, err := pgx.Connect(ctx, s.ConnString())
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	return conn.QueryRow(ctx, sql).Scan(to)
}

// wrapConns has the network connections of a pool wrapped.
func wrapConns(wrap func(net.Conn) net.Conn) func(*Config) {
	return func(c *Config) {
		dial := c.ConnConfig.DialFunc
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return wrap(conn), nil
		}
	}
}
