package flyregion

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// readerValuer gives what is left in a reader.
type readerValuer struct{ r io.Reader }

func (v readerValuer) Value() (driver.Value, error) {
	b, err := io.ReadAll(v.r)
	return string(b), err
}

// bufferValuer is a reader itself.
type bufferValuer struct{ *bytes.Buffer }

func (v bufferValuer) Value() (driver.Value, error) { return readerValuer{v.Buffer}.Value() }

// funcValuer gives what a function gives.
type funcValuer func() string

func (v funcValuer) Value() (driver.Value, error) { return v(), nil }

// seqValuer gives what an iterator that can be run once gives.
type seqValuer struct{ seq iter.Seq[string] }

func (v seqValuer) Value() (driver.Value, error) {
	for s := range v.seq {
		return s, nil
	}
	return nil, errors.New("nothing left")
}

// chanValuer gives what is in a channel.
type chanValuer chan string

func (v chanValuer) Value() (driver.Value, error) {
	select {
	case s := <-v:
		return s, nil
	default:
		return nil, errors.New("nothing left")
	}
}

// deepValuer has its reader where it is not seen at once.
type deepValuer struct{ parts []map[string]any }

func (v deepValuer) Value() (driver.Value, error) { return v.parts[0]["body"].(driver.Valuer).Value() }

// consumableArguments make arguments that stand for the text "5" when they are looked at for the first time, and for
// something else afterwards.
var consumableArguments = map[string]func() any{
	"reader":            func() any { return readerValuer{strings.NewReader("5")} },
	"pointer to reader": func() any { return &readerValuer{io.LimitReader(strings.NewReader("55"), 1)} },
	"buffer":            func() any { return bufferValuer{bytes.NewBufferString("5")} },
	"function": func() any {
		n := 4
		return funcValuer(func() string { n++; return fmt.Sprint(n) })
	},
	"iterator": func() any {
		left := []string{"5"}
		return seqValuer{func(yield func(string) bool) {
			if len(left) > 0 {
				s := left[0]
				left = left[1:]
				yield(s)
			}
		}}
	},
	"channel": func() any {
		c := make(chanValuer, 1)
		c <- "5"
		return c
	},
	"deep": func() any {
		return deepValuer{[]map[string]any{{"body": readerValuer{strings.NewReader("5")}}}}
	},
}

// TestConsumableArguments runs what looks like a read, and is refused by the replica as a write, with arguments that can be
// used once. They must not be used a second time for the run on the primary.
func TestConsumableArguments(t *testing.T) {
	cluster := dropInCluster(t)
	s, done := newSubject(t, cluster, "two regions", nil)
	defer done()
	s.warm(t.Context())
	db := OpenDB(s.ours)
	defer db.Close()

	// Each text has a shape of its own, as those that were refused once are not sent to the replica again.
	texts := 0
	text := func(argument string) string {
		texts++
		return fmt.Sprintf("select hidden(%s::text::int) as c%d", argument, texts)
	}
	runs := map[string]func(ctx context.Context, arg any) (int, error){
		"query row": func(ctx context.Context, arg any) (n int, err error) {
			return n, s.QueryRow(ctx, text("$1"), arg).Scan(&n)
		},
		"query": func(ctx context.Context, arg any) (int, error) {
			rows, _ := s.Query(ctx, text("$1"), pgx.QueryResultFormats{pgx.TextFormatCode}, arg)
			return pgx.CollectExactlyOneRow(rows, pgx.RowTo[int])
		},
		"exec": func(ctx context.Context, arg any) (n int, err error) {
			if _, err := s.Exec(ctx, text("$1"), arg); err != nil {
				return 0, err
			}
			return n, s.QueryRow(ctx, "select max(id) from w").Scan(&n)
		},
		"named": func(ctx context.Context, arg any) (n int, err error) {
			return n, s.QueryRow(ctx, text("@a"), pgx.NamedArgs{"a": arg}).Scan(&n)
		},
		"strictly named": func(ctx context.Context, arg any) (n int, err error) {
			return n, s.QueryRow(ctx, text("@a"), pgx.StrictNamedArgs{"a": arg}).Scan(&n)
		},
		"hint": func(ctx context.Context, arg any) (n int, err error) {
			return n, s.QueryRow(ctx, "/* flyregion:replica */ "+text("$1"), arg).Scan(&n)
		},
		"batch": func(ctx context.Context, arg any) (n int, err error) {
			b := batchOf("select 1")
			b.Queue(text("$1"), arg).QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
			return n, s.SendBatch(ctx, b).Close()
		},
		"after the batch's refusal": func(ctx context.Context, arg any) (n int, err error) {
			b := &pgx.Batch{}
			b.Queue(text("$1"), "6")
			b.Queue("select $1::text::int", arg).QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
			return n, s.SendBatch(ctx, b).Close()
		},
		"database/sql": func(ctx context.Context, arg any) (n int, err error) {
			return n, db.QueryRowContext(ctx, text("$1"), arg).Scan(&n)
		},
		"database/sql prepared": func(ctx context.Context, arg any) (n int, err error) {
			stmt, err := db.PrepareContext(ctx, text("$1"))
			if err != nil {
				return 0, err
			}
			defer stmt.Close()
			return n, stmt.QueryRowContext(ctx, arg).Scan(&n)
		},
	}
	for kind, argument := range consumableArguments {
		for how, run := range runs {
			t.Run(kind+" by "+how, func(t *testing.T) {
				if err := cluster.Leader().Exec(t.Context(), "delete from dropin.w"); err != nil {
					t.Fatal(err)
				}
				if n, err := run(t.Context(), argument()); err != nil || n != 5 {
					t.Errorf("it was %d, %v, want 5", n, err)
				}
			})
		}
	}

	// What can be used any number of times is read where the app is.
	if err := s.ours.WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}
	type myInt int
	five := 5
	for _, arg := range []any{5, int64(5), "5", []byte("5"), &five, myInt(5), nil, []int{5}, [2]int{}, struct{ A int }{5}, pgx.NamedArgs{}, valueOf{5}, &valueOf{5}} {
		t.Run(fmt.Sprintf("%T goes to the replica", arg), func(t *testing.T) {
			s.t = t
			check := s.watch(onReplicaOnly)
			rows, _ := s.Query(t.Context(), "select $1::text", arg)
			rows.Close()
			check()
		})
	}
}

// valueOf is a Valuer that always gives the same.
type valueOf struct{ n int }

func (v valueOf) Value() (driver.Value, error) { return fmt.Sprint(v.n), nil }
