package flyregion

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// hasCause reports whether a span has an error whose message contains a text.
func hasCause(span sdktrace.ReadOnlySpan, message string) bool {
	events := span.Events()
	return len(events) == 1 && strings.Contains(attrIn(attribute.NewSet(events[0].Attributes...), "exception.message"), message)
}

// checkCause checks what a span tells of the error that brought its statement to the primary.
func checkCause(t *testing.T, span sdktrace.ReadOnlySpan, message, code string) {
	t.Helper()
	if message == "" {
		if len(span.Events()) > 0 {
			t.Errorf("the span has the events %v", span.Events())
		}
		return
	}
	if len(span.Events()) != 1 || span.Events()[0].Name != "exception" {
		t.Fatalf("the span has the events %v, want one exception", span.Events())
	}
	set := attribute.NewSet(span.Events()[0].Attributes...)
	if got := attrIn(set, "exception.message"); !strings.Contains(got, message) {
		t.Errorf("the cause is %q, want %q", got, message)
	}
	if got := attrIn(set, "db.response.status_code"); got != code {
		t.Errorf("the SQLSTATE is %q, want %q", got, code)
	}
	if attrIn(set, "exception.type") == "" {
		t.Error("the cause has no type")
	}
}

// A cause tells nothing of a statement's arguments.
func TestCauseHasNoArguments(t *testing.T) {
	reset := &net.OpError{Op: "read", Net: "tcp", Err: errors.New("connection reset by peer")}
	for _, test := range []struct {
		why                   reason
		cause                 error
		kind, message, status string
	}{
		{becauseMissing, &pgconn.PgError{Severity: "ERROR", Code: "22P02", Message: `invalid input value for enum mood: "hidden"`}, "*pgconn.PgError", "", "22P02"},
		{becauseConflict, fmt.Errorf("wrapped: %w", &pgconn.PgError{Severity: "ERROR", Code: "40001", Message: "canceled", Detail: "hidden"}),
			"*pgconn.PgError", "wrapped: ERROR: canceled (SQLSTATE 40001)", "40001"},
		{becauseLost, fmt.Errorf("failed to encode args[0]: %v", `unable to encode "hidden"`), "*errors.errorString", "", ""},
		{becauseLost, fmt.Errorf("read failed: %w", reset), "*fmt.wrapError", "read failed: read tcp: connection reset by peer", ""},
		{becauseLost, io.ErrUnexpectedEOF, "*errors.errorString", "unexpected EOF", ""},
		{becauseUnreachable, errors.New("vault is sealed"), "*errors.errorString", "vault is sealed", ""},
	} {
		set := attribute.NewSet(causeAttributes(test.why, test.cause)...)
		for key, want := range map[attribute.Key]string{
			"exception.type": test.kind, "exception.message": test.message, "db.response.status_code": test.status,
		} {
			if got := attrIn(set, key); got != want {
				t.Errorf("%v: %s is %q, want %q", test.cause, key, got, want)
			}
		}
		for _, attr := range set.ToSlice() {
			if strings.Contains(attr.Value.String(), "hidden") {
				t.Errorf("%v: %s shows the argument", test.cause, attr.Key)
			}
		}
	}
}

// Whichever way a read was made, the span of its run on the primary tells why it left the replica.
func TestCauseInEveryWay(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	inserts, writes := uniqueName("f"), uniqueName("f")
	// The replica is asked for what pretends to read only.
	if err := cluster.Leader().Exec(t.Context(), fmt.Sprintf(`create function %s() returns int language sql as 'insert into %s values (1) returning id';
		create function %s() returns int stable language sql as 'select %[1]s()'`, inserts, name, writes)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Leader().Exec(context.Background(), "drop function "+writes+", "+inserts); err != nil {
			t.Error(err)
		}
	})
	if err := cluster.Server("ord").WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}

	query := "select " + writes + "()"
	var one int
	for way, run := range map[string]func(ctx context.Context, pool *Pool) error{
		"Exec": func(ctx context.Context, pool *Pool) error {
			_, err := pool.Exec(ctx, query)
			return err
		},
		"Query": func(ctx context.Context, pool *Pool) error {
			rows, err := pool.Query(ctx, query)
			if err != nil {
				return err
			}
			_, err = pgx.CollectRows(rows, pgx.RowTo[int])
			return err
		},
		"QueryRow": func(ctx context.Context, pool *Pool) error { return pool.QueryRow(ctx, query).Scan(&one) },
		"SendBatch": func(ctx context.Context, pool *Pool) error {
			return pool.SendBatch(ctx, batchOf("select 1", query)).Close()
		},
		"BeginTx": func(ctx context.Context, pool *Pool) error {
			// On the primary it is refused too, as the transaction is read-only.
			return refusedToo(pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
				return tx.QueryRow(ctx, query).Scan(&one)
			}))
		},
		"sql.DB": func(ctx context.Context, pool *Pool) error {
			db := OpenDB(pool)
			defer db.Close()
			return db.QueryRowContext(ctx, query).Scan(&one)
		},
		"sql.Tx": func(ctx context.Context, pool *Pool) error {
			db := OpenDB(pool)
			defer db.Close()
			tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
			if err != nil {
				return err
			}
			defer func() { _ = tx.Rollback() }()
			return refusedToo(tx.QueryRowContext(ctx, query).Scan(&one))
		},
	} {
		t.Run(way, func(t *testing.T) {
			telemetry := record(t)
			pool := poolIn(t, cluster, "ord", telemetry.into)
			if err := run(t.Context(), pool); err != nil {
				t.Fatal(err)
			}
			span := telemetry.only(t, spanForward)
			if got := attrOf(span, attrReason).AsString(); got != string(becauseRefused) {
				t.Errorf("the reason is %q", got)
			}
			if got := attrOf(span, attrRegion).AsString(); got != "ord" {
				t.Errorf("the region is %q", got)
			}
			checkCause(t, span, "cannot execute INSERT in a read-only transaction", "25006")
		})
	}
}

// refusedToo returns nil for a refusal to write, and an error if there was none.
func refusedToo(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "25006" {
		return nil
	}
	return fmt.Errorf("a write in a read-only transaction: %w", err)
}
