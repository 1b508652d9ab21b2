package sqltext

import (
	"hash/maphash"
	"math/bits"
)

var shapeSeed = maphash.MakeSeed()

// Shape hashes SQL without its literals, parameters, comments and white space. A list of literals counts as one, however long,
// but not in the arguments of a call, as functions of one name differ in their number. Of malformed SQL it hashes what comes
// before the mistake.
func Shape(sql string) uint64 {
	h := uint64(1)
	mix := func(x uint64) {
		h = (bits.RotateLeft64(h, 5) ^ x) * 0x9e3779b97f4a7c15
	}
	const literalMark = 0x100 // no byte
	var (
		literal = false // what was hashed last is a literal
		called  = ""    // the token before, if a parenthesis behind it may be that of a call
		calls   uint64  // for each open parenthesis or bracket, the innermost in the lowest bit, whether it is that of a call
	)
	for kind, i, end := nextToken(sql, 0); end >= 0; kind, i, end = nextToken(sql, end) {
		name := ""
		switch kind {
		case classDigit, classQuote, classDollar:
			if !literal {
				mix(literalMark)
			}
			literal, called = true, ""
			continue
		case classComma:
			if calls&1 == 1 {
				mix(uint64(sql[i]))
				literal = false
			}
			called = ""
			continue
		case classOpen:
			calls <<= 1
			if called != "" && takesArguments(called) {
				calls |= 1
			}
		case classClose, classBracket:
			calls >>= 1
		case classOperator:
			if sql[i] == '[' {
				calls <<= 1
			}
		case classLetter, className:
			name = sql[i:end]
		}
		if end == i+1 {
			mix(uint64(sql[i]))
		} else {
			mix(maphash.String(shapeSeed, sql[i:end]))
		}
		literal, called = false, name
	}
	// The seed is random, so that whoever chooses the SQL cannot choose its place in a hash table.
	return maphash.Comparable(shapeSeed, h)
}

// takesArguments reports whether what is in a parenthesis behind a name may be arguments, not a list of values.
func takesArguments(name string) bool {
	w := lookup(name)
	return w != wordValues && !w.reserved()
}
