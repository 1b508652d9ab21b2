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
	// errOutdated ends a wait for a position that no standby can be checked against any more. The primary has to be asked
	// for the session's position again.
	errOutdated = errors.New("flyregion: the position is of no use any more")
	// errSooner is what a read gets in place of a connection to a replica if the primary is expected to answer sooner.
	errSooner = errors.New("flyregion: the primary is expected to answer sooner")
	// errClosedPool is what a closed pool returns, this package's and pgxpool's alike.
	errClosedPool = puddle.ErrClosedPool
)

const (
	// waitForVersion is the first version of PostgreSQL with WAIT FOR LSN, which waits in the server without polling. A
	// loop in a function is no substitute: it holds a snapshot, which can delay the replay that it waits for. See
	// https://www.postgresql.org/docs/19/sql-wait.html.
	waitForVersion = 190000
	// serverWait bounds one WAIT FOR LSN, so that a later read with a lower position does not wait much longer than for
	// its own.
	serverWait = 10 * time.Millisecond
	// missedTime is how long other reads do not wait after a wait in vain, unless the replica catches up before.
	missedTime = time.Second
	// lookPause is the time between two looks at least, and lookTime is how long one takes at most.
	lookPause = 10 * time.Millisecond
	lookTime  = 100 * time.Millisecond
	// watcherIdleTime is how long a watcher's connection is kept after the last wait.
	watcherIdleTime = 30 * time.Second
	// watcherTimeout bounds how long a watcher tries to connect and waits for an answer.
	watcherTimeout = 2 * time.Second
	// answerTimeout bounds how long a replica that sends nothing is waited for on the connection that there is.
	answerTimeout = 500 * time.Millisecond
)

// tracker follows how far one replica has replayed, and wakes the reads that wait for a position. One goroutine,
// the watcher, asks the replica for all of them, on a connection of its own. It runs only while a read waits.
type tracker struct {
	trust
	region    string
	conns     *puddle.Pool[*pgconn.PgConn] // of size one: the watcher's
	ctx       context.Context              // ends when the tracker stops
	stop      context.CancelFunc
	latest    atomic.Pointer[report] // the report that was asked for last, of any server that the replica's address has led to
	streamed  atomic.Pointer[report] // likewise, of a server that streamed: only such a report proves anything
	missed    atomic.Pointer[miss]   // the latest wait in vain, nil if there was none lately
	delay     replayDelay
	roundTrip movingAverage // of questions for a report
	fastest   leastTime     // likewise
	staleness staleness
	checking  turn // to ask the replica whether it is still lagging
	looking   turn // of lookInBackground

	reconnects reconnectLimiter

	// mu guards the following fields and the waiters' index. It is also held to add to done, which must not happen once
	// stopped is true.
	mu       sync.Mutex
	waiters  waiterHeap
	watching bool        // the watcher runs
	refusing bool        // nobody may wait any more
	stopped  bool        // close was called
	idle     *time.Timer // closes the watcher's connection; nil until that is first scheduled

	done sync.WaitGroup // the goroutines of the tracker

	pacer pacer // only the watcher uses it
}

// miss is a wait in vain. Other reads do not wait for the replica until it has replayed what this one waited for.
type miss struct {
	state sessionState
	at    time.Time
}

