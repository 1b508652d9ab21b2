package flyregion

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
)

// TestReplicaFaults lets something happen to one replica after the other, while processes in three regions write and read:
// replicas are killed, frozen, cut off, restarted, promoted by mistake, and taken out of DNS and back in. The primary is well all
// the time, so no write and no read may fail but one whose first row was delivered. Each read shows all that its process has
// written, and each write is done once.
//
// Each thing happens once, to a replica that the seed chooses, but for one of those that give no error. In the environment,
//
//	FLYREGION_FAULTS=10m go test -run TestReplicaFaults -timeout 20m -v .
//
// has everything happen to every replica, at times to two of them at once, again and again for as long as one likes. FLYREGION_FAULTS_SEED repeats the choices of
// an earlier run.
func TestReplicaFaults(t *testing.T) {
	t.Parallel()
	var duration time.Duration
	if text := os.Getenv("FLYREGION_FAULTS"); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()
	if text := os.Getenv("FLYREGION_FAULTS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("FLYREGION_FAULTS_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))

	lab := newFaultLab(t, r)
	defer lab.report()
	stop := lab.work(r)
	defer stop()

	var replicas []*pgcluster.Server
	for _, s := range lab.cluster.Servers() {
		if s != lab.cluster.Leader() {
			replicas = append(replicas, s)
		}
	}
	began := time.Now()
	if duration == 0 {
		first, silent := r.IntN(len(replicas)), 0
		for i, m := range r.Perm(len(mishaps)) {
			if mishaps[m].lasts == silentTime {
				silent++
			}
			if mishaps[m].lasts < silentTime || silent == 1 {
				lab.suffer(replicas[(first+i)%len(replicas)], mishaps[m])
			}
		}
	}
	for time.Since(began) < duration && !t.Failed() {
		for _, i := range r.Perm(len(replicas) * len(mishaps)) {
			if time.Since(began) > duration || t.Failed() {
				break
			}
			if r.IntN(3) == 0 {
				other := (i + 1 + r.IntN(len(replicas)-1)) % len(replicas)
				lab.suffer(replicas[i%len(replicas)], mishaps[i/len(replicas)], misfortune{replicas[other], mishaps[r.IntN(len(mishaps))]})
				continue
			}
			lab.suffer(replicas[i%len(replicas)], mishaps[i/len(replicas)])
		}
	}
	stop()
	lab.verify()
	for _, a := range lab.apps {
		unused(t, a.pool)
	}
}

// mishap is something that happens to a replica.
type mishap struct {
	name  string
	lasts time.Duration
	// begin lets it happen and returns what ends it.
	begin func(l *faultLab, s *pgcluster.Server) (end func())
}

// misfortune is a mishap of another replica at the same time.
type misfortune struct {
	server *pgcluster.Server
	mishap mishap
}

// silentTime is how long a mishap lasts that gives no error: longer than it takes a pool to notice it.
const silentTime = stuckChecks*checkPeriod + answerTimeout + watcherTimeout + time.Second

var mishaps = []mishap{
	{"killed", 300 * time.Millisecond, func(l *faultLab, s *pgcluster.Server) func() {
		noError(l.t, s.Kill())
		return func() { noError(l.t, s.Start(l.t.Context())) }
	}},
	{"paused", silentTime, func(l *faultLab, s *pgcluster.Server) func() {
		s.Freeze()
		return s.Thaw
	}},
	{"replay paused", 300 * time.Millisecond, func(l *faultLab, s *pgcluster.Server) func() {
		noError(l.t, s.PauseReplay(l.t.Context()))
		return func() { noError(l.t, s.ResumeReplay(l.t.Context())) }
	}},
	{"cut off silently", silentTime, func(l *faultLab, s *pgcluster.Server) func() {
		links := []*pgcluster.Link{l.cluster.Replication(s.Name())}
		for _, a := range l.apps {
			links = append(links, l.cluster.Link(a.region, s.Name()))
		}
		for _, link := range links {
			link.Stall()
		}
		return func() {
			for _, link := range links {
				link.Restore()
			}
		}
	}},
	{"restarted", 0, func(l *faultLab, s *pgcluster.Server) func() {
		noError(l.t, s.Restart(l.t.Context()))
		return nothing
	}},
	{"promoted by mistake", 300 * time.Millisecond, func(l *faultLab, s *pgcluster.Server) func() {
		noError(l.t, s.Secede(l.t.Context()))
		return func() { noError(l.t, s.Restore(l.t.Context(), l.backups[s])) }
	}},
	{"out of DNS, then in", 300 * time.Millisecond, func(l *faultLab, s *pgcluster.Server) func() {
		s.Unlist()
		l.awaitLetGo(s)
		return s.List
	}},
	{"out of DNS and killed, then in", 300 * time.Millisecond, func(l *faultLab, s *pgcluster.Server) func() {
		s.Unlist()
		l.awaitLetGo(s)
		noError(l.t, s.Kill())
		return func() {
			noError(l.t, s.Start(l.t.Context()))
			s.List()
		}
	}},
}

