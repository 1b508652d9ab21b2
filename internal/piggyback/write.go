package piggyback

import (
	"strconv"
	"time"
)

// writer is what only the writing side touches.
type writer struct {
	out         scanner // at the start of a message, unless somebody writes parts of messages
	front, back []byte  // what is added to what pgx writes
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

// write sends as much of p as can be sent at once.
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
		// A reader may wait already, and looks again when the server's own answer arrives.
		c.beginReplyDue.Store(true)
		if _, err := c.Conn.Write(begin); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	n, wait := c.mayFollow(p)
	if wait {
		c.mu.Unlock()
		if err := c.awaitGuard(); err != nil {
			return 0, err
		}
		return c.write(p)
	}
	keep := c.frame(p[:n])
	c.mu.Unlock()

	if len(c.front) == 0 && len(c.back) == 0 {
		return c.Conn.Write(p[:n])
	}
	// Small statements leave in one packet with what is added. Copying a large one would cost more than another write,
	// which does not wait for the first to be answered either.
	const small = 8 << 10
	if keep <= small {
		c.front = append(append(c.front, p[:keep]...), c.back...)
		keep, c.back = 0, c.back[:0]
	}
	for _, part := range [...][]byte{c.front, p[:keep], c.back} {
		if len(part) == 0 {
			continue
		}
		if _, err := c.Conn.Write(part); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// whole reports whether p is whole messages. Somebody who has taken the connection over may write as he likes: no
// question goes along then, and all of it may change something.
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

// frame notes what leaves, whole messages, and puts into c.front and c.back what goes with it. Of p only p[:keep] is to
// be sent then.
func (c *Conn) frame(p []byte) (keep int) {
	c.front, c.back = c.front[:0], c.back[:0]
	if c.begun == unguarded && p[0] != 'X' {
		c.begun = guarded
		c.front = append(c.front, guard...)
		c.tail().guard = guardCommands
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

// ask puts the question about what runs behind p, of len n. Its last message is of the kind last, it has ran segments
// that run something, and copied is whether it ends a COPY's data.
func (c *Conn) ask(n int, last byte, ran int, copied bool) (keep int) {
	q := c.current
	// A COPY that has failed may be answered already.
	if !c.toAsk || q.Copied != copied || !copied && ran != 1 || copied && len(c.pending) == 0 || !copied && !endsSegment(last) {
		return n
	}
	s := &c.pending[len(c.pending)-1]
	inside := q.Inside != nil && !s.simple && s.runs
	if !inside && q.Behind == nil {
		return n
	}

	c.toAsk = false
	q.Asked = time.Now()
	if inside {
		s.inside = true
		n -= len(syncMessage)
		c.back = append(append(c.back, q.Inside...), syncMessage...)
	}
	if q.Behind != nil {
		c.back = append(c.back, q.Behind...)
		c.pending = append(c.pending, segment{kind: ofQuestion, statement: q, ended: true})
	}
	c.on.Asked(q)
	return n
}

// fence asks something whose answer is known beforehand, in front of what pgx sends next. What comes before that answer
// is that to a question which was late, if there is any: a pooler may drop what it does not expect.
func (c *Conn) fence() {
	c.fences++
	fence := "flyregion " + strconv.Itoa(c.fences)
	c.front = append(c.front, Query("select '"+fence+"'")...)
	c.pending = append(c.pending, segment{kind: ofQuestion, ended: true, fence: fence})
	c.pending[0].fence = fence
}
