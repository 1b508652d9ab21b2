package flyregion

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// registers is how many registers there are: few, so that they are fought over.
const registers = 8

// flaws are what statements may suffer from while faults last.
type flaws uint32

const (
	primaryBreaks  flaws = 1 << iota // connections to the primary end
	primaryRefuses                   // it is read-only for a while
	replicaBreaks                    // connections to a replica end, or replay ends what runs on it
	replicaForgets                   // a replica may come back older than it was
	replicasChange                   // one may be let go, or be read from anew
	writesAreLost                    // writes that have returned may never have been
)

// witness is somebody who must see all that it knows of: a process, or one of the sessions that the processes share.
type witness struct {
	registers [registers]atomic.Int64 // the highest value whose write has returned

	mu      sync.Mutex
	entries []int // whose write has returned
}

func (w *witness) raised(key int, v int64) {
	for old := w.registers[key].Load(); old < v; old = w.registers[key].Load() {
		w.registers[key].CompareAndSwap(old, v)
	}
}

func (w *witness) entered(id int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.entries = append(w.entries, id)
}

// some returns a few entries, the last ones among them.
func (w *witness) some(r *rand.Rand) []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.entries)
	ids := slices.Clone(w.entries[max(0, n-4):])
	if n > 0 {
		ids = append(ids, w.entries[r.IntN(n)], w.entries[r.IntN(n)])
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// all returns every entry.
func (w *witness) all() []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.entries)
}

// process is an app in a region, with a pool.
type process struct {
	witness
	region  string
	pool    *Pool
	bouncer *pgcluster.Bouncer // in front of its primary, or nil
	shared  bool               // the bouncer gives each transaction another session
	async   bool               // its sessions commit asynchronously

	failures atomic.Int64 // of the bouncer, when the process was last seen to be well
}

