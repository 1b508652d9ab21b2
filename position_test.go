package flyregion

import (
	"bytes"
	"context"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
)

// questionCounter counts the questions for a position that are sent on a connection.
type questionCounter struct {
	net.Conn
	asked *atomic.Int64
}

func (c questionCounter) Write(p []byte) (int, error) {
	c.asked.Add(int64(bytes.Count(p, []byte(positionSQL))))
	return c.Conn.Write(p)
}

// TestPositionQuestions has statements run on the primary, whose position is asked for only where the answer can matter.
func TestPositionQuestions(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	hide(t, cluster, name)
	ctx := WithPrimary(t.Context())
	// pgx runs an Exec without arguments in the simple protocol, and a query in the extended one.
	queries := func(ctx context.Context, p *Pool, sql string) error { return p.QueryRow(ctx, sql).Scan(new(int)) }
	hidden := func(id string) string { return "select '" + id + "' operator(s_" + name + ".<<<) 0" }
	id := 0
	for _, test := range []struct {
		name   string
		await  bool
		before func(*Pool)
		run    func(*Pool) error
		want   int64
	}{
		{name: "read", run: func(p *Pool) error { return queries(ctx, p, "select 1") }},
		{name: "read in a session", run: func(p *Pool) error { return queries(WithSession(ctx, &Session{}), p, "select 1") }},
		{name: "batch of reads", run: func(p *Pool) error { return p.SendBatch(ctx, batchOf("select 1", "select 2")).Close() }},
		{name: "hidden write", run: func(p *Pool) error { return queries(ctx, p, hidden("100")) }},
		{name: "write", want: 1, run: func(p *Pool) error { id++; return execs(ctx, p, insertText(name, id)) }},
		{name: "transaction", want: 1, run: func(p *Pool) error {
			return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "update "+name+" set v = 'x'")
				return err
			})
		}},
		{name: "simple protocol", want: 1, run: func(p *Pool) error {
			return p.QueryRow(ctx, "select 1", pgx.QueryExecModeSimpleProtocol).Scan(new(int))
		}},
		{name: "behind an unknown write", want: 1, before: func(p *Pool) { p.primary.session.wroteUnknown(p.primary.identity.Load().system, 0) }, run: func(p *Pool) error { return queries(ctx, p, "select 1") }},
		{name: "in a session behind an unknown write", want: 1, run: func(p *Pool) error {
			session := &Session{}
			session.wroteUnknown(p.primary.identity.Load().system, 0)
			return queries(WithSession(ctx, session), p, "select 1")
		}},
		{name: "read where writes are awaited", await: true, want: 1, run: func(p *Pool) error { return queries(ctx, p, "select 1") }},
		{name: "hidden write that is awaited", await: true, want: 1, run: func(p *Pool) error { return queries(ctx, p, hidden("200")) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			var asked atomic.Int64
			pool := poolIn(t, cluster, "ord", func(c *Config) {
				c.AwaitWrites = test.await
				dial := c.ConnConfig.DialFunc
				c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := dial(ctx, network, addr)
					return questionCounter{conn, &asked}, err
				}
			})
			id++
			noError(t, execs(ctx, pool, insertText(name, id)))
			if test.before != nil {
				test.before(pool)
			}
			rows := counts(t, ctx, pool, name)
			if test.before != nil {
				test.before(pool)
			}
			asked.Store(0)
			noError(t, test.run(pool))
			if n := asked.Load(); n != test.want {
				t.Errorf("the position was asked for %d times, want %d", n, test.want)
			}
			// Nothing is lost: a read that may run on the replica sees what was written.
			want := counts(t, ctx, pool, name)
			for range 2 {
				if n := counts(t, t.Context(), pool, name); n != want || n < rows {
					t.Errorf("%d rows of %d", n, want)
				}
			}
		})
	}
}

// TestHiddenWriteWithoutPosition has a statement write on the primary that is a read by its SQL, while replay is halted. Its
// position is not asked for, and a read that may run on the replica sees the write all the same.
func TestHiddenWriteWithoutPosition(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	hide(t, cluster, name)
	ctx := t.Context()
	for _, own := range []bool{false, true} {
		session := (*Session)(nil)
		if own {
			session = &Session{}
		}
		ctx := WithSession(ctx, session)
		pool := poolIn(t, cluster, "ord")
		awaitReplica(t, ctx, pool)
		noError(t, execs(ctx, pool, "delete from "+name))
		awaitReplica(t, ctx, pool)
		thaw := freeze(t, cluster)
		noError(t, pool.QueryRow(WithPrimary(ctx), "select '1' operator(s_"+name+".<<<) 0").Scan(new(int)))
		if pool.primary.written(&pool.primary.session).unknown == 0 {
			t.Error("the write's position is not unknown")
		}
		for range 2 { // the first one learns the position
			if n := counts(t, ctx, pool, name); n != 1 {
				t.Errorf("session of its own: %v: the write is not seen, %d rows", own, n)
			}
		}
		thaw()
	}
}