// faultLab is a cluster, the processes that use it, and what they notice.
type faultLab struct {
	t         *testing.T
	cluster   *pgcluster.Cluster
	backups   map[*pgcluster.Server]*pgcluster.Backup
	servers   map[int]*pgcluster.Server // by port
	resolvers map[string]*net.Resolver  // by region
	apps      []*app
	acked     []atomic.Int64 // how many writes of each worker have returned
	turns     []atomic.Int64 // how many reads of each worker have ended

	together bool // several mishaps happen at once
	current  atomic.Pointer[episode]
	episodes []*episode
	torn     atomic.Int64 // reads that failed after their first row
}

// app is a process.
type app struct {
	region  string
	pool    *Pool
	db      *sql.DB
	workers []int
	served  map[*pgcluster.Server]*atomic.Int64 // when a server has answered last, in nanoseconds since 1970
}

// episode is one mishap of one replica, with what the processes have noticed.
type episode struct {
	server *pgcluster.Server
	mishap string
	took   time.Duration // from its beginning until reads are local again
	local  time.Duration // from its end until then
	first  time.Duration // that the first read of a process took which has started in the meantime

	mu      sync.Mutex
	longest map[string]slowest // by region of the process
	reads   int
	primary int // how many of these ran on the primary for a process in the replica's region
}

type slowest struct {
	took time.Duration
	what string
}

// faultWorkers is how many readers and writers there are, besides one that starts in the midst of each mishap.
const faultWorkers = 16

// newFaultLab starts the servers and the processes.
func newFaultLab(t *testing.T, r *rand.Rand) *faultLab {
	t.Helper()
	cluster, err := pgcluster.Start(t.Context(), pgcluster.Config{Replicas: []string{"nrt", "nrt", "ord", "ord", "syd"}})
	noError(t, err)
	t.Cleanup(func() { noError(t, cluster.Stop()) })
	l := &faultLab{
		t: t, cluster: cluster, backups: map[*pgcluster.Server]*pgcluster.Backup{}, servers: map[int]*pgcluster.Server{},
		resolvers: map[string]*net.Resolver{},
		acked:     make([]atomic.Int64, faultWorkers+1), turns: make([]atomic.Int64, faultWorkers),
	}
	noError(t, cluster.Leader().Exec(t.Context(), fmt.Sprintf(`
		create table entries (worker int, n bigint);
		create index on entries (worker, n);
		create table counters (worker int primary key, n bigint not null) with (fillfactor = 50);
		insert into counters select i, 0 from generate_series(0, %d) i;
	`, faultWorkers)))
	for _, s := range cluster.Servers() {
		noError(t, s.WaitReplayed(t.Context()))
		if s != cluster.Leader() {
			l.backups[s] = backupOf(t, s)
		}
		_, port, err := net.SplitHostPort(s.Addr())
		noError(t, err)
		n, err := strconv.Atoi(port)
		noError(t, err)
		l.servers[n] = s
	}
	cluster.SetLatency("nrt", "ord", 20*time.Millisecond)
	cluster.SetLatency("nrt", "syd", 30*time.Millisecond)
	cluster.SetLatency("ord", "syd", 25*time.Millisecond)

	for i, region := range []string{"nrt", "ord", "syd"} {
		l.resolvers[region] = serveNames(t, flyNames(cluster.From(region)))
		var workers []int
		for w := i; w < faultWorkers; w += 3 {
			workers = append(workers, w)
		}
		balance := BalanceLocal
		if r.IntN(2) == 0 {
			balance = balances[r.IntN(len(balances))]
		}
		a := l.open(region, func(c *Config) {
			c.Balance = balance
			if r.IntN(3) == 0 {
				c.MinReplicaWait = 0
			}
			if r.IntN(3) == 0 {
				c.MaxReplicaLag = time.Second
			}
			if r.IntN(3) == 0 {
				c.MaxConns = 2
			}
			c.AwaitWrites = r.IntN(4) == 0
		}, workers...)
		c := a.pool.config
		t.Logf("%s: reads from %v, %s, %d connections, waits for %v at least, awaits writes: %v, lag at most %v", region, c.ReplicaRegions, balance, c.MaxConns,
			c.MinReplicaWait, c.AwaitWrites, c.MaxReplicaLag)
		l.apps = append(l.apps, a)
	}
	return l
}

