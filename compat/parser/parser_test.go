package parser

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/flyregion/flyregion"
	// It is C, builds from nothing in 25 s, and parses 31,000 texts a second; go-pgquery, without C, takes 39 s and parses 5,700.
	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// FuzzParser looks for texts that Classify calls reads although PostgreSQL's parser sees that they are none. What
// FuzzGrammar finds belongs in the corpus of this one too, where it can be read and does not depend on a grammar.
func FuzzParser(f *testing.F) {
	for _, sql := range seeds {
		f.Add(sql)
	}
	f.Fuzz(func(t *testing.T, sql string) {
		check(t, sql)
	})
}

// FuzzGrammar is FuzzParser with texts that are made from the input by a grammar, because few that are mutated byte by
// byte mean anything to the parser.
func FuzzGrammar(f *testing.F) {
	for _, choices := range generatorSeeds() {
		f.Add(choices)
	}
	f.Fuzz(func(t *testing.T, choices []byte) {
		check(t, generate(choices))
	})
}

// check fails the test if Classify calls a text a read that is none.
func check(t *testing.T, sql string) {
	t.Helper()
	if !inScope(sql) {
		return
	}
	// What does not parse does nothing on any server, so nothing is wrong to say of it.
	if tree, err := pg.Parse(sql); err == nil {
		if reason := whyNotRead(tree); reason != "" && flyregion.Classify(sql) == flyregion.Read {
			t.Errorf("Classify is read, but there is %s in it: %q", reason, sql)
		}
	}
}

// inScope reports whether the parser can be asked about a text. To it, as to the server, a text ends at a zero byte,
// so that it would see only a part of it. A tree cannot hold what is not UTF-8, and a server does not take that either.
// Long texts say nothing that short ones do not, and take time.
func inScope(sql string) bool {
	return len(sql) <= 1<<13 && !strings.Contains(sql, "\x00") && utf8.ValidString(sql)
}

// whyNotRead returns what in a tree a hot standby refuses, or does with another result than the primary. It returns ""
// if there is no such thing. It knows no more of what is behind a name than the names that are listed here.
func whyNotRead(tree *pg.ParseResult) string {
	if len(tree.Stmts) == 0 {
		return "no statement"
	}
	for _, raw := range tree.Stmts {
		if reason := whyNotReadStatement(raw.Stmt); reason != "" {
			return reason
		}
	}
	return ""
}

func whyNotReadStatement(statement *pg.Node) string {
	switch s := statement.Node.(type) {
	case *pg.Node_SelectStmt:
		return look(statement, true)
	case *pg.Node_VariableShowStmt:
		// The names by which the servers can be told apart.
		switch name := strings.ToLower(s.VariableShowStmt.Name); name {
		case "all", "in_hot_standby", "transaction_read_only":
			return "SHOW " + name
		}
		return ""
	case *pg.Node_CopyStmt:
		if s.CopyStmt.IsFrom || s.CopyStmt.IsProgram || s.CopyStmt.Filename != "" {
			return "a COPY that is not TO STDOUT"
		}
		return look(s.CopyStmt.Query, true)
	case *pg.Node_ExplainStmt:
		analyze, ok := executes(s.ExplainStmt)
		if !ok {
			return ""
		}
		switch s.ExplainStmt.Query.Node.(type) {
		case *pg.Node_SelectStmt, *pg.Node_InsertStmt, *pg.Node_UpdateStmt, *pg.Node_DeleteStmt, *pg.Node_MergeStmt:
			// A standby plans these, as long as it need not execute them.
			return look(s.ExplainStmt.Query, analyze)
		}
		return "an EXPLAIN of " + kind(s.ExplainStmt.Query)
	}
	return kind(statement)
}

// kind returns what a node is, such as InsertStmt.
func kind(n *pg.Node) string {
	return strings.TrimPrefix(fmt.Sprintf("%T", n.Node), "*pg_query.Node_")
}

// executes reports whether an EXPLAIN executes what it explains. It is not ok if a server refuses it because of an option
// that it does not know. The grammar takes any word for one, including VALUES, after which it looks like a query.
func executes(explain *pg.ExplainStmt) (analyze, ok bool) {
	for _, option := range explain.Options {
		o := option.GetDefElem()
		switch o.Defname {
		case "analyze":
			analyze = isOn(o.Arg)
		case "buffers", "costs", "format", "generic_plan", "io", "memory", "serialize", "settings", "summary", "timing",
			"verbose", "wal":
		default:
			return false, false
		}
	}
	return analyze, true
}

