package flyregion

import (
	"context"
	"sync/atomic"
	"time"
)

// Session is a causal token: it remembers how far the primary's write-ahead log must have been replayed for a replica to
// show every write that was made in the session. Reads in the session wait for that position and no other.
//
// A session remembers a position for each cluster that was written to in it, so it may be used with the pools of several
// databases: reads of one do not wait for what was written to another. Pools of one cluster share its position. Only what
// is written through pools counts, not what one of the servers writes to another, as through a foreign table.
//
// A [Pool] is itself a session for all that the process writes through it. That needs no code. With a Session of its own the
// reads of one user or request do not wait for other people's writes: see [WithSession].
//
// The zero value is a session in which nothing was written. A Session is safe for concurrent use and must not be copied.
type Session struct {
	written atomic.Pointer[written]
}

// written is what was written in a session. It is immutable: a session changes by replacing it, so that a read costs one
// atomic load.
type written struct {
	latest clusterState   // of the cluster that was written to last
	others []clusterState // of the clusters before, the latest first; nil in most sessions
	// forgotten is the time, by this process's clock, of the latest write to a cluster that there was no room for in others,
	// 0 if there was none.
	forgotten uint64
}

// maxClusters is how many clusters a session remembers. Reads of those that were written to before go to the primary.
const maxClusters = 16

// clusterState is what was written in a session to one cluster: a primary, its standbys, and what replaces it in a failover.
type clusterState struct {
	sessionState
	system uint64 // identifies the cluster, as in report; 0 for all clusters whose identifier the role may not see
	asked  uint64 // when the primary was asked for the position, by this process's clock
	noted  uint64 // when the latest write was noted, by this process's clock
}

// sessionState is what a read has to see of one cluster.
type sessionState struct {
	// position covers every write of the session that origin has confirmed.
	position LSN
	// origin is the primary whose log the position is in. A position means nothing in the log of another primary: a
	// failover may have lost it.
	origin serverID
	// unknown is the time, by this process's clock, of the latest write whose position is not known, 0 if there is none.
	unknown uint64
	// learned is when the write returned that the position was raised for, or that made it unknown, since the process
	// started. It is 0 if that is not known, as where the position comes from a statement that has written nothing.
	learned time.Duration
	// outdated is the time at which the position was found to be outdated, in the sense of verdict: an answer of the
	// primary that is asked for later is needed. It is 0 if the position is not outdated.
	outdated uint64
}

// in returns what the session has written to the cluster of a primary. primary is nil if it is not known which that is.
func (s *Session) in(primary *identity) sessionState {
	w := s.written.Load()
	if w == nil {
		return sessionState{}
	}
	if primary != nil && len(w.others) == 0 && w.forgotten == 0 && w.latest.system == primary.system {
		return w.latest.sessionState // most sessions are of one cluster
	}
	var c clusterState
	if primary != nil {
		c = w.of(primary.system)
	}
	if doubtful := w.doubtful(primary); doubtful > c.asked {
		c.unknown = max(c.unknown, doubtful)
	}
	return c.sessionState
}

// doubtful returns the time, by this process's clock, of the latest write of which it is not known whether it was to the
// cluster of a primary, 0 if there was none. A position of that primary covers it if it was asked for later.
func (w *written) doubtful(primary *identity) (noted uint64) {
	noted = w.forgotten
	for i := range len(w.others) + 1 {
		if c := w.cluster(i); primary.mayHaveBeen(c.system) {
			noted = max(noted, c.noted)
		}
	}
	return noted
}

// cluster returns latest for 0, and others for higher numbers.
func (w *written) cluster(i int) *clusterState {
	if i == 0 {
		return &w.latest
	}
	return &w.others[i-1]
}

// of returns what was written to the cluster of a system identifier, the zero state if nothing was.
func (w *written) of(system uint64) clusterState {
	if w != nil {
		for i := range len(w.others) + 1 {
			if c := w.cluster(i); c.system == system {
				return *c
			}
		}
	}
	return clusterState{system: system}
}

// with returns w with c as the latest state. It forgets the cluster that was written to first if there are too many.
func (w *written) with(c clusterState) *written {
	if w == nil {
		return &written{latest: c}
	}
	if w.latest.system == c.system {
		return &written{latest: c, others: w.others, forgotten: w.forgotten}
	}
	next := &written{latest: c, others: []clusterState{w.latest}, forgotten: w.forgotten}
	for _, other := range w.others {
		switch {
		case other.system == c.system:
		case len(next.others) < maxClusters-1:
			next.others = append(next.others, other)
		default:
			next.forgotten = max(next.forgotten, other.noted)
		}
	}
	return next
}

