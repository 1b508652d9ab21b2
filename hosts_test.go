package flyregion

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// withoutPGEnvironment keeps the settings of whoever runs the tests (PGHOST, ~/.postgresql/root.crt, ...) out of what
// pgconn parses.
func withoutPGEnvironment(t *testing.T) {
	t.Helper()
	t.Setenv("HOME", t.TempDir())
	for _, env := range os.Environ() {
		name, value, _ := strings.Cut(env, "=")
		if strings.HasPrefix(name, "PG") {
			t.Setenv(name, value) // puts it back at the end
			os.Unsetenv(name)
		}
	}
}

// describeAttempts lists what pgconn would try, as "host:port plain", "host:port tls <server name>", or "... verified"
// if the certificate's name is checked too.
func describeAttempts(c *pgconn.Config) []string {
	var list []string
	for _, a := range connectAttempts(c) {
		s := fmt.Sprintf("%s:%d", a.Host, a.Port)
		switch {
		case a.TLSConfig == nil:
			s += " plain"
		case a.TLSConfig.InsecureSkipVerify:
			s = strings.TrimSpace(s + " tls " + a.TLSConfig.ServerName)
		default:
			s += " tls " + a.TLSConfig.ServerName + " verified"
		}
		list = append(list, s)
	}
	return list
}

