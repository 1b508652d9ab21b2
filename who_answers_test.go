package flyregion

import (
	"context"
	"database/sql"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A statement that asks which server answers is a read, and runs where reads run.
func TestWhoAnswers(t *testing.T) {
	cluster := sharedCluster(t)
	pool := poolIn(t, cluster, "ord")
	db := OpenDB(pool)
	t.Cleanup(func() { _ = db.Close() })
	ctx := t.Context()
	const question = "select pg_is_in_recovery()"

	inTx := func(options pgx.TxOptions) func(context.Context) (bool, error) {
		return func(ctx context.Context) (standby bool, err error) {
			tx, err := pool.BeginTx(ctx, options)
			if err != nil {
				return false, err
			}
			defer tx.Rollback(context.Background())
			return standby, tx.QueryRow(ctx, question).Scan(&standby)
		}
	}
	for _, way := range []struct {
		name    string
		replica bool // where it runs if the context does not say
		ask     func(context.Context) (bool, error)
	}{
		{"QueryRow", true, func(ctx context.Context) (standby bool, err error) {
			return standby, pool.QueryRow(ctx, question).Scan(&standby)
		}},
		{"Query", true, func(ctx context.Context) (bool, error) {
			rows, err := pool.Query(ctx, question)
			if err != nil {
				return false, err
			}
			return pgx.CollectExactlyOneRow(rows, pgx.RowTo[bool])
		}},
		{"SendBatch", true, func(ctx context.Context) (standby bool, err error) {
			results := pool.SendBatch(ctx, batchOf(question, "show port"))
			if err := results.QueryRow().Scan(&standby); err != nil {
				return false, err
			}
			return standby, results.Close()
		}},
		{"read-only transaction", true, inTx(pgx.TxOptions{AccessMode: pgx.ReadOnly})},
		{"transaction", false, inTx(pgx.TxOptions{})},
		{"acquired connection", false, func(ctx context.Context) (standby bool, err error) {
			return standby, pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return c.QueryRow(ctx, question).Scan(&standby) })
		}},
		{"sql.DB", true, func(ctx context.Context) (standby bool, err error) {
			return standby, db.QueryRowContext(ctx, question).Scan(&standby)
		}},
		{"sql.Tx", false, func(ctx context.Context) (standby bool, err error) {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return false, err
			}
			defer func() { _ = tx.Rollback() }()
			return standby, tx.QueryRowContext(ctx, question).Scan(&standby)
		}},
		{"read-only sql.Tx", true, func(ctx context.Context) (standby bool, err error) {
			tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
			if err != nil {
				return false, err
			}
			defer func() { _ = tx.Rollback() }()
			return standby, tx.QueryRowContext(ctx, question).Scan(&standby)
		}},
	} {
		for _, told := range []struct {
			name string
			ctx  context.Context
			want bool
		}{
			{"no word", ctx, way.replica},
			{"WithPrimary", WithPrimary(ctx), false},
			{"WithReplica", WithReplica(ctx), true},
		} {
			if standby, err := way.ask(told.ctx); err != nil || standby != told.want {
				t.Errorf("%s, %s: a standby answers: %v, want %v (%v)", way.name, told.name, standby, told.want, err)
			}
		}
	}

	// Each server has a port and a start of its own. Whether one may write is what the primary says.
	text := func(ctx context.Context, sql string) (answer string) {
		t.Helper()
		if err := pool.QueryRow(ctx, sql).Scan(&answer); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return answer
	}
	for _, sql := range []string{
		"select inet_server_port()::text", "select host(inet_server_addr()) || inet_server_port()", "show port", "select current_setting('port')",
		"select pg_postmaster_start_time()::text", "select cast(pg_is_in_recovery() as text)",
	} {
		here, far := text(ctx, sql), text(WithPrimary(ctx), sql)
		var replica, primary string
		if err := queryOne(ctx, cluster.Server("ord"), sql, &replica); err != nil {
			t.Fatal(err)
		}
		if err := queryOne(ctx, cluster.Leader(), sql, &primary); err != nil {
			t.Fatal(err)
		}
		if here != replica || far != primary || here == far {
			t.Errorf("%s: %s, and %s WithPrimary; the servers say %s and %s", sql, here, far, replica, primary)
		}
	}
	for _, name := range []string{"transaction_read_only", "default_transaction_read_only", "in_hot_standby"} {
		for _, sql := range []string{"show " + name, fmt.Sprintf("select current_setting('%s')", name)} {
			if got := text(ctx, sql); got != "off" {
				t.Errorf("%s: %s", sql, got)
			}
		}
	}
}
