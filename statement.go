package flyregion

import (
	"context"
	"hash/maphash"
	"sync/atomic"

	"github.com/flyregion/flyregion/internal/sqltext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Access is what one SQL text may do to the database.
type Access uint8

const (
	// Write is a text that has to run on the primary: it changes something, it asks for something that only the
	// primary can answer, or it is not understood. It is the zero value, because it is always a safe answer.
	Write Access = Access(sqltext.Write)
	// Read is a text that a hot standby runs, and that means there what it means on the primary.
	Read Access = Access(sqltext.Read)
)

// String returns "read" or "write".
func (a Access) String() string { return sqltext.Access(a).String() }

// Classify says what a SQL text may do, from the text alone. It knows PostgreSQL's lexical rules, and as much of its
// grammar as the question needs; it reads the text once and does not allocate.
//
// Read means that a hot standby would run the text, and that it means there what it means on the primary. All else is
// Write: changes of data and schema, row locks, transaction control, settings and other objects of the session (prepared
// statements, cursors, temporary tables), calls whose effect or answer belongs to the primary (sequences, advisory
// locks, notifications, large objects, transaction ids, positions in the WAL, the state of the server itself), an empty
// text, and everything that is unknown or malformed. A text of several statements is Read if every one of them is.
//
// Functions are recognised by name where they are called. What an application's own functions, operators and views do
// cannot be seen in the text, so they count as reads here. A [Pool] also asks the database's catalog about them: where it
// says that a function is VOLATILE, a call of it is a write.
//
// The text does not tell the session's standard_conforming_strings and client_encoding either. A text whose meaning
// depends on them is Write here; a Pool knows them of its connections.
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

// statements knows what the app's statements do, from their texts.
type statements struct {
	catalog  *catalog
	prepared preparedNames

	// How sessions read a text, as far as connections have told: every one so far, or one of them not.
	plain, notPlain atomic.Bool // standard_conforming_strings is on
	utf8, notUTF8   atomic.Bool // client_encoding is UTF8
}

// inspect looks at a text, or at the one that the name of a prepared statement stands for.
func (t *statements) inspect(sql string) sqltext.Statement {
	return sqltext.Inspect(t.resolve(sql), t.facts(t.catalog.answers.Load()))
}

// resolve returns the text that sql stands for. It is another if sql is the name of a prepared statement, and empty if that
// means different things on different connections.
func (t *statements) resolve(sql string) string {
	if text, ok := t.prepared.lookup(sql); ok {
		return text
	}
	return sql
}

// shape returns the shape of the text that sql stands for. A name that stands for several texts has one of its own.
func (t *statements) shape(sql string) uint64 {
	text := t.resolve(sql)
	if text == "" {
		return maphash.String(nameSeed, sql)
	}
	return sqltext.Shape(text)
}

var nameSeed = maphash.MakeSeed()

// facts returns what the config, the catalog and the connections say that a text does not show.
func (t *statements) facts(answers *catalogAnswers) sqltext.Facts {
	facts := answers.Facts
	facts.StandardStrings = t.plain.Load() && !t.notPlain.Load()
	facts.UTF8 = t.utf8.Load() && !t.notUTF8.Load()
	return facts
}

// observe has each new connection of a pool tell how its session reads a text.
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

// setTrue sets b, without a write to memory if it is set.
func setTrue(b *atomic.Bool) {
	if !b.Load() {
		b.Store(true)
	}
}

// inspectBatch is inspect for the texts of a batch as if they were one.
func (t *statements) inspectBatch(b *pgx.Batch, answers *catalogAnswers) sqltext.Statement {
	return inspectBatch(b, t.resolve, t.facts(answers))
}

// inspectBatch looks at a batch. text returns the text that one in it stands for.
func inspectBatch(b *pgx.Batch, text func(string) string, facts sqltext.Facts) sqltext.Statement {
	s := sqltext.Statement{Access: sqltext.Read}
	for i, q := range b.QueuedQueries {
		one := sqltext.Inspect(text(q.SQL), facts)
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

// rewritten reports whether a QueryRewriter that this package does not know may replace the text of a statement.
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
