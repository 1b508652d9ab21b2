package flyregion

import (
	"errors"

	"github.com/jackc/pgx/v5"
)

// A BEGIN of pgx's does nothing that anybody could see before the transaction's first statement: it takes neither a
// snapshot nor a lock. So it is kept back and leaves with that statement, and a transaction of one statement costs two
// trips and not three. What changes is that a connection which is found dead is found so by the first statement.
//
// The statement must not run if the BEGIN fails, as it would be committed on its own. In the extended protocol the server
// sees to that: behind an error it skips all up to the Sync. Before a simple query, which it would not skip, the BEGIN
// goes alone, and costs the trip that it costs with pgx. After a refusal pgx is told of a transaction block that has
// failed, and nothing but its ROLLBACK is let through.

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

// begun is what pgx gets to read for a BEGIN that is kept back.
var begun = join(frontendMessage('C', []byte("BEGIN\x00")), frontendMessage('Z', []byte("T")))

// keepBegin keeps p back if it is a BEGIN that can be. It answers in the server's place.
func (f *forwarder) keepBegin(p []byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()

	// An answer that is still to come, after a context that ended early, must not be taken for that to the BEGIN.
	if !f.begins || f.outstanding > 0 || f.sent != nil || f.held != nil || len(p) < 6 || p[0] != 'Q' || messageLen(p) != len(p) {
		return false
	}
	text := p[5 : len(p)-1]
	if !plainBegins[string(text)] {
		return false
	}
	f.kept = string(text)
	f.unread = append(f.unread, begun...)
	return true
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

// takeBegin returns the BEGIN that was kept back, if p is something that it must be in front of.
func (f *forwarder) takeBegin(p []byte) string {
	f.mu.Lock()
	defer f.mu.Unlock()

	kept := f.kept
	f.kept = ""
	if len(p) > 0 && p[0] == 'X' {
		return "" // pgx closes the connection
	}
	return kept
}

// beginWith returns what goes in front of messages of the extended protocol, whose answer the reading side takes out.
func (f *forwarder) beginWith(begin string) []byte {
	f.hold(stageBegin)
	return join(
		frontendMessage('P', []byte("\x00"+begin+"\x00\x00\x00")),
		frontendMessage('B', make([]byte, 8)),
		frontendMessage('E', make([]byte, 5)),
	)
}

// beginAlone sends the BEGIN that was kept back and waits for it. If the server refuses it pgx gets the refusal to read,
// as the answer to what it wanted to send.
func (f *forwarder) beginAlone(begin string) (ok bool, err error) {
	if _, err := f.w.Write(frontendMessage('Q', []byte(begin+"\x00"))); err != nil {
		return false, err
	}
	f.hold(stageBeginAlone)
	for f.held != nil && f.err == nil {
		f.readHeld()
	}
	// An error is for pgx to read, behind what the server may have said before.
	return f.err == nil && !f.failing, nil
}
