package flyregion

import (
	"strings"

	"github.com/jackc/pgx/v5"
)

// randomText is a statement that programs are made of.
type randomText struct {
	sql string
	// args says what the arguments are: i for an id of the caller's own, n for a number, t for a text, c for an SQLSTATE.
	args    string
	columns int // of its rows
	kind    randomTextKind
}

type randomTextKind int

const (
	textReads        randomTextKind = iota
	textReadsPrimary                // a read that a standby cannot serve
	textFails
	textWrites
	textWide    // locks more than its caller's own rows
	textDDL     // makes a table
	textDDLWide // changes or drops one
	textSession // changes the session; for connections that somebody has to himself
	textBlock   // begins and ends transactions; likewise
	textSeveral // more than one statement
	textSeveralSession
	textInTx // needs a transaction
)

func (k randomTextKind) writes() bool {
	return k != textReads && k != textReadsPrimary && k != textFails
}

// comesAndGoes reports whether a text needs what programs make and drop.
func (t randomText) comesAndGoes() bool {
	return strings.Contains(t.sql, "extra_") || strings.Contains(t.sql, "'m3'")
}

// randomTexts are all statements.
var randomTexts = []randomText{
	{sql: "select n from items where id = $1", args: "i", columns: 1},
	{sql: "select id, n, v from items order by id limit 4", columns: 3},
	{sql: "select n from items where id = @id and n < @n", args: "named", columns: 1},
	{sql: "select count(*), sum(n) from items", columns: 2},
	{sql: randomLookSQL, columns: 4},
	{sql: "select k, what from log order by k", columns: 2},
	{sql: "with big as (select * from items where n > $1) select count(*) from big", args: "n", columns: 1},
	{sql: "select i, repeat('x', 3000) from generate_series(1, $1) i", args: "n", columns: 2},
	{sql: "select stable_n($1)", args: "i", columns: 1},
	{sql: "select volatile_n($1)", args: "i", columns: 1},
	{sql: "values (1, 'a'), (2, 'b')", columns: 2},
	{sql: "table item_view order by id limit 3", columns: 2},
	{sql: "select v from items where v ilike $1 escape '\\' order by id limit 3", args: "t", columns: 1},
	{sql: "select $1::text || 'x'", args: "t", columns: 1},
	{sql: "select array(select n from items where id < $1 order by id limit 5)", args: "i", columns: 1},
	{sql: "", columns: 0},
	{sql: "-- nothing but a comment", columns: 0},
	{sql: "explain (costs off) select 1", columns: 1},
	{sql: "select n from extra_1", columns: 1},
	{sql: "select count(*) from extra_2", columns: 1},
	{sql: "select 'm3'::mood::text", columns: 1},
	{sql: "/* flyregion:primary */ select count(*) from items", columns: 1},
	{sql: "/* flyregion:replica */ select count(*) from log", columns: 1},
	{sql: "show search_path", columns: 1},
	{sql: "select current_setting('transaction_read_only')", columns: 1, kind: textReadsPrimary},
	{sql: "show default_transaction_read_only", columns: 1, kind: textReadsPrimary},
	{sql: "select set_app($1)", args: "t", columns: 1},

	{sql: "select last_value, is_called from seq", columns: 2, kind: textReadsPrimary},
	{sql: "select count(*) from hasty", columns: 1, kind: textReadsPrimary},
	{sql: "select pg_relation_size('hasty') > 0", columns: 1, kind: textReadsPrimary},
	{sql: "select pg_try_advisory_xact_lock(hashtext(current_schema || $1))", args: "t", columns: 1, kind: textReadsPrimary},
	{sql: "select txid_current() > 0", columns: 1, kind: textReadsPrimary},

	{sql: "select 1/0", columns: 1, kind: textFails},
	{sql: "select 6 / (3 - i) from generate_series(1, 5) i", columns: 1, kind: textFails},
	{sql: "select repeat('x', 9000), 6 / (3 - i) from generate_series(1, 5) i", columns: 2, kind: textFails},
	{sql: "select missing from items", columns: 1, kind: textFails},
	{sql: "select * from missing", columns: 1, kind: textFails},
	{sql: "select missing($1)", args: "i", columns: 1, kind: textFails},
	{sql: "selec 1", columns: 1, kind: textFails},
	{sql: "select n from items where id = $1", args: "", columns: 1, kind: textFails},
	{sql: "select n from items where id = $1", args: "i n", columns: 1, kind: textFails},
	{sql: "select $1::int", args: "t", columns: 1, kind: textFails},
	{sql: "select $1::text::int", args: "t", columns: 1, kind: textFails},
	{sql: "select raises($1, $2)", args: "n c", columns: 1, kind: textFails},
	{sql: "select stably_raises($1, $2)", args: "n c", columns: 1, kind: textFails},
	{sql: "select repeat('x', 9000), stably_raises(i, $1) from generate_series(1, 4) i", args: "c", columns: 2, kind: textFails},
	{sql: "select stably_raises(i, $1) from generate_series(1, 4) i", args: "c", columns: 1, kind: textFails},

	{sql: "insert into items values ($1, $2, $3)", args: "i n t", kind: textWrites},
	{sql: "insert into items values (@id, @n, 'named')", args: "named", kind: textWrites},
	{sql: "insert into items values ($1, $2, $3) returning id, n", args: "i n t", columns: 2, kind: textWrites},
	{sql: "insert into items values ($1, -1)", args: "i", kind: textWrites},
	{sql: "insert into items (id, n, parent) values ($1, $2, 7777)", args: "i n", kind: textWrites},
	{sql: "insert into items as x values ($1, $2) on conflict (id) do update set n = x.n + excluded.n returning n", args: "i n", columns: 1, kind: textWrites},
	{sql: "insert into log (what) values ($1) returning k", args: "t", columns: 1, kind: textWrites},
	{sql: "update items set n = n + $2 where id = $1", args: "i n", kind: textWrites},
	{sql: "update items set n = n - $2 where id = $1 returning id, n", args: "i n", columns: 2, kind: textWrites},
	{sql: "update item_view set n = $2 where id = $1", args: "i n", kind: textWrites},
	{sql: "delete from items where id = $1", args: "i", kind: textWrites},
	{sql: "with gone as (delete from items where id = $1 returning id) select count(*) from gone", args: "i", columns: 1, kind: textWrites},
	{sql: "select n from items where id = $1 for update", args: "i", columns: 1, kind: textWrites},
	{sql: "select nextval('seq')::int", columns: 1, kind: textWrites},
	{sql: "select setval('seq', $1::int)::int", args: "n", columns: 1, kind: textWrites},
	{sql: "select w($1)", args: "n", columns: 1, kind: textWrites},
	{sql: "select w(i) from generate_series(1, $1) i", args: "n", columns: 1, kind: textWrites},
	{sql: "select swallow($1)", args: "n", columns: 1, kind: textWrites},
	{sql: "select case when i > 3 then w(i) else i end from generate_series(1, 5) i", columns: 1, kind: textWrites},
	{sql: "select w(i), 1 / (2 - i) from generate_series(1, 3) i", columns: 2, kind: textWrites},
	{sql: "do $$ begin perform w(1); end $$", kind: textWrites},
	{sql: "call p($1)", args: "n", kind: textWrites},
	{sql: "call p_commit($1)", args: "n", kind: textWrites},
	{sql: "explain (analyze, buffers off, costs off, timing off, summary off) insert into log (what) values ('explained')", columns: 1, kind: textWrites},
	{sql: "select pg_notify('c', $1)::text", args: "t", columns: 1, kind: textReadsPrimary},
	{sql: "insert into hasty values ($1)", args: "i", kind: textWrites},
	{sql: "merge into items t using (values ($1::int, $2::int)) s (id, n) on t.id = s.id when matched then update set n = s.n when not matched then insert values (s.id, s.n)", args: "i n", kind: textWrites},
	{sql: "update items set n = n + 1", kind: textWide},
	{sql: "lock table items in exclusive mode", kind: textWide},
	{sql: "create table extra_1 (n int)", kind: textDDL},
	{sql: "create table extra_2 as select n from items", kind: textDDL},
	{sql: "select n into extra_1 from items order by id limit 3", kind: textDDL},
	{sql: "drop table extra_1", kind: textDDLWide},
	{sql: "drop table if exists extra_2", kind: textDDLWide},
	{sql: "alter type mood add value if not exists 'm3'", kind: textDDLWide},
	{sql: "truncate log", kind: textDDLWide},
	{sql: "insert into extra_1 values ($1)", args: "n", kind: textWrites},

	{sql: "set app.x = 'session'", kind: textSession},
	{sql: "select set_config('app.x', $1, false)", args: "t", columns: 1, kind: textSession},
	{sql: "select coalesce(current_setting('app.x', true), '')", columns: 1, kind: textSession},
	{sql: "reset app.x", kind: textSession},
	{sql: "set synchronous_commit = off", kind: textSession},
	{sql: "set default_transaction_read_only = on", kind: textSession},
	{sql: "set session characteristics as transaction isolation level repeatable read", kind: textSession},
	{sql: "create temp table scratch (n int)", kind: textSession},
	{sql: "create table \"pg_temp\".scratch2 (n int)", kind: textSession},
	{sql: "insert into scratch values ($1)", args: "n", kind: textSession},
	{sql: "select count(*) from scratch", columns: 1, kind: textSession},
	{sql: "select count(*) from scratch2", columns: 1, kind: textSession},
	{sql: "create temp table items (id int, n int, v text)", kind: textSession},
	{sql: "prepare own as insert into log (what) values ('prepared')", kind: textSession},
	{sql: "execute own", kind: textSession},
	{sql: "deallocate own", kind: textSession},
	{sql: "listen c", kind: textSession},
	{sql: "discard temp", kind: textSession},

	{sql: "begin", kind: textBlock},
	{sql: "begin isolation level serializable", kind: textBlock},
	{sql: "start transaction read only", kind: textBlock},
	{sql: "commit", kind: textBlock},
	{sql: "rollback", kind: textBlock},
	{sql: "commit and chain", kind: textBlock},
	{sql: "savepoint a", kind: textBlock},
	{sql: "rollback to savepoint a", kind: textBlock},
	{sql: "release savepoint a", kind: textBlock},
	{sql: "set transaction isolation level repeatable read", kind: textBlock},
	{sql: "set local app.x = 'local'", kind: textBlock},
	{sql: "begin; insert into log (what) values ('begun')", kind: textBlock},
	{sql: "insert into log (what) values ('ended'); commit", kind: textBlock},

	{sql: "declare c cursor for select id from items order by id limit 4", kind: textInTx},
	{sql: "fetch 2 from c", columns: 1, kind: textInTx},
	{sql: "close c", kind: textInTx},
	{sql: "set constraints all immediate", kind: textInTx},
	{sql: "set transaction read only", kind: textInTx},

	{sql: "insert into log (what) values ('first'); select count(*) from log", columns: 1, kind: textSeveral},
	{sql: "insert into log (what) values ('lost'); select 1/0", columns: 1, kind: textSeveral},
	{sql: "begin; insert into log (what) values ('block'); commit", kind: textSeveral},
	{sql: "begin; insert into log (what) values ('kept'); commit; select 1/0", columns: 1, kind: textSeveral},
	{sql: "select 1; select 2", columns: 1, kind: textSeveral},
	{sql: "select count(*) from items; insert into log (what) values ('second')", columns: 1, kind: textSeveral},
	{sql: "select count(*) from items; select w(1)", columns: 1, kind: textSeveral},
	{sql: "begin; insert into log (what) values ('open')", kind: textSeveralSession},
	{sql: "begin; select count(*) from log", columns: 1, kind: textSeveralSession},
	{sql: "savepoint a; insert into log (what) values ('x')", kind: textSeveral},
}

