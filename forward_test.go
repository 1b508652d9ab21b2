package flyregion

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// pieceConn gives what arrives in pieces of at most size bytes; 0 is a random size.
type pieceConn struct {
	net.Conn
	size int
}

func (c *pieceConn) Read(p []byte) (int, error) {
	size := c.size
	if size == 0 {
		size = 1 + rand.IntN(40)
	}
	return c.Conn.Read(p[:min(len(p), size)])
}

// inPieces makes a config's connections give what arrives in pieces.
func inPieces(size int) func(*Config) {
	return func(c *Config) {
		dial := c.ConnConfig.DialFunc
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &pieceConn{conn, size}, nil
		}
	}
}

// TestForwarderInPieces runs every write path over connections that deliver a byte at a time, or a few.
func TestForwarderInPieces(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	hide(t, cluster, name)
	freeze(t, cluster)
	id := 0
	for _, size := range []int{1, 0} {
		pool := poolIn(t, cluster, "ord", inPieces(size), func(c *Config) { c.MaxReplicaWait = time.Minute })
		paths := append(append(append([]writePath{}, writePaths...), hiddenPaths...), asyncPaths...)
		for _, path := range paths {
			if strings.HasPrefix(path.name, "view") {
				continue
			}
			id++
			if err := path.write(t.Context(), pool, name, id); err != nil {
				t.Fatalf("pieces of %d: %s: %v", size, path.name, err)
			}
			for _, read := range readPaths[:8] {
				if n, err := read.read(t.Context(), pool, name, []int{id}); n != 1 || err != nil {
					t.Fatalf("pieces of %d: %s after %s sees %d, %v", size, read.name, path.name, n, err)
				}
			}
		}
	}
}

// TestForwarderDeliversAsides has messages arrive that may come at any time.
func TestForwarderDeliversAsides(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	for _, size := range []int{1, 0, 1 << 20} {
		var notices []string
		pool := poolIn(t, cluster, "ord", inPieces(size), func(c *Config) {
			c.ConnConfig.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { notices = append(notices, n.Message) }
		})
		ctx := t.Context()
		conn, err := pool.Acquire(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		if err := execs(ctx, conn, "listen "+name); err != nil {
			t.Fatal(err)
		}
		for i := range 50 {
			id := fmt.Sprint(1000*size%997 + i)
			err := execs(ctx, conn,
				"set application_name = 'name "+id+"'",
				"do $$ begin raise notice 'notice "+id+"'; end $$",
				"insert into "+name+" values ("+id+") on conflict do nothing; notify "+name+", '"+id+"'",
			)
			if err != nil {
				t.Fatal(err)
			}
			// Another's notification may arrive anywhere.
			if err := cluster.Leader().Exec(ctx, "select pg_notify($1, 'other ' || $2::text)", name, id); err != nil {
				t.Fatal(err)
			}
			if got := conn.Conn().PgConn().ParameterStatus("application_name"); got != "name "+id {
				t.Fatalf("application_name is %q, want %q", got, "name "+id)
			}
			if len(notices) == 0 || notices[len(notices)-1] != "notice "+id {
				t.Fatalf("the notices are %q, want %q at the end", notices, "notice "+id)
			}
			for _, want := range []string{id, "other " + id} {
				limited, cancel := context.WithTimeout(ctx, 30*time.Second)
				n, err := conn.Conn().WaitForNotification(limited)
				cancel()
				if err != nil || n.Payload != want {
					t.Fatalf("notification: %+v, %v, want %q", n, err, want)
				}
			}
		}
	}
}

// TestForwarderNotifiesUnderLoad has notifications arrive while statements are answered.
func TestForwarderNotifiesUnderLoad(t *testing.T) {
	const notifications = 500
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	pool := poolIn(t, cluster, "ord", inPieces(0))
	ctx := t.Context()
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if err := execs(ctx, conn, "listen "+name); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		other, err := pgx.Connect(ctx, cluster.Leader().ConnString())
		if err != nil {
			t.Error(err)
			return
		}
		defer other.Close(context.Background())
		for i := range notifications {
			if _, err := other.Exec(ctx, "select pg_notify($1, $2)", name, fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		}
	})
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	for i := 0; ; i++ {
		var got int
		if err := conn.QueryRow(ctx, "insert into "+name+" values ($1) returning id", i).Scan(&got); err != nil || got != i {
			t.Fatalf("row %d, %v, want %d", got, err, i)
		}
		select {
		case <-ended:
			for i := range notifications {
				limited, cancel := context.WithTimeout(ctx, 30*time.Second)
				n, err := conn.Conn().WaitForNotification(limited)
				cancel()
				if err != nil || n.Payload != fmt.Sprint(i) {
					t.Fatalf("notification %d: %+v, %v", i, n, err)
				}
			}
			return
		default:
		}
	}
}

// sameError compares what an app can see of two errors.
func sameError(a, b error) bool {
	if a == nil || b == nil {
		return a == b
	}
	var pa, pb *pgconn.PgError
	if errors.As(a, &pa) != errors.As(b, &pb) {
		return false
	}
	if pa != nil {
		return fmt.Sprintf("%T", a) == fmt.Sprintf("%T", b) && pa.Code == pb.Code && pa.Severity == pb.Severity
	}
	return a.Error() == b.Error() || fmt.Sprintf("%T", a) == fmt.Sprintf("%T", b)
}

