package flyregion

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// newRandomCutProgram makes a program whose link to the replica, or to the primary, is cut, stalled and restored between
// operations and during them.
//
// With the link to the replica every result must still be the one of pgxpool. With the link to the primary that depends on
// when it is cut, for pgxpool too. So there it is compared with what the primary itself has: no read may be stale, a write
// that returned was done once and one that failed once at most, and not at all if its error is safe to retry. No error may
// be of a kind that pgx does not know, and the pool must serve again when the link does.
func newRandomCutProgram(seed uint64) *randomProgram {
	g := newRandomGenerator(seed, 10)
	p := g.program
	p.prefix = "cut-"
	p.simulate, p.awaitWrites = false, false
	p.cuts = pick(g, "ord", "nrt")
	g.makers = append(g.makers, randomMaker{16, (*randomGenerator).link}, randomMaker{24, (*randomGenerator).writeOnce})
	g.fill()
	return p
}

// link breaks the link, or restores it.
func (g *randomGenerator) link() *randomOp {
	how := pick(g, "cut", "cut", "cut after", "cut after", "cut after", "reset after", "reset after", "reset after", "cut soon", "cut soon",
		"restored", "restored", "restored", "stalled")
	n := g.IntN(5)
	return &randomOp{text: fmt.Sprintf("link to %s is %s %d", g.program.cuts, how, n), run: func(m *randomMachine) {
		if m.program.cuts == "ord" {
			m.leaveReplica()
		}
		m.restoreLink()
		if how == "restored" {
			return
		}
		m.broken = how
		if m.link == nil {
			return // on pgxpool, which has none to the replica
		}
		if m.program.cuts == "nrt" {
			m.lab.cuts[how]++
		}
		switch how {
		case "cut":
			m.link.Cut()
		case "stalled":
			m.link.Stall()
		case "cut after", "reset after":
			var passed atomic.Int32
			m.link.CutAfter(func([]byte) bool { return passed.Add(1) > int32(n) })
			if how == "reset after" {
				m.restoreSoon(&passed, int32(n))
			}
		case "cut soon":
			link, stop, stopped := m.link, make(chan struct{}), make(chan struct{})
			m.stopCut = func() { close(stop); <-stopped }
			go func() {
				defer close(stopped)
				select {
				case <-stop:
				case <-time.After(time.Duration(n) * 500 * time.Microsecond):
					link.Cut()
				}
			}()
		}
	}}
}

// restoreSoon restores the link when it was cut after n chunks.
func (m *randomMachine) restoreSoon(passed *atomic.Int32, n int32) {
	link, stop, stopped := m.link, make(chan struct{}), make(chan struct{})
	m.stopCut = func() { close(stop); <-stopped }
	go func() {
		defer close(stopped)
		for passed.Load() <= n || link.Conns() > 0 {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
			}
		}
		link.Restore()
	}()
}

// restoreLink restores the link.
func (m *randomMachine) restoreLink() {
	if m.stopCut != nil {
		m.stopCut()
		m.stopCut = nil
	}
	if m.link != nil {
		if m.broken == "stalled" {
			m.link.Cut() // so that nothing is delivered after its sender has given it up
		}
		m.link.Restore()
	}
	m.broken = ""
}

// fragile says whether the link to the replica may be cut at any time.
func (m *randomMachine) fragile() bool {
	return m.program.cuts == "ord" && (m.broken != "" && m.broken != "cut" && m.broken != "stalled")
}

// leaveReplica ends what may be in use on the replica, and would fail with the link.
func (m *randomMachine) leaveReplica() {
	for i := range randomSlots {
		if rows := m.rows[i]; rows != nil && rows.holds {
			m.closeRows(i)
		}
		if batch := m.batches[i]; batch != nil && batch.holds {
			m.closeBatch(i)
		}
		if rows := m.sqlRows[i]; rows != nil {
			m.sqlRows[i] = nil
			m.note("close", rows.Close(), rows.Err())
		}
		if tx := m.txs[i]; tx != nil && !tx.over && tx.holds && tx.reads {
			m.note("rollback", tx.nested[0].Rollback(m.ctx))
			m.forget(randomPlace{onTx, i})
			m.txs[i] = nil
		}
		if tx := m.sqlTxs[i]; tx != nil && !tx.over && tx.reads {
			m.note("rollback", tx.Rollback())
			tx.over = true
		}
	}
}

