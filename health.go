package flyregion

import (
	"sync"
	"sync/atomic"
	"time"
)

// health remembers that a replica could not be reached, so that reads do not wait for it one after the other.
type health struct {
	retryAt atomic.Int64 // when the next probe is due, in nanoseconds since 1970; 0 while the replica counts as reachable

	mu    sync.Mutex    // guards the following fields, and is held to set retryAt but by claimProbe
	pause time.Duration // until the next probe; it doubles with each failure
	since time.Time     // when the replica was first found out of reach, zero while it counts as reachable
}

const (
	minProbePause = 100 * time.Millisecond
	maxProbePause = 3 * time.Second
)

// good reports whether the replica counts as reachable.
func (h *health) good() bool { return h.retryAt.Load() == 0 }

// doubt has the replica count as out of reach until a probe has reached it, which the caller begins.
func (h *health) doubt() {
	h.mu.Lock()
	defer h.mu.Unlock()

	h.delay(maxProbePause)
}

// delay sets when the next probe is due. mu must be held.
func (h *health) delay(pause time.Duration) {
	now := time.Now()
	if h.since.IsZero() {
		h.since = now
	}
	h.retryAt.Store(now.Add(pause).UnixNano())
}

// unreachableSince returns when the replica was first found out of reach, zero while it counts as reachable.
func (h *health) unreachableSince() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()

	return h.since
}

// fail notes that the replica could not be reached.
func (h *health) fail() {
	h.mu.Lock()
	defer h.mu.Unlock()

	h.pause = min(max(h.pause*2, minProbePause), maxProbePause)
	h.delay(h.pause)
}

// recover notes that the replica could be reached.
func (h *health) recover() {
	if h.retryAt.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()

	h.pause, h.since = 0, time.Time{}
	h.retryAt.Store(0)
}

// claimProbe reports whether a probe is due. Of concurrent callers it tells one.
func (h *health) claimProbe() bool {
	at := h.retryAt.Load()
	now := time.Now()
	return at != 0 && now.UnixNano() >= at && h.retryAt.CompareAndSwap(at, now.Add(maxProbePause).UnixNano())
}
