package flyregion

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// newerCases are like classifyCases, by the major version of PostgreSQL that the grammar came with. To an older one most
// are malformed, so Classify must not need to know which it is.
var newerCases = map[int][]classifyCase{
	16: {
		{same, `SELECT '{}' IS JSON, '{}' IS NOT JSON ARRAY WITH UNIQUE KEYS`, ``},
		{same, `SELECT json_array(1, 2 NULL ON NULL), json_object('a': 1 WITH UNIQUE KEYS), json_objectagg(id: a) FROM t`, ``},
		{same, `SELECT * FROM (SELECT 1)`, `a subquery without a name`},
		{same, `SELECT any_value(a) FROM t WHERE id = 1_0 - 0x9`, ``},
		{same, `SELECT system_user, pg_input_is_valid('1', 'int')`, ``},
		{same, `EXPLAIN (GENERIC_PLAN) SELECT * FROM t WHERE id = $1`, ``},
		{refused, `COPY t FROM STDIN (DEFAULT 'x')`, ``},
		{refused, `VACUUM (PROCESS_MAIN false) t`, ``},
		{refused, `CREATE TABLE x1 (a text STORAGE external)`, ``},
		{refused, `GRANT postgres TO CURRENT_USER WITH INHERIT TRUE, SET FALSE`, ``},
	},
	17: {
		{same, `SELECT * FROM json_table('[{"a": 1}]', '$[*]' PASSING 1 AS x COLUMNS (o FOR ORDINALITY, a int PATH '$.a' DEFAULT 0 ON EMPTY, ` +
			`NESTED PATH '$.b' COLUMNS (c int EXISTS PATH '$.d')) ERROR ON ERROR) AS j`, ``},
		{same, `SELECT json_exists(jsonb '{"a": 1}', '$.a'), json_value(jsonb '{"a": 1}', '$.a' RETURNING int), ` +
			`json_query(jsonb '{"a": [1]}', '$.a' WITH WRAPPER KEEP QUOTES), json('{}'), json_scalar(1), json_serialize('{}')`, ``},
		{same, `SELECT timestamp '2020-01-01' AT LOCAL, to_bin(5), random(1, 1)`, ``},
		{same, `EXPLAIN (ANALYZE, SERIALIZE, MEMORY) SELECT * FROM t`, ``},
		{same, `EXPLAIN (MEMORY) DELETE FROM t`, ``},
		{refused, `EXPLAIN (ANALYZE, SERIALIZE none) DELETE FROM t`, ``},
		{refused, `MERGE INTO t USING k ON t.id = k.key WHEN NOT MATCHED BY SOURCE THEN DELETE RETURNING merge_action(), t.*`, ``},
		{refused, `WITH x AS (MERGE INTO t USING k ON t.id = k.key WHEN MATCHED THEN DELETE RETURNING t.id) SELECT * FROM x`, ``},
		{refused, `COPY (MERGE INTO t USING k ON t.id = k.key WHEN MATCHED THEN DELETE RETURNING t.id) TO STDOUT`, ``},
		{refused, `MERGE INTO v USING k ON v.id = k.key WHEN NOT MATCHED BY TARGET THEN INSERT (id) VALUES (k.key)`, ``},
		{refused, `COPY t FROM STDIN (ON_ERROR ignore, FORCE_NULL *, FORMAT csv)`, ``},
		{refused, `CREATE EVENT TRIGGER x1 ON login EXECUTE FUNCTION f()`, ``},
		{refused, `GRANT MAINTAIN ON t TO PUBLIC`, ``},
		{differs, `SET transaction_timeout = 0`, `of the session`},
	},
	18: {
		{same, `COPY mv TO STDOUT`, ``},
		{same, `SELECT uuid_extract_version(uuidv7()), casefold('A'), array_sort(ARRAY[2, 1]), crc32('a')`, ``},
		{same, `SELECT to_regtype('int'), json_strip_nulls('[null]', true), jsonb 'null' || '1'`, ``},
		{same, `EXPLAIN (ANALYZE, BUFFERS off, SERIALIZE off) TABLE t`, ``},
		{refused, `INSERT INTO t VALUES (9) RETURNING old.id, new.id`, ``},
		{refused, `UPDATE t SET a = 'x' RETURNING WITH (OLD AS o, NEW AS n) o.a, n.a`, ``},
		{refused, `WITH x AS (DELETE FROM t RETURNING WITH (OLD AS o) o.*) SELECT * FROM x`, ``},
		{refused, `CREATE TABLE x1 (a int, b int GENERATED ALWAYS AS (a + 1) VIRTUAL)`, ``},
		{refused, `CREATE TABLE x1 (a int4range, b int4range, PRIMARY KEY (a, b WITHOUT OVERLAPS))`, ``},
		{refused, `ALTER TABLE t ADD NOT NULL a NOT VALID`, ``},
		{refused, `VACUUM ONLY t`, ``},
	},
	19: {
		{same, `SELECT a, count(*) FROM t GROUP BY ALL a`, ``},
		{same, `SELECT lag(a) IGNORE NULLS OVER (ORDER BY id), first_value(a) RESPECT NULLS OVER (ORDER BY id) FROM t`, ``},
		{same, `COPY t TO STDOUT (FORMAT json)`, ``},
		{same, `EXPLAIN (ANALYZE, IO) SELECT * FROM t`, ``},
		{refused, `INSERT INTO t VALUES (1) ON CONFLICT (id) DO SELECT RETURNING *`, ``},
		{refused, `WITH x AS (INSERT INTO t VALUES (1) ON CONFLICT (id) DO SELECT FOR UPDATE WHERE t.id > 0 RETURNING *) SELECT * FROM x`, ``},
		{refused, `REPACK t`, ``},
		{refused, `REPACK (CONCURRENTLY, VERBOSE) t USING INDEX t_pkey`, ``},
		{refused, `REPACK`, ``},
		{differs, `WAIT FOR LSN '0/1'`, `a primary has nothing to wait for`},
		{differs, `WAIT FOR LSN '0/1' WITH (TIMEOUT '1ms', NO_THROW)`, `likewise`},
		{differs, `CHECKPOINT (MODE FAST, FLUSH_UNLOGGED false)`, `a standby makes a restartpoint`},
	},
}