// The primary is in nrt and the replica in ord, unless the case says otherwise.
func TestPointAt(t *testing.T) {
	withoutPGEnvironment(t)

	appPrimary := []string{"nrt.app.internal:5432 plain"}
	appReplica := []string{"ord.app.internal:5433 plain", "top1.nearest.of.app.internal:5433 plain"}

	tests := []struct {
		name    string
		conn    string
		primary []string
		replica []string // nil: no Fly name among the hosts
	}{
		// Fly names
		{"app", "postgres://u:p@app.internal/db?sslmode=disable", appPrimary, appReplica},
		{"postgresql scheme", "postgresql://u:p@app.internal/db?sslmode=disable", appPrimary, appReplica},
		{"host as a setting of a URL", "postgres:///db?host=app.internal&sslmode=disable", appPrimary, appReplica},
		{"key/value", "host=app.internal user=u dbname=db sslmode=disable", appPrimary, appReplica},
		{"key/value quoted", "host='app.internal' port='5432' sslmode=disable", appPrimary, appReplica},
		{"the primary's region", "postgres://nrt.app.internal/db?sslmode=disable", appPrimary, appReplica},
		{"the replica's region", "postgres://ord.app.internal/db?sslmode=disable", appPrimary, appReplica},
		{"a third region", "postgres://syd.app.internal/db?sslmode=disable", appPrimary, appReplica},
		{"top1", "postgres://top1.nearest.of.app.internal/db?sslmode=disable", appPrimary, appReplica},
		{"top2", "postgres://top2.nearest.of.app.internal/db?sslmode=disable", appPrimary, appReplica},
		{"top10", "postgres://top10.nearest.of.app.internal/db?sslmode=disable", appPrimary, appReplica},
		{"global", "postgres://global.app.internal/db?sslmode=disable", appPrimary, appReplica},
		{"vm", "postgres://148e306c77e089.vm.app.internal/db?sslmode=disable", appPrimary, appReplica},
		{"flycast", "postgres://app.flycast/db?sslmode=disable", []string{"app.flycast:5432 plain"}, appReplica},
		{"flycast in upper case with a dot", "postgres://APP.Flycast./db?sslmode=disable", []string{"app.flycast:5432 plain"}, appReplica},
		{"upper case", "postgres://NRT.App.INTERNAL/db?sslmode=disable", appPrimary, appReplica},
		{"upper case in a key/value string", "host=TOP1.Nearest.Of.APP.Internal sslmode=disable", appPrimary, appReplica},
		{"trailing dot", "postgres://app.internal./db?sslmode=disable", appPrimary, appReplica},
		{"trailing dot after a region", "host=ord.app.internal. sslmode=disable", appPrimary, appReplica},
		{"a long app name", "postgres://my-app-2-db.internal/db?sslmode=disable",
			[]string{"nrt.my-app-2-db.internal:5432 plain"},
			[]string{"ord.my-app-2-db.internal:5433 plain", "top1.nearest.of.my-app-2-db.internal:5433 plain"}},

		// apps with names that mean something else elsewhere
		{"app named like a region", "postgres://ord.internal/db?sslmode=disable",
			[]string{"nrt.ord.internal:5432 plain"},
			[]string{"ord.ord.internal:5433 plain", "top1.nearest.of.ord.internal:5433 plain"}},
		{"app named like a region, in a region", "postgres://nrt.ord.internal/db?sslmode=disable",
			[]string{"nrt.ord.internal:5432 plain"},
			[]string{"ord.ord.internal:5433 plain", "top1.nearest.of.ord.internal:5433 plain"}},
		{"app named global", "postgres://global.internal/db?sslmode=disable",
			[]string{"nrt.global.internal:5432 plain"},
			[]string{"ord.global.internal:5433 plain", "top1.nearest.of.global.internal:5433 plain"}},
		{"app named vm", "postgres://a.vm.vm.internal/db?sslmode=disable",
			[]string{"nrt.vm.internal:5432 plain"},
			[]string{"ord.vm.internal:5433 plain", "top1.nearest.of.vm.internal:5433 plain"}},
		{"app named internal", "postgres://internal.internal/db?sslmode=disable",
			[]string{"nrt.internal.internal:5432 plain"},
			[]string{"ord.internal.internal:5433 plain", "top1.nearest.of.internal.internal:5433 plain"}},
		{"app of digits", "postgres://42.internal/db?sslmode=disable",
			[]string{"nrt.42.internal:5432 plain"},
			[]string{"ord.42.internal:5433 plain", "top1.nearest.of.42.internal:5433 plain"}},

		// ports
		{"explicit port", "postgres://app.internal:5432/db?sslmode=disable", appPrimary, appReplica},
		{"port of the server itself", "postgres://app.internal:5433/db?sslmode=disable", []string{"nrt.app.internal:5433 plain"}, appReplica},
		{"a port of one's own", "host=app.internal port=6543 sslmode=disable", []string{"nrt.app.internal:6543 plain"}, appReplica},
		{"flycast with a port", "postgres://app.flycast:5432/db?sslmode=disable", []string{"app.flycast:5432 plain"}, appReplica},

		// several hosts
		{"two apps", "postgres://one.internal,two.internal/db?sslmode=disable",
			[]string{"nrt.one.internal:5432 plain", "nrt.two.internal:5432 plain"},
			[]string{
				"ord.one.internal:5433 plain", "ord.two.internal:5433 plain",
				"top1.nearest.of.one.internal:5433 plain", "top1.nearest.of.two.internal:5433 plain"}},
		{"two apps and ports", "host=one.internal,two.internal port=5432,6543 sslmode=disable",
			[]string{"nrt.one.internal:5432 plain", "nrt.two.internal:6543 plain"},
			[]string{
				"ord.one.internal:5433 plain", "ord.two.internal:5433 plain",
				"top1.nearest.of.one.internal:5433 plain", "top1.nearest.of.two.internal:5433 plain"}},
		{"several names of one app", "postgres://nrt.app.internal,top1.nearest.of.app.internal,APP.internal./db?sslmode=disable", appPrimary, appReplica},
		{"several names of one app at several ports", "postgres://app.internal:5432,ord.app.internal:5433/db?sslmode=disable",
			[]string{"nrt.app.internal:5432 plain", "nrt.app.internal:5433 plain"}, appReplica},
		{"flycast and internal", "postgres://app.flycast,app.internal/db?sslmode=disable",
			[]string{"app.flycast:5432 plain", "nrt.app.internal:5432 plain"}, appReplica},
		{"foreign hosts among Fly's", "postgres://db.example.com,app.internal:6543,127.0.0.1/db?sslmode=disable",
			[]string{"db.example.com:5432 plain", "nrt.app.internal:6543 plain", "127.0.0.1:5432 plain"}, appReplica},
		{"a socket before Fly's", "host=/var/run/postgresql,app.internal sslmode=disable",
			[]string{"/var/run/postgresql:5432 plain", "nrt.app.internal:5432 plain"}, appReplica},
		{"foreign hosts only", "postgres://a.example.com,b.example.com:6543,a.example.com/db?sslmode=disable",
			[]string{"a.example.com:5432 plain", "b.example.com:6543 plain", "a.example.com:5432 plain"}, nil},

		// TLS
		{"sslmode unset", "postgres://app.internal/db",
			[]string{"nrt.app.internal:5432 tls nrt.app.internal", "nrt.app.internal:5432 plain"},
			[]string{
				"ord.app.internal:5433 tls ord.app.internal", "ord.app.internal:5433 plain",
				"top1.nearest.of.app.internal:5433 tls top1.nearest.of.app.internal", "top1.nearest.of.app.internal:5433 plain"}},
		{"prefer", "postgres://app.internal/db?sslmode=prefer",
			[]string{"nrt.app.internal:5432 tls nrt.app.internal", "nrt.app.internal:5432 plain"},
			[]string{
				"ord.app.internal:5433 tls ord.app.internal", "ord.app.internal:5433 plain",
				"top1.nearest.of.app.internal:5433 tls top1.nearest.of.app.internal", "top1.nearest.of.app.internal:5433 plain"}},
		{"allow", "host=app.internal sslmode=allow",
			[]string{"nrt.app.internal:5432 plain", "nrt.app.internal:5432 tls nrt.app.internal"},
			[]string{
				"ord.app.internal:5433 plain", "ord.app.internal:5433 tls ord.app.internal",
				"top1.nearest.of.app.internal:5433 plain", "top1.nearest.of.app.internal:5433 tls top1.nearest.of.app.internal"}},
		{"require", "postgres://app.internal/db?sslmode=require",
			[]string{"nrt.app.internal:5432 tls nrt.app.internal"},
			[]string{"ord.app.internal:5433 tls ord.app.internal", "top1.nearest.of.app.internal:5433 tls top1.nearest.of.app.internal"}},
		{"verify-ca", "postgres://app.internal/db?sslmode=verify-ca",
			[]string{"nrt.app.internal:5432 tls nrt.app.internal"},
			[]string{"ord.app.internal:5433 tls ord.app.internal", "top1.nearest.of.app.internal:5433 tls top1.nearest.of.app.internal"}},
		{"verify-full", "postgres://app.internal/db?sslmode=verify-full",
			[]string{"nrt.app.internal:5432 tls nrt.app.internal verified"},
			[]string{"ord.app.internal:5433 tls ord.app.internal verified", "top1.nearest.of.app.internal:5433 tls top1.nearest.of.app.internal verified"}},
		{"verify-full of the primary's own name", "postgres://nrt.app.internal/db?sslmode=verify-full",
			[]string{"nrt.app.internal:5432 tls nrt.app.internal verified"},
			[]string{"ord.app.internal:5433 tls ord.app.internal verified", "top1.nearest.of.app.internal:5433 tls top1.nearest.of.app.internal verified"}},
		{"verify-full in upper case with a dot", "postgres://APP.internal./db?sslmode=verify-full",
			[]string{"nrt.app.internal:5432 tls nrt.app.internal verified"},
			[]string{"ord.app.internal:5433 tls ord.app.internal verified", "top1.nearest.of.app.internal:5433 tls top1.nearest.of.app.internal verified"}},
		{"verify-full of a flycast name", "postgres://App.flycast/db?sslmode=verify-full",
			[]string{"app.flycast:5432 tls app.flycast verified"},
			[]string{"ord.app.internal:5433 tls ord.app.internal verified", "top1.nearest.of.app.internal:5433 tls top1.nearest.of.app.internal verified"}},
		{"require without SNI", "postgres://app.internal/db?sslmode=require&sslsni=0",
			[]string{"nrt.app.internal:5432 tls"},
			[]string{"ord.app.internal:5433 tls", "top1.nearest.of.app.internal:5433 tls"}},
		{"prefer with two apps and a foreign host", "postgres://one.internal,db.example.com,two.internal/db?sslmode=prefer",
			[]string{
				"nrt.one.internal:5432 tls nrt.one.internal", "nrt.one.internal:5432 plain",
				"db.example.com:5432 tls db.example.com", "db.example.com:5432 plain",
				"nrt.two.internal:5432 tls nrt.two.internal", "nrt.two.internal:5432 plain"},
			[]string{
				"ord.one.internal:5433 tls ord.one.internal", "ord.one.internal:5433 plain",
				"ord.two.internal:5433 tls ord.two.internal", "ord.two.internal:5433 plain",
				"top1.nearest.of.one.internal:5433 tls top1.nearest.of.one.internal", "top1.nearest.of.one.internal:5433 plain",
				"top1.nearest.of.two.internal:5433 tls top1.nearest.of.two.internal", "top1.nearest.of.two.internal:5433 plain"}},
		{"prefer with several names of one app", "postgres://ord.app.internal,app.internal/db?sslmode=prefer",
			[]string{"nrt.app.internal:5432 tls nrt.app.internal", "nrt.app.internal:5432 plain"},
			[]string{
				"ord.app.internal:5433 tls ord.app.internal", "ord.app.internal:5433 plain",
				"top1.nearest.of.app.internal:5433 tls top1.nearest.of.app.internal", "top1.nearest.of.app.internal:5433 plain"}},
		{"prefer on a foreign host", "postgres://db.example.com/db?sslmode=prefer",
			[]string{"db.example.com:5432 tls db.example.com", "db.example.com:5432 plain"}, nil},

		// not Fly: no name at all
		{"localhost", "postgres://localhost/db?sslmode=disable", []string{"localhost:5432 plain"}, nil},
		{"IPv4", "postgres://10.0.0.1:5433/db?sslmode=disable", []string{"10.0.0.1:5433 plain"}, nil},
		{"IPv6", "postgres://[fdaa:0:18:a7b:7d:f066:b83b:2]:5432/db?sslmode=disable", []string{"fdaa:0:18:a7b:7d:f066:b83b:2:5432 plain"}, nil},
		{"IPv6 in a key/value string", "host=::1 port=5433 sslmode=disable", []string{"::1:5433 plain"}, nil},
		{"IPv6 with a zone", "host=fe80::1%eth0 sslmode=disable", []string{"fe80::1%eth0:5432 plain"}, nil},
		{"socket", "host=/var/run/postgresql dbname=db", []string{"/var/run/postgresql:5432 plain"}, nil},
		{"socket in a URL", "postgres:///db?host=/var/run/postgresql", []string{"/var/run/postgresql:5432 plain"}, nil},
		{"socket that ends like an app", "host=/run/app.internal", []string{"/run/app.internal:5432 plain"}, nil},
		{"abstract socket", "host=@app.internal sslmode=disable", []string{"@app.internal:5432 plain"}, nil},
		{"Windows path", `host='C:\\pg\\app.internal'`, []string{`C:\pg\app.internal:5432 plain`}, nil},

		// not Fly: other people's domains
		{"foreign domain", "postgres://db.example.com/db?sslmode=disable", []string{"db.example.com:5432 plain"}, nil},
		{"foreign domain keeps case and dot", "postgres://DB.Example.com./db?sslmode=disable", []string{"DB.Example.com.:5432 plain"}, nil},
		{"Fly's name inside a foreign domain", "postgres://app.internal.example.com/db?sslmode=disable", []string{"app.internal.example.com:5432 plain"}, nil},
		{"Fly Managed Postgres", "postgres://direct.abc123.flympg.net/db?sslmode=disable", []string{"direct.abc123.flympg.net:5432 plain"}, nil},
		{"fly.dev", "postgres://app.fly.dev/db?sslmode=disable", []string{"app.fly.dev:5432 plain"}, nil},
		{"myinternal", "postgres://myinternal/db?sslmode=disable", []string{"myinternal:5432 plain"}, nil},
		{"app.myinternal", "postgres://app.myinternal/db?sslmode=disable", []string{"app.myinternal:5432 plain"}, nil},
		{"app.internals", "postgres://app.internals/db?sslmode=disable", []string{"app.internals:5432 plain"}, nil},
		{"Docker", "postgres://host.docker.internal/db?sslmode=disable", []string{"host.docker.internal:5432 plain"}, nil},
		{"EC2", "postgres://ip-10-0-0-1.ec2.internal/db?sslmode=disable", []string{"ip-10-0-0-1.ec2.internal:5432 plain"}, nil},
		{"Google Cloud", "postgres://db.us-east1-b.c.proj.internal/db?sslmode=disable", []string{"db.us-east1-b.c.proj.internal:5432 plain"}, nil},
		{"Google Cloud, all zones", "postgres://db.c.proj.internal/db?sslmode=disable", []string{"db.c.proj.internal:5432 plain"}, nil},
		{"Google's metadata", "postgres://metadata.google.internal/db?sslmode=disable", []string{"metadata.google.internal:5432 plain"}, nil},

		// not Fly: malformed
		{"internal alone", "postgres://internal/db?sslmode=disable", []string{"internal:5432 plain"}, nil},
		{"internal with a dot before", "postgres://.internal/db?sslmode=disable", []string{".internal:5432 plain"}, nil},
		{"internal with a dot after", "postgres://internal./db?sslmode=disable", []string{"internal.:5432 plain"}, nil},
		{"flycast alone", "postgres://flycast/db?sslmode=disable", []string{"flycast:5432 plain"}, nil},
		{"flycast in a region", "postgres://ord.app.flycast/db?sslmode=disable", []string{"ord.app.flycast:5432 plain"}, nil},
		{"empty label", "postgres://ord..internal/db?sslmode=disable", []string{"ord..internal:5432 plain"}, nil},
		{"empty region", "postgres://.app.internal/db?sslmode=disable", []string{".app.internal:5432 plain"}, nil},
		{"two trailing dots", "postgres://app.internal../db?sslmode=disable", []string{"app.internal..:5432 plain"}, nil},
		{"underscore", "postgres://my_app.internal/db?sslmode=disable", []string{"my_app.internal:5432 plain"}, nil},
		{"leading dash", "postgres://-app.internal/db?sslmode=disable", []string{"-app.internal:5432 plain"}, nil},
		{"trailing dash", "postgres://app-.internal/db?sslmode=disable", []string{"app-.internal:5432 plain"}, nil},
		{"space", "host='app .internal' sslmode=disable", []string{"app .internal:5432 plain"}, nil},
		{"a letter that lower case makes ASCII", "host=app.internal.\u212aix.internal sslmode=disable", []string{"app.internal.\u212aix.internal:5432 plain"}, nil},
		{"the same in the app", "host=\u212aapp.internal sslmode=disable", []string{"\u212aapp.internal:5432 plain"}, nil},
		{"label too long", "host=" + strings.Repeat("a", 64) + ".internal sslmode=disable", []string{strings.Repeat("a", 64) + ".internal:5432 plain"}, nil},
		{"region too long", "postgres://tokyo.app.internal/db?sslmode=disable", []string{"tokyo.app.internal:5432 plain"}, nil},
		{"region with a digit", "postgres://or1.app.internal/db?sslmode=disable", []string{"or1.app.internal:5432 plain"}, nil},
		{"two regions", "postgres://nrt.ord.app.internal/db?sslmode=disable", []string{"nrt.ord.app.internal:5432 plain"}, nil},
		{"too many labels", "postgres://a.b.c.d.app.internal/db?sslmode=disable", []string{"a.b.c.d.app.internal:5432 plain"}, nil},
		{"top without a number", "postgres://top.nearest.of.app.internal/db?sslmode=disable", []string{"top.nearest.of.app.internal:5432 plain"}, nil},
		{"top0", "postgres://top0.nearest.of.app.internal/db?sslmode=disable", []string{"top0.nearest.of.app.internal:5432 plain"}, nil},
		{"topX", "postgres://top1x.nearest.of.app.internal/db?sslmode=disable", []string{"top1x.nearest.of.app.internal:5432 plain"}, nil},
		{"top1, misspelt", "postgres://top1.nearest.to.app.internal/db?sslmode=disable", []string{"top1.nearest.to.app.internal:5432 plain"}, nil},
		{"top1 without an app", "postgres://top1.nearest.of.internal/db?sslmode=disable", []string{"top1.nearest.of.internal:5432 plain"}, nil},
		{"vm without an id", "postgres://vm.app.internal/db?sslmode=disable", []string{"vm.app.internal:5432 plain"}, nil},

		// Fly's names that are not an app's Machines, or only those with some task
		{"vms", "postgres://vms.app.internal/db?sslmode=disable", []string{"vms.app.internal:5432 plain"}, nil},
		{"all.vms", "postgres://all.vms.app.internal/db?sslmode=disable", []string{"all.vms.app.internal:5432 plain"}, nil},
		{"regions", "postgres://regions.app.internal/db?sslmode=disable", []string{"regions.app.internal:5432 plain"}, nil},
		{"all.regions", "postgres://all.regions.app.internal/db?sslmode=disable", []string{"all.regions.app.internal:5432 plain"}, nil},
		{"_apps", "postgres://_apps.internal/db?sslmode=disable", []string{"_apps.internal:5432 plain"}, nil},
		{"_instances", "postgres://_instances.internal/db?sslmode=disable", []string{"_instances.internal:5432 plain"}, nil},
		{"all._instances", "postgres://all._instances.internal/db?sslmode=disable", []string{"all._instances.internal:5432 plain"}, nil},
		{"_peer", "postgres://_peer.internal/db?sslmode=disable", []string{"_peer.internal:5432 plain"}, nil},
		{"a peer", "postgres://ord._peer.internal/db?sslmode=disable", []string{"ord._peer.internal:5432 plain"}, nil},
		{"process group", "postgres://db.process.app.internal/db?sslmode=disable", []string{"db.process.app.internal:5432 plain"}, nil},
		{"metadata", "postgres://primary.role.kv._metadata.app.internal/db?sslmode=disable", []string{"primary.role.kv._metadata.app.internal:5432 plain"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			config, err := pgxpool.ParseConfig(tt.conn)
			if err != nil {
				t.Fatal(err)
			}

			primary := config.Copy()
			if err := pointAtPrimary(&primary.ConnConfig.Config, "nrt"); err != nil {
				t.Fatal(err)
			}
			if got := describeAttempts(&primary.ConnConfig.Config); !slices.Equal(got, tt.primary) {
				t.Errorf("primary:\n got %q\nwant %q", got, tt.primary)
			}

			before := describeAttempts(&config.ConnConfig.Config)
			replica := config.Copy()
			ok, err := pointAtReplica(&replica.ConnConfig.Config, "ord")
			if err != nil {
				t.Fatal(err)
			}
			want := tt.replica
			if want == nil {
				want = before
			}
			if ok != (tt.replica != nil) {
				t.Errorf("replica: %v", ok)
			}
			if got := describeAttempts(&replica.ConnConfig.Config); !slices.Equal(got, want) {
				t.Errorf("replica:\n got %q\nwant %q", got, want)
			}

			// A replica's pool may be made from the primary's config just as well.
			if ok, err := pointAtReplica(&primary.ConnConfig.Config, "ord"); err != nil || ok != (tt.replica != nil) {
				t.Fatal(ok, err)
			} else if got := describeAttempts(&primary.ConnConfig.Config); ok && !slices.Equal(got, want) {
				t.Errorf("replica by way of the primary:\n got %q\nwant %q", got, want)
			}
			if after := describeAttempts(&config.ConnConfig.Config); !slices.Equal(before, after) {
				t.Errorf("the template changed:\n got %q\nwant %q", after, before)
			}
		})
	}
}