// wrote notes that p covers the session's writes to the cluster of before p was asked for.
func (s *Session) wrote(p position) {
	for {
		w := s.written.Load()
		old := w.of(p.system)
		next := clusterState{sessionState: sessionState{position: p.flush, origin: p.origin, learned: p.learned}, system: p.system, asked: p.asked}
		if old.unknown > p.asked && old.unknown != p.noted {
			// A write came after the primary was asked. Its position is still unknown.
			next.unknown = old.unknown
		}
		switch {
		case old.unknown > 0, old.origin != 0 && old.origin != p.origin, w != nil && w.doubtful(&identity{system: p.system}) > old.asked:
			// It is not known whether the writes before were committed asynchronously. Only the insert position is
			// sure to cover them.
			next.position = p.insert
		}
		if old.outdated > p.asked {
			next.outdated = old.outdated
		}
		switch {
		case old.origin == p.origin || old.origin == 0:
			next.position, next.asked = max(next.position, old.position), max(next.asked, old.asked)
			if p.learned == 0 || next.position == old.position {
				next.learned = old.learned
			}
		case old.asked > p.asked:
			// The answer of a primary that has been replaced since.
			next = old
			next.unknown = clock.Add(1)
		}
		if w != nil && next.sessionState == old.sessionState && len(w.others) == 0 && w.forgotten == 0 {
			return // with other clusters, it counts that the primary was asked
		}
		next.noted = clock.Add(1)
		if s.written.CompareAndSwap(w, w.with(next)) {
			return
		}
	}
}

// wroteUnknown notes a write to a cluster whose position is not known. learned is when it returned, since the process
// started, or 0 if it may have written nothing.
func (s *Session) wroteUnknown(system uint64, learned time.Duration) {
	s.wroteUnknownSince(system, 0, learned)
}

// wroteUnknownSince is wroteUnknown for a write whose position the primary was asked for at the time asked, and will
// answer. It returns a number that identifies this call, or 0 if another write was noted since that time.
func (s *Session) wroteUnknownSince(system, asked uint64, learned time.Duration) (noted uint64) {
	for {
		w := s.written.Load()
		now := clock.Add(1) // after the load, so that it is higher than the time of any write that w has
		old := w.of(system)
		next := old
		next.unknown, next.noted, next.learned = now, now, max(learned, old.learned)
		if s.written.CompareAndSwap(w, w.with(next)) {
			if old.unknown > asked {
				return 0
			}
			return now
		}
	}
}

// outdate notes that the primary has to be asked for the position of state anew, if the session still has that.
func (s *Session) outdate(state sessionState) {
	w := s.written.Load()
	if w == nil {
		return
	}
	for i := range len(w.others) + 1 {
		if c := *w.cluster(i); c.sessionState == state {
			c.outdated = clock.Add(1)
			s.written.CompareAndSwap(w, w.with(c))
			return
		}
	}
}

// position is what the primary told about its log after a statement.
type position struct {
	origin serverID
	system uint64 // of origin, as in report
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
	wants   freshness
	maxLag  time.Duration // of wantsRecent
}

// freshness is what a read on a replica has to see.
type freshness uint8

const (
	wantsSession freshness = iota // what its session has written
	wantsAny                      // anything
	wantsRecent                   // what anybody had committed until some time ago
	wantsAll                      // what anybody had committed, and what its session has written
)

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
// writes. It is what await: false is in fly_postgres. Of WithoutWait, [WithMaxLag] and [WithFresh] the innermost holds.
func WithoutWait(ctx context.Context) context.Context {
	return withIntent(ctx, func(in *intent) { in.wants = wantsAny })
}

// WithMaxLag returns a context whose reads see all that anybody had committed until d before they began. Any replica that is
// at most d behind serves them, [Config.MaxReplicaLag] or not, and else the primary. They do not wait, and may miss even this
// process's own writes of that time. Spanner and CockroachDB call this bounded staleness. A d of 0 or less is [WithFresh].
//
// The primary is asked for its position in the background, about twice in d while such reads are made. The first of them, and
// one that comes when nobody has asked for d, waits for the answer: one round trip, as for the primary itself. So d should be
// well above that. The times are those of this process, which knows when it asked. What a replica shows may also be told by the
// time at which its last transaction was committed: by the primary's clock, which this process knows from the same answers.
// No two clocks are compared, except after a failover: as long as the last transaction that a replica has replayed is the former
// primary's, d holds only as far as the clocks of the two agree.
//
// A transaction that was committed with synchronous_commit=off counts as committed when it is flushed, within three times
// wal_writer_delay. Under [WithReplica] a read waits up to [Config.MaxReplicaWait] for a replica that shows enough, and then
// fails with an [ErrReplicaLag]. Where the pool has no replica the context changes nothing.
func WithMaxLag(ctx context.Context, d time.Duration) context.Context {
	if d <= 0 {
		return WithFresh(ctx)
	}
	return withIntent(ctx, func(in *intent) { in.wants, in.maxLag = wantsRecent, d })
}

// WithFresh returns a context whose reads see all that anybody had committed before they began, by whichever process, and
// what their session has written. The primary is asked for its position, which is one small round trip, and the read runs on a
// replica that shows that, or that does within [Config.MaxReplicaWait], and else on the primary. It takes longer than a read on
// the primary, and is for heavy queries, whose work the primary is spared. Reads that begin at the same time share questions.
//
// A transaction that was committed with synchronous_commit=off counts as committed when it is flushed, within three times
// wal_writer_delay. Under [WithReplica] the read waits up to [Config.MaxReplicaWait] and then fails with an [ErrReplicaLag].
// Where the pool has no replica the context changes nothing.
func WithFresh(ctx context.Context) context.Context {
	return withIntent(ctx, func(in *intent) { in.wants = wantsAll })
}
