package flyregion

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

const randomSlots = 2

// randomMachine is a pool that a program runs on, with what the program holds of it.
type randomMachine struct {
	anyPool
	lab     *randomLab
	program *randomProgram
	schema  string
	plain   bool
	ctx     context.Context
	cancels []context.CancelFunc
	stat    func() anyStat
	primary *pgxpool.Pool
	ours    *Pool // nil on pgxpool
	now     atomic.Value

	conns   [randomSlots]*pgxpool.Conn
	dirty   [randomSlots]bool // the session has settings or tables of its own
	raws    [randomSlots]*pgx.Conn
	txs     [randomSlots]*randomTx
	rows    [randomSlots]*randomRows
	batches [randomSlots]*randomBatch

	db       *sql.DB
	sqlConns [randomSlots]*sql.Conn
	sqlDirty [randomSlots]bool // like dirty
	sqlTxs   [randomSlots]*randomSQLTx
	sqlRows  [randomSlots]*randomSQLRows
	sqlStmts [randomSlots]*sql.Stmt

	link    *pgcluster.Link // that breaks, or nil
	broken  string          // how it is broken, "" if it is not
	stopCut func()          // ends the cut that is to come soon, or nil
	once    map[string]error
	wrong   []string

	owned map[randomPlace]*randomOwned
	using int // connections of the pool that the running operation has for itself
	saw   []string
}

// randomTx is a transaction with those that are nested in it.
type randomTx struct {
	nested []pgx.Tx // the outermost first; never empty
	holds  bool     // it has a connection of the pool to itself
	over   bool
	reads  bool   // it is read-only
	since  string // what the lab had written when it began
}

// randomOwned are the slots whose contents use the connection of something else, and end with it.
type randomOwned struct{ txs, rows, batches [randomSlots]bool }

func (tx *randomTx) inner() pgx.Tx { return tx.nested[len(tx.nested)-1] }

type randomRows struct {
	pgx.Rows
	holds bool
}

type randomBatch struct {
	pgx.BatchResults
	holds bool
}

type randomSQLTx struct {
	*sql.Tx
	conn  int // 1 + the slot of the sql.Conn that it is on, or 0
	holds bool
	over  bool
	reads bool
	since string
}

type randomSQLRows struct {
	*sql.Rows
	holds bool
}

// nothingToDo is what an operation sees whose slot is empty, or taken.
const nothingToDo = "nothing to do"

// note adds to what the operation saw.
func (m *randomMachine) note(what string, values ...any) {
	var line strings.Builder
	line.WriteString(what)
	for _, v := range values {
		line.WriteByte(' ')
		if err, ok := v.(error); ok {
			m.judge(err)
			line.WriteString(describeError(err))
		} else {
			fmt.Fprint(&line, v)
		}
	}
	m.saw = append(m.saw, strings.ReplaceAll(line.String(), m.schema, "SCHEMA"))
}

// loosely notes an error whose text depends on the moment at which it came up.
func (m *randomMachine) loosely(what string, err error) {
	switch {
	case err == nil:
		m.note(what, "no error")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), pgconn.Timeout(err):
		m.note(what, "context ended:", errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded))
	default:
		m.note(what, err)
	}
}

// guarded calls f and notes what it panics with.
func (m *randomMachine) guarded(what string, f func()) {
	defer func() {
		if r := recover(); r != nil {
			if err, ok := r.(runtime.Error); ok {
				m.blame(fmt.Sprintf("%s panics: %v\n%s", what, err, debug.Stack()))
			}
			m.note(what+" panics:", r)
		}
	}()
	f()
}

// do does an operation and returns what it saw. If there is no connection for it, it says so in skipped.
func (m *randomMachine) do(op *randomOp, skipped *bool, skip bool) []string {
	m.saw, m.using = nil, 0
	if (m.plain || m.program.cuts == "nrt") && op.needs > 0 && m.held()+op.needs > int(m.program.maxConns) || skip {
		*skipped = true
		return []string{nothingToDo}
	}
	// What the operation leaves open keeps its context.
	outer := m.ctx
	var cancel context.CancelFunc
	patience := randomPatience
	if m.program.cuts == "nrt" && m.broken == "stalled" {
		patience = 200 * time.Millisecond
	}
	m.ctx, cancel = context.WithTimeout(outer, patience)
	m.cancels = append(m.cancels, cancel)
	defer func() { m.ctx = outer }()
	m.guarded("it", func() { op.run(m) })
	m.using = 0
	if len(m.saw) == 0 {
		return []string{nothingToDo}
	}
	return m.saw
}

// look reads all that there is through the pool. That misses no write that has returned.
func (m *randomMachine) look(what string) {
	if m.held() >= int(m.program.maxConns) {
		return
	}
	if m.program.cuts == "nrt" {
		m.lookBetween(what)
		return
	}
	var items, sum, log int
	var last string
	err := m.QueryRow(m.ctx, randomLookSQL).Scan(&items, &sum, &log, &last)
	m.note(what+" sees", items, sum, log, last, err)
}

const randomLookSQL = "select count(*), coalesce(sum(n), 0), (select count(*) from log), coalesce((select what from log order by k desc limit 1), '') from items"

