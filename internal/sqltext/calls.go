package sqltext

import "strings"

// onCall handles the name in front of an opening parenthesis. It is called, unless it is reserved, a label or type after AS, or
// the name of a query after WITH, which have columns or modifiers in the parenthesis.
func (p *inspector) onCall() {
	if p.prev == tokWord && p.word.reserved() && safeNames.find(p.sql[p.nameAt:p.nameEnd]) == 0 {
		return
	}
	if p.before.token == tokWord && (p.before.word == wordAs || p.before.word == wordWith) {
		return
	}
	if p.before.token == tokDot && p.state == inQuery && isPrimarySchema(p.sql[p.before.nameAt:p.before.nameEnd]) {
		name := p.sql[p.nameAt:p.nameEnd]
		if _, ok := p.appSays(name); !ok {
			p.effects, p.LeavesState = true, true
			return
		}
	}
	p.call(p.sql[p.nameAt:p.nameEnd], p.prev == tokQuoted)
}

// call handles the name of a function that is called.
func (p *inspector) call(name string, quoted bool) {
	if access, ok := p.appSays(name); ok {
		p.appCalls(access)
		return
	}
	if p.state == inWrite {
		return
	}
	kind := callKind(name)
	switch {
	case kind == callChangesSession:
		p.sessionEffect, p.LeavesState = true, true
		return
	case kind == callBelongsToPrimary:
		p.effects, p.LeavesState = true, p.LeavesState || leavesState(name)
		return
	case kind == callReadsSetting:
		p.setting = true
	}
	builtIn := kind != callUnknown || safeNames.find(name) != 0 && (!quoted || IsFunctionName(name))
	if builtIn && p.facts.Called == nil {
		return
	}
	var buf [maxName]byte
	stored, ok := storedName(&buf, name, quoted)
	if !ok {
		p.effects = true
		return
	}
	if access, ok := p.facts.Called[string(stored)]; ok {
		p.appCalls(access)
		return
	}
	if builtIn {
		return
	}
	p.UnknownCalls = true
	if p.names != nil {
		*p.names = append(*p.names, string(stored))
	}
}

// appCalls handles a call of a function whose access the app or the catalog has told.
func (p *inspector) appCalls(access Access) {
	if access == Write {
		p.effects, p.LeavesState = true, true
	}
}

// relation handles a name that may be that of a view or table.
func (p *inspector) relation(kind token, name string) {
	var buf [maxName]byte
	stored, ok := storedName(&buf, name, kind != tokWord)
	if _, writes := p.facts.Writing[string(stored)]; writes || !ok {
		p.wrote = true
	}
}

// settingNamed handles a string in a statement that calls current_setting.
func (p *inspector) settingNamed(text string) {
	if isServerSetting(text) || p.prev == tokOpen && strings.Contains(text, `\`) {
		p.effects = true
	}
}

// sequence handles the name of one of a sequence's columns, whose values on a standby are ahead of the primary's, because
// sequences are logged in advance. last_value is a window function too, and all may be labels.
func (p *inspector) sequence(end int) {
	if p.prev == tokWord && p.word == wordAs {
		return
	}
	_, next, _ := nextToken(p.sql, end)
	p.effects = p.effects || next < 0 || next == len(p.sql) || p.sql[next] != '('
}

// inFrom reports whether the name that comes next can be that of a table that is read.
func (p *inspector) inFrom() bool {
	prev, word := p.prev, p.word
	if prev == tokDot {
		prev, word = p.before.token, p.before.word
	}
	return prev == tokWord && (word == wordFrom || word == wordJoin || word == wordTable || word == wordOnly)
}

// isSequenceName reports whether a name is one that PostgreSQL gives to the sequence of a column.
func isSequenceName(name string) bool {
	const suffix = "_seq"
	return len(name) > len(suffix) && isFolded(name[len(name)-len(suffix):], suffix)
}

// appSays returns the access of a function in Facts.Functions, if it is there.
func (p *inspector) appSays(name string) (Access, bool) {
	if p.facts.Functions == nil {
		return Write, false
	}
	var buf [maxName]byte
	access, ok := p.facts.Functions[string(lower(&buf, name))]
	return access, ok
}

// isTransactionSetting reports whether a setting is one of the transaction, such as transaction_read_only.
func isTransactionSetting(name string) bool {
	const prefix = "transaction_"
	return len(name) > len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
}

// chain handles a name that may follow a dot.
func (p *inspector) chain(name string, quoted bool) {
	if p.prev == tokDot {
		p.field(name, quoted)
	} else {
		p.chained = false
	}
}

// field handles a name that follows a dot. ('s'::regclass).nextval is a call of nextval, as is $1.nextval. t.nextval is a
// column if t is a table, as none of the functions listed here takes a row. It is a call if t is a function in the FROM
// whose result is a single value, which callsFields decides.
func (p *inspector) field(name string, quoted bool) {
	if p.chained {
		p.call(name, quoted)
		return
	}
	if access, ok := p.appSays(name); ok {
		p.effects = p.effects || access == Write
		return
	}
	if kind := callKind(name); kind == callBelongsToPrimary || kind == callChangesSession {
		// In pg_catalog.nextval it is the name of a function, which call sees, or of a table.
		p.fields = p.fields || !strings.EqualFold(p.sql[p.nameAt:p.nameEnd], "pg_catalog")
	}
}
