package flyregion

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

const (
	onDB      randomKind = "db"
	onSQLConn randomKind = "sqlconn"
	onSQLTx   randomKind = "sqltx"
)

// randomSQLQuerier is what database/sql's types have in common.
type randomSQLQuerier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// sqlAt returns what runs statements at a place, nil if there is nothing.
func (m *randomMachine) sqlAt(p randomPlace) randomSQLQuerier {
	switch p.kind {
	case onDB:
		return m.openDB()
	case onSQLConn:
		if c := m.sqlConns[p.slot]; c != nil {
			return c
		}
	case onSQLTx:
		if tx := m.sqlTxs[p.slot]; tx != nil {
			m.refresh(tx.reads && !tx.over, &tx.since)
			return tx
		}
	}
	return nil
}

func (g *randomGenerator) sqlPlace() randomPlace {
	var open []randomPlace
	for _, kind := range []randomKind{onSQLConn, onSQLTx} {
		for slot := range randomSlots {
			if p := (randomPlace{kind, slot}); g.opened[p] {
				open = append(open, p)
			}
		}
	}
	if len(open) == 0 || g.one(3) {
		return randomPlace{kind: onDB}
	}
	return pick(g, open...)
}

// sqlStatement runs a statement through database/sql.
func (g *randomGenerator) sqlStatement() *randomOp {
	p := g.sqlPlace()
	needs := 0
	if p.kind == onDB {
		needs = 1
	}
	text := g.text(p)
	for text.kind == textSeveralSession {
		text = g.text(p)
	}
	args := g.arguments(text, p.lane())
	how := pick(g, "exec", "query", "query", "row", "row", "prepared", "prepared tx", "keep", "prepare", "stmt")
	if how == "prepared tx" && p.kind != onSQLTx {
		how = "prepared"
	}
	canceled := g.one(12) && p.kind != onSQLConn // pgx says "bad connection" there
	slot := g.IntN(randomSlots)
	return &randomOp{text: fmt.Sprintf("%s %s stmt%d canceled=%v %q %v", p, how, slot, canceled, text.sql, args), needs: needs, run: func(m *randomMachine) {
		q := m.sqlAt(p)
		if q == nil || !m.fitting(text, p) {
			return
		}
		ctx, done := m.context(map[bool]string{true: "canceled"}[canceled])
		defer done()
		switch how {
		case "exec":
			m.sqlExeced(q.ExecContext(ctx, text.sql, slices.Clone(args)...))
		case "query":
			m.sqlRead(q.QueryContext(ctx, text.sql, slices.Clone(args)...))
		case "row":
			values, dests := make([]any, text.columns), make([]any, text.columns)
			for i := range dests {
				dests[i] = &values[i]
			}
			err := q.QueryRowContext(ctx, text.sql, slices.Clone(args)...).Scan(dests...)
			m.note("row", shortened(values), err)
		case "prepared", "prepared tx":
			stmt, err := q.PrepareContext(ctx, text.sql)
			m.note("prepare", err)
			if err != nil {
				return
			}
			m.sqlRead(stmt.QueryContext(ctx, slices.Clone(args)...))
			if how == "prepared" {
				m.note("close", stmt.Close())
			} // database/sql closes it with its transaction
		case "keep":
			rows, err := q.QueryContext(m.ctx, text.sql, slices.Clone(args)...)
			if err != nil || m.fragile() || m.sqlRows[slot] != nil || text.kind.writes() || p.kind != onDB {
				m.sqlRead(rows, err)
				return
			}
			m.note("query", err)
			m.sqlRows[slot] = &randomSQLRows{rows, true}
		case "prepare":
			if m.sqlStmts[slot] != nil || p.kind != onDB {
				return
			}
			stmt, err := q.PrepareContext(ctx, text.sql)
			m.note("prepare", err)
			if err == nil {
				m.sqlStmts[slot] = stmt
			}
		case "stmt":
			stmt := m.sqlStmts[slot]
			if stmt == nil {
				return
			}
			if tx, ok := q.(*randomSQLTx); ok {
				stmt = tx.StmtContext(ctx, stmt)
			} else if p.kind != onDB {
				return
			}
			m.sqlRead(stmt.QueryContext(ctx))
		}
		if p.kind == onDB {
			m.look("after it")
		}
	}}
}

