package piggyback

import (
	"bytes"
	"errors"
	"sync"
	"time"
)

// reader is the reading side of a Conn.
type reader struct {
	readMu sync.Mutex   // guards the following fields; it is locked before mu, and held while reading from the network
	in     scanner      // of what passes to pgx unchanged
	unread bytes.Buffer // what pgx reads before anything else
	err    error        // what pgx reads after unread

	holding bool   // what arrives goes to held, and not to pgx, until it was parsed
	held    []byte // what has arrived and was not parsed, from the start of a message on
	end     []byte // the statement's ReadyForQuery, until the question behind it was answered
	row     Row    // of the answer that is being read
	failing bool   // ... which is an error

	limited bool // reading is bounded by answerTime

	heldRoom [512]byte // the first memory of held
	endRoom  [readyForQueryLen]byte
}

// answerTime is how long a statement that has ended waits for the answer to the question behind it. The answer comes right
// after the statement's, unless a pooler has dropped the question or the network fails.
const answerTime = time.Second

var errOutOfStep = errors.New("flyregion: the server has answered something else than what was asked")

// Read gives pgx what the server sent, without the answers to the questions.
func (c *Conn) Read(p []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	for {
		c.replyToBegin()
		// What has arrived together with the statement's end waits with that. The app may read elsewhere what it has written as
		// soon as it sees a row, and the answer to the question tells what such a read needs.
		if c.unread.Len() > 0 && (len(c.end) == 0 || c.err != nil) {
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
		c.unread.Write(p[:pass])
		c.hold(p[pass:n])
		c.err = err
		c.parse()
	}
}

// replyToBegin gives pgx the answer to a BEGIN that was just sent.
func (c *Conn) replyToBegin() {
	if c.beginReplyDue.CompareAndSwap(true, false) {
		c.unread.Write(beginReply)
	}
}

// hold begins to hold what arrives, with p.
func (c *Conn) hold(p []byte) {
	c.holding = true
	c.held = append(c.heldRoom[:0], p...)
}

// scan follows the messages in p and returns how much of it passes to pgx unchanged: all, or what comes before a message that
// has to be parsed.
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

// passesThrough reports whether the message that p begins with passes to pgx unchanged.
func (c *Conn) passesThrough(p []byte) bool {
	s := c.head()
	if s == nil || c.passThrough {
		return true
	}
	if s.kind != ofApp || s.barrier > 0 || s.insideNext {
		return false
	}
	switch p[0] {
	case 'G':
		c.copyBegins()
	case 'C', 'I', 's':
		if s.inside || (s.stepwise() || !c.isLast(s)) && (len(p) < 5 || messageLen(p) > len(p) || commits(p)) {
			return false
		}
		s.executes--
	case 'Z':
		return false
	}
	return true
}

// stepwise reports whether the results of the segment's commands may be seen before its end.
func (s *segment) stepwise() bool { return s.statement == nil || s.statement.Batch }

// isLast reports whether the command that has ended is certainly the last one of its segment.
func (c *Conn) isLast(s *segment) bool { return s.ended && !s.simple && s.executes <= 1 }

// copyBegins handles that the server waits for COPY data. A question that was sent before the end of the data is dropped: the
// server takes it for data and does not answer it.
func (c *Conn) copyBegins() {
	if len(c.pending) > 1 && c.pending[1].kind == ofQuestion && !c.pending[1].statement.Copied {
		c.pending = c.pending[:1+copy(c.pending[1:], c.pending[2:])]
	}
}

// readHeld reads more from the network and parses what is held.
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
	// pgx gets the timeout of its own deadline, unless it is given the statement's end. Then it removes the deadline and
	// goes on using the connection, and the answer is removed when it arrives.
	if !c.late() {
		c.err = err
	}
}

// late gives pgx the statement's end although the question behind it was not answered. It reports false if there is no such
// end.
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

// releaseEnd gives pgx the statement's ReadyForQuery, if that is held.
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

// parse handles the messages in held, and gives pgx those that are for it.
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

// stopParsing passes rest and all that follows to pgx: it is not PostgreSQL's protocol, and pgx will return an error.
func (c *Conn) stopParsing(rest []byte) {
	c.mu.Lock()
	c.passThrough = true
	c.mu.Unlock()
	c.releaseEnd()
	c.unread.Write(rest)
	c.holding, c.held = false, nil
}

// take handles a message that has to be parsed. next is what has arrived after it. It reports false if more has to arrive
// first.
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
	case s.barrier > 0:
		c.barrierAnswered(s, m)
	case s.insideNext:
		c.insideAnswered(s, m)
	default:
		switch {
		case kind != 'C' || !commits(m):
		case s.stepwise():
			c.on.Committed(s.statement)
		case c.isLast(s) || s.inside && s.executes == 1:
		case s.ended && len(next) == 0:
			return 0, false
		case len(next) == 0 || next[0] != 'Z':
			c.on.Committed(s.statement)
		}
		if kind == 'C' || kind == 'I' || kind == 's' {
			s.executes--
			s.insideNext = s.inside && s.executes == 0
		}
		c.unread.Write(m)
	}
	return len(m), true
}

// insideAnswered handles a message of the answer to a question's Inside.
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
		// The transaction has failed with the question: the error is the statement's.
		s.inside, s.insideNext = false, false
		c.unread.Write(m)
	}
}

// ended handles the ReadyForQuery of a segment that pgx has sent.
func (c *Conn) ended(s *segment, m []byte) {
	if s.runs && s.statement == nil {
		c.on.Unannounced()
	}
	if s.barrier > 0 {
		// Somebody else's answer, as from a pooler that has lost count.
		c.begun, c.err = notBegun, errOutOfStep
	}
	c.end = append(c.endRoom[:0], m...)
	c.end[5] = c.begunEnded(s, m[5])
	c.row, c.failing = Row{}, false
	q, ran := s.statement, s.runs
	c.pop()
	if s := c.head(); s == nil || s.kind != ofQuestion {
		if ran && q != nil && q == c.current {
			c.on.Ended(q)
		}
		c.releaseEnd()
	}
}

// questionAnswered handles a message of the answer to a question's Behind, or to a fence.
func (c *Conn) questionAnswered(s *segment, m []byte) {
	switch m[0] {
	case 'D':
		c.row = rowOf(m[5:])
	case 'E':
		c.failing = true
		if isFatal(m[5:]) {
			// The server closes the connection. The statement before has succeeded, and pgx must read that.
			c.releaseEnd()
			c.unread.Write(m)
		}
	case 'Z':
		q, row := s.statement, c.row
		if c.failing {
			row = Row{}
		}
		if s.fence != "" && row.Columns[0] != s.fence && (row.Len == 0 || s.statement == nil) {
			// This is neither the late answer nor the fence's.
			c.err = errOutOfStep
		}
		if s.late && s.fence != "" && row.Columns[0] == s.fence {
			c.pop() // the late answer will not come
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

// awaitBarrier reads from the network until the barrier was answered.
func (c *Conn) awaitBarrier() error {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	c.replyToBegin()
	for c.barrierOpen() {
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

// barrierOpen reports whether the barrier was not answered yet.
func (c *Conn) barrierOpen() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.begun == barred
}
