package sqltext

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// readViews are the views of pg_catalog whose rows are those of the database: the same on every server.
var readViews = []string{"pg_group", "pg_indexes", "pg_matviews", "pg_policies", "pg_publication_sequences",
	"pg_publication_tables", "pg_roles", "pg_rules", "pg_seclabels", "pg_shadow", "pg_stats", "pg_stats_ext",
	"pg_stats_ext_exprs", "pg_tables", "pg_timezone_abbrevs", "pg_timezone_names", "pg_user", "pg_user_mappings", "pg_views",
	"pg_wait_events"}

// volatileReads are functions that PostgreSQL calls VOLATILE although they read what every server has.
var volatileReads = []string{"pg_is_in_recovery", "pg_partition_ancestors", "pg_partition_tree", "pg_xact_commit_timestamp",
	"pg_xact_commit_timestamp_origin"}

// TestSystemFunctions holds what is said of the functions and views of PostgreSQL, and of the extensions that come with
// it, to its catalog.
func TestSystemFunctions(t *testing.T) {
	conn := connectTo(t, startCluster(t).Leader(), "postgres")
	rows := func(sql string) [][][]byte {
		t.Helper()
		result := conn.ExecParams(t.Context(), sql, nil, nil, nil, nil).Read()
		if result.Err != nil {
			t.Fatal(result.Err)
		}
		return result.Rows
	}
	for _, row := range rows("select name from pg_available_extensions where name not like 'pl%'") {
		// Those that need a setting of the server, or another extension that is not here, do without.
		_, _ = conn.Exec(t.Context(), fmt.Sprintf("create extension if not exists %q cascade", row[0])).ReadAll()
	}

	builtIn := map[string]bool{}
	for _, name := range strings.Fields(builtIns) {
		builtIn[name] = true
	}
	known := 0
	for _, row := range rows(`select proname, bool_or(provolatile = 'v') from pg_proc p where pronamespace <> 'information_schema'::regnamespace
			group by 1 order by 1`) {
		name, volatile := string(row[0]), string(row[1]) == "t"
		s := inspect(fmt.Sprintf("select %q(1)", name))
		if s.Access == Read && !s.UnknownCalls {
			known++
			if volatile && !IsHarmless(name) && !slices.Contains(volatileReads, name) {
				t.Errorf("%s is VOLATILE, and a call of it a read", name)
			}
		}
		if isSystemName(name) && s.UnknownCalls {
			t.Errorf("%s is left to the catalog, which does not know what functions of the server do", name)
		}
		if builtIn[name] && (volatile || s.Access != Read || s.UnknownCalls) {
			t.Errorf("%s is not what a built-in function is: volatile %v, %v, unknown %v", name, volatile, s.Access, s.UnknownCalls)
		}
	}
	if known < len(builtIn)*3/4 {
		t.Errorf("of the functions of this server %d are known, of %d in the list", known, len(builtIn))
	}

	for _, row := range rows(`select relname from pg_class where relkind = 'v' and relnamespace <> 'information_schema'::regnamespace`) {
		name := string(row[0])
		want := Write
		if slices.Contains(readViews, name) {
			want = Read
		}
		if got := classify("select * from " + name); got != want {
			t.Errorf("reading the view %s is a %v, want %v", name, got, want)
		}
	}
}

// TestKnownNames looks for a name that is listed twice or does not belong.
func TestKnownNames(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range strings.Fields(builtIns + harmless + syntax) {
		if seen[name] || !IsFunctionName(name) {
			t.Errorf("%s is listed twice, or is no name", name)
		}
		seen[name] = true
		if safeNames.find(strings.ToUpper(name)) == 0 {
			t.Errorf("%s is not found", name)
		}
		if known := systemNames.find(name); known != callUnknown && known != callReads {
			t.Errorf("%s belongs to the primary", name)
		}
		if s := inspect("select " + name + "(1)"); s.Access != Read || s.UnknownCalls {
			t.Errorf("a call of %s is a %v, unknown %v", name, s.Access, s.UnknownCalls)
		}
	}
}
