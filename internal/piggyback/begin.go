package piggyback

import (
	"bytes"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// A BEGIN of pgx's has no visible effect before the transaction's first statement: it takes neither a snapshot nor a lock.
// So pgx is given its answer without waiting for the server's, and a transaction of one statement costs two round trips and
// not three. The BEGIN is sent at once, so that the server's limits on idle transactions apply.
//
// The first statement must not run if the BEGIN fails, as it would be committed on its own. A barrier in front of it, in the
// same segment, makes sure of that. The barrier fails where no transaction block is open, and after an error in the extended
// protocol the server skips everything up to the next Sync, simple queries too. The barrier takes no snapshot, so that SET
// TRANSACTION works after it, and does not change when the transaction began. Nothing but the data of a COPY is sent after
// the first segment before the barrier was answered. After a refusal pgx reads the BEGIN's error, and can send nothing but
// its ROLLBACK.
// See https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-EXT-QUERY.

// begun is the state of a BEGIN that pgx does not wait for.
type begun uint8

const (
	notBegun begun = iota // there is none, or it was answered
	unbarred              // it was sent, and nothing after it
	barred                // the barrier was sent, and not answered yet
	refused               // it was refused, and pgx has read that
)

var barrier = append(Unnamed("savepoint flyregion"), Unnamed("release flyregion")...)

// barrierCommands is how many commands the barrier has.
const barrierCommands = 2

// plainBegins are the messages that pgx begins transactions with, and what is sent in their place.
var plainBegins = func() map[string][]byte {
	texts := map[string][]byte{}
	for _, level := range []pgx.TxIsoLevel{"", pgx.Serializable, pgx.RepeatableRead, pgx.ReadCommitted, pgx.ReadUncommitted} {
		for _, access := range []pgx.TxAccessMode{"", pgx.ReadWrite, pgx.ReadOnly} {
			for _, deferrable := range []pgx.TxDeferrableMode{"", pgx.Deferrable, pgx.NotDeferrable} {
				text := "begin"
				if level != "" {
					text += " isolation level " + string(level)
				}
				if access != "" {
					text += " " + string(access)
				}
				if deferrable != "" {
					text += " " + string(deferrable)
				}
				texts[string(Query(text))] = append(Unnamed(text), syncMessage...)
			}
		}
	}
	return texts
}()

// beginReply is what pgx reads for a BEGIN that the server has not answered yet.
var beginReply = append(message('C', []byte("BEGIN\x00")), message('Z', []byte("T"))...)

var rollback = string(Query("rollback"))

// beginEarly returns what is to be sent in place of p if p is a BEGIN that pgx need not wait for, else nil.
func (c *Conn) beginEarly(p []byte) []byte {
	// After a context that ended early an older answer may be to come. It must not be taken for that to the BEGIN.
	if !c.begins || len(c.pending) > 0 || c.begun != notBegun {
		return nil
	}
	begin := plainBegins[string(p)]
	if begin != nil {
		c.begun, c.refusal = unbarred, nil
		c.pending = append(c.pending, segment{kind: ofBegin, ended: true})
	}
	return begin
}

// refuse returns an error if p must not be sent because it belongs to a transaction that was not begun.
func (c *Conn) refuse(p []byte) error {
	if c.begun != refused {
		return nil
	}
	if string(p) == rollback || p[0] == 'X' {
		c.begun = notBegun
		return nil
	}
	return c.refusalError()
}

// refusalError returns the error of a BEGIN that was refused.
func (c *Conn) refusalError() error {
	var response pgproto3.ErrorResponse
	if len(c.refusal) < 5 || response.Decode(c.refusal[5:]) != nil {
		return fmt.Errorf("flyregion: the transaction was not begun")
	}
	return fmt.Errorf("flyregion: the transaction was not begun: %w", pgconn.ErrorResponseToPgError(&response))
}

// mayFollow returns how much of p may be sent now, and whether only after the answer to the barrier.
func (c *Conn) mayFollow(p []byte) (n int, wait bool) {
	switch c.begun {
	case unbarred:
		return segmentEnd(p), false
	case barred:
		if n := len(c.pending); n > 0 && c.pending[n-1].ended {
			return len(p), !isCopyData(p[0])
		}
		return segmentEnd(p), false
	}
	return len(p), false
}

// segmentEnd returns the end of the first segment in p, or of p if the segment goes on.
func segmentEnd(p []byte) int {
	for at := 0; at+5 <= len(p); {
		kind := p[at]
		at += messageLen(p[at:])
		if endsSegment(kind) {
			return at
		}
	}
	return len(p)
}

// endsSegment reports whether the server answers a kind of message with ReadyForQuery.
func endsSegment(kind byte) bool { return kind == 'Q' || kind == 'S' || kind == 'F' }

// isCopyData reports whether a kind of message belongs to the data of a COPY, or ends the session. The server drops the
// former if there is no COPY.
func isCopyData(kind byte) bool { return kind == 'd' || kind == 'c' || kind == 'f' || kind == 'X' }

// barrierAnswered handles a message of the answer to the barrier.
func (c *Conn) barrierAnswered(s *segment, m []byte) {
	switch m[0] {
	case 'C':
		if s.barrier--; s.barrier == 0 {
			c.begun = notBegun
		}
	case 'E':
		s.barrier, s.barrierFailed = 0, true
		if c.refusal == nil || isFatal(m[5:]) {
			c.unread.Write(m)
		} else {
			c.unread.Write(c.refusal)
		}
		if s.simple && !isFatal(m[5:]) {
			// The simple query was skipped and has no Sync of its own. If this one cannot be sent, the next read fails.
			_, _ = c.Conn.Write(syncMessage)
		}
	}
}

// begunEnded handles the end of a segment that may have been skipped after a failed barrier. It returns the transaction status
// for pgx.
func (c *Conn) begunEnded(s *segment, status byte) byte {
	if s.barrierFailed {
		c.begun = notBegun
		if status == 'I' {
			c.begun = refused
		}
	}
	if c.begun == refused {
		return 'E'
	}
	return status
}

// beginAnswered handles a message of the answer to a BEGIN.
func (c *Conn) beginAnswered(m []byte) {
	switch m[0] {
	case 'E':
		if isFatal(m[5:]) {
			c.unread.Write(m)
			return
		}
		c.refusal = bytes.Clone(m)
	case 'Z':
		c.pop()
	}
}
