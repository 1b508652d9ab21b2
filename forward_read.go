package flyregion

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// reader is the reading side of a forwarder.
type reader struct {
	in     scanner
	unread bytes.Buffer // for pgx to read before anything else
	err    error        // for pgx to read after unread

	held    []byte // what has arrived since the answers began, nil while everything goes straight through
	stage   stage  // which answer is being read
	end     []byte // the statement's ReadyForQuery, while it is kept from pgx
	row     answer // the one that is being read
	failing bool   // it is an error

	heldRoom [512]byte // what held and end begin in
	endRoom  [readyForQueryLen]byte
}

// answer is a row of text columns.
type answer struct {
	columns [3]string
	n       int // how many there are; 0 for none, or one that is not as it should be
}

// stage is how far the answers have come.
type stage uint8

const (
	stageProbe    stage = iota // up to the statement's ReadyForQuery
	stagePosition              // up to that of positionSQL
	stageBegin                 // of a BEGIN in front of pgx's messages, up to its end
)

const readyForQueryLen = 6

// Read gives pgx what the server sent, without the answers to the questions.
func (f *forwarder) Read(p []byte) (int, error) {
	for {
		if f.unread.Len() > 0 {
			return f.unread.Read(p)
		}
		if f.err != nil {
			err := f.err
			f.err = nil
			return 0, err
		}

		if f.held != nil {
			f.readHeld()
			continue
		}
		n, err := f.r.Read(p)
		if pass := f.scan(p[:n]); pass < n || f.held != nil {
			f.held = append(f.held, p[pass:n]...)
			f.err = err
			f.parseHeld()
			if pass > 0 {
				return pass, nil
			}
			continue
		}
		return n, err
	}
}

// scan follows the messages in p and returns how much of it is for pgx: all, or what comes before the first answer. In
// the latter case held is not nil.
func (f *forwarder) scan(p []byte) int {
	for i := 0; i < len(p); {
		if f.in.atStart() {
			switch p[i] {
			case 'Z':
				if f.readyForQuery() {
					f.hold(stagePosition)
					f.end = f.endRoom[:0]
					return i
				}
			case 'G':
				f.copyIn()
			}
		}
		i += f.in.skip(p[i:])
		if f.in.atStart() {
			switch f.in.header[0] {
			case 'C', 'I', 's': // command complete, empty query, portal suspended
				if f.completed() {
					f.hold(stageProbe)
					return i
				}
			}
		}
	}
	return len(p)
}

// hold begins to keep what arrives from pgx.
func (f *forwarder) hold(s stage) {
	f.held = f.heldRoom[:0]
	f.stage, f.end, f.row, f.failing = s, nil, answer{}, false
}

// readHeld reads on until the answers are complete or the connection fails.
func (f *forwarder) readHeld() {
	var buf [512]byte
	n, err := f.r.Read(buf[:])
	f.held = append(f.held, buf[:n]...)
	f.parseHeld()
	if err == nil {
		return
	}
	// The statement has ended before the connection did: pgx must hear of that first. Where only a deadline has passed
	// that is all: pgx, which has what it waited for, takes the deadline back and goes on with the connection, and the
	// answer is taken out later.
	if released := f.releaseEnd(); !released || !isTimeout(err) {
		f.err = err
	}
}

