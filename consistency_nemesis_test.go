package flyregion

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// fault is something that goes wrong for a while.
type fault struct {
	name   string
	breaks flaws
	alone  bool // it cannot stand another fault beside it
	// begin makes it go wrong, for a replica or for the processes in its region, and returns what heals it.
	begin func(n *nemesis, name string) (heal func())
}

func nothing() {}

// onLink is a fault of the path from the apps in a region to a server. A link that is stalled is so alone, as it keeps
// those from ending whom other faults wait for.
func onLink(what string, breaks flaws, to func(name string) string, begin func(*pgcluster.Link)) fault {
	return fault{what, breaks, strings.HasSuffix(what, "stalled"), func(n *nemesis, name string) func() {
		link := n.cluster.Link(n.region(name), to(name))
		begin(link)
		return link.Restore
	}}
}

func toPrimary(string) string      { return "nrt" }
func toReplica(name string) string { return name }

// altered is a fault of a server that has another setting.
func altered(what string, breaks flaws, setting string, in func(name string) string) fault {
	return fault{what, breaks, false, func(n *nemesis, name string) func() {
		return n.alter(n.cluster.Server(in(name)), setting)
	}}
}

var faults = []fault{
	{"replay paused", 0, false, func(n *nemesis, name string) func() {
		s := n.cluster.Server(name)
		n.must(s.PauseReplay(n.ctx))
		return func() { n.must(s.ResumeReplay(n.ctx)) }
	}},
	altered("replay delayed", 0, "recovery_min_apply_delay = '200ms'", toReplica),
	onLink("link to the primary cut", primaryBreaks, toPrimary, (*pgcluster.Link).Cut),
	onLink("link to the primary stalled", 0, toPrimary, (*pgcluster.Link).Stall),
	onLink("link to the primary cut after a write", primaryBreaks, toPrimary, func(link *pgcluster.Link) {
		link.CutAfter(func(sent []byte) bool {
			return bytes.Contains(sent, []byte("insert into")) || bytes.Contains(sent, []byte("update ")) || bytes.Contains(sent, []byte("commit"))
		})
	}),
	onLink("link to the replica cut", replicaBreaks, toReplica, (*pgcluster.Link).Cut),
	onLink("link to the replica stalled", 0, toReplica, (*pgcluster.Link).Stall),
	{"primary far", 0, false, func(n *nemesis, name string) func() {
		region := n.region(name)
		n.cluster.SetLatency(region, "nrt", time.Duration(20+n.r.IntN(100))*time.Millisecond)
		return func() { n.cluster.SetLatency(region, "nrt", 0) }
	}},
	{"replica far", 0, false, func(n *nemesis, name string) func() {
		region := n.region(name)
		n.cluster.SetLatency(region, region, time.Duration(1+n.r.IntN(50))*time.Millisecond)
		return func() { n.cluster.SetLatency(region, region, 0) }
	}},
	{"streaming cut", 0, false, func(n *nemesis, name string) func() {
		n.cluster.Replication(name).Cut()
		return n.cluster.Replication(name).Restore
	}},
	{"streaming stalled", 0, false, func(n *nemesis, name string) func() {
		n.cluster.Replication(name).Stall()
		return n.cluster.Replication(name).Restore
	}},
	{"replica crashed", replicaBreaks | replicaForgets, false, func(n *nemesis, name string) func() {
		n.must(n.cluster.Server(name).Crash(n.ctx))
		return nothing
	}},
	{"replica killed", replicaBreaks | replicaForgets, false, func(n *nemesis, name string) func() {
		n.must(n.cluster.Server(name).Kill())
		return func() { n.must(n.cluster.Server(name).Start(n.ctx)) }
	}},
	{"replica restarted", replicaBreaks | replicaForgets, false, func(n *nemesis, name string) func() {
		n.must(n.cluster.Server(name).Restart(n.ctx))
		return nothing
	}},
	{"replica comes back older", replicaBreaks | replicaForgets, true, func(n *nemesis, name string) func() {
		s, streaming := n.cluster.Server(name), n.cluster.Replication(name)
		reset := n.alter(s, "recovery_min_apply_delay = '1h'")
		streaming.Cut()
		n.must(s.Crash(n.ctx))
		return func() {
			reset()
			streaming.Restore()
		}
	}},
	{"replica killed in the midst of its replay", replicaBreaks | replicaForgets, true, func(n *nemesis, name string) func() {
		s, streaming := n.cluster.Server(name), n.cluster.Replication(name)
		n.must(s.DelayReplay(n.ctx, time.Hour))
		n.pause(20*time.Millisecond, 100*time.Millisecond)
		streaming.Cut()
		n.must(s.Kill())
		n.must(s.Start(n.ctx))
		return func() {
			n.must(s.DelayReplay(n.ctx, 0))
			streaming.Restore()
		}
	}},
	{"replica promoted by mistake", replicaBreaks | replicaForgets, true, func(n *nemesis, name string) func() {
		n.must(n.cluster.Server(name).Secede(n.ctx))
		return func() { n.rebuild(name) }
	}},
	{"replica of a replica", 0, false, func(n *nemesis, name string) func() {
		s, other := n.cluster.Server(name), map[string]string{"ord": "syd", "syd": "ord", "ord-2": "ord"}[name]
		n.must(s.Follow(other))
		return func() { n.must(s.Follow("")) }
	}},
	{"replica out of DNS", replicasChange, false, func(n *nemesis, name string) func() {
		n.cluster.Server(name).Unlist()
		return n.cluster.Server(name).List
	}},
	{"replica's connections ended", replicaBreaks, false, func(n *nemesis, name string) func() {
		n.must(n.cluster.Server(name).Exec(n.ctx, endConnections))
		return nothing
	}},
	{"replay ends reads", replicaBreaks, false, (*nemesis).conflict},
	{"primary crashed", primaryBreaks, false, func(n *nemesis, _ string) func() {
		n.flushed(func() { n.must(n.cluster.Leader().Crash(n.ctx)) })
		return nothing
	}},
	{"primary killed", primaryBreaks, false, func(n *nemesis, _ string) func() {
		n.flushed(func() { n.must(n.cluster.Leader().Kill()) })
		return func() { n.must(n.cluster.Leader().Start(n.ctx)) }
	}},
	{"primary restarted", primaryBreaks, false, func(n *nemesis, _ string) func() {
		n.must(n.cluster.Leader().Restart(n.ctx))
		return nothing
	}},
	{"primary's connections ended", primaryBreaks, false, func(n *nemesis, _ string) func() {
		n.must(n.cluster.Leader().Exec(n.ctx, endConnections))
		return nothing
	}},
	{"pooler killed", 0, false, func(n *nemesis, _ string) func() {
		for _, p := range n.processes {
			if p.bouncer != nil {
				p.bouncer.Kill()
			}
		}
		return nothing
	}},
	{"contexts canceled", 0, false, func(n *nemesis, _ string) func() {
		n.hasty.Store(true)
		return func() { n.hasty.Store(false) }
	}},
	{"log written ahead of commits", 0, false, func(n *nemesis, _ string) func() {
		conn, err := pgx.Connect(n.ctx, n.cluster.Leader().ConnString())
		n.must(err)
		_, err = conn.Exec(n.ctx, "begin; insert into entries select -10 from generate_series(1, 1000)")
		n.must(err)
		// What comes with it may have ended it.
		return func() { _ = conn.Close(n.ctx) }
	}},
	altered("log seldom flushed", 0, "wal_writer_delay = '10s'", toPrimary),
	{"pools reset", 0, false, func(n *nemesis, _ string) func() {
		for _, p := range n.processes {
			p.pool.Reset()
		}
		return nothing
	}},
	{"switchover", primaryBreaks | replicaBreaks | replicaForgets, true, func(n *nemesis, _ string) func() {
		n.promote("ord")
		for _, p := range n.processes {
			n.writes(p)
		}
		return func() { n.promote("nrt") }
	}},
	{"switchover beside the old primary", primaryBreaks | primaryRefuses | replicaBreaks | replicaForgets, true, func(n *nemesis, _ string) func() {
		if n.r.IntN(2) == 0 {
			n.must(n.cluster.Server("syd").Follow("ord"))
		}
		for _, s := range n.cluster.Servers() {
			n.must(s.WaitReplayed(n.ctx))
		}
		n.demote(func() {
			n.must(n.cluster.Server("ord").WaitReplayed(n.ctx))
			n.must(n.cluster.PromoteBeside(n.ctx, "ord"))
		})
		stop := n.grow("nrt")
		for _, p := range n.processes {
			n.writes(p)
		}
		return func() {
			stop()
			n.rebuild("nrt")
			n.rebuild("syd")
			n.rebuild("ord-2")
			n.promote("nrt")
		}
	}},
}

