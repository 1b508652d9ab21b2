package flyregion

import (
	"sync"
	"sync/atomic"
	"time"
)

// health remembers that a replica could not be reached, so that reads do not wait for it one after the other.
type health struct {
	retryAt atomic.Int64 // when the next probe is due, in nanoseconds since 1970; 0 while the replica counts as reachable

	mu    sync.Mutex    // guards pause, and is held by fail and recover to set both
	pause time.Duration // until the next probe; it doubles with each failure
}

const (
	minProbePause = 100 * time.Millisecond
	maxProbePause = 3 * time.Second
)

// good reports whether the replica counts as reachable.
func (h *health) good() bool { return h.retryAt.Load() == 0 }

// doubt has the replica count as out of reach until a probe has reached it, which the caller begins.
func (h *health) doubt() { h.retryAt.Store(time.Now().Add(maxProbePause).UnixNano()) }

// fail notes that the replica could not be reached.
func (h *health) fail() {
	h.mu.Lock()
	defer h.mu.Unlock()

	h.pause = min(max(h.pause*2, minProbePause), maxProbePause)
	h.retryAt.Store(time.Now().Add(h.pause).UnixNano())
}

// recover notes that the replica could be reached.
func (h *health) recover() {
	if h.retryAt.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()

	h.pause = 0
	h.retryAt.Store(0)
}

// claimProbe reports whether a probe is due. Of concurrent callers it tells one.
func (h *health) claimProbe() bool {
	at := h.retryAt.Load()
	now := time.Now()
	return at != 0 && now.UnixNano() >= at && h.retryAt.CompareAndSwap(at, now.Add(maxProbePause).UnixNano())
}