// sqlCommands are the SQL commands of PostgreSQL's reference, 19 and before. SELECT INTO is a SELECT here, as it is there.
const sqlCommands = `ABORT, ALTER AGGREGATE, ALTER COLLATION, ALTER CONVERSION, ALTER DATABASE, ALTER DEFAULT PRIVILEGES,
	ALTER DOMAIN, ALTER EVENT TRIGGER, ALTER EXTENSION, ALTER FOREIGN DATA WRAPPER, ALTER FOREIGN TABLE, ALTER FUNCTION,
	ALTER GROUP, ALTER INDEX, ALTER LANGUAGE, ALTER LARGE OBJECT, ALTER MATERIALIZED VIEW, ALTER OPERATOR,
	ALTER OPERATOR CLASS, ALTER OPERATOR FAMILY, ALTER POLICY, ALTER PROCEDURE, ALTER PUBLICATION, ALTER ROLE,
	ALTER ROUTINE, ALTER RULE, ALTER SCHEMA, ALTER SEQUENCE, ALTER SERVER, ALTER STATISTICS, ALTER SUBSCRIPTION,
	ALTER SYSTEM, ALTER TABLE, ALTER TABLESPACE, ALTER TEXT SEARCH CONFIGURATION, ALTER TEXT SEARCH DICTIONARY,
	ALTER TEXT SEARCH PARSER, ALTER TEXT SEARCH TEMPLATE, ALTER TRIGGER, ALTER TYPE, ALTER USER, ALTER USER MAPPING,
	ALTER VIEW, ANALYZE, BEGIN, CALL, CHECKPOINT, CLOSE, CLUSTER, COMMENT, COMMIT, COMMIT PREPARED, COPY,
	CREATE ACCESS METHOD, CREATE AGGREGATE, CREATE CAST, CREATE COLLATION, CREATE CONVERSION, CREATE DATABASE,
	CREATE DOMAIN, CREATE EVENT TRIGGER, CREATE EXTENSION, CREATE FOREIGN DATA WRAPPER, CREATE FOREIGN TABLE,
	CREATE FUNCTION, CREATE GROUP, CREATE INDEX, CREATE LANGUAGE, CREATE MATERIALIZED VIEW, CREATE OPERATOR,
	CREATE OPERATOR CLASS, CREATE OPERATOR FAMILY, CREATE POLICY, CREATE PROCEDURE, CREATE PUBLICATION, CREATE ROLE,
	CREATE RULE, CREATE SCHEMA, CREATE SEQUENCE, CREATE SERVER, CREATE STATISTICS, CREATE SUBSCRIPTION, CREATE TABLE,
	CREATE TABLESPACE, CREATE TEXT SEARCH CONFIGURATION, CREATE TEXT SEARCH DICTIONARY, CREATE TEXT SEARCH PARSER,
	CREATE TEXT SEARCH TEMPLATE, CREATE TRANSFORM, CREATE TRIGGER, CREATE TYPE, CREATE USER, CREATE USER MAPPING,
	CREATE VIEW, DEALLOCATE, DECLARE, DELETE, DISCARD, DO, DROP ACCESS METHOD, DROP AGGREGATE, DROP CAST,
	DROP COLLATION, DROP CONVERSION, DROP DATABASE, DROP DOMAIN, DROP EVENT TRIGGER, DROP EXTENSION,
	DROP FOREIGN DATA WRAPPER, DROP FOREIGN TABLE, DROP FUNCTION, DROP GROUP, DROP INDEX, DROP LANGUAGE,
	DROP MATERIALIZED VIEW, DROP OPERATOR, DROP OPERATOR CLASS, DROP OPERATOR FAMILY, DROP OWNED, DROP POLICY,
	DROP PROCEDURE, DROP PUBLICATION, DROP ROLE, DROP ROUTINE, DROP RULE, DROP SCHEMA, DROP SEQUENCE, DROP SERVER,
	DROP STATISTICS, DROP SUBSCRIPTION, DROP TABLE, DROP TABLESPACE, DROP TEXT SEARCH CONFIGURATION,
	DROP TEXT SEARCH DICTIONARY, DROP TEXT SEARCH PARSER, DROP TEXT SEARCH TEMPLATE, DROP TRANSFORM, DROP TRIGGER,
	DROP TYPE, DROP USER, DROP USER MAPPING, DROP VIEW, END, EXECUTE, EXPLAIN, FETCH, GRANT, IMPORT FOREIGN SCHEMA,
	INSERT, LISTEN, LOAD, LOCK, MERGE, MOVE, NOTIFY, PREPARE, PREPARE TRANSACTION, REASSIGN OWNED,
	REFRESH MATERIALIZED VIEW, REINDEX, RELEASE SAVEPOINT, REPACK, RESET, REVOKE, ROLLBACK, ROLLBACK PREPARED,
	ROLLBACK TO SAVEPOINT, SAVEPOINT, SECURITY LABEL, SELECT, SET, SET CONSTRAINTS, SET ROLE,
	SET SESSION AUTHORIZATION, SET TRANSACTION, SHOW, START TRANSACTION, TABLE, TRUNCATE, UNLISTEN, UPDATE, VACUUM,
	VALUES, WAIT FOR, WITH`