// healthy stands for no fault.
const healthy = "no fault"

// endConnections ends those of apps, and of the bouncers.
const endConnections = "select count(pg_terminate_backend(pid)) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"

// nemesis lets things go wrong in a history.
type nemesis struct {
	*history
	ctx     context.Context
	cluster *pgcluster.Cluster
	r       *rand.Rand
	backups map[string]*pgcluster.Backup // of the servers when the round began, by name
}

func (n *nemesis) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// region returns the region of a server.
func (n *nemesis) region(name string) string { return n.cluster.Server(name).Region() }

// anyReplica returns the name of a server in a region.
func (n *nemesis) anyReplica(region string) string {
	var names []string
	for _, s := range n.cluster.Servers() {
		if s.Region() == region {
			names = append(names, s.Name())
		}
	}
	return names[n.r.IntN(len(names))]
}

func (n *nemesis) pause(least, most time.Duration) {
	time.Sleep(least + time.Duration(n.r.Int64N(int64(most-least))))
}

// draw returns the next fault. In all rounds together each comes once before any comes again.
func (n *nemesis) draw() fault {
	if len(n.next) == 0 {
		n.next = n.r.Perm(len(faults))
	}
	f := faults[n.next[0]]
	n.next = n.next[1:]
	return f
}

// rage lets one fault come and go, or two at a time if one of them leaves the servers and the connections alone.
func (n *nemesis) rage() {
	now := []fault{n.draw()}
	if n.r.IntN(2) == 0 {
		if f := n.draw(); !f.alone && !now[0].alone && f.name != now[0].name && (f.breaks == 0 || now[0].breaks == 0) {
			now = append(now, f)
		} else {
			n.next = append([]int{slices.IndexFunc(faults, func(other fault) bool { return other.name == f.name })}, n.next...)
		}
	}
	// What is asked of a server comes before its end, and is undone after its return.
	slices.SortStableFunc(now, func(a, b fault) int { return int(a.breaks) - int(b.breaks) })

	var heals []func()
	for _, f := range now {
		name := n.anyReplica(n.processes[n.r.IntN(len(n.processes))].region)
		n.flaws.Or(uint32(f.breaks))
		n.now.Store(strings.TrimPrefix(fmt.Sprintf("%s, %s for %s", n.now.Load(), f.name, name), healthy+", "))
		heals = append(heals, f.begin(n, name))
		n.mu.Lock()
		n.faults[f.name]++
		n.mu.Unlock()
	}
	n.pause(50*time.Millisecond, 600*time.Millisecond)
	for _, heal := range slices.Backward(heals) {
		heal()
	}
	n.settle(nothing)
}

