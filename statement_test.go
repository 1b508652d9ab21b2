package flyregion

import (
	"encoding/binary"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// standing is what is true of a statement on a hot standby, and so what Classify has to say. The table was held to real
// servers, PostgreSQL 15 and 19.
type standing uint8

const (
	same      standing = iota // the standby runs it, and it means the same there: Read
	refused                   // the standby refuses it
	differs                   // the standby runs it, but it means something else there, or is lost there
	cautious                  // the standby runs it and it means the same; the reason to call it Write is given
	malformed                 // no server runs it
	opaque                    // Read, although the standby refuses it: the text does not show what is behind a name
)

func (s standing) access() Access {
	if s == same || s == opaque {
		return Read
	}
	return Write
}

// classifyFixture makes what classifyCases ask for.
const classifyFixture = `create table t(id int primary key, a text, b text, n int); insert into t values (1,'a','b',2),(2,'c','d',3);
create table k(update int, delete int, insert int, merge int, into_ int, nextval int, setval int, share int, key int, set int, copy int);
create table off(a int); create table between(a int);
create sequence s; create view v as select * from t; create materialized view mv as select 1 as x;
create function f(int) returns int language sql as 'select $1';
create procedure p() language plpgsql as 'begin null; end';
create type pair as (x int, y int);
create schema mixed; create table mixed."Case"(a int); create function mixed.nextval(int) returns int language sql as 'select $1';
create function advances(int) returns bigint language sql as 'select nextval(''s'')';
create view advancing as select nextval('s');
alter table t cluster on t_pkey;`

type classifyCase struct {
	standing standing
	sql      string
	reason   string // required for cautious
}

// classifyCases holds every kind of statement in PostgreSQL's reference, and the ways to hide one in another.
// They run on classifyFixture, each on a connection of its own.
var classifyCases = []classifyCase{
	// Queries.
	{same, `SELECT 1`, ``},
	{same, `select 1`, ``},
	{same, `SeLeCt 1`, ``},
	{same, `SELECT`, `a row without columns`},
	{same, `SELECT 1;`, ``},
	{same, `SELECT 1;;`, ``},
	{same, ` ; SELECT 1 ; `, ``},
	{same, "\t\r\n\f SELECT 1\n", ``},
	{same, `SELECT * FROM t`, ``},
	{same, `SELECT id, a, b FROM t WHERE id = 1`, ``},
	{same, `SELECT t.*, v.a FROM t JOIN v USING (id) ORDER BY t.id DESC LIMIT 10 OFFSET 5`, ``},
	{same, `SELECT * FROM t AS x (p, q, r, z), LATERAL (SELECT x.p + 1) AS y (w)`, ``},
	{same, `SELECT count(*), sum(id) FILTER (WHERE id > 1) FROM t GROUP BY a HAVING count(*) > 0`, ``},
	{same, `SELECT a, row_number() OVER (PARTITION BY b ORDER BY id) FROM t WINDOW w AS (ORDER BY id)`, ``},
	{same, `SELECT DISTINCT ON (a) a, b FROM t ORDER BY a, b NULLS LAST`, ``},
	{same, `SELECT 1 UNION ALL SELECT 2 EXCEPT (SELECT 3 INTERSECT SELECT 4)`, ``},
	{same, `(SELECT 1)`, ``},
	{same, `((SELECT 1))`, ``},
	{same, `((SELECT 1) UNION (SELECT 2)) LIMIT 1`, ``},
	{same, `(((SELECT 1)) UNION ALL ((VALUES (2))));`, ``},
	{same, `(WITH x AS (SELECT 1) SELECT * FROM x)`, ``},
	{same, `SELECT (SELECT max(id) FROM t), ARRAY(SELECT id FROM t), EXISTS (SELECT 1 FROM t)`, ``},
	{same, `SELECT CASE WHEN id = 1 THEN 'delete' ELSE 'insert' END FROM t`, ``},
	{same, `SELECT * FROM t ORDER BY id FETCH FIRST 3 ROWS WITH TIES`, ``},
	{same, `SELECT * FROM t TABLESAMPLE system (100)`, ``},
	{same, `SELECT * FROM generate_series(1, 3) WITH ORDINALITY`, ``},
	{same, `SELECT * FROM ROWS FROM (generate_series(1, 3), generate_series(1, 2)) AS x (a, b)`, ``},
	{same, `SELECT a FROM t WHERE a ~ 'x' AND b LIKE '%y%' ESCAPE '!'`, ``},
	{same, `SELECT '{"a": 1}'::jsonb -> 'a', '{"a": 1}'::jsonb ? 'a', '{"a": 1}'::jsonb @> '{}'`, ``},
	{same, `SELECT (ARRAY[1, 2, 3])[1:2], (ROW(1, 2)::pair).x`, ``},
	{same, `SELECT 1 OPERATOR(pg_catalog.+) 2`, ``},
	{same, `SELECT timestamp with time zone '2020-01-01', interval '1' year, now() AT TIME ZONE 'utc'`, ``},
	{same, `SELECT x.* FROM xmltable('/a/b' PASSING '<a><b/></a>' COLUMNS o FOR ORDINALITY) x`, ``},
	{same, `SELECT f(1)`, `a function that nobody could know`},
	{same, `SELECT current_user, session_user, current_date, current_schema, current_setting('work_mem')`, ``},
	{same, `SELECT * FROM v`, ``},
	{same, `SELECT * FROM mv`, ``},
	{same, `SELECT last_value FROM s`, `a relation like others; its name does not tell what it is`},
	{same, `SELECT * FROM ONLY t`, ``},
	{same, `VALUES (1, 'a'), (2, 'b')`, ``},
	{same, `VALUES (1) ORDER BY 1 LIMIT 1`, ``},
	{same, `(VALUES (1))`, ``},
	{same, `TABLE t`, ``},
	{same, `TABLE ONLY t ORDER BY id`, ``},
	{same, `TABLE t UNION TABLE t`, ``},
	{same, `SELECT ALL a FROM t`, ``},
	{same, `SELECT a, b, count(*), grouping(a, b) FROM t GROUP BY DISTINCT GROUPING SETS ((a), CUBE (a, b)), ROLLUP (a)`, ``},
	{same, `SELECT sum(n) OVER (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE TIES) FROM t`, ``},
	{same, `SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY n) FROM t`, ``},
	{same, `SELECT * FROM t NATURAL JOIN v CROSS JOIN k LEFT JOIN off ON true`, ``},
	{same, `SELECT * FROM t TABLESAMPLE bernoulli (50) REPEATABLE (1)`, ``},
	{same, `SELECT id FROM t OFFSET 1 ROW FETCH NEXT ROW ONLY`, ``},
	{same, `SELECT t, (t).id, (t.*).a FROM t`, ``},
	{same, `SELECT extract(year FROM date '2020-01-01'), position('b' IN 'abc'), trim(BOTH 'x' FROM 'xax'), cast(1 AS text)`, ``},
	{same, `SELECT 1 IS DISTINCT FROM 2, 2 BETWEEN SYMMETRIC 3 AND 1, 'a' SIMILAR TO 'a', (1, 2) = (1, 2), 'a' COLLATE "C" < 'b'`, ``},
	{same, `SELECT 1 = ANY (ARRAY[1, 2]), 1 < ALL (SELECT 2), nullif(1, 2), least(1, 2), array_agg(id ORDER BY id) FROM t`, ``},
	{same, `SELECT (date '2020-01-01', interval '1 day') OVERLAPS (date '2020-01-02', interval '1 day')`, ``},
	{same, `SELECT xmlelement(name a, xmlattributes('b' AS c), 'd'), xmlforest(1 AS x), json_build_object('a', 1)`, ``},
	{same, `SELECT * FROM json_to_recordset('[{"a": 1}]') AS x (a int), unnest(ARRAY[1], ARRAY['b']) AS y (p, q)`, ``},
	{same, `SELECT to_tsvector('simple', 'a b') @@ to_tsquery('simple', 'a & b'), websearch_to_tsquery('simple', '"a b" -c')`, ``},

	// SELECT INTO.
	{refused, `SELECT * INTO x1 FROM t`, ``},
	{refused, `SELECT 1 INTO TEMP x1`, ``},
	{refused, `SELECT 1 INTO UNLOGGED TABLE x1`, ``},
	{refused, `SELECT 1 AS into INTO x1`, ``},
	{refused, `SELECT 1 AS as INTO x1`, ``},
	{refused, `SELECT t.* INTO x1 FROM t`, ``},
	{refused, `SELECT 1 "a"INTO"x1"`, ``},
	{refused, `SELECT 'a'INTO x1`, ``},
	{refused, `SELECT 1/**/INTO/**/x1`, ``},
	{refused, "SELECT 1--\nINTO x1", ``},
	{refused, "SELECT 1--\rINTO x1", `a line comment ends at a carriage return as well`},
	{refused, `WITH x AS (SELECT 1) SELECT * INTO x1 FROM x`, ``},
	{same, `SELECT 1 AS into`, `a label`},
	{same, `SELECT x.into FROM (SELECT 1 AS into) x`, `a column`},
	{same, `SELECT 'into', "into" FROM (SELECT 1 AS "into") x`, ``},
	{same, `SELECT $$ SELECT 1 INTO x $$`, ``},

	// Row locks.
	{refused, `SELECT * FROM t FOR UPDATE`, ``},
	{refused, `SELECT * FROM t FOR NO KEY UPDATE`, ``},
	{refused, `SELECT * FROM t FOR SHARE`, ``},
	{refused, `SELECT * FROM t FOR KEY SHARE`, ``},
	{refused, `SELECT * FROM t for update OF t NOWAIT`, ``},
	{refused, `SELECT * FROM t FOR/**/UPDATE SKIP LOCKED`, ``},
	{refused, "SELECT * FROM t FOR -- not really\nUPDATE", ``},
	{refused, `SELECT * FROM t FOR UPDATE LIMIT 1`, ``},
	{refused, `SELECT * FROM t LIMIT 1 FOR UPDATE`, ``},
	{refused, `SELECT * FROM (SELECT * FROM t FOR UPDATE) x`, ``},
	{refused, `SELECT (SELECT 1 FROM t FOR SHARE)`, ``},
	{refused, `WITH x AS (SELECT * FROM t FOR UPDATE) SELECT * FROM x`, ``},
	{refused, `TABLE t FOR UPDATE`, ``},
	{same, `SELECT * FROM t FOR READ ONLY`, `in the grammar, and does nothing`},
	{same, `SELECT substring(a FROM 1 FOR 2), substring(a FOR 2), overlay(a PLACING 'x' FROM 1 FOR 1) FROM t`, ``},
	{same, `SELECT substring(a FOR key) FROM t, k`, ``},
	{same, `SELECT substring(a FOR 1), update FROM t, k`, ``},
	{same, `SELECT collation for (a) FROM t`, ``},
	{same, `SELECT 1 AS for, update FROM k`, ``},
	{same, `SELECT key share FROM k`, `a label`},
	{cautious, `SELECT substring(a FOR update) FROM t, k`, `a column of that name in that place is not worth an exception`},
	{cautious, `SELECT x.for update FROM (SELECT 1 AS for) x`, `a label of that name after a column of that name`},

	// WITH.
	{same, `WITH x AS (SELECT 1) SELECT * FROM x`, ``},
	{same, `WITH x AS MATERIALIZED (SELECT 1), y (c) AS NOT MATERIALIZED (TABLE x) SELECT * FROM y`, ``},
	{same, `WITH RECURSIVE x (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM x WHERE n < 5) SELECT * FROM x`, ``},
	{same, `WITH RECURSIVE x (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x WHERE n < 5) SEARCH DEPTH FIRST BY n SET o CYCLE n SET c USING p SELECT * FROM x`, ``},
	{same, `WITH x AS (WITH y AS (SELECT 1) SELECT * FROM y) TABLE x`, ``},
	{same, `SELECT * FROM (WITH x AS (SELECT 1) SELECT * FROM x) y`, ``},
	{refused, `WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x`, ``},
	{refused, `WITH x AS(DELETE/**/FROM t RETURNING *)SELECT * FROM x`, ``},
	{refused, `WITH x AS (UPDATE t SET a = 'x' RETURNING *) SELECT * FROM x`, ``},
	{refused, `WITH x AS (UPDATE ONLY t SET a = 'x' RETURNING *) SELECT * FROM x`, ``},
	{refused, `WITH x AS (UPDATE"t"SET a = 'x' RETURNING *) SELECT * FROM x`, ``},
	{refused, `WITH x AS (UPDATE U&"\0074" SET a = 'x' RETURNING *) SELECT * FROM x`, ``},
	{refused, `WITH x AS (UPDATE off SET a = 1 RETURNING *) SELECT * FROM x`, `off is not reserved`},
	{refused, `WITH x AS (UPDATE between SET a = 1 RETURNING *) SELECT * FROM x`, `neither is between`},
	{refused, `WITH x AS (INSERT INTO t VALUES (9) RETURNING *) SELECT * FROM x`, ``},
	{refused, `WITH x AS MATERIALIZED (INSERT INTO t VALUES (9) RETURNING *) SELECT * FROM x`, ``},
	{refused, `WITH x AS NOT MATERIALIZED (DELETE FROM t RETURNING *) SELECT * FROM x`, ``},
	{refused, `WITH y AS (SELECT 1), x AS (DELETE FROM t RETURNING *) SELECT * FROM x`, ``},
	{refused, `WITH x AS (WITH y AS (SELECT 1 AS id) DELETE FROM t USING y WHERE t.id = y.id RETURNING *) SELECT * FROM x`, ``},
	{refused, `WITH x AS (WITH y AS (SELECT 1 AS id) INSERT INTO t SELECT id + 100 FROM y RETURNING *) SELECT * FROM x`, ``},
	{refused, `WITH x AS (SELECT 1) INSERT INTO t SELECT 5`, ``},
	{refused, `WITH x AS (SELECT 1) UPDATE t SET a = 'x'`, ``},
	{refused, `WITH x AS (SELECT 1) DELETE FROM t`, ``},
	{refused, `WITH x AS (SELECT 1 AS i) MERGE INTO t USING x ON t.id = x.i WHEN MATCHED THEN DELETE`, ``},
	{refused, `WITH RECURSIVE x (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x WHERE n < 5) SEARCH DEPTH FIRST BY n SET o DELETE FROM t`, ``},
	{refused, `WITH RECURSIVE x (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x WHERE n < 5) SEARCH DEPTH FIRST BY n SET o UPDATE t SET a = 'x'`, ``},
	{refused, `WITH RECURSIVE x (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x WHERE n < 5) CYCLE n SET c USING "p" DELETE FROM t`, ``},
	{refused, `WITH RECURSIVE x (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x WHERE n < 5) CYCLE n SET c TO 'a' DEFAULT 'b' USING by UPDATE t SET a = 'x'`, `by is not reserved`},
	{same, `SELECT update, delete, insert, merge, nextval, set, copy FROM k`, `columns`},
	{same, `WITH x AS (SELECT 1) SELECT update, delete FROM k`, `columns`},
	{same, `WITH x AS (SELECT 1) SELECT delete FROM k`, ``},
	{same, `WITH x AS (SELECT 1) SELECT k.delete FROM k WHERE update = 1 ORDER BY update DESC`, ``},
	{same, `WITH x AS (SELECT 1) SELECT 1 AS delete FROM k`, ``},
	{same, `WITH x AS (SELECT 1) SELECT (update) FROM k`, ``},
	{same, `SELECT (update), (delete), greatest(update, delete) FROM k`, ``},
	{same, `WITH x AS (SELECT 1) SELECT count(*) update FROM k`, `a label`},
	{same, `WITH x AS (SELECT 1) SELECT 'DELETE FROM t', $$UPDATE t SET a = 1$$, "delete" FROM k`, ``},
	{same, `WITH x AS (SELECT 1 /* DELETE FROM t */) SELECT * FROM x -- UPDATE t SET a = 1`, ``},
	{same, `SELECT count(*) delete FROM t`, `a label; without a WITH nothing can be nested`},
	{same, `SELECT timestamp with time zone '2020-01-01' AS x, delete FROM k`, ``},
	{cautious, `WITH x AS (SELECT 1) SELECT count(*) delete FROM k`, `looks like the end of a WITH and a DELETE`},
	{cautious, `WITH x AS (SELECT 1) SELECT max(key ORDER BY update NULLS FIRST) FROM k`, `BY and NULLS could be names of a column and a table`},

	// Data.
	{refused, `INSERT INTO t VALUES (7)`, ``},
	{refused, `INSERT INTO t DEFAULT VALUES`, ``},
	{refused, `INSERT INTO t SELECT 8 ON CONFLICT DO NOTHING`, ``},
	{refused, `INSERT INTO t (id) VALUES (7) ON CONFLICT (id) DO UPDATE SET a = excluded.a RETURNING id`, ``},
	{refused, `UPDATE t SET a = 'x' WHERE id = 1`, ``},
	{refused, `DELETE FROM t`, ``},
	{refused, `MERGE INTO t USING k ON t.id = k.key WHEN NOT MATCHED THEN INSERT VALUES (k.key)`, ``},
	{refused, `MERGE INTO t USING k ON t.id = k.key WHEN MATCHED AND k.key > 1 THEN UPDATE SET a = 'x' WHEN MATCHED THEN DELETE`, ``},
	{refused, `INSERT INTO t AS x (id, a) OVERRIDING SYSTEM VALUE SELECT 9, 'x' RETURNING *`, ``},
	{refused, `UPDATE ONLY t AS x SET (a, b) = (SELECT 'x', 'y') FROM k WHERE k.key = x.id RETURNING x.*`, ``},
	{refused, `DELETE FROM ONLY t USING k WHERE k.key = t.id RETURNING *`, ``},
	{refused, `DELETE FROM t WHERE false`, `although there is nothing to do`},
	{cautious, `MERGE INTO t USING k ON t.id = k.key WHEN MATCHED THEN DO NOTHING`, `no data is written, but nobody writes a MERGE for that`},
	{refused, `TRUNCATE t`, ``},
	{refused, `TRUNCATE TABLE ONLY t, k RESTART IDENTITY CASCADE`, ``},
	{refused, `/* a read */ INSERT INTO t VALUES (7)`, ``},
	{refused, `-- a read
INSERT INTO t VALUES (7)`, ``},
	{malformed, `(INSERT INTO t VALUES (7))`, ``},
	{malformed, `SELECT * FROM (DELETE FROM t RETURNING *) x`, ``},

	// COPY.
	{same, `COPY t TO STDOUT`, ``},
	{same, `copy t to stdout`, ``},
	{same, `COPY t (id, a) TO STDOUT WITH (FORMAT csv, HEADER, FORCE_QUOTE (a))`, ``},
	{same, `COPY public.t TO STDOUT CSV HEADER DELIMITER ';' FORCE QUOTE *`, ``},
	{same, `COPY "t" TO STDOUT`, ``},
	{same, `COPY mixed."Case" TO STDOUT`, ``},
	{same, `COPY BINARY t TO STDOUT`, ``},
	{same, `COPY (SELECT * FROM t) TO STDOUT`, ``},
	{same, `COPY ((SELECT 1) UNION (SELECT 2)) TO STDOUT (FORMAT csv)`, ``},
	{same, `COPY (WITH x AS (SELECT 1) SELECT * FROM x) TO STDOUT`, ``},
	{same, `COPY (VALUES (1)) TO STDOUT`, ``},
	{same, `COPY pg_class (oid) TO STDOUT`, ``},
	{refused, `COPY (DELETE FROM t RETURNING *) TO STDOUT`, ``},
	{refused, `COPY (WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x) TO STDOUT`, ``},
	{refused, `COPY (SELECT nextval('s')) TO STDOUT`, ``},
	{refused, `COPY (SELECT * FROM t FOR UPDATE) TO STDOUT`, ``},
	{refused, `COPY t FROM '/dev/null'`, ``},
	{refused, `COPY t FROM STDIN`, ``},
	{refused, `COPY t (id, a) FROM STDIN WITH (FORMAT csv, HEADER, NULL 'x')`, ``},
	{refused, `COPY t FROM PROGRAM 'true' WHERE id > 5`, ``},
	{differs, `COPY (SELECT pg_advisory_xact_lock(1)) TO STDOUT`, `a lock that nobody on the primary sees`},
	{differs, `COPY t TO '/dev/null'`, `a file of the server that runs it`},
	{differs, `COPY t TO PROGRAM 'cat >/dev/null'`, `a program of the server that runs it`},
	{differs, `COPY (SELECT 1) TO PROGRAM 'cat >/dev/null'`, `likewise`},
	{cautious, `COPY t TO STDIN`, `PostgreSQL takes it for STDOUT, but nobody writes it`},
	{malformed, `COPY t`, ``},
	{malformed, `COPY (SELECT 1)`, ``},
	{malformed, `COPY (SELECT 1) TO`, ``},

	// SHOW, SET and the session.
	{same, `SHOW work_mem`, ``},
	{differs, `SHOW ALL`, `in_hot_standby is among them`},
	{differs, `SHOW "all"`, ``},
	{same, `SHOW TIME ZONE`, ``},
	{same, `SHOW TRANSACTION ISOLATION LEVEL`, ``},
	{same, `SHOW SESSION AUTHORIZATION`, ``},
	{same, `SHOW "work_mem"`, ``},
	{same, `SHOW server_version; SHOW search_path`, ``},
	{differs, `SHOW transaction_read_only`, `tells the servers apart`},
	{differs, `SHOW "transaction_read_only"`, ``},
	{differs, `SHOW in_hot_standby`, ``},
	{malformed, `SHOW`, ``},
	{differs, `SET work_mem = '8MB'`, ``},
	{differs, `SET SESSION search_path TO public`, ``},
	{differs, `SET LOCAL work_mem = '8MB'`, `of the transaction`},
	{differs, `SET TIME ZONE 'UTC'`, ``},
	{differs, `SET ROLE postgres`, `of the session`},
	{differs, `SET SESSION AUTHORIZATION DEFAULT`, `of the session`},
	{differs, `SET CONSTRAINTS ALL DEFERRED`, `of the transaction`},
	{differs, `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ`, ``},
	{refused, `SET TRANSACTION READ WRITE`, ``},
	{differs, `SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY`, ``},
	{differs, `RESET work_mem`, `of the session`},
	{differs, `RESET ALL`, `of the session`},
	{differs, `DISCARD ALL`, `of the session`},
	{differs, `DISCARD TEMP`, `of the session`},
	{differs, `PREPARE q AS SELECT 1`, ``},
	{differs, `PREPARE q2 AS SELECT 1; EXECUTE q2; DEALLOCATE q2`, `a statement of the session, whose text would have to be remembered`},
	{differs, `DEALLOCATE ALL`, `of the session`},
	{malformed, `EXECUTE nosuch`, `on this session`},
	{differs, `LOAD 'plpgsql'`, `of the session`},
	{refused, `LISTEN x`, ``},
	{refused, `NOTIFY x, 'y'`, ``},
	{differs, `UNLISTEN *`, `of the session`},
	{differs, `DECLARE c CURSOR WITH HOLD FOR SELECT 1`, ``},
	{differs, `BEGIN; DECLARE c2 CURSOR FOR SELECT 1; FETCH ALL FROM c2; MOVE 1 IN c2; CLOSE c2; COMMIT`, ``},
	{differs, `CLOSE ALL`, `of the session`},
	{malformed, `FETCH ALL FROM nosuch`, `on this session`},
	{malformed, `MOVE NEXT IN nosuch`, `on this session`},
	{malformed, `CLOSE nosuch`, `on this session`},
	{malformed, `DEALLOCATE nosuch`, `on this session`},
	{differs, `DISCARD PLANS`, `of the session`},
	{differs, `DISCARD SEQUENCES`, `of the session`},
	{differs, `RESET ROLE`, `of the session`},
	{differs, `RESET SESSION AUTHORIZATION`, `of the session`},
	{differs, `SET LOCAL ROLE NONE`, `of the session`},
	{differs, `SET LOCAL TRANSACTION READ ONLY`, `of the transaction`},
	{differs, `CHECKPOINT`, `a standby makes a restartpoint`},

	// Transaction control.
	{differs, `BEGIN; COMMIT`, `where a transaction begins is where it runs`},
	{differs, `BEGIN READ ONLY; END`, ``},
	{differs, `START TRANSACTION; ROLLBACK`, ``},
	{differs, `BEGIN; SAVEPOINT a; ROLLBACK TO a; RELEASE a; ABORT`, ``},
	{differs, `BEGIN; SAVEPOINT a; ROLLBACK TO SAVEPOINT a; RELEASE SAVEPOINT a; COMMIT AND CHAIN; ROLLBACK AND NO CHAIN`, ``},
	{differs, `ABORT WORK`, ``},
	{differs, `COMMIT`, ``},
	{differs, `END TRANSACTION`, ``},
	{differs, `BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY, NOT DEFERRABLE; SELECT 1; COMMIT`, ``},
	{refused, `BEGIN READ WRITE; COMMIT`, ``},
	{refused, `BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT 1; COMMIT`, ``},
	{malformed, `SAVEPOINT a`, `outside of a transaction`},
	{malformed, `RELEASE SAVEPOINT a`, `likewise`},
	{malformed, `ROLLBACK TO SAVEPOINT a`, `likewise`},
	{malformed, `DECLARE c CURSOR FOR SELECT 1`, `likewise`},
	{differs, `COMMIT AND NO CHAIN`, ``},
	{differs, `ROLLBACK`, ``},
	{refused, `BEGIN; PREPARE TRANSACTION 'x'`, ``},
	{refused, `COMMIT PREPARED 'x'`, ``},
	{refused, `ROLLBACK PREPARED 'x'`, ``},
	{refused, `BEGIN; LOCK TABLE t`, ``},
	{differs, `BEGIN; LOCK TABLE t IN ACCESS SHARE MODE; COMMIT`, ``},

	// Code.
	{differs, `CALL p()`, `what the procedure does is not known, and a call is not a query`},
	{differs, `DO $$ BEGIN NULL; END $$`, `what the code does is not known`},
	{refused, `DO 'BEGIN DELETE FROM t; END'`, ``},

	// EXPLAIN.
	{same, `EXPLAIN SELECT 1`, ``},
	{same, `EXPLAIN VERBOSE SELECT 1`, ``},
	{same, `EXPLAIN ANALYZE SELECT 1`, ``},
	{same, `EXPLAIN ANALYSE VERBOSE SELECT 1`, ``},
	{same, `EXPLAIN (ANALYZE, BUFFERS, FORMAT json) SELECT 1`, ``},
	{same, `EXPLAIN (VERBOSE) (SELECT 1)`, ``},
	{same, `EXPLAIN (SELECT 1)`, ``},
	{same, `EXPLAIN ((SELECT 1) UNION (SELECT 2))`, ``},
	{same, `EXPLAIN (VALUES (1))`, ``},
	{same, `EXPLAIN (TABLE t)`, ``},
	{same, `EXPLAIN (WITH x AS (SELECT 1) SELECT * FROM x)`, ``},
	{same, `EXPLAIN ANALYZE (SELECT 1)`, ``},
	{same, `EXPLAIN ("analyze") SELECT 1`, ``},
	{same, `EXPLAIN (ANALYZE 'on', TIMING 0) SELECT 1`, ``},
	{same, `EXPLAIN INSERT INTO t VALUES (7)`, `a standby plans a write; nothing is executed`},
	{same, `EXPLAIN UPDATE t SET a = 'x'`, ``},
	{same, `EXPLAIN VERBOSE DELETE FROM t`, ``},
	{same, `EXPLAIN MERGE INTO t USING k ON t.id = k.key WHEN MATCHED THEN DELETE`, ``},
	{same, `EXPLAIN WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x`, ``},
	{same, `EXPLAIN SELECT * FROM t FOR UPDATE`, ``},
	{same, `EXPLAIN SELECT * INTO x1 FROM t`, ``},
	{same, `EXPLAIN (COSTS off) DELETE FROM t`, ``},
	{same, `EXPLAIN (ANALYZE false) DELETE FROM t`, ``},
	{same, `EXPLAIN (ANALYZE OFF, VERBOSE) DELETE FROM t`, ``},
	{same, `EXPLAIN (VERBOSE, ANALYZE 0) DELETE FROM t`, ``},
	{refused, `EXPLAIN ANALYZE DELETE FROM t`, ``},
	{refused, `EXPLAIN ANALYZE VERBOSE INSERT INTO t VALUES (7)`, ``},
	{refused, `EXPLAIN (ANALYZE) DELETE FROM t`, ``},
	{refused, `EXPLAIN (analyse) DELETE FROM t`, ``},
	{refused, `EXPLAIN (VERBOSE, ANALYZE) DELETE FROM t`, ``},
	{refused, `EXPLAIN (ANALYZE, VERBOSE) DELETE FROM t`, ``},
	{refused, `EXPLAIN (ANALYZE true) DELETE FROM t`, ``},
	{refused, `EXPLAIN (ANALYZE on) DELETE FROM t`, ``},
	{refused, `EXPLAIN (ANALYZE 1) DELETE FROM t`, ``},
	{refused, `EXPLAIN (ANALYZE 'true') DELETE FROM t`, ``},
	{refused, `EXPLAIN ("analyze") DELETE FROM t`, ``},
	{refused, `EXPLAIN (U&"\0061nalyze") DELETE FROM t`, ``},
	{refused, `EXPLAIN (ANALYZE "on") DELETE FROM t`, ``},
	{refused, `EXPLAIN (ANALYZE false, ANALYZE) DELETE FROM t`, `the last one wins`},
	{refused, `EXPLAIN (COSTS off, ANALYZE) DELETE FROM t`, ``},
	{refused, `EXPLAIN (ANALYZE /* false */) DELETE FROM t`, ``},
	{refused, `EXPLAIN ANALYZE SELECT nextval('s')`, ``},
	{refused, `EXPLAIN ANALYZE SELECT * FROM t FOR UPDATE`, ``},
	{refused, `EXPLAIN ANALYZE WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x`, ``},
	{refused, `EXPLAIN (ANALYZE) CREATE TABLE x1 AS SELECT 1`, ``},
	{refused, `EXPLAIN SELECT * FROM t WHERE id = txid_current()`, `the planner calls a stable function`},
	{differs, `EXPLAIN ANALYZE SELECT pg_advisory_lock(1)`, ``},
	{cautious, `EXPLAIN SELECT nextval('s')`, `a volatile function is not called, but the text does not tell which are`},
	{cautious, `EXPLAIN (ANALYZE 'off') DELETE FROM t`, `nobody quotes it`},
	{cautious, `EXPLAIN (ANALYZE, ANALYZE false) DELETE FROM t`, `nobody writes it twice`},
	{cautious, `EXPLAIN CREATE TABLE x1 AS SELECT 1`, `AS EXECUTE would ask for a statement of the session`},
	{cautious, `EXPLAIN DECLARE c CURSOR FOR SELECT 1`, `as good as nobody explains it`},
	{cautious, `EXPLAIN REFRESH MATERIALIZED VIEW mv`, `says only that there is no plan`},
	{malformed, `EXPLAIN`, ``},
	{malformed, `EXPLAIN ()`, ``},
	{malformed, `EXPLAIN (ANALYZE)`, ``},
	{malformed, `EXPLAIN SHOW work_mem`, ``},
	{malformed, `EXPLAIN EXPLAIN SELECT 1`, ``},
	{malformed, `EXPLAIN COPY t TO STDOUT`, ``},

	// Schema. None of it can run on a standby, whatever it is.
	{refused, `CREATE TABLE x1 (a int)`, ``},
	{refused, `CREATE TABLE x1 AS SELECT 1`, ``},
	{refused, `CREATE TABLE IF NOT EXISTS t AS SELECT 1`, ``},
	{refused, `CREATE TEMP TABLE x1 (a int)`, ``},
	{refused, `CREATE TEMPORARY VIEW x1 AS SELECT 1`, ``},
	{refused, `CREATE VIEW x1 AS SELECT 1`, ``},
	{refused, `CREATE OR REPLACE VIEW v AS SELECT * FROM t`, ``},
	{refused, `CREATE MATERIALIZED VIEW x1 AS SELECT 1`, ``},
	{refused, `REFRESH MATERIALIZED VIEW mv`, ``},
	{refused, `CREATE INDEX ON t (a)`, ``},
	{refused, `CREATE UNIQUE INDEX CONCURRENTLY x1 ON t (a)`, ``},
	{refused, `CREATE SEQUENCE x1`, ``},
	{refused, `CREATE SCHEMA x1`, ``},
	{refused, `CREATE FUNCTION x1() RETURNS int LANGUAGE sql AS 'SELECT 1'`, ``},
	{refused, `CREATE FUNCTION x1() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 2 END; END`, ``},
	{refused, `CREATE PROCEDURE x1() LANGUAGE sql AS ''`, ``},
	{refused, `CREATE RULE x1 AS ON INSERT TO t DO ALSO (SELECT 1; SELECT 2)`, ``},
	{refused, `CREATE TRIGGER x1 BEFORE INSERT ON t EXECUTE FUNCTION suppress_redundant_updates_trigger()`, ``},
	{refused, `CREATE EVENT TRIGGER x1 ON ddl_command_start EXECUTE FUNCTION f()`, ``},
	{refused, `CREATE TYPE x1 AS (a int)`, ``},
	{refused, `CREATE DOMAIN x1 AS int`, ``},
	{refused, `CREATE EXTENSION hstore`, ``},
	{refused, `CREATE ROLE x1`, ``},
	{refused, `CREATE USER x1`, ``},
	{refused, `CREATE GROUP x1`, ``},
	{refused, `CREATE DATABASE x1`, ``},
	{refused, `CREATE TABLESPACE x1 LOCATION '/tmp'`, ``},
	{refused, `CREATE POLICY x1 ON t`, ``},
	{refused, `CREATE PUBLICATION x1`, ``},
	{refused, `CREATE SUBSCRIPTION x1 CONNECTION '' PUBLICATION x WITH (connect = false)`, ``},
	{refused, `CREATE SERVER x1 FOREIGN DATA WRAPPER x`, ``},
	{refused, `CREATE FOREIGN DATA WRAPPER x1`, ``},
	{refused, `CREATE FOREIGN TABLE x1 (a int) SERVER x`, ``},
	{refused, `CREATE USER MAPPING FOR postgres SERVER x`, ``},
	{refused, `CREATE CAST (pair AS int) WITH FUNCTION f(int)`, ``},
	{refused, `CREATE COLLATION x1 FROM "C"`, ``},
	{refused, `CREATE CONVERSION x1 FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8`, ``},
	{refused, `CREATE ACCESS METHOD x1 TYPE INDEX HANDLER bthandler`, ``},
	{refused, `CREATE AGGREGATE x1 (int) (SFUNC = int4pl, STYPE = int)`, ``},
	{refused, `CREATE LANGUAGE x1 HANDLER plpgsql_call_handler`, ``},
	{refused, `CREATE OPERATOR ### (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl)`, ``},
	{refused, `CREATE OPERATOR CLASS x1 FOR TYPE int USING btree AS STORAGE int`, ``},
	{refused, `CREATE OPERATOR FAMILY x1 USING btree`, ``},
	{refused, `CREATE STATISTICS x1 ON a, b FROM t`, ``},
	{refused, `CREATE TEXT SEARCH CONFIGURATION x1 (COPY = simple)`, ``},
	{refused, `CREATE TEXT SEARCH DICTIONARY x1 (TEMPLATE = simple)`, ``},
	{refused, `CREATE TEXT SEARCH PARSER x1 (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end, LEXTYPES = prsd_lextype)`, ``},
	{refused, `CREATE TEXT SEARCH TEMPLATE x1 (LEXIZE = dsimple_lexize)`, ``},
	{refused, `CREATE TRANSFORM FOR int LANGUAGE plpgsql (FROM SQL WITH FUNCTION f(int))`, ``},
	{refused, `CREATE TABLE x1 (LIKE t INCLUDING ALL) PARTITION BY RANGE (id)`, ``},
	{refused, `CREATE UNLOGGED TABLE x1 (a int GENERATED ALWAYS AS IDENTITY, b int GENERATED ALWAYS AS (1) STORED)`, ``},
	{refused, `CREATE TABLE x1 (a) AS VALUES (1) WITH NO DATA`, ``},
	{refused, `CREATE TABLE x1 OF pair`, ``},
	{refused, `CREATE RECURSIVE VIEW x1 (n) AS VALUES (1) UNION ALL SELECT n + 1 FROM x1 WHERE n < 3`, ``},
	{refused, `CREATE TEMP SEQUENCE x1`, ``},
	{refused, `CREATE CONSTRAINT TRIGGER x1 AFTER INSERT ON t DEFERRABLE FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()`, ``},
	{refused, `CREATE SCHEMA x1 CREATE TABLE a (b int) CREATE VIEW c AS SELECT b FROM a`, ``},
	{refused, `CREATE TYPE x1 AS ENUM ('a')`, ``},
	{refused, `CREATE TYPE x1 AS RANGE (SUBTYPE = int)`, ``},
	{refused, `CREATE TYPE x1`, ``},
	{refused, `ALTER AGGREGATE sum(int) RENAME TO x1`, ``},
	{refused, `ALTER COLLATION "C" RENAME TO x1`, ``},
	{refused, `ALTER CONVERSION utf8_to_ascii RENAME TO x1`, ``},
	{refused, `ALTER DOMAIN information_schema.yes_or_no DROP NOT NULL`, ``},
	{refused, `ALTER EVENT TRIGGER nosuch DISABLE`, ``},
	{refused, `ALTER EXTENSION plpgsql UPDATE`, ``},
	{refused, `ALTER FOREIGN DATA WRAPPER nosuch OPTIONS (a 'b')`, ``},
	{refused, `ALTER FOREIGN TABLE nosuch ADD COLUMN z int`, ``},
	{refused, `ALTER FUNCTION f(int) STABLE`, ``},
	{refused, `ALTER GROUP postgres ADD USER postgres`, ``},
	{refused, `ALTER INDEX t_pkey RENAME TO x1`, ``},
	{refused, `ALTER INDEX ALL IN TABLESPACE pg_default SET TABLESPACE pg_default`, ``},
	{refused, `ALTER LANGUAGE plpgsql RENAME TO x1`, ``},
	{refused, `ALTER MATERIALIZED VIEW mv RENAME TO x1`, ``},
	{refused, `ALTER OPERATOR + (int, int) OWNER TO postgres`, ``},
	{refused, `ALTER OPERATOR CLASS int4_ops USING btree RENAME TO x1`, ``},
	{refused, `ALTER OPERATOR FAMILY integer_ops USING btree RENAME TO x1`, ``},
	{refused, `ALTER POLICY nosuch ON t RENAME TO x1`, ``},
	{refused, `ALTER PROCEDURE p() RENAME TO x1`, ``},
	{refused, `ALTER PUBLICATION nosuch RENAME TO x1`, ``},
	{refused, `ALTER ROUTINE f(int) RENAME TO x1`, ``},
	{refused, `ALTER RULE nosuch ON t RENAME TO x1`, ``},
	{refused, `ALTER SCHEMA mixed RENAME TO x1`, ``},
	{refused, `ALTER SERVER nosuch VERSION '1'`, ``},
	{refused, `ALTER STATISTICS nosuch RENAME TO x1`, ``},
	{refused, `ALTER SUBSCRIPTION nosuch DISABLE`, ``},
	{refused, `ALTER TABLE t CLUSTER ON t_pkey`, ``},
	{refused, `ALTER TABLE ONLY t ALTER COLUMN n SET STATISTICS 1, DISABLE TRIGGER ALL, ENABLE ROW LEVEL SECURITY`, ``},
	{refused, `ALTER TABLE IF EXISTS nosuch ADD COLUMN z int`, ``},
	{refused, `ALTER TABLE t SET SCHEMA mixed`, ``},
	{refused, `ALTER TABLESPACE pg_default RESET (random_page_cost)`, ``},
	{refused, `ALTER TEXT SEARCH CONFIGURATION simple RENAME TO x1`, ``},
	{refused, `ALTER TEXT SEARCH DICTIONARY simple RENAME TO x1`, ``},
	{refused, `ALTER TEXT SEARCH PARSER "default" RENAME TO x1`, ``},
	{refused, `ALTER TEXT SEARCH TEMPLATE simple RENAME TO x1`, ``},
	{refused, `ALTER TRIGGER nosuch ON t RENAME TO x1`, ``},
	{refused, `ALTER TYPE pair RENAME TO x1`, ``},
	{refused, `ALTER USER postgres PASSWORD 'postgres'`, ``},
	{refused, `ALTER USER MAPPING FOR postgres SERVER nosuch OPTIONS (a 'b')`, ``},
	{refused, `ALTER VIEW v ALTER COLUMN a SET DEFAULT 'x'`, ``},
	{refused, `ALTER TABLE t ADD COLUMN z int`, ``},
	{refused, `ALTER TABLE t RENAME TO t2`, ``},
	{refused, `ALTER SEQUENCE s RESTART`, ``},
	{refused, `ALTER DATABASE postgres SET work_mem = '8MB'`, ``},
	{refused, `ALTER ROLE postgres SET synchronous_commit = off`, ``},
	{refused, `ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC`, ``},
	{refused, `ALTER LARGE OBJECT 1 OWNER TO postgres`, ``},
	{differs, `ALTER SYSTEM SET work_mem = '8MB'`, `a standby writes its own file`},
	{differs, `ALTER SYSTEM RESET ALL`, `likewise`},
	{refused, `DROP TABLE t`, ``},
	{refused, `DROP TABLE IF EXISTS nosuch`, ``},
	{refused, `DROP DATABASE nosuch`, ``},
	{refused, `DROP ACCESS METHOD nosuch`, ``},
	{refused, `DROP AGGREGATE sum(int)`, ``},
	{refused, `DROP CAST (int AS text)`, ``},
	{refused, `DROP COLLATION nosuch`, ``},
	{refused, `DROP CONVERSION nosuch`, ``},
	{refused, `DROP DOMAIN IF EXISTS nosuch`, ``},
	{refused, `DROP EVENT TRIGGER nosuch`, ``},
	{refused, `DROP EXTENSION plpgsql`, ``},
	{refused, `DROP FOREIGN DATA WRAPPER nosuch`, ``},
	{refused, `DROP FOREIGN TABLE nosuch`, ``},
	{refused, `DROP FUNCTION f(int)`, ``},
	{refused, `DROP GROUP nosuch`, ``},
	{refused, `DROP INDEX t_pkey`, ``},
	{refused, `DROP INDEX CONCURRENTLY nosuch`, ``},
	{refused, `DROP LANGUAGE nosuch`, ``},
	{refused, `DROP MATERIALIZED VIEW mv`, ``},
	{refused, `DROP OPERATOR + (int, int)`, ``},
	{refused, `DROP OPERATOR CLASS nosuch USING btree`, ``},
	{refused, `DROP OPERATOR FAMILY nosuch USING btree`, ``},
	{refused, `DROP POLICY nosuch ON t`, ``},
	{refused, `DROP PROCEDURE p()`, ``},
	{refused, `DROP PUBLICATION nosuch`, ``},
	{refused, `DROP ROLE nosuch`, ``},
	{refused, `DROP ROUTINE f(int)`, ``},
	{refused, `DROP RULE nosuch ON t`, ``},
	{refused, `DROP SCHEMA mixed CASCADE`, ``},
	{refused, `DROP SEQUENCE s`, ``},
	{refused, `DROP SERVER nosuch`, ``},
	{refused, `DROP STATISTICS nosuch`, ``},
	{refused, `DROP SUBSCRIPTION nosuch`, ``},
	{refused, `DROP TABLE t, k CASCADE`, ``},
	{refused, `DROP TABLESPACE nosuch`, ``},
	{refused, `DROP TEXT SEARCH CONFIGURATION nosuch`, ``},
	{refused, `DROP TEXT SEARCH DICTIONARY nosuch`, ``},
	{refused, `DROP TEXT SEARCH PARSER nosuch`, ``},
	{refused, `DROP TEXT SEARCH TEMPLATE nosuch`, ``},
	{refused, `DROP TRANSFORM FOR int LANGUAGE plpgsql`, ``},
	{refused, `DROP TRIGGER nosuch ON t`, ``},
	{refused, `DROP TYPE pair`, ``},
	{refused, `DROP USER nosuch`, ``},
	{refused, `DROP USER MAPPING FOR postgres SERVER nosuch`, ``},
	{refused, `DROP VIEW v`, ``},
	{refused, `DROP OWNED BY postgres`, ``},
	{refused, `REASSIGN OWNED BY postgres TO postgres`, ``},
	{refused, `GRANT SELECT ON t TO PUBLIC`, ``},
	{refused, `REVOKE SELECT ON t FROM PUBLIC`, ``},
	{refused, `COMMENT ON TABLE t IS 'x'`, ``},
	{refused, `SECURITY LABEL ON TABLE t IS 'x'`, ``},
	{refused, `IMPORT FOREIGN SCHEMA x FROM SERVER y INTO public`, ``},
	{refused, `GRANT postgres TO postgres WITH ADMIN OPTION`, ``},
	{refused, `GRANT USAGE ON SCHEMA mixed TO PUBLIC WITH GRANT OPTION`, ``},
	{refused, `REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC CASCADE`, ``},
	{refused, `COMMENT ON COLUMN t.a IS NULL`, ``},
	{refused, `REFRESH MATERIALIZED VIEW CONCURRENTLY mv WITH DATA`, ``},
	{refused, `VACUUM t`, ``},
	{refused, `VACUUM`, ``},
	{refused, `VACUUM (FULL, ANALYZE, VERBOSE) t (a)`, ``},
	{refused, `ANALYZE t`, ``},
	{refused, `ANALYZE`, ``},
	{refused, `ANALYZE (VERBOSE, SKIP_LOCKED) t (a, b)`, ``},
	{refused, `CLUSTER t`, ``},
	{refused, `CLUSTER VERBOSE t USING t_pkey`, ``},
	{refused, `REINDEX TABLE t`, ``},
	{refused, `REINDEX (VERBOSE) INDEX CONCURRENTLY t_pkey`, ``},
	{refused, `REINDEX SCHEMA mixed`, ``},

	// Calls that belong to the primary.
	{refused, `SELECT nextval('s')`, ``},
	{refused, `SELECT NextVal('s')`, ``},
	{refused, `SELECT nextval ('s')`, ``},
	{refused, `SELECT nextval/* ( */('s')`, ``},
	{refused, "SELECT nextval -- it's\n ('s')", ``},
	{refused, `SELECT pg_catalog.nextval('s')`, ``},
	{refused, `SELECT pg_catalog . nextval ('s')`, ``},
	{refused, `SELECT "nextval"('s')`, ``},
	{refused, `SELECT "pg_catalog"."nextval"('s')`, ``},
	{refused, `SELECT classified.pg_catalog.nextval('s')`, ``},
	{refused, `SELECT U&"nextval"('s')`, ``},
	{refused, `SELECT U&"\006eextval"('s')`, ``},
	{refused, `SELECT u&"!006eextval" UESCAPE '!' ('s')`, ``},
	{refused, `SELECT pg_catalog.U&"\006eextval"('s')`, ``},
	{refused, `SELECT ('s'::regclass).nextval`, `a call, in the way a field is written`},
	{refused, `SELECT (('s'::regclass)).nextval`, ``},
	{refused, `SELECT ('s'::regclass) . "nextval"`, ``},
	{refused, `SELECT ('s'::regclass).U&"\006eextval"`, ``},
	{refused, `SELECT (ARRAY['s'::regclass])[1].nextval`, ``},
	{refused, `SELECT x.a[1].nextval FROM (SELECT ARRAY['s'::regclass] AS a) x`, ``},
	{refused, `SELECT * FROM nextval('s')`, ``},
	{refused, `SELECT * FROM ROWS FROM (nextval('s')) AS x`, ``},
	{refused, `SELECT 1 WHERE nextval('s') > 0`, ``},
	{refused, `VALUES (nextval('s'))`, ``},
	{refused, `SELECT coalesce(nextval('s'), 1)`, ``},
	{refused, `WITH x AS (SELECT nextval('s')) SELECT * FROM x`, ``},
	{refused, `SELECT setval('s', 1)`, ``},
	{malformed, `SELECT currval('s')`, `on this session`},
	{malformed, `SELECT lastval()`, `on this session`},
	{same, `SELECT nextval FROM k`, `a column`},
	{same, `SELECT k.nextval, "setval" FROM k`, ``},
	{refused, `SELECT x.nextval FROM to_regclass('s') AS x`, `a call, in the way a column is written`},
	{refused, `SELECT x.nextval FROM ROWS FROM (to_regclass('s')) AS x`, ``},
	{refused, `SELECT x.nextval FROM CAST('s' AS regclass) AS x`, ``},
	{refused, `SELECT to_regclass.U&"\006eextval" FROM to_regclass('s')`, ``},
	{differs, `SELECT x.pg_try_advisory_lock FROM generate_series(1::bigint, 1) AS x`, ``},
	{cautious, `SELECT k.nextval, count(*) FROM k GROUP BY 1`, `where there are calls, a function could stand behind the name of a table`},
	{same, `SELECT nextval, (setval) FROM k WHERE nextval IN (1)`, ``},
	{same, `SELECT 'nextval(''s'')'`, ``},
	{same, `SELECT $$nextval('s')$$, E'nextval(\'s\')' -- nextval('s')`, ``},
	{same, `SELECT 'nextval' /* nextval('s') */`, ``},
	{differs, `SELECT set_config('a.b', 'c', false)`, `of the session`},
	{differs, `SELECT pg_catalog.set_config('a.b', 'c', true)`, `of the transaction`},
	{differs, `SELECT setseed(0.5)`, `of the session`},
	{differs, `SELECT pg_advisory_lock(1)`, ``},
	{differs, `SELECT PG_ADVISORY_LOCK(1)`, ``},
	{differs, `SELECT pg_advisory_lock(1, 2)`, ``},
	{differs, `SELECT (1::bigint).pg_advisory_lock`, ``},
	{differs, `SELECT "pg_advisory_xact_lock" (1)`, `a lock that nobody on the primary sees`},
	{differs, `SELECT pg_try_advisory_lock_shared(1)`, ``},
	{differs, `SELECT pg_advisory_unlock_all()`, `of the session`},
	{refused, `SELECT pg_notify('a', 'b')`, ``},
	{differs, `SELECT pg_listening_channels()`, `of the session`},
	{refused, `SELECT txid_current()`, ``},
	{refused, `SELECT pg_current_xact_id()`, ``},
	{differs, `SELECT txid_current_if_assigned()`, `always null on a standby`},
	{differs, `SELECT pg_current_snapshot()`, `what a standby knows of transactions lags behind`},
	{differs, `SELECT txid_status(3)`, `what a standby knows of transactions lags behind`},
	{same, `SELECT pg_snapshot_xmin('10:20:10,14,15'), txid_snapshot_xmax('10:20:10,14,15')`, `computation`},
	{refused, `SELECT pg_current_wal_lsn()`, ``},
	{refused, `SELECT pg_current_wal_flush_lsn()`, ``},
	{refused, `SELECT pg_walfile_name('0/1')`, ``},
	{differs, `SELECT pg_last_wal_replay_lsn()`, ``},
	{differs, `SELECT pg_last_xact_replay_timestamp()`, ``},
	{differs, `SELECT pg_is_in_recovery()`, ``},
	{differs, `SELECT pg_postmaster_start_time()`, ``},
	{differs, `SELECT pg_backend_pid()`, `the number would be used on the primary`},
	{differs, `SELECT pg_cancel_backend(0)`, `a process of the server`},
	{differs, `SELECT pg_terminate_backend(0)`, `a process of the server`},
	{differs, `SELECT pg_reload_conf()`, `the server's own configuration`},
	{differs, `SELECT pg_export_snapshot()`, `a snapshot of one server`},
	{refused, `SELECT pg_switch_wal()`, ``},
	{refused, `SELECT pg_create_restore_point('x')`, ``},
	{differs, `SELECT pg_stat_clear_snapshot()`, `of the session, and about the server`},
	{differs, `SELECT pg_ls_waldir()`, `the server's own files`},
	{differs, `SELECT inet_server_port()`, ``},
	{refused, `SELECT lo_create(0)`, ``},
	{refused, `SELECT lo_from_bytea(0, '')`, ``},
	{differs, `SELECT query_to_xml('SELECT pg_advisory_lock(1)', true, true, '')`, `SQL in a string`},
	{refused, `SELECT query_to_xml('SELECT nextval(''s'')', true, true, '')`, ``},
	{differs, `SELECT ts_stat('SELECT to_tsvector(''a'')')`, `SQL in a string`},
	{cautious, `SELECT ts_rewrite('a & b', 'a', 'c')`, `its other form takes SQL in a string`},
	{cautious, `SELECT mixed.nextval(1)`, `a function of that name in another schema`},
	{cautious, `WITH nextval (a) AS (SELECT 1) SELECT * FROM nextval`, `looks like a call`},
	{cautious, `SELECT * FROM (SELECT 1) AS pg_x (a)`, `looks like a call of a function of the system`},
	{same, `SELECT random(), now(), clock_timestamp(), gen_random_uuid(), pg_sleep(0), version()`, ``},
	{same, `SELECT pg_typeof(1), pg_size_pretty(1::bigint), pg_relation_size('t'), pg_get_viewdef('v')`, ``},
	{same, `SELECT pg_get_serial_sequence('t', 'id'), pg_table_is_visible('t'::regclass), pg_wal_lsn_diff('0/2', '0/1')`, ``},
	{same, `SELECT obj_description('t'::regclass), has_table_privilege('t', 'select'), format('%s', 1)`, ``},
	{same, `SELECT * FROM pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = 'pg_locks'`, ``},
	{same, `SELECT * FROM pg_stats, pg_statistic_ext`, ``},
	{same, `SELECT * FROM information_schema.tables`, ``},
	{differs, `SELECT * FROM pg_stat_activity`, `the server's own sessions`},
	{differs, `SELECT count(*) FROM "pg_catalog"."pg_stat_replication"`, ``},
	{differs, `SELECT * FROM pg_statio_user_tables`, `the server's own work`},
	{differs, `SELECT * FROM PG_LOCKS`, `the server's own sessions`},
	{differs, `SELECT * FROM U&"pg\005flocks"`, ``},
	{differs, `SHOW U&"in\005fhot_standby"`, ``},
	{differs, `SELECT setting FROM pg_settings WHERE name = 'transaction_read_only'`, ``},
	{differs, `SELECT * FROM pg_sequences`, `on a standby last_value runs ahead of what was drawn`},
	{differs, `SELECT * FROM pg_prepared_xacts`, `the server's own; a standby shows none`},
	{refused, `UPDATE pg_settings SET setting = '8MB' WHERE name = 'work_mem'`, ``},

	// What a text cannot show.
	{opaque, `SELECT advances(1)`, `a function that writes`},
	{opaque, `SELECT * FROM advancing`, `a view on nextval`},

	// Literals, names and comments.
	{same, `SELECT ''`, ``},
	{same, `SELECT 'it''s; DELETE FROM t'`, ``},
	{same, `SELECT E'it\'s; DELETE FROM t'`, ``},
	{same, `SELECT e'\\'`, ``},
	{same, `SELECT E'''\'\\'''`, ``},
	{same, `SELECT 'a\b'`, `a backslash before no quote reads the same in both modes`},
	{same, `SELECT 'C:\\'`, `two backslashes end in both modes`},
	{same, `SELECT '\\\\', 'x'`, ``},
	{same, "SELECT 'a'\n'b'", `a continued string`},
	{same, "SELECT E'a'\n'b'", ``},
	{same, `SELECT U&'d\0061t\+000061', U&'!0061' UESCAPE '!', N'x', B'101', X'1F'`, ``},
	{same, `SELECT 1 "delete from t;", 2 "a""b;"`, ``},
	{same, `SELECT 1 AS U&"d\0061ta"`, ``},
	{same, `SELECT $$it's "here"; DELETE FROM t$$`, ``},
	{same, `SELECT $a$ $$ $b$ $a $a$`, ``},
	{same, `SELECT $_1é$x$_1é$`, ``},
	{same, `SELECT a$b$ FROM (SELECT 1 AS a$b$) x -- $b$`, `a dollar within an identifier`},
	{same, `SELECT 1e5, 1.5, .5, 1., 1.e3, 1e-3, 1E+3`, ``},
	{same, `SELECT 2*/**/3`, ``},
	{same, `SELECT 1 +-- comment
2`, ``},
	{same, `SELECT 1 -/* comment */2`, ``},
	{same, `/* a /* nested */ comment */ SELECT 1 /* and */ -- more`, ``},
	{same, `/*/**/*/SELECT 1`, ``},
	{same, `/**/SELECT/**/1/**/`, ``},
	{same, `/***/SELECT 1/*/ */`, ``},
	{same, `/* it's "fine" $$ */ SELECT 1 -- isn't "it" $$`, ``},
	{same, `SELECT 1 /*traceparent='00-5bd66ef5095369c7b0d1f8f4bd33716a-c532cb4098ac3dd2-01',action='delete'*/`, `sqlcommenter`},
	{same, `/*+ SeqScan(t) */ SELECT * FROM t`, `pg_hint_plan`},
	{same, `-- name: DeleteAll :many
SELECT * FROM t`, `sqlc`},
	{same, `SELECT 'ünïcödé', 1 AS größe, 2 AS "größe2"`, ``},
	{refused, `DELETE /* SELECT 1 */ FROM t`, ``},
	{refused, `/* /* */ SELECT 1; */ DELETE FROM t`, ``},
	{refused, `SELECT 1; DELETE FROM t`, ``},
	{refused, `SELECT 'a'; DELETE FROM t; SELECT 'b'`, ``},
	{refused, `SELECT '\\'; DELETE FROM t`, ``},
	{refused, `SELECT $a$ $b$ $a$; DELETE FROM t; SELECT $b$ $b$`, ``},
	{refused, `SELECT 1 AS a$$, $$x$$; DELETE FROM t`, ``},
	{refused, `SELECT 1 AS "a"";"; DELETE FROM t`, ``},
	{refused, `SELECT e'\\'; DELETE FROM t; --'`, ``},
	{refused, `SELECT 1 AS e, 'x'; DELETE FROM t`, ``},
	{refused, `SELECT name'\\'; DELETE FROM t; --'`, `the e belongs to the name: no escapes`},
	{refused, `SELECT X'1f'; DELETE FROM t`, ``},
	{refused, `SELECT 1 -- ;
; DELETE FROM t`, ``},
	{refused, "SELECT 1 -- \r; DELETE FROM t", ``},
	{cautious, `SELECT 'C:\'`, `with standard_conforming_strings off the string goes on`},
	{cautious, `SELECT 'a\''b'`, `with standard_conforming_strings off the string ends earlier`},
	{cautious, `SELECT '\\\', ''`, `likewise`},
	{refused, `SELECT '\'; DELETE FROM t; --'`, `or one string, with standard_conforming_strings off`},

	// Texts of several statements.
	{same, `SELECT 1; SELECT 2`, ``},
	{same, `SELECT 1; VALUES (2); TABLE t; SHOW work_mem; EXPLAIN DELETE FROM t; COPY t TO STDOUT;`, ``},
	{refused, `EXPLAIN DELETE FROM t; DELETE FROM t`, `nothing is left over from the statement before`},
	{refused, `SELECT 1; EXPLAIN ANALYZE DELETE FROM t`, ``},
	{refused, `COPY t TO STDOUT; COPY (DELETE FROM t RETURNING 1) TO STDOUT`, ``},
	{differs, `SELECT 1; SET work_mem = '8MB'; SELECT 2`, ``},

	// Nothing, and nothing that is known.
	{malformed, `DELET FROM t`, ``},
	{malformed, `WAIT FOR LSN`, ``},
	{malformed, `()`, ``},
	{malformed, `(`, ``},
	{malformed, `)`, ``},
	{malformed, `SELECT 1)`, ``},
	{malformed, `(SELECT 1`, ``},
	{malformed, `)(SELECT 1`, ``},
	{malformed, `SELECT (1`, ``},
	{malformed, `(SELECT 1; SELECT 2)`, ``},
	{malformed, `SELECT 'a`, ``},
	{malformed, `SELECT 'a''`, ``},
	{malformed, `SELECT E'a\'`, ``},
	{malformed, `SELECT "a`, ``},
	{malformed, `SELECT U&"a`, ``},
	{malformed, `SELECT $$a`, ``},
	{malformed, `SELECT $a$a$b$`, ``},
	{malformed, `SELECT $a`, ``},
	{malformed, `SELECT $`, ``},
	{malformed, `SELECT 1 /* a`, ``},
	{malformed, `SELECT 1 /* a /* b */`, ``},
	{malformed, `SELECT 1 /*/`, ``},
	{malformed, `\d`, `a command of psql`},
	{malformed, `SELECT 1 \gset`, ``},
	{malformed, `1`, ``},
	{malformed, `'SELECT'`, ``},
	{malformed, `"SELECT" 1`, ``},
	{malformed, `U&"SELECT" 1`, ``},
	{malformed, `.SELECT 1`, ``},
	{malformed, `,SELECT 1`, ``},
	{malformed, `$1 SELECT`, ``},
	{malformed, "SELECT\u00a01", `not white space to PostgreSQL, but a letter`},
	{malformed, "\ufeffSELECT 1", ``},
	{malformed, "SELECT \x01", ``},
}

func TestClassify(t *testing.T) {
	if got := inspect(classifyFixture); got != (statement{several: true, unknown: true}) {
		t.Errorf("inspect is %+v for the fixture", got)
	}
	for _, c := range classifyCases {
		if c.standing == cautious && c.reason == "" {
			t.Errorf("no reason is given for calling this a write: %s", c.sql)
		}
		if got := Classify(c.sql); got != c.standing.access() {
			t.Errorf("Classify is %v, want %v: %s", got, c.standing.access(), c.sql)
		}
	}
}

// TestClassifyOffServer holds the texts that a table for one server of today cannot: with parameters, with bytes that
// the protocol does not carry, and with forms that only some versions take.
func TestClassifyOffServer(t *testing.T) {
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
		// Longer than a name can be.
		{Read, "SELECT nextval" + strings.Repeat("x", 100) + "('s')"},
		{Write, "SELECT pg_x" + strings.Repeat("x", 100) + "('s')"},
	} {
		if got := Classify(c.sql); got != c.want {
			t.Errorf("Classify is %v, want %v: %q", got, c.want, c.sql)
		}
	}
}

