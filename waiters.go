package flyregion

// waiter is one wait for what a session has written.
type waiter struct {
	of    int // the replica's number among those that the read waits for
	state sessionState
	after uint64      // only reports that were asked for later count
	woken chan ending // has room for the endings of all waiters of the same read
	index int         // in the heap, -1 when it is not there
}

// ending is how the wait for one replica has ended: with nil when it shows what the wait was for.
type ending struct {
	of  int // the replica's number
	err error
}

// end ends the wait. It must not be in the heap any more.
func (w *waiter) end(err error) { w.woken <- ending{w.of, err} }

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
