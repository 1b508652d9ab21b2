package flyregion

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// randomLab is where programs run: a primary and a replica, with a schema for pgxpool and one for the Pool.
type randomLab struct {
	t       testing.TB
	cluster *pgcluster.Cluster
	leader  *pgx.Conn // straight to the primary
	replica *pgx.Conn // straight to the replica in ord
	paused  bool

	operations, idle, failures int
	licensed                   map[string]int
	sent                       map[string]int64 // acquisitions of the Pools, by server
	breaks                     map[string]int   // of links, by kind, and the writes under them by their outcome
	looks                      int              // that were compared with the primary
}

const (
	randomPlainSchema = "rnd_p"
	randomOurSchema   = "rnd_f"
	randomLockTimeout = "500ms"
	// randomPatience is how long anything may take that does not hang.
	randomPatience = 20 * time.Second
)

func newRandomLab(t *testing.T) *randomLab {
	cluster := ownCluster(t, map[string]string{
		// A request to cancel may come before the statement that it is meant for. Then the server runs that for nobody.
		"client_connection_check_interval": "100ms",
	})
	l := &randomLab{t: t, cluster: cluster, licensed: map[string]int{}, sent: map[string]int64{}, breaks: map[string]int{}}
	connect := func(s *pgcluster.Server) *pgx.Conn {
		conn, err := pgx.Connect(t.Context(), s.ConnString())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		return conn
	}
	l.leader, l.replica = connect(cluster.Leader()), connect(cluster.Server("ord"))
	return l
}

// randomSetup makes what a program works on.
const randomSetup = `
	drop schema if exists SCHEMA cascade;
	create schema SCHEMA;
	set search_path = SCHEMA;
	create type mood as enum ('sad', 'ok');
	create table items (id int primary key, n int not null check (n >= 0), v text, parent int references items deferrable initially deferred);
	insert into items select 20 * lane + i, i, 'v' || i, null from generate_series(0, 11) lane, generate_series(1, 9) i;
	create table log (k int generated always as identity primary key, what text);
	create table once (k int generated always as identity primary key, what text);
	create function write_once(what text) returns int language sql as 'insert into once (what) values (what) returning k';
	create unlogged table hasty (id int);
	insert into hasty values (1), (2);
	create sequence seq;
	create view item_view as select id, n from items;
	create function stable_n(i int) returns int stable language sql as 'select n from items where id = i';
	create function volatile_n(i int) returns int language sql as 'select n from items where id = i';
	create function w(i int) returns int language plpgsql as 'begin insert into log (what) values (''w'' || i); return i; end';
	create function late_w(i int) returns int stable language plpgsql as 'begin if i > 3 then return w(i); end if; return i; end';
	create function swallow(i int) returns text language plpgsql as
		'begin insert into log (what) values (''s'' || i); return ''written''; exception when others then return ''swallowed''; end';
	create function raises(i int, code text) returns int language plpgsql as
		'begin if i > 2 then raise exception ''raised %'', i using errcode = code; end if; return i; end';
	create function stably_raises(i int, code text) returns int stable language plpgsql as
		'begin if i > 2 then raise exception ''raised %'', i using errcode = code; end if; return i; end';
	create function set_app(v text) returns text language sql as 'select set_config(''app.x'', v, true)';
	create procedure p(i int) language plpgsql as 'begin insert into log (what) values (''p'' || i); end';
	create procedure p_commit(i int) language plpgsql as 'begin insert into log (what) values (''c'' || i); commit; insert into log (what) values (''r'' || i); rollback; end';
	create function logged() returns trigger language plpgsql as 'begin insert into log (what) values (''t'' || new.id); return new; end';
	create trigger logged after update on items for each row when (new.n % 5 = 0) execute function logged();
	reset search_path`

// prepare makes a schema anew and lets the replica have it.
func (l *randomLab) prepare(schema string) {
	l.t.Helper()
	if _, err := l.leader.Exec(context.Background(), strings.ReplaceAll(randomSetup, "SCHEMA", schema)); err != nil {
		l.t.Fatal(err)
	}
	l.resume()
	l.caughtUp()
}

// caughtUp waits until the replica shows all that the primary has.
func (l *randomLab) caughtUp() {
	l.t.Helper()
	ctx := context.Background()
	var position string
	// The commit flushes what others have left in memory, such as an asynchronous commit. Not the insert position: at the end
	// of a page it lies behind a header that nobody has written yet.
	if _, err := l.leader.Exec(ctx, "select pg_logical_emit_message(true, 'random', '')"); err != nil {
		l.t.Fatal(err)
	}
	if err := l.leader.QueryRow(ctx, "select pg_current_wal_flush_lsn()::text").Scan(&position); err != nil {
		l.t.Fatal(err)
	}
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		var shown bool
		err := l.replica.QueryRow(ctx, "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", position).Scan(&shown)
		if err != nil {
			l.t.Fatal(err)
		}
		if shown {
			return
		}
		if time.Since(start) > randomPatience {
			l.t.Fatal("the replica does not replay")
		}
	}
}

