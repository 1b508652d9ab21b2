package flyregion

import (
	"database/sql"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// held counts the connections that the program keeps from the pool.
func (m *randomMachine) held() int {
	n := m.using
	for i := range randomSlots {
		for _, holds := range []bool{
			m.conns[i] != nil,
			m.txs[i] != nil && m.txs[i].holds && !m.txs[i].over,
			m.rows[i] != nil && m.rows[i].holds,
			m.batches[i] != nil && m.batches[i].holds,
			m.sqlConns[i] != nil,
			m.sqlTxs[i] != nil && m.sqlTxs[i].holds && !m.sqlTxs[i].over,
			m.sqlRows[i] != nil && m.sqlRows[i].holds,
		} {
			if holds {
				n++
			}
		}
	}
	return n
}

// connAt returns the connection at a place that has one of its own, nil if there is none.
func (m *randomMachine) connAt(p randomPlace) *pgx.Conn {
	switch p.kind {
	case onAcquired:
		if c := m.conns[p.slot]; c != nil {
			return c.Conn()
		}
	case onHijacked:
		return m.raws[p.slot]
	case onTx:
		if tx := m.txs[p.slot]; tx != nil && !tx.over {
			m.refresh(tx.reads && tx.holds, &tx.since)
			return tx.inner().Conn()
		}
	}
	return nil
}

// inBlock says whether nothing at a place commits by itself.
func (m *randomMachine) inBlock(p randomPlace) bool {
	conn := m.connAt(p)
	return conn != nil && !conn.IsClosed() && conn.PgConn().TxStatus() != 'I'
}

// aborted says whether the open transaction at a place has failed.
func (m *randomMachine) aborted(p randomPlace) bool {
	if p.kind == onTx && m.txs[p.slot].reads {
		return false // its connection must not be looked at before its first statement
	}
	conn := m.connAt(p)
	return conn != nil && !conn.IsClosed() && conn.PgConn().TxStatus() == 'E'
}

// sent returns what is sent with a statement at a place: a copy of its arguments, with the execution mode that may be before
// them. What a busy or closed connection refuses is described first, as that is refused at once. A statement that it has prepared
// is refused when its rows are read, and overwrites the rows that keep the connection busy (see pgconn's execExtendedPrefix).
// The two pools have not prepared the same statements on it.
func (m *randomMachine) sent(p randomPlace, args []any) []any {
	if p.kind == onTx && m.txs[p.slot].reads {
		return slices.Clone(args) // its connection must not be looked at before its first statement
	}
	conn := m.connAt(p)
	if conn == nil || !conn.IsClosed() && !conn.PgConn().IsBusy() {
		return slices.Clone(args)
	}
	mode := m.program.mode
	if len(args) > 0 {
		if own, ok := args[0].(pgx.QueryExecMode); ok {
			mode, args = own, args[1:]
		}
	}
	if mode == pgx.QueryExecModeCacheStatement || mode == pgx.QueryExecModeCacheDescribe {
		mode = pgx.QueryExecModeDescribeExec
	}
	return append([]any{mode}, args...)
}

// alone says whether nobody but p holds locks, or could be waited for.
func (m *randomMachine) alone(p randomPlace) bool {
	for i := range randomSlots {
		at := func(kind randomKind) bool { return p == randomPlace{kind, i} }
		if m.txs[i] != nil && !m.txs[i].over && !at(onTx) || m.rows[i] != nil || m.batches[i] != nil ||
			m.sqlTxs[i] != nil && !m.sqlTxs[i].over || m.sqlRows[i] != nil || m.sqlConns[i] != nil ||
			m.conns[i] != nil && !at(onAcquired) && m.inBlock(randomPlace{onAcquired, i}) ||
			m.raws[i] != nil && !at(onHijacked) && m.inBlock(randomPlace{onHijacked, i}) {
			return false
		}
	}
	return true
}

// openDB returns a sql.DB on the pool.
func (m *randomMachine) openDB() *sql.DB {
	if m.db == nil {
		if m.ours != nil {
			m.db = OpenDB(m.ours)
		} else {
			m.db = stdlib.OpenDBFromPool(m.primary)
		}
	}
	return m.db
}

// closeAll ends all that is open.
func (m *randomMachine) closeAll() {
	for i := range randomSlots {
		m.closeRows(i)
		m.closeBatch(i)
		m.closeSQL(i)
	}
	for i := range randomSlots {
		if tx := m.txs[i]; tx != nil {
			for j := len(tx.nested) - 1; j >= 0; j-- {
				m.note("rollback", tx.nested[j].Rollback(m.ctx))
			}
			m.txs[i] = nil
		}
	}
	for i := range randomSlots {
		m.release(i)
		if c := m.raws[i]; c != nil {
			m.raws[i] = nil
			m.note("close", c.Close(m.ctx))
		}
	}
	if m.db != nil {
		m.note("close", m.db.Close())
	}
	m.look("the end")
}

func (m *randomMachine) closeRows(i int) {
	if rows := m.rows[i]; rows != nil {
		m.rows[i] = nil
		m.endRows(rows)
	}
}

func (m *randomMachine) closeBatch(i int) {
	if batch := m.batches[i]; batch != nil {
		m.batches[i] = nil
		m.guarded("close", func() { m.note("close", batch.Close()) })
	}
}

func (m *randomMachine) closeSQL(i int) {
	if rows := m.sqlRows[i]; rows != nil {
		m.sqlRows[i] = nil
		m.note("close", rows.Close(), rows.Err())
	}
	if stmt := m.sqlStmts[i]; stmt != nil {
		m.sqlStmts[i] = nil
		m.note("close", stmt.Close())
	}
	if tx := m.sqlTxs[i]; tx != nil {
		m.sqlTxs[i] = nil
		m.note("rollback", tx.Rollback())
	}
	m.closeSQLConn(i)
}

// closeSQLConn gives a sql.Conn back, as release does.
func (m *randomMachine) closeSQLConn(i int) {
	conn := m.sqlConns[i]
	if conn == nil {
		return
	}
	m.sqlConns[i] = nil
	if m.sqlDirty[i] {
		m.sqlDirty[i] = false
		m.openSession(conn)
		_ = conn.Raw(func(driverConn any) error {
			if c := driverConn.(interface{ Conn() *pgx.Conn }).Conn(); c != nil {
				pid := c.PgConn().PID()
				_ = c.Close(m.ctx)
				m.gone(pid)
			}
			return nil
		})
	}
	m.note("close", conn.Close())
}

// release gives an acquired connection back. One with settings of its own is closed before, as the sessions that
// statements of the pool run in differ.
// own makes a slot that was just filled belong to a place, and to none that it belonged to before. A pool owns nothing.
func (m *randomMachine) release(i int) {
	c := m.conns[i]
	if c == nil {
		return
	}
	m.conns[i] = nil
	// What is rolled back now is not to be met by the locks of what comes.
	waits := m.dirty[i] || c.Conn().IsClosed() || c.Conn().PgConn().IsBusy() || c.Conn().PgConn().TxStatus() != 'I'
	if m.dirty[i] {
		_ = c.Conn().Close(m.ctx)
		m.dirty[i] = false
	}
	pid := c.Conn().PgConn().PID()
	c.Release()
	if waits {
		m.gone(pid)
	}
}

func (m *randomMachine) own(p randomPlace, slot func(*randomOwned) *bool) {
	for _, owned := range m.owned {
		*slot(owned) = false
	}
	if p.pools() {
		return
	}
	if m.owned == nil {
		m.owned = map[randomPlace]*randomOwned{}
	}
	if m.owned[p] == nil {
		m.owned[p] = &randomOwned{}
	}
	*slot(m.owned[p]) = true
}

// forget empties the slots that a place owns, without touching what is in them: its connection is about to go.
func (m *randomMachine) forget(p randomPlace) {
	owned := m.owned[p]
	if owned == nil {
		return
	}
	delete(m.owned, p)
	for i := range randomSlots {
		if owned.rows[i] {
			m.rows[i] = nil
		}
		if owned.batches[i] {
			m.batches[i] = nil
		}
		if owned.txs[i] {
			m.forget(randomPlace{onTx, i})
			m.txs[i] = nil
		}
	}
}

// settle waits until a session that was given back has nothing open any more. Another program may have it already.
func (m *randomMachine) settle(pid uint32) {
	m.await("a session keeps its transaction", "select not exists (select from pg_stat_activity where pid = $1 and state <> 'idle' and xact_start < $2::text::timestamptz)", pid, m.serverTime())
}

// canceledAt waits until the servers have noticed that a statement was canceled at a place.
func (m *randomMachine) canceledAt(p randomPlace) {
	m.awaitThat("a canceled statement runs on", func() bool { return !m.lab.sleeps(m.program) })
	if conn := m.connAt(p); conn != nil && conn.IsClosed() {
		m.gone(conn.PgConn().PID())
	}
}

// landed waits until the server has done what was sent to it.
func (m *randomMachine) landed() {
	m.await("a statement never ends", "select not exists (select from pg_stat_activity where state = 'active' and backend_type = 'client backend' and pid <> pg_backend_pid() and query_start < $1::text::timestamptz)", m.serverTime())
}

// serverTime returns the time before which a statement has begun that is to be waited for: that of no other program's.
func (m *randomMachine) serverTime() (now string) {
	if !m.program.together {
		return "infinity"
	}
	if err := m.lab.leader.ask("select clock_timestamp()::text", nil, &now); err != nil {
		m.lab.t.Error(err)
	}
	return now
}

// await waits until a question to the primary is answered with true.
func (m *randomMachine) await(what, sql string, args ...any) {
	m.awaitThat(what, func() (holds bool) {
		if err := m.lab.leader.ask(sql, args, &holds); err != nil {
			m.lab.t.Error(err)
		}
		return holds
	})
}

// awaitThat waits until something holds.
func (m *randomMachine) awaitThat(what string, holds func() bool) {
	patience := randomPatience
	if m.program.cuts == "nrt" {
		patience = 50 * time.Millisecond // no result is compared that depends on it
	}
	for start := time.Now(); !holds(); time.Sleep(time.Millisecond) {
		if time.Since(start) > patience {
			m.note(what)
			return
		}
	}
}

// logged returns how often the primary's log has a text.
func (m *randomMachine) logged(what string) (n int) {
	if err := m.lab.leader.ask("select count(*) from "+m.schema+".log where what = $1", []any{what}, &n); err != nil {
		m.lab.t.Error(err)
	}
	return n
}

// ended waits until the primary has ended the sessions whose connections are closed, as it may still run what they were sent.
func (m *randomMachine) ended() {
	if m.program.together || m.program.cuts != "" {
		return // where there are connections of others, or none
	}
	m.awaitThat("a session does not end", func() bool {
		open, n := m.sessions(), 0
		if err := m.lab.leader.ask("select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()", nil, &n); err != nil {
			m.lab.t.Error(err)
		}
		return n <= open
	})
}

// sessions returns how many connections to the primary are open.
func (m *randomMachine) sessions() int {
	n := int(m.primary.Stat().TotalConns())
	if m.program.simulate && m.ours != nil {
		n += int(m.ours.Replica().Stat().TotalConns())
		n += int(m.ours.replicas.list()[0].tracker.conns.Stat().TotalResources()) // AwaitWrites watches
	}
	for _, c := range m.raws {
		if c != nil && !c.IsClosed() {
			n++
		}
	}
	return n
}

// gone waits until the primary has ended a session.
func (m *randomMachine) gone(pid uint32) {
	m.await("a session does not end", "select not exists (select from pg_stat_activity where pid = $1)", pid)
}
