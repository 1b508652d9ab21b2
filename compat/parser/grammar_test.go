package parser

import (
	"encoding/binary"
	"slices"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// grammar has, by symbol, the ways to write it, one in a line. In a line the words between angle brackets are symbols.
// The first line is taken when there are no more choices, so it must not lead to its own symbol again. It is
// PostgreSQL's grammar as far as it can matter, and where words are names that elsewhere are keywords.
//
// Lines that begin with ! are what a read must not have in it, or what Classify takes for that to be on the safe side. A
// text gets few of them: if there are several, nobody sees that one is overlooked.
var grammar = parseGrammar(map[string]string{
	"text": `
		<statement>
		<statement> ; <statement>
		<statement> ; <text> ;
		; <statement> ;`,
	"statement": `
		<query>
		<query>
		<query>
		<ctes> <query>
		! <ctes> <change>
		! <change>
		EXPLAIN <explained>
		EXPLAIN ANALYZE <explained>
		EXPLAIN VERBOSE <explained>
		EXPLAIN ( <options> ) <explained>
		COPY ( <query> ) TO STDOUT
		! COPY ( <change> RETURNING * ) TO STDOUT
		COPY <table> TO STDOUT <copy>
		COPY <table> ( <name> , <name> ) TO STDOUT <copy>
		! COPY <table> FROM STDIN <copy>
		! COPY ( <query> ) TO <sconst>
		SHOW <setting>
		! SET <name> TO <name>
		! CREATE TABLE <name> AS <query>
		! CREATE VIEW <name> AS <query>
		! PREPARE <name> AS <query>
		! DECLARE <name> CURSOR FOR <query>
		! CREATE FUNCTION f() BEGIN ATOMIC <query> ; <query> ; END
		! EXECUTE <name>
		! BEGIN
		! COMMIT`,
	"explained": `
		<query>
		<change>
		<ctes> <query>
		<ctes> <change>
		! CREATE TABLE <name> AS <query>
		! DECLARE <name> CURSOR FOR <query>
		! EXECUTE <name>`,
	"options": `
		<option>
		<option> , <options>`,
	"option": `
		ANALYZE
		analyse
		ANALYZE <value>
		ANALYZE <value>
		VERBOSE <value>
		COSTS <value>
		TIMING
		FORMAT <value>
		"analyze" <value>
		U&"\0061nalyze" <value>
		U&"!0061nalyze" UESCAPE '!'
		VALUES
		<name>`,
	"value": `
		false
		off
		true
		on
		0
		1
		'off'
		"false"
		-0
		+1
		<number>
		<string>
		<name>`,
	"copy": `
		
		( FORMAT csv , HEADER , FORCE_QUOTE ( <name> ) )
		WITH ( FORMAT <value> )
		CSV HEADER QUOTE <sconst> FORCE QUOTE <name>`,
	"setting": `
		work_mem
		! ALL
		TIME ZONE
		TRANSACTION ISOLATION LEVEL
		SESSION AUTHORIZATION
		! transaction_read_only
		! "in_hot_standby"
		! U&"in\005fhot_standby"
		! U&"\0061ll"
		<name>
		<name> . <name>`,
	"query": `
		SELECT <expression>
		SELECT <columns>
		SELECT <columns> <from> <tail>
		SELECT <columns> <from> <where> <tail>
		! SELECT <columns> INTO <into> <from> <tail>
		SELECT DISTINCT ON ( <expression> ) <columns> <from>
		SELECT <columns> <from> WINDOW <name> AS ( PARTITION BY <expression> ) <tail>
		VALUES ( <expression> , <expression> ) <tail>
		TABLE <table> <tail>
		( <query> )
		( <query> ) UNION ALL ( <query> ) <tail>
		( <query> ) EXCEPT SELECT <columns>
		! TABLE <table> INTERSECT SELECT <columns> INTO <into> <tail>
		( <ctes> <query> )`,
	"into": `
		<name>
		TEMP <name>
		UNLOGGED TABLE <name>
		TABLE <name>`,
	"columns": `
		<expression>
		<expression> AS <label>
		<expression> AS <label>
		<expression> <bare>
		<name> . <label>
		<name> . *
		<columns> , <columns>`,
	"from": `
		FROM <range>
		FROM <range> , <range>`,
	"where": `
		WHERE <expression>
		WHERE <expression> GROUP BY <expression> HAVING <expression>
		WHERE <expression> GROUP BY GROUPING SETS ( ( <expression> ) , <literal> )`,
	"tail": `
		
		ORDER BY <expression> DESC NULLS FIRST
		LIMIT <literal> OFFSET <literal>
		FETCH FIRST <literal> ROWS ONLY
		! FOR UPDATE
		! FOR NO KEY UPDATE OF <name> NOWAIT
		! FOR SHARE
		! FOR KEY SHARE SKIP LOCKED
		FOR READ ONLY
		! LIMIT <literal> FOR UPDATE
		! FOR UPDATE LIMIT <literal>`,
	"range": `
		<table>
		<table> AS <name>
		ONLY ( <table> ) <alias>
		( <query> ) AS <name>
		( <ctes> <query> ) AS <name>
		LATERAL ( <query> ) <name>
		<call> AS <name>
		<call>
		<call> WITH ORDINALITY
		CAST ( <expression> AS regclass ) AS <name>
		ROWS FROM ( <call> , <call> ) AS <name>
		ROWS FROM ( <call> ) AS <name>
		<table> TABLESAMPLE <name> ( <expression> )
		<range> JOIN <range> ON <expression>
		<range> NATURAL LEFT JOIN <table>
		xmltable ( <string> PASSING ( <expression> ) COLUMNS <name> FOR ORDINALITY , <name> text PATH <string> ) AS <name>
		json_table ( <expression> , <sconst> COLUMNS ( <name> FOR ORDINALITY , <name> int PATH <sconst> ) ) AS <name>`,
	"alias": `
		<name>
		AS <name> ( <name> , <name> )`,
	"table": `
		t
		<name>
		<name> . <label>
		pg_class
		! pg_locks
		! pg_catalog . pg_stat_activity
		! "pg_settings"
		! U&"pg\005flocks"
		! pg_temp . <name>`,
	"ctes": `
		WITH <with>
		WITH <with> , <with>
		WITH RECURSIVE <recursive>
		WITH RECURSIVE <recursive> , <with>
		WITH RECURSIVE <with> , <recursive>`,
	"recursive": `
		<name> AS ( <query> ) SEARCH DEPTH FIRST BY <name> SET <name>
		<name> AS ( <query> ) SEARCH BREADTH FIRST BY <name> , <name> SET <name>
		<name> AS ( <query> ) CYCLE <name> SET <name> USING <name>
		<name> AS ( <query> ) CYCLE <name> SET <name> TO <constant> DEFAULT <constant> USING <name>
		<name> AS ( <query> ) SEARCH DEPTH FIRST BY <name> SET <name> CYCLE <name> SET <name> USING <name>`,
	"with": `
		<name> AS ( <query> )
		! <name> AS ( <change> )
		! <name> AS ( <change> RETURNING <columns> )
		! <name> ( <name> ) AS NOT MATERIALIZED ( <change> RETURNING * )
		! <name> AS MATERIALIZED ( <ctes> <change> RETURNING * )
		! <name> AS ( <change> RETURNING <columns> ) , <with>
		<name> AS ( <query> ) , <with>`,
	"change": `
		DELETE FROM <table>
		DELETE FROM ONLY <table> AS <name> USING <range> <where>
		UPDATE <table> SET <name> = <expression>
		UPDATE ONLY ( <table> ) <name> SET ( <name> , <name> ) = ( <query> ) <from> <where>
		UPDATE <table> * SET <name> = DEFAULT
		INSERT INTO <table> <query>
		INSERT INTO <table> ( <name> ) VALUES ( <expression> ) ON CONFLICT DO NOTHING
		MERGE INTO <table> USING <range> ON <expression> WHEN MATCHED THEN DELETE
		MERGE INTO <table> USING <range> ON <expression> WHEN NOT MATCHED THEN INSERT VALUES ( <expression> )`,
	"expression": `
		<literal>
		<name>
		<name> . <label>
		<name> . <function>
		<name> . <name> [ <literal> ] . <function>
		<call>
		<call> OVER ( PARTITION BY <expression> ORDER BY <expression> )
		count ( * ) FILTER ( WHERE <expression> )
		( <expression> ) . <label>
		( <expression> ) . <function>
		( <expression> ) . <label> [ 1 : 2 ] . <function>
		$1 . <function>
		$1 [ 1 ] . <label>
		( <query> )
		( <query> ) . <label>
		( <ctes> <query> )
		EXISTS ( <query> )
		ARRAY ( <query> )
		ARRAY [ <expression> , <expression> ]
		ROW ( <expression> , <expression> )
		<literal> IN ( <query> )
		<literal> = ANY ( <query> )
		CASE WHEN <expression> THEN <expression> ELSE <expression> END
		CASE <expression> WHEN <literal> THEN <literal> END
		CAST ( <expression> AS text )
		( <expression> ) :: <name>
		( <expression> ) OPERATOR(pg_catalog.+) ( <expression> )
		<literal> <operator> <literal>
		<operator> <literal>
		substring ( <expression> FROM <literal> FOR <literal> )
		substring ( <expression> FOR <name> )
		overlay ( <sconst> PLACING <sconst> FROM 1 FOR 1 )
		extract ( year FROM <expression> )
		collation for ( <expression> )
		trim ( BOTH <string> FROM <expression> )
		<name> COLLATE <name>
		<name> AT TIME ZONE <string>
		<literal> BETWEEN <literal> AND <literal>
		<literal> IS NOT DISTINCT FROM <literal>
		timestamp with time zone <sconst>
		interval <sconst> year
		xmlelement ( name <label> , xmlattributes ( <expression> AS <label> ) )
		json_object ( <string> : <expression> )
		current_user
		<name> <sconst>`,
	"call": `
		generate_series ( <literal> , <literal> )
		<function> ( <expression> )
		<function> ( )
		<function> ( * )
		<function> ( DISTINCT <expression> ORDER BY <expression> )
		<function> ( VARIADIC <expression> )
		<function> ( <name> => <expression> )
		pg_catalog . <function> ( <expression> )
		<name> . pg_catalog . <function> ( <expression> )
		"pg_catalog" . <function> ( <expression> )
		<name> . <function> ( <expression> )
		coalesce ( <expression> , <expression> )`,
	"function": `
		count
		! nextval
		! NextVal
		! "nextval"
		! U&"nextval"
		! U&"\006eextval"
		! U&"!006eextval" UESCAPE '!'
		! pg_advisory_lock
		! PG_ADVISORY_XACT_LOCK
		! set_config
		! pg_notify
		! lo_creat
		! txid_current
		! pg_backend_pid
		pg_is_in_recovery
		inet_server_port
		pg_typeof
		lower
		<name>`,
	// Any of these may stand where the grammar has ColId.
	"name": `
		x
		t
		"x"
		"a""b"
		"into"
		"for"
		"update"
		U&"d\0061t"
		! U&"d!0061t" UESCAPE '!'
		u&"x"
		a$b$
		_1
		é
		e
		n
		u
		x1F
		update
		delete
		insert
		merge
		set
		share
		key
		no
		copy
		explain
		show
		begin
		atomic
		stdout
		values
		off
		by
		nulls
		first
		between
		! nextval
		locked
		uescape
		temp
		transaction
		prepare
		returning_`,
	// Any of these may stand where the grammar has ColLabel: after AS, or after a dot.
	"label": `
		x
		into
		for
		as
		select
		from
		with
		where
		end
		case
		only
		table
		to
		analyze
		verbose
		do
		false
		union
		returning
		<name>`,
	// Any of these may stand where the grammar has BareColLabel.
	"bare": `
		x
		"x"
		update
		delete
		share
		key
		no
		set
		end
		case
		only
		table
		select
		analyze
		do
		<name>`,
	"string": `
		<sconst>
		<sconst>
		B'101'
		x'1F'
		N'x'`,
	"literal": `
		1
		<number>
		<string>
		NULL
		true
		$1`,
	"constant": `
		1
		<number>
		<sconst>
		true
		date <sconst>`,
	"number": `
		1
		0
		1.5
		.5
		1.
		1e5
		1.e3
		1E-3
		0x1F
		0X0
		0b10
		0o17
		1_000
		0_1
		1_000.
		.0_1
		1_0.0_1e1_0`,
	"operator": `
		+
		-
		@
		||
		~
		->>
		@>
		<=
		!~
		#`,
}, map[string][]string{
	// Those with spaces in them.
	"sconst": {`'x'`, `'\\'`, `! '\'`, `! '\'''`, `''`, `'it''s'`, `E'\''`, `e'\\'`, `E'\\''\''`, `U&'d\0061t'`, `U&'!0061' UESCAPE '!'`,
		`$$it's$$`, `$a$ $$ $b$ $a$`, `$é$ " $é$`, `$_1$'$_1$`, "'a'\n'b'", "E'a'\n'\\''",
		"U&'a'\n'\\0061'", `'; DELETE FROM t; --'`, `'/*'`, `'"'`, `'$$'`},
	// What may stand between any two tokens without a change of their meaning.
	"gap": {"", "", " ", "\n", "\t\f\r\n", "/**/", " /* it's \" $$ ; DELETE FROM t */ ", "/*/* nested */*/", "/*/**/*/", "/*/*/*/*/**/*/*/",
		"/***/", " -- it's \" /*\n", "--\r", "--\n", "/*--*/", "/*+ Hint */", "/* ' */", "/* flyregion:replica */"},
	// What hardly may stand anywhere, but looks as if it did.
	"odd": {"(", ")", ";", ",", ".", "[", "]", "::", ":", "'", `"`, "$$", "$a$", "$1", "--", "/*", "*/", "\\", "E", "U&", "@", "=", "*",
		"FOR", "UPDATE", "INTO", "WITH", "AS", "SELECT", "DELETE", "FROM", "ANALYZE", "END", "TO", "STDOUT"},
})

// line is one way to write a symbol.
type line struct {
	words []string
	rare  bool // it begins with !
}

func parseGrammar(rules map[string]string, terminals map[string][]string) map[string][]line {
	g := map[string][]line{}
	for symbol, lines := range rules {
		for l := range strings.SplitSeq(strings.TrimPrefix(lines, "\n"), "\n") {
			l, rare := strings.CutPrefix(strings.TrimSpace(l), "! ")
			g[symbol] = append(g[symbol], line{strings.Fields(l), rare})
		}
	}
	for symbol, words := range terminals {
		for _, w := range words {
			w, rare := strings.CutPrefix(w, "! ")
			g[symbol] = append(g[symbol], line{[]string{w}, rare})
		}
	}
	return g
}

// generator makes a text out of choices. Every choice takes a byte; when there are none left, the first is taken. Of
// things that are more than a byte can tell apart, only the first 256 can be chosen.
type generator struct {
	choices []byte
	tokens  []token
	rare    int // how many lines with a ! may still be taken
}

// token is a token and what stands before it.
type token struct{ gap, text string }

const (
	maxTokens = 300
	maxDepth  = 30
)

func (g *generator) choose(n int) int {
	if len(g.choices) == 0 {
		return 0
	}
	c := g.choices[0]
	g.choices = g.choices[1:]
	return int(c) % n
}

// generate makes a text: one of the seeds or one that the grammar gives, and then some edits. It is made so that most
// texts parse.
func generate(choices []byte) string {
	g := generator{choices: choices}
	g.rare = []int{1, 1, 1, 1, 1, 0, 2, 10}[g.choose(8)]
	edits := []int{0, 0, 0, 1, 1, 2, 3, 5}[g.choose(8)]
	if g.choose(3) == 1 {
		g.tokens = slices.Clone(seedTokens[g.choose(len(seedTokens))])
	} else {
		g.expand("text", 0)
	}
	for range edits {
		if len(g.choices) == 0 {
			break
		}
		g.edit()
	}
	var b strings.Builder
	for _, t := range g.tokens {
		b.WriteString(t.gap)
		b.WriteString(t.text)
	}
	return b.String()
}

// expand appends what a symbol becomes.
func (g *generator) expand(symbol string, depth int) {
	lines := grammar[symbol]
	line := lines[0]
	if depth < maxDepth && len(g.tokens) < maxTokens {
		line = lines[g.choose(len(lines))]
	}
	if line.rare && g.rare == 0 {
		line = lines[0]
	} else if line.rare {
		g.rare--
	}
	for _, word := range line.words {
		if name, ok := strings.CutPrefix(word, "<"); ok && strings.HasSuffix(name, ">") {
			g.expand(strings.TrimSuffix(name, ">"), depth+1)
		} else {
			g.tokens = append(g.tokens, token{" ", word})
		}
	}
}

// made returns what a symbol becomes, without appending it.
func (g *generator) made(symbol string) []token {
	before := g.tokens
	g.tokens = nil
	g.expand(symbol, maxDepth/2)
	made := g.tokens
	g.tokens = before
	return made
}

// edit changes one thing. Most changes are such that a text that parsed often still does.
func (g *generator) edit() {
	if len(g.tokens) == 0 {
		g.tokens = []token{{"", ";"}}
	}
	at := g.choose(len(g.tokens))
	switch g.choose(12) {
	case 0, 1, 2:
		g.tokens[at].gap = g.made("gap")[0].text
	case 3:
		g.tokens[at].text = recase(g.tokens[at].text)
	case 4:
		at = g.find(at, func(t token) bool { return isWord(t) && t.text != strings.ToUpper(t.text) })
		g.replace(at, at+1, g.made("name"))
	case 5:
		at = g.find(at, isWord)
		g.replace(at, at+1, g.made("label"))
	case 6:
		at = g.find(at, func(t token) bool { return strings.ContainsAny(t.text[:1], "'$0123456789") })
		g.replace(at, at+1, g.made("expression"))
	case 7:
		at = g.find(at, func(t token) bool { return t.text == ")" || t.text == ";" })
		g.replace(at, at, g.made("tail"))
	case 8:
		g.replace(at, at+1, nil)
	case 9:
		g.replace(at, at, g.made("odd"))
	case 10:
		// What is in one pair of parentheses goes into another.
		other := seedTokens[g.choose(len(seedTokens))]
		from, to := group(other, g.choose(len(other)))
		start, end := group(g.tokens, at)
		g.replace(start, end, other[from:to])
	case 11:
		wrap := [][2]string{{"WITH x AS (", ") SELECT 1"}, {"SELECT * FROM (", ") AS x"}, {"SELECT (", ")"}, {"(", ")"},
			{"EXPLAIN ", ""}, {"EXPLAIN ANALYZE ", ""}, {"EXPLAIN (ANALYZE) ", ""}, {"COPY (", ") TO STDOUT"}, {"SELECT 1; ", ""},
			{"", "; SELECT 1"}, {"WITH x AS (SELECT 1) ", ""}}[g.choose(11)]
		g.tokens = slices.Concat([]token{{"", wrap[0]}}, g.tokens, []token{{"", wrap[1]}})
	}
}

// find returns where the next token from at on is that is wanted, or at if there is none.
func (g *generator) find(at int, wanted func(token) bool) int {
	for i := range g.tokens {
		if i = (at + i) % len(g.tokens); g.tokens[i].text != "" && wanted(g.tokens[i]) {
			return i
		}
	}
	return at
}

func isWord(t token) bool {
	c := t.text[0] | 0x20
	return 'a' <= c && c <= 'z'
}

// replace puts tokens in the place of others.
func (g *generator) replace(from, to int, tokens []token) {
	if len(g.tokens)-(to-from)+len(tokens) <= 2*maxTokens {
		g.tokens = slices.Concat(g.tokens[:from], tokens, g.tokens[to:])
	}
}

// group returns where the parentheses around the token at i begin and end, without them.
func group(tokens []token, i int) (start, end int) {
	for start, depth := i, 0; start > 0; start-- {
		switch tokens[start-1].text {
		case ")":
			depth++
		case "(":
			if depth--; depth < 0 {
				return start, closing(tokens, start)
			}
		}
	}
	return 0, len(tokens)
}

func closing(tokens []token, i int) int {
	for depth := 0; i < len(tokens); i++ {
		switch tokens[i].text {
		case "(":
			depth++
		case ")":
			if depth--; depth < 0 {
				return i
			}
		}
	}
	return len(tokens)
}

// recase gives a word without quotes the other case.
func recase(word string) string {
	if strings.ContainsAny(word, "'\"$") {
		return word
	}
	if upper := strings.ToUpper(word); upper != word {
		return upper
	}
	return strings.ToLower(word)
}

// seedTokens are the seeds that have tokens, in tokens.
var seedTokens = func() (all [][]token) {
	for _, sql := range seeds {
		scan, err := pg.Scan(sql)
		if err != nil {
			continue
		}
		var tokens []token
		end := int32(0)
		for _, t := range scan.Tokens {
			if t.Token != pg.Token_SQL_COMMENT && t.Token != pg.Token_C_COMMENT {
				tokens = append(tokens, token{sql[end:t.Start], sql[t.Start:t.End]})
				end = t.End
			}
		}
		if len(tokens) > 0 {
			all = append(all, tokens)
		}
	}
	return all
}()

// generatorSeeds are choices that lead to different texts.
func generatorSeeds() (all [][]byte) {
	for i := range uint64(200) {
		all = append(all, randomChoices(i))
	}
	return all
}

// randomChoices are always the same for the same number.
func randomChoices(i uint64) (choices []byte) {
	for len(choices) < 64 {
		// splitmix64
		i += 0x9e3779b97f4a7c15
		z := (i ^ i>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		choices = binary.LittleEndian.AppendUint64(choices, z^z>>31)
	}
	return choices
}
