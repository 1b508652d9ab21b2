package flyregion

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// errRandom is an error of the app's own.
var errRandom = errors.New("the app's own")

// look reads everything through the pool.
func (g *randomGenerator) look() *randomOp {
	return &randomOp{text: "look", needs: 1, run: func(m *randomMachine) { m.look("it") }}
}

// statement runs a statement somewhere.
func (g *randomGenerator) statement() *randomOp {
	p := g.place()
	return g.statementAt(p)
}

func (g *randomGenerator) statementAt(p randomPlace) *randomOp {
	text := g.text(p)
	args := g.arguments(text, p.lane())
	reads := text.kind == textReads
	under := g.under(p, reads)
	sent := args
	mode := ""
	if g.one(6) && text.args != "named" {
		m := pick(g, randomModes...)
		sent, mode = append([]any{m}, args...), " "+m.String()
	}
	whole := under != "canceled after" // nothing may be left to read when the context ends
	switch how := g.IntN(10); {
	case how < 2 || !whole || text.kind == textSeveral && how < 6:
		return &randomOp{text: fmt.Sprintf("%s.Exec%s %s %q %v", p, mode, under, text.sql, args), needs: p.needs(), run: func(m *randomMachine) {
			q := m.at(p)
			if q == nil || !m.fitting(text, p) {
				return
			}
			ctx, done := m.context(under)
			tag, err := q.Exec(ctx, text.sql, m.sent(p, sent)...)
			done()
			m.note("exec", tag, err)
		}}
	case how < 5 && text.columns > 0:
		hows := []string{"scan", "scan", "scan", "twice", "scanner", "fails", "panics", "mismatch", "driver bytes"}
		scan := pick(g, hows...)
		return &randomOp{text: fmt.Sprintf("%s.QueryRow(%s)%s %s %q %v", p, scan, mode, under, text.sql, args), needs: p.needs(), run: func(m *randomMachine) {
			q := m.at(p)
			if q == nil || !m.fitting(text, p) {
				return
			}
			if scan == "panics" && p.kind == onTx && m.txs[p.slot].reads {
				return // pgx leaves the connection busy; on a replica the answer was read to its end before Scan
			}
			ctx, done := m.context(under)
			defer done()
			m.scanRow(q.QueryRow(ctx, text.sql, m.sent(p, sent)...), text.columns, scan)
		}}
	default:
		ways := []string{"values", "values", "first", "two", "close", "fails", "panics", "mismatch", "collect"}
		way := pick(g, ways...)
		if reads && g.one(4) {
			way = "looks"
		}
		// Rows are not kept if preparing them fails where it is not their first use.
		keep, slot := g.one(5) && !text.comesAndGoes(), g.IntN(randomSlots)
		if keep {
			way = "keep"
			g.opened[randomPlace{onRows, slot}] = true
		}
		change := len(args) > 0 && g.one(4)
		changed := ""
		if change {
			changed = " changes its arguments"
		}
		return &randomOp{text: fmt.Sprintf("%s.Query(%s)%s%s %s %q %v", p, way, changed, mode, under, text.sql, args), needs: p.needs(), run: func(m *randomMachine) {
			q := m.at(p)
			if q == nil || !m.fitting(text, p) || keep && m.rows[slot] != nil {
				return
			}
			ctx, done := m.context(under)
			aborted := m.aborted(p)
			own := m.sent(p, sent)
			if len(own) > 0 && change {
				// What a pointer leads to belongs to the caller as well.
				if id, ok := own[len(own)-1].(int); ok {
					own[len(own)-1] = &id
					defer func() { id += 100 }()
				}
			}
			rows, err := q.Query(ctx, text.sql, own...)
			if change {
				for i, v := range own {
					switch v := v.(type) {
					case int:
						own[i] = v + 100
					case *int:
						*v += 100
					case string:
						own[i] = v + "changed"
					}
				}
			}
			m.note("query", err)
			way := way
			if m.fragile() && (way == "keep" || way == "looks") {
				way = "values"
			}
			if way != "keep" {
				defer done()
				m.using = p.needs()
				m.consume(rows, way)
				return
			}
			// What was written counts when the rows are closed: not before, unless nothing was committed.
			// A read-only transaction may have been on the replica, and has its first row before Query returns.
			if err != nil || aborted || !reads && !m.inBlock(p) || p.kind == onTx && m.txs[p.slot].reads {
				m.consume(rows, "values")
				return
			}
			m.rows[slot] = &randomRows{rows, p.pools()}
			m.own(p, func(o *randomOwned) *bool { return &o.rows[slot] })
		}}
	}
}

// nextOfRows reads on in rows, or closes them.
func (g *randomGenerator) nextOfRows() *randomOp {
	p, ok := g.slotOf(true, onRows)
	if !ok {
		return nil
	}
	slot := p.slot
	n := pick(g, 0, 1, 2, 100)
	return &randomOp{text: fmt.Sprintf("rows%d next %d", slot, n), run: func(m *randomMachine) {
		rows := m.rows[slot]
		if rows == nil {
			return
		}
		for range n {
			if !rows.Next() {
				break
			}
			m.readRow(rows)
		}
		if n != 1 {
			m.closeRows(slot)
		} else {
			m.note("so far", rows.Err())
		}
	}}
}

var randomTxOptions = []pgx.TxOptions{
	{}, {}, {},
	{AccessMode: pgx.ReadOnly}, {AccessMode: pgx.ReadOnly},
	{AccessMode: pgx.ReadOnly, IsoLevel: pgx.RepeatableRead},
	{AccessMode: pgx.ReadOnly, IsoLevel: pgx.Serializable},
	{IsoLevel: pgx.Serializable},
	{IsoLevel: pgx.RepeatableRead},
	{IsoLevel: pgx.Serializable, AccessMode: pgx.ReadOnly, DeferrableMode: pgx.Deferrable},
	{BeginQuery: "begin isolation level repeatable read"},
	{BeginQuery: "no such begin"},
	{CommitQuery: "commit and chain"},
}

