package flyregion

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	return wrapConns(func(conn net.Conn) net.Conn { return &pieceConn{conn, size} })
}

// TestWireInPieces runs every write path over connections that deliver a byte at a time, or a few.
func TestWireInPieces(t *testing.T) {
	t.Parallel()
	cluster := ownCluster(t, nil)
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

// TestWireDeliversAsides has messages arrive that may come at any time.
func TestWireDeliversAsides(t *testing.T) {
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

// TestWireNotifiesUnderLoad has notifications arrive while statements are answered.
func TestWireNotifiesUnderLoad(t *testing.T) {
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

// TestWireKeepsErrors does what fails through flyregion and through pgxpool, and compares what is left.
func TestWireKeepsErrors(t *testing.T) {
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

// TestWireSessionEnds ends the session on the server in ways in which pgxpool's call succeeds, or fails.
func TestWireSessionEnds(t *testing.T) {
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

// TestWireCutAfterStatement loses the answer to a write. The write is not sent again, and once it is seen it is
// seen by every read.
func TestWireCutAfterStatement(t *testing.T) {
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

// TestWireKeepsUtilities runs statements that refuse to run in a transaction block, or together with others.
func TestWireKeepsUtilities(t *testing.T) {
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

// TestWireMissesNothing writes past pgx's frontend, as pgconn.ExecBatch does, which pgx uses in QueryExecModeExec.
func TestWireMissesNothing(t *testing.T) {
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
			awaitReplica(t, ctx, pool)
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

// TestWireCutBeforeTheAnswer loses the connection on which the primary is asked for a position, between the statement's
// end and the answer.
func TestWireCutBeforeTheAnswer(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	var armed atomic.Bool
	pool := poolIn(t, cluster, "ord", wrapConns(func(conn net.Conn) net.Conn { return &endConn{Conn: conn, armed: &armed} }))
	if err := pool.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	awaitReplica(t, ctx, pool)
	pool.primary.session.wroteUnknown(pool.primary.identity.Load().system, 0)
	armed.Store(true)
	if err := pool.QueryRow(WithReplica(ctx), "select 1").Scan(new(int)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v, want that of the connection", err)
	}
	if err := pool.QueryRow(WithReplica(ctx), "select 1").Scan(new(int)); err != nil {
		t.Errorf("on another connection: %v", err)
	}
}
