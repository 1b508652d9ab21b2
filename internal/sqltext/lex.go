package sqltext

import "strings"

// class is what a byte can begin outside of strings and comments.
type class uint8

const (
	classBad      class = iota // not allowed in SQL, such as a control character or a backslash
	classSpace                 //
	classLetter                // an identifier or keyword; also every byte of a character outside ASCII
	classDigit                 //
	classQuote                 // '
	className                  // "
	classDollar                // $
	classDash                  // -
	classSlash                 // /
	classOpen                  // (
	classClose                 // )
	classComma                 // ,
	classDot                   // .
	classBracket               // ]
	classEnd                   // ;
	classOperator              // any other operator character, and [ and :
)

// folded has the ASCII letters in lower case, and all other bytes as they are.
var folded = func() (t [256]byte) {
	for c := range t {
		t[c] = byte(c)
		if 'A' <= c && c <= 'Z' {
			t[c] += 'a' - 'A'
		}
	}
	return t
}()

// classes has the class of every byte.
var classes = func() (t [256]class) {
	set := func(as class, chars string) {
		for _, c := range []byte(chars) {
			t[c] = as
		}
	}
	set(classSpace, " \t\n\r\f\v")
	set(classDigit, "0123456789")
	set(classOperator, "+*<>=~!@#%^&|`?[:")
	set(classQuote, "'")
	set(className, `"`)
	set(classDollar, "$")
	set(classDash, "-")
	set(classSlash, "/")
	set(classOpen, "(")
	set(classClose, ")")
	set(classComma, ",")
	set(classDot, ".")
	set(classBracket, "]")
	set(classEnd, ";")
	for c := range t {
		if f := folded[c]; 'a' <= f && f <= 'z' || f == '_' || f >= 0x80 {
			t[c] = classLetter
		}
	}
	return t
}()

// inName has the bytes that continue an identifier.
var inName = func() (t [256]bool) {
	for c := range t {
		t[c] = classes[c] == classLetter || classes[c] == classDigit || classes[c] == classDollar
	}
	return t
}()

// scan reads the whole text. It reports false if the text is malformed.
func (p *inspector) scan() bool {
	sql := p.sql
	if strings.IndexByte(sql, 0) >= 0 {
		return false // to the server the text would end there
	}
	for i := 0; i < len(sql); {
		switch classes[sql[i]] {
		case classSpace:
			i++
		case classLetter:
			end := i + 1
			for end < len(sql) && inName[sql[end]] {
				end++
			}
			if end == i+1 && end < len(sql) && (sql[end] == '\'' || sql[end] == '&') {
				if end = p.prefixed(i); end < 0 {
					return false
				}
			} else {
				p.onWord(i, end)
			}
			i = end
		case classDigit:
			end := skipNumber(sql, i)
			if end < len(sql) && continuesNumber(sql[i:end], sql[end:]) {
				for end < len(sql) && inName[sql[end]] {
					end++
				}
				if end < len(sql) && sql[end] == '.' {
					for end++; end < len(sql) && (classes[sql[end]] == classDigit || sql[end] == '_'); end++ {
					}
				}
			}
			p.onNumber(sql[i:end])
			i = end
		case classQuote:
			if i = p.plainString(i + 1); i < 0 {
				return false
			}
		case className:
			end := skipName(sql, i+1)
			if end < 0 {
				return false
			}
			p.onQuoted(tokQuoted, i+1, end-1)
			i = end
		case classDollar:
			end, kind := skipDollar(sql, i)
			if end < 0 {
				return false
			}
			if kind == tokOther && p.setting {
				tag := strings.IndexByte(sql[i+1:], '$') + 2
				p.settingNamed(sql[i+tag : end-tag])
			}
			p.onOther(kind)
			i = end
		case classDash:
			if i+1 < len(sql) && sql[i+1] == '-' {
				i = skipLine(sql, i+2)
				continue
			}
			p.onOther(tokOther)
			i++
		case classSlash:
			if i+1 < len(sql) && sql[i+1] == '*' {
				end := skipComment(sql, i+2)
				if end < 0 {
					return false
				}
				p.Hint = max(p.Hint, hintIn(sql[i+2:end-2]))
				i = end
				continue
			}
			p.onOther(tokOther)
			i++
		case classOpen:
			p.onOpen()
			i++
		case classClose:
			p.onClose()
			i++
		case classComma:
			p.onOther(tokComma)
			i++
		case classDot:
			if i+1 < len(sql) && classes[sql[i+1]] == classDigit {
				i = skipNumber(sql, i)
				p.onOther(tokOther)
				continue
			}
			p.onOther(tokDot)
			i++
		case classBracket:
			p.onOther(tokBracket)
			i++
		case classOperator:
			p.onOther(tokOther)
			i++
		case classEnd:
			if p.depth == 0 && p.atomic == 0 {
				p.end()
			} else {
				p.wrote = true // several commands in the body of a function or rule, or an error
				p.onOther(tokOther)
			}
			i++
		default:
			return false
		}
	}
	p.end()
	return true
}

