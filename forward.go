package flyregion

import (
	"bytes"
	"encoding/binary"
	"io"
	"sync"
	"time"
)

// probeSQL asks the transaction that a statement ran in whether it has written anything, which no text can tell for sure,
// and whether it commits asynchronously, which SET LOCAL or a function may have changed. It runs behind the statement and
// in front of its Sync, so in the same transaction.
const probeSQL = `select pg_catalog.txid_current_if_assigned() is not null, pg_catalog.current_setting('synchronous_commit')`

// asyncSQL is the probe for a statement that writes by its text, of which only the way it commits is unknown. The server
// does not have to plan it.
const asyncSQL = `show synchronous_commit`

// positionSQL asks the primary how far its log goes. It is a query behind the statement's end, in the same write, so that
// the server runs it after the commit and nobody waits for another round trip.
const positionSQL = `select pg_catalog.pg_current_wal_flush_lsn(), pg_catalog.pg_current_wal_insert_lsn(), ` +
	`pg_catalog.current_setting('synchronous_commit')`

var (
	syncMessage     = frontendMessage('S', nil)
	positionMessage = frontendMessage('Q', []byte(positionSQL+"\x00"))
	// The probes use the unnamed statement and portal: pgx has done with its own by then, and a named one would not
	// survive a DISCARD ALL.
	probeMessages = unnamed(probeSQL)
	asyncMessages = unnamed(asyncSQL)
)

// unnamed returns the messages that run sql in the extended protocol and leave nothing behind.
func unnamed(sql string) []byte {
	return join(
		frontendMessage('P', []byte("\x00"+sql+"\x00\x00\x00")),
		frontendMessage('B', make([]byte, 8)),
		frontendMessage('E', make([]byte, 5)),
	)
}

func frontendMessage(kind byte, body []byte) []byte {
	m := make([]byte, 5, 5+len(body))
	m[0] = kind
	binary.BigEndian.PutUint32(m[1:], uint32(4+len(body)))
	return append(m, body...)
}

func join(s ...[]byte) []byte { return bytes.Join(s, nil) }

// question is what is asked along with one statement: who wants to know, what is known beforehand, and the answers.
type question struct {
	pool     *Session
	sessions []*Session // of contexts

	position bool // ask where the log ends when the statement has; in a transaction block that is nobody's business
	writes   bool // the position counts whatever the probe says
	known    bool // the statement writes by its text, which the probe need not tell
	ends     bool // the statement may end a transaction and begin another
	async    bool // the transaction may commit asynchronously although its session does not
	copied   bool // the statement is a COPY: ask behind its data, as the server takes all that comes before for data

	sent     time.Time
	asked    uint64 // when, by this process's clock; 0 if the statement never left, or in a way that no question can follow
	probed   bool   // the probe was answered
	wrote    bool   // it says that the transaction has written
	answered bool   // the position was told, and noted if it counts
}

// forwarder stands between pgx and the network on one connection to the primary. It adds questions to what pgx sends,
// and takes the answers out of what the server sends before pgx sees them. So a write and the position that it committed
// at cost one round trip, whatever pgx does to prepare, encode, trace and read the statement, and nothing of pgx has to
// be written again.
//
// The statement's ReadyForQuery is held back until the answer to positionSQL, which follows at its heels, has arrived:
// when pgx returns to its caller the position is noted.
//
// A connection is used by one goroutine at a time, but a COPY reads and writes at once, so that what both sides touch is
// under mu.
type forwarder struct {
	r io.Reader
	w io.Writer
	// noteRaw is called after a statement that no tracer announced, sent by somebody who uses the *pgconn.PgConn.
	noteRaw func()
	// measured is called with the time between a question and its answer.
	measured func(time.Duration)

	mu          sync.Mutex
	origin      serverID  // 0 until the connection is made; before, nothing is looked at
	traced      bool      // a tracer has announced what is sent now
	raw         bool      // something was sent that was not announced, and has not ended
	rawRan      bool      // it has; cleared by takeRaw
	armed       *question // to go with the next statement
	sent        *question // gone, and not answered
	begins      bool      // what the tracer has announced is a BEGIN
	beginning   bool      // the server has not answered a BEGIN that pgx takes for answered
	behind      int       // simple queries that were sent behind it
	refused     bool      // the server has refused it
	outstanding int       // ReadyForQuery messages that pgx waits for
	completions int       // completed commands that come before the probe's answer, 0 if there is no probe

	out, tail []byte // what Write puts together

	reader // what only the reading side touches
}

// open begins to look at what is sent: the connection to the primary of that name is made.
func (f *forwarder) open(origin serverID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.origin = origin
}

// announce tells that a tracer knows what is sent from now on, which question, if any, is to go with it, and whether it
// begins a transaction.
func (f *forwarder) announce(q *question, begins bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.traced, f.armed, f.begins = true, q, begins
}

// conclude ends what announce began. The question is its caller's again.
func (f *forwarder) conclude() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.traced, f.armed, f.begins = false, nil, false
}

// takeRaw reports whether anything has run since it was called last that no tracer announced.
func (f *forwarder) takeRaw() (ran bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ran, f.rawRan = f.rawRan, false
	return ran
}

