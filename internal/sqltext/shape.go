package sqltext

import (
	"hash/maphash"
	"math/bits"
)

var shapeSeed = maphash.MakeSeed()

// Shape hashes what of a text is neither literal, parameter, comment nor white space. A list of literals counts as one,
// however long. Of a text that is malformed it hashes what comes before.
func Shape(sql string) uint64 {
	h := uint64(1)
	mix := func(x uint64) {
		h = (bits.RotateLeft64(h, 5) ^ x) * 0x9e3779b97f4a7c15
	}
	const literalMark = 0x100 // no byte
	literal := false          // what was hashed last is a literal
	for i := 0; i >= 0 && i < len(sql); {
		start, c := i, sql[i]
		value := false
		switch classes[c] {
		case classSpace, classComma:
			i++
			continue
		case classDash:
			if i++; i < len(sql) && sql[i] == '-' {
				i = skipLine(sql, i)
				continue
			}
		case classSlash:
			if i++; i < len(sql) && sql[i] == '*' {
				i = skipComment(sql, i+1)
				continue
			}
		case classDigit:
			i, value = skipNumber(sql, i), true
		case classDot:
			if i++; i < len(sql) && classes[sql[i]] == classDigit {
				i, value = skipNumber(sql, start), true
			}
		case classQuote:
			i, _ = skipString(sql, i+1, false)
			value = true
		case classDollar:
			i, _ = skipDollar(sql, i)
			value = true
		case className:
			i = skipName(sql, i+1)
		case classLetter:
			for i++; i < len(sql) && inName[sql[i]]; {
				i++
			}
			if i == start+1 && i < len(sql) && sql[i] == '\'' {
				i, _ = skipString(sql, i+1, folded[c] == 'e')
				value = true
			}
		default:
			i++
		}

		switch {
		case i < 0:
		case value:
			if !literal {
				mix(literalMark)
			}
		case i == start+1:
			mix(uint64(c))
		default:
			mix(maphash.String(shapeSeed, sql[start:i]))
		}
		literal = value
	}
	// The seed makes where a shape ends up unknown to those who write texts.
	return maphash.Comparable(shapeSeed, h)
}