// allCases returns the cases for a major version of PostgreSQL.
func allCases(major int) []classifyCase {
	cases := slices.Clone(classifyCases)
	for since, newer := range newerCases {
		if since <= major {
			cases = append(cases, newer...)
		}
	}
	return cases
}

const newestMajor = 99

func TestClassifyNewerGrammar(t *testing.T) {
	for major, cases := range newerCases {
		for _, c := range cases {
			if got := Classify(c.sql); got != c.standing.access() {
				t.Errorf("PostgreSQL %d: Classify is %v, want %v: %s", major, got, c.standing.access(), c.sql)
			}
		}
	}
}

// TestCasesOfEveryCommand finds the commands of the reference that no case begins with.
func TestCasesOfEveryCommand(t *testing.T) {
	missing := strings.Split(sqlCommands, ",")
	for i, command := range missing {
		missing[i] = strings.Join(strings.Fields(command), " ")
	}
	for _, c := range allCases(newestMajor) {
		for _, text := range strings.Split(strings.ToUpper(c.sql), ";") {
			words := strings.Join(strings.Fields(text), " ") + " "
			missing = slices.DeleteFunc(missing, func(command string) bool { return strings.HasPrefix(words, command+" ") })
		}
	}
	if len(missing) > 0 {
		t.Errorf("no case begins with %q", missing)
	}
}