func TestPointAtWrongRegion(t *testing.T) {
	withoutPGEnvironment(t)

	for _, region := range []string{"", " ", "tokyo", "or", "or1", "us-east-1", "n.t", "o d", "\u212asy", "global", "vm", "vms", "nearest", "of", "top1", "process", "regions"} {
		for _, conn := range []string{"host=app.internal", "host=app.flycast", "host=db.example.com,app.internal", "host=localhost"} {
			fly := conn != "host=localhost"
			c, err := pgconn.ParseConfig(conn)
			if err != nil {
				t.Fatal(err)
			}
			before := describeAttempts(c)
			check := func(err error) {
				t.Helper()
				if want := fmt.Sprintf("region %q is not a Fly region code", region); fly && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("%s: got %v, want %s", conn, err, want)
				}
				if !fly && err != nil {
					t.Errorf("%s: %v", conn, err)
				}
				if after := describeAttempts(c); !slices.Equal(before, after) {
					t.Errorf("%s in %q became %q", conn, region, after)
				}
			}
			check(pointAtPrimary(c, region))
			ok, err := pointAtReplica(c, region)
			if ok {
				t.Errorf("%s: a replica in %q", conn, region)
			}
			check(err)
		}
	}

	_, err := flyRegion("tokyo")
	if want := `region "tokyo" is not a Fly region code: want three letters such as "nrt"`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestPointAtNormalizesRegion(t *testing.T) {
	withoutPGEnvironment(t)

	c, err := pgconn.ParseConfig("host=app.internal sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	if err := pointAtPrimary(c, " NRT\n"); err != nil {
		t.Fatal(err)
	}
	if c.Host != "nrt.app.internal" {
		t.Errorf("got %s", c.Host)
	}
}

