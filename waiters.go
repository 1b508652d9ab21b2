package flyregion

// waiter is one wait for what a session has written.
type waiter struct {
	state sessionState
	after uint64     // only reports that were asked for later count
	woken chan error // of capacity one
	index int        // in the heap, -1 when it is not there
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
