package sqltext

import (
	"slices"
	"strings"
	"testing"
)

// inspect is Inspect without any facts.
func inspect(sql string) Statement { return Inspect(sql, Facts{}) }

// classify is what Inspect says of a text's access.
func classify(sql string) Access { return inspect(sql).Access }

func TestAccess(t *testing.T) {
	if got := inspect(fixture); got != (Statement{Several: true, OtherCommand: true, Schema: true}) {
		t.Errorf("inspect is %+v for the fixture", got)
	}
	for _, c := range classifyCases {
		if s := inspect(c.sql); s.SessionOnly && (s.Access == Read || c.standing == refused && !s.TxControl) {
			t.Errorf("it is said to be about its session only: %s", c.sql)
		}
		if c.standing == cautious && c.reason == "" {
			t.Errorf("no reason is given for calling this a write: %s", c.sql)
		}
		if got := classify(c.sql); got != c.standing.access() {
			t.Errorf("access is %v, want %v: %s", got, c.standing.access(), c.sql)
		}
	}
}

// TestAccessOffServer holds the texts that a table for one server of today cannot: with parameters, with bytes that
// the protocol does not carry, and with forms that only some versions take.
func TestAccessOffServer(t *testing.T) {
	for _, c := range []struct {
		want Access
		sql  string
	}{
		{Write, ""},
		{Write, " \n\t"},
		{Write, ";"},
		{Write, ";;"},
		{Write, "-- SELECT 1"},
		{Write, "/* SELECT 1 */"},
		{Write, "/* SELECT 1 */;"},

		{Read, "SELECT $1, $2::int"},
		{Read, "SELECT $1$2"},
		{Read, "SELECT * FROM t WHERE id = ANY ($1) LIMIT $2"},
		{Read, "SELECT * FROM t WHERE id = @id"}, // pgx.NamedArgs
		{Write, "SELECT $1.nextval"},
		{Write, "SELECT ($1).nextval"},
		{Write, "SELECT nextval($1)"},
		{Write, "SELECT $1$a$ $a$; DELETE FROM t"},
		{Write, "SELECT * FROM t WHERE id = $1FOR UPDATE"},
		{Read, "SELECT $1 || $a$ FOR UPDATE $a$"},

		{Write, "SELECT 1\x00"},
		{Write, "SELECT '\x00'"},
		{Write, "SELECT 1 --\x00"},
		{Write, "SELECT \"\x00\""},
		{Read, "SELECT '\xff\xfe'"}, // every server refuses it
		{Write, "SELECT 1 \xffINTO t INTO u"},
		{Write, "SELECT pg_advİsory_lock(1)"}, // folds to an i in a Turkish one-byte encoding

		// Before PostgreSQL 15 a number ended where its digits did.
		{Write, "SELECT 1INTO t"},
		{Write, "SELECT 1.INTO t"},
		{Write, "SELECT .5INTO t"},
		{Write, "SELECT 1e5INTO t"},
		{Write, "SELECT * FROM t LIMIT 1FOR UPDATE"},
		{Read, "SELECT 0e'\\'; DELETE FROM t; --'"}, // one string
		{Write, "SELECT 0e'\\\\'; DELETE FROM t; --'"},
		{Read, "SELECT 1_000, 0x1F, 0b101, 0o17, 1_0.0_1e1_0"}, // PostgreSQL 16
		{Read, "SELECT 1..2"},
		{Write, "SELECT 1_000. INTO t"},
		{Write, "EXPLAIN (ANALYZE 0x1) DELETE FROM t"},
		{Write, "EXPLAIN (ANALYZE 0_1) DELETE FROM t"},

		// Grammar of the standard that PostgreSQL has not released.
		{Read, "SELECT * FROM GRAPH_TABLE (g MATCH (a IS person WHERE a.id = 1)-[e IS knows]->(b) COLUMNS (b.name)) AS x"},
		{Read, "SELECT a, count(*) FROM t GROUP BY ALL"},
		{Write, "CREATE PROPERTY GRAPH g VERTEX TABLES (t KEY (id) LABEL person)"},
		{Write, "UPDATE t FOR PORTION OF valid FROM '2020-01-01' TO '2021-01-01' SET a = 'x'"},
		{Write, "WITH x AS (DELETE FROM t FOR PORTION OF valid FROM $1 TO $2 RETURNING *) SELECT * FROM x"},
		{Write, "WITH x AS (UPDATE t FOR PORTION OF valid FROM $1 TO $2 SET a = 'x' RETURNING *) SELECT * FROM x"},

		// A system function that is younger than this package.
		{Write, "SELECT pg_does_something_new()"},
		// Functions of extensions, by their schema.
		{Write, "SELECT net.HTTP_GET('https://example.com')"},
		{Write, "SELECT * FROM aws_lambda.invoke('f', '{}')"},
		{Write, `SELECT * FROM "aws_s3" . query_export_to_s3('SELECT 1', $1)`},
		{Write, "SELECT azure_storage.blob_put('a', 'b', 'c', x) FROM x"},
		{Write, "SELECT db.dbms_pipe.send_message('a')"},
		{Write, "SELECT DBMS_ALERT.signal('a', 'b')"},
		{Read, "SELECT net.a, dbms_pipe.b FROM net, dbms_pipe"},
		{Read, "SELECT signal('a'), invoke('f'), nets.f(1)"},
		// Longer than a name can be.
		{Read, "SELECT nextval" + strings.Repeat("x", 100) + "('s')"},
		{Write, "SELECT pg_x" + strings.Repeat("x", 100) + "('s')"},
	} {
		if got := classify(c.sql); got != c.want {
			t.Errorf("access is %v, want %v: %q", got, c.want, c.sql)
		}
	}
}