// Write sends whole messages: pgproto3.Frontend never splits one.
func (f *forwarder) Write(p []byte) (int, error) {
	if f.refuse(p) {
		return 0, errNotBegun
	}
	if begin := f.begin(p); begin != nil {
		if _, err := f.w.Write(begin); err != nil {
			return 0, err
		}
		return len(p), nil
	}

	keep, tail := f.sending(p)
	if tail == nil {
		return f.w.Write(p)
	}

	// Small statements leave in one packet with what is added. Copying a large one would cost more than a second write,
	// which does not wait for the first to be answered either.
	const small = 8 << 10
	if keep <= small {
		f.out = append(append(f.out[:0], p[:keep]...), tail...)
		n, err := f.w.Write(f.out)
		return min(n, len(p)), err
	}
	n, err := f.w.Write(p[:keep])
	if err != nil {
		return n, err
	}
	if _, err := f.w.Write(tail); err != nil {
		return n, err
	}
	return len(p), nil
}

// sending looks at what leaves. If questions go with it, p[:keep] and the tail are to be sent in its place.
func (f *forwarder) sending(p []byte) (keep int, tail []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()

	if f.origin == 0 {
		return 0, nil
	}

	var last byte
	executes, queries, copied := 0, 0, false
	for rest := p; len(rest) >= 5; {
		end := messageLen(rest)
		if end < 5 || end > len(rest) {
			break
		}
		last = rest[0]
		switch last {
		case 'Q':
			f.outstanding++
			if f.beginning {
				f.behind++
			}
			if !isPing(rest[5:end]) {
				queries++
			}
		case 'S':
			f.outstanding++
		case 'E', 'F':
			executes++
		case 'c':
			copied = true
		}
		rest = rest[end:]
	}

	runs := executes > 0 || queries > 0 || copied
	if runs && !f.traced {
		f.raw = true
	}
	// With one ReadyForQuery to come the answer to positionSQL is what follows it. A COPY that has failed already
	// expects none.
	q := f.armed
	if q == nil || !runs || q.copied != copied || f.outstanding != 1 || f.sent != nil {
		return 0, nil
	}
	probe := executes > 0 && queries == 0 && last == 'S'
	if !probe && !q.position {
		return 0, nil
	}

	q.asked, q.sent = clock.Add(1), time.Now()
	f.sent, f.armed = q, nil
	keep, f.tail = len(p), f.tail[:0]
	if probe {
		f.completions = executes
		keep -= len(syncMessage)
		if q.known {
			f.tail = append(f.tail, asyncMessages...)
		} else {
			f.tail = append(f.tail, probeMessages...)
		}
		f.tail = append(f.tail, syncMessage...)
	}
	if q.position {
		f.tail = append(f.tail, positionMessage...)
	}
	return keep, f.tail
}

// isPing reports whether a simple query's text, with its NUL, is pgx's ping.
func isPing(text []byte) bool { return string(text) == "-- ping\x00" }

// completed notes that a command has ended, and reports whether the answer to the probe is next.
func (f *forwarder) completed() (probe bool) {
	f.mu.Lock()
	defer f.mu.Unlock()

	if f.completions == 0 {
		return false
	}
	f.completions--
	return f.completions == 0
}

// readyForQuery notes that what pgx has sent has ended, and reports whether the answer to positionSQL is next.
func (f *forwarder) readyForQuery() (hold bool) {
	f.mu.Lock()
	defer f.mu.Unlock()

	if f.origin == 0 {
		return false
	}
	if f.outstanding == 0 {
		// What has ended was not seen to leave: pgconn writes an ExecBatch past its frontend.
		f.raw = true
	} else {
		f.outstanding--
	}
	if f.outstanding > 0 {
		return false
	}
	if f.raw {
		f.raw, f.rawRan = false, true
		f.noteRaw()
	}
	f.completions = 0
	if f.sent != nil && !f.sent.position {
		f.sent = nil
	}
	return f.sent != nil
}

// copyIn notes that the server waits for COPY data. It takes a positionSQL for data if that was sent before the end of
// the data, and does not answer it.
func (f *forwarder) copyIn() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sent != nil && !f.sent.copied {
		f.sent = nil
	}
}

// probeAnswered keeps what the probe says.
func (f *forwarder) probeAnswered(a answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sent == nil || a.n == 0 {
		return
	}
	f.sent.async = f.sent.async || a.columns[a.n-1] == "off"
	if a.n == 2 {
		f.sent.probed = true
		f.sent.wrote = a.columns[0] == "t"
	}
}

// positionAnswered tells the sessions what the answer to positionSQL says. a is empty if there was none. idle is whether
// the connection is in no transaction block.
func (f *forwarder) positionAnswered(a answer, idle bool) {
	f.mu.Lock()
	defer f.mu.Unlock()

	q := f.sent
	f.sent = nil
	if q == nil || a.n != 3 || !idle && !q.ends {
		return
	}
	flush, err := ParseLSN(a.columns[0])
	if err != nil {
		return
	}
	insert, err := ParseLSN(a.columns[1])
	if err != nil {
		return
	}

	q.answered = true
	f.measured(time.Since(q.sent))
	if q.probed && !q.wrote && !q.writes {
		return
	}
	p := position{origin: f.origin, asked: q.asked, flush: flush, insert: insert}
	if q.async || a.columns[2] == "off" {
		p.flush = insert
	}
	q.pool.wrote(p)
	for _, s := range q.sessions {
		s.wrote(p)
	}
}