// settle ends the faults: it waits until every statement that may have suffered from them has ended, and every process is
// served again. Then it calls f, while there is no statement under way.
func (n *nemesis) settle(f func()) {
	n.gate.Lock()
	defer n.gate.Unlock()
	for _, p := range n.processes {
		n.serves(p)
	}
	// Nobody is about to end the two-phase commits that were left half done.
	conn, err := pgx.Connect(n.ctx, n.cluster.Leader().ConnString())
	n.must(err)
	defer conn.Close(n.ctx)
	rows, err := conn.Query(n.ctx, "select gid from pg_prepared_xacts")
	n.must(err)
	gids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	n.must(err)
	for _, gid := range gids {
		_, err := conn.Exec(n.ctx, "rollback prepared '"+gid+"'")
		n.must(err)
	}
	f()
	n.flaws.Store(0)
	n.now.Store(healthy)
}

// serves waits until a process is well again: until it has found out, as any pool does by using them, which of its
// connections are dead.
func (n *nemesis) serves(p *process) {
	if p.bouncer != nil {
		p.failures.Store(p.bouncer.Failures())
	}
	eventually(n.t, "all connections are given back", func() bool {
		s := p.pool.Stat()
		return s.AcquiredConns() == 0 && s.ConstructingConns() == 0
	})
	pools := []interface {
		AcquireAllIdle(context.Context) []*pgxpool.Conn
	}{p.pool.Primary()}
	for _, r := range p.pool.replicas.inUse() {
		pools = append(pools, r.pool)
		n.await(p, "the watcher reaches the replica in "+r.region, func(ctx context.Context) error {
			if r.left.Load() {
				return nil
			}
			_, err := r.tracker.observe(ctx, 0)
			return err
		})
	}
	for _, pool := range pools {
		for _, conn := range pool.AcquireAllIdle(n.ctx) {
			// One that does not answer is closed when it comes back.
			_ = conn.Ping(n.ctx)
			conn.Release()
		}
	}
	n.writes(p)
	n.await(p, "a read succeeds", func(ctx context.Context) error { return p.pool.QueryRow(ctx, readSQL, 0).Scan(new(int)) })
}