// open starts a process. Its names lead through a DNS server.
func (l *faultLab) open(region string, change func(*Config), workers ...int) *app {
	a := &app{region: region, workers: workers, served: map[*pgcluster.Server]*atomic.Int64{}}
	for _, s := range l.cluster.Servers() {
		a.served[s] = new(atomic.Int64)
	}
	a.pool = poolIn(l.t, l.cluster, region, resolveBy(l.resolvers[region]), func(c *Config) {
		c.ReplicaRegions = map[string][]string{"nrt": {"nrt"}, "ord": {"ord", "syd", "nrt"}, "syd": {autoRegions}}[region]
		c.MaxConns = 16
		c.DiscoveryInterval = 200 * time.Millisecond
	}, change)
	a.db = OpenDB(a.pool)
	l.t.Cleanup(func() { _ = a.db.Close() })
	return a
}

// work has the workers write and read until stop is called.
func (l *faultLab) work(r *rand.Rand) (stop func()) {
	var wg sync.WaitGroup
	var over atomic.Bool
	l.current.Store(&episode{longest: map[string]slowest{}})
	for _, a := range l.apps {
		for _, w := range a.workers {
			own := rand.New(rand.NewPCG(r.Uint64(), uint64(w)))
			wg.Go(func() {
				for !over.Load() && !l.t.Failed() {
					if own.IntN(4) == 0 {
						l.write(a, w, own)
					}
					l.read(a, w, own)
					l.turns[w].Add(1)
					time.Sleep(time.Duration(own.IntN(4)) * time.Millisecond)
				}
			})
		}
	}
	for _, s := range l.cluster.Servers() {
		if s != l.cluster.Leader() {
			l.awaitLocal(s, time.Now())
		}
	}
	return func() {
		over.Store(true)
		wg.Wait()
	}
}

// suffer lets a mishap happen to a replica, and waits until reads run there again.
func (l *faultLab) suffer(s *pgcluster.Server, m mishap, others ...misfortune) {
	e := &episode{server: s, mishap: m.name, longest: map[string]slowest{}}
	lasts := m.lasts
	for _, o := range others {
		e.mishap += "; " + o.server.Name() + " " + o.mishap.name
		lasts = max(lasts, o.mishap.lasts)
	}
	l.together = len(others) > 0
	l.episodes = append(l.episodes, e)
	l.current.Store(e)
	began := time.Now()
	ends := []func(){m.begin(l, s)}
	for _, o := range others {
		ends = append(ends, o.mishap.begin(l, o.server))
	}
	var wg sync.WaitGroup
	wg.Go(func() { l.startAnother(s.Region(), e) })
	time.Sleep(lasts)
	for _, end := range ends {
		end()
	}
	ended := time.Now()
	l.awaitLocal(s, ended)
	for _, o := range others {
		l.awaitLocal(o.server, ended)
	}
	e.local, e.took = time.Since(ended), time.Since(began)
	l.awaitTurns()
	wg.Wait()
}

// startAnother starts another process in a region, which reads and writes a little.
func (l *faultLab) startAnother(region string, e *episode) {
	a := l.open(region, func(*Config) {}, faultWorkers)
	defer a.pool.Close()
	defer a.db.Close()
	r := rand.New(rand.NewPCG(uint64(len(l.episodes)), 0))
	began := time.Now()
	if err := a.pool.QueryRow(l.t.Context(), "select n from counters limit 1").Scan(new(int)); err != nil {
		l.t.Errorf("the first read of a process in %s fails: %v (%T), during %s", region, err, err, e)
	}
	e.first = time.Since(began)
	l.write(a, faultWorkers, r)
	for range 10 {
		l.read(a, faultWorkers, r)
	}
}

// awaitTurns waits until all reads that are under way have ended.
func (l *faultLab) awaitTurns() {
	for w := range l.turns {
		at := l.turns[w].Load()
		eventually(l.t, fmt.Sprintf("worker %d goes on", w), func() bool { return l.turns[w].Load() > at || l.t.Failed() })
	}
}

