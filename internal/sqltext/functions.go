package sqltext

import (
	"strings"
	"unicode"
)

// The functions whose calls belong on the primary, with the reason, and those whose calls do not although their name begins
// with pg_. The prefix is PostgreSQL's own, and most such functions inspect or control the server. So one that is not listed
// counts as a write. All other functions that are not listed count as unknown.

var primaryCalls = [][]string{
	// Sequences: a change, or the session's memory of one.
	{"currval", "lastval", "nextval", "setval"},

	// Transaction ids and snapshots: a standby assigns no ids, and what it knows of running transactions lags behind.
	{"txid_current", "txid_current_if_assigned", "txid_current_snapshot", "txid_status"},

	// Large objects: changes, and descriptors that live as long as a transaction. lo_get is a plain read.
	{"lo_close", "lo_creat", "lo_create", "lo_export", "lo_from_bytea", "lo_import", "lo_lseek", "lo_lseek64", "lo_manage",
		"lo_open", "lo_put", "lo_tell", "lo_tell64", "lo_truncate", "lo_truncate64", "lo_unlink", "loread", "lowrite"},

	// SQL in a string, which is not looked into, or from a cursor of the session.
	{"connectby", "crosstab", "crosstab2", "crosstab3", "crosstab4", "crosstabn", "cursor_to_xml", "cursor_to_xmlschema",
		"query_to_xml", "query_to_xml_and_xmlschema", "query_to_xmlschema", "ts_rewrite", "ts_stat", "xpath_table"},

	// Tables and views by names in strings.
	{"database_to_xml", "database_to_xml_and_xmlschema", "schema_to_xml", "schema_to_xml_and_xmlschema", "table_to_xml",
		"table_to_xml_and_xmlschema"},

	// Connections of the server to elsewhere.
	{"dblink", "http", "postgres_fdw_disconnect", "postgres_fdw_disconnect_all", "postgres_fdw_get_connections"},

	// Maintenance, and checks of the very files of one server.
	{"autoprewarm_dump_now", "autoprewarm_start_worker", "brin_desummarize_range", "brin_summarize_new_values",
		"brin_summarize_range", "bt_index_check", "bt_index_parent_check", "gin_clean_pending_list", "gin_index_check",
		"heap_force_freeze", "heap_force_kill", "verify_heapam"},

	// The locks of one server.
	{"pgrowlocks"},
}

// sessionCalls change settings of the session or transaction, and the session's seed for random().
var sessionCalls = []string{"isn_weak", "set_config", "set_limit", "setseed"}

var systemReads = [][]string{
	// The schema: what the catalogs say, in words.
	{"pg_basetype", "pg_column_is_updatable", "pg_describe_object", "pg_get_acl", "pg_get_catalog_foreign_keys",
		"pg_get_constraintdef", "pg_get_expr", "pg_get_function_arg_default", "pg_get_function_arguments",
		"pg_get_function_identity_arguments", "pg_get_function_result", "pg_get_function_sqlbody", "pg_get_functiondef",
		"pg_get_indexdef", "pg_get_keywords", "pg_get_object_address", "pg_get_partition_constraintdef",
		"pg_get_partkeydef", "pg_get_publication_tables", "pg_get_replica_identity_index", "pg_get_ruledef",
		"pg_get_serial_sequence", "pg_get_statisticsobjdef", "pg_get_statisticsobjdef_columns",
		"pg_get_statisticsobjdef_expressions", "pg_get_triggerdef", "pg_get_userbyid", "pg_get_viewdef", "pg_has_role",
		"pg_identify_object", "pg_identify_object_as_address", "pg_index_column_has_property", "pg_index_has_property",
		"pg_indexam_has_property", "pg_options_to_table", "pg_partition_ancestors", "pg_partition_root",
		"pg_partition_tree", "pg_relation_is_publishable", "pg_relation_is_updatable", "pg_sequence_parameters",
		"pg_settings_get_flags"},
	{"pg_collation_is_visible", "pg_conversion_is_visible", "pg_function_is_visible", "pg_opclass_is_visible",
		"pg_operator_is_visible", "pg_opfamily_is_visible", "pg_statistics_obj_is_visible", "pg_table_is_visible",
		"pg_ts_config_is_visible", "pg_ts_dict_is_visible", "pg_ts_parser_is_visible", "pg_ts_template_is_visible",
		"pg_type_is_visible"},

	// Files: a physical replica has the same, under the same names. Their sizes are others: unlogged tables are empty.
	{"pg_filenode_relation", "pg_relation_filenode", "pg_relation_filepath", "pg_tablespace_databases"},

	// Computation with what is given, and facts of stored values.
	{"pg_char_to_encoding", "pg_client_encoding", "pg_collation_for", "pg_column_compression", "pg_column_size",
		"pg_column_toast_chunk_id", "pg_encoding_max_length", "pg_encoding_to_char", "pg_input_error_info",
		"pg_input_is_valid", "pg_lsn", "pg_mcv_list_items", "pg_size_bytes", "pg_size_pretty", "pg_snapshot_xip",
		"pg_snapshot_xmax", "pg_snapshot_xmin", "pg_split_walfile_name", "pg_timezone_abbrevs", "pg_timezone_names",
		"pg_trigger_depth", "pg_typeof", "pg_visible_in_snapshot", "pg_wal_lsn_diff", "pg_xact_commit_timestamp",
		"pg_xact_commit_timestamp_origin"},

	// Only time passes.
	{"pg_sleep", "pg_sleep_for", "pg_sleep_until"},

	// Who answers, which people ask to see where their reads run. It is each server's own answer, and no reason to ask another.
	// serverSettings tell whether one may write, and belong to the primary. So does pg_backend_pid, whose number is for
	// another statement on the same server.
	{"inet_server_addr", "inet_server_port", "pg_is_in_recovery", "pg_postmaster_start_time"},
}

