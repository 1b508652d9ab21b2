package flyregion

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
)

// maxLag sets MaxReplicaLag.
func maxLag(limit time.Duration) func(*Config) {
	return func(c *Config) { c.MaxReplicaLag = limit }
}

// sentFor returns how many statements were sent to the primary for a reason.
func sentFor(pool *Pool, why reason) (n int64) {
	for _, c := range pool.Stat().Statements() {
		if c.Target == "primary" && c.Reason == string(why) {
			n += c.Count
		}
	}
	return n
}

// lastReplayed waits until the last transaction that the replica in ord has replayed is older than that.
func lastReplayed(t testing.TB, cluster *pgcluster.Cluster, age time.Duration) {
	t.Helper()
	eventually(t, "the last replayed transaction is old", func() bool {
		var seconds float64
		noError(t, queryOne(t.Context(), cluster.Server("ord"),
			"select extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp())::float8", &seconds))
		return seconds > age.Seconds()
	})
}

// TestReplicaBehind keeps a replica from what another process writes. Reads that need no position leave it when it is too far
// behind, unless there is no limit, and come home by themselves.
func TestReplicaBehind(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	const limit = 300 * time.Millisecond
	id := 0
	for _, test := range []struct {
		name        string
		hold, loose func()
	}{
		{"replay is paused",
			func() { noError(t, cluster.Server("ord").PauseReplay(t.Context())) },
			func() { noError(t, cluster.Server("ord").ResumeReplay(context.Background())) }},
		{"the WAL receiver is gone", cluster.Replication("ord").Cut, cluster.Replication("ord").Restore},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx := WithoutWait(t.Context())
			telemetry := record(t)
			pool := poolIn(t, cluster, "ord", maxLag(limit), telemetry.into)
			unlimited := poolIn(t, cluster, "ord", maxLag(0))
			awaitReplica(t, ctx, pool)
			noError(t, cluster.Server("ord").WaitReplayed(ctx))
			test.hold()
			t.Cleanup(test.loose)
			id++
			noError(t, cluster.Leader().Exec(ctx, insertText(name, id)))

			eventually(t, "reads leave the replica", func() bool { return !replicaServes(t, ctx, pool) })
			if n := sentFor(pool, becauseBehind); n == 0 {
				t.Errorf("reads left for another reason: %v", pool.Stat().Statements())
			}
			if n := counts(t, ctx, pool, name); n != id {
				t.Errorf("a read sees %d rows of %d", n, id)
			}
			if !replicaServes(t, ctx, unlimited) {
				t.Error("without a limit a read has left the replica")
			}
			var lag *ReplicaLagError
			_, err := pool.Exec(WithReplica(ctx), "select 1")
			if !errors.Is(err, ErrReplicaLag) || !errors.As(err, &lag) || lag.Limit != limit || lag.Lag <= limit || lag.Region != "ord" {
				t.Errorf("under WithReplica the error is %v", err)
			}
			span := telemetry.named(spanForward)[0]
			checkCause(t, span, "behind the primary, and may be 300ms", "")

			test.loose()
			awaitReplica(t, ctx, pool)
		})
	}
}

// TestReplicaBehindFromTheStart reads from a replica that is too far behind when nobody has asked it lately: on a new pool,
// and on one that was not used for a while.
func TestReplicaBehindFromTheStart(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	ctx := WithoutWait(t.Context())
	const limit = 300 * time.Millisecond
	unused := poolIn(t, cluster, "ord", maxLag(limit))
	awaitReplica(t, ctx, unused)
	freeze(t, cluster)
	noError(t, cluster.Leader().Exec(ctx, insertText(name, 1)))
	var before int64
	eventually(t, "the last check has ended", func() bool {
		before = cluster.Link("ord", "ord").Turns()
		time.Sleep(50 * time.Millisecond)
		return !unused.replicas.preferred().tracker.staleness.checking.taken.Load() && before == cluster.Link("ord", "ord").Turns()
	})
	lastReplayed(t, cluster, 2*limit)
	if n := cluster.Link("ord", "ord").Turns(); n != before {
		t.Errorf("while no read was made the replica was asked %d times", n-before)
	}
	for what, pool := range map[string]*Pool{"new": poolIn(t, cluster, "ord", maxLag(limit)), "unused": unused} {
		if n := counts(t, ctx, pool, name); n != 1 {
			t.Errorf("the first read of the %s pool misses what is older than the limit", what)
		}
	}
}

