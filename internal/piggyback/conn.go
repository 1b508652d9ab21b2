// Package piggyback stands between pgx and the network on one connection to PostgreSQL. It adds questions to what pgx
// sends, and takes the answers out of what the server sends before pgx reads them. So a statement and the answers to the
// questions about it cost one round trip, whatever pgx does to prepare, encode and read the statement.
//
// It knows PostgreSQL's messages and nothing of what the questions are about.
package piggyback

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Question is what is asked along with one statement, and the answers. From Announce to Conclude only the Conn uses its
// fields, and the callbacks that get it.
type Question struct {
	Inside []byte // made by Unnamed: runs behind the statement and in its transaction; nil for none
	Behind []byte // made by Query: runs when the statement has ended; nil for none
	Batch  bool   // pgx returns the result of each command when it has read it, and not at the end
	Copied bool   // the statement is a COPY: Behind follows its data, because the server takes all before its end for data
	Either bool   // Behind is asked only where Inside cannot be

	Ran   bool      // the statement was sent
	Asked time.Time // when Inside or Behind was sent; zero if the statement was sent in a way that neither can follow
	InRow Row       // the answer to Inside
	Row   Row       // the answer to Behind
	Idle  bool      // no transaction block was open behind the statement
}

// Events are the callbacks of a Conn. They are called before pgx reads the end of what they are about, in calls of Read, Write,
// Close and Abandon, with a lock held: they must not call the Conn.
type Events struct {
	Asked       func(*Question) // Inside or Behind is about to be sent
	Answered    func(*Question) // Behind was answered with a row
	Late        func(*Question) // Behind was not answered within answerTime
	Committed   func(*Question) // a transaction was committed before the statement's end; nil if the statement was not announced
	Ended       func(*Question) // the announced statement has ended, and Behind was not asked behind it
	Unannounced func()          // a statement that was not announced has ended, or may have
	Abandoned   func(*Question) // the end of the announced statement will not be read
}

// kind says what a segment is.
type kind uint8

const (
	ofApp      kind = iota // pgx has sent it, and reads its answer
	ofBegin                // a BEGIN whose answer pgx has been given already
	ofQuestion             // a question behind what pgx has sent
)

// segment is what was sent up to and with a message that the server answers with ReadyForQuery.
type segment struct {
	kind      kind
	statement *Question // that it belongs to; nil if none was announced
	runs      bool      // it may change something
	ended     bool      // its last message was sent
	simple    bool      // its last message is a simple query or a function call

	executes      int  // commands of the extended protocol that are not completed yet
	barrier       int  // commands of the barrier in front of it that are not completed yet
	barrierFailed bool // the barrier has failed
	inside        bool // its question's Inside is in it
	insideNext    bool // ... and its answer is next

	late  bool   // of a question: pgx was given the statement's end before the answer
	fence string // the answer of the fence that it is, or that follows it; "" for none
}

// Conn is a connection to a server on which questions can be asked.
//
// One goroutine at a time may write and one may read. Any may close it and set deadlines.
type Conn struct {
	net.Conn
	on Events

	// mu guards the following fields. It is not held during network I/O, except to send the Sync after a failed barrier.
	mu          sync.Mutex
	current     *Question // announced and not concluded
	toAsk       bool      // current has not been asked yet
	begins      bool      // current's statement is a BEGIN
	begun       begun
	refusal     []byte    // the server's answer to the BEGIN, if it is an error that pgx has not read
	pending     []segment // what was not answered yet, the oldest first; only the last one may not have ended
	fences      int
	passThrough bool // what the server sends is not PostgreSQL's protocol

	beginReplyDue atomic.Bool // the next Read has to give pgx the answer to BEGIN

	// deadlineMu guards the following fields.
	deadlineMu     sync.Mutex
	pgxDeadline    time.Time // read deadline that pgx has set; zero for none
	answerDeadline time.Time // ... and that of answerTime

	writer
	reader
}

// New returns a Conn on an established connection that is idle.
func New(conn net.Conn, on Events) *Conn { return &Conn{Conn: conn, on: on} }

// NetConn returns the connection that c stands in front of.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Announce says that what is sent from now on is the statement of q. begins says that it begins a transaction.
func (c *Conn) Announce(q *Question, begins bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current, c.begins = q, begins
	c.toAsk = q.Inside != nil || q.Behind != nil
}

// Conclude ends what Announce began, if q was announced last. The Conn no longer uses q then.
func (c *Conn) Conclude(q *Question) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != q {
		return
	}
	c.current, c.toAsk, c.begins = nil, false, false
	for i := range c.pending {
		if s := &c.pending[i]; s.statement == q && s.kind == ofApp {
			// pgx will not read its end.
			s.runs = false
		}
	}
}

// Abandon says that pgx will not read the answers that have not arrived.
func (c *Conn) Abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()

	unannounced := false
	for i := range c.pending {
		s := &c.pending[i]
		unannounced = unannounced || s.runs && s.statement == nil
		s.runs = false
	}
	if unannounced {
		c.on.Unannounced()
	}
	if q := c.current; q != nil {
		c.current, c.toAsk, c.begins = nil, false, false
		if q.Ran {
			c.on.Abandoned(q)
		}
	}
}

// Close closes the connection.
func (c *Conn) Close() error {
	c.Abandon()
	return c.Conn.Close()
}

// head returns the segment that is answered next, nil if there is none.
func (c *Conn) head() *segment {
	if len(c.pending) == 0 {
		return nil
	}
	return &c.pending[0]
}

// pop removes the segment that was answered.
func (c *Conn) pop() {
	c.pending = c.pending[:copy(c.pending, c.pending[1:])]
}

// tail returns the segment that is being sent.
func (c *Conn) tail() *segment {
	if n := len(c.pending); n > 0 && !c.pending[n-1].ended {
		return &c.pending[n-1]
	}
	c.pending = append(c.pending, segment{statement: c.current})
	return &c.pending[len(c.pending)-1]
}

// SetDeadline sets the deadlines as [net.Conn] has it.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline sets the read deadline as [net.Conn] has it.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.deadlineMu.Lock()
	defer c.deadlineMu.Unlock()
	c.pgxDeadline = t
	return c.Conn.SetReadDeadline(earlier(t, c.answerDeadline))
}

// limitReading bounds reads until t, or no longer if t is zero, beside the deadline that pgx has set.
func (c *Conn) limitReading(t time.Time) {
	c.deadlineMu.Lock()
	defer c.deadlineMu.Unlock()
	c.answerDeadline = t
	// Without a deadline the read just takes longer.
	_ = c.Conn.SetReadDeadline(earlier(c.pgxDeadline, t))
}

// timedOut reports whether the deadline that pgx has set has passed.
func (c *Conn) timedOut() bool {
	c.deadlineMu.Lock()
	defer c.deadlineMu.Unlock()
	return !c.pgxDeadline.IsZero() && !time.Now().Before(c.pgxDeadline)
}

// earlier returns the earlier one of two deadlines, of which zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
