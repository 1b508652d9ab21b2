package flyregion

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// batch sends a batch and reads its results in one of the ways.
func (g *randomGenerator) batch() *randomOp {
	p := g.place()
	type query struct {
		text     randomText
		args     []any
		callback string
	}
	var queries []query
	reads, shown := true, ""
	how := pick(g, "close", "close", "exec", "query", "first of each", "row", "half", "mixed", "twice", "keep")
	onlyReads := g.one(2)
	add := func(q query) {
		queries = append(queries, q)
		shown += fmt.Sprintf(" %s %q %v;", q.callback, q.text.sql, q.args)
	}
	explicit := g.one(8) && (p.pools() || p.kind == onAcquired)
	if explicit {
		add(query{text: randomText{sql: "begin", kind: textBlock}})
		add(query{text: randomText{sql: "insert into log (what) values ('committed in a batch')", kind: textWrites}})
		reads = false
	}
	for range 1 + g.IntN(4) {
		text := g.text(randomPlace{kind: onPrimary})
		if text.kind >= textSeveral || text.kind == textWide || text.kind == textDDL || text.kind == textDDLWide || text.sql == "" {
			text = randomTexts[0]
		}
		if onlyReads && text.kind != textReads && text.kind != textFails {
			text = randomTexts[g.IntN(8)]
		}
		reads = reads && (text.kind == textReads || text.kind == textFails)
		callback := ""
		if g.one(3) {
			callback = pick(g, "query", "query", "row", "exec", "fails", "panics")
			if callback == "panics" && p.pools() {
				callback = "fails" // pgxpool never gets such a connection back
			}
		}
		add(query{text, g.arguments(text, p.lane()), callback})
	}
	commit := -1
	if explicit {
		commit = len(queries)
		add(query{text: randomText{sql: "commit", kind: textBlock}})
		// The server sends the commit's result with this one, and is not through with the batch yet.
		add(query{text: randomText{sql: "select repeat('x', 20000)", columns: 1}})
		add(query{text: randomText{sql: "select pg_sleep(0.05)::text", columns: 1}})
		how = "commit read"
	}
	slot := g.IntN(randomSlots)
	if how == "keep" {
		g.opened[randomPlace{onBatch, slot}] = true
	}
	change := g.one(4)
	under := g.under(p, false)
	if under == "canceled after" || under == "without wait" && reads {
		under = ""
	}
	return &randomOp{text: fmt.Sprintf("%s.SendBatch(%s) changes=%v %s {%s}", p, how, change, under, shown), needs: p.needs(), run: func(m *randomMachine) {
		q := m.at(p)
		if q == nil || explicit && m.inBlock(p) || how == "keep" && m.batches[slot] != nil {
			return
		}
		if explicit && p.kind == onAcquired {
			m.dirty[p.slot] = true
		}
		if explicit {
			m.halt() // so that what is not counted yet is not seen
		}
		ctx, done := m.context(under)
		defer done()
		b := &pgx.Batch{}
		sent := make([][]any, len(queries))
		for i, query := range queries {
			sent[i] = slices.Clone(query.args)
			queued := b.Queue(query.text.sql, sent[i]...)
			switch query.callback {
			case "query":
				queued.Query(func(rows pgx.Rows) error {
					for rows.Next() {
						m.readRow(rows)
					}
					m.note("callback end", rows.Err(), rows.CommandTag())
					return rows.Err()
				})
			case "row":
				queued.QueryRow(func(row pgx.Row) error {
					m.scanRow(row, query.text.columns, "scan")
					return nil
				})
			case "exec":
				queued.Exec(func(tag pgconn.CommandTag) error {
					m.note("callback", tag)
					return nil
				})
			case "fails":
				queued.Exec(func(tag pgconn.CommandTag) error { return errRandom })
			case "panics":
				queued.Query(func(rows pgx.Rows) error { panic("in a callback") })
			}
		}
		results := q.SendBatch(ctx, b)
		if change {
			for _, args := range sent {
				for i, v := range args {
					if n, ok := v.(int); ok {
						args[i] = n + 100
					}
				}
			}
		}
		if how == "keep" && !m.fragile() && (reads && p.kind == onPool || m.inBlock(p)) {
			m.batches[slot] = &randomBatch{results, p.pools()}
			m.own(p, func(o *randomOwned) *bool { return &o.batches[slot] })
			// With the first result the server is through with all of them.
			m.readBatch(results, "exec", 0, 0)
			return
		}
		m.using = p.needs()
		func() {
			defer func() {
				if r := recover(); r != nil {
					m.note("panics", r)
				}
				m.guarded("close", func() { m.note("close", results.Close()) })
			}()
			for i, query := range queries {
				m.readBatch(results, how, i, query.text.columns)
				if i == commit {
					m.look("behind the commit")
				}
			}
		}()
		m.using = 0
		m.note("close again", results.Close())
		m.ended()
		m.look("after it")
	}}
}

