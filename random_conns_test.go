package flyregion

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// begin begins a transaction, or one in another.
func (g *randomGenerator) begin() *randomOp {
	slot := g.IntN(randomSlots)
	if g.opened[randomPlace{onTx, slot}] && g.one(2) {
		under := pick(g, "", "", "", "canceled", "canceled after")
		return &randomOp{text: fmt.Sprintf("tx%d.Begin %s", slot, under), run: func(m *randomMachine) {
			tx := m.txs[slot]
			if tx == nil || len(tx.nested) > 3 {
				return
			}
			ctx, done := m.context(under)
			defer done()
			inner, err := tx.inner().Begin(ctx)
			m.note("begin", err)
			if err == nil {
				tx.nested = append(tx.nested, inner)
			}
		}}
	}
	p := randomPlace{kind: onPool}
	switch {
	case g.one(3):
		if open, ok := g.slotOf(true, onAcquired); ok {
			p = open
		}
	case g.one(8):
		p = randomPlace{kind: onPrimary}
	}
	options := pick(g, randomTxOptions...)
	under := ""
	if g.one(6) {
		under = pick(g, "canceled", "canceled after", "primary")
	}
	g.opened[randomPlace{onTx, slot}] = true
	return &randomOp{text: fmt.Sprintf("tx%d = %s.BeginTx %s %+v", slot, p, under, options), needs: p.needs(), run: func(m *randomMachine) {
		q, ok := m.at(p).(interface {
			BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
		})
		if !ok || m.txs[slot] != nil && !m.txs[slot].over || options.DeferrableMode != "" || options.AccessMode == pgx.ReadOnly && m.fragile() {
			return // a deferrable one would wait for those that are open, and one on the replica would be lost
		}
		ctx, done := m.context(under)
		defer done()
		since := m.lab.written()
		tx, err := q.BeginTx(ctx, options)
		m.note("begin", err)
		if err == nil {
			m.txs[slot] = &randomTx{nested: []pgx.Tx{tx}, holds: p.pools(), reads: options.AccessMode == pgx.ReadOnly, since: since}
			m.own(p, func(o *randomOwned) *bool { return &o.txs[slot] })
		}
	}}
}

// endTx commits a transaction or rolls it back.
func (g *randomGenerator) endTx() *randomOp {
	p, ok := g.slotOf(true, onTx)
	if !ok {
		return nil
	}
	slot := p.slot
	commit, outer := !g.one(4), g.one(3)
	under := ""
	if g.one(10) {
		under = pick(g, "canceled", "canceled after")
	}
	if outer {
		delete(g.opened, randomPlace{onTx, slot})
	}
	halts, writes := g.one(2), g.one(2)
	return &randomOp{text: fmt.Sprintf("tx%d ends, commit=%v outermost=%v replay halts=%v writes=%v %s", slot, commit, outer, halts, writes, under), run: func(m *randomMachine) {
		tx := m.txs[slot]
		if tx == nil {
			return
		}
		if halts {
			m.halt()
		}
		if writes && !tx.reads {
			tag, err := tx.inner().Exec(m.ctx, "insert into log (what) values ('at the end')")
			m.note("exec", tag, err)
		}
		ending := tx.inner()
		if outer {
			ending = tx.nested[0]
			tx.nested = tx.nested[:1]
		}
		var pid uint32
		if conn := m.connAt(randomPlace{onTx, slot}); conn != nil {
			pid = conn.PgConn().PID()
		}
		ctx, done := m.context(under)
		defer done()
		if commit {
			m.note("commit", ending.Commit(ctx))
		} else {
			m.note("rollback", ending.Rollback(ctx))
		}
		if len(tx.nested) > 1 {
			tx.nested = tx.nested[:len(tx.nested)-1]
			return
		}
		if tx.over {
			return
		}
		tx.over = true
		if tx.holds {
			m.forget(randomPlace{onTx, slot})
			m.settle(pid)
		}
		m.look("after it")
	}}
}

// acquire acquires a connection.
func (g *randomGenerator) acquire() *randomOp {
	p, ok := g.slotOf(false, onAcquired)
	if !ok {
		return nil
	}
	slot := p.slot
	under := ""
	if g.one(10) {
		under = pick(g, "canceled", "canceled after", "primary")
	}
	g.opened[randomPlace{onAcquired, slot}] = true
	return &randomOp{text: fmt.Sprintf("conn%d = Acquire %s", slot, under), needs: 1, run: func(m *randomMachine) {
		if m.conns[slot] != nil {
			return
		}
		ctx, done := m.context(under)
		defer done()
		c, err := m.Acquire(ctx)
		m.note("acquire", err)
		if err == nil {
			m.conns[slot], m.dirty[slot] = c, false
		}
	}}
}