// rawPool is a pgxpool with the same view of the cluster that a Pool's primary has.
func rawPool(t testing.TB, cluster *pgcluster.Cluster, region string, change ...func(*Config)) *pgxpool.Pool {
	t.Helper()
	config := configIn(t, cluster, region)
	for _, f := range change {
		f(config)
	}
	config.ConnConfig.Host = cluster.Leader().Region() + ".app.internal"
	pool, err := pgxpool.NewWithConfig(t.Context(), config.Config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// TestForwarderKeepsErrors does what fails through flyregion and through pgxpool, and compares what is left.
func TestForwarderKeepsErrors(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text, deferred int unique deferrable initially deferred")
	if err := cluster.Leader().Exec(t.Context(), "insert into "+name+" values (1, 'one', 1)"); err != nil {
		t.Fatal(err)
	}
	copyFail := errors.New("source failed")

	type conn interface {
		Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
		SendBatch(context.Context, *pgx.Batch) pgx.BatchResults
		CopyFrom(context.Context, pgx.Identifier, []string, pgx.CopyFromSource) (int64, error)
		QueryRow(context.Context, string, ...any) pgx.Row
		Begin(context.Context) (pgx.Tx, error)
	}
	cases := map[string]func(context.Context, conn) error{
		"unique violation": func(ctx context.Context, c conn) error {
			_, err := c.Exec(ctx, "insert into "+name+" values ($1)", 1)
			return err
		},
		"unique violation of several": func(ctx context.Context, c conn) error {
			return execs(ctx, c, "insert into "+name+" values (2); insert into "+name+" values (1)")
		},
		"syntax error":         func(ctx context.Context, c conn) error { return execs(ctx, c, "insert inta "+name) },
		"syntax error, simple": func(ctx context.Context, c conn) error { return execs(ctx, c, "select 1; insert inta "+name) },
		"no such table": func(ctx context.Context, c conn) error {
			_, err := c.Exec(ctx, "insert into nowhere values ($1)", 1)
			return err
		},
		"wrong argument": func(ctx context.Context, c conn) error {
			_, err := c.Exec(ctx, "insert into "+name+" values ($1)", struct{}{})
			return err
		},
		"too few arguments": func(ctx context.Context, c conn) error {
			return execs(ctx, c, "insert into "+name+" values ($1)")
		},
		"query row": func(ctx context.Context, c conn) error {
			return c.QueryRow(ctx, "insert into "+name+" values ($1) returning id", 1).Scan(new(int))
		},
		"query row without a row": func(ctx context.Context, c conn) error {
			return c.QueryRow(ctx, "update "+name+" set v = '' where id = $1 returning id", 99).Scan(new(int))
		},
		"scan into the wrong type": func(ctx context.Context, c conn) error {
			return c.QueryRow(ctx, "update "+name+" set v = 'x' where id = $1 returning v", 1).Scan(new(int))
		},
		"division after a row": func(ctx context.Context, c conn) error {
			return execs(ctx, c, "update "+name+" set deferred = 1/(2-i) from generate_series(1,3) i where id = i returning id")
		},
		"deferred constraint": func(ctx context.Context, c conn) error {
			return execs(ctx, c, "insert into "+name+" values (3, '', 1)")
		},
		"deferred constraint at commit": func(ctx context.Context, c conn) error {
			return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error { return execs(ctx, tx, "insert into "+name+" values (3, '', 1)") })
		},
		"commit of a failed transaction": func(ctx context.Context, c conn) error {
			tx, err := c.Begin(ctx)
			if err != nil {
				return err
			}
			if err := execs(ctx, tx, "select 1/0"); err == nil {
				return errors.New("no error")
			}
			return tx.Commit(ctx)
		},
		"statement in a failed transaction": func(ctx context.Context, c conn) error {
			return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
				_ = execs(ctx, tx, "select 1/0")
				return execs(ctx, tx, "insert into "+name+" values (4)")
			})
		},
		"batch": func(ctx context.Context, c conn) error {
			return c.SendBatch(ctx, batchOf("insert into "+name+" values (5)", "insert into "+name+" values (1)", "select 1")).Close()
		},
		"batch with a syntax error": func(ctx context.Context, c conn) error {
			return c.SendBatch(ctx, batchOf("insert into "+name+" values (5)", "insert inta")).Close()
		},
		"copy that the server refuses midway": func(ctx context.Context, c conn) error {
			rows := make([][]any, 100_000)
			for i := range rows {
				rows[i] = []any{10 + i/2, "text that fills the buffers of a network connection"}
			}
			_, err := c.CopyFrom(ctx, pgx.Identifier{name}, []string{"id", "v"}, pgx.CopyFromRows(rows))
			return err
		},
		"copy whose source fails": func(ctx context.Context, c conn) error {
			n := 0
			_, err := c.CopyFrom(ctx, pgx.Identifier{name}, []string{"id", "v"}, pgx.CopyFromFunc(func() ([]any, error) {
				if n++; n > 3 {
					return nil, copyFail
				}
				return []any{20 + n, "x"}, nil
			}))
			return err
		},
		"copy into nothing": func(ctx context.Context, c conn) error {
			_, err := c.CopyFrom(ctx, pgx.Identifier{"nowhere"}, []string{"id"}, pgx.CopyFromRows([][]any{{1}}))
			return err
		},
		// The server waits for data that pgx does not send.
		"copy by exec": func(ctx context.Context, c conn) error {
			ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			return execs(ctx, c, "copy "+name+" from stdin")
		},
		"copy by exec with a write": func(ctx context.Context, c conn) error {
			ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			return execs(ctx, c, "delete from "+name+" where id = 99; copy "+name+" from stdin")
		},
		"copy out by exec": func(ctx context.Context, c conn) error { return execs(ctx, c, "copy "+name+" to stdout") },
		"raised": func(ctx context.Context, c conn) error {
			return execs(ctx, c, "do $$ begin raise exception 'own' using errcode = 'FR001', detail = 'd'; end $$")
		},
		"statement timeout": func(ctx context.Context, c conn) error {
			return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
				return execs(ctx, tx, "set local statement_timeout = '10ms'", "insert into "+name+" select 1000 from pg_sleep(10)")
			})
		},
	}
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		inMode := func(c *Config) { c.ConnConfig.DefaultQueryExecMode, c.MaxConns = mode, 1 }
		theirs := rawPool(t, cluster, "ord", inMode)
		ours := poolIn(t, cluster, "ord", inMode)
		for what, do := range cases {
			t.Run(mode.String()+"/"+what, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				var errs [2]error
				var after [2]string
				for i, pool := range []*pgxpool.Pool{theirs, ours.Primary()} {
					err := pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
						errs[i] = do(ctx, c)
						after[i] = fmt.Sprintf("closed %v, busy %v", c.Conn().IsClosed(), c.Conn().PgConn().IsBusy())
						if !c.Conn().IsClosed() {
							after[i] += fmt.Sprintf(", status %c", c.Conn().PgConn().TxStatus())
						}
						return nil
					})
					if err != nil {
						t.Fatal(err)
					}
					var n, ids int
					if err := pool.QueryRow(ctx, "select count(*), $1::int from "+name, 41+i).Scan(&n, &ids); err != nil || n != 1 || ids != 41+i {
						t.Fatalf("afterwards, with pool %d: %d rows, %d, %v", i, n, ids, err)
					}
				}
				if !sameError(errs[0], errs[1]) || after[0] != after[1] {
					t.Errorf("pgxpool: %v (%T), %s\nflyregion: %v (%T), %s", errs[0], errs[0], after[0], errs[1], errs[1], after[1])
				}
				// The same through the pool itself.
				if err := do(ctx, ours); !sameError(errs[0], err) {
					t.Errorf("pgxpool: %v (%T)\nthe pool: %v (%T)", errs[0], errs[0], err, err)
				}
				if what == "copy whose source fails" && !strings.Contains(errs[1].Error(), copyFail.Error()) {
					t.Errorf("the source's error is lost: %v", errs[1])
				}
				eventually(t, "no connection is in use", func() bool { return ours.Stat().AcquiredConns() == 0 })
			})
		}
	}
}