// newTracker returns a tracker of a replica in a region whose watcher connects with connect, and which calls reconnect when a
// standby follows a newer primary than this one. It does no I/O.
func newTracker(region string, primary *primary, reconnect func(), connect func(context.Context) (*pgconn.PgConn, error)) *tracker {
	t := &tracker{trust: trust{primary: &primary.identity, primaryClock: &primary.wallClock}, region: region, reconnects: reconnectLimiter{reconnect: reconnect}}
	t.ctx, t.stop = context.WithCancel(context.Background())
	// NewPool's only error is about a size below one.
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

// closeConn closes a connection. It waits a second at most for the server.
func closeConn(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// checkLatest reports whether the latest report that proves anything ends a wait, and with which error. A report that was
// asked for before a time of clock does not count.
func (t *tracker) checkLatest(state sessionState, after uint64) (done bool, err error) {
	o := t.streamed.Load()
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

// currentLag returns how far the server of the latest report was behind at most when that was asked for, unknownLag if that is
// not known.
func (t *tracker) currentLag() time.Duration {
	o := t.latest.Load()
	if o == nil {
		return unknownLag
	}
	t.staleness.mu.Lock()
	defer t.staleness.mu.Unlock()

	if t.staleness.latest != o.asked {
		return unknownLag
	}
	return t.staleness.lag(o, t.primaryClock.Load())
}

// note takes account of a report from a server that the replica's address has led to.
func (t *tracker) note(o *report) {
	storeLater(&t.latest, o)
	if o.streams {
		storeLater(&t.streamed, o)
	}
	if o.took > 0 {
		t.roundTrip.add(o.took)
		t.fastest.measured(o.took)
	}
	t.measure(o)
	t.staleness.note(o, t.primary.Load(), t.primaryClock.Load())
	t.recheckMiss()
	if t.followsNewer(o) && t.reconnects.allow(t.primary.Load()) {
		t.reconnects.reconnect()
	}
}

// storeLater stores a report in p, unless p has one that was asked for later.
func storeLater(p *atomic.Pointer[report], o *report) {
	for {
		old := p.Load()
		if old != nil && old.asked > o.asked || p.CompareAndSwap(old, o) {
			return
		}
	}
}

// miss notes a wait in vain.
func (t *tracker) miss(state sessionState) {
	t.missed.Store(&miss{state: state, at: time.Now()})
	t.delay.notShown(state)
	// A report may have arrived in the meantime.
	t.recheckMiss()
}

// recheckMiss forgets the wait in vain if the replica has replayed its position by now.
func (t *tracker) recheckMiss() {
	m, o := t.missed.Load(), t.streamed.Load()
	if m != nil && o != nil && t.verdict(o, m.state) == caughtUp {
		t.missed.CompareAndSwap(m, nil)
	}
}

// add puts a waiter in the heap, and starts the watcher if it does not run.
func (t *tracker) add(w *waiter) error {
	t.mu.Lock()
	defer t.mu.Unlock()

	if t.refusing {
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

// background runs f in a goroutine, with a context that ends when the tracker stops. It reports false, and does not run
// f, if the tracker has stopped.
func (t *tracker) background(f func(context.Context)) bool {
	t.mu.Lock()
	defer t.mu.Unlock()

	if !t.stopped {
		t.done.Go(func() { f(t.ctx) })
	}
	return !t.stopped
}

// remove takes a waiter out of the heap, if it is still there.
func (t *tracker) remove(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()

	if w.index >= 0 {
		heap.Remove(&t.waiters, w.index)
	}
}

// watch is the watcher: it asks the replica as long as a read waits.
func (t *tracker) watch() {
	headway := time.Now()
	paced := false
	for {
		need, anybody := t.lowest()
		if !anybody {
			return
		}
		if !paced && !t.serverWaits(need) {
			if pause := t.pacer.next(time.Since(headway)); pause > 0 {
				_ = sleep(t.ctx, pause)
				paced = true
				continue // the waits may have ended in the meantime
			}
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

// serverWaits reports whether the server can be asked to wait itself until it has replayed need.
func (t *tracker) serverWaits(need LSN) bool {
	last := t.latest.Load()
	return last != nil && last.recovering && last.version >= waitForVersion && last.position < need
}

// lowest returns the lowest position that a read waits for. If no read waits, the watcher counts as stopped and must
// return.
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

// observe asks the replica for one report and notes it. A replica with WAIT FOR LSN answers when it has replayed need or
// when serverWait has passed. If need is 0 it answers without waiting.
func (t *tracker) observe(ctx context.Context, need LSN) (*report, error) {
	sql := ""
	if t.serverWaits(need) {
		sql = fmt.Sprintf("wait for lsn '%s' with (timeout '%dms', no_throw)", need, serverWait.Milliseconds())
	}
	// Nothing else ends a call on a connection that the network has dropped.
	limited, cancel := context.WithTimeout(ctx, watcherTimeout)
	defer cancel()
	var o report
	err := t.use(limited, func(conn *pgconn.PgConn) (err error) {
		o, err = askPrepared(limited, conn, sql)
		return err
	})
	switch {
	case err != nil && expired(ctx, limited):
		return nil, noAnswerError(t.region, watcherTimeout, err)
	case err != nil:
		return nil, err
	}
	t.note(&o)
	return &o, nil
}

// lagging reports whether the replica is further behind than a read would wait, as a wait in vain has shown.
func (t *tracker) lagging() bool {
	m := t.missed.Load()
	if m == nil {
		return false
	}
	if primary := t.primary.Load(); time.Since(m.at) > missedTime || primary == nil || primary.server != m.state.origin {
		// A failover may have lost the position, and then the replica never replays it.
		t.missed.CompareAndSwap(m, nil)
		return false
	}
	return true
}

// beginCheck reports whether a read has to ask the replica, on the connection that it has, whether it is still lagging. One
// read at a time is told to, and not all the time. It must end the turn then. The watcher's connection would not do: where it
// is lost or its answer is late, as this process is busy, reads would stay away from a replica that has caught up.
func (t *tracker) beginCheck() bool { return t.missed.Load() != nil && t.checking.take(maxPollPause) }

// checkInBackground asks the replica for a report in the background, if nobody checks whether it is lagging.
func (t *tracker) checkInBackground() { t.observeInBackground(&t.checking, maxPollPause) }

// observeInBackground asks the replica for a report in the background, if the turn can be taken.
func (t *tracker) observeInBackground(turn *turn, pause time.Duration) {
	if turn.take(pause) {
		t.inTurn(turn, func(ctx context.Context) { _, _ = t.observe(ctx, 0) })
	}
}

// inTurn runs f in the background, and then ends the turn that was taken for it.
func (t *tracker) inTurn(turn *turn, f func(context.Context)) {
	if !t.background(func(ctx context.Context) {
		defer turn.end()
		f(ctx)
	}) {
		turn.end()
	}
}

// answers reports whether the replica answers within watcherTimeout and a bit. It asks twice, because the watcher's connection
// may be dead although the replica is alive: the second time the connection is new.
func (t *tracker) answers(ctx context.Context) bool {
	before := clock.Add(1)
	for _, limit := range []time.Duration{answerTimeout, watcherTimeout} {
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

// scheduleDisconnect has the watcher's connection closed after watcherIdleTime, unless the watcher runs. mu must be held.
func (t *tracker) scheduleDisconnect() {
	switch {
	case t.watching || t.stopped:
	case t.idle == nil:
		t.idle = time.AfterFunc(watcherIdleTime, t.disconnect)
	default:
		t.idle.Reset(watcherIdleTime)
	}
}

// wake ends the waits that the report o decides, and reports whether there were any.
func (t *tracker) wake(o *report) (any bool) {
	t.mu.Lock()
	defer t.mu.Unlock()

	// The heap is ordered by position. A read that began to wait after the report was asked for waits for the next
	// report, and a read whose verdict is behind waits on.
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
			w.end(nil)
			any = true
		case v == outdated, primary.server != w.state.origin:
			w.end(errOutdated)
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

// wakeAll ends every wait with err.
func (t *tracker) wakeAll(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()

	for len(t.waiters) > 0 {
		heap.Pop(&t.waiters).(*waiter).end(err)
	}
}

// endWaits ends every wait, and each that comes, with errClosedPool.
func (t *tracker) endWaits() {
	t.mu.Lock()
	t.refusing = true
	t.mu.Unlock()

	t.wakeAll(errClosedPool)
}

// close ends every wait and closes the watcher's connection. When it returns, no goroutine of the tracker runs.
func (t *tracker) close() {
	t.endWaits()

	t.mu.Lock()
	t.stopped = true
	if t.idle != nil {
		t.idle.Stop()
	}
	t.mu.Unlock()

	t.stop()
	t.done.Wait()
	t.conns.Close()
}
