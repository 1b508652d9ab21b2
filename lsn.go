package flyregion

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a position in PostgreSQL's write-ahead log, in bytes since its beginning. The zero LSN is not a valid position
// and stands for "none". See https://www.postgresql.org/docs/current/datatype-pg-lsn.html.
type LSN uint64

// ParseLSN reads the text form that PostgreSQL prints: two hexadecimal numbers of at most eight digits with a slash
// between them, such as 16/B374D848. The error names the text that is not of that form.
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	if !ok || !isLSNPart(hi) || !isLSNPart(lo) {
		return 0, fmt.Errorf("flyregion: %q is not an LSN: want two hexadecimal numbers such as 16/B374D848", s)
	}

	// isLSNPart has left nothing for ParseUint to refuse.
	h, _ := strconv.ParseUint(hi, 16, 32)
	l, _ := strconv.ParseUint(lo, 16, 32)
	return LSN(h<<32 | l), nil
}

func isLSNPart(s string) bool {
	if len(s) < 1 || len(s) > 8 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'f', 'A' <= c && c <= 'F':
		default:
			return false
		}
	}
	return true
}

// String returns the text form that PostgreSQL uses, such as 16/B374D848.
func (l LSN) String() string {
	return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l))
}
