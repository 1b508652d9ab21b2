package flyregion

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/tracelog"
	"go.uber.org/goleak"
)

// whichServer is a read like any other, which tells by its port which server ran it.
const whichServer = "select current_setting('port')"

// answeredBy runs whichServer and returns the region of the server that ran it.
func answeredBy(t testing.TB, ctx context.Context, cluster *pgcluster.Cluster, db interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}) string {
	t.Helper()
	var port string
	if err := db.QueryRow(ctx, whichServer).Scan(&port); err != nil {
		t.Fatal(err)
	}
	for _, server := range cluster.Servers() {
		if strings.HasSuffix(server.Addr(), ":"+port) {
			return server.Name()
		}
	}
	t.Fatalf("no server has port %s", port)
	return ""
}

// uniqueName returns a name that no other call in this process returns.
func uniqueName(prefix string) string {
	return fmt.Sprintf("%s_%d", prefix, clock.Add(1))
}

// waits sets the bounds of a read's wait for its replica.
func waits(least, most time.Duration) func(*Config) {
	return func(c *Config) { c.MinReplicaWait, c.MaxReplicaWait = least, most }
}

// fullLog returns what a server has logged so far. The server writes its log in the background, and in order.
func fullLog(t testing.TB, server *pgcluster.Server) (text string) {
	t.Helper()
	mark := uniqueName("mark")
	if err := server.Exec(t.Context(), "select '"+mark+"'"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was asked for last is logged", func() bool {
		var err error
		if text, err = server.Log(); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(text, mark)
	})
	return text
}

// logOf returns what a server logged for the sessions of an application, one entry for each line.
func logOf(t testing.TB, server *pgcluster.Server, application string) []string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(fullLog(t, server)) {
		if _, entry, ok := strings.Cut(line, "] "+application+" "); ok {
			lines = append(lines, strings.TrimSpace(entry))
		}
	}
	return lines
}

func TestParseConfigPrecedence(t *testing.T) {
	type values struct {
		region, primary string
		replicas        []string
		app             string
		balance         Balance
		min, max, lag   time.Duration
		await, simulate bool
	}
	defaults := values{balance: "local", min: 10 * time.Millisecond, max: time.Second, lag: 30 * time.Second}
	with := func(change func(*values)) values {
		v := defaults
		change(&v)
		return v
	}

	for _, test := range []struct {
		name       string
		env        map[string]string
		connString string
		want       values
	}{
		{
			name:       "nothing",
			connString: "postgres://u:hunter2@app.internal/db",
			want:       defaults,
		},
		{
			name:       "environment",
			env:        map[string]string{"FLY_REGION": "ord", "PRIMARY_REGION": "nrt", "FLY_APP_NAME": "shop"},
			connString: "postgres://u:hunter2@app.internal/db",
			want:       with(func(v *values) { v.region, v.primary, v.app = "ord", "nrt", "shop" }),
		},
		{
			name:       "MY_REGION stands in for FLY_REGION",
			env:        map[string]string{"MY_REGION": "ord"},
			connString: "postgres://u:hunter2@localhost/db",
			want:       with(func(v *values) { v.region = "ord" }),
		},
		{
			name:       "FLY_REGION goes before MY_REGION",
			env:        map[string]string{"FLY_REGION": "ord", "MY_REGION": "syd"},
			connString: "postgres://u:hunter2@localhost/db",
			want:       with(func(v *values) { v.region = "ord" }),
		},
		{
			name:       "environment is brought into one form",
			env:        map[string]string{"FLY_REGION": " ORD ", "PRIMARY_REGION": "Nrt"},
			connString: "postgres://u:hunter2@app.internal/db",
			want:       with(func(v *values) { v.region, v.primary = "ord", "nrt" }),
		},
		{
			name: "URL goes before the environment",
			env:  map[string]string{"FLY_REGION": "ord", "MY_REGION": "lax", "PRIMARY_REGION": "nrt"},
			connString: "postgres://u:hunter2@app.internal/db?fly_region=syd&fly_primary_region=ams&fly_replica_regions=syd,ORD" +
				"&fly_max_replica_lag=1m30s&fly_balance=round_robin&fly_min_replica_wait=5ms&fly_max_replica_wait=250ms&fly_await_writes=true",
			want: values{region: "syd", primary: "ams", replicas: []string{"syd", "ord"}, balance: BalanceRoundRobin,
				min: 5 * time.Millisecond, max: 250 * time.Millisecond, lag: 90 * time.Second, await: true},
		},
		{
			name: "key/value form",
			env:  map[string]string{"FLY_REGION": "ord", "PRIMARY_REGION": "nrt"},
			connString: "host=app.internal user=u password=hunter2 dbname=db fly_region=syd fly_primary_region=ams " +
				"fly_replica_regions='syd, ord' fly_balance=random fly_min_replica_wait=0 fly_max_replica_wait=2s fly_max_replica_lag=0 fly_await_writes=1",
			want: values{region: "syd", primary: "ams", replicas: []string{"syd", "ord"}, balance: BalanceRandom,
				max: 2 * time.Second, await: true},
		},
		{
			name:       "a single server that simulates its replica",
			connString: "postgres://u:hunter2@localhost/db?fly_simulate_replica=true",
			want:       with(func(v *values) { v.simulate = true }),
		},
		{
			name:       "an empty variable is none",
			env:        map[string]string{"FLY_REGION": "", "MY_REGION": "ord"},
			connString: "postgres://u:hunter2@localhost/db",
			want:       with(func(v *values) { v.region = "ord" }),
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			for name, value := range test.env {
				t.Setenv(name, value)
			}
			c, err := ParseConfig(test.connString)
			if err != nil {
				t.Fatal(err)
			}
			got := values{c.Region, c.PrimaryRegion, c.ReplicaRegions, c.AppName, c.Balance, c.MinReplicaWait, c.MaxReplicaWait, c.MaxReplicaLag,
				c.AwaitWrites, c.SimulateReplica}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
			if c.ConnString() != test.connString {
				t.Errorf("ConnString is %q", c.ConnString())
			}
		})
	}
}