// isOn reports whether an option is on, by its value. Values that a server refuses count as on.
func isOn(value *pg.Node) bool {
	switch v := value.GetNode().(type) {
	case *pg.Node_Integer:
		return v.Integer.Ival != 0
	case *pg.Node_String_:
		return !strings.EqualFold(v.String_.Sval, "false") && !strings.EqualFold(v.String_.Sval, "off")
	}
	return true
}

// look returns what in a query belongs to the primary, at any depth. If the query is not executed, changes do not count;
// calls still do, because to plan a query a server may call functions.
func look(query *pg.Node, executed bool) string {
	l := looker{executed: executed, scalars: map[string]bool{}}
	if query != nil {
		l.message(query.ProtoReflect())
	}
	for _, c := range l.columns {
		if l.scalars[c.of] {
			l.found("a call of " + c.name + ", written as a column")
		}
	}
	return l.reason
}

type looker struct {
	executed bool
	reason   string          // the first that was found
	columns  []column        // those that have the name of a function of the primary
	scalars  map[string]bool // the functions in FROM, by alias, that may return values that are no rows
}

type column struct{ of, name string }

func (l *looker) found(reason string) {
	if l.reason == "" {
		l.reason = reason
	}
}

// message looks at a message and at all that it holds, whatever the parser may have to say in a newer version.
func (l *looker) message(m protoreflect.Message) {
	switch m := m.Interface().(type) {
	case *pg.SelectStmt:
	case *pg.InsertStmt, *pg.UpdateStmt, *pg.DeleteStmt, *pg.MergeStmt, *pg.LockingClause, *pg.IntoClause:
		if l.executed {
			l.found(string(m.ProtoReflect().Descriptor().Name()))
		}
	case *pg.FuncCall:
		l.call(m)
	case *pg.A_Indirection:
		// What follows the parentheses in (x).name is a field or a function.
		for _, n := range m.Indirection {
			if name := n.GetString_().GetSval(); belongsToPrimary[name] {
				l.found("a call of " + name + ", written as a field")
			}
		}
	case *pg.ColumnRef:
		if n := len(m.Fields); n > 1 {
			c := column{of: m.Fields[n-2].GetString_().GetSval(), name: m.Fields[n-1].GetString_().GetSval()}
			if belongsToPrimary[c.name] {
				l.columns = append(l.columns, c)
			}
		}
	case *pg.RangeFunction:
		l.rangeFunction(m)
	case *pg.RangeVar:
		if ofServer(m.Schemaname, m.Relname) {
			l.found("the relation " + m.Relname)
		}
	default:
		if name := string(m.ProtoReflect().Descriptor().Name()); strings.HasSuffix(name, "Stmt") {
			l.found(name)
		}
	}
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case field.Message() == nil:
		case field.IsList():
			for i := range v.List().Len() {
				l.message(v.List().Get(i).Message())
			}
		default:
			l.message(v.Message())
		}
		return true
	})
}

func (l *looker) call(f *pg.FuncCall) {
	names := make([]string, 0, 3) // database, schema and function
	for _, n := range f.Funcname {
		names = append(names, n.GetString_().GetSval())
	}
	name := names[len(names)-1]
	if belongsToPrimary[name] && (len(names) == 1 || names[len(names)-2] == "pg_catalog") {
		l.found("a call of " + name)
	}
}

// rangeFunction takes a function in FROM. If what it returns is no row, then a column of it that does not exist is a call
// with what it returns, as in SELECT x.nextval FROM to_regclass('s') AS x.
func (l *looker) rangeFunction(r *pg.RangeFunction) {
	if len(r.Functions) != 1 || r.Ordinality {
		return
	}
	if r.Alias != nil {
		l.scalars[r.Alias.Aliasname] = true
		return
	}
	if items := r.Functions[0].GetList().GetItems(); len(items) > 0 {
		if names := items[0].GetFuncCall().GetFuncname(); len(names) > 0 {
			l.scalars[names[len(names)-1].GetString_().GetSval()] = true
		}
	}
}

