package sqltext

import (
	"slices"
	"strings"
	"testing"
)

// newerCases are like classifyCases, by the major version of PostgreSQL that the grammar came with. To an older one most
// are malformed, so Inspect must not need to know which it is.
var newerCases = map[int][]classifyCase{
	16: {
		{same, `SELECT '{}' IS JSON, '{}' IS NOT JSON ARRAY WITH UNIQUE KEYS`, ``},
		{same, `SELECT json_array(1, 2 NULL ON NULL), json_object('a': 1 WITH UNIQUE KEYS), json_objectagg(id: a) FROM t`, ``},
		{same, `SELECT * FROM (SELECT 1)`, `a subquery without a name`},
		{same, `SELECT any_value(a) FROM t WHERE id = 1_0 - 0x9`, ``},
		{same, `SELECT system_user, pg_input_is_valid('1', 'int')`, ``},
		{same, `EXPLAIN (GENERIC_PLAN) SELECT * FROM between WHERE a = $1`, ``},
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
	if major < 15 {
		cases = slices.DeleteFunc(cases, func(c classifyCase) bool { return strings.Contains(c.sql, "MERGE INTO") })
	}
	for since, newer := range newerCases {
		if since <= major {
			cases = append(cases, newer...)
		}
	}
	return cases
}

const newestMajor = 99

func TestNewerGrammar(t *testing.T) {
	for major, cases := range newerCases {
		for _, c := range cases {
			if got := classify(c.sql); got != c.standing.access() {
				t.Errorf("PostgreSQL %d: access is %v, want %v: %s", major, got, c.standing.access(), c.sql)
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