// TestForwarderSessionEnds ends the session on the server in ways in which pgxpool's call succeeds, or fails.
func TestForwarderSessionEnds(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	if err := cluster.Leader().Exec(t.Context(), strings.ReplaceAll(`
		create schema s_T;
		create function s_T.die() returns trigger language plpgsql as 'begin perform pg_terminate_backend(pg_backend_pid()); return null; end';
		create constraint trigger die after insert on T deferrable initially deferred for each row when (new.v = 'at commit') execute function s_T.die();
	`, "T", name)); err != nil {
		t.Fatal(err)
	}
	defer cluster.Leader().Exec(context.Background(), "drop schema s_"+name+" cascade")

	cases := map[string]func(context.Context, *pgxpool.Pool, int) error{
		"by its own statement": func(ctx context.Context, p *pgxpool.Pool, id int) error {
			_, err := p.Exec(ctx, "select pg_terminate_backend(pg_backend_pid())")
			return err
		},
		"behind a commit in the same text": func(ctx context.Context, p *pgxpool.Pool, id int) error {
			_, err := p.Exec(ctx, "begin; "+insertText(name, id)+"; commit; select pg_terminate_backend(pg_backend_pid())")
			return err
		},
		"at commit": func(ctx context.Context, p *pgxpool.Pool, id int) error {
			_, err := p.Exec(ctx, "insert into "+name+" values ($1, 'at commit')", id)
			return err
		},
		"at the commit of a transaction": func(ctx context.Context, p *pgxpool.Pool, id int) error {
			return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
				return execs(ctx, tx, fmt.Sprintf("insert into %s values (%d, 'at commit')", name, id))
			})
		},
		"in a transaction": func(ctx context.Context, p *pgxpool.Pool, id int) error {
			return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
				return execs(ctx, tx, insertText(name, id), "select pg_terminate_backend(pg_backend_pid())")
			})
		},
	}
	theirs := rawPool(t, cluster, "ord")
	ours := poolIn(t, cluster, "ord")
	id := 0
	for what, do := range cases {
		t.Run(what, func(t *testing.T) {
			var errs [2]error
			var rows [2]int
			for i, pool := range []*pgxpool.Pool{theirs, ours.Primary()} {
				id++
				errs[i] = do(t.Context(), pool, id)
				eventually(t, "the pool works again", func() bool {
					return pool.QueryRow(t.Context(), "select count(*) from "+name+" where id = $1", id).Scan(&rows[i]) == nil
				})
			}
			if !sameError(errs[0], errs[1]) || rows[0] != rows[1] {
				t.Errorf("pgxpool: %v, %d rows; flyregion: %v, %d rows", errs[0], rows[0], errs[1], rows[1])
			}
		})
	}
}

