package flyregion

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// inBoth has a pool read from ord and syd.
func inBoth(c *Config) { c.ReplicaRegions = []string{"ord", "syd"} }

// spread returns how many of n reads that need nothing are to go to each region.
func spread(pool *Pool, n int) map[string]int {
	chosen := map[string]int{}
	for range n {
		chosen[pool.replicas.choose(&route{}, sessionState{}, nil).region]++
	}
	return chosen
}

// Over 30,000 reads each replica gets what the algorithm promises, within 5 %.
func TestBalanceSpread(t *testing.T) {
	cluster := sharedCluster(t)
	for name, test := range map[string]struct {
		config  func(*Config)
		ord     float64 // its part of the reads
		prepare func(ord, syd *replica)
	}{
		"local":              {config: func(c *Config) {}, ord: 1},
		"random":             {config: func(c *Config) { c.Balance = BalanceRandom }, ord: 0.5},
		"round robin":        {config: func(c *Config) { c.Balance = BalanceRoundRobin }, ord: 0.5},
		"weighted, all 1":    {config: func(c *Config) { c.Balance = BalanceWeighted }, ord: 0.5},
		"weighted by region": {config: weighted(map[string]int{"ord": 3}), ord: 0.75},
		"weighted by host":   {config: weighted(map[string]int{"ord": 1, "ord.app.internal": 9, "syd": 1}), ord: 0.9},
		"weighted by port":   {config: weighted(map[string]int{"ord.app.internal:5433": 2, "ord.app.internal": 9, "syd": 2}), ord: 0.5},
		"taken out":          {config: weighted(map[string]int{"ord": 0}), ord: 0},
		"least busy":         {config: func(c *Config) { c.Balance = BalanceLeastBusy }, ord: 0.5},
		"least busy, one busier": {config: func(c *Config) { c.Balance = BalanceLeastBusy }, ord: 1, prepare: func(ord, syd *replica) {
			syd.used.Add(1)
		}},
		"least busy, one farther": {config: func(c *Config) { c.Balance = BalanceLeastBusy }, ord: 1, prepare: func(ord, syd *replica) {
			roundTrips(ord, time.Millisecond)
			roundTrips(syd, 2*time.Millisecond)
		}},
		"least busy, as near": {config: func(c *Config) { c.Balance = BalanceLeastBusy }, ord: 0.5, prepare: func(ord, syd *replica) {
			roundTrips(ord, 100*time.Microsecond)
			roundTrips(syd, 200*time.Microsecond)
		}},
		"least busy, nearer and busier": {config: func(c *Config) { c.Balance = BalanceLeastBusy }, ord: 0, prepare: func(ord, syd *replica) {
			roundTrips(ord, time.Millisecond)
			roundTrips(syd, 2*time.Millisecond)
			ord.used.Add(2)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			pool := poolIn(t, cluster, "ord", inBoth, test.config)
			if test.prepare != nil {
				test.prepare(pool.replicas.in("ord"), pool.replicas.in("syd"))
			}
			const n = 30000
			if ord := float64(spread(pool, n)["ord"]) / n; math.Abs(ord-test.ord) > 0.05*max(test.ord, 1-test.ord) {
				t.Errorf("%.3f of the reads go to ord, want %.3f", ord, test.ord)
			}
		})
	}
}

func weighted(weights map[string]int) func(*Config) {
	return func(c *Config) { c.Balance, c.ReplicaWeights = BalanceWeighted, weights }
}

// Turns by weight are evenly interleaved: in as many reads as the weights add up to, each replica gets its own number.
func TestWeightedIsInterleaved(t *testing.T) {
	pool := poolIn(t, sharedCluster(t), "ord", inBoth, weighted(map[string]int{"ord": 3, "syd": 2}))
	var order []string
	for range 50 {
		order = append(order, pool.replicas.choose(&route{}, sessionState{}, nil).region)
	}
	for i := range len(order) - 5 {
		ord := 0
		for _, region := range order[i : i+5] {
			if region == "ord" {
				ord++
			}
		}
		if ord != 3 {
			t.Fatalf("%d of %v are ord, want 3", ord, order[i:i+5])
		}
	}
	if all := strings.Join(order, ""); strings.Contains(all, "ordordord") || strings.Contains(all, "sydsyd") {
		t.Errorf("not interleaved: %v", order)
	}
}

