package flyregion

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// batchCluster is dropInCluster with a function that fails behind its third row as replay's conflicts do, and with an
// operator that inserts, which no text shows.
func batchCluster(t *testing.T) *pgcluster.Cluster {
	t.Helper()
	return withBatches(t, dropInCluster(t))
}

// withBatches gives a cluster that withDropIn has changed what batchCluster has.
func withBatches(t *testing.T, cluster *pgcluster.Cluster) *pgcluster.Cluster {
	t.Helper()
	err := cluster.Leader().Exec(t.Context(), `
		set search_path = dropin;
		create function fails_at(i int, at int, code text) returns int stable language plpgsql as
			'begin if i = at then raise exception using errcode = code, message = code; end if; return i; end';
		create operator !!! (function = hidden, rightarg = int);
		create unlogged table unlogged (id int);
		insert into unlogged values (7)`)
	if err != nil {
		t.Fatal(err)
	}
	return cluster
}

// batchModes are the ways in which pgx sends batches.
var batchModes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
}

// failsAt is a query of five rows that fails with a SQLSTATE at one of them.
func failsAt(row int, code string) string {
	return fmt.Sprintf("select fails_at(i, %d, '%s') from generate_series(1, 5) i", row, code)
}

// TestBatchFailures reads batches, one query of which fails in front of, at or behind its first row, in all ways and
// modes, and compares them with those of pgxpool.
func TestBatchFailures(t *testing.T) {
	t.Parallel()
	cluster := withBatches(t, withDropIn(t, ownCluster(t, nil)))
	for _, mode := range batchModes {
		t.Run(mode.String(), func(t *testing.T) {
			saw := map[string][][]string{}
			var names []string
			for _, kind := range []string{"pgxpool", "two regions"} {
				s, done := newSubject(t, cluster, kind, func(_ *subject, c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
				defer done()
				s.warm(t.Context())
				for _, code := range []string{"40001", "57P01", "42P01", "22012"} {
					for _, row := range []int{1, 4} {
						for _, reader := range batchReaders {
							// The failing one is in the middle, the first, and the last too.
							for _, b := range []*pgx.Batch{batchOf(fiveSQL, failsAt(row, code), "select 9", fiveSQL), batchOf(failsAt(row, code), "select 9"), batchOf(failsAt(row, code))} {
								s.saw = nil
								reader.read(t.Context(), s, b)
								s.note("destroyed", s.settled())
								saw[kind] = append(saw[kind], s.saw)
								names = append(names, fmt.Sprintf("%s at row %d, %s, %d queries", code, row, reader.how, b.Len()))
							}
						}
					}
				}
			}
			for i, want := range saw["pgxpool"] {
				if got := saw["two regions"][i]; !slices.Equal(got, want) {
					t.Errorf("%s differs from pgxpool:\n%s", names[i], difference(want, got))
				}
			}
		})
	}
}

// batchReaders are the ways in which an app reads the results of a batch of integers.
var batchReaders = []struct {
	how  string
	read func(context.Context, *subject, *pgx.Batch)
}{
	{"query", func(ctx context.Context, s *subject, b *pgx.Batch) {
		results := s.SendBatch(ctx, b)
		for range b.Len() + 1 {
			rows, err := results.Query()
			s.rows("rows", rows, err)
		}
		s.note("close", results.Close(), results.Close())
		_, err := results.Exec()
		s.note("closed", err)
	}},
	{"first query", func(ctx context.Context, s *subject, b *pgx.Batch) {
		results := s.SendBatch(ctx, b)
		rows, err := results.Query()
		s.rows("rows", rows, err)
		s.note("close", results.Close(), results.Close())
	}},
	{"query row", func(ctx context.Context, s *subject, b *pgx.Batch) {
		results := s.SendBatch(ctx, b)
		for range b.Len() + 1 {
			n := 0
			s.note("row", results.QueryRow().Scan(&n), n)
		}
		s.note("close", results.Close(), results.Close())
	}},
	{"exec", func(ctx context.Context, s *subject, b *pgx.Batch) {
		results := s.SendBatch(ctx, b)
		for range b.Len() + 1 {
			tag, err := results.Exec()
			s.note("exec", tag, err)
		}
		s.note("close", results.Close(), results.Close())
	}},
	{"close", func(ctx context.Context, s *subject, b *pgx.Batch) {
		results := s.SendBatch(ctx, b)
		s.note("close", results.Close(), results.Close())
		rows, err := results.Query()
		s.note("closed", err, rows.Err())
	}},
	{"callbacks", func(ctx context.Context, s *subject, b *pgx.Batch) {
		for i, q := range b.QueuedQueries {
			switch i % 4 {
			case 0:
				q.Query(func(rows pgx.Rows) error {
					s.rows(fmt.Sprint("rows of ", i), rows, nil)
					return rows.Err()
				})
			case 1:
				q.Query(func(rows pgx.Rows) error {
					s.rows(fmt.Sprint("rows of ", i), rows, nil)
					return nil
				})
			case 2:
				q.QueryRow(func(row pgx.Row) error {
					n := 0
					err := row.Scan(&n)
					s.note(fmt.Sprint("row of ", i), err, n)
					return err
				})
			case 3:
				q.Exec(func(tag pgconn.CommandTag) error {
					s.note(fmt.Sprint("tag of ", i), tag)
					return nil
				})
			}
		}
		results := s.SendBatch(ctx, b)
		s.note("close", results.Close(), results.Close())
	}},
	{"callbacks set later", func(ctx context.Context, s *subject, b *pgx.Batch) {
		results := s.SendBatch(ctx, b)
		for i, q := range b.QueuedQueries {
			q.Exec(func(tag pgconn.CommandTag) error {
				s.note(fmt.Sprint("tag of ", i), tag)
				if i == 2 {
					return errors.New("of the callback")
				}
				return nil
			})
		}
		s.note("close", results.Close(), results.Close())
	}},
	{"ignored errors", func(ctx context.Context, s *subject, b *pgx.Batch) {
		for i, q := range b.QueuedQueries {
			q.Fn = func(results pgx.BatchResults) error {
				tag, err := results.Exec()
				s.note(fmt.Sprint("tag of ", i), tag, err)
				return nil
			}
		}
		results := s.SendBatch(ctx, b)
		s.note("close", results.Close(), results.Close())
	}},
}

// hiddenArgument has a reference that nobody but its own package can copy.
type hiddenArgument struct{ text *string }

func (v hiddenArgument) Value() (driver.Value, error) { return *v.text, nil }

// openArgument is a Valuer whose method is that of its pointer.
type openArgument struct{ Text []string }

func (v *openArgument) Value() (driver.Value, error) { return v.Text[0], nil }

// countedArgument gives a higher number each time.
type countedArgument struct{ n int }

func (v *countedArgument) Value() (driver.Value, error) {
	v.n++
	return fmt.Sprint(v.n), nil
}

// TestBatchKeepsItsArguments changes the arguments of a batch when it has been sent, and before its queries move to the
// primary.
func TestBatchKeepsItsArguments(t *testing.T) {
	cluster := batchCluster(t)
	s, done := newSubject(t, cluster, "two regions", nil)
	defer done()
	ctx := t.Context()
	s.warm(ctx)

	texts := 0
	for _, test := range []struct {
		name string
		cast string
		// make returns an argument that stands for want, and a function that makes it stand for something else.
		make func() (arg any, change func())
		want string
	}{
		{"bytes", "bytea", func() (any, func()) { b := []byte("a"); return b, func() { b[0] = 'b' } }, `\x61`},
		{"pointer", "text", func() (any, func()) { s := "a"; return &s, func() { s = "b" } }, "a"},
		{"pointer to pointer", "text", func() (any, func()) {
			a, b := "a", "b"
			p := &a
			return &p, func() { p = &b; a = "c" }
		}, "a"},
		{"nil pointer", "text", func() (any, func()) { var s *string; return s, func() {} }, "NULL"},
		{"pointer to number", "int", func() (any, func()) { n := 1; return &n, func() { n = 2 } }, "1"},
		{"pointer to time", "timestamptz", func() (any, func()) {
			at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
			return &at, func() { at = at.Add(time.Hour) }
		}, "2026-01-02 03:04:05+00"},
		{"slice", "int[]", func() (any, func()) { s := []int{1, 2}; return s, func() { s[0] = 3 } }, "{1,2}"},
		{"slice of pointers", "text[]", func() (any, func()) {
			a := "a"
			return []*string{&a, nil}, func() { a = "b" }
		}, "{a,NULL}"},
		{"nil slice", "int[]", func() (any, func()) { var s []int; return s, func() {} }, "NULL"},
		{"empty slice", "int[]", func() (any, func()) { return []int{}, func() {} }, "{}"},
		{"any slice", "text[]", func() (any, func()) { s := []any{"a", "b"}; return s, func() { s[1] = "c" } }, "{a,b}"},
		{"map", "jsonb", func() (any, func()) {
			inner := []any{"a"}
			m := map[string]any{"k": inner}
			return m, func() { inner[0] = "b"; m["l"] = 1 }
		}, `{"k": ["a"]}`},
		{"struct", "jsonb", func() (any, func()) {
			v := struct{ A []int }{[]int{1}}
			return &v, func() { v.A[0] = 2 }
		}, `{"A": [1]}`},
		{"numeric", "numeric", func() (any, func()) {
			n := big.NewInt(12)
			return pgtype.Numeric{Int: n, Valid: true}, func() { n.SetInt64(13) }
		}, "12"},
		{"hstore", "text", func() (any, func()) {
			s := "a"
			return pgtype.Hstore{"k": &s}, func() { s = "b" }
		}, `"k"=>"a"`},
		{"array", "int[]", func() (any, func()) {
			a := pgtype.Array[int]{Elements: []int{1}, Dims: []pgtype.ArrayDimension{{Length: 1, LowerBound: 1}}, Valid: true}
			return a, func() { a.Elements[0] = 2 }
		}, "{1}"},
		{"address", "inet", func() (any, func()) {
			a := netip.MustParseAddr("10.0.0.1")
			return &a, func() { a = netip.MustParseAddr("10.0.0.2") }
		}, "10.0.0.1/32"},
		{"hidden", "text", func() (any, func()) { s := "a"; return hiddenArgument{&s}, func() { s = "b" } }, "a"},
		{"Valuer", "text", func() (any, func()) {
			v := &openArgument{[]string{"a"}}
			return v, func() { v.Text[0] = "b" }
		}, "a"},
		{"Valuer that counts", "text", func() (any, func()) { return &countedArgument{}, func() {} }, "1"},
		{"named", "text", func() (any, func()) {
			a := pgx.NamedArgs{"a": "a"}
			return a, func() { a["a"] = "b" }
		}, "a"},
		{"named pointer", "text", func() (any, func()) {
			s := "a"
			return pgx.StrictNamedArgs{"a": &s}, func() { s = "b" }
		}, "a"},
	} {
		t.Run(test.name, func(t *testing.T) {
			arg, change := test.make()
			place := "$1"
			switch arg.(type) {
			case pgx.NamedArgs, pgx.StrictNamedArgs:
				place = "@a"
			}
			texts++
			args := []any{arg}
			b := batchOf("select 1")
			// Each text has a shape of its own, as those that were refused once are not sent to the replica again. The replica
			// refuses this one when it is run, behind the first query.
			b.Queue(fmt.Sprintf("select coalesce((%s::%s)::text, 'NULL') as c%d from unlogged", place, test.cast, texts), args...)
			results := s.SendBatch(ctx, b)
			change()
			args[0] = "no argument"
			defer results.Close()
			if _, err := results.Exec(); err != nil {
				t.Fatal(err)
			}
			var got string
			if err := results.QueryRow().Scan(&got); err != nil || got != test.want {
				t.Errorf("%q, %v, want %q", got, err, test.want)
			}
		})
	}
}

// TestBatchArgumentsStayLocal has arguments that can be copied, and that keep no batch from the replica.
func TestBatchArgumentsStayLocal(t *testing.T) {
	cluster := batchCluster(t)
	s, done := newSubject(t, cluster, "two regions", nil)
	defer done()
	s.warm(t.Context())
	text, number, now := "a", 5, time.Now()
	for _, arg := range []any{
		1, "a", nil, []byte("a"), &text, &number, now, &now, []string{"a"}, []int32{1}, map[string]any{"a": []int{1}}, struct{ A *string }{&text},
		pgtype.Int4{Int32: 1, Valid: true}, pgtype.Numeric{Int: big.NewInt(1), Valid: true}, netip.MustParseAddr("::1"), netip.MustParsePrefix("10.0.0.0/8"),
		&openArgument{[]string{"a"}}, pgx.NamedArgs{"a": 1}, pgtype.Timestamptz{Time: now, Valid: true}, [16]byte{1}, []time.Time{now}, big.NewInt(3),
	} {
		t.Run(fmt.Sprintf("%T", arg), func(t *testing.T) {
			s.t = t
			check := s.watch(onReplicaOnly)
			b := &pgx.Batch{}
			b.Queue("select $1", arg)
			_ = s.SendBatch(t.Context(), b).Close()
			check()
		})
	}
}

// TestBatchRemembersRefusals runs batches whose texts write behind their first row, or in front of it: what the replica
// refuses once runs on the primary the next time.
func TestBatchRemembersRefusals(t *testing.T) {
	cluster := batchCluster(t)
	s, done := newSubject(t, cluster, "two regions", nil)
	defer done()
	ctx := t.Context()
	s.warm(ctx)
	texts := 0
	for how, read := range map[string]func(pgx.BatchResults) error{
		"query": func(results pgx.BatchResults) error {
			rows, _ := results.Query()
			_, err := pgx.CollectRows(rows, pgx.RowTo[int])
			return err
		},
		"query row": func(results pgx.BatchResults) error { return results.QueryRow().Scan(new(int)) },
		"exec": func(results pgx.BatchResults) error {
			_, err := results.Exec()
			return err
		},
		"close": func(results pgx.BatchResults) error { return results.Close() },
		"closed rows": func(results pgx.BatchResults) error {
			rows, _ := results.Query()
			rows.Close()
			return rows.Err()
		},
	} {
		t.Run(how, func(t *testing.T) {
			texts++
			// Many rows, so that the first of them is there long before the refusal.
			sql := fmt.Sprintf("select case when i > 20000 then !!!i else i end as c%d from generate_series(1, 20001) i", texts)
			for try := range 2 {
				if err := cluster.Leader().Exec(ctx, "delete from dropin.w"); err != nil {
					t.Fatal(err)
				}
				results := s.SendBatch(ctx, batchOf("select 'before'", sql, "select 'behind'"))
				if _, err := results.Exec(); err != nil {
					t.Error(err)
				}
				err := read(results)
				_ = results.Close()
				var pgErr *pgconn.PgError
				if try == 0 && errors.As(err, &pgErr) && pgErr.Code == "25006" {
					continue // the rows in front of the refusal were delivered
				}
				if err != nil {
					t.Errorf("try %d: %v", try, err)
				}
			}
			// What was refused is that text and no other.
			if err := s.ours.WaitReplayed(ctx); err != nil {
				t.Error(err)
			}
			check := s.watch(onReplicaOnly)
			for _, text := range []string{"select 'before'", "select 'behind'"} {
				if _, err := s.Exec(ctx, text); err != nil {
					t.Error(err)
				}
			}
			check()
		})
	}
}

// panickingArgument panics when it is encoded.
type panickingArgument struct{}

func (panickingArgument) Value() (driver.Value, error) { panic("in Value") }

// panickingDestination panics when something is scanned into it.
type panickingDestination struct{}

func (panickingDestination) Scan(any) error { panic("in Scan") }

// TestBatchPanics has an app's code panic under a batch. No connection is lost.
func TestBatchPanics(t *testing.T) {
	cluster := batchCluster(t)
	for _, query := range []struct{ name, sql string }{
		{"replica", fiveSQL},
		{"moved", "select id from unlogged"},
	} {
		for name, run := range map[string]func(ctx context.Context, s *subject){
			"callback": func(ctx context.Context, s *subject) {
				b := &pgx.Batch{}
				b.Queue("select 1")
				b.Queue(query.sql).Query(func(rows pgx.Rows) error { panic("in the callback") })
				b.Queue(fiveSQL)
				_ = s.SendBatch(ctx, b).Close()
			},
			"callback between rows": func(ctx context.Context, s *subject) {
				b := &pgx.Batch{}
				b.Queue("select 1")
				b.Queue(query.sql).Query(func(rows pgx.Rows) error {
					rows.Next()
					panic("in the callback")
				})
				results := s.SendBatch(ctx, b)
				defer results.Close()
				_ = results.Close()
			},
			"scan of a row": func(ctx context.Context, s *subject) {
				results := s.SendBatch(ctx, batchOf(query.sql, "select 1"))
				defer results.Close()
				_ = results.QueryRow().Scan(panickingDestination{})
			},
			"scan of rows": func(ctx context.Context, s *subject) {
				results := s.SendBatch(ctx, batchOf("select 1", query.sql, "select 1"))
				defer results.Close()
				_, _ = results.Exec()
				rows, _ := results.Query()
				_, _ = pgx.CollectRows(rows, func(pgx.CollectableRow) (int, error) { panic("in the function") })
			},
			"argument": func(ctx context.Context, s *subject) {
				b := batchOf("select 1", query.sql)
				b.Queue("select $1::text", panickingArgument{})
				results := s.SendBatch(ctx, b)
				defer results.Close()
			},
		} {
			t.Run(query.name+", "+name, func(t *testing.T) {
				s, done := newSubject(t, cluster, "two regions", nil)
				s.warm(t.Context())
				panicked := false
				func() {
					defer func() { panicked = recover() != nil }()
					run(t.Context(), s)
				}()
				if !panicked {
					t.Error("it did not panic")
				}
				eventually(t, "no connection is in use", func() bool { return s.stat().AcquiredConns() == 0 })
				if n := 0; s.QueryRow(t.Context(), fiveSQL).Scan(&n) != nil || n != 1 {
					t.Errorf("a read afterwards gives %d", n)
				}
				done()
			})
		}
	}
}

// TestBatchIsNotSharedWithItsCaller reads a batch while its caller fills the next one into the same memory.
func TestBatchIsNotSharedWithItsCaller(t *testing.T) {
	cluster := batchCluster(t)
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.ConnConfig.RuntimeParams["search_path"] = "dropin" })
	buf := bytes.Repeat([]byte("a"), 100)
	args := make([]any, 1)
	b := &pgx.Batch{}
	for i := range 20 {
		b.QueuedQueries = b.QueuedQueries[:0]
		for j := range buf {
			buf[j] = byte('a' + i)
		}
		args[0] = buf
		b.Queue(fmt.Sprintf("select $1::bytea as c%d from unlogged", i), args...)
		results := pool.SendBatch(t.Context(), b)
		stop := make(chan struct{})
		go func() {
			defer close(stop)
			for j := range buf {
				buf[j] = 'z'
			}
			args[0] = nil
			b.QueuedQueries[0] = &pgx.QueuedQuery{SQL: "select 'another'"}
		}()
		var got []byte
		err := results.QueryRow().Scan(&got)
		<-stop
		if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte('a' + i)}, 100)) {
			t.Errorf("%q, %v", got, err)
		}
		if err := results.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestBatchOnAConnectionClosedJustNow closes a connection after a batch was sent on it. No callback may run, as the batch is sent to
// another server then.
func TestBatchOnAConnectionClosedJustNow(t *testing.T) {
	conn, err := pgx.Connect(t.Context(), sharedCluster(t).Leader().ConnString())
	noError(t, err)
	b := &pgx.Batch{}
	for range 2 {
		b.Queue("select 1").Fn = func(pgx.BatchResults) error { t.Error("a callback runs"); return nil }
	}
	results := conn.SendBatch(t.Context(), b)
	noError(t, conn.PgConn().Conn().Close())
	_ = conn.Close(t.Context())
	if err := closeUnread(results, 2); err == nil {
		t.Error("no error")
	}
}
