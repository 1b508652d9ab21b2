package flyregion

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// standbyFails makes a stable function fails_<name>(code, i) that fails with code on a standby where i is 3, and returns i
// elsewhere.
func standbyFails(t *testing.T, exec func(context.Context, string) error, name string) (function string) {
	t.Helper()
	function = "fails_" + name
	err := exec(t.Context(), `create function `+function+`(code text, i int default 3) returns int stable language plpgsql as $$
		begin
			if i = 3 and pg_catalog.pg_is_in_recovery() then
				raise exception 'as on a standby' using errcode = code;
			end if;
			return i;
		end $$`)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := exec(context.Background(), "drop function "+function); err != nil {
			t.Error(err)
		}
	})
	return function
}

// TestReadsThatAStandbyCannotRun checks that errors which are the standby's own trouble never reach the app, and are no
// reason to keep a text from the replica.
func TestReadsThatAStandbyCannotRun(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	leader := func(ctx context.Context, sql string) error { return cluster.Leader().Exec(ctx, sql) }
	function := standbyFails(t, leader, name)
	pool := poolIn(t, cluster, "ord")
	ctx := t.Context()
	if err := cluster.Server("ord").WaitReplayed(ctx); err != nil {
		t.Fatal(err)
	}

	for _, code := range []string{"58P01", "58030", "53000", "53100", "53200", "53300", "53400", "XX001", "XX002", "55P03", "40001", "40P01"} {
		sql := fmt.Sprintf("select %s('%s')", function, code)
		for range 2 {
			var n int
			if err := pool.QueryRow(ctx, sql).Scan(&n); n != 3 || err != nil {
				t.Errorf("%s: %d, %v", code, n, err)
			}
		}
		if rt := pool.router.route(ctx, sql, nil); rt.to != targetReplica {
			t.Errorf("%s: the text is kept from the replica: %s", code, rt.why)
		}
		// Behind its first row a read does not move: the app has seen the row.
		rows, _ := pool.Query(ctx, fmt.Sprintf("select repeat('x', 20000), %s('%s', i) from generate_series(1, 5) i", function, code))
		for rows.Next() {
		}
		var pgErr *pgconn.PgError
		if err := rows.Err(); !errors.As(err, &pgErr) || pgErr.Code != code {
			t.Errorf("%s behind rows: %v", code, err)
		}
	}

	t.Run("value of an enum", func(t *testing.T) {
		if err := leader(ctx, "create type mood_"+name+" as enum ('sad')"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = leader(context.Background(), "drop type mood_"+name) })
		thaw := freeze(t, cluster)
		defer thaw()
		// Made by somebody else: the pool does not know that it has to wait.
		if err := leader(ctx, "alter type mood_"+name+" add value 'glad'"); err != nil {
			t.Fatal(err)
		}
		var mood string
		if err := pool.QueryRow(ctx, "select 'glad'::mood_"+name+"::text").Scan(&mood); mood != "glad" || err != nil {
			t.Errorf("%q, %v", mood, err)
		}
		// What is wrong everywhere does not cross the sea.
		before := cluster.Link("ord", "nrt").Turns()
		var n int
		if err := pool.QueryRow(ctx, "select 'x'::int").Scan(&n); err == nil {
			t.Error("no error")
		}
		if turns := cluster.Link("ord", "nrt").Turns() - before; turns > 0 {
			t.Errorf("asked the primary %d times what is no number", turns)
		}
	})
}

// TestWriteBehindTheFirstRow checks that a text which the replica refuses behind its first row works the second time.
func TestWriteBehindTheFirstRow(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	ctx := t.Context()
	err := cluster.Leader().Exec(ctx, "create function w_"+name+"(i int) returns int language sql as 'insert into "+name+" values (i) returning id'")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.Leader().Exec(context.Background(), "drop function w_"+name) })
	if err := cluster.Server("ord").WaitReplayed(ctx); err != nil {
		t.Fatal(err)
	}
	// The config says that it reads, which is wrong.
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.Functions = map[string]Access{"w_" + name: Read} })

	// The rows before the one that writes fill a packet, so that they arrive alone.
	sql := "select repeat('x', 20000), case when i > 3 then w_" + name + "(i) else i end from generate_series(1, 5) i"
	read := func() (n int, err error) {
		rows, err := pool.Query(ctx, sql)
		if err != nil {
			return 0, err
		}
		defer rows.Close()
		for rows.Next() {
			n++
		}
		return n, rows.Err()
	}
	var pgErr *pgconn.PgError
	if n, err := read(); n == 0 || !errors.As(err, &pgErr) || pgErr.Code != "25006" {
		t.Fatalf("first try: %d rows, %v", n, err)
	}
	if n, err := read(); n != 5 || err != nil {
		t.Errorf("second try: %d rows, %v", n, err)
	}

	// A QueryRow has delivered nothing before its end, and moves at once.
	var text string
	var n int
	if err := pool.QueryRow(ctx, sql+" order by i").Scan(&text, &n); n != 1 || err != nil {
		t.Errorf("one row: %d, %v", n, err)
	}
	var written int
	if err := pool.QueryRow(ctx, "select count(*) from "+name).Scan(&written); written != 4 || err != nil {
		t.Errorf("%d rows were written, %v", written, err)
	}
}

