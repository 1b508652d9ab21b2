package flyregion

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/flyregion/flyregion/internal/sqltext"
	"github.com/jackc/pgx/v5"
)

// volatileSchema makes a schema s of functions that catch the refusal of a standby, and of what calls them.
const volatileSchema = `
	create schema s;
	create table s.log (id int);
	create function s.log(int) returns int language plpgsql as $$
		begin insert into s.log values ($1); return 1; exception when others then return 0; end $$;
	create function s.stable_(int) returns int language sql stable as 'select $1';
	create function s.over_(int) returns int language sql immutable as 'select $1';
	create function s.over_(int, int) returns int language plpgsql as $$ begin return s.log($1); end $$;
	create function s."Quo""ted"(int) returns int language plpgsql as $$ begin return s.log($1); end $$;
	create function s."quo""ted"(int) returns int language plpgsql stable as $$ begin return 1; end $$;
	create function s.trans(int, int) returns int language plpgsql as $$ begin return s.log($2); end $$;
	create aggregate s.agg(int) (sfunc = s.trans, stype = int, initcond = 0);
	create function s.defaulted(a int default s.log(1)) returns int stable language sql as 'select $1';
	create function s.random(int) returns int language plpgsql as $$ begin return s.log($1); end $$;
	create function s.only_reads(int) returns int language plpgsql as $$ begin return $1; end $$;
	create procedure s.proc() language sql as 'select 1';
	create view s.v as select s.log(1) as x;
	create view s."V 2" as select * from s.v;
	create view s.v3 as select s.agg(x) from s."V 2";
	create materialized view s.mv as select 1 as x union all select s.log(1) where false;
	create view s.over_mv as select * from s.mv;
	create view s.of_declared as select s.only_reads(1);
	create view s.random_ as select random();
	create table s.pol (id int);
	alter table s.pol enable row level security;
	create policy p on s.pol using (s.log(id) = 1);
	create view s.over_pol as select * from s.pol;
	create table s.pol_w (id int);
	create policy p on s.pol_w for insert with check (s.log(id) = 1);
	create function s.op(int, int) returns bool language plpgsql as $$ begin return s.log($1) = 1; end $$;
	create operator s.### (function = s.op, leftarg = int, rightarg = int);
	create sequence s.counters;
	create sequence s.plain_seq;
	create view s.over_seq as select last_value from s.plain_seq;
	create view s.op_v as select 1 operator(s.###) 2 as x;
	create table s.person (id int);
	insert into s.person values (1);
	create function full_name(s.person) returns text language plpgsql as $$ begin return s.log(1); end $$;
	create function s.trig() returns trigger language plpgsql as $$ begin return new; end $$;
	create trigger t before insert on s.log for each row execute function s.trig();
	create rule r as on update to s.log do also select s.log(1);`

