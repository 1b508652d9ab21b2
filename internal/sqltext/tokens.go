package sqltext

import "strings"

// nextToken returns the token that begins at i or behind, after white space and comments: where it begins and ends, and
// what it is, by the class of its first byte. A string with a prefix is a classQuote. At the end of the text start is
// len(sql), and end is -1 then and where the text is malformed.
//
// It is for what is rarely needed. The inspector reads the text by itself, which is faster.
func nextToken(sql string, i int) (kind class, start, end int) {
	for i >= 0 && i < len(sql) {
		kind = classes[sql[i]]
		switch kind {
		case classSpace:
			i++
			continue
		case classDash:
			if i+1 < len(sql) && sql[i+1] == '-' {
				i = skipLine(sql, i+2)
				continue
			}
		case classSlash:
			if i+1 < len(sql) && sql[i+1] == '*' {
				i = skipComment(sql, i+2)
				continue
			}
		case classDigit:
			return kind, i, skipNumber(sql, i)
		case classDot:
			if i+1 < len(sql) && classes[sql[i+1]] == classDigit {
				return classDigit, i, skipNumber(sql, i)
			}
		case classQuote:
			end, _ = skipString(sql, i+1, false)
			return kind, i, end
		case classDollar:
			end, _ = skipDollar(sql, i)
			return kind, i, end
		case className:
			return kind, i, skipName(sql, i+1)
		case classLetter:
			for end = i + 1; end < len(sql) && inName[sql[end]]; {
				end++
			}
			if end == i+1 && end < len(sql) && sql[end] == '\'' {
				end, _ = skipString(sql, end+1, folded[sql[i]] == 'e')
				return classQuote, i, end
			}
			return kind, i, end
		}
		return kind, i, i + 1
	}
	if i < 0 {
		return classBad, -1, -1
	}
	return classBad, len(sql), -1
}

// callsFields reports whether a column in a text, as in t.nextval, may be a call: if t is the alias, or the name, of a
// function in a FROM. It may report true where t is no such thing.
//
// The alias of a function comes after its parentheses, as in f(1) x, f(1) AS x and f(1) WITH ORDINALITY x, or after one
// of those that have no parentheses, as in current_user x.
func callsFields(sql string) bool {
	if strings.Contains(sql, "U&\"") || strings.Contains(sql, "u&\"") {
		return true
	}
	var (
		tables  [32]string // of functions: their names and aliases
		n       int
		calls   uint64 // for each open parenthesis, the innermost in the lowest bit, whether it is that of a call
		depth   int
		aliased bool // a name here is the alias of a function
		name    string
		rows    bool // ROWS is before the name, as in ROWS FROM (f(1))
		label   bool // AS is
		word    bool // the token before is a name
		dotted  bool // ... or a dot behind one
	)
	add := func(name string) {
		if n < len(tables) {
			tables[n] = name
		}
		n++
	}
	for kind, i, end := nextToken(sql, 0); end >= 0; kind, i, end = nextToken(sql, end) {
		isName := kind == classLetter || kind == className
		switch {
		case isName:
			text := trimQuotes(sql[i:end])
			switch {
			case aliased && (strings.EqualFold(text, "as") || strings.EqualFold(text, "with") || strings.EqualFold(text, "ordinality")):
			case aliased:
				add(text)
				aliased = false
			}
			if !dotted && isValueWord(text) {
				aliased = true
			}
			rows, label = strings.EqualFold(name, "rows"), word && strings.EqualFold(name, "as")
			name = text
		case kind == classOpen:
			calls <<= 1
			if depth++; depth > 64 {
				return true
			}
			if word && (rows || !opensSubquery(name)) {
				calls |= 1
				if !label {
					add(name)
				}
			}
			aliased = false
		case kind == classClose:
			aliased = calls&1 == 1
			calls >>= 1
			depth--
		default:
			aliased = false
		}
		dotted = kind == classDot && word
		word = isName
	}
	if n > len(tables) {
		return true
	}

	table, qualified := "", false
	for kind, i, end := nextToken(sql, 0); end >= 0; kind, i, end = nextToken(sql, end) {
		switch kind {
		case classLetter, className:
			text := trimQuotes(sql[i:end])
			if qualified && callKind(text) == callBelongsToPrimary {
				for _, function := range tables[:n] {
					if strings.EqualFold(table, function) {
						return true
					}
				}
			}
			table, qualified = text, false
		case classDot:
			qualified = table != ""
		default:
			table, qualified = "", false
		}
	}
	return false
}

// opensSubquery reports whether a parenthesis after a word may hold a query or a list, and no arguments.
func opensSubquery(word string) bool {
	w := lookup(word)
	return w == wordFrom || w == wordJoin || w == wordAs || strings.EqualFold(word, "lateral")
}

// isValueWord reports whether a word is a function that is called without parentheses.
func isValueWord(word string) bool {
	return hasFoldedPrefix(word, "current_") || hasFoldedPrefix(word, "local") || strings.EqualFold(word, "user") ||
		strings.EqualFold(word, "session_user") || strings.EqualFold(word, "system_user")
}

// trimQuotes returns what is between the quotes of a name.
func trimQuotes(name string) string {
	if name[0] == '"' {
		return name[1 : len(name)-1]
	}
	return name
}