// collector is a Scanner that keeps all it is given.
type collector struct{ got []string }

func (c *collector) Scan(v any) error {
	c.got = append(c.got, fmt.Sprint(v))
	return nil
}

// TestRowIsScannedOnce checks that a QueryRow which moves behind its row scans only the answer of the primary.
func TestRowIsScannedOnce(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	function := standbyFails(t, func(ctx context.Context, sql string) error { return cluster.Leader().Exec(ctx, sql) }, name)
	if err := cluster.Server("ord").WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}
	pool := poolIn(t, cluster, "ord")

	var c collector
	sql := "select i::text || (" + function + "('40001', i) * 0)::text from generate_series(1, 5) i"
	if err := pool.QueryRow(t.Context(), sql).Scan(&c); err != nil || len(c.got) != 1 || c.got[0] != "10" {
		t.Errorf("scanned %q, %v", c.got, err)
	}
}

// TestPanicInScanAfterAMove checks that no connection is lost when the app panics in the row of a read that has moved.
func TestPanicInScanAfterAMove(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	unloggedTable(t, cluster, "u_"+name, "values (1), (2)")
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxConns = 2 })

	for _, sql := range []string{"select id from u_" + name, "select id from u_" + name + " where id > 1"} {
		for range 4 {
			func() {
				defer func() {
					if recover() == nil {
						t.Error("no panic")
					}
				}()
				_ = pool.QueryRow(t.Context(), sql).Scan(panickyScanner{})
			}()
		}
	}
	eventually(t, "all connections are back", func() bool { return pool.Stat().AcquiredConns() == 0 })
	closed := make(chan struct{})
	go func() {
		pool.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(30 * time.Second):
		t.Fatal("Close does not return")
	}
}

// TestArgumentsChangeAfterQuery checks that a read which moves is sent with the arguments as they were when it was called.
func TestArgumentsChangeAfterQuery(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	unloggedTable(t, cluster, "u_"+name, "values (1), (2)")
	ctx := t.Context()

	value, text, bytes, list := 1, "1", []byte("1"), []int32{1}
	for _, c := range []struct {
		kind, where string
		arg         any
		change      func(args []any)
	}{
		{"element", "id = $1", 1, func(args []any) { args[0] = 2 }},
		{"pointer", "id = $1", &value, func([]any) { value = 2 }},
		{"pointer to text", "id::text = $1", &text, func([]any) { text = "2" }},
		{"bytes", "convert_to(id::text, 'utf8') = $1::bytea", bytes, func([]any) { bytes[0] = '2' }},
		{"slice", "id = any($1::int[])", list, func([]any) { list[0] = 2 }},
	} {
		sql := "select id from u_" + name + " where " + c.where
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec} {
			t.Run(c.kind+" "+mode.String(), func(t *testing.T) {
				value, text, bytes[0], list[0] = 1, "1", '1', 1
				pool := poolIn(t, cluster, "ord")
				args := []any{mode, c.arg}
				rows, err := pool.Query(ctx, sql, args...)
				if err != nil {
					t.Fatal(err)
				}
				c.change(args[1:])
				if n, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int]); n != 1 || err != nil {
					t.Errorf("rows: %d, %v", n, err)
				}

				value, text, bytes[0], list[0] = 1, "1", '1', 1
				args = []any{mode, c.arg}
				row := pool.QueryRow(ctx, "select max(id) from ("+sql+") x", args...)
				c.change(args[1:])
				var n int
				if err := row.Scan(&n); n != 1 || err != nil {
					t.Errorf("row: %d, %v", n, err)
				}
			})
		}
	}
}

// TestSecondScan checks that a row can be scanned once.
func TestSecondScan(t *testing.T) {
	cluster := sharedCluster(t)
	row := poolIn(t, cluster, "ord").QueryRow(t.Context(), "select 1")
	var n int
	if err := row.Scan(&n); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
	if err := row.Scan(&n); !errors.Is(err, pgx.ErrNoRows) {
		t.Errorf("a second Scan returns %v", err)
	}
}