// makeVolatileSchema makes that schema, and drops it when the test ends.
func makeVolatileSchema(t testing.TB, cluster *pgcluster.Cluster) {
	t.Helper()
	if err := cluster.Leader().Exec(context.Background(), volatileSchema); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Leader().Exec(context.Background(), "drop schema s cascade"); err != nil {
			t.Error(err)
		}
	})
	if err := cluster.Server("ord").WaitReplayed(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func anyPosition(sessionState) bool { return true }

// calls returns a function that names what texts call and the answers so far do not tell of.
func calls(texts ...string) func(*catalogAnswers) []string {
	return func(known *catalogAnswers) (names []string) {
		for _, sql := range texts {
			names = append(names, sqltext.UnknownCalls(sql, known.Facts)...)
		}
		return names
	}
}

// TestCatalogAnswers asks a standby for functions, and for what depends on them.
func TestCatalogAnswers(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	makeVolatileSchema(t, cluster)
	conn, err := poolIn(t, cluster, "ord").Replica().Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()

	c := newCatalog(map[string]sqltext.Access{"only_reads": sqltext.Read})
	defer c.close()
	a, err := c.ask(ctx, conn.Conn().PgConn(), anyPosition, calls(
		"select log(1), stable_(2), over_(3), nosuch(4), count(*), coalesce(1)",
		`select "Quo""ted"(1), "quo""ted"(2), random(), gen_random_uuid(), proc()`,
	))
	if err != nil {
		t.Fatal(err)
	}
	wantCalled := map[string]sqltext.Access{
		"log": sqltext.Write, "stable_": sqltext.Read, "over_": sqltext.Write, "nosuch": sqltext.Read,
		`Quo"ted`: sqltext.Write, `quo"ted`: sqltext.Read, "proc": sqltext.Write,
		// Not asked for: what is volatile and the app's, under whichever name, and what calls it.
		"random": sqltext.Write, "full_name": sqltext.Write, "op": sqltext.Write, "trans": sqltext.Write,
		"agg": sqltext.Write, "defaulted": sqltext.Write,
	}
	if !maps.Equal(a.Called, wantCalled) {
		t.Errorf("calls are %v, want %v", a.Called, wantCalled)
	}
	wantWriting := []string{"V 2", "counters", "full_name", "op_v", "over_pol", "over_seq", "pol", "v", "v3"}
	if got := slices.Sorted(maps.Keys(a.Writing)); !slices.Equal(got, wantWriting) {
		t.Errorf("writing are %q, want %q", got, wantWriting)
	}

	// Later names are added.
	a, err = c.ask(ctx, conn.Conn().PgConn(), anyPosition, calls("select trans(1, 2), later(1, 2), stable_(1), only_reads(1)"))
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(wantCalled, map[string]sqltext.Access{"later": sqltext.Read})
	if !maps.Equal(a.Called, wantCalled) || len(a.Writing) != len(wantWriting) || c.answers.Load() != a {
		t.Errorf("then calls are %v, want %v", a.Called, wantCalled)
	}
	// What was forgotten is asked for together.
	c.expire()
	if a := c.answers.Load(); a.complete || len(a.Called) > 0 || len(a.Writing) > 0 {
		t.Error("not everything was forgotten")
	}
	if a, err = c.ask(ctx, conn.Conn().PgConn(), anyPosition, calls("select 1")); err != nil || !maps.Equal(a.Called, wantCalled) {
		t.Errorf("after it was forgotten, calls are %v, %v, want %v", a, err, wantCalled)
	}
}

// TestCatalogIsBounded asks for more names than are remembered.
func TestCatalogIsBounded(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	conn, err := poolIn(t, cluster, "ord").Replica().Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()

	c := newCatalog(nil)
	defer c.close()
	for i := range 8 {
		var names []string
		for j := range 600 {
			names = append(names, fmt.Sprintf("f%d(1)", 600*i+j))
		}
		a, err := c.ask(ctx, conn.Conn().PgConn(), anyPosition, calls("select "+strings.Join(names, ", ")))
		if err != nil {
			t.Fatal(err)
		}
		if !a.decides(sqltext.Inspect("select f"+fmt.Sprint(600*i)+"(1)", a.Facts)) {
			t.Error("what was just asked for is not known")
		}
		if len(a.Called) > maxAsked+100 || len(a.asked) > maxAsked {
			t.Errorf("%d names are known", len(a.Called))
		}
	}
}

// TestCatalogForgetsWhileAsked changes the schema while a server is asked.
func TestCatalogForgetsWhileAsked(t *testing.T) {
	cluster := sharedCluster(t)
	conn, err := poolIn(t, cluster, "ord").Replica().Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()

	c := newCatalog(nil)
	defer c.close()
	required := sessionState{position: 7}
	_, err = c.ask(t.Context(), conn.Conn().PgConn(), func(sessionState) bool { c.forget(required); return true }, calls("select f(1)"))
	if err != errSchemaChanged || c.answers.Load().complete {
		t.Errorf("the answer counts: %v", err)
	}
	// The answer of a server that does not show the change holds for such servers only.
	const text = "select f(1)"
	a, err := c.ask(t.Context(), conn.Conn().PgConn(), func(s sessionState) bool { return s != required }, calls(text))
	if err != nil || !a.complete || a.decides(sqltext.Inspect(text, a.Facts)) {
		t.Errorf("the answer of a server that does not show the change holds: %v", err)
	}
	if b, err := c.ask(t.Context(), conn.Conn().PgConn(), func(s sessionState) bool { return s != required }, calls(text)); err != nil || b != a {
		t.Errorf("another server that does not show the change was asked: %v", err)
	}
	a, err = c.ask(t.Context(), conn.Conn().PgConn(), anyPosition, calls(text))
	if err != nil || !a.decides(sqltext.Inspect(text, a.Facts)) {
		t.Errorf("the answer of a server that shows the change does not hold: %v", err)
	}
}

// TestCatalogAsksOnce lets many ask at the same time.
func TestCatalogAsksOnce(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	c := newCatalog(nil)
	defer c.close()
	var (
		wg      sync.WaitGroup
		answers = make(chan *catalogAnswers, 20)
	)
	for range 20 {
		conn, err := pgx.ConnectConfig(ctx, poolIn(t, cluster, "ord").Replica().Config().ConnConfig)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer conn.Close(context.Background())
			a, err := c.ask(ctx, conn.PgConn(), anyPosition, calls("select f(1)"))
			if err != nil {
				t.Error(err)
			}
			answers <- a
		})
	}
	wg.Wait()
	for range cap(answers) {
		if a := <-answers; a != c.answers.Load() {
			t.Error("the server was asked again for what was known")
		}
	}
	// Who waits for another waits no longer than he wants.
	c.expire()
	c.asking <- struct{}{}
	limited, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := c.ask(limited, nil, anyPosition, calls("select f(1)")); err != context.Canceled {
		t.Errorf("%v, want that the context has ended", err)
	}
}
