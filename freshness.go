package flyregion

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/flyregion/flyregion/internal/piggyback"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Reads under WithFresh and WithMaxLag see what other processes have written too. They need a position that the primary has
// told for that alone: now, or at most as long ago as such a read allows.

const (
	// maxFlushAsks is how many connections to the primary are used at a time to ask for its flush position.
	maxFlushAsks = 2
	// flushTimeout bounds how long one answer may take.
	flushTimeout = 5 * time.Second
)

// flushSQL asks for what positionSQL does, and for the time.
const flushSQL = positionSQL + `, (extract(epoch from pg_catalog.clock_timestamp()) * 1000000)::bigint`

// currentFlush asks for a position that covers all that was committed on the primary before the call. Concurrent callers
// share a question that none of them has missed.
func (p *primary) currentFlush(ctx context.Context) (sessionState, error) {
	a := p.askFlush()
	select {
	case <-a.done:
		return a.state, a.err
	case <-ctx.Done():
		return sessionState{}, ctx.Err()
	}
}

// recentFlush returns a position that covers all that was committed on the primary until d ago: the lowest that is known, or
// else what the primary answers. It has the next one asked for in the background before it is needed.
func (p *primary) recentFlush(ctx context.Context, d time.Duration) (sessionState, error) {
	if k := p.flushes.known.Load(); k != nil && p.covers(sessionState{position: 1, origin: k.origin}) {
		now := time.Now()
		if m := k.marks.within(d, now); m != nil {
			if elapsed(k.marks[len(k.marks)-1].at, now) > d/2 {
				p.askFlush()
			}
			return sessionState{position: m.position, origin: k.origin}, nil
		}
	}
	return p.currentFlush(ctx)
}

// askFlush returns the question that is sent next.
func (p *primary) askFlush() *flushAsk {
	f := &p.flushes
	f.mu.Lock()
	defer f.mu.Unlock()

	if f.next != nil {
		return f.next
	}
	a := &flushAsk{done: make(chan struct{})}
	if f.closed {
		a.err = errClosedPool
		close(a.done)
		return a
	}
	f.next = a
	if f.asking < maxFlushAsks {
		if f.ctx == nil {
			f.ctx, f.stop = context.WithCancel(context.Background())
		}
		f.asking++
		f.done.Go(func() { p.answerFlushes(f.ctx) })
	}
	return a
}

// answerFlushes asks the primary as long as somebody waits. Each question is for all who wait when there is a connection.
func (p *primary) answerFlushes(ctx context.Context) {
	f := &p.flushes
	for {
		limited, cancel := context.WithTimeout(ctx, flushTimeout)
		conn, err := p.pool.Acquire(limited)
		if a := f.take(); a != nil {
			if a.err = err; err == nil {
				a.state, a.err = p.flushed(limited, conn)
			}
			close(a.done)
		}
		if err == nil {
			conn.Release()
		}
		cancel()
		if f.ends() {
			return
		}
	}
}

// flushed asks for the flush position, and notes it.
func (p *primary) flushed(ctx context.Context, conn *pgxpool.Conn) (sessionState, error) {
	c := primaryConnOf(conn.Conn())
	s := &primaryStatement{Context: ctx}
	c.begin(s)
	defer c.end(s)
	at := time.Now()
	row, err := oneRow(ctx, conn.Conn().PgConn(), flushSQL)
	if err != nil {
		return sessionState{}, err
	}
	answer := piggyback.Row{Len: len(row) - 1}
	for i := range answer.Len {
		answer.Columns[i] = string(row[i])
	}
	position, a, ok := positionOfAnswer(answer)
	shown, err := strconv.ParseInt(string(row[answer.Len]), 10, 64)
	switch {
	case !ok || err != nil:
		return sessionState{}, errors.New("flyregion: the primary did not tell its position")
	case a.readOnly && !c.readOnly:
		return sessionState{}, pgconn.ErrReadOnlyConnection // a pooler leads to a primary that was demoted
	case a.server != c.server:
		c.server = a.server
		p.answeredBy(a, position.flush)
	}
	p.contact.answered()
	p.wallClock.Store(&clockReading{serverTime(shown), at})
	p.flushes.note(position, at)
	return sessionState{position: position.flush, origin: position.origin}, nil
}
