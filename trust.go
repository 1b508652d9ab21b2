package flyregion

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// A read may run on a standby that has replayed what the read's session has written: all that comes before a position in
// the log of the primary that the process writes to. That a standby has a replay position past it is not enough, as it
// may have replayed another log. This is why verdict is right:
//
//   - A standby of another cluster has another system identifier.
//   - A promotion begins a new timeline at some position of the old one. A standby goes over to the new one only if it has
//     replayed nothing past that position. So if it streams the primary's timeline, or if its control file has got
//     there, all that it has replayed is in the primary's log. If neither says so it may hold a lost branch, follow the
//     primary that was demoted or one of its standbys, or replay what it had when it was killed. If it is on a newer
//     timeline, there is a newer primary, and the process has to connect to that one.
//   - A standby that does not stream may have gone over to a newer timeline which its control file does not have yet. So its
//     reports prove nothing. An earlier report still does, by which it streamed, as a server keeps what it has replayed
//     unless it crashes. That ends its connections. So an earlier report counts for the connections that were open then.
//   - A primary that was put back to an older copy of itself goes on with the same timeline and uses positions again that
//     its standbys have already. So does a primary that was promoted at the same time as another one. When another
//     server reports that it is the primary, what a standby has received by then may be of the lost branch. So each
//     standby is asked once for the end of what it has received, after the first report of that primary. A standby of a
//     lost branch replays nothing past this end, as the next record that the primary sends does not follow its own
//     last one. So a standby proves that it is in the primary's log by a position past the end, and a read that needs
//     a position at the end or past it gets that proof with it. A standby does not report the end while it replays
//     what it had when it was started.
//
// One case is not covered: two primaries at a time with the same timeline, each with standbys of its own that stream from
// it. No standby is ahead then, and no report tells them apart. And to a role that may not see what a standby streams, a
// standby shows that it has gone over to a newer timeline only by its control file, which is later.

// verdict says whether a server has replayed what a read needs.
type verdict uint8

const (
	// behind means: not yet, or it is not sure that the server follows the primary.
	behind verdict = iota
	// caughtUp means: yes.
	caughtUp
	// outdated means: only a later position than the session's can tell, such as the one that the primary reports now.
	outdated
)

// trust gives the verdict on the servers that one replica's address leads to. It is mostly one, but each new connection may lead to
// another one, as through a load balancer or after a restart.
type trust struct {
	primary *atomic.Pointer[identity] // the primary's own, which the primary writes and trust only reads
	// primaryClock is what the primary's clock showed when it was asked last, likewise.
	primaryClock *atomic.Pointer[clockReading]
	standbys     atomic.Pointer[[]standby]
}

// standby is the end of what one standby had received when it was first asked after the first report of a primary.
type standby struct {
	server  serverID
	primary *identity
	end     LSN
}

// maxStandbys is how many standbys of one replica's address are remembered.
const maxStandbys = 16

// verdict reports whether the server of report r has replayed what state covers.
func (t *trust) verdict(r *report, state sessionState) verdict {
	if state.position == 0 {
		return caughtUp
	}
	primary := t.primary.Load()
	if doubtOf(r, primary, state.origin) != noDoubt {
		return behind
	}
	if !r.recovering {
		return caughtUp // it is the primary
	}
	need := max(state.position, primary.flushed)
	if r.position < need {
		return behind
	}
	switch end, known := t.endOf(r, primary); {
	case !known:
		return behind
	case need >= end || r.position > end:
		return caughtUp
	}
	return outdated
}

// logDoubt is a reason why the position in a server's report may be in another log than the session's position.
type logDoubt uint8

const (
	noDoubt        logDoubt = iota
	primaryChanged          // the session wrote on another primary than the current one
	notStandby              // the server is neither the primary nor in recovery: it was promoted or demoted
	systemHidden            // the role may not see the system identifier or the timeline, of this server or of the primary
	otherSystem
	olderTimeline
	newerTimeline
	notStreaming // only an earlier report of the server can show that it follows the primary
)

// doubtOf returns why the server of a report may not have the log that a session with this origin has written to, noDoubt if
// it is the primary itself or a standby that replayed this log up to its position.
func doubtOf(r *report, primary *identity, origin serverID) logDoubt {
	switch {
	case primary == nil || primary.server != origin:
		return primaryChanged
	case !r.recovering && r.server == primary.server:
		return noDoubt
	case !r.recovering:
		return notStandby
	case r.system == 0 || primary.system == 0:
		return systemHidden
	case r.system != primary.system:
		return otherSystem
	case r.timeline < primary.timeline:
		return olderTimeline
	case r.timeline > primary.timeline:
		return newerTimeline
	case !r.streams:
		return notStreaming
	}
	return noDoubt
}