// classified is a database with classifyFixture, on two servers.
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
	if _, err := d.primary.Exec(ctx, classifyFixture).ReadAll(); err != nil {
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
	if inspect(sql).copiesIn && strings.Contains(sql, "STDIN") {
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

// TestClassifyAgainstServers holds the table, and with it Classify, to what a primary and a hot standby do.
func TestClassifyAgainstServers(t *testing.T) {
	d := openClassified(t, sharedCluster(t))
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
	t.Logf("PostgreSQL %d: %d the same, %d refused, %d different, %d the same but called writes, %d malformed, %d opaque", d.major,
		counts[same], counts[refused], counts[differs], counts[cautious], counts[malformed], counts[opaque])
}

// check says what is wrong with a case, "" if nothing.
func (d *classified) check(t *testing.T, c classifyCase) string {
	t.Helper()
	const inBlock = "25001" // the command cannot run in a transaction block, such as the one that undoes it
	standby, left := d.onStandby(t, c.sql)
	block := c.standing != malformed && !inspect(c.sql).control
	primary, wrote := d.onPrimary(t, c.sql, block)

	switch c.standing {
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
		case c.reason == "" && !left && (primary.err != nil || standby.answer == primary.answer) && !inspect(c.sql).control:
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

// ormTags are the comments of an ORM and of sqlcommenter, which are no hints.
const ormTags = "/*controller='users',action='flyregion%3Aprimary',traceparent='00-5bd66ef5095369c7b0d1f8f4bd33716a-c532cb4098ac3dd2-01'*/"

// TestHints asks each way of running a text which server answered.
func TestHints(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	pool := poolIn(t, cluster, "ord")
	const (
		toPrimary = "/* flyregion:primary */"
		toReplica = "/* flyregion:replica */"
		refused   = readOnlySQL + " and true is not null"
		write     = readOnlySQL + " from pg_backend_pid()" // to Classify
	)
	pool.refused.add(refused)
	for _, c := range []struct {
		ctx     context.Context
		sql     string
		replica bool
	}{
		{ctx, readOnlySQL, true},
		{ctx, toPrimary + readOnlySQL, false},
		{ctx, readOnlySQL + toPrimary, false},
		{ctx, "/*flyregion:primary*/ " + readOnlySQL + ";", false},
		{ctx, "\n/*\tflyregion:primary\n*/\n" + readOnlySQL, false},
		{ctx, strings.Replace(readOnlySQL, " ", toPrimary, 1), false},
		{ctx, ormTags + readOnlySQL, true},
		{ctx, readOnlySQL + ormTags, true},
		{ctx, ormTags + toPrimary + readOnlySQL, false},
		{ctx, toPrimary + " " + ormTags + " " + readOnlySQL, false},
		{ctx, readOnlySQL + " " + ormTags + " " + toPrimary, false},
		{ctx, readOnlySQL + toPrimary + ormTags, false},
		{ctx, "-- name: IsReplica :one\n" + toPrimary + "\n" + readOnlySQL + " -- by hand", false},
		{ctx, "/*+ SeqScan(t) */ " + readOnlySQL + " /* a /* nested */ comment */ " + toPrimary, false},
		{ctx, toReplica + readOnlySQL + toPrimary, false},
		{ctx, "-- " + toPrimary + "\n" + readOnlySQL, true},
		{ctx, "/* " + toPrimary + " */" + readOnlySQL, true},
		{ctx, "/* not flyregion:primary */" + readOnlySQL, true},
		{ctx, readOnlySQL + " and '" + toPrimary + "' <> ''", true},
		{ctx, readOnlySQL + " and $$" + toPrimary + "$$ <> ''", true},

		{ctx, toReplica + readOnlySQL, true},
		{ctx, write, false},
		{ctx, toReplica + write, true},
		{ctx, ormTags + write + ormTags + toReplica, true},
		{ctx, refused, false},
		{ctx, toReplica + refused, true},

		{WithPrimary(ctx), toReplica + readOnlySQL, false},
		{WithReplica(ctx), toPrimary + readOnlySQL, true},
	} {
		if err := pool.WaitReplayed(ctx); err != nil {
			t.Fatal(err)
		}
		for name, ask := range map[string]func() (bool, error){
			"QueryRow": func() (replica bool, err error) {
				return replica, pool.QueryRow(c.ctx, c.sql).Scan(&replica)
			},
			"QueryRow, simple": func() (replica bool, err error) {
				return replica, pool.QueryRow(c.ctx, c.sql, pgx.QueryExecModeSimpleProtocol).Scan(&replica)
			},
			"Query": func() (bool, error) {
				rows, err := pool.Query(c.ctx, c.sql)
				if err != nil {
					return false, err
				}
				return pgx.CollectExactlyOneRow(rows, pgx.RowTo[bool])
			},
			"Exec": func() (bool, error) {
				r := pool.route(c.ctx, c.sql, nil)
				_, err := pool.Exec(c.ctx, c.sql)
				return r.to == targetReplica, err
			},
		} {
			if replica, err := ask(); err != nil || replica != c.replica {
				t.Errorf("%s: the replica answers: %v, %v, want %v: %s", name, replica, err, c.replica, c.sql)
			}
		}
	}

	for _, c := range []struct {
		texts   []string
		replica bool
	}{
		{[]string{"select 1", readOnlySQL}, true},
		{[]string{"select 1" + toPrimary, readOnlySQL}, false},
		{[]string{toReplica + "select 1", ormTags + toPrimary + readOnlySQL}, false},
		{[]string{refused, readOnlySQL}, false},
		{[]string{refused + toReplica, readOnlySQL}, true},
	} {
		var replica bool
		results := pool.SendBatch(ctx, batchOf(c.texts...))
		_, err := results.Exec()
		err = errors.Join(err, results.QueryRow().Scan(&replica), results.Close())
		if err != nil || replica != c.replica {
			t.Errorf("the replica answers: %v, %v, want %v: %q", replica, err, c.replica, c.texts)
		}
	}

	// A hint never makes a write fail, or run twice.
	name := table(t, cluster, "id int")
	if tag, err := pool.Exec(ctx, toReplica+"insert into "+name+" values (1)"); err != nil || tag.RowsAffected() != 1 {
		t.Errorf("%v, %v", tag, err)
	}
	var n int
	if err := pool.QueryRow(ctx, "select count(*) from "+name).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d rows, %v", n, err)
	}

	// An argument that the replica used up would be missing on the primary.
	for _, sql := range []string{"insert into " + name + " values ($1)", "select $1"} {
		if r := pool.route(ctx, toReplica+sql, []any{strings.NewReader("1")}); r.to != targetPrimary {
			t.Errorf("with an argument to be read once %s goes to the %s", sql, r.to)
		}
	}

	// Where there is one server it is a comment like others.
	one := poolIn(t, cluster, "nrt")
	for _, hint := range []string{toPrimary, toReplica} {
		if replicaServes(t, ctx, one) || one.QueryRow(ctx, hint+"select 1").Scan(&n) != nil {
			t.Errorf("%s on one server", hint)
		}
	}
}

// TestFunctions registers functions, and finds them where they are called.
func TestFunctions(t *testing.T) {
	cluster := sharedCluster(t)
	own := map[string]Access{"locks": Write, "pg_is_in_recovery": Read}
	pool := poolIn(t, cluster, "ord", func(c *Config) { c.Functions = own })
	own["locks"] = Read // the pool has its own copy
	for sql, want := range map[string]target{
		"select locks(1)":                      targetPrimary,
		`select app."locks" (1)`:               targetPrimary,
		"select LOCKS(1)":                      targetPrimary,
		"select locks from t":                  targetReplica,
		"select other(1)":                      targetReplica,
		"select pg_is_in_recovery()":           targetReplica,
		"select pg_is_in_recovery(), locks(1)": targetPrimary,
		"select pg_advisory_lock(1)":           targetPrimary,
	} {
		if r := pool.route(t.Context(), sql, nil); r.to != want {
			t.Errorf("%s goes to the %s", sql, r.to)
		}
		if r := pool.routeBatch(t.Context(), batchOf("select 1", sql)); r.to != want {
			t.Errorf("a batch with %s goes to the %s", sql, r.to)
		}
	}
	var recovering bool
	if err := pool.QueryRow(t.Context(), "select pg_is_in_recovery()").Scan(&recovering); err != nil || !recovering {
		t.Errorf("the replica answers: %v, %v", recovering, err)
	}
	// On a connection of its own a call of such a function counts as a write, whatever it does.
	for access, want := range map[Access]bool{Write: true, Read: false} {
		pool := poolIn(t, cluster, "ord", func(c *Config) { c.Functions = map[string]Access{"version": access} })
		if err := onConn(pool, t.Context(), func(c *pgxpool.Conn) error {
			return c.QueryRow(t.Context(), "select version()").Scan(new(string))
		}); err != nil {
			t.Error(err)
		}
		if wrote := pool.session.load().position > 0; wrote != want {
			t.Errorf("calling a %v has written: %v", access, wrote)
		}
		pool = poolIn(t, cluster, "ord", func(c *Config) { c.Functions = map[string]Access{"version": access} })
		if err := onConn(pool, t.Context(), func(c *pgxpool.Conn) error {
			return c.SendBatch(t.Context(), batchOf("select 1", "select version()")).Close()
		}); err != nil {
			t.Error(err)
		}
		if wrote := pool.session.load().position > 0; wrote != want {
			t.Errorf("calling a %v in a batch has written: %v", access, wrote)
		}
	}
	if pool.Config().Functions["locks"] != Write {
		t.Error("Config has lost the functions")
	}
}

func TestFunctionsConfig(t *testing.T) {
	config, err := ParseConfig("postgres://localhost/db")
	if err != nil {
		t.Fatal(err)
	}
	for name, access := range map[string]Access{"f": Write, "_f$1": Read, "größe": Read, strings.Repeat("f", 63): Read} {
		config.Functions = map[string]Access{name: access}
		if err := config.normalize(); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "F", "app.f", "f()", "f g", `"f"`, "1f", "$f", strings.Repeat("f", 64)} {
		config.Functions = map[string]Access{"ok": Read, name: Write}
		if err := config.normalize(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("Functions: %q", name)) {
			t.Errorf("%q: %v", name, err)
		}
	}
	config.Functions = map[string]Access{"f": 7}
	if _, err := NewPoolWithConfig(t.Context(), config); err == nil || !strings.Contains(err.Error(), `Functions: "f"`) {
		t.Error(err)
	}
	config.Functions = map[string]Access{"f": Write}
	config.Copy().Functions["f"] = Read
	if config.Functions["f"] != Write {
		t.Error("a copy shares the functions")
	}
}
