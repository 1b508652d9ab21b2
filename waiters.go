package flyregion

import (
	"context"
	"errors"
	"slices"
	"time"
)

// waiter is one wait for what a session has written.
type waiter struct {
	tracker *tracker
	state   sessionState
	after   uint64      // only reports that were asked for later count
	woken   chan ending // has room for the endings of all waiters of the same read
	index   int         // in the heap, -1 when it is not there
}

// ending is how the wait for one replica has ended: with nil when it shows what the wait was for.
type ending struct {
	tracker *tracker
	err     error
}

// end ends the wait. It must not be in the heap any more.
func (w *waiter) end(err error) { w.woken <- ending{w.tracker, err} }

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

// waitTrackers waits until one of several replicas has replayed what state covers, and returns its tracker. Of the first one only
// reports count that were asked for after a time of clock. The errors are those of tracker.wait. That of a replica which
// cannot be asked, or for which the primary has to be asked for another position, is returned if the others have ended too. errClosedPool is returned only if
// all are closed.
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
		for _, w := range waiters {
			if w != nil {
				w.tracker.remove(w)
			}
		}
	}()
	for i, t := range trackers {
		w := &waiter{tracker: t, state: state, woken: woken, index: -1}
		if i == 0 {
			w.after = after
		}
		if err := t.add(w); err != nil {
			woken <- ending{t, err}
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
				end.tracker.delay.shown(state, began)
				return end.tracker, nil
			}
			if failed == nil || errors.Is(failed, errClosedPool) || errors.Is(end.err, errOutdated) {
				failed = end.err
			}
			left--
		case <-timer.C:
			// An answer may have arrived at the same time as the timer, and on any connection to a replica.
			for range len(woken) {
				if end := <-woken; end.err == nil {
					return end.tracker, nil
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

// waiterHeap is a container/heap of waiters, lowest position first.
type waiterHeap []*waiter

func (h waiterHeap) Len() int           { return len(h) }
func (h waiterHeap) Less(i, j int) bool { return h[i].state.position < h[j].state.position }

func (h waiterHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *waiterHeap) Push(x any) {
	w := x.(*waiter)
	w.index = len(*h)
	*h = append(*h, w)
}

func (h *waiterHeap) Pop() any {
	old := *h
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	w.index = -1
	return w
}