// belongsToPrimary has the functions of PostgreSQL's documentation that write, that take a lock, that change the session,
// or whose answer is about a server, unless they ask which server answers. It is a list of its own: whether the one in flyregion is complete is not asked here.
var belongsToPrimary = set(`
	currval lastval nextval setval
	set_config setseed
	pg_advisory_lock pg_advisory_lock_shared pg_advisory_unlock pg_advisory_unlock_all pg_advisory_unlock_shared
	pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_try_advisory_lock pg_try_advisory_lock_shared
	pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared
	pg_cancel_backend pg_log_backend_memory_contexts pg_reload_conf pg_rotate_logfile pg_terminate_backend
	pg_backup_start pg_backup_stop pg_create_restore_point pg_current_wal_flush_lsn pg_current_wal_insert_lsn
	pg_current_wal_lsn pg_switch_wal pg_walfile_name pg_walfile_name_offset
	pg_get_wal_replay_pause_state pg_is_wal_replay_paused pg_last_wal_receive_lsn
	pg_last_wal_replay_lsn pg_last_xact_replay_timestamp pg_promote pg_wal_replay_pause pg_wal_replay_resume
	pg_export_snapshot pg_log_standby_snapshot
	pg_copy_logical_replication_slot pg_copy_physical_replication_slot pg_create_logical_replication_slot
	pg_create_physical_replication_slot pg_drop_replication_slot pg_logical_emit_message pg_logical_slot_get_changes
	pg_logical_slot_peek_changes pg_replication_origin_create pg_replication_origin_drop
	pg_replication_origin_session_setup pg_replication_slot_advance
	pg_current_snapshot pg_current_xact_id pg_current_xact_id_if_assigned pg_xact_status
	txid_current txid_current_if_assigned txid_current_snapshot txid_status
	lo_close lo_creat lo_create lo_export lo_from_bytea lo_import lo_lseek lo_open lo_put lo_tell lo_truncate lo_unlink
	loread lowrite
	brin_desummarize_range brin_summarize_new_values brin_summarize_range gin_clean_pending_list
	pg_import_system_collations pg_notify pg_listening_channels pg_notification_queue_usage
	pg_stat_clear_snapshot pg_stat_force_next_flush pg_stat_get_activity pg_stat_reset pg_stat_reset_shared
	pg_backend_pid pg_blocking_pids pg_conf_load_time
	pg_file_write pg_ls_dir pg_ls_waldir pg_read_binary_file pg_read_file pg_stat_file
	query_to_xml query_to_xml_and_xmlschema cursor_to_xml ts_rewrite ts_stat
	dblink dblink_exec pg_prewarm pg_stat_statements_reset`)

// ofServer reports whether a relation tells of one server or of a session on it, or is one that only the primary has.
func ofServer(schema, relation string) bool {
	return schema == "pg_temp" || (schema == "" || schema == "pg_catalog") && serverViews[relation]
}

var serverViews = set(`pg_cursors pg_file_settings pg_locks pg_prepared_statements pg_prepared_xacts pg_replication_slots
	pg_sequences pg_settings pg_stat_activity pg_stat_all_tables pg_stat_replication pg_stat_wal_receiver
	pg_statio_user_tables`)

func set(names string) map[string]bool {
	m := map[string]bool{}
	for _, name := range strings.Fields(names) {
		m[name] = true
	}
	return m
}

// TestReads holds the oracle to the other side: that what Classify documents as reads is none of what it looks for.
func TestReads(t *testing.T) {
	for _, sql := range reads {
		tree, err := pg.Parse(sql)
		if err != nil {
			t.Errorf("%v: %s", err, sql)
			continue
		}
		if reason := whyNotRead(tree); reason != "" {
			t.Errorf("there is %s in it: %s", reason, sql)
		}
		if flyregion.Classify(sql) != flyregion.Read {
			t.Errorf("Classify is write: %s", sql)
		}
	}
}

// TestGenerate finds out when the grammar has become useless: when what it gives hardly ever parses, or is all the same.
func TestGenerate(t *testing.T) {
	const n = 5000
	parsed, reasons, read := 0, map[string]bool{}, 0
	for i := range uint64(n) {
		sql := generate(randomChoices(i << 8))
		tree, err := pg.Parse(sql)
		if err != nil {
			continue
		}
		parsed++
		if reason := whyNotRead(tree); reason != "" {
			reasons[reason] = true
		} else if flyregion.Classify(sql) == flyregion.Read {
			read++
		}
	}
	t.Logf("%d of %d texts parse, %d of them are reads, the others are none for %d reasons", parsed, n, read, len(reasons))
	if parsed < n/2 || read < parsed/5 || len(reasons) < 40 {
		t.Error("the grammar is of little use")
	}
}