// releaseEnd gives pgx the statement's ReadyForQuery, if that is what it waits for.
func (f *forwarder) releaseEnd() bool {
	if len(f.end) != readyForQueryLen {
		return false
	}
	f.unread.Write(f.end)
	f.end = nil
	return true
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// parseHeld takes the complete messages out of held. What is not part of an answer goes to pgx.
func (f *forwarder) parseHeld() {
	rest := f.held
	for len(rest) >= 5 {
		end := messageLen(rest)
		if end < 5 || rest[0] == 'Z' && end != readyForQueryLen {
			// Not PostgreSQL's protocol. pgx has the words for that.
			f.positionAnswered(answer{}, false)
			f.releaseEnd()
			f.unread.Write(rest)
			f.held, f.end = nil, nil
			return
		}
		if end > len(rest) {
			break
		}
		m := rest[:end]
		rest = rest[end:]

		switch kind := m[0]; {
		case kind == 'N' || kind == 'A' || kind == 'S': // notice, notification, parameter status: they may come any time
			f.unread.Write(m)
		case kind == 'C' && f.stage == stageBegin:
			f.beginAnswered(false)
			f.pass(rest)
			return
		case kind == 'E' && f.stage == stageBegin:
			f.unread.Write(m)
			f.beginAnswered(true)
		case kind == 'Z' && f.stage == stageBegin:
			// The server has skipped what pgx sent behind the BEGIN.
			m = f.notBegun(m)
			if !f.readyForQuery() {
				f.unread.Write(m)
				f.pass(rest)
				return
			}
			f.stage, f.row, f.failing = stagePosition, answer{}, false
			f.end = m
		case kind == 'D':
			f.row = columnsOf(m[5:])
		case kind == 'E' && f.stage == stageProbe:
			// The transaction was still open, and has failed with the probe: the error is the statement's.
			f.unread.Write(m)
			f.failing = true
		case kind == 'E':
			f.failing = true
			if isFatal(m[5:]) {
				// The server ends the connection. The statement, which came before, must not appear to have failed.
				f.positionAnswered(answer{}, false)
				f.releaseEnd()
				f.unread.Write(m)
				f.pass(rest)
				return
			}
		case kind == 'Z' && f.end != nil && len(f.end) == 0:
			f.end = append(f.end, m...)
		case kind == 'Z' && f.stage == stageProbe:
			if !f.failing {
				f.probeAnswered(f.row)
			}
			if !f.readyForQuery() {
				f.unread.Write(m)
				f.pass(rest)
				return
			}
			f.stage, f.row, f.failing = stagePosition, answer{}, false
			f.end = append(f.endRoom[:0], m...)
		case kind == 'Z':
			if f.failing {
				f.row = answer{}
			}
			f.positionAnswered(f.row, m[5] == 'I')
			f.releaseEnd()
			f.pass(rest)
			return
		}
	}
	f.held = append(f.held[:0], rest...)
}

// pass goes back to reading straight through, beginning with the bytes behind the answers.
func (f *forwarder) pass(rest []byte) {
	f.held, f.end, f.in = nil, nil, scanner{}
	n := f.scan(rest)
	f.unread.Write(rest[:n])
	if f.held != nil {
		f.held = append(f.held, rest[n:]...)
		f.parseHeld()
	}
}

// messageLen returns the length of the message whose header m begins with. It is less than a header's for what is no
// message.
func messageLen(m []byte) int { return 1 + int(int32(binary.BigEndian.Uint32(m[1:]))) }

// columnsOf returns the columns of a DataRow's body, none if one of them is NULL or the body is not that of an answer.
func columnsOf(body []byte) (a answer) {
	if len(body) < 2 {
		return answer{}
	}
	n := int(binary.BigEndian.Uint16(body))
	if n > len(a.columns) {
		return answer{}
	}
	text, at := string(body), 2
	for i := range n {
		if len(body)-at < 4 {
			return answer{}
		}
		size := int(int32(binary.BigEndian.Uint32(body[at:])))
		at += 4
		if size < 0 || size > len(body)-at {
			return answer{}
		}
		a.columns[i] = text[at : at+size]
		at += size
	}
	a.n = n
	return a
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

// scanner follows the boundaries of the messages in a stream.
type scanner struct {
	header [5]byte
	n      int // bytes of the header that were seen
	body   int // bytes of the body still to come
}

// atStart reports whether the next byte begins a message.
func (s *scanner) atStart() bool { return s.n == 0 && s.body == 0 }

// skip goes over bytes of at most one message and returns how many.
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
