package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/goleak"
)

// envChild makes the test binary a process that only starts a cluster and waits to be killed.
const envChild = "PGCLUSTER_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(envChild) != "" {
		child()
		return
	}
	if err := Prepare(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func child() {
	signal.Ignore(os.Interrupt)
	c, err := Start(context.Background(), Config{Replicas: []string{"ord"}})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	if _, err := c.StartBouncer(context.Background(), "", nil); err != nil && !errors.Is(err, ErrNoBouncer) {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(c.folder)
	select {}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func startCluster(t *testing.T, config Config) *Cluster {
	t.Helper()
	c, err := Start(testContext(t), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			return
		}
		if _, err := os.Stat(c.folder); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", c.folder, err)
		}
	})
	return c
}

// connect connects to host:port as a process in region does. The test closes the connection at its end.
func connect(t *testing.T, c *Cluster, region, host string, port int) *pgx.Conn {
	t.Helper()
	conn, err := tryConnect(testContext(t), c, region, host, port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func tryConnect(ctx context.Context, c *Cluster, region, host string, port int) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(c.URL())
	if err != nil {
		return nil, err
	}
	site := c.From(region)
	config.Host, config.Port = host, uint16(port)
	config.LookupFunc, config.DialFunc = site.LookupHost, site.DialContext
	config.Fallbacks = nil
	return pgx.ConnectConfig(ctx, config)
}

func execute(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(testContext(t), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func queryOne[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var value T
	if err := conn.QueryRow(testContext(t), sql, args...).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until done returns true.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	if err := poll(testContext(t), done); err != nil {
		t.Fatalf("never: %s", what)
	}
}

func TestClusterReplicates(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	var steps []string
	c := startCluster(t, Config{
		Replicas:   []string{"ord", "syd"},
		Parameters: map[string]string{"log_statement": "all", "cluster_name": `it's a "test"`},
		Progress:   func(step string) { steps = append(steps, step) },
	})
	if len(steps) < 2 || steps[len(steps)-1] != "ready" {
		t.Errorf("progress: %q", steps)
	}
	if c.Leader() != c.Server("nrt") || c.Server("fra") != nil || len(c.Servers()) != 3 {
		t.Error("wrong servers")
	}
	if got, want := c.URL(), "postgres://postgres:postgres@app.internal:5432/postgres?sslmode=disable"; got != want {
		t.Errorf("URL() = %q, want %q", got, want)
	}

	primary := connect(t, c, "ord", "app.internal", 5432)
	execute(t, primary, "create table t (n int)")
	execute(t, primary, "insert into t values (1), (2)")
	for _, region := range []string{"ord", "syd"} {
		must(t, c.Server(region).WaitReplayed(ctx))
		replica := connect(t, c, "ord", region+".app.internal", 5433)
		if n := queryOne[int](t, replica, "select count(*) from t"); n != 2 {
			t.Errorf("%s has %d rows", region, n)
		}
		if !queryOne[bool](t, replica, "select pg_is_in_recovery()") {
			t.Errorf("%s is not a replica", region)
		}
		if name := queryOne[string](t, replica, "show cluster_name"); name != `it's a "test"` {
			t.Errorf("cluster_name is %q", name)
		}
		if c.Replication(region).Conns() != 1 {
			t.Errorf("%s has %d WAL streams", region, c.Replication(region).Conns())
		}
	}
	eventually(t, "the statement is in the log", func() bool {
		log, err := c.Leader().Log()
		must(t, err)
		return strings.Contains(log, "insert into t values")
	})
}

func TestClusterStopTwice(t *testing.T) {
	t.Parallel()
	c := startCluster(t, Config{App: "db", Primary: "fra"})
	server := c.Leader()
	must(t, server.Exec(testContext(t), "create table a (); create table b ()"))
	must(t, c.Stop())
	must(t, c.Stop())
	if server.Running() {
		t.Error("the server runs")
	}
	if err := server.Start(testContext(t)); err == nil {
		t.Error("a server of a stopped cluster starts")
	}
	if _, err := c.From("fra").DialContext(testContext(t), "tcp", "db.internal:5432"); err == nil {
		t.Error("the network of a stopped cluster works")
	}
}

func TestStartLeavesNothingBehind(t *testing.T) {
	tmp, elsewhere := openFolder(t), openFolder(t)
	must(t, os.Chmod(tmp, 0o777))
	must(t, os.Chmod(elsewhere, 0o777))
	t.Setenv("TMPDIR", tmp)
	empty := func(t *testing.T) {
		t.Helper()
		left, err := os.ReadDir(tmp)
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	}

	t.Run("stopped", func(t *testing.T) {
		c, err := Start(testContext(t), Config{Replicas: []string{"ord"}})
		must(t, err)
		must(t, c.Server("ord").Restart(testContext(t)))
		must(t, c.Stop())
		empty(t)
	})
	t.Run("canceled", func(t *testing.T) {
		// In the midst of initdb, of the servers' start, and of the wait for the replicas.
		for i, delay := range []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 0} {
			ctx, cancel := context.WithCancel(testContext(t))
			steps := 0
			c, err := Start(ctx, Config{Replicas: []string{"ord", "syd"}, Progress: func(string) {
				if steps++; steps != i+1 {
					return
				}
				if delay == 0 {
					cancel()
				} else {
					time.AfterFunc(delay, cancel)
				}
			}})
			cancel()
			if err == nil {
				must(t, c.Stop()) // it was too fast to be interrupted
			} else if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			empty(t)
		}
	})
	t.Run("canceled while a replica does not come up", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		waiting := filepath.Join(elsewhere, "waiting")
		go func() {
			defer cancel()
			_ = poll(testContext(t), func() bool {
				_, err := os.Stat(waiting)
				return err == nil
			})
		}()
		began := time.Now()
		_, err := Start(ctx, Config{Replicas: []string{"ord"}, Parameters: map[string]string{
			"restore_command": "touch " + quote(waiting) + " && sleep 1000",
		}})
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		// pg_ctl itself would wait for a minute.
		if took := time.Since(began); took > 45*time.Second {
			t.Errorf("it took %v to end", took)
		}
		empty(t)
	})
	t.Run("wrong setting", func(t *testing.T) {
		_, err := Start(testContext(t), Config{Replicas: []string{"ord"}, Parameters: map[string]string{"no_such_setting": "1"}})
		if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
			t.Error(err)
		}
		empty(t)
	})
	t.Run("wrong names", func(t *testing.T) {
		for _, config := range []Config{
			{Replicas: []string{"o.rd"}},
			{App: "App"},
			{Primary: "../x"},
		} {
			if c, err := Start(testContext(t), config); err == nil {
				c.Stop()
				t.Errorf("%+v starts", config)
			}
		}
		empty(t)
	})
}

