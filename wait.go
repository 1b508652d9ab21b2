package flyregion

import (
	"context"
	"errors"
	"slices"
	"time"
)

// wait returns nil when the replica has replayed what state covers, by a report that was asked for after a time of clock.
// It returns errNotReplayed when limit has passed, errOutdated when the primary has to be asked for another position, the
// error of ctx when that ends, errClosedPool when the pool closes, and the watcher's error when the replica cannot be
// asked.
func (t *tracker) wait(ctx context.Context, state sessionState, after uint64, limit time.Duration) error {
	_, err := waitTrackers(ctx, []*tracker{t}, state, after, limit)
	return err
}

// waitTrackers waits until one of several replicas has replayed what state covers, and returns its tracker. Of the first one only
// reports count that were asked for after a time of clock. The errors are those of tracker.wait. That of a replica which
// cannot be asked, or for which the primary has to be asked for another position, is returned if the others have ended too.
// errClosedPool is returned only if all are closed.
func waitTrackers(ctx context.Context, trackers []*tracker, state sessionState, after uint64, limit time.Duration) (*tracker, error) {
	latest := func() (shows *tracker, err error) {
		for i, t := range trackers {
			since := after
			if i > 0 {
				since = 0
			}
			if done, ended := t.checkLatest(state, since); done && ended == nil {
				return t, nil
			} else if done {
				err = ended
			}
		}
		return nil, err
	}
	if shows, err := latest(); shows != nil || err != nil && len(trackers) == 1 {
		return shows, err
	}

	began := uptime()
	woken := make(chan ending, len(trackers))
	waiters := make([]*waiter, len(trackers))
	defer func() {
		for i, w := range waiters {
			if w != nil {
				trackers[i].remove(w)
			}
		}
	}()
	for i, t := range trackers {
		w := &waiter{of: i, state: state, woken: woken, index: -1}
		if i == 0 {
			w.after = after
		}
		if err := t.add(w); err != nil {
			w.end(err)
			continue
		}
		waiters[i] = w
	}

	timer := time.NewTimer(limit)
	defer timer.Stop()
	var failed error
	for left := len(trackers); left > 0; {
		select {
		case end := <-woken:
			if end.err == nil {
				trackers[end.of].delay.shown(state, began)
				return trackers[end.of], nil
			}
			if failed == nil || errors.Is(failed, errClosedPool) || errors.Is(end.err, errOutdated) {
				failed = end.err
			}
			left--
		case <-timer.C:
			// An answer may have arrived at the same time as the timer, and on any connection to a replica.
			for range len(woken) {
				if end := <-woken; end.err == nil {
					return trackers[end.of], nil
				}
			}
			if shows, err := latest(); shows != nil || err != nil {
				return shows, err
			}
			return nil, errNotReplayed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, failed
}

// waitAny waits until one of several replicas has replayed what state covers, and returns it, or the first one if none has.
// The rest is as for waitTrackers.
func waitAny(ctx context.Context, replicas []*replica, state sessionState, after uint64, limit time.Duration) (*replica, error) {
	trackers := make([]*tracker, len(replicas))
	for i, r := range replicas {
		trackers[i] = r.tracker
	}
	shows, err := waitTrackers(ctx, trackers, state, after, limit)
	if err != nil {
		return replicas[0], err
	}
	return replicas[slices.Index(trackers, shows)], nil
}

// waitAll waits until all replicas that reads go to, and that can be reached, have replayed what state covers. Reports that
// were asked for before a time of clock do not count. The errors are those of tracker.wait. That of a replica which cannot be
// asked is returned only if none can.
func (rs *replicas) waitAll(ctx context.Context, state sessionState, after uint64, limit time.Duration) error {
	var waited []*replica
	var result error
	shown := false
	for {
		// A lookup may have found others in the meantime.
		next := slices.DeleteFunc(rs.readFrom(), func(r *replica) bool { return slices.Contains(waited, r) })
		if len(next) == 0 {
			break
		}
		waited = append(waited, next...)
		ended := make(chan error, len(next))
		for _, r := range next[1:] {
			go func() { ended <- r.tracker.wait(ctx, state, after, limit) }()
		}
		ended <- next[0].tracker.wait(ctx, state, after, limit)
		for range next {
			err := <-ended
			switch {
			case err == nil:
				shown = true
			case result == nil || errors.Is(err, errNotReplayed) || errors.Is(err, errOutdated):
				result = err
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if shown && !errors.Is(result, errNotReplayed) && !errors.Is(result, errOutdated) {
		return nil
	}
	return result
}

// lookInBackground waits for what state covers in place of a read that does not, so that the delay is measured, unless that
// is under way or has just been done.
func (t *tracker) lookInBackground(state sessionState) {
	if t.looking.take(lookPause) {
		t.inTurn(&t.looking, func(ctx context.Context) {
			if errors.Is(t.wait(ctx, state, 0, lookTime), errNotReplayed) {
				t.miss(state)
			}
		})
	}
}
