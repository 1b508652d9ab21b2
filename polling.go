package flyregion

import (
	"context"
	"time"
)

const (
	// eagerPolls is how many polls may follow one another without a pause, because an idle cluster replays a commit
	// within a few of them. One more is allowed each time that pollTime has passed. So a replica is polled 2,000 times a
	// second at most, beside the first eagerPolls.
	eagerPolls = 16
	pollTime   = 500 * time.Microsecond
	// eagerTime is how long a replica is polled so after a wait has ended.
	eagerTime = 2 * time.Millisecond
	// pausePart and maxPollPause bound the pause between two later polls: see pollPause.
	pausePart    = 4
	maxPollPause = 5 * time.Millisecond
)

// pacer says how long a watcher pauses before each poll. The zero value allows eagerPolls without a pause.
type pacer struct {
	eager float64   // how many polls may be made without a pause
	at    time.Time // when that was computed
}

// next returns how long to pause before the next poll. waited is the time since the last poll that ended a wait.
func (p *pacer) next(waited time.Duration) time.Duration {
	now := time.Now()
	p.eager = min(p.eager+float64(now.Sub(p.at))/float64(pollTime), eagerPolls) - 1
	p.at = now
	if p.eager >= 0 && waited < eagerTime {
		return 0
	}
	return pollPause(waited)
}

// pollPause returns the pause between two polls for a read that has waited for some time: a part of that time, so that the
// read waits little longer than replay takes.
func pollPause(waited time.Duration) time.Duration {
	return min(max(waited/pausePart, pollTime), maxPollPause)
}

// sleep returns when d has passed or ctx has ended, then with its error.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
