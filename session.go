package flyregion

import (
	"context"
	"sync/atomic"
	"time"
)

// Session is a causal token: it remembers how far the primary's write-ahead log must have been replayed for a replica to
// show every write that was made in the session. Reads in the session wait for that position and no other.
//
// A [Pool] is itself a session for all that the process writes through it. That needs no code. With a Session of its own the
// reads of one user or request do not wait for other people's writes: see [WithSession].
//
// The zero value is a session in which nothing was written. A Session is safe for concurrent use and must not be copied.
type Session struct {
	state atomic.Pointer[sessionState]
}

// sessionState is immutable: a session changes by replacing it, so that a read costs one atomic load.
type sessionState struct {
	// position covers every write of the session that origin has confirmed.
	position LSN
	// origin is the primary whose log the position is in. A position means nothing in the log of another primary: a
	// failover may have lost it.
	origin serverID
	// unknown is the time, by this process's clock, of the latest write whose position is not known, 0 if there is none.
	unknown uint64
	// learned is when the write returned that raised the position, since the process started. It is 0 if that is not
	// known, as where the position comes from a statement that has written nothing.
	learned time.Duration
	// outdated is the time at which the position was found to be outdated, in the sense of verdict: an answer of the
	// primary that is asked for later is needed. It is 0 if the position is not outdated.
	outdated uint64
}

// load returns what the session has written so far.
func (s *Session) load() sessionState {
	if state := s.state.Load(); state != nil {
		return *state
	}
	return sessionState{}
}

// wrote notes that p covers the session's writes of before p was asked for.
func (s *Session) wrote(p position) {
	for {
		old := s.state.Load()
		next := sessionState{position: p.flush, origin: p.origin, learned: p.learned}
		if old != nil {
			switch {
			case old.unknown > p.asked && old.unknown != p.noted:
				// A write came after the primary was asked. Its position is still unknown.
				next.unknown = old.unknown
			case old.unknown > 0:
				// It is not known whether that write was committed asynchronously. Only the insert position is sure
				// to cover it.
				next.position = p.insert
			}
			if old.outdated > p.asked {
				next.outdated = old.outdated
			}
			if old.origin == p.origin {
				next.position = max(next.position, old.position)
				if p.learned == 0 || next.position == old.position {
					next.learned = old.learned
				}
			}
			if next == *old {
				return
			}
		}
		if s.state.CompareAndSwap(old, &next) {
			return
		}
	}
}

// wroteUnknown notes a write whose position is not known.
func (s *Session) wroteUnknown() { s.wroteUnknownSince(0) }

// wroteUnknownSince is wroteUnknown for a write whose position the primary was asked for at the time asked, and will
// answer. It returns a number that identifies this call, or 0 if another write was noted since that time.
func (s *Session) wroteUnknownSince(asked uint64) (noted uint64) {
	now := clock.Add(1)
	for {
		old := s.state.Load()
		next := sessionState{unknown: now}
		if old != nil {
			next.position, next.origin, next.learned, next.outdated = old.position, old.origin, old.learned, old.outdated
		}
		if s.state.CompareAndSwap(old, &next) {
			if old != nil && old.unknown > asked {
				return 0
			}
			return now
		}
	}
}

// outdate notes that the primary has to be asked for the session's position anew, if it is still the one of state.
func (s *Session) outdate(state sessionState) {
	old := s.state.Load()
	if old == nil || *old != state {
		return
	}
	next := state
	next.outdated = clock.Add(1)
	s.state.CompareAndSwap(old, &next)
}

// position is what the primary told about its log after a statement.
type position struct {
	origin serverID
	// asked is when the question was sent, by this process's clock: every write that had returned before is covered.
	asked uint64
	// noted is what wroteUnknownSince returned for a write that is covered too although it returned later, else 0.
	noted uint64
	// learned is when the answer arrived, since the process started, if the statement has written, else 0.
	learned time.Duration
	// flush covers every transaction that had committed synchronously.
	flush LSN
	// insert covers asynchronous commits too. It may be ahead of flush by what other transactions have written without
	// committing. Replicas receive that only when it is flushed.
	insert LSN
}

// target is a server as routing sees it.
type target uint8

const (
	targetAny target = iota
	targetPrimary
	targetReplica
)

// String returns "primary" or "replica".
func (t target) String() string {
	if t == targetReplica {
		return "replica"
	}
	return "primary"
}

type contextKey struct{}

// intent is what a context asks of the statements that run under it.
type intent struct {
	session *Session
	target  target
	noWait  bool
}

func intentOf(ctx context.Context) intent {
	if in, ok := ctx.Value(contextKey{}).(*intent); ok {
		return *in
	}
	return intent{}
}

func withIntent(ctx context.Context, change func(*intent)) context.Context {
	in := intentOf(ctx)
	change(&in)
	return context.WithValue(ctx, contextKey{}, &in)
}

// WithSession returns a context whose reads see every write made in s before they began, and do not wait for any other.
// Writes under it count for s and, as all writes do, for the pool. A nil s means the pool's own session.
func WithSession(ctx context.Context, s *Session) context.Context {
	return withIntent(ctx, func(in *intent) { in.session = s })
}

// WithPrimary returns a context whose statements all run on the primary.
func WithPrimary(ctx context.Context) context.Context {
	return withIntent(ctx, func(in *intent) { in.target = targetPrimary })
}

// WithReplica returns a context whose statements all run on the replica, [Pool.Acquire] and transactions included, and
// never on the primary in its place. A statement that writes fails there with PostgreSQL's own error (SQLSTATE 25006).
// Reads still wait for the session's writes, for [Config.MaxReplicaWait] at most, and then fail with an error that is
// [ErrReplicaLag]. Where the pool has no replica the context changes nothing.
func WithReplica(ctx context.Context) context.Context {
	return withIntent(ctx, func(in *intent) { in.target = targetReplica })
}

// WithoutWait returns a context whose reads do not wait for any write to be replayed. They may miss even this process's own
// writes. It is what await: false is in fly_postgres.
func WithoutWait(ctx context.Context) context.Context {
	return withIntent(ctx, func(in *intent) { in.noWait = true })
}
