package flyregion

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// flushes knows the primary's flush positions. The zero value knows none.
type flushes struct {
	known atomic.Pointer[knownFlushes]

	mu     sync.Mutex // guards the following fields, and is held to add to done
	next   *flushAsk  // has not been sent yet; nil if nobody waits for one
	asking int        // how many goroutines ask
	closed bool
	ctx    context.Context // ends with the pool; nil until somebody asks
	stop   context.CancelFunc
	done   sync.WaitGroup
}

// knownFlushes are positions of one primary's log.
type knownFlushes struct {
	origin serverID
	marks  marks
}

// flushAsk is a question that any number of reads wait for.
type flushAsk struct {
	done  chan struct{}
	state sessionState // the answer, once done is closed
	err   error
}

// take returns the question that is to be sent, nil if another goroutine has sent it.
func (f *flushes) take() *flushAsk {
	f.mu.Lock()
	defer f.mu.Unlock()

	a := f.next
	f.next = nil
	return a
}

// ends reports whether nobody waits. If so the calling goroutine must end.
func (f *flushes) ends() bool {
	f.mu.Lock()
	defer f.mu.Unlock()

	if f.next != nil {
		return false
	}
	f.asking--
	return true
}

// note remembers a position that was asked for at a time.
func (f *flushes) note(p position, at time.Time) {
	for {
		old := f.known.Load()
		next := &knownFlushes{origin: p.origin}
		if old != nil && old.origin == p.origin {
			next.marks = old.marks
			if n := len(old.marks); n > 0 && at.Before(old.marks[n-1].at) {
				return // another question has told a later one
			}
		}
		next.marks = next.marks.add(mark{p.flush, at})
		if f.known.CompareAndSwap(old, next) {
			return
		}
	}
}

// forget has the primary asked anew.
func (f *flushes) forget() { f.known.Store(nil) }

// close ends what asks. Later questions fail.
func (f *flushes) close() {
	f.mu.Lock()
	f.closed = true
	stop := f.stop
	f.mu.Unlock()

	if stop != nil {
		stop()
	}
	f.done.Wait()
}
