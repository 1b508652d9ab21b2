package flyregion

import (
	"strings"
	"testing"
)

// The hosts of most cases: one that is no Fly name, and one that is.
const (
	offFly = "postgres://u:hunter2@db.example.com/db?sslmode=disable"
	onFly  = "postgres://u:hunter2@app.internal/db?sslmode=disable"
)

// TestDescribe makes a pool from each configuration, which either says what it is or cannot be made.
func TestDescribe(t *testing.T) {
	withoutPGEnvironment(t)
	inOrd := map[string]string{"FLY_REGION": "ord", "PRIMARY_REGION": "nrt"}
	inNrt := map[string]string{"FLY_REGION": "nrt", "PRIMARY_REGION": "nrt"}
	replicas := func(regions ...string) func(*Config) {
		return func(c *Config) {
			c.ReplicaConnStrings = map[string]string{}
			for _, region := range regions {
				c.ReplicaConnStrings[region] = "postgres://v:hunter3@db-" + region + ".example.com:6000/db?sslmode=disable"
			}
		}
	}
	for _, test := range []struct {
		name       string
		env        map[string]string
		connString string
		change     func(*Config)
		want       string   // what Describe says
		wants      []string // what the error names
	}{
		// Replicas on Fly.
		{name: "environment", env: inOrd, connString: onFly,
			want: "reads on ord.app.internal:5433 (replica in ord), writes on nrt.app.internal:5432"},
		{name: "connection string", connString: onFly + "&fly_region=ord&fly_primary_region=nrt",
			want: "reads on ord.app.internal:5433 (replica in ord), writes on nrt.app.internal:5432"},
		{name: "TLS if it can be had", env: inOrd, connString: "postgres://u:hunter2@app.internal:5434/db?sslmode=prefer",
			want: "reads on ord.app.internal:5433 (replica in ord), writes on nrt.app.internal:5434"},
		{name: "Flycast", env: inOrd, connString: "postgres://u:hunter2@app.flycast/db",
			want: "reads on ord.app.internal:5433 (replica in ord), writes on app.flycast:5432"},
		{name: "several hosts", env: inOrd, connString: "postgres://u:hunter2@a.internal,b.internal:5,db.example.com/db?sslmode=disable",
			want: "reads on ord.a.internal:5433 and ord.b.internal:5433 (2 replicas in ord), " +
				"writes on nrt.a.internal:5432 or nrt.b.internal:5 or db.example.com:5432"},
		{name: "several regions", env: inOrd, connString: onFly + "&fly_replica_regions=syd,ord,nrt",
			want: "reads on ord.app.internal:5433 (replica in ord), else on syd.app.internal:5433 (replica in syd), " +
				"else on nrt.app.internal:5433 (replica in nrt), writes on nrt.app.internal:5432"},
		{name: "at random", env: inOrd, connString: onFly + "&fly_replica_regions=ord,syd&fly_balance=random",
			want: "reads on ord.app.internal:5433 (replica in ord) and syd.app.internal:5433 (replica in syd) at random, " +
				"writes on nrt.app.internal:5432"},
		{name: "in turn", env: inOrd, connString: onFly + "&fly_replica_regions=ord,syd,lax&fly_balance=round_robin",
			want: "reads on ord.app.internal:5433 (replica in ord), syd.app.internal:5433 (replica in syd) and " +
				"lax.app.internal:5433 (replica in lax) in turn, writes on nrt.app.internal:5432"},
		{name: "by weight", env: inOrd, connString: onFly + "&fly_replica_regions=ord,syd,lax&fly_balance=weighted",
			change: func(c *Config) { c.ReplicaWeights = map[string]int{"syd": 0, "lax": 2} },
			want: "reads on ord.app.internal:5433 (replica in ord) and lax.app.internal:5433 (replica in lax) in turn by weight, " +
				"writes on nrt.app.internal:5432"},
		{name: "no fallback", env: inOrd, connString: onFly + "&fly_fallback=false",
			want: "reads on ord.app.internal:5433 (replica in ord) only, writes on nrt.app.internal:5432"},
		{name: "balance of one", env: inOrd, connString: onFly + "&fly_balance=random",
			want: "reads on ord.app.internal:5433 (replica in ord), writes on nrt.app.internal:5432"},

		// Replicas elsewhere.
		{name: "connection strings", connString: offFly + "&fly_region=ord&fly_primary_region=nrt", change: replicas("ord"),
			want: "reads on db-ord.example.com:6000 (replica in ord), writes on db.example.com:5432"},
		{name: "connection strings of several regions", env: inOrd, connString: offFly + "&fly_replica_regions=ord,syd", change: replicas("ord", "syd"),
			want: "reads on db-ord.example.com:6000 (replica in ord), else on db-syd.example.com:6000 (replica in syd), writes on db.example.com:5432"},
		{name: "connection strings for all processes", env: inOrd, connString: offFly, change: replicas("nrt", "ord", "syd"),
			want: "reads on db-ord.example.com:6000 (replica in ord), writes on db.example.com:5432"},
		{name: "one connection string beside Fly names", env: inOrd, connString: onFly + "&fly_replica_regions=ord,syd", change: replicas("syd"),
			want: "reads on ord.app.internal:5433 (replica in ord), else on db-syd.example.com:6000 (replica in syd), writes on nrt.app.internal:5432"},
		{name: "Managed Postgres with connection strings", env: inOrd, connString: "postgres://u:hunter2@direct.c0ffee.flympg.net/db", change: replicas("ord"),
			want: "reads on db-ord.example.com:6000 (replica in ord), writes on direct.c0ffee.flympg.net:5432"},
		{name: "socket", env: inOrd, connString: "host=/run/postgresql user=u password=hunter2", change: replicas("ord"),
			want: "reads on db-ord.example.com:6000 (replica in ord), writes on /run/postgresql/.s.PGSQL.5432"},
		{name: "IPv6", env: inOrd, connString: "postgres://u:hunter2@[fdaa::3]:5433/db", change: replicas("ord"),
			want: "reads on db-ord.example.com:6000 (replica in ord), writes on [fdaa::3]:5433"},

		// Nothing asks for replicas.
		{name: "laptop", connString: "postgres://u:hunter2@localhost/db",
			want: "one plain pool: localhost is no Fly name and no replica is configured"},
		{name: "password with an at sign", connString: "postgres://u:p@hunter2@db.example.com/db",
			want: "one plain pool: db.example.com is no Fly name and no replica is configured"},
		{name: "environment off Fly", env: inOrd, connString: offFly,
			want: "one plain pool: db.example.com is no Fly name and no replica is configured"},
		{name: "several hosts off Fly", env: inOrd, connString: "postgres://u:hunter2@a.example.com,b.example.com/db",
			want: "one plain pool: a.example.com and b.example.com are no Fly names and no replica is configured"},
		{name: "Managed Postgres", env: inOrd, connString: "postgres://u:hunter2@pgbouncer.c0ffee.flympg.net/db",
			want: "one plain pool: pgbouncer.c0ffee.flympg.net is Fly Managed Postgres and no replica is configured"},
		{name: "no region", env: map[string]string{"PRIMARY_REGION": "nrt"}, connString: onFly,
			want: "one plain pool: no Region (fly_region, FLY_REGION, MY_REGION) is set"},
		{name: "no primary region", env: map[string]string{"FLY_REGION": "ord"}, connString: onFly,
			want: "one plain pool: no PrimaryRegion (fly_primary_region, PRIMARY_REGION) is set"},
		{name: "laptop with the app's connection string", connString: onFly + "&fly_primary_region=nrt",
			want: "one plain pool: no Region (fly_region, FLY_REGION, MY_REGION) is set"},
		{name: "region taken back", env: inOrd, connString: onFly, change: func(c *Config) { c.Region = "" },
			want: "one plain pool: no Region (fly_region, FLY_REGION, MY_REGION) is set"},
		{name: "the environment's region again", env: map[string]string{"FLY_REGION": " ORD ", "PRIMARY_REGION": "Nrt"}, connString: offFly,
			change: func(c *Config) { c.Region, c.PrimaryRegion = "ord", "nrt" },
			want:   "one plain pool: db.example.com is no Fly name and no replica is configured"},

		// The primary's region. The other regions of the app have the same connection string.
		{name: "primary's region", env: inNrt, connString: onFly,
			want: "one plain pool: this process runs in the primary's region nrt"},
		{name: "primary's region by the connection string", connString: offFly + "&fly_region=nrt&fly_primary_region=nrt",
			want: "one plain pool: this process runs in the primary's region nrt"},
		{name: "primary's standbys", env: inNrt, connString: onFly + "&fly_replica_regions=ord,nrt,syd",
			want: "reads on nrt.app.internal:5433 (replica in nrt), writes on nrt.app.internal:5432"},
		{name: "primary's standbys by Fly's DNS", env: inNrt, connString: onFly + "&fly_replica_regions=auto",
			want: "reads on nrt.app.internal:5433 (replica in nrt), writes on nrt.app.internal:5432"},
		{name: "connection string of the primary's region", env: inNrt, connString: offFly, change: replicas("nrt", "ord"),
			want: "reads on db-nrt.example.com:6000 (replica in nrt), writes on db.example.com:5432"},
		{name: "hosts", connString: offFly + "&fly_replica_hosts=db2,db3:6000,10.0.0.7,[fdaa::1]:5433",
			want: "reads on db2:5432, db3:6000, 10.0.0.7:5432 and [fdaa::1]:5433 (4 replicas), writes on db.example.com:5432"},
		{name: "hosts in a region", env: inNrt, connString: offFly + "&fly_replica_hosts=db2",
			want: "reads on db2:5432 (replica in nrt), writes on db.example.com:5432"},
		{name: "hosts beside a Fly name", env: inOrd, connString: onFly + "&fly_replica_hosts=db2",
			want: "reads on db2:5432 (replica in ord), writes on nrt.app.internal:5432"},
		{name: "hosts beside a Fly name without regions", connString: onFly + "&fly_replica_hosts=db2:7",
			want: "reads on db2:7 (replica), writes on app.internal:5432"},
		{name: "hosts and connection strings", env: inOrd, connString: offFly + "&fly_replica_hosts=db2", change: replicas("ord"),
			wants: []string{"ReplicaHosts (fly_replica_hosts)", `"db2"`, "ReplicaConnStrings"}},
		{name: "primary's region that has no replica", env: inNrt, connString: offFly + "&fly_replica_regions=nrt",
			wants: []string{"ReplicaRegions (fly_replica_regions)", `"nrt"`, "db.example.com is no Fly name"}},
		{name: "primary's region with replicas", env: inNrt, connString: onFly + "&fly_replica_regions=ord,syd&fly_balance=random",
			want: "one plain pool: this process runs in the primary's region nrt, so that nothing is read from ReplicaRegions ord and syd"},
		{name: "primary's region with connection strings", env: inNrt, connString: offFly, change: replicas("syd", "ord"),
			want: "one plain pool: this process runs in the primary's region nrt, so that nothing is read from ReplicaConnStrings of ord and syd"},
		{name: "primary's region with regions off Fly", env: inNrt, connString: offFly + "&fly_replica_regions=ord",
			want: "one plain pool: this process runs in the primary's region nrt, so that nothing is read from ReplicaRegions ord"},

		// Simulated replicas.
		{name: "simulated", connString: "postgres://u:hunter2@localhost:6000/db?fly_simulate_replica=true",
			want: "one server, localhost:6000: reads in read-only sessions (SimulateReplica), writes in others"},
		{name: "simulated in a region", connString: offFly + "&fly_simulate_replica=true&fly_region=ord",
			want: "one server, db.example.com:5432: reads in read-only sessions (SimulateReplica), writes in others"},
		{name: "simulated between regions", connString: offFly + "&fly_simulate_replica=true&fly_region=ord&fly_primary_region=nrt",
			want: "one server, db.example.com:5432: reads in read-only sessions (SimulateReplica), writes in others"},
		{name: "simulated in the primary's region", env: inNrt, connString: onFly + "&fly_simulate_replica=true&fly_replica_regions=ord",
			want: "one server, app.internal:5432: reads in read-only sessions (SimulateReplica), writes in others"},

		// Settings that lead to no replica.
		{name: "regions off Fly", env: inOrd, connString: offFly + "&fly_replica_regions=ord",
			wants: []string{"ReplicaRegions (fly_replica_regions)", `"ord"`, "db.example.com is no Fly name", "ReplicaConnStrings"}},
		{name: "one region too many off Fly", env: inOrd, connString: offFly + "&fly_replica_regions=ord,lax", change: replicas("ord"),
			wants: []string{"ReplicaRegions (fly_replica_regions)", `"lax"`, "db.example.com is no Fly name", "ReplicaConnStrings"}},
		{name: "regions on Managed Postgres", env: inOrd, connString: "postgres://u:hunter2@pgbouncer.c0ffee.flympg.net/db?fly_replica_regions=ord",
			wants: []string{"fly_replica_regions", `"ord"`, "pgbouncer.c0ffee.flympg.net is Fly Managed Postgres", "ReplicaConnStrings"}},
		{name: "regions and a simulated replica", env: inOrd, connString: offFly + "&fly_replica_regions=ord&fly_simulate_replica=true",
			wants: []string{"fly_replica_regions", `"ord"`, "db.example.com is no Fly name"}},
		{name: "regions and no region", env: map[string]string{"PRIMARY_REGION": "nrt"}, connString: onFly + "&fly_replica_regions=ord",
			wants: []string{"no Region (fly_region, FLY_REGION, MY_REGION)", `ReplicaRegions (fly_replica_regions) ["ord"]`, `"nrt"`, "one plain pool"}},
		{name: "regions and no primary's", env: map[string]string{"FLY_REGION": "ord"}, connString: onFly, change: func(c *Config) { c.ReplicaRegions = []string{"ord"} },
			wants: []string{"no PrimaryRegion (fly_primary_region, PRIMARY_REGION)", `ReplicaRegions (fly_replica_regions) ["ord"]`}},
		{name: "connection strings and no region", env: map[string]string{"PRIMARY_REGION": "nrt"}, connString: offFly, change: replicas("ord"),
			wants: []string{"no Region (fly_region, FLY_REGION, MY_REGION)", `ReplicaConnStrings of ["ord"]`, `"nrt"`, "one plain pool"}},
		{name: "connection strings and no primary's region", env: map[string]string{"FLY_REGION": "ord"}, connString: offFly, change: replicas("ord"),
			wants: []string{"no PrimaryRegion (fly_primary_region, PRIMARY_REGION)", "ReplicaConnStrings"}},
		{name: "connection strings of other regions", env: inOrd, connString: offFly, change: replicas("syd", "lax"),
			wants: []string{`ReplicaConnStrings: those of ["lax" "syd"]`, `Region (fly_region, FLY_REGION, MY_REGION) "ord"`, "ReplicaRegions (fly_replica_regions)"}},
		{name: "connection strings of another region on Fly", env: inOrd, connString: onFly, change: replicas("odr"),
			wants: []string{`ReplicaConnStrings: those of ["odr"]`, `"ord"`}},
		{name: "connection string that is not used", env: inOrd, connString: offFly + "&fly_replica_regions=ord", change: replicas("ord", "syd"),
			wants: []string{`ReplicaConnStrings: "syd"`, `ReplicaRegions (fly_replica_regions) ["ord"]`}},
		{name: "connection string that is used nowhere", env: inNrt, connString: offFly + "&fly_replica_regions=ord", change: replicas("ord", "syd"),
			wants: []string{`ReplicaConnStrings: "syd"`, `ReplicaRegions (fly_replica_regions) ["ord"]`}},
		{name: "region off Fly", env: map[string]string{"PRIMARY_REGION": "nrt"}, connString: offFly + "&fly_region=ord",
			wants: []string{`Region (fly_region): "ord"`, "db.example.com is no Fly name", "ReplicaConnStrings", `Region "nrt"`, "one plain pool"}},
		{name: "region like the environment's off Fly", env: inOrd, connString: offFly + "&fly_region=ord",
			wants: []string{`Region (fly_region): "ord"`, "db.example.com is no Fly name"}},
		{name: "field off Fly", env: inOrd, connString: offFly, change: func(c *Config) { c.Region = "SYD" },
			wants: []string{`Region (fly_region): "syd"`, "db.example.com is no Fly name"}},
		{name: "primary's region off Fly", env: map[string]string{"FLY_REGION": "ord"}, connString: offFly + "&fly_primary_region=nrt",
			wants: []string{`PrimaryRegion (fly_primary_region): with "nrt"`, `"ord"`, "db.example.com is no Fly name", "ReplicaConnStrings"}},
		{name: "region and no primary's", connString: onFly + "&fly_region=ord",
			wants: []string{"no PrimaryRegion (fly_primary_region, PRIMARY_REGION)", `Region (fly_region) "ord"`, "one plain pool"}},
		{name: "region that Fly does not have", env: map[string]string{"MY_REGION": "us-east-1", "PRIMARY_REGION": "nrt"}, connString: onFly,
			wants: []string{"Region (fly_region, FLY_REGION, MY_REGION)", `"us-east-1"`, "three letters"}},
		{name: "replica region that Fly does not have", env: inOrd, connString: onFly + "&fly_replica_regions=ord,us-east-1",
			wants: []string{"ReplicaRegions (fly_replica_regions)", `"us-east-1"`, "three letters"}},
		{name: "primary's region that Fly does not have", env: map[string]string{"FLY_REGION": "ord", "PRIMARY_REGION": "us-east-1"}, connString: onFly,
			wants: []string{"PrimaryRegion (fly_primary_region, PRIMARY_REGION)", `"us-east-1"`, "three letters"}},
		{name: "password with an at sign in an error", env: inOrd, connString: "postgres://u:p@hunter2@db.example.com/db?fly_replica_regions=ord",
			wants: []string{": db.example.com is no Fly name"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for name, value := range test.env {
				t.Setenv(name, value)
			}
			config, err := ParseConfig(test.connString)
			if err != nil {
				t.Fatal(err)
			}
			if test.change != nil {
				test.change(config)
			}
			// A copy is judged as the original is.
			pool, err := NewPoolWithConfig(t.Context(), config.Copy())
			if test.wants != nil {
				if err == nil {
					t.Errorf("there is a pool: %s", pool.Describe())
					pool.Close()
					return
				}
				for _, want := range test.wants {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%v\ndoes not name %s", err, want)
					}
				}
				if strings.Contains(err.Error(), "hunter") || strings.LastIndex(err.Error(), "flyregion: ") != 0 {
					t.Errorf("the error tells a password, or not once whose it is: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			if got := pool.Describe(); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			if plain := strings.HasPrefix(test.want, "one plain pool"); plain != (pool.Replica() == pool.Primary()) {
				t.Errorf("that it is one plain pool is not %v", plain)
			}
		})
	}
}

// Fly's DNS tells no regions of a host that is not Fly's.
func TestAutoOffFly(t *testing.T) {
	_, err := ParseConfig(offFly + "&fly_region=ord&fly_primary_region=nrt&fly_replica_regions=auto")
	for _, want := range []string{"ReplicaRegions (fly_replica_regions)", `"auto"`, "db.example.com is no Fly name", "fly_replica_hosts"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not name %s", err, want)
		}
	}
}