// settled waits until the primary has ended the sessions whose connections were cut, and reports whether it has.
func (m *randomMachine) settled() bool {
	for start := time.Now(); time.Since(start) < 5*time.Second; time.Sleep(time.Millisecond) {
		var sessions, active int
		if err := m.lab.leader.ask(`
			select count(*), count(*) filter (where state = 'active') from pg_stat_activity
			where backend_type = 'client backend' and pid <> pg_backend_pid()`, nil, &sessions, &active); err != nil {
			m.lab.t.Error(err)
			return false
		}
		if sessions <= m.link.Conns() && active == 0 {
			return true
		}
	}
	return false
}

const randomCutLookSQL = "select count(*) || ' ' || coalesce(sum(n), 0) || ' ' || (select count(*) || ' ' || coalesce(max(k), 0) from log) || ' ' || (select count(*) || ' ' || coalesce(max(k), 0) from once) from items"

// truth returns what the primary has.
func (l *randomLab) truth(schema string) (truth string) {
	inSchema := strings.NewReplacer("from items", "from "+schema+".items", "from log", "from "+schema+".log", "from once", "from "+schema+".once")
	if err := l.leader.ask(inSchema.Replace(randomCutLookSQL), nil, &truth); err != nil {
		l.t.Error(err)
	}
	return truth
}

// lookBetween looks at what there is, between two looks at the primary itself, and reports whether it could.
func (m *randomMachine) lookBetween(what string) bool {
	settled := m.settled()
	before := m.lab.truth(m.schema)
	var seen string
	err := m.QueryRow(m.ctx, randomCutLookSQL).Scan(&seen)
	m.note(what+" sees", seen, err)
	after := m.lab.truth(m.schema)
	switch {
	case err != nil:
		return false
	case settled && before == after && seen != after:
		m.blame(fmt.Sprintf("%s, %s: a read sees %s, and the primary has %s", m.doing(), what, seen, after))
	case settled:
		m.lab.cuts["looked"]++
	}
	return true
}

// blame notes what is wrong whenever it happens.
func (m *randomMachine) blame(what string) { m.wrong = append(m.wrong, what) }

// judge blames errors that pgx does not return.
func (m *randomMachine) judge(err error) {
	var pgErr *pgconn.PgError
	text := err.Error()
	switch {
	case errors.As(err, &pgErr) && (pgErr.Code == "08P01" && !strings.HasPrefix(pgErr.Message, "bind message supplies") || pgErr.Code == "XX000" && !strings.HasPrefix(pgErr.Message, "raised ")):
	case strings.Contains(text, "flyregion: ") && !errors.Is(err, ErrReplicaLag):
	default:
		return
	}
	m.blame(m.doing() + ": " + describeError(err))
}

// randomOnce is a way to write a row that is written once.
type randomOnce struct {
	name  string
	write func(ctx context.Context, m *randomMachine, what string) error
}

const randomOnceSQL = "insert into once (what) values ($1) returning k"

func randomOnceText(what string, size int) string {
	return fmt.Sprintf("insert into once (what) values ('%s') /* %s */", what, strings.Repeat("x", size))
}

