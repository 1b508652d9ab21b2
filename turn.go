package flyregion

import (
	"sync/atomic"
	"time"
)

// turn lets one caller at a time do something, and then nobody until a pause has passed. The zero value is free.
type turn struct {
	taken   atomic.Bool
	takenAt atomic.Int64 // the last time, since the process started, in nanoseconds; 0 if it was never taken
}

// take reports whether the caller may do it. Then the caller must call end.
func (t *turn) take(pause time.Duration) bool {
	if t.taken.Load() {
		return false
	}
	now, last := uptime(), t.takenAt.Load()
	if last > 0 && now-time.Duration(last) < pause || !t.taken.CompareAndSwap(false, true) {
		return false
	}
	if !t.takenAt.CompareAndSwap(last, int64(now)) { // another caller took it, and has ended already
		t.end()
		return false
	}
	return true
}

// end lets the next caller take it.
func (t *turn) end() { t.taken.Store(false) }
