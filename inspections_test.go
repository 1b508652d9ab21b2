package flyregion

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/flyregion/flyregion/internal/sqltext"
)

// inspected are statements whose inspection depends on what the catalog and the connections tell.
var inspected = []string{
	"select 1",
	"select f($1)",
	"select F ( 1 ), g(2)",
	"select * from v",
	`select 'a\' || b from t where c = ''`,
	`select '\'; delete from t; --'`,
	`select E'é\n'`,
	"/* flyregion:primary */ select 1",
	"/* flyregion:replica */ select f(1)",
	"set statement_timeout = 1",
	"update t set a = 1",
	"",
}

// TestInspectionsFollowTheFacts inspects statements until they are remembered, before and after each change of the facts.
func TestInspectionsFollowTheFacts(t *testing.T) {
	statements := &statements{catalog: newCatalog(map[string]sqltext.Access{"h": sqltext.Write})}
	c := statements.catalog
	answer := func(names []string, rows ...[][]byte) func() {
		return func() {
			old := c.answers.Load()
			c.replace(old, c.with(old, names, rows))
		}
	}
	row := func(name, called string) [][]byte {
		return [][]byte{[]byte(name), []byte(called), []byte(name), []byte("f")}
	}
	for _, change := range []struct {
		name string
		make func()
	}{
		{"nothing is known", func() {}},
		{"f is harmless", answer([]string{"f"})},
		{"strings are standard", func() { statements.plain.Store(true) }},
		{"g writes", answer([]string{"g"}, row("g", "t"))},
		{"all is forgotten", func() { c.forget(sessionState{}) }},
		{"f and the view write", answer([]string{"f"}, row("f", "t"), row("v", "f"))},
		{"the answers expire", c.expire},
		{"f and g are harmless", answer([]string{"f", "g"})},
		{"a server lacks f", func() { c.forgetCalls("select f(1)") }},
		{"encodings are UTF-8", func() { statements.utf8.Store(true) }},
		{"strings are not standard on one connection", func() { statements.notPlain.Store(true) }},
		{"an encoding is not UTF-8", func() { statements.notUTF8.Store(true) }},
		{"the name of a prepared statement", func() { statements.prepared.add("select 1", "delete from t") }},
		{"the name has two meanings", func() { statements.prepared.add("select 1", "select 2") }},
	} {
		change.make()
		for _, sql := range inspected {
			want := sqltext.Inspect(statements.resolve(sql), statements.facts(c.answers.Load()))
			for range rememberedAt + 1 {
				if got := statements.inspect(sql); got != want {
					t.Errorf("%s: %q is %+v, want %+v", change.name, sql, got, want)
				}
			}
			if text := statements.resolve(sql); text != "" && statements.shape(sql) != sqltext.Shape(text) {
				t.Errorf("%s: %q has another shape", change.name, sql)
			}
		}
	}
}

// TestInspectionsOfMemoryUsedAgain inspects SQL whose memory holds other SQL later.
func TestInspectionsOfMemoryUsedAgain(t *testing.T) {
	statements := &statements{catalog: newCatalog(nil)}
	buf := []byte("select * from a_table")
	sql := unsafe.String(&buf[0], len(buf))
	for range rememberedAt + 1 {
		if s := statements.inspect(sql); s.Access != sqltext.Read {
			t.Fatalf("%q is a write", sql)
		}
	}
	copy(buf, "delete")
	if s := statements.inspect(sql); s.Access != sqltext.Write {
		t.Errorf("%q is a read", sql)
	}
	const before = "select * from a_table"
	if statements.catalog.answers.Load().inspected.set(hashOf(before)).find(hashOf(before), before) == nil {
		t.Error("what is remembered has changed with the app's memory")
	}
}

// remembered returns how many statements are remembered.
func remembered(table *inspections) (n int) {
	for i := range table.sets {
		for j := range table.sets[i].entries {
			if table.sets[i].entries[j].Load() != nil {
				n++
			}
		}
	}
	return n
}

// TestInspectionsOfOneRun runs writes that are never the same. One run inspects a statement more than once.
func TestInspectionsOfOneRun(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int primary key, v text")
	pool := poolIn(t, cluster, "ord")
	db := OpenDB(pool)
	defer db.Close()
	ctx := t.Context()
	noError(t, execs(ctx, pool, insertText(name, 0)))
	for id := 1; id <= 10; id++ {
		noError(t, execs(ctx, pool, insertText(name, id)))
		_, err := db.ExecContext(ctx, insertText(name, -id))
		noError(t, err)
	}
	if n := remembered(pool.router.statements.catalog.answers.Load().inspected); n > 0 {
		t.Errorf("%d statements are remembered that ran once", n)
	}
	for range rememberedAt {
		noError(t, execs(ctx, pool, "update "+name+" set v = 'y' where id = 0"))
	}
	if n := remembered(pool.router.statements.catalog.answers.Load().inspected); n == 0 {
		t.Error("no statement is remembered")
	}
}

// TestInspectionsAreBounded inspects SQL that is never the same, much SQL that is, and long SQL.
func TestInspectionsAreBounded(t *testing.T) {
	var table inspections
	again := func(sql string) {
		for range rememberedAt {
			table.inspect(sql, sqltext.Facts{})
		}
	}

	for i := range 10_000 {
		for range rememberedAt - 1 {
			table.inspect(fmt.Sprint("select ", i), sqltext.Facts{})
		}
	}
	long := "select " + strings.Repeat("1", maxInspection)
	again(long)
	if n := remembered(&table); n > 0 {
		t.Errorf("%d statements are remembered that were seen once, or are long", n)
	}
	for i := range 10_000 {
		again(fmt.Sprint("select ", i))
	}
	if n, most := remembered(&table), len(table.sets)*len(table.sets[0].entries); n < most/2 {
		t.Errorf("%d statements are remembered, want nearly %d", n, most)
	}

	// What is in use stays, whatever else is seen once.
	again("select 'in use'")
	for i := range 10_000 {
		table.inspect(fmt.Sprint("select -", i), sqltext.Facts{})
	}
	if allocs := testing.AllocsPerRun(100, func() { table.inspect("select 'in use'", sqltext.Facts{}) }); allocs > 0 {
		t.Errorf("to inspect what is remembered takes %v allocations", allocs)
	}
	s := table.set(hashOf("select 'in use'"))
	if s.find(hashOf("select 'in use'"), "select 'in use'") == nil {
		t.Error("what is in use was forgotten")
	}
}

// TestInspectionsConcurrently inspects while the answers of the catalog change.
func TestInspectionsConcurrently(t *testing.T) {
	statements := &statements{catalog: newCatalog(nil)}
	c := statements.catalog
	stop := make(chan struct{})
	var readers, writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			old := c.answers.Load()
			writes := [][]byte{[]byte("f"), []byte("t"), []byte("f"), []byte("f")}
			c.replace(old, c.with(old, []string{"f"}, [][][]byte{writes}[:i%2]))
			if i%7 == 0 {
				c.forget(sessionState{})
			}
		}
	})
	for range 4 {
		readers.Go(func() {
			for i := range 5000 {
				sql := inspected[i%len(inspected)]
				answers := c.answers.Load()
				if got, want := statements.inspectSQL(sql, answers), sqltext.Inspect(sql, statements.facts(answers)); got != want {
					t.Errorf("%q is %+v, want %+v", sql, got, want)
				}
			}
		})
	}
	readers.Wait()
	close(stop)
	writer.Wait()
}