func TestPointAtKeepsTLSSettings(t *testing.T) {
	withoutPGEnvironment(t)

	c, err := pgconn.ParseConfig("host=app.internal sslmode=verify-full")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	original := c.TLSConfig
	original.RootCAs = roots
	original.MinVersion = tls.VersionTLS13

	if ok, err := pointAtReplica(c, "ord"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if original.ServerName != "app.internal" {
		t.Errorf("a tls.Config that may be shared was changed: %s", original.ServerName)
	}
	for _, a := range connectAttempts(c) {
		if a.TLSConfig.ServerName != a.Host || a.TLSConfig.RootCAs != roots || a.TLSConfig.MinVersion != tls.VersionTLS13 || a.TLSConfig.InsecureSkipVerify {
			t.Errorf("%s: ServerName %q, MinVersion %x, RootCAs kept %v", a.Host, a.TLSConfig.ServerName, a.TLSConfig.MinVersion, a.TLSConfig.RootCAs == roots)
		}
	}
}

func TestPointAtKeepsServerNameOfOnesOwn(t *testing.T) {
	withoutPGEnvironment(t)

	for _, name := range []string{"db.example.com", ""} {
		c, err := pgconn.ParseConfig("host=app.internal,db.example.com sslmode=prefer")
		if err != nil {
			t.Fatal(err)
		}
		c.TLSConfig.ServerName = name
		original := c.TLSConfig

		primary := *c // shares its fallbacks with c
		if err := pointAtPrimary(&primary, "nrt"); err != nil {
			t.Fatal(err)
		}
		if primary.TLSConfig != original || original.ServerName != name {
			t.Errorf("primary: server name %q became %q", name, primary.TLSConfig.ServerName)
		}

		replica := *c
		if ok, err := pointAtReplica(&replica, "ord"); !ok || err != nil {
			t.Fatal(ok, err)
		}
		for _, a := range connectAttempts(&replica) {
			if a.TLSConfig != nil && a.TLSConfig.ServerName != name {
				t.Errorf("replica: server name %q became %q", name, a.TLSConfig.ServerName)
			}
		}

		if c.Host != "app.internal" || c.Fallbacks[0].Host != "app.internal" || c.Fallbacks[1].Host != "db.example.com" {
			t.Errorf("the config that was copied changed: %q", describeAttempts(c))
		}
	}
}

// Attempts that differ only in what TLS checks are not the same one.
func TestPointAtKeepsAttemptsWithOtherTLS(t *testing.T) {
	withoutPGEnvironment(t)

	c, err := pgconn.ParseConfig("host=app.internal,app.internal,app.internal,app.internal sslmode=verify-full")
	if err != nil {
		t.Fatal(err)
	}
	c.Fallbacks[0].TLSConfig.ServerName = "db.example.com"
	c.Fallbacks[1].TLSConfig.InsecureSkipVerify = true

	if err := pointAtPrimary(c, "nrt"); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"nrt.app.internal:5432 tls nrt.app.internal verified",
		"nrt.app.internal:5432 tls db.example.com verified",
		"nrt.app.internal:5432 tls nrt.app.internal",
	}
	if got := describeAttempts(c); !slices.Equal(got, want) {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
}

func TestParseRegion(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, tt := range []struct {
		code, want string // want "" is an error
	}{
		{"nrt", "nrt"},
		{"NRT", "nrt"},
		{" ord\n", "ord"},
		{"us-east-1", "us-east-1"},
		{"US-East-1", "us-east-1"},
		{"1", "1"},
		{"a--b", "a--b"},
		{"global", "global"}, // a word like any other for a replica that its URL names
		{long, long},
		{"", ""},
		{" \t", ""},
		{long + "a", ""},
		{"-nrt", ""},
		{"nrt-", ""},
		{"-", ""},
		{"n rt", ""},
		{"us_east_1", ""},
		{"nrt,ord", ""},
		{"nrt.app", ""},
		{"nrt.", ""},
		{"n/t", ""},
		{"n\x00t", ""},
		{"n\xfft", ""},
		{"東京", ""},
		{"\u212aix", ""}, // the Kelvin sign, a "k" in lower case
	} {
		got, err := parseRegion(tt.code)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("parseRegion(%q) = %q, %v, want %q", tt.code, got, err, tt.want)
		}
		if err != nil && (!strings.Contains(err.Error(), fmt.Sprintf("%q", tt.code)) || !strings.Contains(err.Error(), `"nrt"`)) {
			t.Errorf("parseRegion(%q): %v names not the value, or nothing right", tt.code, err)
		}
	}
}

