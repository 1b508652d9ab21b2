package flyregion

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/flyregion/flyregion/internal/piggyback"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// certify makes all servers of a cluster speak TLS as app.internal and every name below it, and returns the file of the
// certificate that a client has to trust.
func certify(t *testing.T, cluster *pgcluster.Cluster) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "flyregion test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		// A wildcard stands for one label: top1.nearest.of.app.internal is none of these.
		DNSNames: []string{"app.internal", "*.app.internal"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	private := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})

	for _, server := range cluster.Servers() {
		conn, err := pgx.Connect(t.Context(), server.ConnString())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		var folder string
		if err := conn.QueryRow(t.Context(), "show data_directory").Scan(&folder); err != nil {
			t.Fatal(err)
		}
		// The server writes its files itself, for it may run as another user, and takes no key that others can read.
		for name, content := range map[string][]byte{"server.crt": certificate, "server.key": private} {
			program := fmt.Sprintf("umask 077; cat > '%s'", filepath.Join(folder, name))
			text := "select line from unnest(string_to_array('" + strings.TrimSpace(string(content)) + "', e'\\n')) line"
			_, err := conn.Exec(t.Context(), "copy ("+text+") to program '"+strings.ReplaceAll(program, "'", "''")+"'")
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, sql := range []string{"alter system set ssl = on", "select pg_reload_conf()"} {
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the server speaks TLS", func() bool {
			config, err := pgx.ParseConfig(server.ConnString())
			if err != nil {
				t.Fatal(err)
			}
			config.TLSConfig, config.Fallbacks = &tls.Config{InsecureSkipVerify: true}, nil
			secured, err := pgx.ConnectConfig(t.Context(), config)
			if err != nil {
				return false
			}
			return secured.Close(t.Context()) == nil
		})
	}

	file := filepath.Join(t.TempDir(), "root.crt")
	if err := os.WriteFile(file, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestTLS has every server verified under its own name, on the app's connections and on the one that waits for replay.
func TestTLS(t *testing.T) {
	cluster := ownCluster(t, nil)
	root := certify(t, cluster)
	open := func(settings string) *Pool {
		t.Helper()
		config, err := ParseConfig(strings.Replace(cluster.URL(), "sslmode=disable", settings, 1))
		if err != nil {
			t.Fatal(err)
		}
		config.Region, config.PrimaryRegion, config.MaxReplicaWait = "ord", "nrt", time.Minute
		site := cluster.From("ord")
		config.ConnConfig.LookupFunc, config.ConnConfig.DialFunc = site.LookupHost, site.DialContext
		pool, err := NewPoolWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return pool
	}

	const securedSQL = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
	settings := []string{"sslmode=verify-full", "sslmode=verify-ca", "sslmode=require", "sslmode=prefer"}
	// PostgreSQL 17 and newer.
	if cluster.Leader().Exec(t.Context(), "select 1 / (current_setting('server_version_num')::int / 170000)") == nil {
		settings = append(settings, "sslnegotiation=direct&sslmode=verify-full")
	}
	for _, setting := range settings {
		t.Run(setting, func(t *testing.T) {
			pool := open(setting + "&sslrootcert=" + root)
			name := table(t, cluster, "id int")
			if err := cluster.Server("ord").PauseReplay(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := pool.Exec(t.Context(), "insert into "+name+" values (1)"); err != nil {
				t.Fatal(err)
			}
			waited := make(chan error, 1)
			go func() { waited <- pool.WaitReplayed(t.Context()) }()
			watched := "select 1 / count(*) from pg_stat_activity join pg_stat_ssl using (pid) where application_name = 'flyregion' and ssl"
			eventually(t, "the replica is asked over TLS", func() bool { return cluster.Server("ord").Exec(t.Context(), watched) == nil })
			if err := cluster.Server("ord").ResumeReplay(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := <-waited; err != nil {
				t.Fatal(err)
			}

			for target, query := range map[target]func() pgx.Row{
				targetPrimary: func() pgx.Row { return pool.QueryRow(WithPrimary(t.Context()), securedSQL) },
				targetReplica: func() pgx.Row { return pool.Replica().QueryRow(t.Context(), securedSQL) },
			} {
				var secured bool
				if err := query().Scan(&secured); err != nil || !secured {
					t.Errorf("the %s's connection is secured: %v, %v", target, secured, err)
				}
			}
			if !replicaServes(t, t.Context(), pool) {
				t.Error("reads do not run on the replica")
			}

			// It is proven to be open without a ping, through the TLS.
			err := pool.AcquireFunc(t.Context(), func(conn *pgxpool.Conn) error {
				if _, ok := conn.Conn().PgConn().Conn().(*piggyback.Conn).NetConn().(*tls.Conn); !ok {
					t.Errorf("the connection is a %T", conn.Conn().PgConn().Conn())
				}
				if !piggyback.Alive(conn.Conn().PgConn().Conn()) {
					t.Error("an idle connection counts as broken")
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}

	t.Run("channel binding", func(t *testing.T) {
		var file string
		leader := cluster.Leader()
		if err := queryOne(t.Context(), leader, "show hba_file", &file); err != nil {
			t.Fatal(err)
		}
		for _, sql := range []string{
			"copy (select 1) to program 'sed -i s/password/scram-sha-256/ " + file + "'",
			"select pg_reload_conf()",
		} {
			if err := leader.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		pool := open("sslmode=require&channel_binding=require")
		eventually(t, "a write is authenticated with it", func() bool {
			_, err := pool.Exec(t.Context(), "create table if not exists bound ()")
			return err == nil
		})
		if state := pool.primary.written(&pool.primary.session); state.position == 0 {
			t.Errorf("the write's position: %+v", state)
		}
	})

	t.Run("unknown authority", func(t *testing.T) {
		pool := open("sslmode=verify-full")
		for name, run := range map[string]func() error{
			"read":  func() error { return pool.QueryRow(t.Context(), "select 1").Scan(new(int)) },
			"write": func() error { _, err := pool.Exec(t.Context(), "create table never ()"); return err },
		} {
			if err := run(); err == nil || !strings.Contains(err.Error(), "certificate") {
				t.Errorf("%s: a server that nobody vouches for is trusted: %v", name, err)
			}
		}
	})
}