// randomScript is a few statements on one connection.
type randomScript struct {
	text string
	run  func(m *randomMachine, q randomQuerier)
}

// replay halts the replica's replay, or lets it continue.
func (g *randomGenerator) replay() *randomOp {
	halts := !g.one(3)
	return &randomOp{text: fmt.Sprintf("replay halts: %v", halts), run: func(m *randomMachine) {
		if halts {
			m.halt()
		} else if m.ours != nil {
			m.lab.resume()
		}
	}}
}

// halt halts the replica's replay.
func (m *randomMachine) halt() {
	if m.ours != nil {
		m.lab.pause()
	}
}

// upkeep is what an app does rarely.
func (g *randomGenerator) upkeep() *randomOp {
	if g.one(2) {
		return &randomOp{text: "Reset", run: func(m *randomMachine) { m.Reset(); m.note("reset") }}
	}
	return &randomOp{text: "Ping", needs: 1, run: func(m *randomMachine) { m.note("ping", m.Ping(m.ctx)) }}
}

// canceledDuring runs a statement whose context ends while it runs.
func (g *randomGenerator) canceledDuring() *randomOp {
	p := g.place()
	sql := pick(g, "select pg_sleep(60)::text", "insert into log (what) select 'never' from pg_sleep(60)",
		"select i, case when i > 2 then (select repeat('x', i) from pg_sleep(60)) else repeat('x', 9000) end from generate_series(1, 4) i") + g.program.mark
	exec := g.one(2)
	return &randomOp{text: fmt.Sprintf("%s canceled while it runs, exec=%v: %q", p, exec, sql), needs: p.needs(), run: func(m *randomMachine) {
		q := m.at(p)
		if q == nil {
			return
		}
		ctx, stop := m.canceledWhileItSleeps()
		defer stop()
		var err error
		if exec {
			_, err = q.Exec(ctx, sql)
		} else {
			var rows pgx.Rows
			if rows, err = q.Query(ctx, sql, m.sent(p, nil)...); err == nil {
				for rows.Next() {
				}
				err = rows.Err()
			}
			rows.Close()
		}
		stop()
		m.loosely("canceled", err)
		m.canceledAt(p)
		m.look("after it")
	}}
}

// canceledWhileItSleeps returns a context that ends when a server runs pg_sleep, and what to call when the statement has
// returned.
func (m *randomMachine) canceledWhileItSleeps() (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(m.ctx)
	returned := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		defer cancel()
		for !m.lab.sleeps(m.program) {
			select {
			case <-returned:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	return ctx, sync.OnceFunc(func() {
		close(returned)
		watcher.Wait()
	})
}

// copyFrom copies rows in.
func (g *randomGenerator) copyFrom() *randomOp {
	p := g.place()
	columns, table := []string{"id", "n", "v"}, "items"
	switch g.IntN(8) {
	case 0:
		table = "missing"
	case 1:
		columns = []string{"id", "missing", "v"}
	}
	ids := []int{p.lane() + 10 + g.IntN(5), p.lane() + 15}
	fails := pick(g, "", "", "", "fails", "wrong value")
	under := pick(g, "", "", "", "", "canceled", "canceled after")
	return &randomOp{text: fmt.Sprintf("%s.CopyFrom %s %s %v %v %s", p, under, table, columns, ids, fails), needs: p.needs(), run: func(m *randomMachine) {
		q := m.at(p)
		if q == nil {
			return
		}
		ctx, done := m.context(under)
		defer done()
		source := pgx.CopyFromFunc(func() func() ([]any, error) {
			i := 0
			return func() ([]any, error) {
				if i == len(ids) {
					switch fails {
					case "fails":
						return nil, errRandom
					case "wrong value":
						i++
						return []any{"no number", 1, "x"}, nil
					}
				}
				if i >= len(ids) {
					return nil, nil
				}
				i++
				return []any{ids[i-1], i, "copied"}, nil
			}
		}())
		defer func() { m.canceledAt(p) }()
		n, err := q.CopyFrom(ctx, pgx.Identifier{table}, columns, source)
		m.note("copied", n, err)
	}}
}

// lateWrite calls a function that writes behind its first row although it is declared STABLE. The first call may be refused
// on the replica, once its rows have begun; the second is not.
func (g *randomGenerator) lateWrite() *randomOp {
	p := pick(g, randomPlace{kind: onPool}, randomPlace{kind: onDB})
	wide := pick(g, "", "repeat('x', 9000), ")
	sql := fmt.Sprintf("select %slate_w(i) from generate_series(1, 5) i", wide)
	return &randomOp{text: fmt.Sprintf("%s late write, until it is not refused: %q", p, sql), needs: 1, run: func(m *randomMachine) {
		refused := 0
		for ; ; refused++ {
			var err error
			if p.kind == onDB {
				var rows *stdsql.Rows
				if rows, err = m.openDB().QueryContext(m.ctx, sql); err == nil {
					for rows.Next() {
					}
					err = errors.Join(rows.Err(), rows.Close())
				}
			} else {
				rows, _ := m.Query(m.ctx, sql)
				rows.Close()
				err = rows.Err()
			}
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) || pgErr.Code != "25006" || refused > 0 {
				m.note("written", err)
				break
			}
		}
		m.look("after it")
	}}
}