// awaitLocal waits until the processes in a replica's region have been served by it after a time.
func (l *faultLab) awaitLocal(s *pgcluster.Server, after time.Time) {
	l.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for _, a := range l.apps {
		for a.region == s.Region() && a.served[s].Load() <= after.UnixNano() {
			if time.Now().After(deadline) {
				l.t.Fatalf("reads in %s never run on %s again: %+v", a.region, s.Name(), a.pool.Replicas())
			}
			if l.t.Failed() {
				l.t.FailNow()
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// awaitLetGo waits until nobody in a replica's region knows it any more, unless it may be the only one that can be reached.
func (l *faultLab) awaitLetGo(s *pgcluster.Server) {
	l.t.Helper()
	address := net.JoinHostPort(s.IP(), "5433")
	for _, a := range l.apps {
		if a.region != s.Region() || s.Region() == "syd" || l.together {
			continue
		}
		eventually(l.t, s.Name()+" is let go", func() bool {
			return !slices.ContainsFunc(a.pool.Replicas(), func(r ReplicaStatus) bool { return r.Address == address && r.LeftAlone != "reserve" })
		})
	}
}

// write writes once and must succeed.
func (l *faultLab) write(a *app, worker int, r *rand.Rand) {
	const raise, insert = "update counters set n = n + 1 where worker = $1", "insert into entries values ($1, $2)"
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	n := l.acked[worker].Load() + 1
	var err error
	var how string
	switch r.IntN(4) {
	case 0:
		how = "Exec"
		_, err = a.pool.Exec(ctx, "with raised as ("+raise+") "+insert, worker, n)
	case 1:
		how = "BeginFunc"
		err = pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, raise, worker); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, insert, worker, n)
			return err
		})
	case 2:
		how = "SendBatch"
		b := &pgx.Batch{}
		b.Queue(raise, worker)
		b.Queue(insert, worker, n)
		err = a.pool.SendBatch(ctx, b).Close()
	case 3:
		how = "database/sql"
		_, err = a.db.ExecContext(ctx, "with raised as ("+raise+") "+insert, worker, n)
	}
	if err != nil {
		l.t.Errorf("a write fails in %s by %s: %v (%T), during %s", a.region, how, err, err, l.current.Load())
		return
	}
	l.acked[worker].Store(n)
}

// faultReadSQL asks for a worker's counter, for how many of its entries there are from one on, and for the server.
const faultReadSQL = `select n, (select count(*) from entries e where e.worker = $1 and e.n > $2), current_setting('port')::int
	from counters where worker = $1`

