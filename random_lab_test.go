package flyregion

import (
	"bytes"
	"context"
	"errors"
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
	leader  *randomServer // the primary
	replica *randomServer // in ord

	operations, idle, failures int
	licensed                   map[string]int
	sent                       map[string]int64 // acquisitions of the Pools, by server
	cuts                       map[string]int   // with the link to the primary: how it broke, what became of writes, reads that were compared
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
	l := &randomLab{t: t, cluster: cluster, licensed: map[string]int{}, sent: map[string]int64{}, cuts: map[string]int{}}
	connect := func(s *pgcluster.Server) *randomServer {
		conn, err := pgx.Connect(t.Context(), s.ConnString())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		return &randomServer{Conn: conn}
	}
	l.leader, l.replica = connect(cluster.Leader()), connect(cluster.Server("ord"))
	return l
}

// randomServer is a connection straight to a server, for one goroutine at a time.
type randomServer struct {
	*pgx.Conn
	mu     sync.Mutex
	paused bool // the replica's replay; guarded by mu
}

func (s *randomServer) exec(sql string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.Exec(context.Background(), sql)
	return err
}

// ask scans the one row of a query.
func (s *randomServer) ask(sql string, args []any, dest ...any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.QueryRow(context.Background(), sql, args...).Scan(dest...)
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
	create procedure p_sets(v text) language plpgsql as 'begin perform set_config(''app.x'', v, false); end';
	create procedure p(i int) language plpgsql as 'begin insert into log (what) values (''p'' || i); end';
	create procedure p_commit(i int) language plpgsql as 'begin insert into log (what) values (''c'' || i); commit; insert into log (what) values (''r'' || i); rollback; end';
	create function logged() returns trigger language plpgsql as 'begin insert into log (what) values (''t'' || new.id); return new; end';
	create trigger logged after update on items for each row when (new.n % 5 = 0) execute function logged();
	reset search_path`

// prepare makes a schema anew and lets the replica have it.
func (l *randomLab) prepare(schema string) {
	l.t.Helper()
	if err := l.leader.exec(strings.ReplaceAll(randomSetup, "SCHEMA", schema)); err != nil {
		l.t.Fatal(err)
	}
	l.caughtUp()
}

// caughtUp lets the replica's replay continue, and waits until it shows all that the primary has.
func (l *randomLab) caughtUp() {
	l.t.Helper()
	// The commit flushes what others have left in memory, such as an asynchronous commit. Not the insert position: at the end
	// of a page it lies behind a header that nobody has written yet.
	var position string
	err := l.leader.exec("select pg_logical_emit_message(true, 'random', '')")
	if err == nil {
		err = l.leader.ask("select pg_current_wal_flush_lsn()::text", nil, &position)
	}
	for start, shown := time.Now(), false; err == nil && !shown; time.Sleep(time.Millisecond) {
		l.resume()
		err = l.replica.ask("select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", []any{position}, &shown)
		if time.Since(start) > randomPatience {
			err = errors.New("the replica does not replay")
		}
	}
	if err != nil {
		l.t.Error(err)
	}
}

// sleeps reports whether a server runs a program's pg_sleep.
func (l *randomLab) sleeps(p *randomProgram) bool {
	for _, server := range []*randomServer{l.leader, l.replica} {
		var sleeps bool
		err := server.ask(`
			select exists (select from pg_stat_activity where wait_event = 'PgSleep' and query like $1)`,
			[]any{p.sleeping()}, &sleeps)
		if err != nil {
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
	if err := l.leader.ask("select pg_current_wal_insert_lsn()::text", nil, &position); err != nil {
		l.t.Error(err)
	}
	return position
}

// pause halts the replica's replay.
func (l *randomLab) pause() {
	s := l.replica
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.Exec(context.Background(), "select pg_wal_replay_pause()")
	for state := ""; err == nil && state != "paused"; {
		err = s.QueryRow(context.Background(), "select pg_get_wal_replay_pause_state()").Scan(&state)
	}
	if err != nil {
		l.t.Error(err)
	}
	s.paused = true
}

// resume continues the replica's replay.
func (l *randomLab) resume() {
	s := l.replica
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.paused {
		return
	}
	s.paused = false
	if _, err := s.Exec(context.Background(), "select pg_wal_replay_resume()"); err != nil {
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
	doing := func() string { return fmt.Sprintf("%s at %s (pgxpool: %v)", p.name(), m.doing(), plain) }
	left := l.labelled(doing, func(ctx context.Context) {
		if err := m.open(ctx); err != nil {
			result.end = append(result.end, "cannot open the pool: "+err.Error())
			return
		}
		m.all(result, skip)
		m.closePool()
		result.end = append(m.saw, l.contents(schema)...)
		result.wrong = m.wrong
	})
	if left != "" {
		result.end = append(result.end, left)
		result.wrong = append(result.wrong, left)
	}
	return result
}

// all does all operations of the machine's program, and ends what they have left open.
func (m *randomMachine) all(result *randomResult, skip []bool) {
	for i, op := range m.program.ops {
		m.now.Store(op)
		result.saw = append(result.saw, m.do(op, &result.skipped[i], skip != nil && skip[i]))
	}
	m.saw = nil
	m.restoreLink()
	m.guarded("the end", m.closeAll)
	if m.program.cuts == "nrt" {
		m.recovers()
	}
	for _, cancel := range m.cancels {
		cancel()
	}
}

// doing says what the machine does.
func (m *randomMachine) doing() string {
	if op, ok := m.now.Load().(*randomOp); ok {
		return op.text
	}
	return "the start"
}

// labelled runs f in a goroutine, and returns what is left of it and of all that come out of it: "" if nothing is.
func (l *randomLab) labelled(doing func() string, f func(ctx context.Context)) (left string) {
	l.t.Helper()
	finished := make(chan struct{})
	label := strconv.FormatUint(clock.Add(1), 10)
	go pprof.Do(context.Background(), pprof.Labels("random", label), func(ctx context.Context) {
		defer close(finished)
		f(ctx)
	})
	select {
	case <-finished:
	case <-time.After(10 * randomPatience):
		stacks := make([]byte, 1<<20)
		l.t.Fatalf("%s hangs\n%s", doing(), stacks[:runtime.Stack(stacks, true)])
	}
	if left = goroutinesLeft(label); left != "" {
		left = "goroutines are left:\n" + left
	}
	return left
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
	config := m.lab.config(m.program, region, m.schema)
	config.SimulateReplica = !m.plain && m.program.simulate
	switch {
	case m.program.cuts == "nrt":
		m.link = m.lab.cluster.Link(region, "nrt")
	case !m.plain && m.program.cuts == "ord":
		m.link = m.lab.cluster.Link(region, "ord")
	}
	m.under(ctx)
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
	m.use(pool)
	return nil
}

// under has the machine run under a context, and in a session if its program says so.
func (m *randomMachine) under(ctx context.Context) {
	m.ctx = ctx
	if m.program.session {
		m.ctx = WithSession(m.ctx, &Session{})
	}
}

// use has the machine run on a Pool.
func (m *randomMachine) use(pool *Pool) {
	m.anyPool, m.stat, m.primary, m.ours = pool, func() anyStat { return pool.Stat() }, pool.Primary(), pool
}

// config returns the configuration of a program's pool.
func (l *randomLab) config(p *randomProgram, region, schema string) *Config {
	config := configIn(l.t, l.cluster, region)
	config.MinReplicaWait, config.MaxReplicaWait = time.Millisecond, 5*time.Second
	if p.awaitWrites {
		// Each write waits so long while replay halts.
		config.AwaitWrites, config.MaxReplicaWait = true, 20*time.Millisecond
	}
	config.MaxConns = p.maxConns
	config.ConnConfig.DefaultQueryExecMode = p.mode
	config.ConnConfig.RuntimeParams["search_path"] = schema
	config.ConnConfig.RuntimeParams["lock_timeout"] = randomLockTimeout
	if p.prepared {
		config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			for _, s := range randomPrepared {
				if _, err := conn.Prepare(ctx, s[0], s[1]); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return config
}

// closePool closes the machine's pool, and notes what is wrong then.
func (m *randomMachine) closePool() {
	from := len(m.saw)
	used := func() (n int32) {
		for start := time.Now(); time.Since(start) < 5*time.Second; time.Sleep(time.Millisecond) {
			if n = m.stat().AcquiredConns() + m.stat().ConstructingConns(); n == 0 {
				return 0
			}
		}
		return n
	}()
	m.note(fmt.Sprintf("%d connections are in use", used))
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
		m.note("closed")
	case <-time.After(randomPatience):
		m.note("Close does not return")
	}
	if m.program.cuts == "nrt" {
		m.checkOnce()
		if text := strings.Join(m.saw[from:], ", "); text != "0 connections are in use, closed" {
			m.blame(text)
		}
	}
}

// contents returns what is in the tables and sequences of a schema.
func (l *randomLab) contents(schema string) (lines []string) {
	l.leader.mu.Lock()
	defer l.leader.mu.Unlock()
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