// TestForwarderCutAfterStatement loses the answer to a write. The write is not sent again, and once it is seen it is
// seen by every read.
func TestForwarderCutAfterStatement(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int, v text")
	link := cluster.Link("ord", "nrt")
	t.Cleanup(link.Restore)
	ctx := t.Context()

	writes := map[string]func(*Pool, int) error{
		"exec": func(p *Pool, id int) error { _, err := p.Exec(ctx, insertSQL(name), id); return err },
		"query row": func(p *Pool, id int) error {
			return p.QueryRow(ctx, insertSQL(name)+" returning id", id).Scan(new(int))
		},
		"batch": func(p *Pool, id int) error { return p.SendBatch(ctx, batchOf(insertText(name, id))).Close() },
		"commit": func(p *Pool, id int) error {
			return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error { return execs(ctx, tx, insertText(name, id)) })
		},
		"copy": func(p *Pool, id int) error {
			_, err := p.CopyFrom(ctx, pgx.Identifier{name}, []string{"id", "v"}, pgx.CopyFromRows([][]any{{id, "x"}}))
			return err
		},
	}
	id := 0
	for what, write := range writes {
		for _, cutWhere := range []string{"at once", "at the question"} {
			t.Run(what+" "+cutWhere, func(t *testing.T) {
				pool := poolIn(t, cluster, "ord", func(c *Config) { c.MaxConns, c.MaxReplicaWait = 2, time.Minute })
				id++
				if err := write(pool, -id); err != nil { // so that all is prepared
					t.Fatal(err)
				}
				eventually(t, "the replica serves", func() bool { return replicaServes(t, ctx, pool) })
				freeze(t, cluster)

				id++
				link.CutAfter(func(sent []byte) bool {
					if cutWhere == "at the question" {
						return bytes.Contains(sent, positionMessage)
					}
					commit := bytes.Contains(sent, []byte("commit"))
					done := bytes.Contains(sent, []byte("c\x00\x00\x00\x04"))
					switch what {
					case "commit":
						return commit
					case "copy":
						return done
					}
					return bytes.Contains(sent, []byte("x')")) || bytes.ContainsAny(sent, "E") && bytes.Contains(sent, []byte("S\x00\x00\x00\x04"))
				})
				err := write(pool, id)
				if err == nil {
					t.Fatal("no error although the answer was lost")
				}
				// The primary cannot be reached: a read may say so, but it may not miss what is there.
				var early int
				earlyErr := pool.QueryRow(ctx, "select count(*) from "+name+" where id = $1", id).Scan(&early)
				link.Restore()

				var there int
				row := cluster.Leader()
				eventually(t, "the write is decided", func() bool {
					return queryOne(ctx, row, "select count(*) from pg_stat_activity where query like '%"+name+"%' and state <> 'idle' and pid <> pg_backend_pid()", &there) == nil && there == 0
				})
				if err := queryOne(ctx, row, fmt.Sprintf("select count(*) from %s where id = %d", name, id), &there); err != nil {
					t.Fatal(err)
				}
				if there > 1 {
					t.Fatalf("the write was done %d times", there)
				}
				if earlyErr == nil && early != there {
					t.Errorf("stale: with the link cut the read saw %d rows of %d", early, there)
				}
				var seen int
				if err := pool.QueryRow(ctx, "select count(*) from "+name+" where id = $1", id).Scan(&seen); err != nil || seen != there {
					t.Errorf("stale: the read saw %d rows of %d, %v", seen, there, err)
				}
			})
		}
	}
}

// queryOne asks a server directly.
func queryOne(ctx context.Context, s *pgcluster.Server, sql string, to any) error {
	conn, err := pgx.Connect(ctx, s.ConnString())
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	return conn.QueryRow(ctx, sql).Scan(to)
}

// TestForwarderCanceled ends contexts at random moments in writes and reads. Afterwards the pool works, and no statement
// gets another's answer.
func TestForwarderCanceled(t *testing.T) {
	const (
		clients = 8
		each    = 250
	)
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int, v text")
	for _, size := range []int{1, 1 << 20} {
		t.Run(fmt.Sprint("pieces of ", size), func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			pool := poolIn(t, cluster, "ord", inPieces(size), func(c *Config) { c.MaxConns = clients })
			var canceled, done atomic.Int64
			var wg sync.WaitGroup
			for client := range clients {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(seed, uint64(client)))
					for i := range each {
						ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r.ExpFloat64()*float64(10*time.Millisecond)))
						echo := client*each + i + 1
						got, err := echo, error(nil)
						switch r.IntN(7) {
						case 0:
							err = pool.QueryRow(ctx, insertSQL(name)+" returning id", echo).Scan(&got)
						case 1:
							var tag pgconn.CommandTag
							tag, err = pool.Exec(ctx, "insert into "+name+" select $1 from generate_series(1, $2)", echo, 1+echo%5)
							if err == nil && tag.RowsAffected() != int64(1+echo%5) {
								t.Errorf("the answer to another statement: %v", tag)
							}
						case 2:
							err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
								return tx.QueryRow(ctx, insertSQL(name)+" returning id", echo).Scan(&got)
							})
						case 3:
							b := &pgx.Batch{}
							b.Queue(insertSQL(name)+" returning id", echo).QueryRow(func(row pgx.Row) error { return row.Scan(&got) })
							b.Queue("select 1")
							err = pool.SendBatch(ctx, b).Close()
						case 4:
							var n int64
							n, err = pool.CopyFrom(ctx, pgx.Identifier{name}, []string{"id"}, pgx.CopyFromRows([][]any{{echo}, {echo}, {echo}}))
							if err == nil && n != 3 {
								t.Errorf("copied %d rows of 3", n)
							}
						case 5:
							err = pool.QueryRow(WithPrimary(ctx), "select $1::int", echo).Scan(&got)
						case 6:
							err = pool.QueryRow(ctx, "select $1::int from (select count(*) from "+name+") c", echo).Scan(&got)
						}
						cancel()
						switch {
						case err == nil && got != echo:
							t.Errorf("the answer to another statement: %d, want %d", got, echo)
						case err == nil:
							done.Add(1)
						// A read that wants the replica may find it behind on a busy machine.
						case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ErrReplicaLag):
							canceled.Add(1)
						default:
							var pgErr *pgconn.PgError
							if errors.As(err, &pgErr) && pgErr.Code == "57014" || errors.Is(err, net.ErrClosed) && ctx.Err() != nil {
								canceled.Add(1)
								continue
							}
							t.Errorf("neither done nor canceled: %v (%T)", err, err)
						}
					}
				})
			}
			wg.Wait()
			t.Logf("%d done, %d canceled", done.Load(), canceled.Load())
			if done.Load() == 0 || canceled.Load() == 0 {
				t.Error("nothing was done, or nothing canceled")
			}
			for i := range 4 * clients {
				var got int
				if err := pool.QueryRow(t.Context(), insertSQL(name)+" returning id", -i).Scan(&got); err != nil || got != -i {
					t.Errorf("afterwards: %d, %v, want %d", got, err, -i)
				}
			}
			eventually(t, "no connection is in use", func() bool { return pool.Stat().AcquiredConns() == 0 })
			before := runtime.NumGoroutine()
			pool.Close()
			eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
		})
	}
}

