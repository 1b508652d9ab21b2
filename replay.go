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

var (
	errNotReplayed = errors.New("flyregion: not replayed in time")
	// errOutdated ends a wait for a position that no longer tells what a server shows: the session needs a later one.
	errOutdated = errors.New("flyregion: the position is of no use any more")
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

// tracker knows how far one region's replica has replayed, and wakes those who wait for a position. However many wait,
// one watcher asks, on a connection of its own; while nobody waits nothing runs.
type tracker struct {
	trust
	conns     *puddle.Pool[*pgconn.PgConn] // of size one: the watcher's
	ctx       context.Context              // ends when the tracker stops
	stop      context.CancelFunc
	latest    atomic.Pointer[report] // what a server of the region said last
	missed    atomic.Pointer[miss]   // nil when nobody has waited in vain lately
	checking  atomic.Bool            // somebody looks whether what was missed is shown
	checkedAt atomic.Int64           // when somebody last began to, in nanoseconds since 1970

	reconnects reconnectLimiter

	// mu guards the following fields, and that done is not added to once the tracker has stopped.
	mu       sync.Mutex
	waiters  waiterHeap
	watching bool
	stopped  bool
	idle     *time.Timer // closes the watcher's connection

	done sync.WaitGroup

	// Of the watcher alone: how many polls it may still make without a pause, and as of when.
	eager float64
	paced time.Time
}

// miss is a wait in vain. While the replica does not show what was waited for nobody else need wait for it.
type miss struct {
	state sessionState
	at    time.Time
}

// newTracker returns a tracker whose watcher connects with connect, and which calls renew when there is a newer primary
// than the one that primary holds. It does no I/O.
func newTracker(primary *atomic.Pointer[identity], renew func(), connect func(context.Context) (*pgconn.PgConn, error)) *tracker {
	t := &tracker{trust: trust{primary: primary}, reconnects: reconnectLimiter{reconnect: renew}}
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

// wait returns once the replica shows what state covers, as told by a report that was asked for after a given time. It
// returns errNotReplayed when limit has passed, errOutdated when another position has to be asked for, the error of ctx
// when that ends, errClosedPool when the pool closes, and the watcher's error when the replica cannot be asked.
func (t *tracker) wait(ctx context.Context, state sessionState, after uint64, limit time.Duration) error {
	if done, err := t.checkLatest(state, after); done {
		return err
	}

	w := &waiter{state: state, after: after, woken: make(chan error, 1)}
	if err := t.add(w); err != nil {
		return err
	}

	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-w.woken:
		return err
	case <-timer.C:
		t.remove(w)
		// An answer may have arrived together with the timer, and on any connection.
		select {
		case err := <-w.woken:
			return err
		default:
		}
		if done, err := t.checkLatest(state, after); done {
			return err
		}
		return errNotReplayed
	case <-ctx.Done():
		t.remove(w)
		return ctx.Err()
	}
}

// checkLatest reports whether what is known, of after a given time, is enough to end a wait, and how.
func (t *tracker) checkLatest(state sessionState, after uint64) (done bool, err error) {
	o := t.latest.Load()
	if o == nil || o.asked <= after {
		return false, nil
	}
	switch t.verdict(o, state) {
	case caughtUp:
		return true, nil
	case outdated:
		return true, errOutdated
	}
	return false, nil
}

// replayed returns the position that the replica was at when it was asked last, 0 if it never was.
func (t *tracker) replayed() LSN {
	if o := t.latest.Load(); o != nil {
		return o.position
	}
	return 0
}

// note takes in what a server of the region has said.
func (t *tracker) note(o *report) {
	for {
		old := t.latest.Load()
		if old != nil && old.asked > o.asked {
			break
		}
		if t.latest.CompareAndSwap(old, o) {
			break
		}
	}
	t.measure(o)
	t.recheckMiss()
	if t.followsNewer(o) && t.reconnects.allow(t.primary.Load()) {
		t.reconnects.reconnect()
	}
}

// miss notes a wait in vain.
func (t *tracker) miss(state sessionState) {
	t.missed.Store(&miss{state: state, at: time.Now()})
	// The answer may have come meanwhile.
	t.recheckMiss()
}

// recheckMiss forgets what was missed if it is shown.
func (t *tracker) recheckMiss() {
	m, o := t.missed.Load(), t.latest.Load()
	if m != nil && o != nil && t.verdict(o, m.state) == caughtUp {
		t.missed.CompareAndSwap(m, nil)
	}
}

func (t *tracker) add(w *waiter) error {
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

// background runs f as long as the tracker does. It reports false if the tracker has stopped.
func (t *tracker) background(f func(context.Context)) bool {
	t.mu.Lock()
	defer t.mu.Unlock()

	if !t.stopped {
		t.done.Go(func() { f(t.ctx) })
	}
	return !t.stopped
}

func (t *tracker) remove(w *waiter) {
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
	return last != nil && last.recovering && last.version >= waitForVersion && last.position < need
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

// sleep returns when d has passed or ctx has ended, then with its error.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lowest returns the lowest position that somebody waits for. If nobody waits the watcher counts as stopped.
func (t *tracker) lowest() (need LSN, anybody bool) {
	t.mu.Lock()
	defer t.mu.Unlock()

	if len(t.waiters) > 0 && !t.stopped {
		return t.waiters[0].state.position, true
	}
	t.watching = false
	t.scheduleDisconnect()
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
func (t *tracker) observe(ctx context.Context, need LSN) (*report, error) {
	sql := ""
	if t.serverWaits(need) {
		sql = fmt.Sprintf("wait for lsn '%s' with (timeout '%dms', no_throw)", need, serverWait.Milliseconds())
	}
	// A connection may have died without a word, and nobody else tells.
	ctx, cancel := context.WithTimeout(ctx, watcherTimeout)
	defer cancel()
	var o report
	err := t.use(ctx, func(conn *pgconn.PgConn) (err error) {
		o, err = askPrepared(ctx, conn, sql)
		return err
	})
	if err != nil {
		return nil, err
	}
	t.note(&o)
	return &o, nil
}

// lagging reports whether the replica is known to be further behind than a wait can make up for. It has somebody look in
// the background whether it still is, so that reads come home.
func (t *tracker) lagging() bool {
	m := t.missed.Load()
	if m == nil {
		return false
	}
	now := time.Now()
	if primary := t.primary.Load(); now.Sub(m.at) > missedTime || primary == nil || primary.server != m.state.origin {
		// A failover may have lost the position, and then it says nothing about the replica.
		t.missed.CompareAndSwap(m, nil)
		return false
	}
	t.checkInBackground(now)
	return true
}

// checkInBackground has somebody ask the replica in the background, unless somebody does already or has just done so.
func (t *tracker) checkInBackground(now time.Time) {
	if now.UnixNano()-t.checkedAt.Load() <= int64(maxPollPause) || !t.checking.CompareAndSwap(false, true) {
		return
	}
	t.checkedAt.Store(now.UnixNano())
	if !t.background(func(ctx context.Context) {
		defer t.checking.Store(false)
		_, _ = t.observe(ctx, 0)
	}) {
		t.checking.Store(false)
	}
}

// answers reports whether the replica says anything within a few seconds. The watcher's connection may be dead and the
// replica alive, so that it takes a new one to be sure.
func (t *tracker) answers(ctx context.Context) bool {
	before := clock.Add(1)
	for _, limit := range []time.Duration{watcherTimeout / 2, watcherTimeout} {
		limited, cancel := context.WithTimeout(ctx, limit)
		_, err := t.observe(limited, 0)
		cancel()
		if o := t.latest.Load(); err == nil || o != nil && o.asked > before {
			return true
		}
	}
	return false
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
	t.scheduleDisconnect()
	return nil
}

// scheduleDisconnect lets the watcher's connection be closed in a while, unless somebody waits. mu must be held.
func (t *tracker) scheduleDisconnect() {
	switch {
	case t.watching || t.stopped:
	case t.idle == nil:
		t.idle = time.AfterFunc(watcherIdleTime, t.disconnect)
	default:
		t.idle.Reset(watcherIdleTime)
	}
}

// wake ends the waits that o decides, and reports whether there were any.
func (t *tracker) wake(o *report) (any bool) {
	t.mu.Lock()
	defer t.mu.Unlock()

	// The heap is ordered by position. Who came after the question was sent waits for the next one, and who waits for a
	// server that is not trusted waits on.
	primary := t.primary.Load()
	if primary == nil || o.recovering && !sameLog(o, primary) {
		return false
	}
	var remaining []*waiter
	for len(t.waiters) > 0 && (!o.recovering || t.waiters[0].state.position <= o.position) {
		w := heap.Pop(&t.waiters).(*waiter)
		v := behind
		if o.asked > w.after {
			v = t.verdict(o, w.state)
		}
		switch {
		case v == caughtUp:
			w.woken <- nil
			any = true
		case v == outdated, primary.server != w.state.origin:
			w.woken <- errOutdated
			any = true
		default:
			remaining = append(remaining, w)
		}
	}
	for _, w := range remaining {
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
