package flyregion

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// primary is the writable server, wherever it is, and what is known of it.
type primary struct {
	pool       *pgxpool.Pool
	statements *statements
	telemetry  *telemetry // nil where one plain pool does

	session Session // what this process has written

	identity  atomic.Pointer[identity] // of the primary that answered last, nil before
	roundTrip atomic.Int64             // smoothed, in nanoseconds
	// minWait and maxWait bound how long a read waits for a replica.
	minWait, maxWait time.Duration

	// fallbacks has a place for each read that may be on the primary because no replica can serve it.
	fallbacks chan struct{}

	copiesUnanswered atomic.Bool // a pooler drops what is asked behind a COPY

	// awaitReplay waits until the replica shows what a session has written. It is nil unless writes wait for that.
	awaitReplay func(context.Context, sessionState)
}

// identify takes note of the server that a report was just received from.
func (p *primary) identify(r *report) {
	for {
		known := p.identity.Load()
		if next := identityOf(known, r); next == known || p.identity.CompareAndSwap(known, next) {
			return
		}
	}
}

// reconnect makes all connections anew, as a standby says that there is a newer primary.
func (p *primary) reconnect() { p.pool.Reset() }

// measured takes a round trip into account, as a new connection measures it.
func (p *primary) measured(d time.Duration) {
	if old := time.Duration(p.roundTrip.Load()); old > 0 && d > old {
		d = (3*old + d) / 4
	}
	p.roundTrip.Store(int64(d))
}

// measuredAtMost takes into account that a round trip is no longer than d, in which a statement ran too.
func (p *primary) measuredAtMost(d time.Duration) {
	if int64(d) < p.roundTrip.Load() {
		p.roundTrip.Store(int64(d))
	}
}

// waitLimit is how long a read waits for a replica: what it would take to ask the primary instead.
func (p *primary) waitLimit() time.Duration {
	return min(max(time.Duration(p.roundTrip.Load()), p.minWait), p.maxWait)
}

// covers reports whether a session's position says all that must be known of its writes: the position of each is known,
// and is in the log of the primary of today.
func (p *primary) covers(state sessionState) bool {
	if state.unknown > 0 || state.outdated > 0 {
		return false
	}
	known := p.identity.Load()
	return state.position == 0 || known != nil && state.origin == known.server
}

// awaitWrite makes a write wait for the replica, where the config wants that. The write has succeeded, and is no error
// if the replica does not show it in time.
func (p *primary) awaitWrite(ctx context.Context) {
	if p.awaitReplay != nil {
		p.awaitReplay(ctx, p.session.load())
	}
}
