package flyregion

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
)

// TestBackslashes searches with a backslash in a plain string, which means one thing only where sessions say that
// standard_conforming_strings is on.
func TestBackslashes(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	for _, c := range []struct {
		name    string
		change  func(*Config)
		replica bool
	}{
		{"as a server is", func(*Config) {}, true},
		{"off for the app", func(c *Config) { c.ConnConfig.RuntimeParams["standard_conforming_strings"] = "off" }, false},
		{"off when it has connected", func(c *Config) {
			c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
				_, err := conn.Exec(ctx, "set standard_conforming_strings = off")
				return err
			}
		}, false},
	} {
		pool := poolIn(t, cluster, "ord", c.change)
		err := pool.Ping(ctx)
		if sqlState(err) == "0A000" && !c.replica {
			continue // PostgreSQL 19 knows no other strings
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(ctx, "select 1"); err != nil {
			t.Fatal(err)
		}
		sql := `select current_setting('transaction_' || 'read_only') = 'on', 'a_b' like 'a\_b' escape E'\\', 'a' ilike $1 escape '\'`
		if !c.replica {
			sql = `select current_setting('transaction_' || 'read_only') = 'on', true, 'a' ilike $1 escape '\\' and '\'' <> ''`
		}
		var replica, like, ilike bool
		if err := pool.QueryRow(ctx, sql, "A").Scan(&replica, &like, &ilike); err != nil || replica != c.replica || !like || !ilike {
			t.Errorf("%s: the replica answers: %v, %v, %v, %v", c.name, replica, like, ilike, err)
		}
	}
}