// read reads what a worker of the same process has written.
func (l *faultLab) read(a *app, worker int, r *rand.Rand) {
	of := worker
	if r.IntN(2) == 0 {
		of = a.workers[r.IntN(len(a.workers))]
	}
	least := l.acked[of].Load()
	from := max(0, least-20)

	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	var (
		how           string
		n, rows, port int
		begun         bool // rows were delivered
		err           error
	)
	began := time.Now()
	switch r.IntN(5) {
	case 0:
		how = "QueryRow"
		err = a.pool.QueryRow(ctx, faultReadSQL, of, from).Scan(&n, &rows, &port)
	case 1:
		how = "Query"
		var got pgx.Rows
		got, err = a.pool.Query(ctx, `select c.n, e.n, current_setting('port')::int from counters c left join entries e on e.worker = c.worker and e.n > $2
			where c.worker = $1 order by e.n`, of, from)
		if err != nil {
			break
		}
		for got.Next() {
			begun = true
			var entry *int
			if err := got.Scan(&n, &entry, &port); err != nil {
				l.t.Error(err)
			}
			if entry != nil {
				if rows++; *entry != int(from)+rows {
					l.t.Errorf("entry %d of worker %d comes behind entry %d", *entry, of, int(from)+rows-1)
				}
			}
		}
		err = got.Err()
	case 2:
		how = "SendBatch"
		b := &pgx.Batch{}
		b.Queue("select 1")
		b.Queue(faultReadSQL, of, from)
		results := a.pool.SendBatch(ctx, b)
		if _, err = results.Exec(); err == nil {
			begun = true
			err = results.QueryRow().Scan(&n, &rows, &port)
		}
		_ = results.Close()
	case 3:
		how = "database/sql"
		err = a.db.QueryRowContext(ctx, faultReadSQL, of, from).Scan(&n, &rows, &port)
	case 4:
		how = "transaction"
		var tx pgx.Tx
		if tx, err = a.pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly}); err != nil {
			break
		}
		if err = tx.QueryRow(ctx, faultReadSQL, of, from).Scan(&n, &rows, &port); err == nil {
			begun = true
			var again int
			if err = tx.QueryRow(ctx, "select n from counters where worker = $1", of).Scan(&again); err == nil && int64(again) < least {
				l.t.Errorf("stale: the second statement of a transaction in %s sees %d of %d", a.region, again, least)
			}
		}
		_ = tx.Rollback(ctx)
	}
	took := time.Since(began)

	switch {
	case err != nil && begun:
		l.torn.Add(1)
	case err != nil:
		l.t.Errorf("a read fails in %s by %s after %v: %v (%T), during %s", a.region, how, took, err, err, l.current.Load())
	case int64(n) < least || int64(rows) < least-from:
		l.t.Errorf("stale: a read in %s by %s on %s sees %d of %d writes, and %d of %d entries, during %s", a.region, how, l.servers[port].Name(),
			n, least, rows, least-from, l.current.Load())
	case of == worker && (int64(n) != least || int64(rows) != least-from):
		l.t.Errorf("doubled: a read in %s by %s on %s sees %d of %d writes, and %d of %d entries, during %s", a.region, how, l.servers[port].Name(),
			n, least, rows, least-from, l.current.Load())
	}
	server := l.servers[port]
	if server != nil {
		a.served[server].Store(began.UnixNano())
	}
	l.current.Load().add(a, server, slowest{took, how}, server == l.cluster.Leader())
}

// add counts a read.
func (e *episode) add(a *app, server *pgcluster.Server, read slowest, primary bool) {
	e.mu.Lock()
	defer e.mu.Unlock()

	if server != nil {
		read.what += " on " + server.Name()
	}
	if read.took > e.longest[a.region].took {
		e.longest[a.region] = read
	}
	if e.server != nil && a.region == e.server.Region() {
		e.reads++
		if primary {
			e.primary++
		}
	}
}

func (e *episode) String() string {
	if e.server == nil {
		return "no mishap"
	}
	return e.server.Name() + " " + e.mishap
}

// verify compares what is on the primary with what the workers have written.
func (l *faultLab) verify() {
	for w := range l.acked {
		want := l.acked[w].Load()
		var n, rows, distinct int64
		noError(l.t, queryOne(l.t.Context(), l.cluster.Leader(), fmt.Sprintf("select n from counters where worker = %d", w), &n))
		noError(l.t, queryOne(l.t.Context(), l.cluster.Leader(), fmt.Sprintf("select count(*) from entries where worker = %d", w), &rows))
		noError(l.t, queryOne(l.t.Context(), l.cluster.Leader(), fmt.Sprintf("select count(distinct n) from entries where worker = %d", w), &distinct))
		if !l.t.Failed() && (n != want || rows != want || distinct != want) {
			l.t.Errorf("worker %d has written %d times: the counter is %d, and there are %d entries, %d of them distinct", w, want, n, rows, distinct)
		}
	}
}

// report logs a table of what the processes have noticed.
func (l *faultLab) report() {
	var writes int64
	for w := range l.acked {
		writes += l.acked[w].Load()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d writes; %d reads failed after their first row\n", writes, l.torn.Load())
	fmt.Fprintf(&b, "%-8s %-31s %-46s %9s %9s %9s %16s %8s\n", "replica", "what happened", "longest read in its region", "elsewhere", "first", "all took", "on the primary", "local after")
	millis := func(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
	for _, e := range l.episodes {
		e.mu.Lock()
		own := e.longest[e.server.Region()]
		var elsewhere time.Duration
		for region, read := range maps.All(e.longest) {
			if region != e.server.Region() {
				elsewhere = max(elsewhere, read.took)
			}
		}
		fmt.Fprintf(&b, "%-8s %-31s %-46s %9s %9s %9s %16s %8s\n", e.server.Name(), e.mishap, millis(own.took)+" ("+own.what+")", millis(elsewhere),
			millis(e.first), millis(e.took), fmt.Sprintf("%d of %d", e.primary, e.reads), millis(e.local))
		e.mu.Unlock()
	}
	l.t.Log(b.String())
}