const randomSleepsSQL = "select exists (select from pg_stat_activity where state = 'active' and query like '%pg_sleep(60)%' and pid <> pg_backend_pid())"

// sleeps reports whether a server runs pg_sleep.
func (l *randomLab) sleeps() bool {
	for _, conn := range []*pgx.Conn{l.leader, l.replica} {
		var sleeps bool
		if err := conn.QueryRow(context.Background(), randomSleepsSQL).Scan(&sleeps); err != nil {
			l.t.Error(err)
		}
		if sleeps {
			return true
		}
	}
	return false
}

// written returns a text that changes whenever something is written.
func (l *randomLab) written() (position string) {
	if err := l.leader.QueryRow(context.Background(), "select pg_current_wal_insert_lsn()::text").Scan(&position); err != nil {
		l.t.Error(err)
	}
	return position
}

// pause halts the replica's replay.
func (l *randomLab) pause() {
	ctx := context.Background()
	if _, err := l.replica.Exec(ctx, "select pg_wal_replay_pause()"); err != nil {
		l.t.Error(err)
	}
	for state := ""; state != "paused"; {
		if err := l.replica.QueryRow(ctx, "select pg_get_wal_replay_pause_state()").Scan(&state); err != nil {
			l.t.Error(err)
			return
		}
	}
	l.paused = true
}

// resume continues the replica's replay.
func (l *randomLab) resume() {
	if !l.paused {
		return
	}
	l.paused = false
	if _, err := l.replica.Exec(context.Background(), "select pg_wal_replay_resume()"); err != nil {
		l.t.Error(err)
	}
}

// randomResult is what a program saw.
type randomResult struct {
	saw     [][]string // by operation
	end     []string
	wrong   []string
	skipped []bool // by operation: there was no connection left for it
}

// run runs a program on pgxpool if skip is nil, else on a Pool, where it leaves out what skip says.
func (l *randomLab) run(p *randomProgram, skip []bool) *randomResult {
	l.t.Helper()
	plain := skip == nil
	schema := randomOurSchema
	if plain {
		schema = randomPlainSchema
	}
	l.prepare(schema)
	defer l.resume()

	m := &randomMachine{lab: l, program: p, schema: schema, plain: plain}
	result := &randomResult{skipped: make([]bool, len(p.ops))}
	finished := make(chan struct{})
	label := strconv.FormatUint(clock.Add(1), 10)
	// All goroutines that come out of this one carry its label.
	go pprof.Do(context.Background(), pprof.Labels("random", label), func(ctx context.Context) {
		defer close(finished)
		if err := m.open(ctx); err != nil {
			result.end = append(result.end, "cannot open the pool: "+err.Error())
			return
		}
		for i, op := range p.ops {
			m.now.Store(op)
			result.saw = append(result.saw, m.do(op, &result.skipped[i], skip != nil && skip[i]))
		}
		result.end = m.finish()
		result.wrong = m.wrong
	})
	select {
	case <-finished:
	case <-time.After(10 * randomPatience):
		stacks := make([]byte, 1<<20)
		l.t.Fatalf("%s hangs (pgxpool: %v) at %v\n%s\n%s", p.name(), plain, m.now.Load().(*randomOp).text, p, stacks[:runtime.Stack(stacks, true)])
	}
	for len(result.saw) < len(p.ops) {
		result.saw = append(result.saw, nil)
	}
	if left := goroutinesLeft(label); left != "" {
		result.end = append(result.end, "goroutines are left:\n"+left)
		result.wrong = append(result.wrong, "goroutines are left:\n"+left)
	}
	return result
}

// goroutinesLeft waits until no goroutine has a label any more, and returns the stacks of those that keep running.
func goroutinesLeft(label string) string {
	mark := fmt.Sprintf("# labels: {\"random\":%q}", label)
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		var profile bytes.Buffer
		_ = pprof.Lookup("goroutine").WriteTo(&profile, 1)
		var left []string
		for group := range strings.SplitSeq(profile.String(), "\n\n") {
			if strings.Contains(group, mark) {
				left = append(left, group)
			}
		}
		if len(left) == 0 || time.Since(start) > 10*time.Second {
			return strings.Join(left, "\n\n")
		}
	}
}