// randomQuerier is what runs statements.
type randomQuerier interface {
	Begin(ctx context.Context) (pgx.Tx, error)
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, source pgx.CopyFromSource) (int64, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// randomPlace is where a statement runs.
type randomPlace struct {
	kind randomKind
	slot int
}

type randomKind string

const (
	onPool     randomKind = "pool"
	onPrimary  randomKind = "Primary()"
	onAcquired randomKind = "conn"
	onTx       randomKind = "tx"
	onHijacked randomKind = "hijacked"
	onRows     randomKind = "rows"
	onBatch    randomKind = "batch"
)

func (p randomPlace) String() string {
	if p.pools() {
		return string(p.kind)
	}
	return fmt.Sprint(string(p.kind), p.slot)
}

// pools says whether each statement takes a connection of the pool for itself.
func (p randomPlace) pools() bool { return p.kind == onPool || p.kind == onPrimary }

func (p randomPlace) needs() int {
	if p.pools() {
		return 1
	}
	return 0
}

// at returns what runs statements at a place, nil if there is nothing.
func (m *randomMachine) at(p randomPlace) randomQuerier {
	switch p.kind {
	case onPool:
		return m
	case onPrimary:
		return m.primary
	case onAcquired:
		if c := m.conns[p.slot]; c != nil {
			return c
		}
	case onTx:
		if tx := m.txs[p.slot]; tx != nil {
			m.refresh(tx.reads && tx.holds && !tx.over, &tx.since)
			return tx.inner()
		}
	case onHijacked:
		if c := m.raws[p.slot]; c != nil {
			return c
		}
	}
	return nil
}

// refresh has the replica show what was written since a read-only transaction began there, which may see it or not.
func (m *randomMachine) refresh(onReplica bool, since *string) {
	if m.ours == nil || !onReplica {
		return
	}
	if now := m.lab.written(); now != *since {
		m.lab.caughtUp()
		*since = m.lab.written()
	}
}

// readRow notes one row.
func (m *randomMachine) readRow(rows pgx.Rows) {
	values, err := rows.Values()
	raw := rows.RawValues()
	m.note("row", shortened(values), len(raw), err)
}

// shortened shows values without the filling that makes some of them long.
func shortened(values []any) string {
	text := fmt.Sprint(values)
	if len(text) > 200 {
		text = fmt.Sprintf("%s... %d bytes", text[:20], len(text))
	}
	return text
}

// endRows notes what is left of rows at their end.
func (m *randomMachine) endRows(rows pgx.Rows) {
	rows.Close()
	m.note("end", rows.Err(), rows.CommandTag(), rows.Next())
}

// randomScanner fails or panics when something is scanned into it, and else keeps it.
type randomScanner struct {
	how  string
	seen []any
}

func (s *randomScanner) Scan(value any) error {
	switch s.how {
	case "fails":
		return errScanner
	case "panics":
		panic("scanned")
	}
	s.seen = append(s.seen, value)
	return nil
}

// consume reads rows in one of the ways.
func (m *randomMachine) consume(rows pgx.Rows, how string) {
	defer rows.Close()
	switch how {
	case "values":
		for rows.Next() {
			m.readRow(rows)
		}
	case "first":
		if rows.Next() {
			m.readRow(rows)
		}
	case "two":
		for range 2 {
			if rows.Next() {
				m.readRow(rows)
			}
		}
	case "close":
	case "fails", "panics":
		for rows.Next() {
			dests := make([]any, len(rows.FieldDescriptions()))
			for i := range dests {
				dests[i] = &randomScanner{how: how}
			}
			m.note("scan", rows.Scan(dests...))
		}
	case "mismatch":
		for rows.Next() {
			m.note("scan", rows.Scan(new(int), new(int), new(int), new(int), new(int), new(int), new(int)))
		}
	case "collect":
		values, err := pgx.CollectRows(rows, pgx.RowToMap)
		m.note("collected", len(values), err)
	case "looks":
		// The statement reads: while it is read, something else is.
		for n := 0; rows.Next(); n++ {
			m.readRow(rows)
			if n == 0 {
				m.look("between rows")
			}
		}
	default:
		panic("no such way: " + how)
	}
	m.endRows(rows)
}

// scanRow scans a row of so many columns in one of the ways.
func (m *randomMachine) scanRow(row pgx.Row, columns int, how string) {
	dests := make([]any, columns)
	values := make([]any, columns)
	for i := range dests {
		switch how {
		case "scan", "twice":
			dests[i] = &values[i]
		case "scanner":
			s := &randomScanner{}
			dests[i], values[i] = s, s
		case "fails", "panics":
			dests[i] = &randomScanner{how: how}
		case "driver bytes":
			dests[i] = new(pgtype.DriverBytes)
		}
	}
	if how == "mismatch" {
		dests = append(dests, new(int))
	}
	err := row.Scan(dests...)
	m.note("scan", err)
	if err == nil {
		for i, v := range values {
			if s, ok := v.(*randomScanner); ok {
				values[i] = s.seen
			}
		}
		m.note("row", shortened(values))
	}
	if how == "twice" {
		m.note("scan again", row.Scan(dests...))
	}
}