func TestPromote(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord", "syd"}})
	conn := connect(t, c, "syd", "app.internal", 5432)
	execute(t, conn, "create table t (n int)")

	must(t, c.Promote(ctx, "ord"))
	if c.Leader() != c.Server("ord") {
		t.Fatal("ord is not the leader")
	}
	if err := conn.Ping(ctx); err == nil {
		t.Error("a connection to the old leader lives on")
	}
	for _, host := range []string{"nrt.app.internal", "ord.app.internal", "syd.app.internal", "app.flycast"} {
		conn := connect(t, c, "syd", host, 5432)
		execute(t, conn, "insert into t values (1)")
	}
	for _, region := range []string{"nrt", "syd"} {
		must(t, c.Server(region).WaitReplayed(ctx))
		replica := connect(t, c, "syd", region+".app.internal", 5433)
		if n := queryOne[int](t, replica, "select count(*) from t"); n != 4 {
			t.Errorf("%s has %d rows", region, n)
		}
		var pgErr *pgconn.PgError
		if _, err := replica.Exec(ctx, "insert into t values (1)"); !errors.As(err, &pgErr) || pgErr.Code != "25006" {
			t.Errorf("write on %s: %v", region, err)
		}
	}

	// And back, from a leader that is dead.
	must(t, c.Leader().Kill())
	must(t, c.Promote(ctx, "nrt"))
	must(t, c.Leader().Exec(ctx, "insert into t values (2)"))
	must(t, c.Server("syd").WaitReplayed(ctx))
	must(t, c.Server("ord").Start(ctx))
	conn = connect(t, c, "syd", "ord.app.internal", 5433)
	if !queryOne[bool](t, conn, "select pg_is_in_recovery()") {
		t.Error("the dead leader came back as a leader")
	}
	if err := c.Promote(ctx, "fra"); err == nil {
		t.Error("promoted a region without a server")
	}
}

