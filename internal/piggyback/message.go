package piggyback

import (
	"bytes"
	"encoding/binary"
)

var syncMessage = message('S', nil)

// Query returns the message that runs sql in the simple protocol.
func Query(sql string) []byte { return message('Q', []byte(sql+"\x00")) }

// Unnamed returns the messages that run sql in the extended protocol without a name. They replace the unnamed statement and
// portal, which pgx no longer needs then. A prepared statement would not survive a DISCARD ALL.
func Unnamed(sql string) []byte {
	return bytes.Join([][]byte{
		message('P', []byte("\x00"+sql+"\x00\x00\x00")),
		message('B', make([]byte, 8)),
		message('E', make([]byte, 5)),
	}, nil)
}

func message(kind byte, body []byte) []byte {
	m := make([]byte, 5, 5+len(body))
	m[0] = kind
	binary.BigEndian.PutUint32(m[1:], uint32(4+len(body)))
	return append(m, body...)
}

// messageLen returns the length of the message whose header m begins with. It is less than 5 if that is no header.
func messageLen(m []byte) int { return 1 + int(int32(binary.BigEndian.Uint32(m[1:]))) }

// isCopy reports whether a simple query's message is a COPY as pgx sends it.
func isCopy(m []byte) bool { return bytes.HasPrefix(m[5:], []byte("copy ")) }

// isPing reports whether a simple query's message is pgx's ping.
func isPing(m []byte) bool { return string(m[5:]) == "-- ping\x00" }

// readyForQueryLen is the length of a ReadyForQuery.
const readyForQueryLen = 6

// MaxColumns is how many columns the answer to a question can have.
const MaxColumns = 6

// Row is a row of text columns.
type Row struct {
	Columns [MaxColumns]string
	Len     int // how many there are; 0 if there is no row, or one that is not of an answer
}

// rowOf returns the row of a DataRow's body, the zero Row if a column is NULL or the body is not that of an answer.
func rowOf(body []byte) (r Row) {
	if len(body) < 2 {
		return Row{}
	}
	n := int(binary.BigEndian.Uint16(body))
	if n > MaxColumns {
		return Row{}
	}
	text, at := string(body), 2
	for i := range n {
		if len(body)-at < 4 {
			return Row{}
		}
		size := int(int32(binary.BigEndian.Uint32(body[at:])))
		at += 4
		if size < 0 || size > len(body)-at {
			return Row{}
		}
		r.Columns[i] = text[at : at+size]
		at += size
	}
	r.Len = n
	return r
}

// isFatal reports whether an ErrorResponse's body says that the server closes the connection.
func isFatal(body []byte) bool {
	for len(body) > 1 {
		field := body[0]
		value, rest, ok := bytes.Cut(body[1:], []byte{0})
		if !ok {
			return true
		}
		if field == 'V' {
			return string(value) != "ERROR"
		}
		body = rest
	}
	return false
}

// commits reports whether the command of a CommandComplete may have committed a transaction although more of the same SQL or
// batch is to come. CALL and DO may have committed in the middle of their code.
func commits(m []byte) bool {
	tag := m[5:]
	return bytes.HasPrefix(tag, []byte("COMMIT")) || bytes.HasPrefix(tag, []byte("CALL")) || bytes.HasPrefix(tag, []byte("DO"))
}

// scanner follows the boundaries of the messages in a stream.
type scanner struct {
	header [5]byte
	n      int // how many bytes of the header have passed
	body   int // how many bytes of the body have not
}

// atStart reports whether the next byte begins a message.
func (s *scanner) atStart() bool { return s.n == 0 && s.body == 0 }

// skip passes bytes of p, at most to the end of a message, and returns how many.
func (s *scanner) skip(p []byte) int {
	i := copy(s.header[s.n:], p)
	s.n += i
	if s.n < len(s.header) {
		return i
	}
	if i > 0 {
		s.body = max(0, messageLen(s.header[:])-len(s.header))
	}
	skipped := min(s.body, len(p)-i)
	s.body -= skipped
	if s.body == 0 {
		s.n = 0
	}
	return i + skipped
}
