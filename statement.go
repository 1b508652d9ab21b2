package flyregion

import (
	"context"
	"hash/maphash"
	"sync/atomic"

	"github.com/flyregion/flyregion/internal/sqltext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Access is what SQL may do to the database.
type Access uint8

const (
	// Write is SQL that has to run on the primary: it changes something, it asks for something that only the primary can
	// answer, or it is not understood. It is the zero value, because it is always safe.
	Write Access = Access(sqltext.Write)
	// Read is SQL that a hot standby runs with the same meaning as the primary, or that asks which server answers.
	Read Access = Access(sqltext.Read)
)

// String returns "read" or "write".
func (a Access) String() string { return sqltext.Access(a).String() }

// Classify says what SQL may do, from its text alone. It knows PostgreSQL's lexical rules, and as much of its grammar as the
// question needs. It reads the SQL once and does not allocate.
//
// Read means that a hot standby would run the SQL, with the same meaning as the primary. All else is Write: changes of data
// and schema, row locks, transaction control, settings and other objects of the session (prepared statements, cursors,
// temporary tables), calls whose effect or answer belongs to the primary (sequences, advisory locks, notifications, large
// objects, transaction ids, positions in the WAL, the state of the server itself), no statement at all, and everything that
// is unknown or malformed. SQL of several statements is Read if each of them is.
//
// SQL that asks which server answers is Read: pg_is_in_recovery, inet_server_addr, inet_server_port,
// pg_postmaster_start_time, version, and SHOW or current_setting of port, server_version and cluster_name. SQL that asks
// whether one may write is Write: SHOW or current_setting of transaction_read_only, default_transaction_read_only and
// in_hot_standby.
//
// Functions are recognized by name where they are called. What an application's own functions, operators and views do
// cannot be seen in the SQL, so they count as reads here. A [Pool] also asks the database's catalog about them: a call of
// a function that is VOLATILE there is a write.
//
// SQL whose meaning depends on the session's standard_conforming_strings or client_encoding is Write here. A Pool knows
// these settings of its connections.
func Classify(sql string) Access {
	return Access(sqltext.Inspect(sql, sqltext.Facts{}).Access)
}

// functionsOf returns what a config's Functions say, nil for nothing.
func functionsOf(functions map[string]Access) map[string]sqltext.Access {
	if len(functions) == 0 {
		return nil
	}
	said := make(map[string]sqltext.Access, len(functions))
	for name, access := range functions {
		said[name] = sqltext.Access(access)
	}
	return said
}

// statements tells what the app's statements do, from their SQL and from what it has noted of the database.
type statements struct {
	catalog  *catalog
	prepared preparedNames

	// Settings that the connections so far have reported: on one of them at least it is so, or it is not.
	plain, notPlain atomic.Bool // standard_conforming_strings is on
	utf8, notUTF8   atomic.Bool // client_encoding is UTF8
}

// inspect inspects a statement, of which sql may be the prepared statement's name.
func (t *statements) inspect(sql string) sqltext.Statement {
	return t.inspectSQL(t.resolve(sql), t.catalog.answers.Load())
}

// inspectSQL inspects a statement by its SQL and by given answers of the catalog.
func (t *statements) inspectSQL(sql string, answers *catalogAnswers) sqltext.Statement {
	return answers.inspected.inspect(sql, t.facts(answers))
}

// resolve returns the SQL of a statement, of which sql may be the prepared statement's name. It returns "" if the name stands
// for different SQL on different connections.
func (t *statements) resolve(sql string) string {
	if text, ok := t.prepared.lookup(sql); ok {
		return text
	}
	return sql
}

// shape returns the shape of a statement, of which sql may be the prepared statement's name. A name that stands for
// different SQL on different connections has a shape of its own.
func (t *statements) shape(sql string) uint64 {
	text := t.resolve(sql)
	if text == "" {
		return maphash.String(nameSeed, sql)
	}
	return t.catalog.answers.Load().inspected.shape(text)
}

var nameSeed = maphash.MakeSeed()

// facts returns what the config, the catalog and the connections tell beside a statement's SQL.
func (t *statements) facts(answers *catalogAnswers) sqltext.Facts {
	facts := answers.Facts
	facts.StandardStrings = t.plain.Load() && !t.notPlain.Load()
	facts.UTF8 = t.utf8.Load() && !t.notUTF8.Load()
	return facts
}

// observe has each new connection of a pool report the settings on which the meaning of SQL depends.
func (t *statements) observe(config *pgxpool.Config) {
	afterConnect := config.AfterConnect
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if afterConnect != nil {
			if err := afterConnect(ctx, conn); err != nil {
				return err
			}
		}
		note := func(parameter, want string, is, isNot *atomic.Bool) {
			if conn.PgConn().ParameterStatus(parameter) == want {
				setTrue(is)
			} else {
				setTrue(isNot)
			}
		}
		note("standard_conforming_strings", "on", &t.plain, &t.notPlain)
		note("client_encoding", "UTF8", &t.utf8, &t.notUTF8)
		return nil
	}
}

// setTrue sets b to true. It writes to memory only if b is false.
func setTrue(b *atomic.Bool) {
	if !b.Load() {
		b.Store(true)
	}
}

// inspectBatch is inspect for a batch, as if it were one SQL text.
func (t *statements) inspectBatch(b *pgx.Batch, answers *catalogAnswers) sqltext.Statement {
	return inspectBatch(b, func(sql string) sqltext.Statement { return t.inspectSQL(t.resolve(sql), answers) })
}

// inspectBatch inspects a batch as if it were one SQL text. inspect inspects a statement in it.
func inspectBatch(b *pgx.Batch, inspect func(string) sqltext.Statement) sqltext.Statement {
	s := sqltext.Statement{Access: sqltext.Read}
	for i, q := range b.QueuedQueries {
		one := inspect(q.SQL)
		if rewritten(q.Arguments) {
			one.Access, one.SessionOnly = sqltext.Write, false
		}
		if i == 0 {
			s = one
		} else {
			s.Append(one)
		}
	}
	return s
}

// rewritten reports whether an app's own QueryRewriter is among the arguments, which may replace the SQL.
func rewritten(args []any) bool {
	for _, arg := range args {
		switch arg.(type) {
		case pgx.QueryResultFormats, pgx.QueryResultFormatsByOID, pgx.QueryExecMode:
		case pgx.NamedArgs, pgx.StrictNamedArgs:
			return false
		case pgx.QueryRewriter:
			return true
		default:
			return false
		}
	}
	return false
}