// readBatch reads one of a batch's results.
func (m *randomMachine) readBatch(results pgx.BatchResults, how string, i, columns int) {
	if how == "mixed" {
		how = []string{"exec", "query", "row", "first of each"}[i%4]
	}
	switch how {
	case "exec", "commit read":
		tag, err := results.Exec()
		m.note("exec", tag, err)
	case "half":
		if i == 0 {
			tag, err := results.Exec()
			m.note("exec", tag, err)
		}
	case "query", "twice":
		rows, err := results.Query()
		m.note("query", err)
		m.consume(rows, "values")
	case "first of each":
		rows, err := results.Query()
		m.note("query", err)
		m.consume(rows, "first")
	case "row":
		m.scanRow(results.QueryRow(), columns, "scan")
	}
	if how == "twice" && i == 0 {
		m.note("close early", results.Close())
	}
}

// nextOfBatch reads on in the results of a batch, or closes them.
func (g *randomGenerator) nextOfBatch() *randomOp {
	p, ok := g.slotOf(true, onBatch)
	if !ok {
		return nil
	}
	slot := p.slot
	how := pick(g, "exec", "query", "first of each", "row", "close")
	return &randomOp{text: fmt.Sprintf("batch%d: %s", slot, how), run: func(m *randomMachine) {
		batch := m.batches[slot]
		if batch == nil {
			return
		}
		if how != "close" {
			m.readBatch(batch, how, 1, 1)
			return
		}
		m.batches[slot] = nil
		m.guarded("close", func() { m.note("close", batch.Close()) })
	}}
}

// raw runs something with pgconn, on a connection that somebody has to himself.
func (g *randomGenerator) raw() *randomOp {
	p, ok := g.slotOf(true, onAcquired, onHijacked, onTx)
	if !ok {
		return nil
	}
	n := g.IntN(100)
	insert := fmt.Sprintf("insert into log (what) values ('raw%d') returning k", n)
	texts := []string{insert, "select count(*) from log", "select 1/0", "select w(7)"}
	sql := pick(g, texts...)
	second := pick(g, texts...)
	how := pick(g, "exec", "exec two", "params", "prepared", "batch", "batch", "copy to", "copy from", "frontend")
	return &randomOp{text: fmt.Sprintf("%s raw %s %q %q", p, how, sql, second), run: func(m *randomMachine) {
		conn := m.connAt(p)
		if conn == nil || conn.IsClosed() {
			return
		}
		pg := conn.PgConn()
		switch how {
		case "exec":
			m.rawResults(pg.Exec(m.ctx, sql).ReadAll())
		case "exec two":
			m.rawResults(pg.Exec(m.ctx, sql+"; "+second).ReadAll())
		case "params":
			m.rawResult(pg.ExecParams(m.ctx, sql, nil, nil, nil, nil).Read())
		case "prepared":
			_, err := pg.Prepare(m.ctx, "raw", sql, nil)
			m.note("prepare", err)
			m.rawResult(pg.ExecPrepared(m.ctx, "raw", nil, nil, nil).Read())
			m.note("deallocate", pg.Deallocate(m.ctx, "raw"))
		case "batch":
			batch := &pgconn.Batch{}
			batch.ExecParams(sql, nil, nil, nil, nil)
			batch.ExecParams(second, nil, nil, nil, nil)
			m.rawResults(pg.ExecBatch(m.ctx, batch).ReadAll())
		case "copy to":
			var out bytes.Buffer
			tag, err := pg.CopyTo(m.ctx, &out, "copy (select id, n from items order by id limit 3) to stdout")
			m.note("copied", tag, err, out.String())
		case "copy from":
			tag, err := pg.CopyFrom(m.ctx, strings.NewReader("copied1\ncopied2\n"), "copy log (what) from stdin")
			m.note("copied", tag, err)
		case "frontend":
			// What it says of a connection with rows left depends on how they were cut into packets.
			if !pg.IsBusy() {
				m.note("sync", pg.SyncConn(m.ctx))
			}
		}
		m.look("after it")
	}}
}