// prefixed handles what begins with one letter and a quote or ampersand, and returns its end, or -1. It may be E'...',
// U&'...' or U&"...". B, X and N do not change how a string ends, so they are taken for names in front of a string.
func (p *inspector) prefixed(i int) int {
	sql := p.sql
	switch rest := sql[i+1:]; {
	case folded[sql[i]] == 'e' && rest[0] == '\'':
		end, _ := skipString(sql, i+2, true)
		if end < 0 {
			return -1
		}
		if !p.facts.UTF8 && escapesCharacter(sql[i+2:end]) {
			p.wrote = true
		}
		if p.setting {
			p.settingNamed(sql[i+2 : end-1])
		}
		p.onOther(tokEscapes)
		return end
	case folded[sql[i]] == 'u' && strings.HasPrefix(rest, "&'"):
		return p.plainString(i + 3)
	case folded[sql[i]] == 'u' && strings.HasPrefix(rest, "&\""):
		end := skipName(sql, i+3)
		if end >= 0 {
			p.onQuoted(tokUnicode, i+3, end-1)
		}
		return end
	}
	p.onWord(i, i+1)
	return i + 1
}

// plainString handles a string that began before i, and returns its end, or -1.
//
// In such a string a backslash is a character like others, unless standard_conforming_strings is off. This makes a difference
// only at a quote after an odd number of backslashes. SQL with such a quote is a write, unless the setting is known. The
// rest is read as with the default, on.
//
// After an E string it may be the continuation of that on a new line, where a backslash does escape.
func (p *inspector) plainString(i int) int {
	kind := tokOther
	if p.prev == tokEscapes {
		kind = tokEscapes
	}
	end, escaped := skipString(p.sql, i, false)
	if escaped && (!p.facts.StandardStrings || kind == tokEscapes) {
		p.wrote = true
	}
	if end >= 0 && p.setting {
		p.settingNamed(p.sql[i : end-1])
	}
	p.onOther(kind)
	return end
}

// skipString returns the end of the string that began before i, or -1, and whether a quote in it followed an odd number of
// backslashes. With escapes such a quote does not end the string.
//
// The continuation of a string on a new line is taken for a string of its own.
func skipString(sql string, i int, escapes bool) (end int, escaped bool) {
	for {
		n := strings.IndexByte(sql[i:], '\'')
		if n < 0 {
			return -1, escaped
		}
		i += n + 1
		if sql[i-2] == '\\' && oddBackslashes(sql[:i-1]) {
			escaped = true
			if escapes {
				continue
			}
		}
		if i == len(sql) || sql[i] != '\'' {
			return i, escaped
		}
		i++
	}
}

// escapesCharacter reports whether a backslash comes behind a byte outside of ASCII. In SJIS, BIG5, GBK and their like it can
// be the second byte of a character.
func escapesCharacter(text string) bool {
	for i := 1; i < len(text); i++ {
		if text[i] == '\\' && text[i-1] >= 0x80 {
			return true
		}
	}
	return false
}