// trapConn ends a read with a deadline at exactly one place: when the client has got a given number of bytes since the
// trap was set.
type trapConn struct {
	net.Conn
	trap *trap
}

type trap struct {
	mu     sync.Mutex
	left   int // bytes until the trap; below 0 it is not set
	sprung func()
}

func (c *trapConn) Read(p []byte) (int, error) {
	c.trap.mu.Lock()
	left := c.trap.left
	c.trap.mu.Unlock()
	if left == 0 {
		c.trap.mu.Lock()
		c.trap.left = -1
		sprung := c.trap.sprung
		c.trap.mu.Unlock()
		sprung()
		// The context has ended, and pgx sets a deadline.
		time.Sleep(50 * time.Millisecond)
		return c.Conn.Read(p)
	}
	if left > 0 {
		p = p[:min(len(p), left)]
	}
	n, err := c.Conn.Read(p)
	if left > 0 {
		c.trap.mu.Lock()
		c.trap.left -= n
		c.trap.mu.Unlock()
	}
	return n, err
}

// TestForwarderCanceledAtEachByte ends the context after each byte of a write's answer in turn. Whatever the write's
// outcome is, what comes after it on the connection is not to pay for it.
func TestForwarderCanceledAtEachByte(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int, v text")
	insertNext := "insert into " + name + " values ($1, 'next')"
	nexts := []func(context.Context, *pgxpool.Pool, int) error{
		func(ctx context.Context, p *pgxpool.Pool, id int) error {
			_, err := p.Exec(ctx, insertNext, id)
			return err
		},
		func(ctx context.Context, p *pgxpool.Pool, id int) error {
			return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, insertNext, id)
				return err
			})
		},
		func(ctx context.Context, p *pgxpool.Pool, id int) error {
			return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error { return execs(ctx, tx, insertText(name, id)) })
		},
		func(ctx context.Context, p *pgxpool.Pool, id int) error {
			b := &pgx.Batch{}
			b.Queue(insertNext, id)
			return p.SendBatch(ctx, b).Close()
		},
		func(ctx context.Context, p *pgxpool.Pool, id int) error {
			_, err := p.CopyFrom(ctx, pgx.Identifier{name}, []string{"id"}, pgx.CopyFromRows([][]any{{id}}))
			return err
		},
		func(ctx context.Context, p *pgxpool.Pool, id int) error {
			return p.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return raw(ctx, c, insertText(name, id)) })
		},
	}
	for which, next := range nexts {
		sprung := true
		for at := 1 + which; sprung && at < 400; at += 2*len(nexts) - 1 {
			var trap trap
			trap.left = -1
			pool := poolIn(t, cluster, "ord", func(c *Config) {
				c.MaxConns = 1
				dial := c.ConnConfig.DialFunc
				c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := dial(ctx, network, addr)
					if err != nil {
						return nil, err
					}
					return &trapConn{conn, &trap}, nil
				}
			})
			if _, err := pool.Exec(t.Context(), insertSQL(name), 0); err != nil {
				t.Fatal(err)
			}
			id := 1000*which + at
			sprung = false
			ctx, cancel := context.WithCancel(t.Context())
			trap.set(at, func() { sprung = true; cancel() })
			_, err := pool.Exec(ctx, insertSQL(name), id)
			trap.set(-1, nil)
			cancel()

			limited, stop := context.WithTimeout(t.Context(), 10*time.Second)
			defer stop()
			if next := next(limited, pool.Primary(), id); next != nil {
				t.Fatalf("canceled %d bytes into the answer: %v; what comes next (%d) fails: %v", at, err, which, next)
			}
			var n int
			if err := pool.QueryRow(WithPrimary(limited), "select count(*) from "+name+" where id = $1", id).Scan(&n); err != nil {
				t.Fatalf("canceled %d bytes into the answer: %v", at, err)
			}
			if n < 1 || n > 2 || err == nil && n != 2 {
				t.Errorf("canceled %d bytes into the answer: %v, and %d rows (%d)", at, err, n, which)
			}
			pool.Close()
		}
	}
}

func (t *trap) set(left int, sprung func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.left, t.sprung = left, sprung
}

