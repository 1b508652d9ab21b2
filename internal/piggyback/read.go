package piggyback

import (
	"bytes"
	"errors"
	"sync"
	"time"
)

// reader is the reading side of a Conn.
type reader struct {
	readMu sync.Mutex   // guards what follows; held while reading
	in     scanner      // of what goes straight to pgx
	unread bytes.Buffer // for pgx to read before anything else
	err    error        // for pgx to read after unread

	holding bool   // what arrives is kept from pgx until it is clear what it is
	held    []byte // ... and has arrived, from the start of a message on
	end     []byte // the statement's ReadyForQuery, while the answer to the question behind it is awaited
	row     Row    // of the answer that is being read
	failing bool   // ... which is an error

	limited bool // reading is bounded by answerTime

	heldRoom [512]byte // what held and end begin in
	endRoom  [readyForQueryLen]byte
}

// answerTime is how long a statement that has ended waits for the answer to the question behind it. The answer comes at
// its heels, unless a pooler has dropped the question or the network fails.
const answerTime = time.Second

var errOutOfStep = errors.New("flyregion: the server has answered something else than what was asked")

// Read gives pgx what the server sent, without the answers to the questions.
func (c *Conn) Read(p []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	for {
		c.replyToBegin()
		if c.unread.Len() > 0 {
			return c.unread.Read(p)
		}
		if c.err != nil {
			err := c.err
			c.err = nil
			return 0, err
		}

		if c.holding {
			c.readHeld()
			continue
		}
		n, err := c.Conn.Read(p)
		pass := c.scan(p[:n])
		if pass == n {
			return n, err
		}
		c.hold(p[pass:n])
		c.err = err
		c.parse()
		if pass > 0 {
			return pass, nil
		}
	}
}

// replyToBegin gives pgx the answer to a BEGIN that has just left.
func (c *Conn) replyToBegin() {
	if c.beginReplyDue.CompareAndSwap(true, false) {
		c.unread.Write(beginReply)
	}
}

// hold begins to keep what arrives from pgx.
func (c *Conn) hold(p []byte) {
	c.holding = true
	c.held = append(c.heldRoom[:0], p...)
}

// scan follows the messages in p and returns how much of it is for pgx: all, or what comes before something that has to
// be looked at as a whole.
func (c *Conn) scan(p []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := 0; i < len(p); {
		if c.in.atStart() && !c.passesThrough(p[i:]) {
			return i
		}
		i += c.in.skip(p[i:])
	}
	return len(p)
}

// passesThrough reports whether the message that p begins with goes straight to pgx.
func (c *Conn) passesThrough(p []byte) bool {
	s := c.head()
	if s == nil || c.passThrough {
		return true
	}
	if s.kind != ofApp || s.guard > 0 || s.insideNext {
		return false
	}
	switch p[0] {
	case 'G':
		c.copyBegins()
	case 'C', 'I', 's':
		if s.inside || !c.isLast(s) && (len(p) < 5 || messageLen(p) > len(p) || commits(p)) {
			return false
		}
		s.executes--
	case 'Z':
		return false
	}
	return true
}

// isLast reports whether the command that has ended is surely the last one of its segment.
func (c *Conn) isLast(s *segment) bool { return s.ended && !s.simple && s.executes <= 1 }

// copyBegins takes note that the server waits for COPY data. It takes a question for data that was sent before the end of
// the data, and does not answer it.
func (c *Conn) copyBegins() {
	if len(c.pending) > 1 && c.pending[1].kind == ofQuestion && !c.pending[1].statement.Copied {
		c.pending = c.pending[:1+copy(c.pending[1:], c.pending[2:])]
	}
}

// readHeld reads on until it is clear what was kept from pgx, or the connection fails.
func (c *Conn) readHeld() {
	if len(c.end) > 0 && !c.limited {
		c.limited = true
		c.limitReading(time.Now().Add(answerTime))
	}
	var buf [512]byte
	n, err := c.Conn.Read(buf[:])
	c.held = append(c.held, buf[:n]...)
	c.parse()
	if err == nil {
		return
	}
	if !isTimeout(err) {
		// The statement has ended before the connection did: pgx must read that first.
		c.releaseEnd()
		c.err = err
		return
	}
	// A deadline that pgx has set is passed on, unless pgx gets what it waits for: it takes the deadline back then, goes
	// on with the connection, and the answer is taken out later.
	if !c.late() {
		c.err = err
	}
}

// late lets the statement's end through although the question behind it was not answered yet. It reports whether that
// was awaited.
func (c *Conn) late() bool {
	if len(c.end) == 0 {
		return false
	}
	c.mu.Lock()
	if s := c.head(); s != nil && s.kind == ofQuestion {
		s.late = true
		if !c.timedOut() && s.statement != nil {
			c.on.Late(s.statement)
		}
	}
	c.mu.Unlock()
	c.releaseEnd()
	return true
}

