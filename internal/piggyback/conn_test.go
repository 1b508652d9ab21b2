package piggyback

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// script is a network connection whose server says what was written down for it, in pieces whose sizes come from a list,
// over and over.
type script struct {
	net.Conn
	data  []byte
	sizes []byte
	n     int
	err   error // at the end
	sent  bytes.Buffer
}

func (s *script) Read(to []byte) (int, error) {
	if len(s.data) == 0 {
		return 0, s.err
	}
	size := 1
	if len(s.sizes) > 0 {
		size = 1 + int(s.sizes[s.n%len(s.sizes)])
		s.n++
	}
	n := copy(to[:min(len(to), size)], s.data)
	s.data = s.data[n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error)       { return s.sent.Write(p) }
func (s *script) Close() error                      { return nil }
func (s *script) SetReadDeadline(t time.Time) error { return nil }

// told is what a Conn has told.
type told struct{ asked, answered, late, committed, ended, unannounced, abandoned int }

// scripted returns a Conn on a script, and what it tells.
func scripted(s *script) (*Conn, *told) {
	var tell told
	return New(s, Events{
		Asked:    func(*Question) { tell.asked++ },
		Answered: func(*Question) { tell.answered++ },
		Late:     func(*Question) { tell.late++ },
		Committed: func(*Question) {
			tell.committed++
		},
		Ended:       func(*Question) { tell.ended++ },
		Unannounced: func() { tell.unannounced++ },
		Abandoned:   func(*Question) { tell.abandoned++ },
	}), &tell
}

// drain reads until the script's end, in reads of at most size bytes.
func drain(t *testing.T, c *Conn, size, limit int) []byte {
	t.Helper()
	var out []byte
	buf := make([]byte, size)
	for range limit {
		n, err := c.Read(buf)
		out = append(out, buf[:n]...)
		if err == io.EOF || errors.Is(err, errOutOfStep) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("no end after %d reads", limit)
	return nil
}

func join(messages ...[]byte) []byte { return bytes.Join(messages, nil) }

// row is a DataRow.
func row(columns ...string) []byte {
	body := binary.BigEndian.AppendUint16(nil, uint16(len(columns)))
	for _, column := range columns {
		body = binary.BigEndian.AppendUint32(body, uint32(len(column)))
		body = append(body, column...)
	}
	return message('D', body)
}

func failure(severity, code string) []byte {
	return message('E', []byte("S"+severity+"\x00V"+severity+"\x00C"+code+"\x00Mx\x00\x00"))
}

func complete(tag string) []byte { return message('C', []byte(tag+"\x00")) }
func ready(status byte) []byte   { return message('Z', []byte{status}) }

// bound is what the server says before the rows of a command in the extended protocol.
var bound = join(message('1', nil), message('2', nil))

var (
	inside  = Unnamed("show inside")
	behind  = Query("select behind")
	execute = join(message('B', make([]byte, 8)), message('E', make([]byte, 5)))
)

// FuzzConn sends streams of a server in arbitrary pieces through a Conn. An arbitrary stream must do no harm, and pass
// unchanged where nothing was asked. Of a stream that a server would send exactly the answers must be missing.
func FuzzConn(f *testing.F) {
	f.Add([]byte("Z\x00\x00\x00\x05I"), []byte{0}, uint8(0))
	f.Add([]byte("Z\x00\x00\x00\x05ID\x00\x00\x00\x00Z\x00\x00\x00\x05I"), []byte{0}, uint8(1))
	f.Add([]byte("C\x00\x00\x00\x00\x00Z\x00\x00\x00\x05I"), []byte{0, 0, 2}, uint8(3))
	f.Add([]byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c"), []byte{3, 0, 7}, uint8(5))
	f.Add([]byte("G\x00\x00\x00\x04Z\x00\x00\x00\x05I"), []byte{255}, uint8(7))
	f.Add([]byte("C\x00\x00\x00\x0bCOMMIT\x00Z\x00\x00\x00\x05I"), []byte{1}, uint8(16))
	f.Fuzz(func(t *testing.T, data, sizes []byte, mode uint8) {
		if len(data) > 1<<12 {
			t.Skip()
		}
		hangs := time.AfterFunc(20*time.Second, func() { panic(fmt.Sprintf("no end with %q, %q, %d", data, sizes, mode)) })
		defer hangs.Stop()
		limit := 20*len(data) + 10_000
		size := 1 + int(mode>>3)

		idle, _ := scripted(&script{data: data, sizes: sizes, err: io.EOF})
		if got := drain(t, idle, size, limit); !bytes.Equal(got, data) {
			t.Fatalf("unasked, the connection makes %q of %q", got, data)
		}
		nonsense(t, data, sizes, mode, size, limit)
		sense(t, data, sizes, size)
	})
}

// nonsense asks a server that does not speak the protocol.
func nonsense(t *testing.T, data, sizes []byte, mode uint8, size, limit int) {
	c, _ := scripted(&script{data: data, sizes: sizes, err: io.EOF})
	for range 1 + mode&1 {
		q := &Question{Copied: mode&4 != 0}
		if mode&2 != 0 {
			q.Behind = behind
		}
		if mode&8 != 0 {
			q.Inside = inside
		}
		c.Announce(q, mode&16 != 0)
		var err error
		switch {
		case mode&16 != 0:
			_, err = c.Write(Query("begin"))
			if err == nil {
				_, err = c.Write(Query("select"))
			}
		case q.Copied:
			_, err = c.Write(Query("copy t from stdin"))
			if err == nil {
				_, err = c.Write(message('c', nil))
			}
		case mode&8 != 0:
			_, err = c.Write(join(execute, syncMessage))
		default:
			_, err = c.Write(Query("select"))
		}
		if err != nil && err != io.EOF && !strings.Contains(err.Error(), "not begun") {
			t.Fatal(err)
		}
		_ = drain(t, c, size, limit)
		c.Conclude(q)
	}
	_ = c.Close()
}

// sense runs statements on a server that answers them, as data has it.
func sense(t *testing.T, data, sizes []byte, size int) {
	in := &script{sizes: sizes, err: io.EOF}
	c, tell := scripted(in)
	answers, unasked := 0, 0
	for i := 0; i < len(data); i++ {
		kind := data[i]
		body := data[i:min(len(data), i+int(kind%8))]
		extended, asks, fails, begins, twice := kind&1 != 0, kind&2 != 0, kind&4 != 0, kind&8 != 0, kind&16 != 0
		var stream, want []byte
		pass := func(m []byte) { stream, want = append(stream, m...), append(want, m...) }
		drop := func(m []byte) { stream = append(stream, m...) }
		aside := func() {
			if i+1 < len(data) && data[i+1]&0xC0 == 0xC0 {
				i++
				for range data[i] >> 4 & 3 {
					pass(message("NAS"[data[i]%3], body))
				}
			}
		}

		if begins {
			q := &Question{}
			c.Announce(q, true)
			if _, err := c.Write(Query("begin read only")); err != nil {
				t.Fatal(err)
			}
			want = append(want, beginReply...)
			c.Conclude(q)
			drop(bound)
			aside()
			drop(complete("BEGIN"))
			drop(ready('T'))
			aside()
			drop(join(bound, complete("SAVEPOINT")))
			aside()
			drop(join(bound, complete("RELEASE")))
			asks = false
		}
		q := &Question{}
		if asks {
			q.Behind = behind
		}
		if extended {
			q.Inside = inside
		}
		c.Announce(q, false)
		sent := Query("x")
		if extended {
			sent = join(message('P', body), execute, execute, syncMessage)
		}
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			pass(message('T', body))
			aside()
			pass(row("x"))
			if fails {
				pass(failure("ERROR", "22012"))
				break
			}
			if twice {
				pass(complete("COMMIT"))
			} else {
				pass(message('C', body))
			}
		}
		answered := extended && !fails
		if answered {
			aside()
			drop(bound)
			aside()
			drop(row("inside"))
			drop(complete("SHOW"))
			aside()
		}
		drop(ready('I'))
		if asks {
			aside()
			drop(message('T', body))
			aside()
			drop(row("behind", "x"))
			drop(complete("SELECT 1"))
			aside()
			drop(ready('I'))
		}
		want = append(want, ready('I')...)
		in.data = stream
		if got := drain(t, c, size, 20*len(stream)+100); !bytes.Equal(got, want) {
			t.Fatalf("the connection makes %q of %q, want %q", got, stream, want)
		}
		c.Conclude(q)
		if asks {
			answers++
		} else {
			unasked++
		}
		if answered != (q.InRow.Columns[0] == "inside") || asks != (q.Row.Columns[0] == "behind") || tell.answered != answers {
			t.Fatalf("after %q: %+v and %+v, want %d answers", stream, q, tell, answers)
		}
	}
	if *tell != (told{asked: tell.asked, answered: answers, committed: tell.committed, ended: unasked}) {
		t.Fatalf("after all: %+v", tell)
	}
}

// TestFatalBehind has the server end the session behind a commit, in place of an answer. The commit has succeeded: pgx
// must read that first.
func TestFatalBehind(t *testing.T) {
	fatal := failure("FATAL", "57P01")
	done := join(complete("INSERT 0 1"), ready('I'))
	answer := join(bound, row("t", "on"), complete("SELECT 1"))
	part := row("0/1", "0/1", "on")
	command := done[:len(done)-readyForQueryLen]
	extended := join(execute, syncMessage)
	for _, size := range []byte{0, 1, 5, 255} {
		for what, c := range map[string]struct{ sent, stream, want []byte }{
			"simple":                   {Query("x"), join(done, fatal), join(done, fatal)},
			"simple, in the answer":    {Query("x"), join(done, part, fatal), join(done, fatal)},
			"simple, cut":              {Query("x"), join(done, part[:7]), done},
			"extended":                 {extended, join(command, answer, ready('I'), fatal), join(done, fatal)},
			"extended, before the end": {extended, join(command, answer, fatal), join(command, fatal)},
		} {
			conn, tell := scripted(&script{data: c.stream, sizes: []byte{size}, err: io.EOF})
			q := &Question{Inside: inside, Behind: behind}
			conn.Announce(q, false)
			if _, err := conn.Write(c.sent); err != nil {
				t.Fatal(err)
			}
			if got := drain(t, conn, 64, 1000); !bytes.Equal(got, c.want) {
				t.Errorf("%s in pieces of %d: %q, want %q", what, size, got, c.want)
			}
			conn.Conclude(q)
			if tell.answered > 0 {
				t.Errorf("%s in pieces of %d: it counts as answered", what, size)
			}
		}
	}
}

// TestSegments lets several statements be under way at once, as in a pipeline: each counts when its own end is read.
func TestSegments(t *testing.T) {
	for _, size := range []byte{0, 3, 255} {
		in := &script{sizes: []byte{size}, err: io.EOF}
		c, tell := scripted(in)
		for range 2 {
			if _, err := c.Write(join(execute, syncMessage)); err != nil {
				t.Fatal(err)
			}
		}
		one := join(bound[5:], complete("INSERT 0 1"), ready('I'))
		for i := range 2 {
			in.data = one
			if got := drain(t, c, 64, 100); !bytes.Equal(got, one) {
				t.Fatalf("%q, want %q", got, one)
			}
			if tell.unannounced != i+1 {
				t.Errorf("%d of 2 count after %d", tell.unannounced, i+1)
			}
		}
	}
}

// TestCommitted has a transaction end in the middle of a batch or a text.
func TestCommitted(t *testing.T) {
	for what, c := range map[string]struct {
		sent, stream []byte
		want         int
	}{
		"the last":             {join(execute, execute, syncMessage), join(complete("INSERT 0 1"), complete("COMMIT"), ready('I')), 0},
		"in a batch":           {join(execute, execute, syncMessage), join(complete("COMMIT"), complete("SELECT 1"), ready('I')), 1},
		"without a sync":       {join(execute, message('H', nil)), complete("COMMIT"), 1},
		"text":                 {Query("commit"), join(complete("COMMIT"), ready('I')), 0},
		"in a text":            {Query("commit; x"), join(complete("COMMIT"), complete("SELECT 1"), ready('I')), 1},
		"in a text that fails": {Query("commit; x"), join(complete("COMMIT"), failure("ERROR", "22012"), ready('I')), 1},
		"procedure in a batch": {join(execute, execute, syncMessage), join(complete("CALL"), complete("SELECT 1"), ready('I')), 1},
	} {
		for _, size := range []byte{0, 1, 5, 255} {
			conn, tell := scripted(&script{data: c.stream, sizes: []byte{size}, err: io.EOF})
			conn.Announce(&Question{}, false)
			if _, err := conn.Write(c.sent); err != nil {
				t.Fatal(err)
			}
			if got := drain(t, conn, 64, 100); !bytes.Equal(got, c.stream) {
				t.Errorf("%s in pieces of %d: %q, want %q", what, size, got, c.stream)
			}
			if tell.committed != c.want {
				t.Errorf("%s in pieces of %d: committed %d times, want %d", what, size, tell.committed, c.want)
			}
		}
	}
}

// TestCommittedIsToldFirst has a transaction end as the last of a batch. Its result is read before the batch's end and the
// question's answer have arrived.
func TestCommittedIsToldFirst(t *testing.T) {
	for what, c := range map[string]struct {
		question  *Question
		committed int
	}{
		"batch":                      {&Question{Batch: true, Behind: behind}, 1},
		"batch with a question more": {&Question{Batch: true, Inside: inside, Behind: behind}, 1},
		"pipeline":                   {nil, 1},
		"statement":                  {&Question{Behind: behind}, 0},
	} {
		result := join(bound, complete("INSERT 0 1"), bound, complete("COMMIT"))
		for _, size := range []byte{0, 1, 5, 255} {
			conn, tell := scripted(&script{data: result, sizes: []byte{size}, err: io.EOF})
			if c.question != nil {
				question := *c.question
				conn.Announce(&question, false)
			}
			if _, err := conn.Write(join(execute, execute, syncMessage)); err != nil {
				t.Fatal(err)
			}
			if got := drain(t, conn, 64, 100); !bytes.Equal(got, result) {
				t.Errorf("%s in pieces of %d: %q, want %q", what, size, got, result)
			}
			if tell.committed != c.committed {
				t.Errorf("%s in pieces of %d: committed %d times, want %d", what, size, tell.committed, c.committed)
			}
		}
	}
}

// TestAbandoned closes connections before what runs on them was read.
func TestAbandoned(t *testing.T) {
	for what, c := range map[string]struct {
		announced, concluded bool
		sent, stream         []byte
		want                 told
	}{
		"announced":             {true, false, Query("x"), nil, told{abandoned: 1}},
		"announced, not sent":   {true, false, nil, nil, told{}},
		"announced, concluded":  {true, true, Query("x"), nil, told{}},
		"unannounced":           {false, false, Query("x"), nil, told{unannounced: 1}},
		"unannounced, read":     {false, false, Query("x"), join(complete("INSERT 0 1"), ready('I')), told{unannounced: 1}},
		"unannounced, unsynced": {false, false, execute, nil, told{unannounced: 1}},
		"ping":                  {false, false, Query("-- ping"), nil, told{}},
		"prepare":               {false, false, join(message('P', []byte{0, 0, 0, 0}), syncMessage), nil, told{}},
	} {
		conn, tell := scripted(&script{data: c.stream, err: io.EOF})
		q := &Question{}
		if c.announced {
			conn.Announce(q, false)
		}
		if _, err := conn.Write(c.sent); err != nil {
			t.Fatal(err)
		}
		_ = drain(t, conn, 64, 100)
		if c.concluded {
			conn.Conclude(q)
		}
		for range 2 {
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if *tell != c.want {
			t.Errorf("%s: %+v, want %+v", what, *tell, c.want)
		}
	}
}

// TestLate has a question not be answered in time. What comes next on the connection gets its own answer, whether the
// late one comes or not.
func TestLate(t *testing.T) {
	done := join(complete("COPY 1"), ready('I'))
	late := join(message('T', nil), row("behind"), complete("SELECT 1"), ready('I'))
	fence := join(message('T', nil), row("flyregion 1"), complete("SELECT 1"), ready('I'))
	next := join(message('T', nil), row("next"), complete("SELECT 1"), ready('I'))
	for what, answer := range map[string][]byte{"late": join(late, fence, next), "dropped": join(fence, next)} {
		for _, size := range []byte{0, 1, 5, 255} {
			in := &script{data: done, sizes: []byte{size}, err: os.ErrDeadlineExceeded}
			c, tell := scripted(in)
			q := &Question{Behind: behind, Copied: true}
			c.Announce(q, false)
			for _, m := range [][]byte{Query("copy t from stdin"), message('d', nil), message('c', nil)} {
				if _, err := c.Write(m); err != nil {
					t.Fatal(err)
				}
			}
			got := make([]byte, len(done))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, done) {
				t.Fatalf("%s in pieces of %d: %q, %v", what, size, got, err)
			}
			c.Conclude(q)
			if want := (told{asked: 1, late: 1}); *tell != want || q.Row.Len != 0 {
				t.Errorf("%s: %+v, want %+v", what, *tell, want)
			}
			in.data, in.err = answer, io.EOF
			in.sent.Reset()
			if _, err := c.Write(Query("next")); err != nil {
				t.Fatal(err)
			}
			if want := join(Query("select 'flyregion 1'"), Query("next")); !bytes.Equal(in.sent.Bytes(), want) {
				t.Errorf("%s: sends %q, want %q", what, in.sent.Bytes(), want)
			}
			if got := drain(t, c, 64, 1000); !bytes.Equal(got, next) {
				t.Errorf("%s in pieces of %d: %q, want %q", what, size, got, next)
			}
		}
	}
}

// TestRefused has the server refuse a BEGIN: pgx reads the BEGIN's error in place of the first statement's answer.
func TestRefused(t *testing.T) {
	refusal := failure("ERROR", "57014")
	for what, c := range map[string]struct {
		sent, stream []byte
	}{
		"simple":   {Query("x"), join(refusal, ready('I'), failure("ERROR", "25P01"), ready('I'))},
		"extended": {join(execute, syncMessage), join(refusal, ready('I'), failure("ERROR", "25P01"), ready('I'))},
	} {
		for _, size := range []byte{0, 1, 5, 255} {
			in := &script{data: c.stream, sizes: []byte{size}, err: io.EOF}
			conn, _ := scripted(in)
			conn.Announce(&Question{}, true)
			if _, err := conn.Write(Query("begin")); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(c.sent); err != nil {
				t.Fatal(err)
			}
			// A second segment has to wait for the first.
			_, err := conn.Write(join(execute, syncMessage))
			if err == nil || !strings.Contains(err.Error(), "57014") {
				t.Errorf("%s: the next segment: %v", what, err)
			}
			want := join(beginReply, refusal, ready('E'))
			if got := drain(t, conn, 64, 100); !bytes.Equal(got, want) {
				t.Errorf("%s in pieces of %d: %q, want %q", what, size, got, want)
			}
			if !bytes.HasSuffix(in.sent.Bytes(), c.sent) && !bytes.HasSuffix(in.sent.Bytes(), append(c.sent, syncMessage...)) {
				t.Errorf("%s: sends %q", what, in.sent.Bytes())
			}
			if _, err := conn.Write(Query("rollback")); err != nil {
				t.Errorf("%s: its rollback: %v", what, err)
			}
		}
	}
}

// TestParts writes messages in parts, as somebody may who has taken the connection over.
func TestParts(t *testing.T) {
	in := &script{data: join(complete("SELECT 1"), ready('I')), err: io.EOF}
	c, tell := scripted(in)
	sent := join(execute, syncMessage, Query("x"))
	for at := range sent {
		if _, err := c.Write(sent[at : at+1]); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(in.sent.Bytes(), sent) {
		t.Errorf("sent %q, want %q", in.sent.Bytes(), sent)
	}
	want := bytes.Clone(in.data)
	if got := drain(t, c, 64, 100); !bytes.Equal(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}
	if tell.unannounced != 1 {
		t.Errorf("%+v", tell)
	}
}

// cut is a network connection that breaks when so many bytes were sent.
type cut struct {
	script
	after int
}

func (c *cut) Write(p []byte) (int, error) {
	n, _ := c.sent.Write(p[:min(len(p), c.after-c.sent.Len())])
	if n < len(p) {
		return n, io.ErrClosedPipe
	}
	return n, nil
}

// TestWriteFails has the connection break at each place of a statement and what is sent with it. pgx tells its caller to
// retry a statement of which nothing was sent, so it must not hear that of one that the server may run.
func TestWriteFails(t *testing.T) {
	for _, size := range []int{10, 20_000} {
		statement := Query(strings.Repeat("x", size))
		for _, after := range []int{0, 1, size / 2, len(statement) - 1, len(statement), len(statement) + 1, len(statement) + len(behind) - 1} {
			network := &cut{after: after}
			c := New(network, Events{Asked: func(*Question) {}})
			c.Announce(&Question{Behind: behind}, false)
			n, err := c.Write(statement)
			if want := min(after, len(statement)); n != want || !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("of %d bytes %d were sent, and Write returns %d, %v", len(statement), want, n, err)
			}
		}
	}
}

// TestRowsWaitForTheAnswer has rows arrive together with their statement's end, and the answer to the question behind it later. The
// app is given no row before the answer was. Where there is no question the end is told before.
func TestRowsWaitForTheAnswer(t *testing.T) {
	rows := join(row("a"), row("b"), complete("INSERT 0 2"), ready('I'))
	answer := join(row("0/1"), complete("SELECT 1"), ready('I'))
	for _, asks := range []bool{true, false} {
		q, data := &Question{}, rows
		if asks {
			q.Behind, data = behind, join(rows, answer)
		}
		c, tell := scripted(&script{data: data, sizes: []byte{byte(len(rows) - 1), 0, 9}, err: io.EOF})
		c.Announce(q, false)
		if _, err := c.Write(Query("insert into t values (1), (2) returning v")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, len(rows)+1)
		n, err := c.Read(buf)
		if err != nil || n == 0 {
			t.Fatalf("%d bytes, %v", n, err)
		}
		if asks && tell.answered != 1 || !asks && tell.ended != 1 {
			t.Errorf("asks: %v: at the first row the connection has told %+v", asks, *tell)
		}
		if got := append(buf[:n:n], drain(t, c, 100, 100)...); !bytes.Equal(got, rows) {
			t.Errorf("asks: %v: pgx reads %q of %q", asks, got, rows)
		}
	}
}