func (m *randomMachine) sqlExeced(result sql.Result, err error) {
	if err != nil {
		m.note("exec", err)
		return
	}
	n, err := result.RowsAffected()
	m.note("exec", n, err)
}

func (m *randomMachine) sqlRead(rows *sql.Rows, err error) {
	m.note("query", err)
	if err != nil {
		return
	}
	m.sqlNext(rows, 1000)
	m.note("close", rows.Close(), rows.Err())
}

// sqlNext reads up to n rows.
func (m *randomMachine) sqlNext(rows *sql.Rows, n int) {
	columns, err := rows.Columns()
	m.note("columns", columns, err)
	for ; n > 0 && rows.Next(); n-- {
		values, dests := make([]any, len(columns)), make([]any, len(columns))
		for i := range dests {
			dests[i] = &values[i]
		}
		err := rows.Scan(dests...)
		m.note("row", shortened(values), err)
	}
}

var randomSQLTxOptions = []*sql.TxOptions{
	nil, nil, nil,
	{ReadOnly: true}, {ReadOnly: true},
	{ReadOnly: true, Isolation: sql.LevelRepeatableRead},
	{Isolation: sql.LevelSerializable},
	{ReadOnly: true, Isolation: sql.LevelSerializable},
	{Isolation: sql.LevelLinearizable}, // that there is none
}

// sqlOpen takes a sql.Conn or begins a sql.Tx.
func (g *randomGenerator) sqlOpen() *randomOp {
	slot := g.IntN(randomSlots)
	if g.one(2) {
		g.opened[randomPlace{onSQLConn, slot}] = true
		return &randomOp{text: fmt.Sprintf("sqlconn%d = DB.Conn", slot), needs: 1, run: func(m *randomMachine) {
			if m.sqlConns[slot] != nil {
				return
			}
			conn, err := m.openDB().Conn(m.ctx)
			m.note("conn", err)
			if err == nil {
				m.sqlConns[slot] = conn
			}
		}}
	}
	options := pick(g, randomSQLTxOptions...)
	on := randomPlace{kind: onDB}
	needs := 1
	if g.one(3) {
		if open, ok := g.slotOf(true, onSQLConn); ok {
			on, needs = open, 0
		}
	}
	g.opened[randomPlace{onSQLTx, slot}] = true
	return &randomOp{text: fmt.Sprintf("sqltx%d = %s.BeginTx %+v", slot, on, options), needs: needs, run: func(m *randomMachine) {
		q, ok := m.sqlAt(on).(interface {
			BeginTx(context.Context, *sql.TxOptions) (*sql.Tx, error)
		})
		if !ok || m.sqlTxs[slot] != nil && !m.sqlTxs[slot].over || options != nil && options.ReadOnly && m.fragile() {
			return
		}
		if on.kind == onSQLConn && m.sqlTxOn(on.slot) {
			return // it would wait for the one before
		}
		since := m.lab.written()
		tx, err := q.BeginTx(m.ctx, options)
		m.note("begin", err)
		if err == nil {
			m.sqlTxs[slot] = &randomSQLTx{Tx: tx, holds: on.kind == onDB, reads: options != nil && options.ReadOnly, since: since}
			if on.kind == onSQLConn {
				m.sqlTxs[slot].conn = on.slot + 1
			}
		}
	}}
}

// sqlStates are statements that leave state in a session, each with a read of that state. A replica has no such state.
var sqlStates = [][2]string{
	{"set app.x = 'set'", "select coalesce(current_setting('app.x', true), '')"},
	{"select set_config('app.x', 'configured', false)", "select coalesce(current_setting('app.x', true), '')"},
	{"call p_sets('called')", "select coalesce(current_setting('app.x', true), '')"},
	{"set datestyle = 'SQL, DMY'", "select date '2026-11-21'::text"},
	{"create temp table scratch as select 7 as n", "select n from scratch"},
	{"create temp table items as select 8 as n", "select n from items"},
	{"raw", "select coalesce(current_setting('app.x', true), '')"},
}