// A leader that has just been replaced comes back as a replica and streams the old timeline first. It is promoted again with
// what was written since.
func TestPromoteBack(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	must(t, c.Leader().Exec(ctx, "create table t (n int)"))
	c.SetLatency("nrt", "ord", 300*time.Millisecond) // to change timelines takes a few of them
	for i, promote := range []func() error{
		func() error { return c.Promote(ctx, "ord") },
		func() error { return c.Promote(ctx, "nrt") },
		func() error { return c.PromoteBeside(ctx, "ord") },
	} {
		must(t, promote())
		if n := count(t, c.Leader()); n != i {
			t.Fatalf("%s has %d rows of %d", c.Leader().Region(), n, i)
		}
		must(t, c.Leader().Exec(ctx, "insert into t values (1)"))
	}
}

// A leader that dies with writes that no replica got comes back as a replica that cannot follow, but can be read.
func TestPromoteLosesWrites(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	must(t, c.Leader().Exec(ctx, "create table t (n int)"))
	must(t, c.Server("ord").WaitReplayed(ctx))
	c.Replication("ord").Cut()
	must(t, c.Leader().Exec(ctx, "insert into t values (1)"))
	must(t, c.Leader().Kill())
	if err := c.Promote(ctx, "nrt"); err != nil {
		t.Error(err) // it is the leader, dead or not
	}
	must(t, c.Promote(ctx, "ord"))
	c.Replication("ord").Restore()
	must(t, c.Leader().Exec(ctx, "insert into t values (2), (3)"))
	must(t, c.Server("nrt").Start(ctx))
	for region, want := range map[string]int{"nrt": 1, "ord": 2} {
		conn := connect(t, c, "syd", region+".app.internal", 5433)
		if n := queryOne[int](t, conn, "select count(*) from t"); n != want {
			t.Errorf("%s has %d rows, want %d", region, n, want)
		}
		if queryOne[bool](t, conn, "select pg_is_in_recovery()") != (region == "nrt") {
			t.Errorf("%s is in the wrong state", region)
		}
	}
}

// A promotion that fails leaves the leader as it was.
func TestPromoteFails(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	ord := c.Server("ord")
	must(t, os.WriteFile(filepath.Join(ord.data(), "pg_hba.conf"), []byte("host all all all reject\n"), 0o600))
	must(t, ord.Exec(ctx, "select pg_reload_conf()"))
	eventually(t, "nobody can connect", func() bool { return ord.Exec(ctx, "select") != nil })
	eventually(t, "the error tells what the server has logged", func() bool {
		err := c.PromoteBeside(ctx, "ord")
		return err != nil && strings.Contains(err.Error(), "the server logged:\n") && strings.Count(err.Error(), "rejects connection") > 1
	})
	must(t, ord.Stop(ctx))
	if err := c.Promote(ctx, "ord"); err == nil {
		t.Error("promoted a server that is stopped")
	}
	must(t, c.Leader().Exec(ctx, "create table t ()"))
}