// showsUntil reports whether a standby shows all that was committed until d before now, by the time at which the last
// transaction that it has replayed was committed. That is a time of the primary's clock, and so is this one of now.
func (t *trust) showsUntil(r *report, d time.Duration, now time.Time) bool {
	primary := t.primary.Load()
	if primary == nil || !r.recovering || !sameLog(r, primary) || r.committed == 0 {
		return false
	}
	c := t.primaryClock.Load()
	return c != nil && c.when(now).since(r.committed) <= d
}

// sameLog reports whether a standby is of the primary's cluster and replays its timeline.
func sameLog(standby *report, primary *identity) bool {
	return doubtOf(standby, primary, primary.server) == noDoubt
}

// doubt says in words why a server's verdict is behind although its position may be high enough, "" if there is no such
// reason.
func (t *trust) doubt(r *report, state sessionState) string {
	primary := t.primary.Load()
	switch doubtOf(r, primary, state.origin) {
	case primaryChanged:
		return "the primary has changed"
	case notStandby:
		return "it is not in recovery, and not the primary that the pool is connected to"
	case systemHidden:
		return "the role may not call pg_control_system, pg_control_checkpoint and pg_control_recovery"
	case otherSystem:
		return otherCluster(r, primary)
	case olderTimeline:
		return fmt.Sprintf("it shows timeline %d, and the primary is on %d (a role with pg_read_all_stats sees at once what it streams, "+
			"any other one after the next restartpoint)", r.timeline, primary.timeline)
	case newerTimeline:
		return fmt.Sprintf("it is on timeline %d, and the primary that the pool is connected to on %d", r.timeline, primary.timeline)
	}
	switch {
	case !r.recovering || r.position < state.position:
	case r.received == 0:
		return "it has received nothing since it was started"
	case !r.streams:
		return "it does not stream now, and so does not show whose log it has replayed"
	}
	return ""
}

// measure stores the end of what a standby has received, if that was not done for this primary. The earlier this
// happens, the sooner the standby gets past the end. The end holds although the standby does not stream.
func (t *trust) measure(r *report) {
	primary := t.primary.Load()
	if primary == nil || !r.recovering {
		return
	}
	if d := doubtOf(r, primary, primary.server); d == noDoubt || d == notStreaming {
		t.endOf(r, primary)
	}
}

// endOf returns the end of what a standby had received when it was first asked, which may be in this report. known is
// false if no report has told it yet.
func (t *trust) endOf(r *report, primary *identity) (end LSN, known bool) {
	if r.received == 0 {
		return 0, false
	}
	for {
		old := t.standbys.Load()
		var all []standby
		if old != nil {
			all = *old
		}
		for i := range all {
			if s := &all[i]; s.server == r.server && s.primary == primary {
				return s.end, true
			}
		}
		if r.asked <= primary.since {
			return 0, false
		}
		next := make([]standby, 0, len(all)+1)
		next = append(next, standby{server: r.server, primary: primary, end: r.received})
		for _, s := range all {
			if s.primary == primary && len(next) < maxStandbys {
				next = append(next, s)
			}
		}
		if t.standbys.CompareAndSwap(old, &next) {
			return r.received, true
		}
	}
}

// followsNewer reports whether a standby follows a newer primary than the one that the process is connected to.
func (t *trust) followsNewer(r *report) bool {
	primary := t.primary.Load()
	return primary != nil && r.recovering && r.system == primary.system && r.timeline > primary.timeline
}

// checkCluster returns an error if a server belongs to another cluster than the primary. It returns nil if either role
// may not see the system identifier.
func (t *trust) checkCluster(r *report, region string) error {
	if other := otherCluster(r, t.primary.Load()); other != "" {
		return fmt.Errorf("flyregion: %s is no standby of the primary: %s", inRegion(region), other)
	}
	return nil
}

// otherCluster says how a server shows that it belongs to another cluster than the primary, "" if it does not.
func otherCluster(r *report, primary *identity) string {
	if primary == nil || r.system == 0 || primary.system == 0 || r.system == primary.system {
		return ""
	}
	return fmt.Sprintf("it belongs to another cluster, as its system identifier is %d and the primary's is %d", r.system, primary.system)
}

// reconnectLimiter bounds how often the pool reconnects to the primary because a standby follows a newer one: at once, and
// then less and less often as long as the pool finds the same primary.
type reconnectLimiter struct {
	reconnect func() // closes the pool's connections to the primary

	// mu guards the following fields.
	mu      sync.Mutex
	primary *identity     // at the latest reconnect
	next    time.Time     // the earliest time of the next one, if the primary is still the same
	pause   time.Duration // until then
}

const (
	minReconnectPause = time.Second
	maxReconnectPause = time.Minute
)

// allow reports whether the pool may reconnect now, and if so counts that it does.
func (r *reconnectLimiter) allow(primary *identity) bool {
	r.mu.Lock()
	defer r.mu.Unlock()

	now := time.Now()
	switch {
	case r.primary != primary:
		r.primary, r.pause = primary, minReconnectPause
	case now.Before(r.next):
		return false
	default:
		r.pause = min(2*r.pause, maxReconnectPause)
	}
	r.next = now.Add(r.pause)
	return true
}