// releaseEnd gives pgx the statement's ReadyForQuery, if that is what it waits for.
func (c *Conn) releaseEnd() {
	if len(c.end) == 0 {
		return
	}
	if c.limited {
		c.limited = false
		c.limitReading(time.Time{})
	}
	c.unread.Write(c.end)
	c.end = nil
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// parse gives pgx what is for it of what was held.
func (c *Conn) parse() {
	rest := c.held
	for len(rest) > 0 {
		n := c.scan(rest)
		c.unread.Write(rest[:n])
		if rest = rest[n:]; len(rest) < 5 {
			break
		}
		end := messageLen(rest)
		if end < 5 || rest[0] == 'Z' && end != readyForQueryLen {
			c.stopParsing(rest)
			return
		}
		if end > len(rest) {
			break
		}
		n, ok := c.take(rest[:end], rest[end:])
		if !ok {
			break
		}
		rest = rest[n:]
	}
	if len(rest) == 0 && len(c.end) == 0 {
		c.holding, c.held = false, nil
		return
	}
	c.held = append(c.held[:0], rest...)
}

// stopParsing lets everything through from here on: what comes is not PostgreSQL's protocol, and pgx finds out for itself.
func (c *Conn) stopParsing(rest []byte) {
	c.mu.Lock()
	c.passThrough = true
	c.mu.Unlock()
	c.releaseEnd()
	c.unread.Write(rest)
	c.holding, c.held = false, nil
}

// take takes a message that has to be looked at. next is what has arrived behind it. It reports false if more has to
// arrive first.
func (c *Conn) take(m, next []byte) (n int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.head()
	switch kind := m[0]; {
	case s == nil || kind == 'N' || kind == 'A' || kind == 'S': // notice, notification, parameter status: at any time
		c.unread.Write(m)
	case s.kind == ofBegin:
		c.beginAnswered(m)
	case s.kind == ofQuestion:
		c.questionAnswered(s, m)
	case kind == 'Z':
		c.ended(s, m)
	case s.guard > 0:
		c.guardAnswered(s, m)
	case s.insideNext:
		c.insideAnswered(s, m)
	default:
		if kind == 'C' && !c.isLast(s) && !(s.inside && s.executes == 1) && commits(m) {
			if s.ended && len(next) == 0 {
				return 0, false
			}
			if len(next) == 0 || next[0] != 'Z' {
				c.on.Committed(s.statement)
			}
		}
		if kind == 'C' || kind == 'I' || kind == 's' {
			s.executes--
			s.insideNext = s.inside && s.executes == 0
		}
		c.unread.Write(m)
	}
	return len(m), true
}

// insideAnswered takes a message of the answer to a question's Inside.
func (c *Conn) insideAnswered(s *segment, m []byte) {
	switch m[0] {
	case 'D':
		c.row = rowOf(m[5:])
	case 'C':
		s.inside, s.insideNext = false, false
		if q := s.statement; q == c.current {
			q.InRow = c.row
		}
		c.row = Row{}
	case 'E':
		// The transaction was still open, and has failed with the question: the error is the statement's.
		s.inside, s.insideNext = false, false
		c.unread.Write(m)
	}
}

// ended takes the ReadyForQuery of something that pgx has sent.
func (c *Conn) ended(s *segment, m []byte) {
	if s.runs && s.statement == nil {
		c.on.Unannounced()
	}
	if s.guard > 0 {
		// Somebody else's answer, as from a pooler that has lost count.
		c.begun, c.err = notBegun, errOutOfStep
	}
	c.end = append(c.endRoom[:0], m...)
	c.end[5] = c.begunEnded(s, m[5])
	c.row, c.failing = Row{}, false
	c.pop()
	if s := c.head(); s == nil || s.kind != ofQuestion {
		c.releaseEnd()
	}
}

// questionAnswered takes a message of the answer to a question's Behind, or to a fence.
func (c *Conn) questionAnswered(s *segment, m []byte) {
	switch m[0] {
	case 'D':
		c.row = rowOf(m[5:])
	case 'E':
		c.failing = true
		if isFatal(m[5:]) {
			// The server ends the connection. The statement, which came before, must not appear to have failed.
			c.releaseEnd()
			c.unread.Write(m)
		}
	case 'Z':
		q, row := s.statement, c.row
		if c.failing {
			row = Row{}
		}
		if s.fence != "" && row.Columns[0] != s.fence && (row.Len == 0 || s.statement == nil) {
			// Neither the late answer nor the fence's.
			c.err = errOutOfStep
		}
		if s.late && s.fence != "" && row.Columns[0] == s.fence {
			c.pop() // the late answer does not come any more
			row = Row{}
		}
		c.pop()
		c.row, c.failing = Row{}, false
		if q != nil && q == c.current && row.Len > 0 {
			q.Row, q.Idle = row, m[5] == 'I'
			c.on.Answered(q)
		}
		c.releaseEnd()
	}
}

// awaitGuard reads until the guard in front of a transaction's first statement was answered.
func (c *Conn) awaitGuard() error {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	c.replyToBegin()
	for c.guardOpen() {
		var buf [512]byte
		n, err := c.Conn.Read(buf[:])
		if c.holding {
			c.held = append(c.held, buf[:n]...)
		} else {
			pass := c.scan(buf[:n])
			c.unread.Write(buf[:pass])
			c.hold(buf[pass:n])
		}
		c.parse()
		if err != nil {
			c.err = err
			return err
		}
	}
	return nil
}

func (c *Conn) guardOpen() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.begun == guarded
}
