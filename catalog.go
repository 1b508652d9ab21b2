package flyregion

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flyregion/flyregion/internal/sqltext"
	"github.com/jackc/pgx/v5/pgconn"
)

// catalog has what the database's own catalog says of functions, because SQL does not tell whether a function writes. A
// standby refuses a write, but a function may catch the error and return as if nothing had happened, or may have acted
// outside of the database before. So a call is a write if any function of its name is VOLATILE, in whichever schema, and
// so is SQL that names a view, or a table with policies, that calls one.
//
// A replica is asked on the connection of the first read that needs an answer. All answers are forgotten when this
// process may have changed the schema, and after catalogAge, until which changes of other processes are not seen. The
// answers about a statement's functions are forgotten when a replica does not have one of them.
type catalog struct {
	functions map[string]sqltext.Access // the app's own answers, which go first
	writing   []string                  // those of them that write
	answers   atomic.Pointer[catalogAnswers]
	asking    chan struct{} // a semaphore of one; it guards failed and failedAt
	failed    error         // the latest failure to get an answer, which is not asked for again during catalogPause
	failedAt  time.Time

	// mu guards the following fields.
	mu     sync.Mutex
	expiry *time.Timer // forgets the answers; nil until it is first set
	closed bool
}

// catalogAnswers is immutable: the catalog changes by replacing it, so that a read costs one atomic load.
type catalogAnswers struct {
	sqltext.Facts
	// complete says that Facts has every view and table that calls a volatile function.
	complete bool
	// asked are the names of functions that Facts has an answer for, or had before everything was forgotten.
	asked []string
	// required is what a server must have replayed for its answer to hold on every server. The answer of another server is
	// provisional: it holds only for reads on servers that have not replayed that either.
	required    sessionState
	provisional bool

	inspected *inspections // by these answers
}

const (
	// catalogAge bounds how old an answer may be, and provisionalAge how old a provisional one.
	catalogAge     = time.Minute
	provisionalAge = time.Second
	// catalogPause is how long the catalog is not asked after a failure.
	catalogPause = time.Second
	// maxAsked bounds how many functions are remembered by name.
	maxAsked = 2000
	// maxDependents bounds how many views, tables and functions may depend on volatile functions.
	maxDependents = 20000
)

var (
	errTooManyDependents = fmt.Errorf("flyregion: more than %d names depend on volatile functions", maxDependents)
	errSchemaChanged     = errors.New("flyregion: the schema may have changed while the catalog was asked")
)

func newCatalog(functions map[string]sqltext.Access) *catalog {
	c := &catalog{functions: functions, asking: make(chan struct{}, 1)}
	for name, access := range functions {
		if access == sqltext.Write {
			c.writing = append(c.writing, name)
		}
	}
	c.replace(nil, &catalogAnswers{Facts: sqltext.Facts{Functions: functions}})
	return c
}

// replace replaces the answers, unless they are not old any more. Nothing that was inspected by old is remembered with next.
func (c *catalog) replace(old, next *catalogAnswers) bool {
	next.inspected = &inspections{}
	return c.answers.CompareAndSwap(old, next)
}

// decides reports whether these answers are enough to tell what a statement does, on any server.
func (a *catalogAnswers) decides(s sqltext.Statement) bool {
	return s.Access == sqltext.Write || a.complete && !a.provisional && !s.UnknownCalls
}

// forget forgets all answers, because the schema may have changed. A server that has replayed required has the change.
func (c *catalog) forget(required sessionState) {
	for {
		old := c.answers.Load()
		next := &catalogAnswers{Facts: sqltext.Facts{Functions: c.functions}, asked: old.asked, required: required}
		if c.replace(old, next) {
			return
		}
	}
}

// expire forgets all answers because of their age.
func (c *catalog) expire() { c.forget(c.answers.Load().required) }

// forgetCalls forgets the answers about the functions that a statement calls, because a server does not have one of them.
func (c *catalog) forgetCalls(sql string) {
	names := sqltext.UnknownCalls(sql, sqltext.Facts{Functions: c.functions})
	for {
		old := c.answers.Load()
		next := *old
		next.Called = maps.Clone(old.Called)
		maps.DeleteFunc(next.Called, func(name string, access sqltext.Access) bool {
			return access == sqltext.Read && slices.Contains(names, name)
		})
		next.asked = slices.DeleteFunc(slices.Clone(old.asked), func(name string) bool { return slices.Contains(names, name) })
		if c.replace(old, &next) {
			return
		}
	}
}

