package flyregion

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// primary is the writable server: its pool, and its state. The fields that are neither atomic nor a Session do not change
// once the Pool is open.
type primary struct {
	pool   *pgxpool.Pool
	opened atomic.Bool // pool is set: what runs in the background checks this before it uses pool

	connects connects
	contact  contact

	statements *statements
	telemetry  *telemetry // nil where one plain pool does

	session Session // what this process has written

	identity  atomic.Pointer[identity] // of the server that answered last; nil before the first report
	wallClock atomic.Pointer[clockReading]
	flushes   flushes
	roundTrip atomic.Int64 // smoothed, in nanoseconds
	// minWait and maxWait bound how long a read waits for a replica.
	minWait, maxWait time.Duration
	maxLag           time.Duration // how far a replica may be behind that reads run on, 0 for no limit
	readTime         leastTime
	stayUntil        atomic.Int64 // since the process started, in nanoseconds; see stay
	quiet            atomic.Bool  // while reads stay, writes are sent without questions too

	// fallbacks has a slot for each read that runs on the primary because no replica can serve it.
	fallbacks chan struct{}

	copiesUnanswered atomic.Bool // a pooler has dropped a question that was sent behind a COPY

	// awaitReplay waits until the replica has replayed what a session has written. It is nil unless Config.AwaitWrites.
	awaitReplay func(context.Context, sessionState)
}

// close closes the pool and ends what asks for positions.
func (p *primary) close() {
	p.contact.close()
	p.flushes.close()
	p.pool.Close()
}

// identify sets identity to the server that a report was just received from.
func (p *primary) identify(r *report) {
	for {
		old := p.identity.Load()
		if next := identityOf(old, r); next == old || p.identity.CompareAndSwap(old, next) {
			return
		}
	}
}

// reconnect has all connections closed and made anew, as a standby follows a newer primary.
func (p *primary) reconnect() {
	if p.opened.Load() {
		p.pool.Reset()
	}
}

// measured takes account of the round trip that a new connection has measured.
func (p *primary) measured(d time.Duration) {
	if old := time.Duration(p.roundTrip.Load()); old > 0 && d > old {
		d = (3*old + d) / 4
	}
	p.roundTrip.Store(int64(d))
}

// measuredAtMost takes account of a round trip that took d together with a statement: alone it takes no longer.
func (p *primary) measuredAtMost(d time.Duration) {
	if int64(d) < p.roundTrip.Load() {
		p.roundTrip.Store(int64(d))
	}
}

// waitLimit is how long a read waits for a replica: about what it would take to run on the primary instead.
func (p *primary) waitLimit() time.Duration {
	least := p.minWait
	if least == 0 {
		least = p.readTime.shortest()
	}
	return min(max(time.Duration(p.roundTrip.Load()), least), p.maxWait)
}

// stayTime is how long reads stay on the primary once one was expected to be answered there sooner, and how long after their
// session's last write at most.
const stayTime = 50 * time.Millisecond

// muchSooner is how many times longer than the primary's answer a replica's delay is if the primary is much sooner.
const muchSooner = 4

// stay has reads stay on the primary for a while, as replicas are expected to show a write only delay after its return.
//
// Usually a statement that runs on the primary is followed by questions: whether it has written, which its SQL does not tell
// for sure, and at which position. They take the primary longer than a small read. While reads stay they are sent without
// questions, and if the primary is much sooner, so are writes: their sessions' next reads would only learn from the position
// that they have to stay. What is sent so counts as a write whose position is not known, and a later read of its session goes
// to the primary too. Reads that ask follow when the time is over.
func (p *primary) stay(delay time.Duration) {
	if p.awaitReplay == nil { // such writes would not be awaited
		p.quiet.Store(delay > muchSooner*p.waitLimit())
		p.stayUntil.Store(int64(uptime() + stayTime))
	}
}

// stays reports whether the reads of a session stay on the primary.
func (p *primary) stays(session *Session) bool {
	until := time.Duration(p.stayUntil.Load())
	if until == 0 {
		return false
	}
	now := uptime()
	return now < until && now-p.written(session).learned < stayTime
}

// written returns what a session has written to the primary's cluster.
func (p *primary) written(session *Session) sessionState { return session.in(p.identity.Load()) }

// covers reports whether a session's position covers all of its writes, and is in the log of the current primary.
func (p *primary) covers(state sessionState) bool {
	if state.unknown > 0 || state.outdated > 0 {
		return false
	}
	current := p.identity.Load()
	return state.position == 0 || current != nil && state.origin == current.server
}

// Why a read cannot be checked against the session's position.
var (
	errUnknownWrite     = errors.New("flyregion: the position of the session's last write is not known")
	errOutdatedPosition = errors.New("flyregion: the session's position is of no use any more, and the primary has to be asked for another")
	errOtherPrimary     = errors.New("flyregion: the session's position is in the log of another primary")
)

// notCoveredError returns why a primary does not cover state.
func notCoveredError(state sessionState) error {
	switch {
	case state.unknown > 0:
		return errUnknownWrite
	case state.outdated > 0:
		return errOutdatedPosition
	}
	return errOtherPrimary
}

// awaitWrite makes a write wait for the replica, if Config.AwaitWrites says so. The write has succeeded: that the replica
// does not replay it in time is no error.
func (p *primary) awaitWrite(ctx context.Context) {
	if p.awaitReplay != nil {
		p.awaitReplay(ctx, p.written(&p.session))
	}
}
