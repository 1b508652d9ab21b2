package flyregion

import (
	"bytes"
	"errors"

	"github.com/jackc/pgx/v5"
)

// A BEGIN of pgx's does nothing that anybody could see before the transaction's first statement: it takes neither a
// snapshot nor a lock. So nobody waits for its answer, which comes with that of the first statement, and a transaction of
// one statement costs two trips and not three. What changes is that a connection which is found dead is found so by the
// first statement.
//
// The BEGIN leaves at once nevertheless, so that whatever is written behind it, and in whatever way, comes after it. The
// statement must not run if the BEGIN fails, as it would be committed on its own. The server sees to that: behind an
// error in the extended protocol, in which the BEGIN goes, it skips everything up to the next Sync, simple queries too.
// After a refusal pgx is told of a transaction block that has failed, and nothing but its ROLLBACK is let through.
// See https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-EXT-QUERY.

// plainBegins are the texts that pgx begins transactions with.
var plainBegins = func() map[string]bool {
	texts := map[string]bool{}
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
				texts[text] = true
			}
		}
	}
	return texts
}()

// begun is what pgx gets to read for a BEGIN that the server has not answered yet.
var begun = join(frontendMessage('C', []byte("BEGIN\x00")), frontendMessage('Z', []byte("T")))

// begin returns what is to be sent in place of p if p is a BEGIN that need not be waited for. It answers in the server's
// place.
func (f *forwarder) begin(p []byte) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()

	// An answer that is still to come, after a context that ended early, must not be taken for that to the BEGIN.
	if !f.begins || f.outstanding > 0 || f.sent != nil || f.held != nil || len(p) < 6 || p[0] != 'Q' || messageLen(p) != len(p) {
		return nil
	}
	text := string(p[5 : len(p)-1])
	if !plainBegins[text] {
		return nil
	}
	f.hold(stageBegin)
	f.beginning, f.behind = true, 0
	f.unread.Write(begun)
	return unnamed(text)
}

var errNotBegun = errors.New("flyregion: the server has refused to begin the transaction")

// refuse reports whether p must not be sent because it belongs to a transaction that was not begun.
func (f *forwarder) refuse(p []byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()

	if !f.refused || string(p) == rollback || p[0] == 'X' {
		f.refused = false
		return false
	}
	return true
}

var rollback = string(frontendMessage('Q', []byte("rollback\x00")))

// notBegun notes that the server has refused a BEGIN. It returns what pgx gets to read for the ReadyForQuery z.
func (f *forwarder) notBegun(z []byte) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()

	f.refused = true
	return append(append([]byte(nil), z[:5]...), 'E')
}

// beginAnswered notes that the server has answered a BEGIN. If it has refused, it skips what went behind it. It is made to
// answer nevertheless: a simple query has no Sync of its own. The question for the position is such a query too, and has
// no answer then.
func (f *forwarder) beginAnswered(refused bool) {
	f.mu.Lock()
	defer f.mu.Unlock()

	f.beginning = false
	if !refused || f.behind == 0 {
		return
	}
	f.sent = nil
	// If it cannot be written, the next read has the words for that.
	_, _ = f.w.Write(bytes.Repeat(syncMessage, f.behind))
}
