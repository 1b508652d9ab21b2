package sqltext

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// startCluster returns a primary in nrt and a standby in ord.
func startCluster(t *testing.T) *pgcluster.Cluster {
	t.Helper()
	cluster, err := pgcluster.Start(t.Context(), pgcluster.Config{Replicas: []string{"ord"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	return cluster
}

// classified is a database with fixture, on two servers.
type classified struct {
	ord              *pgcluster.Server // the standby
	primary, standby *pgconn.PgConn
	major            int
	fresh            string // the state of a session on the standby in which nothing was done
}

// openClassified makes the database.
func openClassified(t *testing.T, cluster *pgcluster.Cluster) *classified {
	const name = "classified"
	ctx := t.Context()
	leader, ord := cluster.Leader(), cluster.Server("ord")
	if err := leader.Exec(ctx, "create database "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := leader.Exec(context.Background(), "drop database "+name+" with (force)"); err != nil {
			t.Error(err)
		}
	})

	d := &classified{ord: ord, primary: connectTo(t, leader, name)}
	if _, err := d.primary.Exec(ctx, fixture).ReadAll(); err != nil {
		t.Fatal(err)
	}
	if err := ord.WaitReplayed(ctx); err != nil {
		t.Fatal(err)
	}
	d.standby = connectTo(t, ord, name)
	if _, err := fmt.Sscanf(mustRun(t, d.primary, "show server_version_num"), `SHOW [["%d"]]`, &d.major); err != nil {
		t.Fatal(err)
	}
	d.major /= 10000
	mustRun(t, d.standby, "load 'plpgsql'") // its settings, which show up as soon as anything uses it
	d.fresh = d.session(t)
	return d
}

func connectTo(t *testing.T, server *pgcluster.Server, database string) *pgconn.PgConn {
	t.Helper()
	config, err := pgx.ParseConfig(server.ConnString())
	if err != nil {
		t.Fatal(err)
	}
	config.Database = database
	conn, err := pgconn.ConnectConfig(t.Context(), &config.Config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// did is what a server did with a text.
type did struct {
	answer string // what it answered to each statement
	code   string // the SQLSTATE of its error, or ""
	err    error
}

var estimates = regexp.MustCompile(`[0-9.]+`)

// runText runs a text.
func runText(ctx context.Context, conn *pgconn.PgConn, sql string) (d did) {
	var results []*pgconn.Result
	if inspect(sql).CopiesIn && strings.Contains(sql, "STDIN") {
		_, d.err = conn.CopyFrom(ctx, strings.NewReader(""), sql)
	} else {
		results, d.err = conn.Exec(ctx, sql).ReadAll()
	}
	for _, r := range results {
		d.answer += fmt.Sprintf("%s %q\n", r.CommandTag, r.Rows)
	}
	if strings.Contains(sql, "EXPLAIN") {
		d.answer = estimates.ReplaceAllString(d.answer, "n") // and times
	}
	if pgErr := (*pgconn.PgError)(nil); errors.As(d.err, &pgErr) {
		d.code = pgErr.Code
	} else if d.err != nil {
		d.code = d.err.Error()
	}
	return d
}

// mustRun runs what has to work.
func mustRun(t *testing.T, conn *pgconn.PgConn, sql string) string {
	t.Helper()
	d := runText(t.Context(), conn, sql)
	if d.err != nil {
		t.Fatalf("%s: %v", sql, d.err)
	}
	return d.answer
}

// restore makes a session as new.
func restore(t *testing.T, conn *pgconn.PgConn) {
	t.Helper()
	if conn.TxStatus() != 'I' {
		mustRun(t, conn, "rollback")
	}
	mustRun(t, conn, "discard all")
}

// session returns what a session on the standby holds.
func (d *classified) session(t *testing.T) string {
	t.Helper()
	return mustRun(t, d.standby, `select (select md5(string_agg(concat(name, setting, source), ',' order by name)) from pg_settings),
		(select count(*) from pg_prepared_statements), (select count(*) from pg_cursors), current_user,
		(select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())`)
}

// onStandby runs a text as the pool runs it on a replica, and says what it left in the session.
func (d *classified) onStandby(t *testing.T, sql string) (did, bool) {
	t.Helper()
	result := runText(t.Context(), d.standby, sql)
	left := d.standby.TxStatus() != 'I' || d.session(t) != d.fresh
	restore(t, d.standby)
	if left {
		d.fresh = d.session(t) // where a setting came from may be told differently from then on
	}
	return result, left
}

// onPrimary runs a text so that nothing of it stays, and says whether it wrote. In a transaction block, which sees to
// that, some errors are others.
func (d *classified) onPrimary(t *testing.T, sql string, block bool) (result did, wrote bool) {
	t.Helper()
	defer restore(t, d.primary)
	if !block {
		return runText(t.Context(), d.primary, sql), false
	}
	mustRun(t, d.primary, "begin")
	result = runText(t.Context(), d.primary, sql)
	if d.primary.TxStatus() == 'T' {
		wrote = !strings.Contains(mustRun(t, d.primary, "select pg_current_xact_id_if_assigned() is null"), `"t"`)
	}
	return result, wrote
}

// TestAgainstServers holds the table, and with it Inspect, to what a primary and a hot standby do.
func TestAgainstServers(t *testing.T) {
	d := openClassified(t, startCluster(t))
	t.Cleanup(func() {
		if _, err := d.standby.Exec(context.Background(), "alter system reset all").ReadAll(); err != nil {
			t.Error(err)
		}
	})
	counts := map[standing]int{}
	for _, c := range allCases(d.major) {
		counts[c.standing]++
		if problem := d.check(t, c); problem != "" {
			t.Errorf("PostgreSQL %d: %s: %s", d.major, problem, c.sql)
		}
	}
	t.Logf("PostgreSQL %d: %d the same, %d telling, %d refused, %d different, %d the same but called writes, %d malformed, %d opaque", d.major,
		counts[same], counts[telling], counts[refused], counts[differs], counts[cautious], counts[malformed], counts[opaque])
}

// check says what is wrong with a case, "" if nothing.
func (d *classified) check(t *testing.T, c classifyCase) string {
	t.Helper()
	const inBlock = "25001" // the command cannot run in a transaction block, such as the one that undoes it
	standby, left := d.onStandby(t, c.sql)
	block := c.standing != malformed && !inspect(c.sql).TxControl
	primary, wrote := d.onPrimary(t, c.sql, block)

	switch c.standing {
	case telling:
		switch {
		case standby.err != nil || primary.err != nil:
			return fmt.Sprintf("a server refuses it (%v, %v)", standby.err, primary.err)
		case wrote:
			return "it writes on the primary"
		case left:
			return "it leaves something in the session"
		case standby.answer == primary.answer:
			return "both servers answer the same"
		}
	case same, cautious:
		switch {
		case standby.err != nil:
			return fmt.Sprintf("the standby refuses it (%v)", standby.err)
		case primary.err != nil:
			return fmt.Sprintf("the primary refuses it (%v)", primary.err)
		case wrote:
			return "it writes on the primary"
		case left:
			return "it leaves something in the session"
		}
		if standby.answer == primary.answer {
			return ""
		}
		// Some answers are new each time, such as those of random() and of a clock, and statistics arrive late.
		if err := d.ord.WaitReplayed(t.Context()); err != nil {
			t.Fatal(err)
		}
		standby, _ = d.onStandby(t, c.sql)
		if again, _ := d.onPrimary(t, c.sql, block); again.answer == primary.answer && standby.answer != primary.answer {
			return fmt.Sprintf("the standby answers %.200q, the primary %.200q", standby.answer, primary.answer)
		}
	case refused, opaque:
		switch {
		case standby.err == nil:
			return "the standby runs it"
		case !isRecoveryRefusal(standby.err):
			return fmt.Sprintf("the standby refuses it for another reason (%v)", standby.err)
		case isRecoveryRefusal(primary.err):
			return fmt.Sprintf("the primary refuses it too (%v)", primary.err)
		case primary.code == "42601":
			return fmt.Sprintf("it is malformed (%v)", primary.err)
		}
	case differs:
		switch {
		case standby.err != nil:
			return fmt.Sprintf("the standby refuses it (%v)", standby.err)
		case primary.err != nil && primary.code != inBlock && c.reason == "":
			return fmt.Sprintf("the primary refuses it (%v)", primary.err)
		case c.reason == "" && !left && (primary.err != nil || standby.answer == primary.answer) && !inspect(c.sql).TxControl:
			return "it means the same on both, and no reason says why it is a write"
		}
	case malformed:
		switch {
		case standby.err == nil:
			return "the standby runs it"
		case primary.err == nil:
			return "the primary runs it"
		case standby.code != primary.code:
			return fmt.Sprintf("the standby says %v, the primary %v", standby.err, primary.err)
		}
	}
	return ""
}

// isRecoveryRefusal reports whether an error is one by which a server refuses to write.
func isRecoveryRefusal(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == "25006" || strings.Contains(pgErr.Message, "recovery") ||
		strings.Contains(pgErr.Message, "hot standby"))
}