func TestInspect(t *testing.T) {
	for _, c := range []struct {
		sql  string
		want statement
	}{
		{"SELECT 1", statement{access: Read}},
		{"SELECT 1;;", statement{access: Read}},
		{"SELECT 1; SELECT 2", statement{access: Read, several: true}},
		{"SELECT ';'", statement{access: Read}},
		{"INSERT INTO t VALUES (1)", statement{}},
		{"INSERT INTO t VALUES (1);", statement{}},
		{"INSERT INTO t VALUES (1); SELECT 1", statement{several: true}},
		{"UPDATE t SET a = 1", statement{}},

		{"BEGIN", statement{control: true, begins: true, remains: true}},
		{"begin isolation level serializable", statement{control: true, begins: true, remains: true}},
		{"START TRANSACTION", statement{control: true, begins: true, remains: true}},
		{"COMMIT", statement{control: true, ends: true}},
		{"BEGIN; COMMIT AND CHAIN", statement{several: true, control: true, begins: true, ends: true, remains: true}},
		{"SHOW work_mem", statement{access: Read, shows: true}},
		{"COMMIT PREPARED 'x'", statement{control: true, ends: true}},
		{"END", statement{control: true, ends: true}},
		{"ABORT", statement{control: true, ends: true}},
		{"ROLLBACK TO SAVEPOINT a", statement{control: true, ends: true}},
		{"SAVEPOINT a", statement{control: true}},
		{"RELEASE a", statement{control: true}},
		{"PREPARE TRANSACTION 'x'", statement{control: true, ends: true}},
		{"PREPARE x AS SELECT 1", statement{}},
		{"PREPARE \"transaction\" AS SELECT 1", statement{}},
		{"/* x */ BEGIN; SELECT 1; COMMIT", statement{control: true, begins: true, ends: true, several: true}},
		{"SELECT 1; BEGIN", statement{control: true, several: true, remains: true}},
		{"; BEGIN", statement{control: true, begins: true, remains: true}},
		{"SELECT 1 AS begin", statement{access: Read}},
		{"SELECT 'BEGIN'", statement{access: Read}},
		{"EXPLAIN COMMIT", statement{control: true, ends: true}}, // no server runs it

		{"SET work_mem = '8MB'", statement{settings: true}},
		{"SET LOCAL synchronous_commit = off", statement{settings: true}},
		{"SET TRANSACTION READ ONLY", statement{settings: true, control: true}},
		{"SET LOCAL TRANSACTION READ ONLY", statement{settings: true, control: true}},
		{"SET transaction_read_only = off", statement{settings: true, control: true}},
		{"SET LOCAL \"transaction_read_only\" = off", statement{settings: true, control: true}},
		{"SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", statement{settings: true}},
		{"RESET ALL", statement{settings: true}},
		{"DISCARD ALL", statement{settings: true}},
		{"DO $$ BEGIN END $$", statement{settings: true}},
		{"SELECT set_config('a.b', 'c', false)", statement{settings: true}},
		{"INSERT INTO t SELECT pg_catalog . \"set_config\" ('a.b', 'c', false)", statement{settings: true}},
		{"UPDATE pg_settings SET setting = 'off' WHERE name = 'synchronous_commit'", statement{settings: true}},
		{"ALTER ROLE a SET synchronous_commit = off", statement{settings: true, unknown: true}},
		{"INSERT INTO t VALUES ('set_config')", statement{}},

		{"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 1 END; END", statement{unknown: true}},
		{"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; COMMIT", statement{several: true, control: true, ends: true, unknown: true}},
		{"CREATE RULE r AS ON INSERT TO t DO ALSO (SELECT 1; SELECT 2)", statement{unknown: true}},
		{`SELECT 'C:\'; COMMIT`, statement{several: true, control: true, ends: true}},

		{"COPY t FROM STDIN", statement{copiesIn: true}},
		{"COPY t (a) FROM STDIN; SELECT 1", statement{copiesIn: true, several: true}},
		{"COPY t TO STDOUT", statement{access: Read}},
		{"COPY (SELECT * FROM t) TO STDOUT", statement{access: Read}},

		{"/* flyregion:primary */ SELECT 1", statement{access: Read, hint: hintPrimary}},
		{"SELECT 1 /*flyregion:replica*/", statement{access: Read, hint: hintReplica}},
		{"SELECT /* flyregion:replica */ 1", statement{access: Read, hint: hintReplica}},
		{"/* flyregion:replica */ DELETE FROM t", statement{hint: hintReplica}},
		{"/* flyregion:replica */ SELECT 1 /* flyregion:primary */", statement{access: Read, hint: hintPrimary}},
		{"/* flyregion:primary */ SELECT 1 /* flyregion:replica */", statement{access: Read, hint: hintPrimary}},
		{"SELECT '/* flyregion:primary */'", statement{access: Read}},
		{"SELECT 1 -- /* flyregion:primary */", statement{access: Read}},
		{"/* flyregion:anywhere */ SELECT 1", statement{access: Read}},
		{"/* /* flyregion:primary */ */ SELECT 1", statement{access: Read}},
		{"/* not flyregion:primary */ SELECT 1", statement{access: Read}},
	} {
		if got := inspect(c.sql); got != c.want {
			t.Errorf("inspect is %+v, want %+v: %s", got, c.want, c.sql)
		}
	}
}