// randomPrepared are statements that some programs prepare on each new connection, by name.
var randomPrepared = [][2]string{
	{"named_read", "select n from items where id = $1"},
	{"named_write", "insert into log (what) values ($1) returning k"},
	{"named_hidden", "select w($1)"},
}

var randomPreparedTexts = []randomText{
	{sql: "named_read", args: "i", columns: 1},
	{sql: "named_write", args: "t", columns: 1, kind: textWrites},
	{sql: "named_hidden", args: "n", columns: 1, kind: textWrites},
}

var randomModes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
	pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
}

var randomCodes = []string{
	"40001", "25006", "P0001", "23505", "55000", "57014", "0A000", "42P01", "40P01", "22P02", "58P01", "53200", "XX000",
	"55P03", "57P01", "XX001", "42883", "recovery",
}

// arguments makes arguments for a text, for a caller whose rows begin at lane.
func (g *randomGenerator) arguments(text randomText, lane int) []any {
	id := lane + 1 + g.IntN(12)
	if text.args == "named" {
		return []any{pgx.NamedArgs{"id": id, "n": g.IntN(12)}}
	}
	var args []any
	for field := range strings.FieldsSeq(text.args) {
		switch field {
		case "i":
			args = append(args, id)
		case "n":
			args = append(args, g.IntN(12))
		case "t":
			args = append(args, []string{"v%", "t", "x\\_", "it's"}[g.IntN(4)])
		case "c":
			code := randomCodes[g.IntN(len(randomCodes))]
			if code == "recovery" {
				code = "55000"
			}
			args = append(args, code)
		}
	}
	return args
}