func FuzzFlyApp(f *testing.F) {
	f.Fuzz(func(t *testing.T, host string) {
		primary, err := primaryHost(host, "nrt")
		if err != nil {
			t.Fatal(err)
		}
		replicas, err := replicaHosts(host, "ord")
		if err != nil {
			t.Fatal(err)
		}

		app, ok := flyApp(host)
		if !ok {
			if app != "" || primary != host || replicas != nil {
				t.Fatalf("%q is not a Fly name, and became app %q, primary %q, replicas %q", host, app, primary, replicas)
			}
			if _, ok := flyApp(strings.ToLower(host)); ok && strings.ToLower(host) == strings.Map(asciiLower, host) {
				t.Fatalf("%q is a Fly name only in lower case", host)
			}
			return
		}

		if !isDNSLabel(app) || app != strings.ToLower(app) {
			t.Fatalf("%q gave app %q", host, app)
		}
		if len(replicas) != 2 {
			t.Fatalf("%q gave replicas %q", host, replicas)
		}
		// All names of an app, also those made from it, are its names.
		names := append(replicas, primary, app+".internal", app+".flycast", strings.ToUpper(host), strings.TrimSuffix(host, ".")+".")
		for _, name := range names {
			if again, ok := flyApp(name); !ok || again != app {
				t.Fatalf("%q is of app %q, but %q of %q, %v", host, app, name, again, ok)
			}
		}
		if again, err := primaryHost(primary, "nrt"); err != nil || again != primary {
			t.Fatalf("%q became %q, then %q, %v", host, primary, again, err)
		}
		for _, name := range append(replicas, primary) {
			if len(name) > 253 || name != strings.ToLower(name) {
				t.Fatalf("%q became %q", host, name)
			}
		}
	})
}