// Fields that were set after ParseConfig go before all else, and are brought into the same form.
func TestConfigFieldsGoBeforeEverything(t *testing.T) {
	t.Setenv("FLY_REGION", "lax")
	t.Setenv("PRIMARY_REGION", "ams")
	config, err := ParseConfig("postgres://u:hunter2@app.internal/db?fly_region=fra&fly_replica_regions=fra")
	if err != nil {
		t.Fatal(err)
	}
	config.Region, config.PrimaryRegion, config.ReplicaRegions = "ORD", " nrt", []string{"syd", "Ord"}
	pool, err := NewPoolWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()

	if host := pool.Primary().Config().ConnConfig.Host; host != "nrt.app.internal" {
		t.Errorf("the primary is %s", host)
	}
	// This process's own region is read from first.
	if host := pool.Replica().Config().ConnConfig.Host; host != "ord.app.internal" {
		t.Errorf("the replica is %s", host)
	}
	if c := pool.ReplicaIn("syd").Config().ConnConfig; c.Host != "syd.app.internal" || c.Port != 5433 {
		t.Errorf("the replica in syd is %s:%d", c.Host, c.Port)
	}
	if pool.ReplicaIn("fra") != pool.Primary() {
		t.Error("there is a replica in fra")
	}
	if !slices.Equal(config.ReplicaRegions, []string{"syd", "Ord"}) {
		t.Errorf("the caller's config was changed: %q", config.ReplicaRegions)
	}
}

func TestParseConfigTakesSettingsOut(t *testing.T) {
	const ours = "fly_region=ord&fly_primary_region=nrt&fly_replica_regions=ord&fly_balance=local&fly_fallback=true" +
		"&fly_min_replica_wait=1ms&fly_max_replica_wait=2ms&fly_max_replica_lag=3s&fly_discovery_interval=3s&fly_await_writes=false&fly_simulate_replica=false"
	const others = "pool_max_conns=7&pool_min_conns=2&pool_max_conn_lifetime=3m&application_name=shop&search_path=mine"
	for form, connString := range map[string]string{
		"URL":       "postgres://u:hunter2@app.internal/db?" + ours + "&" + others,
		"key/value": "host=app.internal user=u password=hunter2 dbname=db " + strings.ReplaceAll(ours+"&"+others, "&", " "),
	} {
		t.Run(form, func(t *testing.T) {
			config, err := ParseConfig(connString)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{"application_name": "shop", "search_path": "mine"}
			if got := config.ConnConfig.RuntimeParams; !maps.Equal(got, want) {
				t.Errorf("the server would get %v", got)
			}
			if config.MaxConns != 7 || config.MinConns != 2 || config.MaxConnLifetime != 3*time.Minute {
				t.Errorf("pgxpool's settings are %d, %d, %v", config.MaxConns, config.MinConns, config.MaxConnLifetime)
			}
		})
	}
	// None was left out above, but for one that cannot be combined with regions.
	for short := range settings {
		if short != "replica_hosts" && !strings.Contains(ours, settingPrefix+short+"=") {
			t.Errorf("%s%s is not tested", settingPrefix, short)
		}
	}
}