// writes waits until a process can write.
func (n *nemesis) writes(p *process) {
	n.await(p, "a write succeeds", func(ctx context.Context) error { return execs(ctx, p.pool, "insert into entries values (-20)") })
}

// await tries something for a process until it succeeds.
func (n *nemesis) await(p *process, what string, try func(context.Context) error) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.ctx, patience)
	defer cancel()
	var last error
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			n.t.Fatalf("during %s: it never happened for %s that %s: %v (%T), then %v\n%s", n.now.Load(), p, what, last, last, err, n.state())
		}
		last = err
		time.Sleep(5 * time.Millisecond)
	}
}

// state tells what the servers and the bouncers say of themselves.
func (n *nemesis) state() string {
	var b strings.Builder
	tail := func(log string, err error) {
		lines := strings.Split(strings.TrimSpace(log), "\n")
		for _, line := range lines[max(0, len(lines)-20):] {
			b.WriteString("    " + line + "\n")
		}
		if err != nil {
			fmt.Fprintf(&b, "    %v\n", err)
		}
	}
	for _, s := range n.cluster.Servers() {
		ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
		var says string
		err := queryOne(ctx, s, "select concat_ws(', ', case when pg_is_in_recovery() then 'a standby that has received ' || "+
			"coalesce(pg_last_wal_receive_lsn()::text, 'nothing') || ' and replayed ' || coalesce(pg_last_wal_replay_lsn()::text, 'nothing') "+
			"else 'a primary in ' || pg_walfile_name(pg_current_wal_lsn()) end, "+
			"'read only: ' || current_setting('default_transaction_read_only'), 'sessions: ' || (select count(*) from pg_stat_activity))", &says)
		cancel()
		fmt.Fprintf(&b, "  %s: leader: %v, running: %v, %s, %v\n", s.Name(), s == n.cluster.Leader(), s.Running(), says, err)
		tail(s.Log())
	}
	for _, p := range n.processes {
		fmt.Fprintf(&b, "  %s: %+v\n", p, p.pool.Stat())
		if p.bouncer != nil {
			tail(p.bouncer.Log())
		}
	}
	return b.String()
}