// giveBack releases a connection, takes it over, or closes it.
func (g *randomGenerator) giveBack() *randomOp {
	p, ok := g.slotOf(true, onHijacked)
	if ok && g.one(3) {
		slot := p.slot
		delete(g.opened, randomPlace{onHijacked, slot})
		return &randomOp{text: fmt.Sprintf("hijacked%d.Close", slot), run: func(m *randomMachine) {
			if c := m.raws[slot]; c != nil {
				m.forget(randomPlace{onHijacked, slot})
				m.raws[slot] = nil
				pid := c.PgConn().PID()
				m.note("close", c.Close(m.ctx))
				m.gone(pid)
			}
		}}
	}
	if p, ok = g.slotOf(true, onAcquired); !ok {
		return nil
	}
	slot := p.slot
	delete(g.opened, randomPlace{onAcquired, slot})
	switch g.IntN(8) {
	case 0:
		g.opened[randomPlace{onHijacked, slot}] = true
		return &randomOp{text: fmt.Sprintf("hijacked%d = conn%d.Hijack", slot, slot), run: func(m *randomMachine) {
			if c := m.conns[slot]; c != nil && m.raws[slot] == nil {
				m.forget(randomPlace{onAcquired, slot})
				m.conns[slot], m.dirty[slot] = nil, false
				m.raws[slot] = c.Hijack()
				m.note("hijacked")
			}
		}}
	case 1:
		return &randomOp{text: fmt.Sprintf("conn%d.Conn().Close", slot), run: func(m *randomMachine) {
			if c := m.conns[slot]; c != nil {
				m.note("close", c.Conn().Close(m.ctx))
			}
		}}
	}
	return &randomOp{text: fmt.Sprintf("conn%d.Release", slot), run: func(m *randomMachine) {
		if m.conns[slot] != nil {
			m.forget(randomPlace{onAcquired, slot})
			m.release(slot)
			m.note("released")
		}
	}}
}

// acquireFunc runs a few statements in an AcquireFunc, which may fail or panic.
func (g *randomGenerator) acquireFunc() *randomOp {
	script := g.script(randomPlace{onAcquired, 0}, false)
	ending := pick(g, "", "", "", "fails", "panics", "begins")
	return &randomOp{text: fmt.Sprintf("AcquireFunc %s {%s}", ending, script.text), needs: 1, run: func(m *randomMachine) {
		var pid uint32
		defer func() { m.settle(pid) }()
		m.note("acquire func", m.AcquireFunc(m.ctx, func(c *pgxpool.Conn) error {
			pid = c.Conn().PgConn().PID()
			if ending == "begins" {
				_, err := c.Exec(m.ctx, "begin")
				m.note("begin", err)
			}
			script.run(m, c)
			switch ending {
			case "fails":
				return errRandom
			case "panics":
				panic("in AcquireFunc")
			}
			return nil
		}))
		m.look("after it")
	}}
}

// beginFunc runs a few statements in a pgx.BeginFunc, which may fail or panic.
func (g *randomGenerator) beginFunc() *randomOp {
	options := pick(g, randomTxOptions...)
	script := g.script(randomPlace{kind: onTx}, options.AccessMode == pgx.ReadOnly)
	ending := pick(g, "", "", "", "fails", "panics", "commits")
	return &randomOp{text: fmt.Sprintf("BeginTxFunc %s %+v {%s}", ending, options, script.text), needs: 1, run: func(m *randomMachine) {
		if options.DeferrableMode != "" && (m.program.together || !m.alone(randomPlace{kind: onPool})) || options.AccessMode == pgx.ReadOnly && m.fragile() {
			return // it would wait for the others, or be lost
		}
		func() {
			defer func() {
				if r := recover(); r != nil {
					m.note("panics", r)
				}
			}()
			m.note("begin func", pgx.BeginTxFunc(m.ctx, m, options, func(tx pgx.Tx) error {
				script.run(m, tx)
				switch ending {
				case "fails":
					return errRandom
				case "panics":
					panic("in BeginTxFunc")
				case "commits":
					return tx.Commit(m.ctx)
				}
				return nil
			}))
		}()
		m.look("after it")
	}}
}

func (g *randomGenerator) script(p randomPlace, readOnly bool) randomScript {
	var s randomScript
	p.slot = 0
	lane := p.lane() + 300 // nobody else's
	type step struct {
		text randomText
		args []any
		way  string
	}
	var steps []step
	for range 1 + g.IntN(3) {
		text := g.text(randomPlace{kind: onPrimary})
		if text.kind == textWide || text.kind == textDDL || text.kind == textDDLWide || text.kind == textSeveralSession || readOnly && text.kind == textReadsPrimary {
			continue
		}
		steps = append(steps, step{text, g.arguments(text, lane), pick(g, "values", "first", "close", "exec")})
		s.text += fmt.Sprintf(" %s %q %v;", steps[len(steps)-1].way, text.sql, steps[len(steps)-1].args)
	}
	s.run = func(m *randomMachine, q randomQuerier) {
		for _, step := range steps {
			if step.way == "exec" {
				tag, err := q.Exec(m.ctx, step.text.sql, slices.Clone(step.args)...)
				m.note("exec", tag, err)
				continue
			}
			rows, err := q.Query(m.ctx, step.text.sql, slices.Clone(step.args)...)
			m.note("query", err)
			m.consume(rows, step.way)
		}
	}
	return s
}