// TestForwarderBegin compares transactions, whose BEGIN leaves with the first statement, with pgxpool's.
func TestForwarderBegin(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	level := func(ctx context.Context, tx pgx.Tx) (level string, err error) {
		err = tx.QueryRow(ctx, "select current_setting('transaction_isolation') || current_setting('transaction_read_only') || "+
			"current_setting('transaction_deferrable') || $1::text", "").Scan(&level)
		return level, err
	}
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		inMode := func(c *Config) { c.ConnConfig.DefaultQueryExecMode = mode }
		size := 1
		if mode == pgx.QueryExecModeExec {
			size = 1 << 20
		}
		theirs := rawPool(t, cluster, "ord", inPieces(size), inMode)
		ours := poolIn(t, cluster, "ord", inPieces(size), inMode).Primary()
		for _, options := range []pgx.TxOptions{
			{},
			{IsoLevel: pgx.Serializable, AccessMode: pgx.ReadOnly, DeferrableMode: pgx.Deferrable},
			{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadWrite},
			{IsoLevel: pgx.ReadUncommitted, DeferrableMode: pgx.NotDeferrable},
			{BeginQuery: "start transaction isolation level serializable"},
		} {
			do := func(p *pgxpool.Pool, f func(tx pgx.Tx) (string, error)) string {
				tx, err := p.BeginTx(ctx, options)
				if err != nil {
					return err.Error()
				}
				defer tx.Rollback(ctx)
				got, err := f(tx)
				return fmt.Sprintf("%s %v %c", got, err, tx.Conn().PgConn().TxStatus())
			}
			for what, f := range map[string]func(tx pgx.Tx) (string, error){
				"level": func(tx pgx.Tx) (string, error) { return level(ctx, tx) },
				"level, simple": func(tx pgx.Tx) (s string, err error) {
					return s, tx.QueryRow(ctx, "show transaction_isolation", pgx.QueryExecModeSimpleProtocol).Scan(&s)
				},
				"set transaction": func(tx pgx.Tx) (string, error) {
					for _, text := range []string{
						"set local lock_timeout = '9s'", "show lock_timeout", "lock table " + name + " in access share mode",
						"set transaction isolation level repeatable read",
					} {
						rows, err := tx.Query(ctx, text) // Exec would use the simple protocol
						if err != nil {
							return text, err
						}
						rows.Close()
						if rows.Err() != nil {
							return text, rows.Err()
						}
					}
					return level(ctx, tx)
				},
				"set transaction by batch": func(tx pgx.Tx) (string, error) {
					for _, text := range []string{"set local lock_timeout = '9s'", "set transaction isolation level repeatable read"} {
						if err := tx.SendBatch(ctx, batchOf(text)).Close(); err != nil {
							return text, err
						}
					}
					return level(ctx, tx)
				},
				"commit": func(tx pgx.Tx) (string, error) { return "", tx.Commit(ctx) },
				"rollback": func(tx pgx.Tx) (string, error) {
					return "", errors.Join(tx.Rollback(ctx), tx.Rollback(ctx))
				},
				"nested": func(tx pgx.Tx) (string, error) {
					return "", pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return execs(ctx, tx, "select 1") })
				},
				"error first": func(tx pgx.Tx) (string, error) {
					_, err := tx.Exec(ctx, "select 1/$1::int", 0)
					var pgErr *pgconn.PgError
					errors.As(err, &pgErr)
					_, next := tx.Exec(ctx, "select $1::int", 1)
					return pgErr.Code, next
				},
				"syntax error first": func(tx pgx.Tx) (string, error) {
					_, err := tx.Exec(ctx, "selectt $1", 0)
					return "", err
				},
				"batch": func(tx pgx.Tx) (string, error) {
					return "", tx.SendBatch(ctx, batchOf("select 1", "select 2")).Close()
				},
				"copy": func(tx pgx.Tx) (string, error) {
					n, err := tx.CopyFrom(ctx, pgx.Identifier{name}, []string{"id"}, pgx.CopyFromRows([][]any{{-1}, {-2}}))
					return fmt.Sprint(n), err
				},
				"raw": func(tx pgx.Tx) (string, error) {
					results, err := tx.Conn().PgConn().Exec(ctx, "select 1; show transaction_isolation").ReadAll()
					if err != nil {
						return "", err
					}
					return string(results[1].Rows[0][0]), nil
				},
				"raw batch": func(tx pgx.Tx) (string, error) {
					b := &pgconn.Batch{}
					b.ExecParams("insert into "+name+" values (-4)", nil, nil, nil, nil)
					b.ExecParams("show transaction_isolation", nil, nil, nil, nil)
					results, err := tx.Conn().PgConn().ExecBatch(ctx, b).ReadAll()
					if err != nil {
						return "", err
					}
					return string(results[1].Rows[0][0]), nil
				},
				"raw params": func(tx pgx.Tx) (string, error) {
					result := tx.Conn().PgConn().ExecParams(ctx, "show transaction_isolation", nil, nil, nil, nil).Read()
					if result.Err != nil {
						return "", result.Err
					}
					return string(result.Rows[0][0]), nil
				},
				"raw copy": func(tx pgx.Tx) (string, error) {
					tag, err := tx.Conn().PgConn().CopyFrom(ctx, strings.NewReader("-3\n"), "copy "+name+" (id) from stdin")
					return tag.String(), err
				},
				"prepare": func(tx pgx.Tx) (string, error) {
					if _, err := tx.Prepare(ctx, "", "select $1::int"); err != nil {
						return "", err
					}
					return level(ctx, tx)
				},
				"ping": func(tx pgx.Tx) (string, error) { return "", tx.Conn().Ping(ctx) },
				"large object": func(tx pgx.Tx) (string, error) {
					los := tx.LargeObjects()
					oid, err := los.Create(ctx, 0)
					if err != nil {
						return "", err
					}
					return "", los.Unlink(ctx, oid)
				},
			} {
				if want, got := do(theirs, f), do(ours, f); want != got {
					t.Errorf("%s in %+v, %v: flyregion %q, pgxpool %q", what, options, mode, got, want)
				}
			}
		}
		for _, pool := range []*pgxpool.Pool{theirs, ours} {
			var n int
			if err := pool.QueryRow(ctx, "select count(*) from "+name).Scan(&n); err != nil || n != 0 {
				t.Errorf("%d rows of transactions that were rolled back, %v", n, err)
			}
			eventually(t, "no connection is in use", func() bool { return pool.Stat().AcquiredConns() == 0 })
		}
	}
}