func TestInspect(t *testing.T) {
	for _, c := range []struct {
		sql  string
		want Statement
	}{
		{"SELECT 1", Statement{Access: Read}},
		{"SELECT 1;;", Statement{Access: Read}},
		{"SELECT 1; SELECT 2", Statement{Access: Read, Several: true}},
		{"SELECT ';'", Statement{Access: Read}},
		{"INSERT INTO t VALUES (1)", Statement{}},
		{"INSERT INTO t VALUES (1);", Statement{}},
		{"INSERT INTO t VALUES (1); SELECT 1", Statement{Several: true}},
		{"UPDATE t SET a = 1", Statement{}},

		{"BEGIN", Statement{TxControl: true, Begins: true, LeavesOpen: true}},
		{"begin isolation level serializable", Statement{TxControl: true, Begins: true, LeavesOpen: true}},
		{"START TRANSACTION", Statement{TxControl: true, Begins: true, LeavesOpen: true}},
		{"COMMIT", Statement{TxControl: true, Ends: true}},
		{"BEGIN; COMMIT AND CHAIN", Statement{Several: true, TxControl: true, Begins: true, Ends: true, LeavesOpen: true}},
		{"SHOW work_mem", Statement{Access: Read, HasShow: true}},
		{"COMMIT PREPARED 'x'", Statement{TxControl: true, Ends: true}},
		{"END", Statement{TxControl: true, Ends: true}},
		{"ABORT", Statement{TxControl: true, Ends: true}},
		{"ROLLBACK TO SAVEPOINT a", Statement{TxControl: true, Ends: true}},
		{"SAVEPOINT a", Statement{TxControl: true}},
		{"RELEASE a", Statement{TxControl: true}},
		{"PREPARE TRANSACTION 'x'", Statement{TxControl: true, Ends: true}},
		{"PREPARE x AS SELECT 1", Statement{}},
		{"PREPARE \"transaction\" AS SELECT 1", Statement{}},
		{"/* x */ BEGIN; SELECT 1; COMMIT", Statement{TxControl: true, Begins: true, Ends: true, Several: true}},
		{"SELECT 1; BEGIN", Statement{TxControl: true, Several: true, LeavesOpen: true}},
		{"; BEGIN", Statement{TxControl: true, Begins: true, LeavesOpen: true}},
		{"SELECT 1 AS begin", Statement{Access: Read}},
		{"SELECT 'BEGIN'", Statement{Access: Read}},
		{"EXPLAIN COMMIT", Statement{TxControl: true, Ends: true}}, // no server runs it

		{"SET work_mem = '8MB'", Statement{Settings: true}},
		{"SET LOCAL synchronous_commit = off", Statement{Settings: true}},
		{"SET TRANSACTION READ ONLY", Statement{Settings: true, TxControl: true}},
		{"SET LOCAL TRANSACTION READ ONLY", Statement{Settings: true, TxControl: true}},
		{"SET transaction_read_only = off", Statement{Settings: true, TxControl: true}},
		{"SET LOCAL \"transaction_read_only\" = off", Statement{Settings: true, TxControl: true}},
		{"SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Statement{Settings: true}},
		{"RESET ALL", Statement{Settings: true}},
		{"DISCARD ALL", Statement{Settings: true}},
		{"DO $$ BEGIN END $$", Statement{Settings: true, Schema: true}},
		{"SELECT set_config('a.b', 'c', false)", Statement{Settings: true}},
		{"INSERT INTO t SELECT pg_catalog . \"set_config\" ('a.b', 'c', false)", Statement{Settings: true}},
		{"UPDATE pg_settings SET setting = 'off' WHERE name = 'synchronous_commit'", Statement{Settings: true}},
		{"ALTER ROLE a SET synchronous_commit = off", Statement{Settings: true, OtherCommand: true, Schema: true}},
		{"INSERT INTO t VALUES ('set_config')", Statement{}},

		{"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 1 END; END", Statement{OtherCommand: true, Schema: true}},
		{"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; COMMIT", Statement{Several: true, TxControl: true, Ends: true, OtherCommand: true, Schema: true}},
		{"CREATE RULE r AS ON INSERT TO t DO ALSO (SELECT 1; SELECT 2)", Statement{OtherCommand: true, Schema: true}},
		{`SELECT 'C:\'; COMMIT`, Statement{Several: true, TxControl: true, Ends: true}},

		{"COPY t FROM STDIN", Statement{CopiesIn: true}},
		{"COPY t (a) FROM STDIN; SELECT 1", Statement{CopiesIn: true, Several: true}},
		{"COPY t TO STDOUT", Statement{Access: Read}},
		{"COPY (SELECT * FROM t) TO STDOUT", Statement{Access: Read}},

		{"/* flyregion:primary */ SELECT 1", Statement{Access: Read, Hint: HintPrimary}},
		{"SELECT 1 /*flyregion:replica*/", Statement{Access: Read, Hint: HintReplica}},
		{"SELECT /* flyregion:replica */ 1", Statement{Access: Read, Hint: HintReplica}},
		{"/* flyregion:replica */ DELETE FROM t", Statement{Hint: HintReplica}},
		{"/* flyregion:replica */ SELECT 1 /* flyregion:primary */", Statement{Access: Read, Hint: HintPrimary}},
		{"/* flyregion:primary */ SELECT 1 /* flyregion:replica */", Statement{Access: Read, Hint: HintPrimary}},
		{"SELECT '/* flyregion:primary */'", Statement{Access: Read}},
		{"SELECT 1 -- /* flyregion:primary */", Statement{Access: Read}},
		{"/* flyregion:anywhere */ SELECT 1", Statement{Access: Read}},
		{"/* /* flyregion:primary */ */ SELECT 1", Statement{Access: Read}},
		{"/* not flyregion:primary */ SELECT 1", Statement{Access: Read}},
	} {
		got := inspect(c.sql)
		got.LeavesState, got.SessionOnly = false, false // those have a test of their own
		if got != c.want {
			t.Errorf("inspect is %+v, want %+v: %s", got, c.want, c.sql)
		}
	}
}

func TestInspectWithOwnFunctions(t *testing.T) {
	own := map[string]Access{"enqueue": Write, "nextval": Read, "pg_mine": Read}
	for sql, want := range map[string]Access{
		"SELECT enqueue(1)":             Write,
		"SELECT jobs.Enqueue (1)":       Write,
		`SELECT "jobs"."enqueue"(1)`:    Write,
		"SELECT enqueue FROM t":         Read,
		"SELECT nextval('s')":           Read,
		"SELECT pg_mine()":              Read,
		"SELECT pg_mine(), lastval()":   Write,
		"SELECT pg_mine(enqueue())":     Write,
		"SELECT (1).enqueue":            Write,
		"SELECT pg_advisory_lock(1)":    Write,
		"SELECT 'enqueue(1)', count(*)": Read,
	} {
		if got := Inspect(sql, Facts{Functions: own}).Access; got != want {
			t.Errorf("access is %v, want %v: %s", got, want, sql)
		}
	}
}

// TestReservedWords holds the words that are taken as reserved to PostgreSQL's own, as pg_get_keywords lists them in
// categories R and T. A word too many here would hide the table of a nested UPDATE.
func TestReservedWords(t *testing.T) {
	reserved := strings.Fields(`all analyse analyze and any array as asc asymmetric authorization binary both case cast
		check collate collation column concurrently constraint create cross current_catalog current_date current_role
		current_schema current_time current_timestamp current_user default deferrable desc distinct do else end except
		false fetch for foreign freeze from full grant group having ilike in initially inner intersect into is isnull join
		lateral leading left like limit localtime localtimestamp natural not notnull null offset on only or order outer
		overlaps placing primary references returning right select session_user similar some symmetric table tablesample
		then to trailing true union unique user using variadic verbose when where window with`)
	for w, names := range keywords {
		for _, name := range names {
			if lookup(name) != w || lookup(strings.ToUpper(name)) != w {
				t.Errorf("%s is not found", name)
			}
			if w.reserved() != slices.Contains(reserved, name) {
				t.Errorf("%s is taken as reserved: %v", name, w.reserved())
			}
		}
	}
}

// TestFunctionNames looks for a name in two groups, and for a group that has no effect.
func TestFunctionNames(t *testing.T) {
	seen := map[string]bool{}
	check := func(name string, writes bool) {
		if seen[name] || name != strings.ToLower(name) {
			t.Errorf("%s is listed twice, or not in lower case", name)
		}
		seen[name] = true
		if call := "select " + name + "(1)"; (classify(call) == Write) != writes || (classify(strings.ToUpper(call)) == Write) != writes {
			t.Errorf("a call of %s belongs to the primary: %v, want %v", name, !writes, writes)
		}
	}
	for _, group := range primaryCalls {
		for _, name := range group {
			check(name, true)
		}
	}
	for _, name := range sessionCalls {
		check(name, true)
	}
	for _, group := range systemReads {
		for _, name := range group {
			check(name, false)
		}
	}
	for _, name := range []string{"http_post", "dblink_exec", "hypopg", "hypopg_create_index", "pgv_set", "run_command_on_workers"} {
		check(name, true)
	}
	for _, name := range []string{"https", "hypo", "pgv", "run_command"} {
		check(name, false)
	}
	for _, name := range serverViews {
		check(name, true)
		if !isServerView(name) {
			t.Errorf("%s is not found", name)
		}
	}
}

func TestInspectDoesNotAllocate(t *testing.T) {
	texts := []string{strings.Repeat("/*", 1000), "SELECT " + strings.Repeat("x", 5000) + "(1)"}
	for _, c := range classifyCases {
		texts = append(texts, c.sql)
	}
	own := map[string]Access{"enqueue": Write}
	n := testing.AllocsPerRun(10, func() {
		for _, sql := range texts {
			inspect(sql)
			Inspect(sql, Facts{Functions: own})
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