// oddBackslashes reports whether a text, which is not all backslashes, ends in an odd number of them.
func oddBackslashes(sql string) bool {
	n := 0
	for sql[len(sql)-1-n] == '\\' {
		n++
	}
	return n%2 == 1
}

// skipName returns where the quoted identifier that began before i has ended, or -1.
func skipName(sql string, i int) int {
	for {
		n := strings.IndexByte(sql[i:], '"')
		if n < 0 {
			return -1
		}
		i += n + 1
		if i == len(sql) || sql[i] != '"' {
			return i
		}
		i++
	}
}

// skipDollar returns where a dollar-quoted string or a parameter has ended, and which it is.
func skipDollar(sql string, i int) (int, token) {
	end := i + 1
	if end < len(sql) && classes[sql[end]] == classDigit {
		for end < len(sql) && classes[sql[end]] == classDigit {
			end++
		}
		return end, tokParam
	}
	for end < len(sql) && inName[sql[end]] && sql[end] != '$' {
		end++ // letters and digits; it was no digit at the beginning
	}
	if end == len(sql) || sql[end] != '$' {
		return -1, tokNone
	}
	end++
	n := strings.Index(sql[end:], sql[i:end])
	if n < 0 {
		return -1, tokNone
	}
	return end + n + end - i, tokOther
}

// skipNumber returns the end of the number at i. What follows a number without a space, such as the INTO of 1INTO, is a token
// of its own: older servers read it so, newer ones refuse it. 0x1F and 1_000 are read as a number and a name, which does no
// harm.
func skipNumber(sql string, i int) int {
	i = skipDigits(sql, i)
	if i < len(sql) && sql[i] == '.' && (i+1 == len(sql) || sql[i+1] != '.') {
		i = skipDigits(sql, i+1)
	}
	if i < len(sql) && sql[i]|0x20 == 'e' {
		exponent := i + 1
		if exponent < len(sql) && (sql[exponent] == '+' || sql[exponent] == '-') {
			exponent++
		}
		if end := skipDigits(sql, exponent); end > exponent {
			return end
		}
	}
	return i
}

// continuesNumber reports whether rest goes on with what PostgreSQL 16 reads as a part of the number before it, as in 1_000
// and 0x1F, and what to older servers is a name.
func continuesNumber(number, rest string) bool {
	if len(rest) < 2 {
		return false
	}
	switch folded[rest[0]] {
	case '_':
		return classes[rest[1]] == classDigit
	case 'x', 'o', 'b':
		c := folded[rest[1]]
		return number == "0" && (c == '_' || '0' <= c && c <= '9' || folded[rest[0]] == 'x' && 'a' <= c && c <= 'f')
	}
	return false
}

func skipDigits(sql string, i int) int {
	for i < len(sql) && '0' <= sql[i] && sql[i] <= '9' {
		i++
	}
	return i
}

// skipLine returns where the line has ended.
func skipLine(sql string, i int) int {
	rest := sql[i:]
	if n := strings.IndexByte(rest, '\n'); n >= 0 {
		rest = rest[:n]
	}
	if n := strings.IndexByte(rest, '\r'); n >= 0 {
		rest = rest[:n]
	}
	return i + len(rest)
}

// skipComment returns where the comment that began before i has ended, or -1. Comments nest.
func skipComment(sql string, i int) int {
	for depth := 1; ; {
		n := strings.IndexByte(sql[i:], '/')
		if n < 0 {
			return -1
		}
		slash := i + n
		switch {
		case n > 0 && sql[slash-1] == '*':
			if depth--; depth == 0 {
				return slash + 1
			}
			i = slash + 1
		case slash+1 < len(sql) && sql[slash+1] == '*':
			depth++
			i = slash + 2
		default:
			i = slash + 1
		}
	}
}

// hintIn returns the hint that a comment's text is.
func hintIn(comment string) Hint {
	const prefix = "flyregion:"
	comment = strings.TrimSpace(comment)
	if !strings.HasPrefix(comment, prefix) {
		return HintNone
	}
	switch comment[len(prefix):] {
	case "primary":
		return HintPrimary
	case "replica":
		return HintReplica
	}
	return HintNone
}