func (m *randomMachine) rawResults(results []*pgconn.Result, err error) {
	for _, r := range results {
		m.rawResult(r)
	}
	m.note("results", err)
}

func (m *randomMachine) rawResult(r *pgconn.Result) {
	m.note("result", fmt.Sprintf("%s", r.Rows), r.CommandTag, r.Err)
}

// pipeline sends several statements in a pipeline of pgconn, with a Sync behind some of them.
func (g *randomGenerator) pipeline() *randomOp {
	p, ok := g.slotOf(true, onAcquired, onTx)
	if !ok {
		return nil
	}
	n := g.IntN(100)
	insert := fmt.Sprintf("insert into log (what) values ('piped%d') returning k", n)
	steps := []string{pick(g, insert, insert, "begin", "select 1", "select 1/0")}
	for range g.IntN(3) {
		steps = append(steps, pick(g, "sync", insert, "select count(*) from log", "select 1/0", "select w(5)"))
	}
	steps = append(steps, "sync")
	// What follows does not write, so that it does not matter how far the server has come when somebody looks.
	for range g.IntN(3) {
		steps = append(steps, pick(g, "select 1", "select count(*) from items", "sync"))
	}
	if steps[len(steps)-1] != "sync" {
		steps = append(steps, "sync")
	}
	return &randomOp{text: fmt.Sprintf("%s pipeline %q", p, steps), run: func(m *randomMachine) {
		conn := m.connAt(p)
		if conn == nil || conn.IsClosed() {
			return
		}
		if p.kind == onAcquired {
			m.dirty[p.slot] = true // it may begin
		}
		if n%2 == 0 {
			m.halt()
		}
		ctx := context.WithoutCancel(m.ctx)
		if m.program.cuts == "nrt" {
			ctx = m.ctx // the link may be stalled
		}
		pipeline := conn.PgConn().StartPipeline(ctx)
		writes := 0
		for i, step := range steps {
			if step == "sync" {
				pipeline.SendPipelineSync()
				continue
			}
			pipeline.SendQueryParams(step, nil, nil, nil, nil)
			if strings.HasPrefix(step, "insert") || strings.Contains(step, "w(") {
				writes = i
			}
		}
		m.note("flush", pipeline.Flush())
		for i := range steps {
			results, err := pipeline.GetResults()
			switch results := results.(type) {
			case *pgconn.ResultReader:
				m.rawResult(results.Read())
			case *pgconn.PipelineSync:
				m.note("sync", err)
				if i > writes {
					m.look("behind a sync")
				}
			default:
				m.note(fmt.Sprintf("%T", results), err)
			}
		}
		m.note("close", pipeline.Close())
		m.look("after it")
	}}
}
