package sqltext

// word is a keyword that has a part in the classification.
type word uint8

const (
	wordOther word = iota // any other word

	// Keywords that can also be the name of a table or column.
	wordAtomic
	wordBegin   // BEGIN, START
	wordCall    // CALL, EXECUTE, LOAD
	wordControl // SAVEPOINT, RELEASE
	wordFinish  // COMMIT, ROLLBACK, ABORT
	wordCopy
	wordDeclare
	wordDelete
	wordExplain
	wordInsert
	wordKey
	wordMerge
	wordNo
	wordOff
	wordPrepare
	wordReset    // and DISCARD
	wordSequence // no keyword: a column of a sequence that says how far it has come
	wordSet
	wordSetting // no keyword: a name that has to do with changing settings
	wordShare
	wordShow
	wordStdout
	wordTemporary // TEMP, TEMPORARY, and pg_temp, which is no keyword
	wordTransaction
	wordUescape
	wordUpdate
	wordValues

	// Keywords that cannot, unless they are quoted.
	wordReserved // any that needs no value of its own
	wordAnalyze
	wordAs
	wordCase
	wordDo
	wordEnd
	wordFalse
	wordFor
	wordFrom
	wordInto
	wordJoin
	wordOnly
	wordSelect
	wordTable
	wordTo
	wordVerbose
	wordWith
)

// reserved reports whether a word cannot be the name of a table or column.
func (w word) reserved() bool { return w >= wordReserved }

// keywords lists the words by their value. PostgreSQL knows more reserved words: those that are here are the ones that
// can stand beside a column named update or delete.
var keywords = map[word][]string{
	wordAtomic:      {"atomic"},
	wordBegin:       {"begin", "start"},
	wordCall:        {"call", "execute", "load"},
	wordControl:     {"release", "savepoint"},
	wordFinish:      {"abort", "commit", "rollback"},
	wordCopy:        {"copy"},
	wordDeclare:     {"declare"},
	wordDelete:      {"delete"},
	wordExplain:     {"explain"},
	wordInsert:      {"insert"},
	wordKey:         {"key"},
	wordMerge:       {"merge"},
	wordNo:          {"no"},
	wordOff:         {"off"},
	wordPrepare:     {"prepare"},
	wordReset:       {"discard", "reset"},
	wordSequence:    {"is_called", "last_value", "log_cnt"},
	wordSet:         {"set"},
	wordSetting:     {"pg_settings", "set_config", "synchronous_commit"},
	wordShare:       {"share"},
	wordShow:        {"show"},
	wordStdout:      {"stdout"},
	wordTemporary:   {"pg_temp", "temp", "temporary"},
	wordTransaction: {"transaction"},
	wordUescape:     {"uescape"},
	wordUpdate:      {"update"},
	wordValues:      {"values"},

	wordReserved: {"all", "and", "any", "asc", "collate", "cross", "desc", "distinct", "else", "except", "fetch", "full",
		"group", "having", "ilike", "in", "inner", "intersect", "is", "isnull", "left", "like", "limit", "natural",
		"not", "notnull", "offset", "on", "or", "order", "outer", "returning", "right", "similar", "then", "union", "using",
		"when", "where", "window"},
	wordAnalyze: {"analyse", "analyze"},
	wordAs:      {"as"},
	wordCase:    {"case"},
	wordDo:      {"do"},
	wordEnd:     {"end"},
	wordFalse:   {"false"},
	wordFor:     {"for"},
	wordFrom:    {"from"},
	wordInto:    {"into"},
	wordJoin:    {"join"},
	wordOnly:    {"only"},
	wordSelect:  {"select"},
	wordTable:   {"table"},
	wordTo:      {"to"},
	wordVerbose: {"verbose"},
	wordWith:    {"with"},
}

var wordNames = func() nameTable {
	t := newNameTable(512)
	for w, names := range keywords {
		for _, name := range names {
			t.add(name, uint8(w))
		}
	}
	return *t
}()

// lookup returns the keyword that a text is, in any case.
func lookup(text string) word {
	return word(wordNames.find(text))
}

// nameTable finds names in any case of their ASCII letters, which are the only letters that PostgreSQL folds. It is a hash
// table with open addressing, with a filter in front that most other words do not pass. Every word of every statement is
// looked up, and with a map that would cost more than all the rest.
type nameTable struct {
	firsts [256]uint64 // by first letter, in either case, the lengths of the names, as bits
	lasts  [256]uint64 // the same by last letter
	slots  []nameSlot  // a power of two of them
}

type nameSlot struct {
	name  string // in lower case
	value uint8
}

// newNameTable returns a table with a number of slots, which must be a power of two and much higher than that of the names.
func newNameTable(slots int) *nameTable { return &nameTable{slots: make([]nameSlot, slots)} }

func (t *nameTable) add(name string, value uint8) {
	for c := range folded {
		if folded[c] == name[0] {
			t.firsts[c] |= 1 << len(name)
		}
		if folded[c] == name[len(name)-1] {
			t.lasts[c] |= 1 << len(name)
		}
	}
	i := nameHash(name)
	for t.slots[i&uint(len(t.slots)-1)].name != "" {
		i++
	}
	slot := &t.slots[i&uint(len(t.slots)-1)]
	slot.name, slot.value = name, value
}

// find returns the value of a name, or 0.
func (t *nameTable) find(text string) uint8 {
	if text == "" || t.firsts[text[0]]&t.lasts[text[len(text)-1]]>>len(text)&1 == 0 {
		return 0
	}
	return t.search(text)
}

// search is find after the filter.
func (t *nameTable) search(text string) uint8 {
	for i := nameHash(text); ; i++ {
		slot := &t.slots[i&uint(len(t.slots)-1)]
		if slot.name == "" {
			return 0
		}
		if len(slot.name) == len(text) && isFolded(text, slot.name) {
			return slot.value
		}
	}
}

// nameHash hashes a name that is not empty.
func nameHash(text string) uint {
	n := len(text)
	return uint(n) + 7*uint(folded[text[0]]) + 31*uint(folded[text[n/2]]) + 131*uint(folded[text[n-1]])
}

// isFolded reports whether text, in lower case, is name, which is as long.
func isFolded(text, name string) bool {
	for i := range len(name) {
		if folded[text[i]] != name[i] {
			return false
		}
	}
	return true
}

// maxName is the length from which on PostgreSQL cuts names. No name in a table here comes near it.
const maxName = 64

// lower copies a name in lower case, as far as PostgreSQL looks at it.
func lower(buf *[maxName]byte, name string) []byte {
	n := min(len(name), maxName-1)
	for i := range n {
		buf[i] = folded[name[i]]
	}
	return buf[:n]
}