// prepare prepares a statement on a connection and uses it by its name.
func (g *randomGenerator) prepare() *randomOp {
	p, ok := g.slotOf(true, onAcquired, onTx, onHijacked)
	if !ok {
		return nil
	}
	name := pick(g, "own_a", "own_b")
	sql := pick(g, "select n from items where id = $1", "insert into log (what) values ('p' || $1::int)", "select w($1)", "selec $1")
	id := p.lane() + g.IntN(9)
	return &randomOp{text: fmt.Sprintf("%s.Prepare %s %q, %d", p, name, sql, id), run: func(m *randomMachine) {
		conn := m.connAt(p)
		if conn == nil {
			return
		}
		if p.kind == onAcquired {
			m.dirty[p.slot] = true
		}
		_, err := conn.Prepare(m.ctx, name, sql)
		m.note("prepare", err)
		rows, err := m.at(p).Query(m.ctx, name, id)
		m.note("query", err)
		m.consume(rows, "values")
		m.note("deallocate", conn.Deallocate(m.ctx, name))
		m.look("after it")
	}}
}

// busy leaves rows of a transaction open and does what a busy connection refuses.
func (g *randomGenerator) busy() *randomOp {
	p, ok := g.slotOf(true, onTx, onAcquired)
	if !ok {
		return nil
	}
	refused := pick(g, "begin", "exec", "query", "batch", "copy", "prepare", "savepoint")
	n := g.IntN(100)
	return &randomOp{text: fmt.Sprintf("%s is busy with a write, and %s is refused", p, refused), run: func(m *randomMachine) {
		q := m.at(p)
		if q == nil || m.aborted(p) || p.kind == onTx && m.txs[p.slot].reads {
			return // a refusal may be there before Query returns, as a replica's always is, and leaves nothing busy
		}
		rows, err := q.Query(m.ctx, "insert into log (what) values ($1) returning k", m.sent(p, []any{fmt.Sprint("busy", n)})...)
		m.note("query", err)
		switch refused {
		case "begin", "savepoint":
			_, err = q.Begin(m.ctx)
		case "exec":
			_, err = q.Exec(m.ctx, "insert into log (what) values ('refused')")
		case "query":
			_, err = q.Query(m.ctx, "select 1", m.sent(p, nil)...)
		case "batch":
			b := &pgx.Batch{}
			b.Queue("select 1")
			err = q.SendBatch(m.ctx, b).Close()
		case "copy":
			_, err = q.CopyFrom(m.ctx, pgx.Identifier{"log"}, []string{"what"}, pgx.CopyFromRows([][]any{{"x"}}))
		case "prepare":
			if conn := m.connAt(p); conn != nil {
				_, err = conn.Prepare(m.ctx, "busy", "select 1")
			}
		}
		m.note("refused", err)
		m.consume(rows, "values")
		m.look("after it")
	}}
}

// abandon leaves the results of a statement unread when its connection is given back.
func (g *randomGenerator) abandon() *randomOp {
	how := pick(g, "query", "query row", "batch", "batch half", "simple", "raw")
	n := g.IntN(100)
	return &randomOp{text: "abandon the results of a write: " + how, needs: 1, run: func(m *randomMachine) {
		c, err := m.Acquire(m.ctx)
		m.note("acquire", err)
		if err != nil {
			return
		}
		const sql = "insert into log (what) values ($1) returning k"
		what := fmt.Sprint("abandoned", n)
		rows := m.logged(what) + 1
		m.halt() // so that what is not counted is not seen
		switch how {
		case "query":
			_, err = c.Query(m.ctx, sql, what)
		case "simple":
			_, err = c.Query(m.ctx, sql, pgx.QueryExecModeSimpleProtocol, what)
		case "query row":
			c.QueryRow(m.ctx, sql, what)
		case "batch", "batch half":
			b := &pgx.Batch{}
			b.Queue(sql, what)
			b.Queue(sql, what)
			rows++
			results := c.SendBatch(m.ctx, b)
			if how == "batch half" {
				_, err = results.Exec()
			}
		case "raw":
			reader := c.Conn().PgConn().Exec(m.ctx, fmt.Sprintf("insert into log (what) values ('%s') returning k", what))
			m.note("result", reader.NextResult())
		}
		m.note("sent", err)
		// A request to cancel goes with the release.
		m.awaitThat("a statement never ends", func() bool { return m.logged(what) >= rows })
		pid := c.Conn().PgConn().PID()
		c.Release()
		m.gone(pid)
		m.look("after it")
	}}
}