// spoilConn makes the server refuse the next BEGIN.
type spoilConn struct {
	net.Conn
	spoil *atomic.Bool
}

func (c *spoilConn) Write(p []byte) (int, error) {
	if i := bytes.Index(p, []byte("begin")); i >= 0 && c.spoil.Swap(false) {
		p = bytes.Clone(p)
		copy(p[i:], "spoil")
	}
	return c.Conn.Write(p)
}

// TestForwarderBeginRefused has the server refuse a BEGIN. Nothing of the transaction may be done, whoever ignores the
// error of its first statement.
func TestForwarderBeginRefused(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := t.Context()
	var spoil atomic.Bool
	pool := poolIn(t, cluster, "ord", func(c *Config) {
		dial := c.ConnConfig.DialFunc
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &spoilConn{conn, &spoil}, nil
		}
	})
	firsts := map[string]func(tx pgx.Tx) error{
		"exec": func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, insertSQL(name), 1)
			return err
		},
		"exec text":  func(tx pgx.Tx) error { return execs(ctx, tx, insertText(name, 1)) },
		"exec texts": func(tx pgx.Tx) error { return execs(ctx, tx, "select 1; "+insertText(name, 1)+"; select 2") },
		"query row":  func(tx pgx.Tx) error { return tx.QueryRow(ctx, insertSQL(name)+" returning id", 1).Scan(new(int)) },
		"batch":      func(tx pgx.Tx) error { return tx.SendBatch(ctx, batchOf(insertText(name, 1), "select 1")).Close() },
		"copy": func(tx pgx.Tx) error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{name}, []string{"id"}, pgx.CopyFromRows([][]any{{1}}))
			return err
		},
		"raw copy": func(tx pgx.Tx) error {
			_, err := tx.Conn().PgConn().CopyFrom(ctx, strings.NewReader("1\n"), "copy "+name+" (id) from stdin")
			return err
		},
		"raw batch": func(tx pgx.Tx) error {
			b := &pgconn.Batch{}
			b.ExecParams(insertText(name, 1), nil, nil, nil, nil)
			_, err := tx.Conn().PgConn().ExecBatch(ctx, b).ReadAll()
			return err
		},
		"raw pipeline": func(tx pgx.Tx) error {
			pipeline := tx.Conn().PgConn().StartPipeline(ctx)
			pipeline.SendQueryParams(insertText(name, 1), nil, nil, nil, nil)
			if err := pipeline.Sync(); err != nil {
				return err
			}
			return pipeline.Close()
		},
		"raw pipeline of several syncs": func(tx pgx.Tx) error {
			pipeline := tx.Conn().PgConn().StartPipeline(ctx)
			for range 3 {
				pipeline.SendQueryParams(insertText(name, 1), nil, nil, nil, nil)
				if err := pipeline.Sync(); err != nil {
					return errors.Join(err, pipeline.Close())
				}
			}
			return pipeline.Close()
		},
		"raw pipeline of several syncs in one write": func(tx pgx.Tx) error {
			pipeline := tx.Conn().PgConn().StartPipeline(ctx)
			for range 3 {
				pipeline.SendQueryParams(insertText(name, 1), nil, nil, nil, nil)
				pipeline.SendPipelineSync()
			}
			return errors.Join(pipeline.Flush(), pipeline.Close())
		},
		"raw batch behind a pipeline": func(tx pgx.Tx) error {
			pipeline := tx.Conn().PgConn().StartPipeline(ctx)
			pipeline.SendQueryParams(insertText(name, 1), nil, nil, nil, nil)
			err := errors.Join(pipeline.Sync(), pipeline.Close())
			b := &pgconn.Batch{}
			b.ExecParams(insertText(name, 1), nil, nil, nil, nil)
			_, second := tx.Conn().PgConn().ExecBatch(ctx, b).ReadAll()
			return errors.Join(err, second)
		},
		"savepoint": func(tx pgx.Tx) error {
			return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return execs(ctx, tx, insertText(name, 1)) })
		},
		"prepare": func(tx pgx.Tx) error {
			_, err := tx.Prepare(ctx, "", insertSQL(name))
			return err
		},
	}
	for what, first := range firsts {
		for range 2 { // prepared the second time
			spoil.Store(true)
			tx, err := pool.Begin(ctx)
			if err == nil {
				err = first(tx)
				_, second := tx.Exec(ctx, insertSQL(name), 2)
				third := execs(ctx, tx, insertText(name, 3))
				if commit := tx.Commit(ctx); commit == nil {
					t.Errorf("%s: the commit of what was never begun succeeds (%v, %v, %v)", what, err, second, third)
				}
			}
			if spoil.Swap(false) {
				t.Fatalf("%s: no BEGIN came by", what)
			}
			if err == nil {
				t.Errorf("%s: no error", what)
			}
			var n int
			if err := pool.QueryRow(WithPrimary(ctx), "select count(*) from "+name).Scan(&n); err != nil || n != 0 {
				t.Errorf("%s: %d rows were written outside of the transaction, %v", what, n, err)
			}
			if err := cluster.Leader().Exec(ctx, "delete from "+name); err != nil {
				t.Fatal(err)
			}
			eventually(t, "no connection is in use after "+what, func() bool { return pool.Stat().AcquiredConns() == 0 })
		}
	}
}