func TestInspectWithOwnFunctions(t *testing.T) {
	own := functions{"enqueue": Write, "nextval": Read, "pg_mine": Read}
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
		if got := inspectWith(sql, own).access; got != want {
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
		if callWrites(name) != writes || callWrites(strings.ToUpper(name)) != writes {
			t.Errorf("a call of %s belongs to the primary: %v, want %v", name, !writes, writes)
		}
	}
	for _, group := range primaryCalls {
		for _, name := range group {
			check(name, true)
		}
	}
	for _, group := range systemReads {
		for _, name := range group {
			check(name, false)
		}
	}
	for _, name := range serverViews {
		check(name, true)
		if !isServerView(name) {
			t.Errorf("%s is not found", name)
		}
	}
}

func TestClassifyDoesNotAllocate(t *testing.T) {
	texts := []string{strings.Repeat("/*", 1000), "SELECT " + strings.Repeat("x", 5000) + "(1)"}
	for _, c := range classifyCases {
		texts = append(texts, c.sql)
	}
	own := functions{"enqueue": Write}
	n := testing.AllocsPerRun(10, func() {
		for _, sql := range texts {
			inspect(sql)
			inspectWith(sql, own)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzClassify rewrites texts in ways that change nothing to PostgreSQL, and expects that nothing changes.
func FuzzClassify(f *testing.F) {
	for i, c := range classifyCases {
		f.Add(c.sql, uint64(i))
	}
	f.Fuzz(func(t *testing.T, sql string, choices uint64) {
		want := inspect(sql)
		if want.access != Classify(sql) {
			t.Fatalf("two answers: %q", sql)
		}
		tokens, ok := tokenize(sql)
		if !ok {
			if want.access == Read {
				t.Fatalf("read, but the text is broken: %q", sql)
			}
			return
		}
		for _, variant := range []string{
			sql + "\n;",
			"\n;" + sql,
			" -- it's\n" + sql + "\n-- $$",
			rewrite(tokens, choices, separate),
			rewrite(tokens, choices, recase),
			rewrite(tokens, choices, requote),
			rewrite(tokens, choices, separate, recase, requote),
		} {
			if got := inspect(variant); got != want {
				t.Fatalf("inspect is %+v, want %+v as for the original:\n%q\n%q", got, want, variant, sql)
			}
		}
		if len(sql) < 10_000 && want.access == Read {
			// Two reads are a read, and a write does not disappear beside one.
			if inspect(sql+"\n;"+sql).access != Read {
				t.Fatalf("a write, when it is there twice: %q", sql)
			}
			if inspect(sql+"\n;DELETE FROM t").access == Read || inspect("DELETE FROM t;"+sql).access == Read {
				t.Fatalf("hides a write: %q", sql)
			}
		}
	})
}

// lexemes matches one token at the beginning of a text, except comments and dollar quotes. It is another description of
// PostgreSQL's lexical rules than the one it tests.
var lexemes = regexp.MustCompile(`^(?s:` + strings.Join([]string{
	`[ \t\n\r\f\v]+`,
	`--[^\n\r]*`,
	`[eE]'(?:[^'\\]|\\.|'')*'`,
	`[uU]&'(?:[^']|'')*'`,
	`[uU]&"(?:[^"]|"")*"`,
	`'(?:[^']|'')*'`,
	`"(?:[^"]|"")*"`,
	`[A-Za-z_\x{80}-\x{10FFFF}][A-Za-z_0-9$\x{80}-\x{10FFFF}]*`,
	`[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?`,
	`\.[0-9]+(?:[eE][+-]?[0-9]+)?`,
	`\$[0-9]+`,
	"[][()+*<>=~!@#%^&|`?:,.;/-]",
}, "|") + `)`)

// unclosed matches what a literal with a prefix begins with.
var unclosed = regexp.MustCompile(`^(?:[eE]'|[uU]&['"])`)

var dollarTag = regexp.MustCompile(`^\$(?:[A-Za-z_\x{80}-\x{10FFFF}][A-Za-z_0-9\x{80}-\x{10FFFF}]*)?\$`)

// tokenize splits a text into its tokens, without white space and comments except those that may be hints.
func tokenize(sql string) (tokens []string, ok bool) {
	if strings.Contains(sql, "\x00") {
		return nil, false
	}
	for sql != "" {
		if tag := dollarTag.FindString(sql); tag != "" {
			end := strings.Index(sql[len(tag):], tag)
			if end < 0 {
				return nil, false
			}
			end += 2 * len(tag)
			tokens = append(tokens, sql[:end])
			sql = sql[end:]
			continue
		}
		if strings.HasPrefix(sql, "/*") {
			end := commentEnd(sql)
			if end < 0 {
				return nil, false
			}
			tokens = append(tokens, sql[:end])
			sql = sql[end:]
			continue
		}
		token := lexemes.FindString(sql)
		if token == "" || len(token) == 1 && unclosed.MatchString(sql) {
			return nil, false
		}
		if last := token[len(token)-1]; (last == '\'' || last == '"') && strings.HasPrefix(sql[len(token):], string(last)) {
			return nil, false // a doubled quote, and no other to end with
		}
		if strings.Trim(token, " \t\n\r\f\v") != "" && !strings.HasPrefix(token, "--") {
			tokens = append(tokens, token)
		} else {
			tokens = append(tokens, "\n")
		}
		sql = sql[len(token):]
	}
	return tokens, true
}

func commentEnd(sql string) int {
	depth := 0
	for i := 0; i+1 < len(sql); i++ {
		switch sql[i : i+2] {
		case "/*":
			depth++
			i++
		case "*/":
			i++
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

// rewrite joins tokens again after each change was made to each.
func rewrite(tokens []string, choices uint64, changes ...func(token string, choice byte) string) string {
	var seed [8]byte
	binary.LittleEndian.PutUint64(seed[:], choices)
	var b strings.Builder
	for i, token := range tokens {
		for _, change := range changes {
			token = change(token, seed[i%8]+byte(i))
		}
		b.WriteString(token)
	}
	return b.String()
}

// separate puts white space or a comment before a token.
func separate(token string, choice byte) string {
	between := []string{"", " ", "\n", "\t", " /* */", " /* it's \" $$ ; DELETE FROM t */ ", " /*/* nested */*/", " -- it's\n",
		" --\r", "\f"}
	return between[int(choice)%len(between)] + token
}

// recase changes the case of a keyword or an identifier without quotes.
func recase(token string, choice byte) string {
	if classes[token[0]] != classLetter || strings.ContainsAny(token, "'\"") {
		return token
	}
	b := []byte(token)
	for i, c := range b {
		if folded := c | 0x20; 'a' <= folded && folded <= 'z' && (choice>>(i%8))&1 == 1 {
			b[i] = c ^ 0x20
		}
	}
	return string(b)
}

// requote writes a string in another way.
func requote(token string, choice byte) string {
	if token[0] != '\'' || strings.ContainsAny(token, `\`) {
		return token
	}
	switch choice % 4 {
	case 0:
		return " E" + token
	case 1:
		if text := strings.ReplaceAll(token[1:len(token)-1], "''", "'"); !strings.Contains(text+"$", "$q$") {
			return " $q$" + text + "$q$"
		}
	case 2:
		return " U&" + token
	}
	return token
}
