package sqltext

import (
	"encoding/binary"
	"regexp"
	"strings"
	"testing"
)

// FuzzInspect rewrites texts in ways that change nothing to PostgreSQL, and expects that nothing changes.
func FuzzInspect(f *testing.F) {
	for i, c := range classifyCases {
		f.Add(c.sql, uint64(i))
	}
	f.Fuzz(func(t *testing.T, sql string, choices uint64) {
		var facts Facts
		if choices%2 == 1 {
			facts.StandardStrings, facts.UTF8 = true, true
		}
		// Before PostgreSQL 15 a name could follow a number without a space, and no server takes that for a call.
		joined := numberAndName.MatchString(sql)
		inspect := func(sql string) Statement {
			s := Inspect(sql, facts)
			s.UnknownCalls = s.UnknownCalls && !joined
			return s
		}
		want := inspect(sql)
		tokens, ok := tokenize(sql)
		if !ok {
			if want.Access == Read {
				t.Fatalf("read, but the text is broken: %q", sql)
			}
			return
		}
		for _, variant := range []string{
			sql + "\n;",
			"\n;" + sql,
			" -- it's\n" + sql + "\n-- $$",
			rewrite(tokens, choices, separate),
			rewrite(tokens, choices, recase),
			rewrite(tokens, choices, requote),
			rewrite(tokens, choices, separate, recase, requote),
		} {
			if got := inspect(variant); got != want {
				t.Fatalf("inspect is %+v, want %+v as for the original:\n%q\n%q", got, want, variant, sql)
			}
		}
		if len(sql) < 10_000 && want.Access == Read {
			// Two reads are a read, and a write does not disappear beside one.
			if inspect(sql+"\n;"+sql).Access != Read {
				t.Fatalf("a write, when it is there twice: %q", sql)
			}
			if inspect(sql+"\n;DELETE FROM t").Access == Read || inspect("DELETE FROM t;"+sql).Access == Read {
				t.Fatalf("hides a write: %q", sql)
			}
		}
	})
}

// lexemes matches one token at the beginning of a text, except comments and dollar quotes. It is another description of
// PostgreSQL's lexical rules than the one it tests.
var lexemes = regexp.MustCompile(`^(?s:` + strings.Join([]string{
	`[ \t\n\r\f\v]+`,
	`--[^\n\r]*`,
	`[eE]'(?:[^'\\]|\\.|'')*'`,
	`[uU]&'(?:[^']|'')*'`,
	`[uU]&"(?:[^"]|"")*"`,
	`'(?:[^']|'')*'`,
	`"(?:[^"]|"")*"`,
	`[A-Za-z_\x{80}-\x{10FFFF}][A-Za-z_0-9$\x{80}-\x{10FFFF}]*`,
	`[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?`,
	`\.[0-9]+(?:[eE][+-]?[0-9]+)?`,
	`\$[0-9]+`,
	"[][()+*<>=~!@#%^&|`?:,.;/-]",
}, "|") + `)`)

var numberAndName = regexp.MustCompile(`[0-9.][A-Za-z_]`)

// unclosed matches what a literal with a prefix begins with.
var unclosed = regexp.MustCompile(`^(?:[eE]'|[uU]&['"])`)

var dollarTag = regexp.MustCompile(`^\$(?:[A-Za-z_\x{80}-\x{10FFFF}][A-Za-z_0-9\x{80}-\x{10FFFF}]*)?\$`)

// tokenize splits a text into its tokens, without white space and comments except those that may be hints.
func tokenize(sql string) (tokens []string, ok bool) {
	if strings.Contains(sql, "\x00") {
		return nil, false
	}
	for sql != "" {
		if tag := dollarTag.FindString(sql); tag != "" {
			end := strings.Index(sql[len(tag):], tag)
			if end < 0 {
				return nil, false
			}
			end += 2 * len(tag)
			tokens = append(tokens, sql[:end])
			sql = sql[end:]
			continue
		}
		if strings.HasPrefix(sql, "/*") {
			end := commentEnd(sql)
			if end < 0 {
				return nil, false
			}
			tokens = append(tokens, sql[:end])
			sql = sql[end:]
			continue
		}
		token := lexemes.FindString(sql)
		if token == "" || len(token) == 1 && unclosed.MatchString(sql) {
			return nil, false
		}
		if last := token[len(token)-1]; (last == '\'' || last == '"') && strings.HasPrefix(sql[len(token):], string(last)) {
			return nil, false // a doubled quote, and no other to end with
		}
		if strings.Trim(token, " \t\n\r\f\v") != "" && !strings.HasPrefix(token, "--") {
			tokens = append(tokens, token)
		} else {
			tokens = append(tokens, "\n")
		}
		sql = sql[len(token):]
	}
	return tokens, true
}

func commentEnd(sql string) int {
	depth := 0
	for i := 0; i+1 < len(sql); i++ {
		switch sql[i : i+2] {
		case "/*":
			depth++
			i++
		case "*/":
			i++
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

// rewrite joins tokens again after each change was made to each.
func rewrite(tokens []string, choices uint64, changes ...func(token string, choice byte) string) string {
	var seed [8]byte
	binary.LittleEndian.PutUint64(seed[:], choices)
	var b strings.Builder
	for i, token := range tokens {
		for _, change := range changes {
			token = change(token, seed[i%8]+byte(i))
		}
		b.WriteString(token)
	}
	return b.String()
}

// separate puts white space or a comment before a token.
func separate(token string, choice byte) string {
	between := []string{"", " ", "\n", "\t", " /* */", " /* it's \" $$ ; DELETE FROM t */ ", " /*/* nested */*/", " -- it's\n",
		" --\r", "\f"}
	return between[int(choice)%len(between)] + token
}

// recase changes the case of a keyword or an identifier without quotes.
func recase(token string, choice byte) string {
	if classes[token[0]] != classLetter || strings.ContainsAny(token, "'\"") {
		return token
	}
	b := []byte(token)
	for i, c := range b {
		if folded := c | 0x20; 'a' <= folded && folded <= 'z' && (choice>>(i%8))&1 == 1 {
			b[i] = c ^ 0x20
		}
	}
	return string(b)
}

// requote writes a string in another way.
func requote(token string, choice byte) string {
	if token[0] != '\'' || strings.ContainsAny(token, `\`) {
		return token
	}
	switch choice % 4 {
	case 0:
		return " E" + token
	case 1:
		if text := strings.ReplaceAll(token[1:len(token)-1], "''", "'"); !strings.Contains(text+"$", "$q$") {
			return " $q$" + text + "$q$"
		}
	case 2:
		return " U&" + token
	}
	return token
}