// flushed calls f, which ends the primary, when all that has committed asynchronously is flushed.
func (n *nemesis) flushed(f func()) {
	n.async.Lock()
	defer n.async.Unlock()
	n.must(n.cluster.Leader().Exec(n.ctx, "insert into entries values (-30)"))
	f()
}

// alter changes a setting of a server, until the returned function is called.
func (n *nemesis) alter(s *pgcluster.Server, setting string) (reset func()) {
	name, _, _ := strings.Cut(setting, " ")
	set := func(what string) {
		n.must(s.Exec(n.ctx, "alter system "+what))
		n.must(s.Exec(n.ctx, "select pg_reload_conf()"))
	}
	set("set " + setting)
	return func() { set("reset " + name) }
}

// conflict has the primary do what replay cannot do while somebody reads, and the replica not wait for those.
func (n *nemesis) conflict(name string) (heal func()) {
	reset := n.alter(n.cluster.Server(name), "max_standby_streaming_delay = 0")
	ctx, stop := context.WithCancel(n.ctx)
	var wg sync.WaitGroup
	for _, p := range n.processes {
		for range 4 {
			own := rand.New(rand.NewPCG(n.r.Uint64(), 0))
			wg.Go(func() {
				for ctx.Err() == nil && p.region == n.region(name) {
					n.readSlowly(p, own)
				}
			})
		}
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			// What comes with it may keep it from succeeding.
			leader := n.cluster.Leader()
			_ = leader.Exec(ctx, "delete from entries where id < 0")
			_ = leader.Exec(ctx, "vacuum entries, registers")
			_ = leader.Exec(ctx, "begin; lock registers; commit")
		}
	})
	// What comes with it may keep it from happening.
	for before, tries := n.conflicts(), 0; n.conflicts() == before && tries < 200; tries++ {
		time.Sleep(10 * time.Millisecond)
	}
	return func() {
		stop()
		wg.Wait()
		reset()
	}
}

// conflicts returns how many reads have moved to the primary because of replay.
func (n *nemesis) conflicts() (moved int64) {
	for _, p := range n.processes {
		for _, c := range p.pool.Stat().Statements() {
			if c.Reason == string(becauseConflict) {
				moved += c.Count
			}
		}
	}
	return moved
}

// readSlowly reads on the replica for so long that replay wants what the read uses. Such a read moves to the primary.
func (n *nemesis) readSlowly(p *process, r *rand.Rand) {
	ctx, s := n.begin("read slowly", p, nil, false, r)
	var entries, registers int
	err := p.pool.QueryRow(WithoutWait(ctx), "select (select count(*) from entries where id < 0), (select count(*) from registers) from pg_sleep(0.1)").
		Scan(&entries, &registers)
	n.end(s, err)
}

// promote makes a server the primary, without losing anything.
func (n *nemesis) promote(region string) {
	for _, s := range n.cluster.Servers() {
		n.must(s.WaitReplayed(n.ctx))
	}
	n.must(n.cluster.Promote(n.ctx, region))
	for _, s := range n.cluster.Servers() {
		n.must(s.WaitReplayed(n.ctx))
	}
}

// demote makes the primary in nrt read-only, calls f when nobody can have written to it any more and all of it is flushed,
// and leaves it so.
func (n *nemesis) demote(f func()) {
	nrt := n.cluster.Server("nrt")
	conn, err := pgx.Connect(n.ctx, nrt.ConnString())
	n.must(err)
	defer conn.Close(n.ctx)
	for _, sql := range []string{"alter system set default_transaction_read_only = on", "select pg_reload_conf()"} {
		_, err := conn.Exec(n.ctx, sql)
		n.must(err)
	}
	eventually(n.t, "the server has read its settings", func() bool {
		var readOnly string
		n.must(conn.QueryRow(n.ctx, "show default_transaction_read_only").Scan(&readOnly))
		return readOnly == "on"
	})
	// Backends that are older than that may be in the midst of a transaction that writes.
	eventually(n.t, "nobody can write to it", func() bool {
		_, err := conn.Exec(n.ctx, endConnections)
		n.must(err)
		var older int
		n.must(conn.QueryRow(n.ctx, "select count(*) from pg_stat_activity where backend_type = 'client backend' "+
			"and pid <> pg_backend_pid() and backend_start < pg_conf_load_time()").Scan(&older))
		return older == 0
	})
	_, err = conn.Exec(n.ctx, "checkpoint")
	n.must(err)
	f()
	for _, p := range n.processes {
		if p.bouncer != nil {
			p.bouncer.Reconnect()
		}
	}
}

