package flyregion

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// TestWireCanceled ends contexts at random moments in writes and reads. Afterwards the pool works, and no statement
// gets another's answer.
func TestWireCanceled(t *testing.T) {
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

// TestWireCanceledAtEachByte ends the context after each byte of a write's answer in turn. Whatever the write's
// outcome is, what comes after it on the connection is not to pay for it.
func TestWireCanceledAtEachByte(t *testing.T) {
	t.Parallel()
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
				wrapConns(func(conn net.Conn) net.Conn { return &trapConn{conn, &trap} })(c)
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