// open opens the machine's pool.
func (m *randomMachine) open(ctx context.Context) error {
	region := "ord"
	if m.plain || m.program.simulate {
		region = "nrt"
	}
	config := configIn(m.lab.t, m.lab.cluster, region)
	config.SimulateReplica = !m.plain && m.program.simulate
	config.MinReplicaWait, config.MaxReplicaWait = time.Millisecond, 5*time.Second
	if m.program.awaitWrites {
		// Each write waits so long while replay halts.
		config.AwaitWrites, config.MaxReplicaWait = true, 20*time.Millisecond
	}
	config.MaxConns = m.program.maxConns
	config.ConnConfig.DefaultQueryExecMode = m.program.mode
	config.ConnConfig.RuntimeParams["search_path"] = m.schema
	config.ConnConfig.RuntimeParams["lock_timeout"] = randomLockTimeout
	if m.program.prepared {
		config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			for _, s := range randomPrepared {
				if _, err := conn.Prepare(ctx, s[0], s[1]); err != nil {
					return err
				}
			}
			return nil
		}
	}
	m.ctx = ctx
	if m.program.session {
		m.ctx = WithSession(m.ctx, &Session{})
	}
	switch {
	case m.program.cuts == "nrt":
		m.link = m.lab.cluster.Link(region, "nrt")
	case !m.plain && m.program.cuts == "ord":
		m.link = m.lab.cluster.Link(region, "ord")
	}
	if m.plain {
		config.ConnConfig.Host = "nrt.app.internal" // as the Pool makes of it
		pool, err := pgxpool.NewWithConfig(m.ctx, config.Config)
		if err != nil {
			return err
		}
		m.anyPool, m.stat, m.primary = pool, func() anyStat { return pool.Stat() }, pool
		return nil
	}
	pool, err := NewPoolWithConfig(m.ctx, config)
	if err != nil {
		return err
	}
	m.anyPool, m.stat, m.primary, m.ours = pool, func() anyStat { return pool.Stat() }, pool.Primary(), pool
	return nil
}

// finish ends all that is open, closes the pool and returns what is wrong then, and what is in the tables.
func (m *randomMachine) finish() (end []string) {
	defer func() {
		for _, cancel := range m.cancels {
			cancel()
		}
	}()
	m.saw = nil
	m.restoreLink()
	m.guarded("the end", m.closeAll)
	if m.program.cuts == "nrt" {
		m.recovers()
	}
	end = m.saw
	used := func() (n int32) {
		for start := time.Now(); time.Since(start) < 5*time.Second; time.Sleep(time.Millisecond) {
			if n = m.stat().AcquiredConns() + m.stat().ConstructingConns(); n == 0 {
				return 0
			}
		}
		return n
	}()
	end = append(end, fmt.Sprintf("%d connections are in use", used))
	if m.ours != nil {
		stat := m.ours.Stat()
		m.lab.sent["primary"] += stat.Primary().AcquireCount()
		m.lab.sent["replica"] += stat.AcquireCount() - stat.Primary().AcquireCount()
	}

	var closing sync.WaitGroup
	closing.Go(m.Close)
	closed := make(chan struct{})
	go func() {
		closing.Wait()
		close(closed)
	}()
	select {
	case <-closed:
		end = append(end, "closed")
	case <-time.After(randomPatience):
		end = append(end, "Close does not return")
	}
	if m.program.cuts == "nrt" {
		m.checkOnce()
		if used != 0 || end[len(end)-1] != "closed" {
			m.blame(strings.Join(end, "\n"))
		}
	}
	return append(end, m.lab.contents(m.schema)...)
}

// contents returns what is in the tables and sequences of a schema.
func (l *randomLab) contents(schema string) (lines []string) {
	ctx := context.Background()
	names, err := l.leader.Query(ctx, `
		select c.relname, c.relkind = 'S' from pg_class c
		where c.relnamespace = $1::regnamespace and c.relkind in ('r', 'S') order by 1`, schema)
	if err != nil {
		return []string{err.Error()}
	}
	type relation struct {
		Name     string
		Sequence bool
	}
	relations, err := pgx.CollectRows(names, pgx.RowToStructByPos[relation])
	if err != nil {
		return []string{err.Error()}
	}
	for _, r := range relations {
		what, order := "*", " order by 1"
		if r.Sequence {
			what, order = "last_value, is_called", ""
		}
		rows, err := l.leader.Query(ctx, "select row("+what+")::text from "+schema+"."+r.Name+order)
		if err != nil {
			lines = append(lines, err.Error())
			continue
		}
		content, err := pgx.CollectRows(rows, pgx.RowTo[string])
		lines = append(lines, fmt.Sprint(r.Name, ": ", content, " ", err))
	}
	var left int
	err = l.leader.QueryRow(ctx, "select count(*) from pg_prepared_xacts where gid like $1", schema+"%").Scan(&left)
	return append(lines, fmt.Sprint("prepared transactions: ", left, " ", err))
}