// TestForwarderKeepsUtilities runs statements that refuse to run in a transaction block, or together with others.
func TestForwarderKeepsUtilities(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeDescribeExec} {
		pool := poolIn(t, cluster, "ord", func(c *Config) { c.ConnConfig.DefaultQueryExecMode = mode })
		for _, text := range []string{
			"vacuum " + name,
			"create index concurrently i_" + name + " on " + name + " (v)",
			"reindex index concurrently i_" + name,
			"drop index concurrently i_" + name,
			"create database d_" + name,
			"drop database d_" + name,
			"alter system set log_min_duration_sample = '1h'",
			"alter system reset log_min_duration_sample",
			"checkpoint",
			"discard all",
			"listen " + name,
			"unlisten *",
			"savepoint nowhere",
			"commit",
			"",
			"-- nothing",
		} {
			theirs := rawPool(t, cluster, "ord", func(c *Config) { c.ConnConfig.DefaultQueryExecMode = mode })
			_, want := theirs.Exec(t.Context(), text, mode)
			theirs.Close()
			undo := map[string]string{
				"create index": "drop index i_" + name,
				"drop index":   "create index i_" + name + " on " + name + " (v)",
				"create datab": "drop database d_" + name,
				"drop databas": "create database d_" + name,
			}
			if len(text) > 12 && undo[text[:12]] != "" {
				text := undo[text[:12]]
				if err := cluster.Leader().Exec(t.Context(), text); err != nil {
					t.Fatal(err)
				}
			} else if strings.HasPrefix(text, "drop index") {
				if err := cluster.Leader().Exec(t.Context(), undo["drop index"]); err != nil {
					t.Fatal(err)
				}
			}
			if _, got := pool.Exec(t.Context(), text, mode); !sameError(want, got) {
				t.Errorf("%s, %q: flyregion %v, pgxpool %v", mode, text, got, want)
			}
		}
	}
}

// TestForwarderMissesNothing writes past pgx's frontend, as pgconn.ExecBatch does, which pgx uses in QueryExecModeExec.
func TestForwarderMissesNothing(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int, v text")
	ctx := t.Context()
	for what, write := range map[string]func(p *Pool, id int) error{
		"batch": func(p *Pool, id int) error { return p.SendBatch(ctx, batchOf(insertText(name, id))).Close() },
		"batch that fails after its commit": func(p *Pool, id int) error {
			err := p.SendBatch(ctx, batchOf("begin", insertText(name, id), "commit", "select 1/0")).Close()
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) || pgErr.Code != "22012" {
				return fmt.Errorf("no division by zero but %w", err)
			}
			return nil
		},
		"raw": func(p *Pool, id int) error {
			return p.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
				b := &pgconn.Batch{}
				b.ExecParams(insertText(name, id), nil, nil, nil, nil)
				_, err := c.Conn().PgConn().ExecBatch(ctx, b).ReadAll()
				return err
			})
		},
		"in a transaction": func(p *Pool, id int) error {
			return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error { return tx.SendBatch(ctx, batchOf(insertText(name, id))).Close() })
		},
	} {
		t.Run(what, func(t *testing.T) {
			pool := poolIn(t, cluster, "ord", func(c *Config) {
				c.MaxReplicaWait = time.Minute
				c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
			})
			freeze(t, cluster)
			comesHome(t, ctx, pool)
			id := int(clock.Add(1))
			if err := write(pool, id); err != nil {
				t.Fatal(err)
			}
			var seen bool
			if err := pool.QueryRow(ctx, "select exists (select from "+name+" where id = $1)", id).Scan(&seen); err != nil || !seen {
				t.Errorf("the read after the write sees it: %v, %v", seen, err)
			}
		})
	}
}

// endConn ends when the server has answered one statement.
type endConn struct {
	net.Conn
	armed *atomic.Bool
	ended bool
}

func (c *endConn) Read(p []byte) (int, error) {
	if c.ended {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(p)
	ready := []byte("Z\x00\x00\x00\x05I")
	if i := bytes.Index(p[:n], ready); i >= 0 && c.armed.Swap(false) {
		c.ended = true
		return i + len(ready), nil
	}
	return n, err
}

// TestForwarderLearnsNothing loses the connection on which the primary is asked for a position, between the statement's
// end and the answer.
func TestForwarderLearnsNothing(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	var armed atomic.Bool
	pool := poolIn(t, cluster, "ord", func(c *Config) {
		dial := c.ConnConfig.DialFunc
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &endConn{Conn: conn, armed: &armed}, nil
		}
	})
	if err := pool.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	comesHome(t, ctx, pool)
	pool.primary.session.wroteUnknown()
	armed.Store(true)
	if err := pool.QueryRow(WithReplica(ctx), "select 1").Scan(new(int)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v, want that of the connection", err)
	}
	if err := pool.QueryRow(WithReplica(ctx), "select 1").Scan(new(int)); err != nil {
		t.Errorf("on another connection: %v", err)
	}
}
