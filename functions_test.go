package flyregion

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

// TestFunctions registers functions, and finds them where they are called.
func TestFunctions(t *testing.T) {
	cluster := sharedCluster(t)
	own := map[string]Access{"locks": Write, "pg_last_wal_replay_lsn": Read}
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.Functions = own })
	own["locks"] = Read // the pool has its own copy
	for sql, want := range map[string]target{
		"select locks(1)":                           targetPrimary,
		`select app."locks" (1)`:                    targetPrimary,
		"select LOCKS(1)":                           targetPrimary,
		"select locks from t":                       targetReplica,
		"select other(1)":                           targetReplica,
		"select pg_last_wal_replay_lsn()":           targetReplica,
		"select pg_last_wal_replay_lsn(), locks(1)": targetPrimary,
		"select pg_advisory_lock(1)":                targetPrimary,
	} {
		if r := pool.router.route(t.Context(), sql, nil); r.to != want {
			t.Errorf("%s goes to the %s", sql, r.to)
		}
		if r := pool.router.routeBatch(t.Context(), batchOf("select 1", sql)); r.to != want {
			t.Errorf("a batch with %s goes to the %s", sql, r.to)
		}
	}
	var recovering bool
	if err := pool.QueryRow(t.Context(), "select pg_last_wal_replay_lsn() is not null").Scan(&recovering); err != nil || !recovering {
		t.Errorf("the replica answers: %v, %v", recovering, err)
	}
	// On a connection of its own a call of such a function counts as a write, whatever it does.
	for access, want := range map[Access]bool{Write: true, Read: false} {
		pool := poolIn(t, cluster, "ord", func(c *Config) { c.Functions = map[string]Access{"version": access} })
		if err := onConn(pool, t.Context(), func(c *pgxpool.Conn) error {
			return c.QueryRow(t.Context(), "select version()").Scan(new(string))
		}); err != nil {
			t.Error(err)
		}
		if wrote := pool.primary.written(&pool.primary.session).position > 0; wrote != want {
			t.Errorf("calling a %v has written: %v", access, wrote)
		}
		pool = poolIn(t, cluster, "ord", func(c *Config) { c.Functions = map[string]Access{"version": access} })
		if err := onConn(pool, t.Context(), func(c *pgxpool.Conn) error {
			return c.SendBatch(t.Context(), batchOf("select 1", "select version()")).Close()
		}); err != nil {
			t.Error(err)
		}
		if wrote := pool.primary.written(&pool.primary.session).position > 0; wrote != want {
			t.Errorf("calling a %v in a batch has written: %v", access, wrote)
		}
	}
	if pool.Config().Functions["locks"] != Write {
		t.Error("Config has lost the functions")
	}
}

func TestFunctionsConfig(t *testing.T) {
	config, err := ParseConfig("postgres://localhost/db")
	if err != nil {
		t.Fatal(err)
	}
	for name, access := range map[string]Access{"f": Write, "_f$1": Read, "größe": Read, strings.Repeat("f", 63): Read} {
		config.Functions = map[string]Access{name: access}
		if err := config.normalize(); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "F", "app.f", "f()", "f g", `"f"`, "1f", "$f", strings.Repeat("f", 64)} {
		config.Functions = map[string]Access{"ok": Read, name: Write}
		if err := config.normalize(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("Functions: %q", name)) {
			t.Errorf("%q: %v", name, err)
		}
	}
	config.Functions = map[string]Access{"f": 7}
	if _, err := NewPoolWithConfig(t.Context(), config); err == nil || !strings.Contains(err.Error(), `Functions: "f"`) {
		t.Error(err)
	}
	config.Functions = map[string]Access{"f": Write}
	config.Copy().Functions["f"] = Read
	if config.Functions["f"] != Write {
		t.Error("a copy shares the functions")
	}
}