// sqlState leaves state in the session of a sql.Conn and reads it there.
func (g *randomGenerator) sqlState() *randomOp {
	p, ok := g.slotOf(true, onSQLConn)
	if !ok {
		return nil
	}
	slot, state := p.slot, pick(g, sqlStates...)
	return &randomOp{text: fmt.Sprintf("sqlconn%d %q, then %q", slot, state[0], state[1]), run: func(m *randomMachine) {
		conn := m.sqlConns[slot]
		if conn == nil || m.sqlTxOn(slot) || m.broken == "stalled" {
			return // Raw has no context that could end
		}
		m.sqlDirty[slot] = true
		if state[0] == "raw" {
			m.openSession(conn)
			m.note("raw", conn.Raw(func(driverConn any) error {
				c := driverConn.(interface{ Conn() *pgx.Conn }).Conn()
				if c == nil {
					return errNoConn // the link is cut
				}
				_, err := c.Exec(m.ctx, "set app.x = 'raw'")
				return err
			}))
		} else {
			m.sqlRead(conn.QueryContext(m.ctx, state[0]))
		}
		m.sqlRead(conn.QueryContext(m.ctx, state[1]))
	}}
}

var errNoConn = errors.New("there is no connection")

// openSession has a sql.Conn open its session under the machine's context, as Raw would open it without.
func (m *randomMachine) openSession(conn *sql.Conn) {
	if m.program.together {
		m.note("ping", conn.PingContext(m.ctx))
	}
}

// sqlTxOn says whether a transaction is open on a sql.Conn.
func (m *randomMachine) sqlTxOn(conn int) bool {
	return slices.ContainsFunc(m.sqlTxs[:], func(tx *randomSQLTx) bool { return tx != nil && !tx.over && tx.conn == conn+1 })
}

// sqlClose ends what sqlOpen and the statements have left.
func (g *randomGenerator) sqlClose() *randomOp {
	slot := g.IntN(randomSlots)
	what := pick(g, "commit", "commit", "rollback", "conn", "rows", "stmt", "raw", "ping")
	return &randomOp{text: fmt.Sprintf("sql%d %s", slot, what), run: func(m *randomMachine) {
		switch what {
		case "commit", "rollback":
			tx := m.sqlTxs[slot]
			if tx == nil {
				return
			}
			if what == "commit" {
				m.note("commit", tx.Commit())
			} else {
				m.note("rollback", tx.Rollback())
			}
			tx.over = true
			m.look("after it")
		case "conn":
			if m.sqlConns[slot] != nil && !m.sqlTxOn(slot) {
				m.closeSQLConn(slot)
				m.landed()
			}
		case "rows":
			if rows := m.sqlRows[slot]; rows != nil {
				m.sqlNext(rows.Rows, 1)
				m.sqlRows[slot] = nil
				m.note("close", rows.Close(), rows.Err())
			}
		case "stmt":
			if stmt := m.sqlStmts[slot]; stmt != nil {
				m.sqlStmts[slot] = nil
				m.note("close", stmt.Close())
			}
		case "raw":
			conn := m.sqlConns[slot]
			if conn == nil || m.sqlTxOn(slot) || m.broken == "stalled" {
				return // Raw has no context that could end
			}
			m.openSession(conn)
			m.note("raw", conn.Raw(func(driverConn any) error {
				c := driverConn.(interface{ Conn() *pgx.Conn }).Conn()
				if c == nil {
					return errNoConn // the link is cut
				}
				tag, err := c.Exec(m.ctx, "insert into log (what) values ('sql raw')")
				m.note("exec", tag, err)
				return nil
			}))
		case "ping":
			if conn := m.sqlConns[slot]; conn != nil {
				m.note("ping", conn.PingContext(m.ctx))
			}
		}
	}}
}
