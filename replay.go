package flyregion

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"
)

// observation is what a replica's watcher saw.
type observation struct {
	report
	// asked is when the question was sent. A connection that was opened later may lead to a server that crashed in
	// between and came back older: the observation says nothing about it.
	asked uint64
}

var (
	errNotReplayed = errors.New("flyregion: not replayed in time")
	// errClosedPool is what a closed pool returns, this package's and pgxpool's alike.
	errClosedPool = puddle.ErrClosedPool
)

const (
	// eagerPolls may follow one another without a pause, for an idle cluster replays a commit within a few of them, and
	// another one each time that pollTime has passed: so a replica is asked 2,000 times a second at most.
	eagerPolls = 16
	pollTime   = 500 * time.Microsecond
	// eagerTime is how long after it made headway a replica is asked so. A replica that is further behind is asked in
	// pauses of a part of the time that it has already been waited for, so that nobody waits much longer than he must.
	eagerTime    = 2 * time.Millisecond
	pausePart    = 4
	maxPollPause = 5 * time.Millisecond
	// waitForVersion is the first version of PostgreSQL with WAIT FOR LSN, which is told of replay and does not poll for
	// it. It is not a function for a reason that holds for any loop in a function too: that would hold a snapshot,
	// which can hold up the replay that it waits for. See https://www.postgresql.org/docs/19/sql-wait.html.
	waitForVersion = 190000
	// serverWait bounds one WAIT FOR LSN, so that somebody who comes later with a lower position does not wait much
	// longer than for his own.
	serverWait = 10 * time.Millisecond
	// missedTime is how long a wait in vain spares others theirs, unless the replica catches up before.
	missedTime = time.Second
	// watcherIdleTime is how long a watcher's connection is kept after the last wait.
	watcherIdleTime = 30 * time.Second
	// watcherTimeout bounds how long a watcher tries to connect and waits for an answer.
	watcherTimeout = 2 * time.Second
)

// tracker knows how far one replica has replayed, and wakes those who wait for a position. However many wait, one
// watcher asks, on a connection of its own; while nobody waits nothing runs.
type tracker struct {
	conns  *puddle.Pool[*pgconn.PgConn] // of size one: the watcher's
	ctx    context.Context              // ends when the tracker stops
	stop   context.CancelFunc
	latest atomic.Pointer[observation]
	// timeline is the primary's, and doubt is about a standby that may not follow it.
	timeline atomic.Int64
	changed  atomic.Uint64 // when, by this process's clock
	doubt    atomic.Pointer[doubt]
	// missed is a position that somebody waited for in vain, until it is seen to be replayed; else 0. While the replica
	// is that far behind nobody else need wait for it.
	missed   atomic.Uint64
	missedAt atomic.Int64 // when, in nanoseconds since 1970
	looked   atomic.Int64 // when lagging last had somebody look, likewise

	mu       sync.Mutex
	waiters  waiterHeap
	watching bool
	stopped  bool
	idle     *time.Timer
	done     sync.WaitGroup

	// Of the watcher alone: how many polls it may still make without a pause, and as of when.
	eager float64
	paced time.Time
}

// newTracker returns a tracker whose watcher connects with connect. It does no I/O.
func newTracker(connect func(context.Context) (*pgconn.PgConn, error)) *tracker {
	t := &tracker{}
	t.ctx, t.stop = context.WithCancel(context.Background())
	// puddle refuses nothing but a size below one.
	t.conns, _ = puddle.NewPool(&puddle.Config[*pgconn.PgConn]{
		MaxSize: 1,
		Constructor: func(ctx context.Context) (*pgconn.PgConn, error) {
			ctx, cancel := context.WithTimeout(ctx, watcherTimeout)
			defer cancel()
			return connect(ctx)
		},
		Destructor: closeConn,
	})
	return t
}

// closeConn ends a connection without making anybody wait long for its server.
func closeConn(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// waiter is one wait for a position.
type waiter struct {
	need  LSN
	after uint64     // only what was asked later counts
	woken chan error // of capacity one
	index int        // in the heap, -1 when it has left
}

// wait returns once the replica has replayed need, as told by an observation that was asked after a given time. It
// returns errNotReplayed when limit has passed, the error of ctx when that ends, errClosedPool when the pool closes,
// and the watcher's error when the replica cannot be asked.
func (t *tracker) wait(ctx context.Context, need LSN, after uint64, limit time.Duration) error {
	if o := t.latest.Load(); o != nil && o.asked > after && t.shows(o, need) {
		return nil
	}

	w := &waiter{need: need, after: after, woken: make(chan error, 1)}
	if err := t.enter(w); err != nil {
		return err
	}

	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-w.woken:
		return err
	case <-timer.C:
		t.leave(w)
		t.missedAt.Store(time.Now().UnixNano())
		t.missed.Store(uint64(need))
		return errNotReplayed
	case <-ctx.Done():
		t.leave(w)
		return ctx.Err()
	}
}