func TestParseConfigErrors(t *testing.T) {
	for _, test := range []struct {
		name     string
		env      map[string]string
		settings string // separated by spaces
		wants    []string
	}{
		{"unknown setting", nil, "fly_regoin=ord", []string{"fly_regoin", "fly_region,"}},
		{"setting in capitals", nil, "FLY_REGION=ord", []string{"FLY_REGION", "fly_region,"}},
		{"bad region", nil, "fly_region=o_d", []string{"fly_region", `"o_d"`}},
		{"empty region", nil, "fly_region=", []string{"fly_region", `""`, `"nrt"`}},
		{"empty primary region", nil, "fly_primary_region=", []string{"fly_primary_region", `""`, `"nrt"`}},
		{"no replica region", nil, "fly_primary_region=nrt fly_replica_regions=", []string{"fly_replica_regions", `""`, `"nrt"`}},
		{"replica region between two commas", nil, "fly_primary_region=nrt fly_replica_regions=ord,,syd", []string{"fly_replica_regions", `""`}},
		{"bad region in the environment", map[string]string{"FLY_REGION": "o d"}, "", []string{"FLY_REGION", `"o d"`}},
		{"bad region in the environment off Fly", map[string]string{"MY_REGION": "-"}, "", []string{"Region", "MY_REGION", `"-"`}},
		{"bad primary region", nil, "fly_primary_region=n.rt", []string{"fly_primary_region", `"n.rt"`}},
		{"bad primary region in the environment", map[string]string{"PRIMARY_REGION": "nrt!"}, "", []string{"PRIMARY_REGION", `"nrt!"`}},
		{"bad replica region", nil, "fly_primary_region=nrt fly_replica_regions=ord,s*d", []string{"fly_replica_regions", `"s*d"`}},
		{"empty replica region", nil, "fly_primary_region=nrt fly_replica_regions=ord,", []string{"fly_replica_regions", `""`}},
		{"one replica region twice", nil, "fly_primary_region=nrt fly_replica_regions=ord,syd,ORD", []string{"fly_replica_regions", `"ORD"`, "twice"}},
		{"replicas without a primary", nil, "fly_region=ord fly_replica_regions=ord", []string{"fly_replica_regions", "fly_primary_region", "PRIMARY_REGION"}},
		{"unknown balance", nil, "fly_balance=fair", []string{"fly_balance", `"fair"`, "round_robin"}},
		{"empty balance", nil, "fly_balance=", []string{"fly_balance", `""`}},
		{"bad shortest wait", nil, "fly_min_replica_wait=10", []string{"fly_min_replica_wait", `"10"`}},
		{"bad longest wait", nil, "fly_max_replica_wait=soon", []string{"fly_max_replica_wait", `"soon"`}},
		{"negative shortest wait", nil, "fly_min_replica_wait=-1ms", []string{"fly_min_replica_wait", "-1ms"}},
		{"negative longest wait", nil, "fly_max_replica_wait=-2s", []string{"fly_max_replica_wait", "-2s"}},
		{"no longest wait", nil, "fly_min_replica_wait=0 fly_max_replica_wait=0", []string{"fly_max_replica_wait", "0s"}},
		{"waits that contradict each other", nil, "fly_min_replica_wait=3s", []string{"fly_min_replica_wait", "3s", "fly_max_replica_wait", "1s"}},
		{"empty replica_hosts", nil, "fly_replica_hosts=", []string{"ReplicaHosts (fly_replica_hosts)", `""`, "db2:5432"}},
		{"empty replica host", nil, "fly_replica_hosts=db2,,db3", []string{"ReplicaHosts (fly_replica_hosts)", `""`, "db2:5432"}},
		{"doubled replica host", nil, "fly_replica_hosts=db2,db3:1,db2:5432", []string{"ReplicaHosts (fly_replica_hosts)", `"db2:5432"`, "twice"}},
		{"doubled replica host in capitals", nil, "fly_replica_hosts=db2.example.com,DB2.Example.com.", []string{"ReplicaHosts (fly_replica_hosts)", `"DB2.Example.com."`, "twice"}},
		{"doubled replica address", nil, "fly_replica_hosts=[fd00::1]:5432,fd00:0:0::1", []string{"ReplicaHosts (fly_replica_hosts)", `"fd00:0:0::1"`, "twice"}},
		{"replica host with a port in words", nil, "fly_replica_hosts=db2:postgres", []string{"ReplicaHosts (fly_replica_hosts)", `"postgres"`, "1 to 65535"}},
		{"replica host with no port", nil, "fly_replica_hosts=db2:", []string{"ReplicaHosts (fly_replica_hosts)", `"db2:"`, "1 to 65535"}},
		{"auto and regions", nil, "fly_primary_region=nrt fly_replica_regions=auto,ord", []string{"ReplicaRegions (fly_replica_regions)", `"auto"`, "alone"}},
		{"auto without a primary", nil, "fly_region=ord fly_replica_regions=auto", []string{"ReplicaRegions (fly_replica_regions)", `"auto"`, "PRIMARY_REGION"}},
		{"bad fallback", nil, "fly_fallback=never", []string{"fly_fallback", `"never"`, "true nor false"}},
		{"replica host with a port out of range", nil, "fly_replica_hosts=db2:65536", []string{"ReplicaHosts (fly_replica_hosts)", `"65536"`, "1 to 65535"}},
		{"replica host with port 0", nil, "fly_replica_hosts=db2:0", []string{"ReplicaHosts (fly_replica_hosts)", `"0"`, "1 to 65535"}},
		{"bad discovery_interval", nil, "fly_discovery_interval=often", []string{"fly_discovery_interval", `"often"`}},
		{"no discovery_interval", nil, "fly_discovery_interval=0s", []string{"DiscoveryInterval (fly_discovery_interval)", "0s", "5s"}},
		{"bad lag", nil, "fly_max_replica_lag=30", []string{"fly_max_replica_lag", `"30"`}},
		{"negative lag", nil, "fly_max_replica_lag=-1s", []string{"fly_max_replica_lag", "-1s", "30s"}},
		{"bad await_writes", nil, "fly_await_writes=maybe", []string{"fly_await_writes", `"maybe"`}},
		{"bad simulate_replica", nil, "fly_simulate_replica=2", []string{"fly_simulate_replica", `"2"`}},
		{"simulated and real replicas", nil, "fly_region=ord fly_primary_region=nrt fly_simulate_replica=true", []string{"fly_simulate_replica", `"ord"`}},
		{"standby for a primary", nil, "fly_region=ord fly_primary_region=nrt target_session_attrs=standby", []string{"target_session_attrs", "standby", "fly_primary_region"}},
		{"read-only for a primary", nil, "fly_region=ord fly_primary_region=nrt target_session_attrs=read-only", []string{"target_session_attrs", "read-only"}},
		{"port out of range", nil, "port=65536", []string{"port"}},
		{"port zero", nil, "port=0", []string{"port"}},
		{"pgx's own", nil, "target_session_attrs=nearest", []string{"target_session_attrs", "nearest"}},
		{"pgxpool's own", nil, "pool_max_conns=none", []string{"pool_max_conns", "none"}},
	} {
		for form, connString := range map[string]string{
			"URL":       "postgres://u:hunter2@app.internal/db?" + strings.ReplaceAll(test.settings, " ", "&"),
			"key/value": "host=app.internal user=u password=hunter2 dbname=db " + test.settings,
			"quoted":    "host=app.internal user=u password='hunter2 hunter2' dbname=db " + test.settings,
		} {
			t.Run(test.name+"/"+form, func(t *testing.T) {
				for name, value := range test.env {
					t.Setenv(name, value)
				}
				_, err := ParseConfig(connString)
				var parseErr *pgconn.ParseConfigError
				if !errors.As(err, &parseErr) {
					t.Fatalf("the error is %T: %v", err, err)
				}
				for _, want := range test.wants {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%v\ndoes not name %s", err, want)
					}
				}
				if strings.Contains(err.Error(), "hunter2") {
					t.Errorf("the error tells the password: %v", err)
				}

				// The other functions that parse agree.
				if _, other := ConnConfig(connString, "ord"); other == nil || other.Error() != err.Error() {
					t.Errorf("ConnConfig: %v", other)
				}
				if _, other := NewPool(t.Context(), connString); other == nil || other.Error() != err.Error() {
					t.Errorf("NewPool: %v", other)
				}
			})
		}
	}
}

func TestParseConfigAcceptsSessionAttrs(t *testing.T) {
	for _, settings := range []string{
		"target_session_attrs=standby",
		"target_session_attrs=read-only&fly_region=nrt&fly_primary_region=nrt",
		"target_session_attrs=any&fly_region=ord&fly_primary_region=nrt",
		"target_session_attrs=primary&fly_region=ord&fly_primary_region=nrt",
		"target_session_attrs=read-write&fly_region=ord&fly_primary_region=nrt",
		"target_session_attrs=prefer-standby&fly_region=ord&fly_primary_region=nrt",
	} {
		if _, err := ParseConfig("postgres://u:hunter2@app.internal/db?" + settings); err != nil {
			t.Error(err)
		}
	}
}

