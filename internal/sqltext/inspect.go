package sqltext

import "strings"

// state is the part of a statement that the inspector is in.
type state uint8

const (
	atStart          state = iota // before the first keyword; there may have been parentheses
	inExplain                     // after EXPLAIN
	inExplainParen                // after EXPLAIN (, which opens a list of options or a query
	inExplainOptions              // in that list
	inCopy                        // after COPY
	inCopySource                  // before the TO or FROM of a COPY
	inCopyTarget                  // after that TO
	inShow                        // after SHOW
	inSet                         // after SET
	inPrepare                     // after PREPARE
	inDeclare                     // after DECLARE
	inQuery                       // in something that may be a read
	inWrite                       // in something that is a write
)

// token is the kind of a token, as far as the tokens after it need to know.
type token uint8

const (
	tokNone    token = iota // no token yet in this statement
	tokWord                 // a keyword or an identifier without quotes
	tokQuoted               // "identifier"
	tokUnicode              // U&"identifier", whose real name is not worked out
	tokOpen                 // (
	tokClose                // )
	tokBracket              // ]
	tokComma                // ,
	tokDot                  // .
	tokParam                // $1
	tokEscapes              // E'string', or what continues it
	tokOther                // any other literal, an operator, [ and :
)

// inspector has the state of an inspection: of the SQL text, and of the statement in it that is being read.
type inspector struct {
	Statement
	sql        string
	facts      Facts
	names      *[]string // collects the names of unknown functions, or is nil
	statements int       // how many have ended; empty ones do not count
	wrote      bool      // one of them, or the text as a whole, is a write
	session    bool      // one of them works on its session or transaction
	current
}

// current is the state of the statement that is being read.
type current struct {
	state           state
	prev            token
	word            word // the keyword that the previous token is, if it is a tokWord
	nameAt, nameEnd int  // where the last name is: the previous token, if it is a tokWord or tokQuoted
	before          before
	depth           int // open parentheses

	explain       bool // it is an EXPLAIN
	analyze       bool // ... that executes what it explains
	copies        bool // it is a COPY, and its TO STDOUT was not seen yet
	changes       bool // executing it changes or locks something
	effects       bool // it calls or names something that belongs on the primary
	sessionEffect bool // it does something to its session or transaction
	fields        bool // it names a column like a function that does, which is a call if the table is a function in the FROM
	setting       bool // it calls current_setting

	with      bool // WITH was seen, so that other statements may be nested in it
	clause    word // FOR, UPDATE or DELETE, while the next word decides what it is; ANALYZE in options likewise
	finishing bool // it ends a transaction
	chained   bool // names after a dot may be calls, as in (x).a.b
	atomic    int  // open BEGIN ATOMIC and CASE in the body of a CREATE FUNCTION
}

// before is the token in front of a name.
type before struct {
	token           token
	word            word // if token is a tokWord
	nameAt, nameEnd int  // the name in front of the dot, if token is a tokDot
}

// end ends the current statement.
func (p *inspector) end() {
	if p.prev != tokNone {
		p.statements++
		p.Several = p.statements > 1
		if p.state != inQuery && !p.ownOnly() || p.depth != 0 || p.copies || p.effects || p.fields && callsFields(p.sql) || p.changes && (!p.explain || p.analyze) {
			p.wrote = true
		}
		p.session = p.session || p.sessionEffect
	}
	p.current = current{}
}

// ownOnly reports whether a command affects only its session or transaction.
func (p *inspector) ownOnly() bool {
	return p.sessionEffect && (p.state == inWrite || p.state == inSet) && !p.explain
}

// onWord handles a keyword or an identifier without quotes.
func (p *inspector) onWord(start, end int) {
	text := p.sql[start:end]
	w := p.anyName(tokWord, text)
	switch {
	case p.finishing && strings.EqualFold(text, "chain"):
		// COMMIT AND CHAIN begins the next block. AND NO CHAIN does not, but it is rare, and to take it for a block is safe.
		p.LeavesOpen = true
	case p.finishing && strings.EqualFold(text, "prepared"):
		p.sessionEffect = false // the transaction of another session
	case p.state == inQuery:
		p.body(w, text, end)
	case p.state < inQuery:
		p.lead(w, text)
	case p.atomic > 0 && w == wordCase, w == wordAtomic && p.prev == tokWord && p.word == wordBegin:
		p.atomic++
		p.sessionEffect = false // no transaction
	case p.atomic > 0 && w == wordEnd:
		p.atomic--
	}
	if p.prev == tokDot || p.prev == tokWord && p.word == wordAs {
		w = wordOther // a label, even in SELECT 1 AS as INTO t
	}
	p.name(tokWord, start, end)
	p.word = w
}

// anyName handles what is the same for names with and without quotes. It returns the keyword that the name is without quotes.
func (p *inspector) anyName(kind token, text string) word {
	w := lookup(text)
	switch w {
	case wordSetting:
		p.Settings = true
	case wordTemporary:
		p.Temporary = true
	}
	if p.facts.Writing != nil {
		p.relation(kind, text)
	}
	return w
}