// replayed returns the position that the replica was at when its watcher asked last, 0 if it never did.
func (t *tracker) replayed() LSN {
	if o := t.latest.Load(); o != nil {
		return o.report.replayed
	}
	return 0
}

// shows reports whether a server that said o shows all that is before need in the log that it replays.
func (t *tracker) shows(o *observation, need LSN) bool {
	return !o.recovering || o.replayed >= need && !t.doubts(&o.report)
}

// doubt is that a standby may have replayed a log which is not the primary's: when a standby is promoted that was behind,
// another one may hold what the new primary never had, at positions that the new primary uses again. A promotion begins a
// new timeline, so a standby that is on the primary's has no such past. One that is not may not have had a restartpoint
// since, or cannot follow: its positions count when it has replayed more than it had received.
type doubt struct {
	server serverID // the standby that above is about
	above  LSN
}

// doubts reports whether a standby's position is in doubt.
func (t *tracker) doubts(r *report) bool {
	if int64(r.timeline) >= t.timeline.Load() {
		return false
	}
	d := t.doubt.Load()
	return d == nil || d.server != r.server || r.replayed <= d.above
}

// setTimeline takes note of the primary's timeline.
func (t *tracker) setTimeline(timeline int) {
	if t.timeline.Swap(int64(timeline)) != int64(timeline) {
		t.changed.Store(clock.Add(1))
		t.doubt.Store(nil)
	}
}

// consider remembers what a standby in doubt had received when it was asked for the first time since the primary changed.
func (t *tracker) consider(o *observation) {
	if !o.recovering || int64(o.timeline) >= t.timeline.Load() || o.asked <= t.changed.Load() {
		return
	}
	if d := t.doubt.Load(); d == nil || d.server != o.server {
		t.doubt.CompareAndSwap(d, &doubt{server: o.server, above: o.received})
	}
}

func (t *tracker) enter(w *waiter) error {
	t.mu.Lock()
	defer t.mu.Unlock()

	if t.stopped {
		return errClosedPool
	}
	heap.Push(&t.waiters, w)
	if !t.watching {
		t.watching = true
		if t.idle != nil {
			t.idle.Stop()
		}
		t.done.Go(t.watch)
	}
	return nil
}

// background runs f as long as the tracker does.
func (t *tracker) background(f func(context.Context)) {
	t.mu.Lock()
	defer t.mu.Unlock()

	if !t.stopped {
		t.done.Go(func() { f(t.ctx) })
	}
}

func (t *tracker) leave(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()

	if w.index >= 0 {
		heap.Remove(&t.waiters, w.index)
	}
}

// watch asks the replica as long as somebody waits.
func (t *tracker) watch() {
	headway := time.Now()
	paced := false
	for {
		need, anybody := t.lowest()
		if !anybody {
			return
		}
		if !paced && !t.serverWaits(need) && t.pace(time.Since(headway)) {
			paced = true
			continue // they may have left meanwhile
		}
		paced = false
		o, err := t.observe(t.ctx, need)
		if err != nil {
			t.wakeAll(err)
			continue
		}
		if t.wake(o) {
			headway = time.Now()
		}
	}
}

// serverWaits reports whether the server answers a question for need only when something has happened.
func (t *tracker) serverWaits(need LSN) bool {
	last := t.latest.Load()
	return last != nil && last.recovering && last.version >= waitForVersion && last.replayed < need
}

// pace lets as much time pass as there must be before the next question, when the replica has made no headway for a while,
// and reports whether it was any. Only the watcher calls it.
func (t *tracker) pace(waited time.Duration) bool {
	now := time.Now()
	t.eager = min(t.eager+float64(now.Sub(t.paced))/float64(pollTime), eagerPolls) - 1
	t.paced = now
	if t.eager >= 0 && waited < eagerTime {
		return false
	}
	select {
	case <-time.After(min(max(waited/pausePart, pollTime), maxPollPause)):
	case <-t.ctx.Done():
	}
	return true
}