// A config that says which kind of server it wants still gets both kinds.
func TestSessionAttrsAreForTheServersOfTheConnString(t *testing.T) {
	cluster := sharedCluster(t)
	for _, attrs := range []string{"any", "read-write", "primary", "prefer-standby"} {
		t.Run(attrs, func(t *testing.T) {
			config, err := ParseConfig(cluster.URL() + "&fly_region=ord&fly_primary_region=nrt&target_session_attrs=" + attrs)
			if err != nil {
				t.Fatal(err)
			}
			site := cluster.From("ord")
			config.ConnConfig.LookupFunc, config.ConnConfig.DialFunc = site.LookupHost, site.DialContext
			pool, err := NewPoolWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			if got := answeredBy(t, t.Context(), cluster, pool); got != "ord" {
				t.Errorf("%s answered a read", got)
			}
			if got := answeredBy(t, t.Context(), cluster, pool.Primary()); got != "nrt" {
				t.Errorf("%s is the primary", got)
			}
		})
	}
}

func TestNewPoolWithConfigErrors(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Config)
		wants  []string
	}{
		{"Region", func(c *Config) { c.Region = "o d" }, []string{"Region", `"o d"`}},
		{"Region that Fly does not have", func(c *Config) { c.Region, c.ReplicaRegions = "us-east-1", nil }, []string{"us-east-1"}},
		{"PrimaryRegion", func(c *Config) { c.PrimaryRegion = "n_t" }, []string{"PrimaryRegion", `"n_t"`}},
		{"PrimaryRegion that Fly does not have", func(c *Config) { c.PrimaryRegion = "us-east-1" }, []string{"PrimaryRegion", `"us-east-1"`}},
		{"no PrimaryRegion", func(c *Config) { c.PrimaryRegion = "" }, []string{"ReplicaRegions", "PrimaryRegion"}},
		{"ReplicaRegions", func(c *Config) { c.ReplicaRegions = []string{"ord", "s.d"} }, []string{"ReplicaRegions", `"s.d"`}},
		{"ReplicaRegions twice", func(c *Config) { c.ReplicaRegions = []string{"ord", "ORD"} }, []string{"ReplicaRegions", `"ORD"`}},
		{"ReplicaRegions that Fly does not have", func(c *Config) { c.ReplicaRegions = []string{"ord", "us-east-1"} }, []string{"ReplicaRegions", `"us-east-1"`}},
		{"a replica host with a slip", func(c *Config) { c.ReplicaRegions, c.ReplicaHosts = nil, []string{"db 2"} }, []string{"ReplicaHosts (fly_replica_hosts)", `"db 2"`, "db2:5432"}},
		{"no replica hosts", func(c *Config) { c.ReplicaRegions, c.ReplicaHosts = nil, []string{} }, []string{"ReplicaHosts (fly_replica_hosts)", "empty"}},
		{"replica hosts and regions", func(c *Config) { c.ReplicaRegions, c.ReplicaHosts = []string{"ord"}, []string{"db2"} },
			[]string{"ReplicaHosts (fly_replica_hosts)", `"db2"`, "ReplicaRegions (fly_replica_regions)"}},
		{"replica hosts and a simulated replica", func(c *Config) { c.ReplicaRegions, c.ReplicaHosts, c.SimulateReplica = nil, []string{"db2"}, true },
			[]string{"ReplicaHosts (fly_replica_hosts)", "fly_simulate_replica"}},
		{"replica hosts and connection strings", func(c *Config) {
			c.ReplicaRegions, c.ReplicaHosts, c.ReplicaConnStrings = nil, []string{"db2"}, map[string]string{"ord": "host=db3"}
		}, []string{"ReplicaHosts (fly_replica_hosts)", `"db2"`, "ReplicaConnStrings"}},
		{"auto without a region", func(c *Config) { c.Region, c.ReplicaRegions = "", []string{"auto"} },
			[]string{"Region (fly_region, FLY_REGION, MY_REGION)", `"auto"`, `"nrt"`}},
		{"auto and regions", func(c *Config) { c.ReplicaRegions = []string{"ord", "auto"} }, []string{"ReplicaRegions (fly_replica_regions)", `"auto"`, "alone"}},
		{"no discovery interval", func(c *Config) { c.DiscoveryInterval = -time.Second }, []string{"DiscoveryInterval (fly_discovery_interval)", "-1s"}},
		{"ReplicaConnStrings in capitals", func(c *Config) { c.ReplicaConnStrings = map[string]string{"ORD": "host=db"} }, []string{"ReplicaConnStrings", `"ORD"`, `"ord"`}},
		{"ReplicaConnStrings with a space", func(c *Config) { c.ReplicaConnStrings = map[string]string{"ord ": "host=db"} }, []string{"ReplicaConnStrings", `"ord "`, `"ord"`}},
		{"ReplicaConnStrings of no region", func(c *Config) { c.ReplicaConnStrings = map[string]string{"": "host=db"} }, []string{"ReplicaConnStrings", `""`}},
		{"ReplicaConnStrings that are empty", func(c *Config) { c.ReplicaConnStrings = map[string]string{"ord": " "} }, []string{"ReplicaConnStrings", `"ord"`, "empty"}},
		{"ReplicaConnStrings with a port out of range", func(c *Config) {
			c.ReplicaConnStrings = map[string]string{"ord": "host=db port=70000 password=hunter3"}
		}, []string{`ReplicaConnStrings["ord"]`, "port"}},
		{"ReplicaConnStrings with a setting of the pool", func(c *Config) {
			c.ReplicaConnStrings = map[string]string{"ord": "host=db password=hunter3 fly_region=ord"}
		}, []string{`ReplicaConnStrings["ord"]`, "fly_region"}},
		{"ReplicaConnStrings that cannot be parsed", func(c *Config) {
			c.ReplicaConnStrings = map[string]string{"syd": "postgres://u:hunter3@db/db?sslmode=sometimes"}
		}, []string{`ReplicaConnStrings["syd"]`, "sslmode"}},
		{"ReplicaConnStrings alone", func(c *Config) {
			c.PrimaryRegion, c.ReplicaRegions, c.ReplicaConnStrings = "", nil, map[string]string{"ord": "host=db"}
		}, []string{"ReplicaConnStrings", "PrimaryRegion"}},
		{"Functions with a schema", func(c *Config) { c.Functions = map[string]Access{"public.f": Write} }, []string{"Functions", `"public.f"`}},
		{"Functions in upper case", func(c *Config) { c.Functions = map[string]Access{"F": Write} }, []string{"Functions", `"F"`}},
		{"Functions that are neither", func(c *Config) { c.Functions = map[string]Access{"f": 7} }, []string{"Functions", `"f"`}},
		{"Balance", func(c *Config) { c.Balance = "fair" }, []string{"Balance", "fly_balance", `"fair"`, `"local" "random" "round_robin" "weighted" "least_busy"`}},
		{"MinReplicaWait", func(c *Config) { c.MinReplicaWait = -1 }, []string{"MinReplicaWait", "-1ns"}},
		{"MaxReplicaWait", func(c *Config) { c.MaxReplicaWait = 0 }, []string{"MaxReplicaWait", "0s"}},
		{"MaxReplicaLag", func(c *Config) { c.MaxReplicaLag = -time.Second }, []string{"MaxReplicaLag", "fly_max_replica_lag", "-1s", "30s"}},
		{"both waits", func(c *Config) { c.MaxReplicaWait = time.Millisecond }, []string{"MinReplicaWait", "10ms", "MaxReplicaWait", "1ms"}},
		{"SimulateReplica", func(c *Config) { c.SimulateReplica = true }, []string{"SimulateReplica", `"ord"`}},
		{"ValidateConnect", func(c *Config) {
			c.ConnConfig.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsStandby
		}, []string{"target_session_attrs=standby"}},
		{"MaxConns", func(c *Config) { c.MaxConns = 0 }, []string{"MaxSize"}},
		{"MaxConns of a plain pool", func(c *Config) { c.Region, c.MaxConns = "nrt", 0 }, []string{"MaxSize"}},
		{"MaxConns of a simulated replica", func(c *Config) {
			c.Region, c.SimulateReplica, c.MaxConns = "nrt", true, 0
		}, []string{"MaxSize"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			running := goleak.IgnoreCurrent()
			config, err := ParseConfig("postgres://u:hunter2@app.internal/db?fly_region=ord&fly_primary_region=nrt&fly_replica_regions=ord,syd")
			if err != nil {
				t.Fatal(err)
			}
			test.change(config)
			pool, err := NewPoolWithConfig(t.Context(), config)
			if err == nil {
				pool.Close()
				t.Fatal("there is no error")
			}
			if pool != nil {
				t.Error("there is a pool beside the error")
			}
			for _, want := range test.wants {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\ndoes not name %s", err, want)
				}
			}
			if strings.Contains(err.Error(), "hunter") {
				t.Errorf("the error tells a password: %v", err)
			}
			if name := "flyregion: "; strings.Count(err.Error(), name) > 1 || strings.Index(err.Error(), name) > 0 {
				t.Errorf("the error tells twice whose it is: %v", err)
			}
			if err := goleak.Find(running); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNewPoolWithConfigPanics(t *testing.T) {
	panicOf := func(f func()) (value any) {
		defer func() { value = recover() }()
		f()
		return nil
	}
	want := panicOf(func() { _, _ = pgxpool.NewWithConfig(t.Context(), &pgxpool.Config{}) })
	if want == nil {
		t.Fatal("pgxpool does not panic")
	}
	template, err := pgxpool.ParseConfig("postgres://u@localhost/db")
	if err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string]*Config{
		"zero":           {},
		"with a pgxpool": {Config: template, Region: "ord", PrimaryRegion: "nrt", Balance: BalanceLocal, MaxReplicaWait: 1},
	} {
		if got := panicOf(func() { _, _ = NewPoolWithConfig(t.Context(), config) }); got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

func TestConfigCopyIsDeep(t *testing.T) {
	parse := func() *Config {
		config, err := ParseConfig("postgres://u:hunter2@a.internal,b.internal/db?fly_region=ord&fly_primary_region=nrt&fly_replica_regions=ord,syd&search_path=mine")
		if err != nil {
			t.Fatal(err)
		}
		config.ReplicaConnStrings = map[string]string{"syd": "host=one"}
		config.Functions = map[string]Access{"f": Read}
		return config
	}
	change := func(c *Config) {
		c.Region, c.MaxConns, c.ConnConfig.Host = "fra", 99, "elsewhere"
		c.ReplicaRegions[0] = "fra"
		c.ReplicaConnStrings["syd"] = "host=other"
		c.Functions["f"] = Write
		c.ConnConfig.RuntimeParams["search_path"] = "theirs"
		c.ConnConfig.Fallbacks[0].Host = "elsewhere"
	}
	config := parse()
	copied := config.Copy()
	sameConfig(t, "copy", reflect.ValueOf(copied), reflect.ValueOf(parse()))
	change(copied)
	sameConfig(t, "original", reflect.ValueOf(config), reflect.ValueOf(parse()))

	// What a pool was made of does not change with its config, nor with what Config returns.
	pool, err := NewPoolWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	change(config)
	change(pool.Config())
	sameConfig(t, "pool's", reflect.ValueOf(pool.Config()), reflect.ValueOf(parse()))

	// A copy is as good as the original.
	other, err := NewPoolWithConfig(t.Context(), pool.Config())
	if err != nil {
		t.Fatal(err)
	}
	other.Close()
}

// sameConfig compares the exported fields of two configs. Functions are the same if their code is.
func sameConfig(t *testing.T, path string, a, b reflect.Value) {
	t.Helper()
	switch {
	case a.Kind() == reflect.Pointer && a.Type().Elem().Kind() == reflect.Struct && (!a.IsNil() && !b.IsNil()):
		sameConfig(t, path, a.Elem(), b.Elem())
	case a.Kind() == reflect.Struct:
		for i := range a.NumField() {
			if field := a.Type().Field(i); field.IsExported() {
				sameConfig(t, path+"."+field.Name, a.Field(i), b.Field(i))
			}
		}
	case a.Kind() == reflect.Func:
		if a.Pointer() != b.Pointer() {
			t.Errorf("%s is another function", path)
		}
	case !reflect.DeepEqual(a.Interface(), b.Interface()):
		t.Errorf("%s is %v, want %v", path, a, b)
	}
}

func TestPoolConfigIsTheAppsOwn(t *testing.T) {
	cluster := sharedCluster(t)
	config := configIn(t, cluster, "ord")
	config.ReplicaRegions = []string{"ord", "syd"}
	config.AppName = "shop"
	tracer := &tracelog.TraceLog{}
	config.ConnConfig.Tracer = tracer
	config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { return nil }
	config.AfterConnect = func(context.Context, *pgx.Conn) error { return nil }
	config.BeforeClose = func(*pgx.Conn) {}

	pool, err := NewPoolWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	got := pool.Config()
	sameConfig(t, "config", reflect.ValueOf(got), reflect.ValueOf(config))
	if got.ConnConfig.Tracer != tracer {
		t.Errorf("the tracer is %T", got.ConnConfig.Tracer)
	}
	if got == config || got.Config == config.Config {
		t.Error("it is the original")
	}
}

func TestConnConfig(t *testing.T) {
	t.Setenv("FLY_APP_NAME", "shop")
	for _, test := range []struct{ connString, region, host, fallback string }{
		{"postgres://u:hunter2@app.internal/db", "ord", "ord.app.internal:5433", "top1.nearest.of.app.internal:5433"},
		{"postgres://u:hunter2@app.flycast:5432/db", "ORD", "ord.app.internal:5433", "top1.nearest.of.app.internal:5433"},
		{"host=nrt.app.internal user=u fly_region=lax fly_primary_region=nrt target_session_attrs=read-write", "ord", "ord.app.internal:5433", "top1.nearest.of.app.internal:5433"},
		{"postgres://u:hunter2@localhost:6000/db?fly_region=ord", "ord", "localhost:6000", ""},
		{"postgres://u:hunter2@db.example.com/db?fly_simulate_replica=true", "us-east-1", "db.example.com:5432", ""},
	} {
		config, err := ConnConfig(test.connString+settingOf(test.connString, "sslmode=disable"), test.region)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := fmt.Sprintf("%s:%d", config.Host, config.Port); got != test.host {
			t.Errorf("%s in %s leads to %s, want %s", test.connString, test.region, got, test.host)
		}
		fallback := ""
		for _, f := range config.Fallbacks {
			fallback += fmt.Sprintf("%s:%d", f.Host, f.Port)
		}
		if fallback != test.fallback {
			t.Errorf("%s in %s leads next to %q, want %q", test.connString, test.region, fallback, test.fallback)
		}
		if got := config.RuntimeParams; !maps.Equal(got, map[string]string{"application_name": "shop"}) {
			t.Errorf("%s: the server would get %v", test.connString, got)
		}
		if config.ValidateConnect != nil {
			t.Errorf("%s: a replica must not be asked whether it is the primary", test.connString)
		}
	}

	_, err := ConnConfig("postgres://u:hunter2@app.internal/db", "us-east-1")
	var parseErr *pgconn.ParseConfigError
	if !errors.As(err, &parseErr) || !strings.Contains(err.Error(), `"us-east-1"`) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error is %T: %v", err, err)
	}
}

// settingOf returns setting in the form that appends it to connString.
func settingOf(connString, setting string) string {
	switch {
	case !strings.Contains(connString, "://"):
		return " " + setting
	case strings.Contains(connString, "?"):
		return "&" + setting
	default:
		return "?" + setting
	}
}

func TestConnConfigConnects(t *testing.T) {
	cluster := sharedCluster(t)
	for _, region := range []string{"ord", "syd", "nrt"} {
		config, err := ConnConfig(cluster.URL(), region)
		if err != nil {
			t.Fatal(err)
		}
		site := cluster.From("ord")
		config.LookupFunc, config.DialFunc = site.LookupHost, site.DialContext
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		if got := answeredBy(t, t.Context(), cluster, conn); got != region {
			t.Errorf("%s answered instead of %s", got, region)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// Off Fly the replicas' own connection strings lead to them.
func TestReplicaConnStrings(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key")
	ctx := t.Context()
	config, err := ParseConfig(cluster.Server("nrt").ConnString() + "&application_name=theapp&pool_max_conns=3")
	if err != nil {
		t.Fatal(err)
	}
	config.Region, config.PrimaryRegion, config.ReplicaRegions = "us-east-1", "nrt", []string{"us-east-1", "syd"}
	config.ReplicaConnStrings = map[string]string{
		"us-east-1": cluster.Server("ord").ConnString() + "&application_name=thereplica&pool_max_conns=9",
		"syd":       cluster.Server("syd").ConnString(),
	}
	pool, err := NewPoolWithConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()

	if got := answeredBy(t, ctx, cluster, pool); got != "ord" {
		t.Errorf("%s answered a read", got)
	}
	if got := answeredBy(t, ctx, cluster, pool.Primary()); got != "nrt" {
		t.Errorf("%s is the primary", got)
	}
	if got := answeredBy(t, ctx, cluster, pool.ReplicaIn("syd")); got != "syd" {
		t.Errorf("%s is the replica in syd", got)
	}
	var application string
	if err := pool.QueryRow(ctx, "select current_setting('application_name')").Scan(&application); err != nil {
		t.Fatal(err)
	}
	if application != "thereplica" {
		t.Errorf("the replica's application_name is %q", application)
	}
	if n := pool.Replica().Config().MaxConns; n != 3 {
		t.Errorf("the replica's pool has %d connections", n)
	}

	for i := range 20 {
		if _, err := pool.Exec(ctx, "insert into "+name+" values ($1)", i); err != nil {
			t.Fatal(err)
		}
		var n int
		if err := pool.QueryRow(ctx, "select count(*) from "+name).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n != i+1 {
			t.Fatalf("a read after %d writes saw %d", i+1, n)
		}
	}
}

// Each host of a connection string is a replica, but those that are no standbys only if the connection string allows them. An app's
// own ValidateConnect changes nothing in that.
func TestReplicaConnStringsOfStandbys(t *testing.T) {
	cluster := sharedCluster(t)
	for attrs, want := range map[string][]string{
		"any": {"nrt", "ord"}, "primary": {"nrt", "ord"}, "standby": {"ord"}, "prefer-standby": {"ord"}, "prefer-standby&validate": {"ord"},
	} {
		attrs, validate := strings.CutSuffix(attrs, "&validate")
		config, err := ParseConfig(cluster.Server("nrt").ConnString() + "&fly_region=ord&fly_primary_region=nrt&target_session_attrs=read-write")
		if err != nil {
			t.Fatal(err)
		}
		config.ReplicaConnStrings = map[string]string{"ord": fmt.Sprintf("postgres://postgres:postgres@%s,%s/postgres?sslmode=disable&target_session_attrs=%s",
			cluster.Server("nrt").Addr(), cluster.Server("ord").Addr(), attrs)}
		if validate {
			config.ConnConfig.ValidateConnect = func(context.Context, *pgconn.PgConn) error { return nil }
		}
		pool, err := NewPoolWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		readOn(t, cluster, pool, want...)
		if got := answeredBy(t, t.Context(), cluster, pool.Primary()); got != "nrt" {
			t.Errorf("%s: %s is the primary", attrs, got)
		}
	}
}

// TestPreferredStandbyOutOfReach has the first read find out that one of two servers is no standby, and that the other one does
// not answer. The first one serves then.
func TestPreferredStandbyOutOfReach(t *testing.T) {
	cluster := sharedCluster(t)
	config, err := ParseConfig(cluster.Server("nrt").ConnString() + "&fly_region=ord&fly_primary_region=nrt")
	if err != nil {
		t.Fatal(err)
	}
	config.ReplicaConnStrings = map[string]string{"ord": fmt.Sprintf("postgres://postgres:postgres@%s,127.0.0.1:1/postgres?sslmode=disable&target_session_attrs=prefer-standby",
		cluster.Server("nrt").Addr())}
	pool, err := NewPoolWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if got := answeredBy(t, WithReplica(t.Context()), cluster, pool); got != "nrt" {
		t.Errorf("%s answers", got)
	}
	if !replicaServes(t, t.Context(), pool) {
		t.Error("the read runs in a session that can write")
	}
	unused(t, pool)
}

// simulatedPool returns a pool on the shared primary alone, with a simulated replica.
func simulatedPool(t *testing.T, application string, change ...func(*Config)) *Pool {
	t.Helper()
	config, err := ParseConfig(sharedCluster(t).Server("nrt").ConnString() + "&fly_simulate_replica=true&application_name=" + application)
	if err != nil {
		t.Fatal(err)
	}
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

func TestSimulateReplica(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key")
	ctx := t.Context()
	application := uniqueName("simulated")
	pool := simulatedPool(t, application)

	readOnly := func(db interface {
		QueryRow(context.Context, string, ...any) pgx.Row
	}) (on string) {
		t.Helper()
		if err := db.QueryRow(ctx, "select current_setting('transaction_' || 'read_only')").Scan(&on); err != nil {
			t.Fatal(err)
		}
		return on
	}
	if got := readOnly(pool); got != "on" {
		t.Errorf("a read's session is read-only: %s", got)
	}
	if got := readOnly(pool.Primary()); got != "off" {
		t.Errorf("a write's session is read-only: %s", got)
	}

	// A read directly after a write sees it.
	for i := range 50 {
		if _, err := pool.Exec(ctx, "insert into "+name+" values ($1)", i); err != nil {
			t.Fatal(err)
		}
		var n int
		var on string
		if err := pool.QueryRow(ctx, "select count(*), current_setting('transaction_' || 'read_only') from "+name).Scan(&n, &on); err != nil {
			t.Fatal(err)
		}
		if n != i+1 || on != "on" {
			t.Fatalf("a read after %d writes saw %d, its session is read-only: %s", i+1, n, on)
		}
	}

	// A function that writes is refused by the read-only session and run on the other, unseen.
	function := name + "_f"
	if err := cluster.Leader().Exec(ctx, fmt.Sprintf(
		"create function %[1]s_v(n int) returns int language sql as 'insert into %[2]s values (n) returning id'; "+
			"create function %[1]s(n int) returns int stable language sql as 'select %[1]s_v(n)'", function, name)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cluster.Leader().Exec(ctx, "drop function "+function+", "+function+"_v"); err != nil {
			t.Error(err)
		}
	}()
	refusals := func() (n int) {
		for _, line := range logOf(t, cluster.Server("nrt"), application) {
			if strings.Contains(line, "in a read-only transaction") {
				n++
			}
		}
		return n
	}
	for i := 100; i < 103; i++ {
		var got int
		if err := pool.QueryRow(ctx, "select "+function+"($1)", i).Scan(&got); err != nil {
			t.Fatal(err)
		}
		var n int
		if err := pool.QueryRow(ctx, "select count(*) from "+name+" where id = $1", i).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if got != i || n != 1 {
			t.Errorf("%s(%d) returned %d and left %d rows", function, i, got, n)
		}
	}
	if n := refusals(); n != 1 {
		t.Errorf("the statement was refused %d times", n)
	}

	// Who insists on the replica gets PostgreSQL's own refusal.
	_, err := pool.Exec(WithReplica(ctx), "insert into "+name+" values (200)")
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "25006" {
		t.Errorf("a write on the replica: %v", err)
	}

	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, "delete from "+name); err != nil {
		t.Error(err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Error(err)
	}
	var n int
	if err := pool.QueryRow(ctx, "select count(*) from "+name).Scan(&n); err != nil || n != 0 {
		t.Errorf("after a transaction that deletes all there are %d rows, %v", n, err)
	}
}

// A connection string that asks for a server that can be written to is satisfied by the server, not by each session.
func TestSimulateReplicaWithSessionAttrs(t *testing.T) {
	for _, attrs := range []string{"any", "primary", "read-write"} {
		t.Run(attrs, func(t *testing.T) {
			config, err := ParseConfig(sharedCluster(t).Server("nrt").ConnString() + "&fly_simulate_replica=true&target_session_attrs=" + attrs)
			if err != nil {
				t.Fatal(err)
			}
			pool, err := NewPoolWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			var on string
			if err := pool.QueryRow(t.Context(), "select current_setting('transaction_' || 'read_only')").Scan(&on); err != nil {
				t.Fatal(err)
			}
			if on != "on" {
				t.Error("a read went through a session that can write")
			}
		})
	}
}

func TestHooksHoldForEveryServer(t *testing.T) {
	cluster := sharedCluster(t)
	var mu sync.Mutex
	calls := map[string]int{}
	count := func(hook, host string) {
		mu.Lock()
		defer mu.Unlock()
		calls[hook+" "+host]++
	}
	pool := poolIn(t, cluster, "ord", func(c *Config) {
		c.ReplicaRegions = []string{"ord", "syd"}
		c.BeforeConnect = func(_ context.Context, config *pgx.ConnConfig) error {
			count("BeforeConnect", config.Host)
			config.RuntimeParams["application_name"] = "hooked"
			return nil
		}
		c.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
			count("AfterConnect", conn.Config().Host)
			return nil
		}
		c.PrepareConn = func(_ context.Context, conn *pgx.Conn) (bool, error) {
			count("PrepareConn", conn.Config().Host)
			return true, nil
		}
		c.AfterRelease = func(conn *pgx.Conn) bool {
			count("AfterRelease", conn.Config().Host)
			return true
		}
		c.BeforeClose = func(conn *pgx.Conn) { count("BeforeClose", conn.Config().Host) }
		c.ShouldPing = func(_ context.Context, params pgxpool.ShouldPingParams) bool {
			count("ShouldPing", params.Conn.Config().Host)
			return true
		}
	})

	const application = "select current_setting('application_name')"
	for region, query := range map[string]func() pgx.Row{
		"ord": func() pgx.Row { return pool.QueryRow(t.Context(), application) },
		"syd": func() pgx.Row { return pool.ReplicaIn("syd").QueryRow(t.Context(), application) },
		"nrt": func() pgx.Row { return pool.QueryRow(WithPrimary(t.Context()), application) },
	} {
		var name string
		if err := query().Scan(&name); err != nil {
			t.Fatal(err)
		}
		if name != "hooked" {
			t.Errorf("what BeforeConnect set is not used in %s: %q", region, name)
		}
	}
	pool.Close()

	for _, hook := range []string{"BeforeConnect", "AfterConnect", "PrepareConn", "AfterRelease", "BeforeClose", "ShouldPing"} {
		for _, region := range []string{"nrt", "ord", "syd"} {
			if n := calls[hook+" "+region+".app.internal"]; n != 1 {
				t.Errorf("%s was called %d times for %s", hook, n, region)
			}
		}
	}
	if len(calls) != 6*3 {
		t.Errorf("the calls were %v", calls)
	}
}

// The errors of hooks, and of the app's own ValidateConnect, are not lost.
func TestHookErrorsAreReturned(t *testing.T) {
	cluster := sharedCluster(t)
	mine := errors.New("not today")
	for name, change := range map[string]func(*Config){
		"BeforeConnect": func(c *Config) { c.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { return mine } },
		"AfterConnect":  func(c *Config) { c.AfterConnect = func(context.Context, *pgx.Conn) error { return mine } },
		"PrepareConn":   func(c *Config) { c.PrepareConn = func(context.Context, *pgx.Conn) (bool, error) { return true, mine } },
		"ValidateConnect": func(c *Config) {
			c.ConnConfig.ValidateConnect = func(context.Context, *pgconn.PgConn) error { return mine }
		},
	} {
		pool := poolIn(t, cluster, "ord", change)
		for target, ctx := range map[string]context.Context{
			"any": t.Context(), "primary": WithPrimary(t.Context()), "replica": WithReplica(t.Context()),
		} {
			if _, err := pool.Exec(ctx, "select 1"); !errors.Is(err, mine) {
				t.Errorf("%s, %s: %v", name, target, err)
			}
		}
		pool.Close()
	}
}

func TestAppName(t *testing.T) {
	cluster := sharedCluster(t)
	for _, test := range []struct {
		name, own string
		env       map[string]string
		want      string
	}{
		{"environment", "", map[string]string{"FLY_APP_NAME": "shop"}, "shop"},
		{"connection string", "&application_name=mine", map[string]string{"FLY_APP_NAME": "shop"}, "mine"},
		{"PGAPPNAME", "", map[string]string{"FLY_APP_NAME": "shop", "PGAPPNAME": "pgs"}, "pgs"},
		{"none", "", nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			for name, value := range test.env {
				t.Setenv(name, value)
			}
			config, err := ParseConfig(cluster.URL() + "&fly_region=ord&fly_primary_region=nrt" + test.own)
			if err != nil {
				t.Fatal(err)
			}
			site := cluster.From("ord")
			config.ConnConfig.LookupFunc, config.ConnConfig.DialFunc = site.LookupHost, site.DialContext
			pool, err := NewPoolWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			for server, db := range map[string]*pgxpool.Pool{"primary": pool.Primary(), "replica": pool.Replica()} {
				var got string
				if err := db.QueryRow(t.Context(), "select current_setting('application_name')").Scan(&got); err != nil {
					t.Fatal(err)
				}
				if got != test.want {
					t.Errorf("the %s sees %q, want %q", server, got, test.want)
				}
			}
		})
	}
}

// Nothing is sent before the app asks for something, and nothing runs after Close. In the bubble time passes at once, and
// a goroutine that is left over fails the test.
func TestNewPoolDoesNoIO(t *testing.T) {
	for name, connString := range map[string]string{
		"plain":     "postgres://u:hunter2@app.internal/db",
		"regions":   "postgres://u:hunter2@app.internal/db?fly_region=ord&fly_primary_region=nrt&fly_replica_regions=ord,syd",
		"simulated": "postgres://u:hunter2@app.internal/db?fly_simulate_replica=true",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				config, err := ParseConfig(connString)
				if err != nil {
					t.Fatal(err)
				}
				config.ConnConfig.LookupFunc = func(_ context.Context, host string) ([]string, error) {
					t.Errorf("%s was looked up", host)
					return nil, errors.New("no lookup here")
				}
				config.ConnConfig.DialFunc = func(_ context.Context, _, addr string) (net.Conn, error) {
					t.Errorf("%s was dialled", addr)
					return nil, errors.New("no network here")
				}
				pool, err := NewPoolWithConfig(t.Context(), config)
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				time.Sleep(time.Hour)
				synctest.Wait()
				pool.Close()
				pool.Close()
				synctest.Wait()
				if _, err := pool.Exec(t.Context(), "select 1"); !errors.Is(err, errClosedPool) {
					t.Errorf("a closed pool says %v", err)
				}
			})
		})
	}
}
