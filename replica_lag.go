package flyregion

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrReplicaLag is the error of a read under [WithReplica] if the replica does not show what the read has to see: what its
// session has written, within [Config.MaxReplicaWait], or what is allowed to be missing by [Config.MaxReplicaLag],
// [WithMaxLag] or [WithFresh]. Test for it with errors.Is; errors.As with a [*ReplicaLagError] gives the positions or the lag.
var ErrReplicaLag = errors.New("flyregion: replica has not replayed the session's writes")

// ReplicaLagError says how far a replica was behind what a read had to see. It is an [ErrReplicaLag].
type ReplicaLagError struct {
	Region   string
	Required LSN // the position that the read had to see, 0 if it needed none
	Replayed LSN // the replica's replay position when it was last asked, 0 if that may be in another log than the primary's
	// Limit is how far behind the replica might be: [Config.MaxReplicaLag], or what [WithMaxLag] allows. It is 0 if the read
	// failed for its position. Lag is then how far behind the replica was, the largest Duration if it did not show that.
	Limit, Lag time.Duration

	doubt string // why that may be, "" if it is not said
}

func (e *ReplicaLagError) Error() string {
	switch {
	case e.Limit > 0 && e.Lag == unknownLag:
		return fmt.Sprintf("flyregion: %s does not show that it is at most %v behind the primary", inRegion(e.Region), e.Limit)
	case e.Limit > 0:
		return fmt.Sprintf("flyregion: %s is up to %v behind the primary, and may be %v", inRegion(e.Region), e.Lag.Round(time.Millisecond), e.Limit)
	}
	if e.Replayed == 0 {
		text := fmt.Sprintf("flyregion: %s does not show that it follows the primary, in whose log the read has to see %s", inRegion(e.Region), e.Required)
		if e.doubt != "" {
			text += ": " + e.doubt
		}
		return text
	}
	return fmt.Sprintf("flyregion: %s has replayed %s, and the read has to see %s", inRegion(e.Region), e.Replayed, e.Required)
}

// Is reports whether target is ErrReplicaLag.
func (e *ReplicaLagError) Is(target error) bool { return target == ErrReplicaLag }

// clockSetBack is how far in the future the time of a report is if the machine's clock was set back since. A report may be a
// little later than the time that a read has for now.
const clockSetBack = time.Minute

// checkLag keeps what is known of the replica's lag up to date while it is read from. It returns the error of a read if the
// replica is further behind than the limit allows, unless that serves too. A replica that has told nothing for longer than the
// limit is asked on conn, and else in the background. now is in nanoseconds since 1970.
func (r *replica) checkLag(ctx context.Context, rt *route, conn *pgx.Conn, now int64) error {
	s := &r.tracker.staleness
	if s.limit == 0 {
		return nil
	}
	if age := now - s.asked.Load(); age >= int64(s.checkPause()) || age < -int64(clockSetBack) {
		if age <= int64(s.limit) {
			r.tracker.observeInBackground(&s.checking, s.checkPause())
		} else if _, err := r.ask(ctx, conn, sessionState{}); err != nil {
			return err
		}
	}
	if s.isTooFar() && !rt.farBehind {
		return r.tooFarError()
	}
	return nil
}

// leftAlone reports whether a read leaves the replica alone because it is too far behind. If so, and if it is time to, the
// replica is asked in the background whether it still is: no read waits for that. WithMaxLag is a limit of its own.
func (r *replica) leftAlone(rt *route) bool {
	if !r.tracker.staleness.isTooFar() || rt.wants == wantsRecent {
		return false
	}
	r.tracker.observeInBackground(&r.tracker.staleness.checking, minCheckPause)
	return !rt.farBehind
}

// tooFarError returns the error of a read that the replica is too far behind for.
func (r *replica) tooFarError() error {
	s := &r.tracker.staleness
	return &ReplicaLagError{Region: r.region, Lag: time.Duration(s.tooFar.Load()), Limit: s.limit}
}

// noReportError returns the error of a read that has waited in vain for limit and has not asked on a connection of its own.
// Reports that were asked for before a time of clock do not count.
func (r *replica) noReportError(state sessionState, after uint64, limit time.Duration) error {
	o := r.tracker.latest.Load()
	if o == nil || o.asked <= after {
		return fmt.Errorf("flyregion: %s did not say within %v how far it has replayed", inRegion(r.region), limit)
	}
	return r.lagError(o, state)
}

// lagError returns the error of a read that needs what state covers, from a server whose report is o.
func (r *replica) lagError(o *report, state sessionState) error {
	replayed, doubt := o.position, r.tracker.doubt(o, state)
	if replayed >= state.position || doubt != "" {
		replayed = 0
	}
	return &ReplicaLagError{Region: r.region, Required: state.position, Replayed: replayed, doubt: doubt}
}