// close stops the timer. Later answers do not expire.
func (c *catalog) close() {
	c.mu.Lock()
	defer c.mu.Unlock()

	c.closed = true
	if c.expiry != nil {
		c.expiry.Stop()
	}
}

// expireIn has all answers forgotten after age.
func (c *catalog) expireIn(age time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()

	switch {
	case c.closed:
	case c.expiry == nil:
		c.expiry = time.AfterFunc(age, c.expire)
	default:
		c.expiry.Reset(age)
	}
}

// ask returns answers that tell what statements do on the server of conn. It asks that server for those that are missing, one
// caller at a time. hasReplayed reports whether the server has replayed what a state covers, and unknown returns the
// names of functions that given answers do not have.
func (c *catalog) ask(ctx context.Context, conn *pgconn.PgConn, hasReplayed func(sessionState) bool, unknown func(*catalogAnswers) []string) (*catalogAnswers, error) {
	select {
	case c.asking <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-c.asking }()

	old := c.answers.Load()
	names := unknown(old)
	provisional := !hasReplayed(old.required)
	if old.complete && len(names) == 0 && (provisional || !old.provisional) {
		return old, nil // the caller before has asked for the same
	}

	if c.failed != nil && time.Since(c.failedAt) < catalogPause {
		return nil, c.failed
	}

	base := old
	switch {
	case len(old.asked)+len(names) > maxAsked:
		base = &catalogAnswers{Facts: sqltext.Facts{Functions: c.functions}, required: old.required}
	case old.provisional && !provisional:
		base = &catalogAnswers{Facts: sqltext.Facts{Functions: c.functions}, required: old.required, asked: old.asked}
	}
	if !base.complete {
		names = append(names, base.asked...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	sql, params := volatileCallsSQL, [][]byte{textArray(names)}
	if !base.complete {
		sql, params = volatileSQL, append(params, textArray(c.writing))
	}
	result := conn.ExecParams(ctx, sql, params, nil, nil, nil).Read()
	var pgErr *pgconn.PgError
	switch {
	case len(result.Rows) > maxDependents:
		c.failed, c.failedAt = errTooManyDependents, time.Now()
		return nil, c.failed
	case errors.As(result.Err, &pgErr):
		c.failed, c.failedAt = result.Err, time.Now()
		return nil, c.failed
	case result.Err != nil:
		return nil, result.Err
	}

	next := c.with(base, names, result.Rows)
	next.provisional = provisional
	if !c.replace(old, next) {
		return nil, errSchemaChanged
	}
	switch {
	case provisional:
		c.expireIn(provisionalAge)
	case !base.complete:
		c.expireIn(catalogAge)
	}
	return next, nil
}

// with returns base together with the rows that a server has answered for names.
func (c *catalog) with(base *catalogAnswers, names []string, rows [][][]byte) *catalogAnswers {
	next := &catalogAnswers{Facts: base.Facts, complete: true, asked: names, required: base.required}
	if base.complete {
		next.asked = slices.Concat(base.asked, names)
	} else {
		next.Writing = map[string]struct{}{}
	}
	next.Called = make(map[string]sqltext.Access, len(next.asked))
	maps.Copy(next.Called, base.Called)
	for _, name := range names {
		next.Called[name] = sqltext.Read
	}
	for _, row := range rows {
		name, called, function, foreign := string(row[0]), string(row[1]) == "t", string(row[2]), string(row[3]) == "t"
		access, ok := c.functions[function]
		switch {
		case ok && access == sqltext.Read, !ok && foreign && sqltext.IsHarmless(function):
		case called:
			next.Called[name] = sqltext.Write
		default:
			next.Writing[name] = struct{}{}
		}
	}
	if len(next.Writing) == 0 {
		next.Writing = nil
	}
	return next
}

// textArray returns the text form of an array.
func textArray(elements []string) []byte {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	array := []byte{'{'}
	for i, element := range elements {
		if i > 0 {
			array = append(array, ',')
		}
		array = append(array, '"')
		array = append(array, escape.Replace(element)...)
		array = append(array, '"')
	}
	return append(array, '}')
}

// isForeignSQL is whether the function p is the server's own or an extension's.
const isForeignSQL = `(p.oid < 16384 or exists (select from pg_catalog.pg_depend e ` +
	`where e.classid = 'pg_catalog.pg_proc'::regclass and e.objid = p.oid and e.deptype = 'e'))`

// volatileCallsSQL asks which of the functions named by $1 are VOLATILE, in any schema and with any arguments. Each row
// is what is named, whether as the function of a call, the volatile function that it reaches, and whether that is not the
// app's.
const volatileCallsSQL = `select p.proname, true, p.proname, ` + isForeignSQL + ` from pg_catalog.pg_proc p ` +
	`where p.proname = any($1::name[]) and p.provolatile = 'v'`

// volatileSQL asks that, which functions are VOLATILE, or named by $2, and not the server's own, as they may share a name
// with one that this package knows, and what depends on them: other functions (aggregates, and those whose body the
// server has parsed), and views and tables with policies, through operators and each other too. t.f may be a call of a
// function f that takes a row, so the name of such a function is treated like that of a table. Sequences, and what reads
// one, belong to the primary too.
const volatileSQL = volatileCallsSQL + ` union ` +
	`(with recursive reaches(classid, objid, function, isforeign) as (` +
	`select 'pg_catalog.pg_proc'::regclass::oid, p.oid, p.proname, ` + isForeignSQL + ` from pg_catalog.pg_proc p ` +
	`where (p.oid >= 16384 and p.provolatile = 'v' or p.proname = any($2::name[])) ` +
	`and p.prorettype <> all('{pg_catalog.trigger,pg_catalog.event_trigger}'::regtype[]) ` +
	// A sequence is logged ahead, so that its last_value on a standby is too high. A name that ends in _seq needs no catalog.
	`union all select 'pg_catalog.pg_class'::regclass, c.oid, c.relname, false from pg_catalog.pg_class c where c.relkind = 'S' ` +
	`union ` +
	`select o.classid, o.objid, r.function, r.isforeign from reaches r cross join lateral (` +
	`select d.classid, d.objid from pg_catalog.pg_depend d where d.refclassid = r.classid and d.refobjid = r.objid ` +
	`and d.classid in ('pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_operator'::regclass, ` +
	`'pg_catalog.pg_rewrite'::regclass, 'pg_catalog.pg_policy'::regclass) ` +
	// A table that has rules for writes, and a materialized view, run no function when they are read.
	`union all select 'pg_catalog.pg_class'::regclass, w.ev_class from pg_catalog.pg_rewrite w ` +
	`join pg_catalog.pg_class c on c.oid = w.ev_class ` +
	`where r.classid = 'pg_catalog.pg_rewrite'::regclass and w.oid = r.objid and w.ev_type = '1' and c.relkind = 'v' ` +
	`union all select 'pg_catalog.pg_class'::regclass, w.polrelid from pg_catalog.pg_policy w ` +
	`where r.classid = 'pg_catalog.pg_policy'::regclass and w.oid = r.objid and w.polcmd in ('r', '*')) o) ` +
	`select p.proname, true, r.function, r.isforeign from reaches r join pg_catalog.pg_proc p on p.oid = r.objid ` +
	`where r.classid = 'pg_catalog.pg_proc'::regclass ` +
	`union select c.relname, false, r.function, r.isforeign from reaches r join pg_catalog.pg_class c on c.oid = r.objid ` +
	`where r.classid = 'pg_catalog.pg_class'::regclass and not (c.relkind = 'S' and pg_catalog.right(c.relname, 4) = '_seq') ` +
	`union select p.proname, false, p.proname, ` + isForeignSQL + ` from pg_catalog.pg_proc p ` +
	`join pg_catalog.pg_type t on t.oid = p.proargtypes[0] ` +
	`where p.oid >= 16384 and p.provolatile = 'v' and p.pronargs - p.pronargdefaults <= 1 ` +
	`and (t.typtype = 'c' or t.typname in ('record', 'any') or t.typname like 'any%'))`