// primaryPrefixes are prefixes of the names of other functions that belong on the primary.
var primaryPrefixes = []string{
	"binary_upgrade_",
	"dblink_", "http_", "run_command_on_", // they ask other servers
	"hypopg", "pgv_", // they keep things in the session
}

// primarySchemas are schemas of extensions whose functions all belong on the primary: they act outside of the database, or
// keep state in the session. So do schemas whose name begins with dbms_.
var primarySchemas = []string{"aws_lambda", "aws_s3", "azure_storage", "cron", "net", "utl_file"}

// serverSettings are the settings that differ between a primary and a hot standby, or between their sessions.
var serverSettings = []string{"default_transaction_read_only", "in_hot_standby", "lock_timeout", "transaction_read_only"}

// isServerSetting reports whether a setting is one of serverSettings.
func isServerSetting(name string) bool {
	for _, setting := range serverSettings {
		if len(name) == len(setting) && isFolded(name, setting) {
			return true
		}
	}
	return false
}

// serverViews are the system views that show a server or its sessions, not the data, beside pg_buffercache*, pg_stat_* and pg_statio_*.
// Of pg_sequences it is last_value, which runs ahead on a standby. pg_temp is no view, but tables that only the primary
// can have.
var serverViews = []string{"pg_aios", "pg_available_extension_versions", "pg_available_extensions",
	"pg_backend_memory_contexts", "pg_config", "pg_cursors", "pg_dsm_registry_allocations",
	"pg_file_settings", "pg_hba_file_rules", "pg_ident_file_mappings", "pg_locks", "pg_prepared_statements",
	"pg_prepared_xacts", "pg_replication_origin_status", "pg_replication_slots", "pg_sequences", "pg_settings",
	"pg_shmem_allocations", "pg_shmem_allocations_numa", "pg_temp"}

const (
	callUnknown uint8 = iota
	callReads
	callReadsSetting // current_setting
	callBelongsToPrimary
	callChangesSession
	viewOfServer
)

var systemNames = func() *nameTable {
	t := newNameTable(1024)
	for _, names := range primaryCalls {
		for _, name := range names {
			t.add(name, callBelongsToPrimary)
		}
	}
	for _, names := range systemReads {
		for _, name := range names {
			t.add(name, callReads)
		}
	}
	for _, name := range serverViews {
		t.add(name, viewOfServer)
	}
	for _, name := range sessionCalls {
		t.add(name, callChangesSession)
	}
	t.add("current_setting", callReadsSetting)
	return t
}()

