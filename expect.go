package flyregion

import (
	"sync"
	"sync/atomic"
	"time"
)

// With a MinReplicaWait of 0 a read goes to the server that is expected to answer sooner. These are the estimates that
// decide this.

// leastTimes is how many answers a leastTime is the shortest of, at least.
const leastTimes = 8

// started is when the process started. Times since then do not jump, as wall time may.
var started = time.Now()

// uptime returns how long the process has run.
func uptime() time.Duration { return time.Since(started) }

// replayDelay estimates how long after a write's return a replica shows it to a read that waits. Only waits measure it: those
// of reads and those of the tracker's looks. The zero value expects no delay.
type replayDelay struct{ estimate atomic.Int64 }

// expected returns the estimate, 0 if there is none yet.
func (d *replayDelay) expected() time.Duration { return time.Duration(d.estimate.Load()) }

// remaining returns how long a read is expected to wait until a replica shows what its session has written: 0 or less if the
// replica is expected to show it already, or if it is not known when it was written.
func (d *replayDelay) remaining(state sessionState) time.Duration {
	estimate := time.Duration(d.estimate.Load())
	if estimate == 0 || state.learned == 0 {
		return 0
	}
	return estimate - (uptime() - state.learned)
}

// shown takes account of a wait that has ended because the replica shows what state covers. began is when it began, since
// the process started. The estimate falls at once, so that reads return to a replica that has become fast. It rises slowly,
// as a wait also takes long while this process is busy.
func (d *replayDelay) shown(state sessionState, began time.Duration) {
	now, old := uptime(), time.Duration(d.estimate.Load())
	took := now - state.learned
	switch {
	case old == 0:
		took = now - began // at least
	case state.learned == 0 || began-state.learned > old:
		return // the replica may have shown it long before the wait began
	case took > old:
		took = old + (took-old)/4
	}
	d.estimate.Store(int64(took))
}

// notShown takes account of a wait in vain: the replica does not show yet what state covers. How long it will take is not
// known. The estimate is then twice the time so far, so that reads do not wait in vain one after the other.
func (d *replayDelay) notShown(state sessionState) {
	if state.learned == 0 {
		return
	}
	if guess := 2 * int64(uptime()-state.learned); guess > d.estimate.Load() {
		d.estimate.Store(guess)
	}
}

// leastTime is how soon a server answers: the shortest time of the last few answers. The round trip to the primary that is
// measured elsewhere never grows while connections live, as a write may take any time. This one grows when the server's
// distance does.
type leastTime struct {
	least atomic.Int64 // in nanoseconds, 0 if too few answers were measured

	mu       sync.Mutex    // guards the following fields
	count    int           // of the answers in current
	current  time.Duration // the shortest of the latest answers, leastTimes at most
	previous time.Duration // the shortest of the leastTimes answers before; 0 if there were fewer
}

// measured takes account of an answer.
func (a *leastTime) measured(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()

	if a.count == leastTimes {
		a.previous, a.count = a.current, 0
	}
	if a.count == 0 || d < a.current {
		a.current = d
	}
	a.count++
	a.least.Store(int64(min(a.current, a.previous)))
}

// shortest returns the time that answers take at least, 0 if too few were measured.
func (a *leastTime) shortest() time.Duration { return time.Duration(a.least.Load()) }

// movingAverage is an average of durations in which the latest ones count most.
type movingAverage struct{ nanoseconds atomic.Int64 }

// add takes account of one more duration.
func (m *movingAverage) add(d time.Duration) {
	for {
		old := m.nanoseconds.Load()
		next := int64(d)
		if old != 0 {
			next = old + (next-old)/8
		}
		if m.nanoseconds.CompareAndSwap(old, max(next, 1)) {
			return
		}
	}
}

// average returns the average, 0 if there is none.
func (m *movingAverage) average() time.Duration { return time.Duration(m.nanoseconds.Load()) }