// name makes a name the previous token.
func (p *inspector) name(kind token, start, end int) {
	p.before.token, p.before.word = p.prev, p.word
	if p.prev == tokDot {
		p.before.nameAt, p.before.nameEnd = p.nameAt, p.nameEnd
	}
	p.prev, p.nameAt, p.nameEnd = kind, start, end
}

// lead handles a word in front of the body of a statement.
func (p *inspector) lead(w word, text string) {
	switch p.state {
	case atStart:
		p.start(w, text)
	case inExplain:
		if w == wordAnalyze {
			p.analyze = true
		} else if w != wordVerbose {
			p.start(w, text)
		}
	case inExplainParen:
		if w == wordSelect || w == wordValues || w == wordTable || w == wordWith {
			p.start(w, text)
			return
		}
		p.state = inExplainOptions
		fallthrough
	case inExplainOptions:
		if p.clause == wordAnalyze && w != wordFalse && w != wordOff {
			p.analyze = true
		}
		p.clause = w
	case inCopy, inCopySource:
		p.state = inCopySource
		if p.depth > 0 || p.prev == tokDot {
			return
		}
		if w == wordTo {
			p.state = inCopyTarget
		} else if w == wordFrom {
			p.state, p.CopiesIn = inWrite, true
		}
	case inCopyTarget:
		// Files and programs are the server's, so only STDOUT will do.
		p.state = inWrite
		if w == wordStdout {
			p.state, p.copies = inQuery, false
		}
	case inShow:
		p.show(text)
	case inSet:
		// Not SET SESSION CHARACTERISTICS AS TRANSACTION, which is about transactions to come.
		p.TxControl = p.TxControl || w == wordTransaction && p.word != wordAs || isTransactionSetting(text)
	case inPrepare:
		p.TxControl = p.TxControl || w == wordTransaction
		p.Ends = p.Ends || w == wordTransaction
		p.state = inWrite
	case inDeclare:
		if w == wordFor {
			p.state = atStart // the query
		}
	}
}

// start handles the first keyword of a statement, or of the statement in an EXPLAIN or COPY.
func (p *inspector) start(w word, text string) {
	alone := p.depth == 0 && !p.explain
	p.state = inWrite
	switch w {
	case wordOther:
		p.OtherCommand = true
		p.Schema = p.Schema || !keepsSchema(text)
	case wordSelect, wordValues, wordTable:
		p.state = inQuery
	case wordWith:
		p.state, p.with = inQuery, true
	case wordInsert, wordUpdate, wordDelete, wordMerge:
		// A standby plans these like any other server.
		if p.explain {
			p.state, p.changes = inQuery, true
		}
	case wordShow:
		p.HasShow = true
		if alone {
			p.state = inShow
		}
	case wordExplain:
		if alone {
			p.state, p.explain = inExplain, true
		}
	case wordCopy:
		if alone {
			p.state, p.copies = inCopy, true
		}
	case wordBegin:
		p.TxControl, p.LeavesOpen, p.Begins, p.sessionEffect = true, true, p.Begins || p.statements == 0, true
	case wordControl:
		p.TxControl, p.sessionEffect = true, true
	case wordFinish, wordEnd:
		p.TxControl, p.Ends, p.LeavesOpen, p.finishing, p.sessionEffect = true, true, false, true, true
	case wordPrepare:
		p.state = inPrepare
	case wordSet:
		p.state, p.Settings, p.sessionEffect = inSet, true, true
	case wordReset:
		p.Settings, p.sessionEffect = true, true
	case wordDo: // its body may hold anything
		p.Settings, p.Schema = true, true
	case wordCall:
		p.OtherCommand, p.LeavesState = true, true
		p.Schema = p.Schema || !keepsSchema(text)
	case wordDeclare:
		p.OtherCommand = true
		if alone {
			p.state, p.sessionEffect = inDeclare, true
		}
	}
}

// show handles the name of a setting in a SHOW. Most settings are the same on every server, and a session of a pool has none of
// its own that the app could rely on. serverSettings differ between the servers, and ALL includes them.
func (p *inspector) show(name string) {
	p.state = inQuery
	if isServerSetting(name) || strings.EqualFold(name, "all") {
		p.effects = true
	}
}

// body handles a word in a statement that may be a read.
func (p *inspector) body(w word, text string, end int) {
	if p.clause != wordOther {
		p.decide(w)
	}
	switch w {
	case wordOther, wordSetting, wordTemporary:
		if isSystemName(text) && isServerView(text) || p.inFrom() && isSequenceName(text) {
			p.effects = true
		}
	case wordSequence:
		p.sequence(end)
	case wordInto:
		// A reserved word, so except as a label, after AS or a dot, it is the INTO of a SELECT, INSERT or MERGE.
		if p.prev != tokDot && (p.prev != tokWord || p.word != wordAs) {
			p.changes = true
		}
	case wordFor:
		p.clause = wordFor
	case wordUpdate, wordDelete:
		if p.nests() {
			p.clause = w
		}
	case wordWith:
		p.with = true
	case wordUescape:
		if p.prev == tokUnicode {
			p.effects = true // U&"..." UESCAPE '!' may be the name of a call
		}
	}
	p.chain(text, false)
}