// What is chosen is where reads run, and Replicas counts them there.
func TestBalancedReads(t *testing.T) {
	pool := poolIn(t, sharedCluster(t), "ord", inBoth, weighted(map[string]int{"ord": 1, "syd": 3}))
	ctx := t.Context()
	for range 40 {
		if err := pool.QueryRow(ctx, "select 1").Scan(new(int)); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range pool.Replicas() {
		if want := map[string]int64{"ord": 10, "syd": 30}[r.Region]; r.LeftAlone == "" && r.Reads != want {
			t.Errorf("%d reads in %s, want %d", r.Reads, r.Region, want)
		}
	}
}

// Where only one replica is left that can be reached, it is chosen, whichever the algorithm is.
func TestBalancePassesOver(t *testing.T) {
	for _, balance := range balances {
		pool := poolIn(t, sharedCluster(t), "ord", inBoth, func(c *Config) { c.Balance = balance })
		pool.replicas.in("ord").health.doubt()
		if chosen := spread(pool, 100); chosen["syd"] != 100 {
			t.Errorf("%s: %v", balance, chosen)
		}
	}
}

// A replica of weight 0 is not read from where no other can be reached either.
func TestTakenOut(t *testing.T) {
	pool := poolIn(t, sharedCluster(t), "ord", inBoth, weighted(map[string]int{"ord": 0}))
	pool.replicas.in("syd").health.doubt()
	if r := pool.replicas.choose(&route{}, sessionState{}, nil); r != nil && !r.host.reserve {
		t.Errorf("a read goes to %s", r.region)
	}
}

// balancerFunc is a Balancer.
type balancerFunc func([]Candidate) int

func (f balancerFunc) Choose(candidates []Candidate) int { return f(candidates) }

func TestBalancer(t *testing.T) {
	cluster := sharedCluster(t)
	for name, test := range map[string]struct {
		choose   func([]Candidate) int
		mistakes bool
	}{
		"the last":     {choose: func(c []Candidate) int { return len(c) - 1 }},
		"too high":     {choose: func(c []Candidate) int { return len(c) }, mistakes: true},
		"negative":     {choose: func(c []Candidate) int { return -1 }, mistakes: true},
		"a panic":      {choose: func(c []Candidate) int { panic(errors.New("oops")) }, mistakes: true},
		"a nil panic":  {choose: func(c []Candidate) int { panic(nil) }, mistakes: true},
		"writes to it": {choose: func(c []Candidate) int { clear(c); return len(c) - 1 }},
	} {
		t.Run(name, func(t *testing.T) {
			pool := poolIn(t, cluster, "ord", inBoth, func(c *Config) { c.Balancer = balancerFunc(test.choose) })
			const n = 20
			for range n {
				if err := pool.QueryRow(t.Context(), "select 1").Scan(new(int)); err != nil {
					t.Fatal(err)
				}
			}
			reads := map[string]int64{}
			for _, r := range pool.Replicas() {
				reads[r.Region] += r.Reads
			}
			mistakes := pool.Stat().BalancerMistakes()
			if test.mistakes && (mistakes != n || reads["ord"] != n/2) || !test.mistakes && (mistakes != 0 || reads["syd"] != n) {
				t.Errorf("reads %v, %d mistakes", reads, mistakes)
			}
		})
	}
}

// A Balancer is handed what is known of each replica.
func TestCandidates(t *testing.T) {
	cluster := sharedCluster(t)
	var seen []Candidate
	pool := poolIn(t, cluster, "ord", inBoth, func(c *Config) {
		c.Balancer = balancerFunc(func(c []Candidate) int { seen = append(seen[:0], c...); return 0 })
	})
	ctx := t.Context()
	rows, err := pool.Query(ctx, "select 1")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := pool.QueryRow(ctx, "select 1").Scan(new(int)); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 2 || seen[0].Region != "ord" || seen[1].Region != "syd" || seen[0].Address == "" || seen[0].InUse != 1 || seen[1].InUse != 0 ||
		seen[0].RoundTrip <= 0 || seen[1].RoundTrip != 0 {
		t.Errorf("candidates %+v", seen)
	}
	rows.Close()
}

// A replica that shows what a read must see is preferred to one that would have to be waited for.
func TestBalanceByPosition(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int, v text")
	ctx := t.Context()
	pool := poolIn(t, cluster, "ord", inBoth, func(c *Config) { c.Balance = BalanceRoundRobin })
	for range 4 {
		counts(t, ctx, pool, name)
	}
	freeze(t, cluster)
	if err := execs(ctx, pool, insertText(name, 1)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "syd shows the write", func() bool {
		_, err := pool.replicas.in("syd").tracker.observe(ctx, 0)
		return err == nil && pool.replicas.in("syd").shows(&route{}, pool.primary.written(&pool.primary.session))
	})
	for range 20 {
		if r := pool.replicas.choose(&route{}, pool.primary.written(&pool.primary.session), nil); r.region != "syd" {
			t.Fatal("the replica that does not show the write is chosen")
		}
	}
	before := pool.replicas.in("ord").reads.load()
	for range 20 {
		if n := counts(t, ctx, pool, name); n != 1 {
			t.Fatalf("%d rows, want 1", n)
		}
	}
	if n := pool.replicas.in("ord").reads.load() - before; n != 0 {
		t.Errorf("%d reads on the replica that does not show the write", n)
	}
}

// Without a fallback a read fails where no replica can serve it, and a write that a replica has refused runs on the primary.
func TestNoFallback(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int, v text")
	ctx := t.Context()
	noFallback := func(c *Config) { c.NoFallback, c.MaxReplicaWait = true, time.Minute }
	drop := func(t *testing.T, what string) {
		t.Cleanup(func() { noError(t, cluster.Leader().Exec(context.Background(), "drop "+what)) })
	}

	t.Run("lag", func(t *testing.T) {
		pool := poolIn(t, cluster, "ord", noFallback, func(c *Config) { c.MaxReplicaWait = 300 * time.Millisecond })
		eventually(t, "reads are served", func() bool { return readsOf(name)["QueryRow"](ctx, pool) == nil })
		thaw := freeze(t, cluster)
		if err := execs(ctx, pool, insertText(name, 1)); err != nil {
			t.Fatal(err)
		}
		for what, read := range readsOf(name) {
			if err := read(ctx, pool); !errors.Is(err, ErrReplicaLag) {
				t.Errorf("%s: %v, want ErrReplicaLag", what, err)
			}
			if err := read(WithPrimary(ctx), pool); err != nil {
				t.Errorf("%s on the primary: %v", what, err)
			}
		}
		thaw()
		eventually(t, "reads are served again", func() bool { return readsOf(name)["QueryRow"](ctx, pool) == nil })
	})
	t.Run("out of reach", func(t *testing.T) {
		link := cluster.Link("ord", "ord")
		link.Cut()
		t.Cleanup(link.Restore)
		pool := poolIn(t, cluster, "ord", noFallback)
		for what, read := range readsOf(name) {
			var connect *pgconn.ConnectError
			if err := read(ctx, pool); !errors.As(err, &connect) {
				t.Errorf("%s: %v, want an error of the replica", what, err)
			}
		}
	})
	briefly := func(c *Config) { c.MaxReplicaWait = 2 * time.Second }
	both := func(c *Config) { c.ConnConfig.LookupFunc = namesFor(cluster, "ord", "syd").LookupHost }
	t.Run("one of two is gone", func(t *testing.T) {
		for what, read := range readsOf(name) {
			pool := poolIn(t, cluster, "ord", both, noFallback)
			readOn(t, cluster, pool, "ord", "syd")
			link := cluster.Link("ord", "syd")
			link.Cut()
			for range 4 {
				if err := read(ctx, pool); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
			link.Restore()
		}
	})
	t.Run("one of two is silent", func(t *testing.T) {
		pool := poolIn(t, cluster, "ord", both, noFallback, briefly)
		readOn(t, cluster, pool, "ord", "syd")
		pool.Reset()
		link := cluster.Link("ord", "syd")
		link.Stall()
		t.Cleanup(link.Restore)
		for what, read := range readsOf(name) {
			if err := read(ctx, pool); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
	t.Run("one of two is busy", func(t *testing.T) {
		pool := poolIn(t, cluster, "ord", both, noFallback, briefly, func(c *Config) { c.MaxConns = 1 })
		readOn(t, cluster, pool, "ord", "syd")
		rows, err := pool.Query(ctx, "select generate_series(1, 10)")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for what, read := range readsOf(name) {
			if err := read(ctx, pool); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
	t.Run("one of two is lost behind a batch's first result", func(t *testing.T) {
		pool := poolIn(t, cluster, "ord", both, noFallback)
		readOn(t, cluster, pool, "ord", "syd")
		results := pool.SendBatch(ctx, batchOf("select current_setting('port')", "select repeat('x', 10000000)", "select current_setting('port')"))
		var before, after, long string
		if err := results.QueryRow().Scan(&before); err != nil {
			t.Fatal(err)
		}
		for _, server := range []string{"ord", "syd"} {
			if strings.HasSuffix(cluster.Server(server).Addr(), ":"+before) {
				link := cluster.Link("ord", server)
				link.Cut()
				t.Cleanup(link.Restore)
			}
		}
		if err := errors.Join(results.QueryRow().Scan(&long), results.QueryRow().Scan(&after), results.Close()); err != nil {
			t.Error(err)
		}
		if len(long) != 10000000 || after == before || strings.HasSuffix(cluster.Leader().Addr(), ":"+after) {
			t.Errorf("the batch has moved from %s to %s, and a row has %d bytes", before, after, len(long))
		}
	})
	t.Run("the nearest lags", func(t *testing.T) {
		pool := poolIn(t, cluster, "ord", noFallback, func(c *Config) { c.MaxReplicaWait, c.ReplicaRegions = 500*time.Millisecond, []string{"ord", "syd"} })
		awaitReplica(t, ctx, pool)
		freeze(t, cluster)
		if err := execs(ctx, pool, insertText(name, 1)); err != nil {
			t.Fatal(err)
		}
		if err := cluster.Server("syd").WaitReplayed(ctx); err != nil {
			t.Fatal(err)
		}
		for what, read := range readsOf(name) {
			if err := read(ctx, pool); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
	t.Run("lost by the only one that does not lag", func(t *testing.T) {
		pool := poolIn(t, cluster, "ord", both, noFallback, func(c *Config) { c.MaxReplicaWait = 300 * time.Millisecond })
		readOn(t, cluster, pool, "ord", "syd")
		freeze(t, cluster)
		if err := execs(ctx, pool, insertText(name, 2)); err != nil {
			t.Fatal(err)
		}
		if err := cluster.Server("syd").WaitReplayed(ctx); err != nil {
			t.Fatal(err)
		}
		limited, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		var pgErr *pgconn.PgError
		if _, err := pool.Exec(limited, "/* flyregion:replica */ select pg_terminate_backend(pg_backend_pid())"); !errors.As(err, &pgErr) || pgErr.Code != "57P01" || limited.Err() != nil {
			t.Errorf("%v (the context: %v), want that the connection was terminated, once", err, limited.Err())
		}
	})
	t.Run("one of two cannot run it", func(t *testing.T) {
		pool := poolIn(t, cluster, "ord", both, noFallback)
		readOn(t, cluster, pool, "ord", "syd")
		freeze(t, cluster)
		if err := execs(ctx, pool, "create table "+name+"_on_one (id int)"); err != nil {
			t.Fatal(err)
		}
		drop(t, "table "+name+"_on_one")
		if err := cluster.Server("syd").WaitReplayed(ctx); err != nil {
			t.Fatal(err)
		}
		for what, read := range readsOf(name + "_on_one") {
			for range 4 {
				if err := read(WithoutWait(ctx), pool); err != nil && what != "BeginTx" {
					t.Errorf("%s: %v", what, err)
				}
			}
		}
	})
	t.Run("refused", func(t *testing.T) {
		pool := poolIn(t, cluster, "ord", noFallback, func(c *Config) { c.Functions = map[string]Access{name + "_insert": Read} })
		writer := name + "_insert"
		if err := execs(ctx, pool, "create function "+writer+"() returns int language sql as $$ insert into "+name+" values (7) returning id $$"); err != nil {
			t.Fatal(err)
		}
		drop(t, "function "+writer)
		var id int
		if err := pool.QueryRow(ctx, "select "+writer+"()").Scan(&id); err != nil || id != 7 {
			t.Errorf("%d, %v: want 7 from the primary", id, err)
		}
	})
	t.Run("error of the replica", func(t *testing.T) {
		pool := poolIn(t, cluster, "ord", noFallback)
		if err := execs(ctx, pool, "create table "+name+"_new (id int)"); err != nil {
			t.Fatal(err)
		}
		drop(t, "table "+name+"_new")
		freeze(t, cluster)
		if err := execs(ctx, pool, "create table "+name+"_newer (id int)"); err != nil {
			t.Fatal(err)
		}
		drop(t, "table "+name+"_newer")
		var pgErr *pgconn.PgError
		if err := pool.QueryRow(WithoutWait(ctx), "select count(*) from "+name+"_newer").Scan(new(int)); !errors.As(err, &pgErr) || pgErr.Code != "42P01" {
			t.Errorf("%v, want that the table is not on the replica", err)
		}
	})
}

// readsOf returns the ways to read a table.
func readsOf(name string) map[string]func(context.Context, *Pool) error {
	sql := "select count(*) from " + name
	return map[string]func(context.Context, *Pool) error{
		"QueryRow": func(ctx context.Context, pool *Pool) error { return pool.QueryRow(ctx, sql).Scan(new(int)) },
		"Query": func(ctx context.Context, pool *Pool) error {
			rows, err := pool.Query(ctx, sql)
			if err == nil {
				rows.Close()
				err = rows.Err()
			}
			return err
		},
		"Exec": func(ctx context.Context, pool *Pool) error { _, err := pool.Exec(ctx, sql); return err },
		"SendBatch": func(ctx context.Context, pool *Pool) error {
			b := &pgx.Batch{}
			b.Queue(sql)
			return pool.SendBatch(ctx, b).Close()
		},
		"BeginTx": func(ctx context.Context, pool *Pool) error {
			tx, err := pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
			if err != nil {
				return err
			}
			defer tx.Rollback(ctx)
			return tx.QueryRow(ctx, sql).Scan(new(int))
		},
		"database/sql": func(ctx context.Context, pool *Pool) error {
			db := OpenDB(pool)
			defer db.Close()
			return db.QueryRowContext(ctx, sql).Scan(new(int))
		},
	}
}

func TestBalanceErrors(t *testing.T) {
	cluster := sharedCluster(t)
	for name, test := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"unknown":        {func(c *Config) { c.Balance = "nearest" }, []string{`"nearest"`, "least_busy", "fly_balance"}},
		"not weighted":   {func(c *Config) { c.ReplicaWeights = map[string]int{"ord": 1} }, []string{"ReplicaWeights", "ord:1", "fly_balance", `"weighted"`, `"local"`, "want"}},
		"nobody":         {weighted(map[string]int{"fra": 1}), []string{"ReplicaWeights", `"fra"`, `"ord.app.internal:5433"`, `"syd"`}},
		"negative":       {weighted(map[string]int{"ord": -1}), []string{"ReplicaWeights", `"ord"`, "-1", "0 to 1000000"}},
		"far too high":   {weighted(map[string]int{"ord": math.MaxInt}), []string{"ReplicaWeights", `"ord"`, "1000000"}},
		"nothing to use": {weighted(map[string]int{"ord": 0, "syd": 0}), []string{"ReplicaWeights", "ord:0 syd:0", "1 or more"}},
	} {
		t.Run(name, func(t *testing.T) {
			config := configIn(t, cluster, "ord")
			inBoth(config)
			test.change(config)
			pool, err := NewPoolWithConfig(t.Context(), config)
			if err == nil {
				pool.Close()
				t.Fatal("no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v, want %s in it", err, want)
				}
			}
		})
	}
	if c, err := ParseConfig("postgres://h/db?fly_fallback=false&fly_balance=least_busy"); err != nil || !c.NoFallback || c.Balance != BalanceLeastBusy {
		t.Errorf("fly_fallback=false: %v", err)
	}
}

// BenchmarkChoose is the cost of a choice among replicas.
func BenchmarkChoose(b *testing.B) {
	for _, balance := range balances {
		for _, n := range []int{3, 50} {
			b.Run(string(balance)+map[int]string{3: "/3", 50: "/50"}[n], func(b *testing.B) {
				rs := &replicas{balance: balancer{kind: balance}}
				var list []*replica
				for range n {
					list = append(list, &replica{region: "ord", host: &replicaHost{region: "ord", weight: 1}, tracker: &tracker{}, guard: &guard{}})
				}
				rs.store(list)
				b.ReportAllocs()
				for b.Loop() {
					rs.choose(&route{}, sessionState{}, nil)
				}
			})
		}
	}
}

// roundTrips has a replica answer in d, often enough to be sure of it.
func roundTrips(r *replica, d time.Duration) {
	for range 2 * leastTimes {
		r.tracker.fastest.measured(d)
	}
}
