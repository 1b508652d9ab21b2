// Package sqltext says what a SQL text may do, from the text alone. It knows PostgreSQL's lexical rules, and as much of
// its grammar as the questions need. All its functions are pure.
package sqltext

// Access is what one SQL text may do to the database.
type Access uint8

const (
	// Write is a text that has to run on the primary: it changes something, it asks for something that only the
	// primary can answer, or it is not understood. It is the zero value, because it is always a safe answer.
	Write Access = iota
	// Read is a text that a hot standby runs, and that means there what it means on the primary, or that asks who answers.
	Read
)

// String returns "read" or "write".
func (a Access) String() string {
	if a == Read {
		return "read"
	}
	return "write"
}

// Hint is where a comment in a text asks to have the text run.
type Hint uint8

const (
	HintNone Hint = iota
	HintReplica
	HintPrimary // the highest: of two hints that contradict each other the safe one wins
)

// Statement is what a SQL text tells.
type Statement struct {
	Access       Access
	Hint         Hint // from a comment /* flyregion:primary */ or /* flyregion:replica */; it has no part in Access
	Several      bool // the text holds more than one statement
	TxControl    bool // a statement in it begins, ends or shapes a transaction
	Begins       bool // the first statement begins a transaction
	Ends         bool // a statement in it may end a transaction
	LeavesOpen   bool // a transaction block is open when the text has run, by what its transaction control says
	HasShow      bool // a statement in it is a SHOW, which needs no snapshot
	OtherCommand bool // a statement in it begins with a word that is not recognised: another command, or a prepared statement
	Temporary    bool // the text may make a table that only its session has, or just have a column named temp
	CopiesIn     bool // a statement in it is a COPY FROM, behind which the server may expect data
	Settings     bool // the text may change a setting of the session; an UPDATE's SET does not count
	LeavesState  bool // the text may leave state in its session that other sessions lack: a setting, a temporary table
	SessionOnly  bool // it is a write only for what it does to its session or transaction: settings, savepoints, cursors
	Schema       bool // a statement in it may create, change or drop a function, a view or a policy
	UnknownCalls bool // the text calls a function that is not known; such a call does not make it a Write
}

// Append makes s what its text and that of next tell as one text, in this order.
func (s *Statement) Append(next Statement) {
	local := (s.Access == Read || s.SessionOnly) && (next.Access == Read || next.SessionOnly)
	if next.Access == Write {
		s.Access = Write
	}
	s.SessionOnly = local && s.Access == Write
	s.Hint = max(s.Hint, next.Hint)
	s.Several = true
	s.TxControl = s.TxControl && next.TxControl
	s.Ends = s.Ends || next.Ends
	if next.TxControl {
		s.LeavesOpen = next.LeavesOpen
	}
	s.HasShow = s.HasShow || next.HasShow
	s.OtherCommand = s.OtherCommand || next.OtherCommand
	s.Temporary = s.Temporary || next.Temporary
	s.CopiesIn = s.CopiesIn || next.CopiesIn
	s.Settings = s.Settings || next.Settings
	s.LeavesState = s.LeavesState || next.LeavesState
	s.Schema = s.Schema || next.Schema
	s.UnknownCalls = s.UnknownCalls || next.UnknownCalls
}

// Facts are what is known beside the SQL text. The zero value means that nothing is.
type Facts struct {
	// Functions says what calls of the app's own functions may do, by their name in lower case without a schema. It goes
	// before what this package knows of a name.
	Functions map[string]Access
	// Called says what the database's catalog knows of functions, by their name as the catalog has it. It goes before
	// what this package knows of a name, except those that belong to the primary.
	Called map[string]Access
	// Writing has the names of views and tables that call a function which may write when they are read, as the catalog
	// has them. A text with such a name in it is a write.
	Writing map[string]struct{}
	// StandardStrings is that standard_conforming_strings is on in every session, so that a backslash is a character like
	// others in a plain string. Otherwise a text is a write where that makes a difference.
	StandardStrings bool
	// UTF8 is that client_encoding is UTF8 in every session, so that no byte of a longer character is a backslash.
	// Otherwise a text is a write where that could make a difference.
	UTF8 bool
}

// Inspect inspects a SQL text as the server would read it. It reads the text once and does not allocate.
//
// Read means that a hot standby would run the text, and that it means there what it means on the primary. All else is
// Write: changes of data and schema, row locks, transaction control, settings and other objects of the session (prepared
// statements, cursors, temporary tables), calls whose effect or answer belongs to the primary (sequences, advisory
// locks, notifications, large objects, transaction ids, positions in the WAL, the state of the server itself), an empty
// text, and everything that is unknown or malformed. A text of several statements is Read if every one of them is. What asks
// which server answers, such as pg_is_in_recovery, is Read too, although each server has its own answer.
//
// Functions are recognised by name where they are called. What an application's own functions, operators and views do
// cannot be seen in the text, so they count as reads unless facts says otherwise.
func Inspect(sql string, facts Facts) Statement {
	p := inspector{sql: sql, facts: facts}
	switch {
	case !p.scan() || p.statements == 0 || p.wrote:
	case p.session:
		p.SessionOnly = true
	default:
		p.Access = Read
	}
	p.LeavesState = p.LeavesState || p.Settings || p.Temporary
	return p.Statement
}

// UnknownCalls returns the names, as the catalog would have them, of the functions that make Inspect say UnknownCalls.
// Some are no functions, such as exists and the names of lists of columns.
func UnknownCalls(sql string, facts Facts) []string {
	names := []string{}
	p := inspector{sql: sql, facts: facts, names: &names}
	p.scan()
	return names
}