// TestStaleness follows one standby by reports that a table gives, a second apart, with a limit of three and a half.
func TestStaleness(t *testing.T) {
	const hour = 3600
	type told struct {
		position, received LSN
		streams            bool
		committed          float64 // this many seconds ago by the primary's clock, 0 for unknown
		want               float64 // the lag in seconds, -1 for unknown
	}
	for _, test := range []struct {
		name    string
		reports []told
		skew    float64 // how many seconds the standby's clock is ahead of the primary's
		primary bool    // the primary's clock is known
	}{
		{name: "a primary that commits nothing", reports: []told{
			{100, 100, true, hour, 0}, {100, 100, true, hour, 0},
		}},
		{name: "nothing was ever committed", reports: []told{{100, 100, true, 0, 0}}},
		{name: "a long transaction", reports: []told{
			{90, 100, true, hour, hour}, {190, 200, true, hour, 1}, {295, 300, true, hour, 1}, {300, 400, true, hour, 1}, {301, 500, true, hour, 2},
		}},
		{name: "a restart with much to replay", reports: []told{
			{90, 0, false, 0, -1}, {95, 1000, true, 0, -1}, {99, 1000, true, 2, 2}, {1000, 2000, true, 0, 1},
		}},
		{name: "replay stands still", reports: []told{
			{100, 100, true, 0.5, 0}, {100, 200, true, 1.5, 1}, {100, 200, true, 2.5, 2}, {100, 200, true, 3.5, 3}, {100, 200, true, 4.5, 4},
		}},
		{name: "it lags behind all the time", reports: []told{
			{10, 100, true, 0.5, 0.5}, {100, 200, true, 2, 1}, {110, 300, true, 2.5, 2},
		}},
		{name: "the WAL receiver is gone", reports: []told{
			{100, 100, true, hour, 0}, {100, 100, false, hour, 1}, {100, 100, false, hour, 2}, {100, 100, false, hour, 3}, {100, 100, false, hour, 4},
		}},
		{name: "the WAL receiver was gone before", reports: []told{{100, 100, false, hour, hour}, {100, 100, true, hour, 0}}},
		{name: "the WAL comes from an archive", reports: []told{{100, 0, false, 2, 2}, {200, 0, false, 3, 3}, {300, 0, false, 1, 1}}},
		{name: "the standby's clock is ahead", skew: hour, reports: []told{{90, 100, true, 1, hour + 1}}},
		{name: "the standby's clock is ahead, and the primary's known", skew: hour, primary: true, reports: []told{{90, 100, true, 1, 1}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			const limit = 3500 * time.Millisecond
			s := staleness{limit: limit}
			began := time.Now()
			micros := func(seconds float64) serverTime { return serverTime(1e15 + seconds*1e6) }
			var clock *clockReading
			if test.primary {
				clock = &clockReading{micros(0), began}
			}
			for i, told := range test.reports {
				r := &report{
					asked: uint64(i + 1), at: began.Add(time.Duration(i) * time.Second), server: 1, recovering: true,
					position: told.position, received: told.received, streams: told.streams, wallTime: micros(float64(i) + test.skew),
				}
				if told.committed > 0 {
					r.committed = micros(float64(i) - told.committed)
				}
				s.note(r, nil, clock)
				got, want := s.lag(r, clock), time.Duration(told.want*float64(time.Second))
				if told.want < 0 {
					want = unknownLag
				}
				if got != want {
					t.Errorf("after report %d the lag is %v, want %v", i+1, got, want)
				}
				if s.isTooFar() != (want > limit) {
					t.Errorf("after report %d it is too far behind: %v", i+1, s.isTooFar())
				}
			}
		})
	}
	t.Run("another server", func(t *testing.T) {
		now := time.Now()
		s := staleness{limit: time.Second}
		s.note(&report{asked: 1, at: now, server: 1, recovering: true, streams: true}, nil, nil)
		s.note(&report{asked: 2, at: now, server: 2, recovering: true}, nil, nil)
		if !s.isTooFar() {
			t.Error("a server counts as current because another was")
		}
		s.note(&report{asked: 1, at: now, server: 1, recovering: true, streams: true}, nil, nil)
		if !s.isTooFar() {
			t.Error("an earlier report counts")
		}
	})
	t.Run("promoted by mistake", func(t *testing.T) {
		now := time.Now()
		s := staleness{limit: time.Second}
		promoted := &report{asked: 1, at: now, server: 1}
		if s.note(promoted, nil, nil); s.isTooFar() {
			t.Error("while the primary is not known it counts as behind it")
		}
		if s.note(promoted, &identity{server: 1}, nil); s.isTooFar() {
			t.Error("the primary counts as behind itself")
		}
		s.note(&report{asked: 2, at: now.Add(2 * time.Second), server: 1}, &identity{server: 2}, nil)
		if !s.isTooFar() {
			t.Error("it counts as following the primary")
		}
	})
}

// TestMarks thins marks out by their age.
func TestMarks(t *testing.T) {
	began := time.Now()
	at := func(i int) time.Time { return began.Add(time.Duration(i) * 20 * time.Millisecond) }
	var m marks
	const n = 100_000 // 2,000 seconds
	for i := range n {
		m = m.add(mark{LSN(i), at(i)})
	}
	if len(m) > 120 {
		t.Errorf("%d marks are kept", len(m))
	}
	now := at(n - 1)
	for _, d := range []time.Duration{0, time.Second, time.Minute, 1999 * time.Second, 2000 * time.Second, time.Hour} {
		k := m.within(d, now)
		if k == nil {
			t.Fatalf("no mark is known that is at most %v old", d)
		}
		oldest := min(d, 1999*time.Second)
		if age := now.Sub(k.at); age > d || age < oldest*3/4 {
			t.Errorf("the earliest mark of at most %v is %v old", d, age)
		}
		if b := m.before(k.position); b != m.within(d, now) {
			t.Errorf("before %d there is %v", k.position, b)
		}
	}
	if m.within(time.Second, now.Add(2*time.Second)) != nil {
		t.Error("an old mark counts as recent")
	}
	same := m.add(mark{n - 1, now.Add(time.Hour)})
	if k := same.before(n - 1); k.at != now.Add(time.Hour) {
		t.Error("of two marks with one position the earlier one is kept")
	}
	if len((marks{{5, began}}).add(mark{6, began})) != 1 {
		t.Error("marks are kept that say the same")
	}
	if (marks{{5, began}}).before(4) != nil {
		t.Error("a later position was replayed")
	}
}

// TestElapsed sets clocks back and stops them.
func TestElapsed(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		name     string
		from, to time.Time
		want     time.Duration
	}{
		{"both clocks go on", now, now.Add(time.Second), time.Second},
		{"the machine was suspended", now.Round(0), now.Add(time.Hour).Round(0), time.Hour},
		{"the clock was set back", now.Round(0), now.Add(-time.Hour).Round(0), 0},
	} {
		if got := elapsed(test.from, test.to); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}