var randomOnceWays = []randomOnce{
	{"exec", func(ctx context.Context, m *randomMachine, what string) error {
		_, err := m.Exec(ctx, randomOnceSQL, what)
		return err
	}},
	{"query row", func(ctx context.Context, m *randomMachine, what string) error {
		return m.QueryRow(ctx, randomOnceSQL, what).Scan(new(int))
	}},
	{"text", func(ctx context.Context, m *randomMachine, what string) error {
		_, err := m.Exec(ctx, randomOnceText(what, 1))
		return err
	}},
	{"long text", func(ctx context.Context, m *randomMachine, what string) error {
		_, err := m.Exec(ctx, randomOnceText(what, 20_000))
		return err
	}},
	{"function", func(ctx context.Context, m *randomMachine, what string) error {
		return m.QueryRow(ctx, "select write_once($1)", what).Scan(new(int))
	}},
	{"batch", func(ctx context.Context, m *randomMachine, what string) error {
		b := batchOf("select 1")
		b.Queue(randomOnceSQL, what)
		b.Queue("select 2")
		results := m.SendBatch(ctx, b)
		_, err := results.Exec()
		return errors.Join(err, results.Close())
	}},
	{"batch with a commit", func(ctx context.Context, m *randomMachine, what string) error {
		b := batchOf("begin")
		b.Queue(randomOnceSQL, what)
		b.Queue("commit")
		results := m.SendBatch(ctx, b)
		var err error
		for range 3 {
			_, each := results.Exec()
			err = errors.Join(err, each)
		}
		return errors.Join(err, results.Close())
	}},
	{"copy", func(ctx context.Context, m *randomMachine, what string) error {
		_, err := m.CopyFrom(ctx, pgx.Identifier{"once"}, []string{"what"}, pgx.CopyFromRows([][]any{{what}}))
		return err
	}},
	{"transaction", func(ctx context.Context, m *randomMachine, what string) error {
		return pgx.BeginFunc(ctx, m, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, randomOnceSQL, what)
			return err
		})
	}},
	{"connection", func(ctx context.Context, m *randomMachine, what string) error {
		return m.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
			_, err := c.Exec(ctx, randomOnceSQL, what)
			return err
		})
	}},
	{"raw", func(ctx context.Context, m *randomMachine, what string) error {
		return m.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
			_, err := c.Conn().PgConn().Exec(ctx, randomOnceText(what, 1)).ReadAll()
			return err
		})
	}},
	{"pipeline", func(ctx context.Context, m *randomMachine, what string) error {
		return m.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
			pipeline := c.Conn().PgConn().StartPipeline(ctx)
			pipeline.SendQueryParams(randomOnceText(what, 1), nil, nil, nil, nil)
			pipeline.SendPipelineSync()
			pipeline.SendQueryParams("select 1", nil, nil, nil, nil)
			return errors.Join(pipeline.Sync(), pipeline.Close())
		})
	}},
	{"sql exec", func(ctx context.Context, m *randomMachine, what string) error {
		_, err := m.openDB().ExecContext(ctx, randomOnceSQL, what)
		return err
	}},
	{"sql long text", func(ctx context.Context, m *randomMachine, what string) error {
		_, err := m.openDB().ExecContext(ctx, randomOnceText(what, 20_000))
		return err
	}},
	{"sql transaction", func(ctx context.Context, m *randomMachine, what string) error {
		tx, err := m.openDB().BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		if _, err := tx.ExecContext(ctx, randomOnceSQL, what); err != nil {
			return err
		}
		return tx.Commit()
	}},
}

// writeOnce writes a row that no other operation writes.
func (g *randomGenerator) writeOnce() *randomOp {
	way := pick(g, randomOnceWays...)
	what := fmt.Sprint("once", len(g.program.ops))
	halts := g.one(2)
	return &randomOp{text: fmt.Sprintf("write once: %s, replay halts: %v", way.name, halts), needs: 1, run: func(m *randomMachine) {
		if halts {
			m.halt() // so that what is not counted is not seen
		}
		err := way.write(m.ctx, m, what)
		m.note("written", err)
		if m.once == nil {
			m.once = map[string]error{}
		}
		m.once[what] = err
		m.look("after it")
	}}
}

// checkOnce blames what was written more or less often than it had to be.
func (m *randomMachine) checkOnce() {
	if !m.settled() {
		m.blame("sessions are left on the primary")
	}
	for what, err := range m.once {
		var n int
		if err := m.lab.leader.ask("select count(*) from "+m.schema+".once where what = $1", []any{what}, &n); err != nil {
			m.lab.t.Error(err)
		}
		switch {
		case m.plain && n > 0 && errors.Is(err, pgconn.ErrConnClosed), m.plain && n > 1:
			// pgx takes a simple query whose connection was lost for one that was not sent.
			m.lab.cuts["misjudged by pgx"]++
		case n > 1, n == 0 && err == nil, n > 0 && pgconn.SafeToRetry(err) && !errors.Is(err, pgconn.ErrConnClosed):
			m.blame(fmt.Sprintf("%s was written %d times, and its error is: %s", what, n, describeError(err)))
		case err != nil && n == 1:
			m.lab.cuts["written, and failed"]++
		case err != nil:
			m.lab.cuts["not written"]++
		default:
			m.lab.cuts["written"]++
		}
	}
}

// recovers blames a pool that does not serve again when its link does.
func (m *randomMachine) recovers() {
	m.now.Store(&randomOp{text: "at the end"})
	for range 3 * (m.program.maxConns + 1) {
		_, err := m.Exec(m.ctx, "insert into log (what) values ('recovered')")
		if err == nil && m.lookBetween("the end") {
			return
		}
	}
	m.blame("the pool does not serve again")
}
