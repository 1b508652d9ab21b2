package piggyback

import (
	"strconv"
	"time"
)

// writer is the writing side of a Conn. Only the goroutine that writes uses its fields.
type writer struct {
	out         scanner // at the start of a message, unless parts of messages are written
	front, back []byte  // what is sent before and after what pgx writes
}

// Write sends p, and the questions that go with it. pgx writes whole messages.
func (c *Conn) Write(p []byte) (n int, err error) {
	for n < len(p) {
		m, err := c.write(p[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// write sends the part of p that can be sent without waiting, or waits and sends it.
func (c *Conn) write(p []byte) (int, error) {
	c.mu.Lock()
	if c.passThrough || !c.whole(p) {
		c.mu.Unlock()
		return c.Conn.Write(p)
	}
	if err := c.refuse(p); err != nil {
		c.mu.Unlock()
		return 0, err
	}
	if begin := c.beginEarly(p); begin != nil {
		c.mu.Unlock()
		// A Read that waits already gives pgx the answer when the server's own arrives.
		c.beginReplyDue.Store(true)
		if _, err := c.Conn.Write(begin); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	n, wait := c.mayFollow(p)
	if wait {
		c.mu.Unlock()
		if err := c.awaitBarrier(); err != nil {
			return 0, err
		}
		return c.write(p)
	}
	keep := c.frame(p[:n])
	c.mu.Unlock()

	if len(c.front) == 0 && len(c.back) == 0 {
		return c.Conn.Write(p[:n])
	}
	// A small statement is sent in one packet with what is added. Copying a large one would cost more than another write to
	// the network.
	const small = 8 << 10
	sent := -len(c.front) // of p
	parts := [...][]byte{c.front, p[:keep], c.back}
	if keep <= small {
		c.front = append(append(c.front, p[:keep]...), c.back...)
		parts = [...][]byte{c.front, nil, nil}
	}
	for _, part := range parts {
		if len(part) == 0 {
			continue
		}
		m, err := c.Conn.Write(part)
		sent += m
		if err != nil {
			// pgx takes what was not sent at all for safe to retry, and database/sql then retries it.
			return min(max(0, sent), keep), err
		}
	}
	return n, nil
}

// whole reports whether p is whole messages, as pgx writes them. Code that has hijacked the connection may write otherwise.
// Then no question is added, and everything counts as something that may write.
func (c *Conn) whole(p []byte) bool {
	at := 0
	for c.out.atStart() && at+5 <= len(p) {
		n := messageLen(p[at:])
		if n < 5 || n > len(p)-at {
			break
		}
		at += n
	}
	if at == len(p) {
		return true
	}
	for len(p) > 0 {
		if c.out.atStart() {
			s := c.tail()
			s.runs, s.ended = true, endsSegment(p[0])
		}
		p = p[c.out.skip(p):]
	}
	return false
}

// dropRefusedCopy ends the announcement of a COPY if p runs something else: pgx does not say that it has given up a COPY
// before it was sent.
func (c *Conn) dropRefusedCopy(p []byte) {
	if c.current == nil || !c.current.Copied || c.current.Ran {
		return
	}
	for at := 0; at < len(p); {
		m := p[at : at+messageLen(p[at:])]
		at += len(m)
		if m[0] == 'E' || m[0] == 'F' || m[0] == 'Q' && !isPing(m) && !isCopy(m) {
			c.current, c.toAsk, c.begins = nil, false, false
			return
		}
	}
}

// frame records the messages in p, and puts into c.front and c.back what is to be sent before and after it. Of p only p[:keep]
// is to be sent then.
func (c *Conn) frame(p []byte) (keep int) {
	c.front, c.back = c.front[:0], c.back[:0]
	c.dropRefusedCopy(p)
	if c.begun == unbarred && p[0] != 'X' {
		c.begun = barred
		c.front = append(c.front, barrier...)
		c.tail().barrier = barrierCommands
	} else if s := c.head(); s != nil && s.late && s.fence == "" && !isCopyData(p[0]) && c.pending[len(c.pending)-1].ended {
		c.fence()
	}

	var last byte
	ran, copied := 0, false
	for at := 0; at < len(p); {
		m := p[at : at+messageLen(p[at:])]
		at += len(m)
		last = m[0]
		switch last {
		case 'd', 'f', 'p', 'X':
			continue
		case 'c':
			copied = true
			continue
		}
		s := c.tail()
		switch last {
		case 'E':
			s.executes++
			s.runs = true
		case 'Q':
			s.runs = s.runs || !isPing(m)
		case 'F':
			s.runs = true
		}
		if endsSegment(last) {
			s.ended, s.simple = true, last != 'S'
			if s.runs {
				ran++
			}
		}
	}
	if q := c.current; q != nil && (ran > 0 || copied || len(c.pending) > 0 && c.pending[len(c.pending)-1].runs) {
		q.Ran = true
	}
	return c.ask(len(p), last, ran, copied)
}

// ask adds the question behind a statement's messages of length n, if this is the place. last is the kind of the last message,
// ran is how many segments in them run something, and copied says that they end a COPY's data. It returns how much of the
// messages is to be sent.
func (c *Conn) ask(n int, last byte, ran int, copied bool) (keep int) {
	q := c.current
	// A COPY that has failed may be answered already.
	if !c.toAsk || q.Copied != copied || !copied && ran != 1 || copied && len(c.pending) == 0 || !copied && !endsSegment(last) {
		return n
	}
	s := &c.pending[len(c.pending)-1]
	inside := q.Inside != nil && !s.simple && s.runs
	behind := q.Behind != nil && !(q.Either && inside)
	if !inside && !behind {
		return n
	}

	c.toAsk = false
	q.Asked = time.Now()
	if inside {
		s.inside = true
		n -= len(syncMessage)
		c.back = append(append(c.back, q.Inside...), syncMessage...)
	}
	if behind {
		c.back = append(c.back, q.Behind...)
		c.pending = append(c.pending, segment{kind: ofQuestion, statement: q, ended: true})
	}
	c.on.Asked(q)
	return n
}

// fence sends a query with a fixed answer in front of what pgx sends next. An answer that arrives before the fence's is the
// late one. If none arrives before, the late one never will: a pooler may have dropped the question.
func (c *Conn) fence() {
	c.fences++
	fence := "flyregion " + strconv.Itoa(c.fences)
	c.front = append(c.front, Query("select '"+fence+"'")...)
	c.pending = append(c.pending, segment{kind: ofQuestion, ended: true, fence: fence})
	c.pending[0].fence = fence
}
