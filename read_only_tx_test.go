package flyregion

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
)

// TestReadOnlyTxBeginsWhereItsFirstStatementBelongs has transactions begin with what only the primary can answer, in all
// the ways that a transaction has, and checks that what follows runs in the same place.
func TestReadOnlyTxBeginsWhereItsFirstStatementBelongs(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	unloggedTable(t, cluster, "u_"+name, "values (1)")
	ctx := t.Context()

	ways := []struct {
		name string
		run  func(tx pgx.Tx, sql string) error
	}{
		{"exec", func(tx pgx.Tx, sql string) error {
			_, err := tx.Exec(ctx, sql)
			return err
		}},
		{"query", func(tx pgx.Tx, sql string) error {
			rows, err := tx.Query(ctx, sql)
			if err != nil {
				return err
			}
			for rows.Next() {
				if _, err := rows.Values(); err != nil {
					return err
				}
			}
			return rows.Err()
		}},
		{"query row", func(tx pgx.Tx, sql string) error {
			var text string
			return tx.QueryRow(ctx, sql).Scan(&text)
		}},
		{"prepare", func(tx pgx.Tx, sql string) error {
			if _, err := tx.Prepare(ctx, "p_"+name, sql); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "p_"+name)
			return err
		}},
		{"batch", func(tx pgx.Tx, sql string) error {
			b := &pgx.Batch{}
			b.Queue("select 1")
			b.Queue(sql)
			return tx.SendBatch(ctx, b).Close()
		}},
	}
	for _, c := range []struct {
		first     string
		inText    bool // the text shows where it belongs
		onPrimary bool
	}{
		{first: "select pg_try_advisory_xact_lock(hashtext('" + name + "'))::text", inText: true, onPrimary: true},
		{first: "select txid_current()::text", inText: true, onPrimary: true},
		{first: "select pg_notify('c', 'x')::text", inText: true, onPrimary: true},
		{first: "select id::text from u_" + name, onPrimary: true},
		{first: "select 1::text"},
		{first: "select set_config('app.tenant', 'x', true)"},
		{first: "select current_setting('transaction_' || 'read_only')"},
	} {
		for _, way := range ways {
			if !c.inText && c.onPrimary && (way.name == "batch" || way.name == "prepare") {
				continue // such a batch is not run twice; a prepared statement fails when it runs, which is no longer first
			}
			t.Run(way.name+" "+c.first, func(t *testing.T) {
				pool := poolIn(t, cluster, "ord")
				tx, err := pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
				if err != nil {
					t.Fatal(err)
				}
				if err := way.run(tx, c.first); err != nil {
					t.Error(err)
				}
				var standby, readOnly bool
				err = tx.QueryRow(ctx, "select pg_is_in_recovery(), current_setting('transaction_' || 'read_only') = 'on'").Scan(&standby, &readOnly)
				if err != nil || standby == c.onPrimary || !readOnly {
					t.Errorf("on a standby: %t, read-only: %t, %v", standby, readOnly, err)
				}
				if err := tx.Commit(ctx); err != nil {
					t.Error(err)
				}
				if n := pool.Stat().AcquiredConns(); n != 0 {
					t.Errorf("%d connections are in use", n)
				}
			})
		}
	}

	t.Run("stays under WithReplica", func(t *testing.T) {
		pool := poolIn(t, cluster, "ord")
		tx, err := pool.BeginTx(WithReplica(ctx), pgx.TxOptions{AccessMode: pgx.ReadOnly})
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(ctx)
		if _, err := tx.Exec(ctx, "select id from u_"+name); err == nil {
			t.Error("no error")
		}
	})
	t.Run("stays when something has run", func(t *testing.T) {
		pool := poolIn(t, cluster, "ord")
		tx, err := pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(ctx)
		if _, err := tx.Exec(ctx, "select 1"); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(ctx, "select id from u_"+name); err == nil {
			t.Error("no error")
		}
	})
	t.Run("stays under a context that has ended", func(t *testing.T) {
		pool := poolIn(t, cluster, "ord")
		tx, err := pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(ctx)
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := tx.Exec(ended, "select txid_current()"); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		if n := pool.Primary().Stat().NewConnsCount(); n != 0 {
			t.Errorf("%d connections to the primary were made", n)
		}
	})
	t.Run("primary that cannot be reached", func(t *testing.T) {
		pool := poolIn(t, cluster, "ord")
		link := cluster.Link("ord", "nrt")
		link.Cut()
		defer link.Restore()
		tx, err := pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(ctx, "select txid_current()"); err == nil {
			t.Error("no error")
		}
		_ = tx.Rollback(context.Background())
		if n := pool.Stat().AcquiredConns(); n != 0 {
			t.Errorf("%d connections are in use", n)
		}
	})
}

// TestEndedReadOnlyTx holds a read-only transaction that has ended, used or not, to what pgx does: nothing runs in it any
// more, on any server.
func TestEndedReadOnlyTx(t *testing.T) {
	cluster := sharedCluster(t)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	ends := map[string]func(pgx.Tx) error{
		"commit":            func(tx pgx.Tx) error { return tx.Commit(t.Context()) },
		"rollback":          func(tx pgx.Tx) error { return tx.Rollback(t.Context()) },
		"commit canceled":   func(tx pgx.Tx) error { return tx.Commit(canceled) },
		"rollback canceled": func(tx pgx.Tx) error { return tx.Rollback(canceled) },
	}
	for name, end := range ends {
		for _, sql := range []string{"select 1", "select txid_current()"} {
			t.Run(name+" "+sql, func(t *testing.T) {
				ctx, pool := t.Context(), poolIn(t, cluster, "ord")
				tx, err := pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
				if err != nil {
					t.Fatal(err)
				}
				_ = end(tx)
				_, execErr := tx.Exec(ctx, sql)
				_, queryErr := tx.Query(ctx, sql)
				rowErr := tx.QueryRow(ctx, sql).Scan(nil)
				_, prepareErr := tx.Prepare(ctx, "", sql)
				batchErr := tx.SendBatch(ctx, batchOf(sql)).Close()
				for _, err := range []error{execErr, queryErr, rowErr, prepareErr, batchErr} {
					if !errors.Is(err, pgx.ErrTxClosed) {
						t.Errorf("%v, want %v", err, pgx.ErrTxClosed)
					}
				}
				eventually(t, "no connection is in use", func() bool { return pool.Stat().AcquiredConns() == 0 })
			})
		}
	}
}