// poolerFailed reports whether the bouncer has ended since the process was last seen to be well. Its clients may notice it
// before its supervisor does.
func (p *process) poolerFailed() bool {
	for range 200 {
		switch {
		case p.bouncer == nil:
			return false
		case p.bouncer.Failures() > p.failures.Load():
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false
}

func (p *process) String() string {
	switch {
	case p.bouncer == nil:
		return p.region + ", direct"
	case p.shared:
		return p.region + ", behind a pooler of each transaction"
	default:
		return p.region + ", behind a pooler of each session"
	}
}

// user is a session that reads and writes in both processes.
type user struct {
	witness
	session Session
}

// history is what happens to one cluster, and what must be seen of it.
type history struct {
	t *testing.T
	*tally

	processes []*process
	users     []*user
	nextEntry atomic.Int64
	origins   sync.Map                // of entries, for the report of one that is missing
	raised    [registers]atomic.Int64 // the highest value that a write was begun with

	// Workers hold gate while a statement is under way. Who has it locked has the cluster for itself.
	gate sync.RWMutex
	// async is held while a write is under way that a crash of the primary loses.
	async sync.RWMutex
	// flaws only grow while gate is not locked, so that at a statement's end they are all it can have suffered from.
	flaws atomic.Uint32
	now   atomic.Value // the names of the faults, a string
	hasty atomic.Bool  // contexts end early
	over  atomic.Bool  // the workers are to stop
}

// witnesses returns everybody.
func (h *history) witnesses() (all []*witness) {
	for _, p := range h.processes {
		all = append(all, &p.witness)
	}
	for _, u := range h.users {
		all = append(all, &u.witness)
	}
	return all
}

// patience bounds every statement. Faults are healed long before.
const patience = time.Minute

// work reads and writes until the history ends.
func (h *history) work(p *process, r *rand.Rand) {
	for !h.over.Load() {
		h.gate.RLock()
		h.step(p, r)
		h.gate.RUnlock()
	}
}

// step writes, as a process or as a user in it, and reads as the same.
func (h *history) step(p *process, r *rand.Rand) {
	var u *user
	if r.IntN(2) == 0 {
		u = h.users[r.IntN(len(h.users))]
	}
	if r.IntN(2) == 0 {
		if r.IntN(3) == 0 {
			h.writeRegister(p, u, r)
		} else {
			h.writeEntry(p, u, r)
		}
	}
	for range 1 + r.IntN(2) {
		if r.IntN(2) == 0 {
			h.readRegister(p, u, r)
		} else {
			h.readEntries(p, u, r)
		}
	}
}

// underWay is a statement that is under way.
type underWay struct {
	what    string
	process *process
	who     string
	pinned  bool // to the replica
	hasty   bool
	limit   context.Context
	done    context.CancelFunc
}

func (h *history) begin(what string, p *process, u *user, pinned bool, r *rand.Rand) (context.Context, *underWay) {
	ctx := context.Background()
	if u != nil {
		ctx = WithSession(ctx, &u.session)
	}
	_, who := seenBy(p, u)
	s := &underWay{what: what, process: p, who: who, pinned: pinned}
	limit := patience
	switch {
	case h.hasty.Load() && r.IntN(2) == 0:
		s.hasty, limit = true, time.Duration(r.Int64N(int64(20*time.Millisecond)))
	case pinned:
		// Pool.WaitReplayed waits for ever for a replica that cannot follow.
		limit = 2 * time.Second
	}
	s.limit, s.done = context.WithTimeout(ctx, limit)
	return s.limit, s
}

// end judges the error of a statement, and says what it may have suffered from.
func (h *history) end(s *underWay, err error) flaws {
	late := s.limit.Err() != nil
	s.done()
	flaws := flaws(h.flaws.Load())
	kind := kindOf(err)
	h.count(s.what, kind)
	if err != nil {
		time.Sleep(5 * time.Millisecond) // a server that is away refuses thousands of times a second
	}
	switch {
	case err == nil:
	case s.hasty && late:
	case kind == "SQLSTATE 40001" && strings.Contains(s.what, "serializable"):
	case s.pinned && (kind == "replica lag" || kind == "deadline"): // what Config.MaxReplicaWait promises
	case s.pinned && flaws&(replicaBreaks|primaryBreaks) != 0 && (endedByFault(kind) || kind == "SQLSTATE 40001" || kind == "SQLSTATE 40P01"):
	case flaws&primaryBreaks != 0 && endedByFault(kind):
	case flaws&primaryBreaks != 0 && s.process.bouncer != nil && (kind == "SQLSTATE 08P01" || garbled(err)): // which is all that PgBouncer ever says
	case flaws&primaryRefuses != 0 && (kind == "SQLSTATE 25006" || errors.Is(err, errSwallowed)):
	case flaws&primaryRefuses != 0 && s.pinned && errors.Is(err, pgconn.ErrReadOnlyConnection):
	case endedByFault(kind) && s.process.poolerFailed():
	default:
		h.violation("%s by %s: %v (%T)", s.what, s.who, err, err)
	}
	return flaws
}

// endedByFault reports whether an error says that a server or a connection has gone.
func endedByFault(kind string) bool {
	switch kind {
	case "cannot connect", "connection lost", "bad connection", "SQLSTATE 57P01", "SQLSTATE 57P02", "SQLSTATE 57P03":
		return true
	}
	return false
}

// garbled reports whether a message could not be read. When PgBouncer loses a server in the middle of a message, it sends its
// own error behind the half that it has passed on, and pgx reads the one as the rest of the other.
func garbled(err error) bool {
	_, long := errors.AsType[*pgproto3.ExceededMaxBodyLenErr](err)
	return long || slices.ContainsFunc([]string{"unknown message type", "invalid message length", "unexpected message", " body must have length of ", " body is invalid"},
		func(part string) bool { return strings.Contains(err.Error(), part) })
}

func kindOf(err error) string {
	var pgErr *pgconn.PgError
	var connectErr *pgconn.ConnectError
	switch {
	case err == nil:
		return ""
	case errors.Is(err, ErrReplicaLag):
		return "replica lag"
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline"
	case errors.As(err, &pgErr):
		return "SQLSTATE " + pgErr.Code
	case errors.As(err, &connectErr):
		return "cannot connect"
	case errors.Is(err, driver.ErrBadConn):
		return "bad connection"
	case garbled(err):
		return "garbled"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET),
		errors.Is(err, syscall.EPIPE), strings.Contains(err.Error(), "conn closed"):
		return "connection lost"
	}
	return err.Error()
}

func (h *history) writeEntry(p *process, u *user, r *rand.Rand) {
	path := entryWrites[r.IntN(len(entryWrites))]
	if !seesAsync(p.pool, path) || p.shared && needsSession(path.name) {
		return
	}
	if untold(path) {
		u = nil
	}
	if p.async || commitsAsync(path) {
		if !h.async.TryRLock() {
			return
		}
		defer h.async.RUnlock()
	}
	id := int(h.nextEntry.Add(1))
	_, who := seenBy(p, u)
	h.origins.Store(id, who+" with "+path.name)
	ctx, s := h.begin("write "+path.name, p, u, false, r)
	err := path.write(ctx, p.pool, "entries", id)
	if h.end(s, err)&writesAreLost != 0 || err != nil {
		return
	}
	p.entered(id)
	if u != nil {
		u.entered(id)
	}
}

func (h *history) writeRegister(p *process, u *user, r *rand.Rand) {
	path, key := registerWrites[r.IntN(len(registerWrites))], r.IntN(registers)
	if p.async {
		if !h.async.TryRLock() {
			return
		}
		defer h.async.RUnlock()
	}
	ctx, s := h.begin("raise "+path.name, p, u, false, r)
	v, err := path.write(ctx, p.pool, key, h.raised[key].Add(1))
	if h.end(s, err)&writesAreLost != 0 || err != nil {
		return
	}
	p.witness.raised(key, v)
	if u != nil {
		u.witness.raised(key, v)
	}
}

// seenBy returns who reads.
func seenBy(p *process, u *user) (*witness, string) {
	if u != nil {
		return &u.witness, "a user in " + p.region
	}
	return &p.witness, "the process in " + p.region
}

// unchecked reports whether a read says nothing: the path waits for the replicas, and then reads from one that may be older, or
// that was out of reach before.
func unchecked(flaws flaws, name string) bool {
	return flaws&writesAreLost != 0 || flaws&(replicaBreaks|replicaForgets|replicasChange) != 0 && name == "wait replayed"
}

func (h *history) readEntries(p *process, u *user, r *rand.Rand) {
	path := entryReads[r.IntN(len(entryReads))]
	if p.shared && needsSession(path.name) {
		return
	}
	w, who := seenBy(p, u)
	ids := w.some(r)
	ctx, s := h.begin("read "+path.name, p, u, staysOnReplica(path.name), r)
	n, err := path.read(ctx, p.pool, "entries", ids)
	flaws := h.end(s, err)
	switch {
	case err != nil || unchecked(flaws, path.name):
	case n < len(ids):
		h.violation("stale: %s with %s sees %d entries of %s", who, path.name, n, h.described(ids))
	case n > len(ids):
		h.violation("written twice: %s with %s sees %d entries of %s", who, path.name, n, h.described(ids))
	}
}

func (h *history) readRegister(p *process, u *user, r *rand.Rand) {
	path, key := registerReads[r.IntN(len(registerReads))], r.IntN(registers)
	w, who := seenBy(p, u)
	want := w.registers[key].Load()
	ctx, s := h.begin("read register "+path.name, p, u, staysOnReplica(path.name), r)
	v, err := path.read(ctx, p.pool, key)
	if flaws := h.end(s, err); err == nil && !unchecked(flaws, path.name) && v < want {
		h.violation("stale: %s with %s sees %d in register %d, wants %d", who, path.name, v, key, want)
	}
}

// described says who wrote entries, and how.
func (h *history) described(ids []int) string {
	var b strings.Builder
	for _, id := range ids {
		by, _ := h.origins.Load(id)
		fmt.Fprintf(&b, "\n  %d by %v", id, by)
	}
	return b.String()
}

// violation fails the test, and tells of the first few.
func (h *history) violation(format string, args ...any) {
	if n := h.violations.Add(1); n <= 20 {
		h.t.Errorf("during %s: %s", h.now.Load(), fmt.Sprintf(format, args...))
	}
}

// tally counts what has happened in all rounds.
type tally struct {
	violations atomic.Int64
	next       []int // the faults that are still to come, before each comes again; only the nemesis uses it

	mu     sync.Mutex
	done   map[string]int // by path
	failed map[string]int // by path
	errors map[string]int // by kind
	faults map[string]int // by name
	sent   map[string]int // by server and reason
	waits  map[string]int // by outcome
}

func newTally() *tally {
	return &tally{
		done: map[string]int{}, failed: map[string]int{}, errors: map[string]int{},
		faults: map[string]int{}, sent: map[string]int{}, waits: map[string]int{},
	}
}

// count counts a statement that ended in an error of that kind, or in none.
func (c *tally) count(path, kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if kind == "" {
		c.done[path]++
		return
	}
	c.failed[path]++
	what, _, _ := strings.Cut(path, " ")
	c.errors[what+": "+kind]++
}

// total adds up what belongs to paths that begin with one of the prefixes.
func total(counts map[string]int, prefixes ...string) (n int) {
	for path, count := range counts {
		if slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(path, prefix) }) {
			n += count
		}
	}
	return n
}

// listed writes counts down, one in a line.
func listed(counts map[string]int) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&b, "\n  %6d %s", counts[name], name)
	}
	return b.String()
}
