package flyregion

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
)

// TestConsistency lets two processes and the users that they share write and read in every way, all at once, while
// replay, servers, links, names and contexts fail around them, one way after the other. Every read must show all writes of its
// process, or of its user, that had returned before it began. No write may be done twice. Errors are for those alone that
// a fault keeps from the only server that could serve them, and for no longer than that.
//
// It runs for half a minute. In the environment,
//
//	FLYREGION_CONSISTENCY=10m go test -run TestConsistency -timeout 20m -v .
//
// has it run for as long as one likes, in rounds of at most a minute, each on a new cluster that ends with a loss of writes.
// FLYREGION_CONSISTENCY_SEED repeats the choices of an earlier run, as far as chance at the servers allows.
func TestConsistency(t *testing.T) {
	t.Parallel()
	const (
		roundTime = time.Minute
		longRun   = 3 * time.Minute // in which everything that can happen must
	)
	duration := 30 * time.Second
	if text := os.Getenv("FLYREGION_CONSISTENCY"); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()
	if text := os.Getenv("FLYREGION_CONSISTENCY_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("FLYREGION_CONSISTENCY_SEED=%d", seed)
	if deadline, ok := t.Deadline(); ok && time.Until(deadline) < duration+time.Minute {
		t.Fatalf("-timeout leaves too little time for %v", duration)
	}

	tally := newTally()
	rounds := int((duration + roundTime - 1) / roundTime)
	for i := range rounds {
		ok := t.Run(fmt.Sprintf("round %d", i+1), func(t *testing.T) {
			end := losses[(seed+uint64(i))%uint64(len(losses))]
			round(t, tally, rand.New(rand.NewPCG(seed, uint64(i))), duration/time.Duration(rounds), end)
		})
		if !ok {
			break
		}
	}
	tally.report(t)
	if !t.Failed() {
		tally.check(t, duration >= longRun)
	}
}

// leastFaults is how many faults there are in a round at least.
const leastFaults = 3

// round runs the processes on a cluster of their own for so long, starting and stopping included, and then loses writes.
func round(t *testing.T, tally *tally, r *rand.Rand, duration time.Duration, end loss) {
	began := time.Now()
	cluster, err := pgcluster.Start(t.Context(), pgcluster.Config{
		Replicas: []string{"ord", "syd", "ord"},
		Parameters: map[string]string{
			"max_prepared_transactions": "100",
			// A server does not get up from a crash before those have gone who began to connect and did not go on.
			"authentication_timeout": "10s",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	err = cluster.Leader().Exec(t.Context(), fmt.Sprintf(`
		create table entries (id int, v text);
		create index on entries (id);
		create table registers (key int primary key, v bigint not null) with (fillfactor = 50);
		insert into registers select i, 0 from generate_series(0, %d) i;
		create function count_on(k int) returns bigint language sql as '%s';
	`, registers-1, strings.ReplaceAll(countOn, "$1", "k")))
	if err != nil {
		t.Fatal(err)
	}
	hide(t, cluster, "entries")
	if err := cluster.Leader().Exec(t.Context(), pathFunctions); err != nil {
		t.Fatal(err)
	}
	for _, s := range cluster.Servers() {
		if err := s.WaitReplayed(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	history := &history{t: t, tally: tally, users: []*user{{}, {}, {}, {}}}
	history.now.Store(healthy)
	backups := map[string]*pgcluster.Backup{}
	for _, s := range cluster.Servers() {
		backups[s.Name()] = backupOf(t, s)
	}

	modes := []pgx.QueryExecMode{
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeCacheDescribe,
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeDescribeExec,
	}
	var recordings []*recording
	defer func() {
		for _, r := range recordings {
			tally.add(t, r)
		}
	}()
	add := func(p *process, change func(*Config)) {
		recording := record(t)
		p.pool = poolIn(t, cluster, p.region, func(c *Config) {
			c.MaxConns = 40
			c.MaxReplicaWait = 5 * time.Second
			c.Telemetry = Telemetry{MeterProvider: recording.meters}
			c.Balance = balances[r.IntN(len(balances))]
			if r.IntN(3) > 0 {
				c.DiscoveryInterval = 50 * time.Millisecond
			}
			change(c)
		})
		t.Logf("%s: %s, reads from %v, %s, awaits writes: %v, commits asynchronously: %v", p, p.pool.config.ConnConfig.DefaultQueryExecMode,
			p.pool.config.ReplicaRegions, p.pool.config.Balance, p.pool.config.AwaitWrites, p.async)
		history.processes = append(history.processes, p)
		recordings = append(recordings, recording)
	}
	add(&process{region: "ord"}, func(c *Config) { c.MinReplicaWait = 0 })
	syd := &process{region: "syd", async: r.IntN(4) == 0}
	add(syd, func(c *Config) {
		c.MaxReplicaWait = 500 * time.Millisecond
		c.AwaitWrites = r.IntN(4) == 0
		c.ConnConfig.DefaultQueryExecMode = modes[r.IntN(len(modes))]
		if r.IntN(2) == 0 {
			c.ReplicaRegions = []string{"syd", "ord"}
		}
		if syd.async {
			c.ConnConfig.RuntimeParams["synchronous_commit"] = "off"
		}
	})
	pooled := &process{region: []string{"ord", "syd"}[r.IntN(2)], shared: r.IntN(3) > 0}
	mode, most := "session", len(modes)
	if pooled.shared {
		mode, most = "transaction", 3
	}
	pooled.bouncer, err = cluster.StartBouncer(t.Context(), "", map[string]string{"pool_mode": mode, "query_wait_timeout": "5"})
	switch execMode := modes[r.IntN(most)]; {
	case errors.Is(err, pgcluster.ErrNoBouncer):
		t.Logf("NOBODY GOES THROUGH A POOLER: %v", err)
	case err != nil:
		t.Fatal(err)
	default:
		add(pooled, func(c *Config) {
			c.MaxReplicaWait = time.Second
			primaryBehind(pooled.bouncer)(c)
			c.ConnConfig.DefaultQueryExecMode = execMode
		})
	}
	nemesis := &nemesis{history: history, ctx: t.Context(), cluster: cluster, r: r, backups: backups}

	var workers sync.WaitGroup
	stop := func() {
		history.over.Store(true)
		workers.Wait()
	}
	defer stop()
	for i := range 16 {
		own := rand.New(rand.NewPCG(r.Uint64(), uint64(i)))
		workers.Go(func() { history.work(history.processes[i%len(history.processes)], own) })
	}
	// Where the machine has little time for the test, a few faults come all the same.
	for i := 0; (i < leastFaults || time.Since(began) < duration*3/4) && !t.Failed(); i++ {
		nemesis.pause(20*time.Millisecond, 150*time.Millisecond)
		nemesis.rage()
	}
	home := func(processes []*process) {
		for _, p := range processes {
			awaitReplica(t, t.Context(), p.pool)
		}
	}
	home(history.processes)
	follow := nemesis.lose(end)
	nemesis.pause(time.Second, 2*time.Second)
	home(follow)

	stop()
	if err := nemesis.verify(); err != nil {
		t.Error(err)
	}
}

// add takes over what a pool has recorded.
func (c *tally) add(t *testing.T, r *recording) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for where, n := range r.statements(t) {
		c.sent[where] += int(n)
	}
	for outcome, n := range r.waits(t) {
		c.waits[outcome] += n
	}
}

// report tells what has happened.
func (c *tally) report(t *testing.T) {
	t.Logf("%d violations; %d writes returned, %d failed and may have been done; %d reads returned, %d failed",
		c.violations.Load(), total(c.done, "write", "raise"), total(c.failed, "write", "raise"), total(c.done, "read"), total(c.failed, "read"))
	t.Logf("faults:%s", listed(c.faults))
	t.Logf("errors:%s", listed(c.errors))
	t.Logf("sent, by server and reason:%s", listed(c.sent))
	t.Logf("reads that waited for the replica, by outcome:%s", listed(c.waits))
}

// check fails the test if nothing has happened that could have gone wrong.
func (c *tally) check(t *testing.T, long bool) {
	if total(c.sent, "replica ") == 0 || c.waits["replayed"] == 0 || len(c.faults) == 0 {
		t.Error("no read ran on a replica, none waited for it, or nothing failed")
	}
	if total(c.done, "write", "raise") == 0 || total(c.done, "read") == 0 {
		t.Error("nothing was written, or nothing was read")
	}
	if !long {
		return
	}
	happened := 0
	for _, f := range faults {
		happened += c.faults[f.name]
	}
	for _, f := range faults {
		if c.faults[f.name] == 0 && happened > len(faults) {
			t.Errorf("it never happened: %s", f.name)
		}
	}
	paths := slices.Collect(maps.Keys(c.done))
	for _, path := range entryWrites {
		if !slices.Contains(paths, "write "+path.name) {
			t.Errorf("it never succeeded: write %s", path.name)
		}
	}
	for _, path := range registerWrites {
		if !slices.Contains(paths, "raise "+path.name) {
			t.Errorf("it never succeeded: raise %s", path.name)
		}
	}
	for _, path := range entryReads {
		if !slices.Contains(paths, "read "+path.name) {
			t.Errorf("it never succeeded: read %s", path.name)
		}
	}
	for _, path := range registerReads {
		if !slices.Contains(paths, "read register "+path.name) {
			t.Errorf("it never succeeded: read register %s", path.name)
		}
	}
}