func TestNames(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	n, err := newNetwork()
	must(t, err)
	defer n.close()
	c := &Cluster{app: "db", network: n} // names need no running servers
	for i, region := range []string{"nrt", "ord", "syd", "lax", "lax", "lax"} {
		c.servers = append(c.servers, &Server{region: region, name: c.nameIn(region), machine: machineID(i), ip: serverIP(i)})
	}
	c.SetLatency("fra", "lax", 400*time.Millisecond)
	c.Server("lax-3").Unlist()
	lax, lax2 := c.Server("lax").IP(), c.Server("lax-2").IP()
	c.SetLatency("fra", "nrt", 300*time.Millisecond)
	c.SetLatency("fra", "ord", 100*time.Millisecond)
	c.SetLatency("fra", "syd", 200*time.Millisecond)
	nrt, ord, syd := c.Server("nrt").ip.String(), c.Server("ord").ip.String(), c.Server("syd").ip.String()
	for _, test := range []struct {
		from, host string
		want       []string
	}{
		{"fra", "db.internal", []string{nrt, ord, syd, lax, lax2}},
		{"fra", "global.db.internal", []string{nrt, ord, syd, lax, lax2}},
		{"fra", "lax.db.internal", []string{lax, lax2}},
		{"fra", c.Server("lax-2").Machine() + ".vm.db.internal", []string{lax2}},
		{"fra", c.Server("lax-3").Machine() + ".vm.db.internal", nil},
		{"fra", "ord.db.internal", []string{ord}},
		{"fra", "ORD.DB.Internal.", []string{ord}},
		{"fra", "top1.nearest.of.db.internal", []string{ord}},
		{"fra", "top2.nearest.of.db.internal", []string{ord, syd}},
		{"fra", "top9.nearest.of.db.internal", []string{ord, syd, nrt, lax, lax2}},
		{"nrt", "top1.nearest.of.db.internal", []string{nrt}},
		{"syd", "top1.nearest.of.db.internal", []string{syd}},
		{"fra", c.Server("syd").Machine() + ".vm.db.internal", []string{syd}},
		{"fra", "db.flycast", []string{flycastIP.String()}},
		{"fra", nrt, []string{nrt}},
		{"fra", "fra.db.internal", nil},
		{"fra", "top0.nearest.of.db.internal", nil},
		{"fra", "topx.nearest.of.db.internal", nil},
		{"fra", "nearest.of.db.internal", nil},
		{"fra", "ord.vm.db.internal", nil},
		{"fra", "app.internal", nil},
		{"fra", "xdb.internal", nil},
		{"fra", "ord.db.flycast", nil},
		{"fra", "localhost", nil},
		{"fra", "", nil},
	} {
		got, err := c.From(test.from).LookupHost(ctx, test.host)
		if !slices.Equal(got, test.want) {
			t.Errorf("from %s, %q: %v %v, want %v", test.from, test.host, got, err, test.want)
		}
		var dnsErr *net.DNSError
		if test.want == nil && (!errors.As(err, &dnsErr) || !dnsErr.IsNotFound) {
			t.Errorf("from %s, %q: %v", test.from, test.host, err)
		}
	}
	for host, want := range map[string]string{
		"regions.db.internal": "nrt,ord,syd,lax",
		"vms.DB.internal.": c.Server("nrt").Machine() + " nrt," + c.Server("ord").Machine() + " ord," +
			c.Server("syd").Machine() + " syd," + c.Server("lax").Machine() + " lax," + c.Server("lax-2").Machine() + " lax",
	} {
		if got, err := c.From("fra").LookupTXT(ctx, host); err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("%q: %v %v, want %q", host, got, err, want)
		}
	}
	if _, err := c.From("fra").LookupTXT(ctx, "regions.app.internal"); err == nil {
		t.Error("another app's regions are known")
	}
}