func asciiLower(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		return r + 'a' - 'A'
	}
	return r
}

func FuzzParseRegion(f *testing.F) {
	f.Fuzz(func(t *testing.T, code string) {
		region, err := parseRegion(code)
		flyCode, flyErr := flyRegion(code)
		if err != nil {
			if region != "" || !strings.Contains(err.Error(), fmt.Sprintf("%q", code)) {
				t.Fatalf("%q gave %q, %v", code, region, err)
			}
			if flyErr == nil {
				t.Fatalf("%q is a Fly region, but: %v", code, err)
			}
			return
		}

		if !isDNSLabel(region) || region != strings.ToLower(region) {
			t.Fatalf("%q gave %q", code, region)
		}
		if again, err := parseRegion(region); err != nil || again != region {
			t.Fatalf("%q gave %q, then %q, %v", code, region, again, err)
		}
		if flyErr != nil {
			return
		}

		if flyCode != region {
			t.Fatalf("%q is %q, but %q on Fly", code, region, flyCode)
		}
		primary, err := primaryHost("app.internal", code)
		if err != nil || primary != region+".app.internal" {
			t.Fatalf("%q gave %q, %v", code, primary, err)
		}
		if app, ok := flyApp(primary); !ok || app != "app" {
			t.Fatalf("%q gave %q, which is of app %q, %v", code, primary, app, ok)
		}
	})
}