// callKind returns the kind of a call by the function's name, callUnknown if the name is not listed.
func callKind(name string) uint8 {
	kind := systemNames.find(name)
	if kind == callUnknown || kind == viewOfServer {
		if isSystemName(name) || hasPrimaryPrefix(name) {
			return callBelongsToPrimary
		}
		return callUnknown
	}
	return kind
}

// primaryFirsts has the first letters of primaryPrefixes, so that most names need no comparison.
var primaryFirsts = func() (t [256]bool) {
	for c := range t {
		for _, prefix := range primaryPrefixes {
			t[c] = t[c] || folded[c] == prefix[0]
		}
	}
	return t
}()

// hasPrimaryPrefix reports whether a name begins with one of primaryPrefixes.
func hasPrimaryPrefix(name string) bool {
	if name == "" || !primaryFirsts[name[0]] {
		return false
	}
	for _, prefix := range primaryPrefixes {
		if hasFoldedPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// leavesState reports whether a function that belongs to the primary leaves something in the session. What is read while
// an advisory lock is held belongs to the same session.
func leavesState(name string) bool {
	return hasFoldedPrefix(name, "hypopg") || hasFoldedPrefix(name, "pgv_") || hasFoldedPrefix(name, "pg_advisory_lock") ||
		hasFoldedPrefix(name, "pg_try_advisory_lock") || hasFoldedPrefix(name, "dblink_connect")
}

// isPrimarySchema reports whether a schema is one of primarySchemas.
func isPrimarySchema(name string) bool {
	if hasFoldedPrefix(name, "dbms_") {
		return true
	}
	for _, schema := range primarySchemas {
		if len(name) == len(schema) && isFolded(name, schema) {
			return true
		}
	}
	return false
}

// isSystemName reports whether a name begins with pg_.
func isSystemName(name string) bool {
	return len(name) > 3 && name[2] == '_' && isFolded(name[:2], "pg")
}

// isServerView reports whether a name that begins with pg_ is that of a view of the server.
func isServerView(name string) bool {
	return hasFoldedPrefix(name, "pg_buffercache") || hasFoldedPrefix(name, "pg_stat_") || hasFoldedPrefix(name, "pg_statio_") || hasFoldedPrefix(name, "pg_temp_") ||
		systemNames.find(name) == viewOfServer
}

func hasFoldedPrefix(name, prefix string) bool {
	return len(name) >= len(prefix) && isFolded(name[:len(prefix)], prefix)
}

// IsFunctionName reports whether a text is a function's name as it stands in a call: without quotes, in lower case, and
// not cut by the server.
func IsFunctionName(name string) bool {
	if name == "" || len(name) >= maxName || classes[name[0]] != classLetter {
		return false
	}
	for _, c := range []byte(name) {
		if !inName[c] || folded[c] != c {
			return false
		}
	}
	return true
}

// keepsSchema reports whether a command that begins with a word changes no functions, views and policies. It lists only
// frequent commands, and reports false for all others.
func keepsSchema(word string) bool {
	if len(word) < len("move") || len(word) > len("deallocate") {
		return false
	}
	for _, command := range []string{"analyze", "checkpoint", "close", "deallocate", "declare", "execute", "fetch", "listen",
		"lock", "move", "notify", "truncate", "unlisten", "vacuum"} {
		if len(command) == len(word) && isFolded(word, command) {
			return true
		}
	}
	return false
}

// isForeignUpper reports whether a letter outside of ASCII is upper case, which some encodings of a database fold.
func isForeignUpper(r rune) bool { return r >= 0x80 && unicode.IsUpper(r) }

// storedName returns a name as the catalog has it. It reports false if that depends on the database's encoding.
func storedName(buf *[maxName]byte, name string, quoted bool) ([]byte, bool) {
	if quoted && strings.Contains(name, `""`) {
		name = strings.ReplaceAll(name, `""`, `"`)
	}
	n := min(len(name), maxName-1)
	ascii := true
	for i := range n {
		buf[i] = folded[name[i]]
		ascii = ascii && buf[i] < 0x80
	}
	if quoted {
		copy(buf[:n], name)
	}
	if !ascii && (n < len(name) || !quoted && strings.ContainsFunc(name, isForeignUpper)) {
		return buf[:n], false
	}
	return buf[:n], true
}