// lowest returns the lowest position that somebody waits for. If nobody waits the watcher counts as stopped.
func (t *tracker) lowest() (need LSN, anybody bool) {
	t.mu.Lock()
	defer t.mu.Unlock()

	if len(t.waiters) > 0 && !t.stopped {
		return t.waiters[0].need, true
	}
	t.watching = false
	t.rest()
	return 0, false
}

// disconnect closes the watcher's connection if it is not in use.
func (t *tracker) disconnect() {
	for _, res := range t.conns.AcquireAllIdle() {
		res.Destroy()
	}
}

// observe asks the replica once and remembers the answer. If the replica can, it answers when it has replayed need or
// when serverWait has passed; a zero need is answered at once.
func (t *tracker) observe(ctx context.Context, need LSN) (o *observation, err error) {
	sql := ""
	if t.serverWaits(need) {
		sql = fmt.Sprintf("wait for lsn '%s' with (timeout '%dms', no_throw)", need, serverWait.Milliseconds())
	}
	// A connection may have died without a word, and nobody else tells.
	ctx, cancel := context.WithTimeout(ctx, watcherTimeout)
	defer cancel()
	err = t.use(ctx, func(conn *pgconn.PgConn) error {
		o = &observation{asked: clock.Add(1)}
		o.report, err = askPrepared(ctx, conn, sql)
		return err
	})
	if err != nil {
		return nil, err
	}
	t.consider(o)
	t.latest.Store(o)
	if missed := t.missed.Load(); missed > 0 && t.shows(o, LSN(missed)) {
		t.missed.CompareAndSwap(missed, 0)
	}
	return o, nil
}

// lagging reports whether the replica is known to be further behind than a wait can make up for. It has somebody look in
// the background whether it still is, so that reads come home.
func (t *tracker) lagging() bool {
	if t.missed.Load() == 0 {
		return false
	}
	now := time.Now().UnixNano()
	if now-t.missedAt.Load() > int64(missedTime) {
		// A failover may have lost the position, and then it says nothing about the replica.
		t.missed.Store(0)
		return false
	}
	if last := t.looked.Load(); now-last > int64(maxPollPause) && t.looked.CompareAndSwap(last, now) {
		t.background(func(ctx context.Context) { _, _ = t.observe(ctx, 0) })
	}
	return true
}

// use calls f with the watcher's connection, which is made if there is none and closed if f fails.
func (t *tracker) use(ctx context.Context, f func(*pgconn.PgConn) error) error {
	res, err := t.conns.Acquire(ctx)
	if err != nil {
		return err
	}
	if err := f(res.Value()); err != nil {
		res.Destroy()
		return err
	}
	res.Release()

	t.mu.Lock()
	defer t.mu.Unlock()
	t.rest()
	return nil
}

// rest lets the watcher's connection be closed in a while, unless somebody waits. mu must be held.
func (t *tracker) rest() {
	switch {
	case t.watching || t.stopped:
	case t.idle == nil:
		t.idle = time.AfterFunc(watcherIdleTime, t.disconnect)
	default:
		t.idle.Reset(watcherIdleTime)
	}
}

// wake tells those whose position o shows, and reports whether there were any.
func (t *tracker) wake(o *observation) (any bool) {
	t.mu.Lock()
	defer t.mu.Unlock()

	// The heap is ordered by position, and who came after the question was sent waits for the next one.
	var early []*waiter
	for len(t.waiters) > 0 && t.shows(o, t.waiters[0].need) {
		w := heap.Pop(&t.waiters).(*waiter)
		if o.asked <= w.after {
			early = append(early, w)
			continue
		}
		w.woken <- nil
		any = true
	}
	for _, w := range early {
		heap.Push(&t.waiters, w)
	}
	return any
}

func (t *tracker) wakeAll(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()

	for len(t.waiters) > 0 {
		heap.Pop(&t.waiters).(*waiter).woken <- err
	}
}

// close ends every wait and closes the watcher's connection. When it returns nothing of the tracker runs.
func (t *tracker) close() {
	t.mu.Lock()
	t.stopped = true
	if t.idle != nil {
		t.idle.Stop()
	}
	t.mu.Unlock()

	t.stop()
	t.wakeAll(errClosedPool)
	t.done.Wait()
	t.conns.Close()
}

// waiterHeap is a container/heap of waiters, lowest position first.
type waiterHeap []*waiter

func (h waiterHeap) Len() int           { return len(h) }
func (h waiterHeap) Less(i, j int) bool { return h[i].need < h[j].need }

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