// decide handles the word after FOR, UPDATE or DELETE, which tells what these mean.
func (p *inspector) decide(w word) {
	switch p.clause {
	case wordFor:
		// FOR UPDATE, FOR SHARE, FOR NO KEY UPDATE, FOR KEY SHARE; but not the FOR of substring.
		switch w {
		case wordNo, wordKey:
			return
		case wordUpdate, wordShare:
			p.changes = true
		}
	case wordDelete:
		if w == wordFrom {
			p.changes = true
		}
	case wordUpdate:
		if w == wordOnly || !w.reserved() {
			p.changes = true
		}
	}
	p.clause = wordOther
}

// nests reports whether an UPDATE or DELETE could begin here that is nested in a WITH, or that the WITH belongs to. It begins
// after a parenthesis, or after the name that ends a SEARCH or CYCLE clause. Both words may also be columns and labels, so
// the next word counts too. INSERT and MERGE are recognised by their INTO.
func (p *inspector) nests() bool {
	switch p.prev {
	case tokOpen:
		return true // without a WITH it is an error on the servers so far
	case tokComma, tokDot:
		return false
	case tokWord:
		return p.with && !p.word.reserved()
	}
	return p.with
}

// onQuoted handles a quoted identifier. start and end are those of what is between the quotes.
func (p *inspector) onQuoted(kind token, start, end int) {
	text := p.sql[start:end]
	w := p.anyName(kind, text)
	switch p.state {
	case inQuery:
		if p.clause == wordUpdate {
			p.changes = true
		}
		p.clause = wordOther
		if isSystemName(text) && isServerView(text) || p.inFrom() && isSequenceName(text) {
			p.effects = true
		}
		if w == wordSequence {
			p.sequence(end + 1)
		}
		if kind == tokUnicode {
			// It may stand for any name, which matters except for a label after AS.
			p.effects = p.effects || p.prev == tokDot || strings.Contains(text, `\`) && (p.prev != tokWord || p.word != wordAs)
		}
		p.chain(text, true)
	case inWrite, inDeclare:
	case inCopy, inCopySource:
		p.state = inCopySource
	case inExplainParen, inExplainOptions:
		// Options and their values may be quoted. That is rare, and counts as ANALYZE.
		p.state, p.analyze = inExplainOptions, true
	case inShow:
		p.show(text)
		p.effects = p.effects || kind == tokUnicode
	case inSet:
		p.TxControl = p.TxControl || isTransactionSetting(text)
	default:
		p.state = inWrite
	}
	p.name(kind, start, end)
}

// onOpen handles an opening parenthesis.
func (p *inspector) onOpen() {
	switch p.state {
	case inQuery, inWrite:
		switch p.prev {
		case tokWord, tokQuoted:
			p.onCall()
		case tokUnicode:
			p.effects = true
		}
	case inExplain:
		p.state = inExplainParen
		if p.word != wordExplain {
			p.state = atStart // after ANALYZE or VERBOSE there are no options
		}
	case inExplainParen, inCopy:
		p.state = atStart
	case atStart, inExplainOptions, inCopySource, inSet:
	default:
		p.state = inWrite
	}
	p.depth++
	p.prev, p.clause = tokOpen, wordOther
}

// onClose handles a closing parenthesis.
func (p *inspector) onClose() {
	p.depth--
	if p.depth <= 0 {
		switch {
		case p.depth < 0, p.state == atStart:
			p.state = inWrite
		case p.state == inExplainOptions:
			if p.clause == wordAnalyze {
				p.analyze = true
			}
			p.state = atStart
		case p.state == inQuery && p.copies:
			p.state = inCopySource
		}
	}
	p.prev, p.clause = tokClose, wordOther
}

// onOther handles a token that is neither a name nor a parenthesis.
func (p *inspector) onOther(kind token) {
	switch p.state {
	case inQuery, inWrite, inSet, inCopySource:
		if kind == tokDot {
			p.chained = p.prev == tokClose || p.prev == tokBracket || p.prev == tokParam || p.prev != tokOther && p.prev != tokEscapes && p.chained
		}
	case inExplainOptions:
		if p.clause == wordAnalyze {
			p.analyze = true // followed by a comma, or by a value that is none of false, off and 0
		}
	default:
		p.state = inWrite
	}
	p.prev, p.clause = kind, wordOther
}

// onNumber handles a number.
func (p *inspector) onNumber(text string) {
	if text == "0" && p.state == inExplainOptions {
		p.clause = wordOther
	}
	p.onOther(tokOther)
}
