package flyregion

import (
	"context"
	"sync"
	"sync/atomic"
)

// contact knows whether the primary can be reached. The zero value does not know.
type contact struct {
	answeredAt atomic.Int64 // when it has answered last, since the process started, in nanoseconds; 0 if that is in doubt
	health     health

	mu      sync.Mutex // guards the following fields, and is held to add to done
	attempt *contactAttempt
	closed  bool
	ctx     context.Context // ends with the pool; nil until the first attempt
	stop    context.CancelFunc
	done    sync.WaitGroup
}

// contactAttempt is an attempt to connect to the primary, for all reads that wait for it.
type contactAttempt struct {
	done chan struct{}
	err  error // once done is closed
}

// answered notes that the primary has just answered.
func (c *contact) answered() {
	c.answeredAt.Store(int64(uptime()))
	c.health.recover()
}

// doubt notes that a connection was lost.
func (c *contact) doubt() { c.answeredAt.Store(0) }

// close ends what tries to connect.
func (c *contact) close() {
	c.mu.Lock()
	c.closed = true
	stop := c.stop
	c.mu.Unlock()

	if stop != nil {
		stop()
	}
	c.done.Wait()
}