// grow lets the log of a server grow until the returned function is called.
func (n *nemesis) grow(region string) (stop func()) {
	ctx, cancel := context.WithCancel(n.ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			_ = n.cluster.Server(region).Exec(ctx, "select pg_logical_emit_message(false, '', repeat('x', 50000))")
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// rebuild puts a server back to where it was when the round began, from where it follows the primary.
func (n *nemesis) rebuild(name string) {
	s := n.cluster.Server(name)
	n.must(s.Follow(""))
	n.must(s.Restore(n.ctx, n.backups[name]))
	n.must(s.WaitReplayed(n.ctx))
}

// loss is one of the ways to end a round: it loses writes that have returned. It returns the processes whose replica follows
// the new primary, and the name of what happened.
type loss func(n *nemesis, behind []string) (follow []*process, name string)

var losses = []loss{(*nemesis).failover, (*nemesis).failoverBeside, (*nemesis).restored}

// lose ends the round.
func (n *nemesis) lose(end loss) (follow []*process) {
	n.settle(func() {
		if err := n.verify(); err != nil {
			n.t.Error(err)
		}
	})
	n.flaws.Store(uint32(primaryBreaks | primaryRefuses | replicaBreaks | replicaForgets | writesAreLost))
	n.now.Store("a loss of writes")
	for _, s := range n.cluster.Servers() {
		n.must(s.WaitReplayed(n.ctx))
	}
	behind := [][]string{{"ord"}, {"ord"}, {"syd"}, {"ord", "syd"}}[n.r.IntN(4)]
	follow, name := end(n, behind)
	n.settle(n.forget)
	n.now.Store("after " + name)
	n.mu.Lock()
	n.faults[name+", behind "+strings.Join(behind, " and ")]++
	n.mu.Unlock()
	return follow
}

// cutOff has the primary write what some replicas do not get.
func (n *nemesis) cutOff(behind []string) {
	for _, region := range behind {
		n.cluster.Replication(region).Cut()
	}
	n.must(n.cluster.Leader().Exec(n.ctx, "insert into entries select -40 from generate_series(1, 20000)"))
	n.pause(50*time.Millisecond, 300*time.Millisecond)
}

// failover kills the primary before it has sent all that was written to the replica that takes its place. The other one
// may have got it.
func (n *nemesis) failover(behind []string) (follow []*process, name string) {
	ord, syd := n.cluster.Server("ord"), n.cluster.Server("syd")
	n.cutOff(behind)
	n.must(n.cluster.Leader().Kill())
	received := map[*pgcluster.Server]int64{}
	for _, s := range []*pgcluster.Server{ord, syd} {
		eventually(n.t, "the replica has replayed what it has received", func() bool {
			var rest, all int64
			const sql = "select pg_last_wal_receive_lsn() - pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn() - '0/0'"
			err := n.one(s, sql, &rest, &all)
			received[s] = all
			return err == nil && rest <= 0
		})
	}
	for _, region := range behind {
		n.cluster.Replication(region).Restore()
	}
	n.must(n.cluster.Promote(n.ctx, "ord"))
	for _, p := range n.processes {
		if p.region == "ord" || received[syd] <= received[ord] {
			follow = append(follow, p)
		}
	}
	return follow, "failover"
}

// failoverBeside promotes a replica that has not got all that was written, while the old primary lives on and has the other
// replica follow it. Nobody writes to it any more, but its log grows.
func (n *nemesis) failoverBeside([]string) (follow []*process, name string) {
	n.cutOff([]string{"ord"})
	n.demote(func() { n.must(n.cluster.PromoteBeside(n.ctx, "ord")) })
	n.cluster.Replication("ord").Restore()
	n.t.Cleanup(n.grow("nrt"))
	if n.r.IntN(2) == 0 {
		n.rebuild("syd")
		return n.processes, "failover beside the old primary, the other replica rebuilt"
	}
	for _, p := range n.processes {
		if p.region == "ord" {
			follow = append(follow, p)
		}
	}
	return follow, "failover beside the old primary"
}

// restored puts the primary back to a copy of itself, from where it goes on as if what came after had never been. Replicas
// may be ahead of it then.
func (n *nemesis) restored(behind []string) (follow []*process, name string) {
	nrt := n.cluster.Server("nrt")
	for _, region := range behind {
		n.cluster.Replication(region).Cut()
	}
	backup, err := nrt.Backup(n.ctx)
	n.must(err)
	for _, p := range n.processes {
		n.writes(p)
		if slices.Contains(behind, p.region) {
			follow = append(follow, p)
		}
	}
	n.pause(50*time.Millisecond, 300*time.Millisecond)
	n.must(nrt.Restore(n.ctx, backup))
	for _, region := range behind {
		n.cluster.Replication(region).Restore()
	}
	return follow, "primary restored"
}

// one asks a server for one row.
func (n *nemesis) one(s *pgcluster.Server, sql string, to ...any) error {
	conn, err := pgx.Connect(n.ctx, s.ConnString())
	if err != nil {
		return err
	}
	defer conn.Close(n.ctx)
	return conn.QueryRow(n.ctx, sql).Scan(to...)
}

// contents returns what the primary has: the registers' values, and how often there is each entry.
func (n *nemesis) contents() (values [registers]int64, entries map[int]int) {
	conn, err := pgx.Connect(n.ctx, n.cluster.Leader().ConnString())
	n.must(err)
	defer conn.Close(n.ctx)
	rows, err := conn.Query(n.ctx, "select v from registers order by key")
	n.must(err)
	found, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	n.must(err)
	if copy(values[:], found) != registers {
		n.t.Fatalf("there are %d registers", len(found))
	}
	rows, err = conn.Query(n.ctx, "select id from entries where id > 0")
	n.must(err)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	n.must(err)
	entries = map[int]int{}
	for _, id := range ids {
		entries[id]++
	}
	return values, entries
}

// forget drops what a failover has lost from what must be seen.
func (n *nemesis) forget() {
	values, entries := n.contents()
	for _, w := range n.witnesses() {
		for key, v := range values {
			w.registers[key].Store(min(v, w.registers[key].Load()))
		}
		w.entries = slices.DeleteFunc(w.all(), func(id int) bool { return entries[id] == 0 })
	}
}

// verify looks at the primary when all is over: everything that must be there is, and nothing is there twice.
func (n *nemesis) verify() error {
	values, entries := n.contents()
	var errs []error
	for id, times := range entries {
		if times > 1 && id < 1_000_000 { // what is above goes with the entry of a large copy
			errs = append(errs, fmt.Errorf("entry %d was written %d times", id, times))
		}
	}
	for i, w := range n.witnesses() {
		for _, id := range w.all() {
			if entries[id] == 0 {
				errs = append(errs, fmt.Errorf("witness %d: entry %d is lost", i, id))
			}
		}
		for key, v := range values {
			if want := w.registers[key].Load(); v < want {
				errs = append(errs, fmt.Errorf("witness %d: register %d is %d, want %d", i, key, v, want))
			}
		}
	}
	return errors.Join(errs[:min(len(errs), 20)]...)
}
