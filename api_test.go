package flyregion

import (
	"context"
	"errors"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ownTypes are the types of this package that stand for pgxpool's.
var ownTypes = map[reflect.Type]reflect.Type{
	reflect.TypeFor[*pgxpool.Pool]():   reflect.TypeFor[*Pool](),
	reflect.TypeFor[*pgxpool.Stat]():   reflect.TypeFor[*Stat](),
	reflect.TypeFor[*pgxpool.Config](): reflect.TypeFor[*Config](),
}

// ownType returns a function's type with this package's types in place of pgxpool's.
func ownType(f reflect.Type) reflect.Type {
	var in, out []reflect.Type
	translated := func(t reflect.Type) reflect.Type {
		if o, ok := ownTypes[t]; ok {
			return o
		}
		return t
	}
	for t := range f.Ins() {
		in = append(in, translated(t))
	}
	for t := range f.Outs() {
		out = append(out, translated(t))
	}
	return reflect.FuncOf(in, out, f.IsVariadic())
}

// Code that was written for pgxpool compiles with this package's types: they have all its methods, with the same types.
func TestMethodsOfPgxpool(t *testing.T) {
	for theirs, ours := range ownTypes {
		for theirMethod := range theirs.Methods() {
			method, ok := ours.MethodByName(theirMethod.Name)
			if !ok {
				t.Errorf("%v has no method %s", ours, theirMethod.Name)
				continue
			}
			got, want := method.Type, ownType(theirMethod.Type)
			if got != want {
				t.Errorf("%v.%s is %v, want %v", ours, method.Name, got, want)
			}
		}
		if theirs.NumMethod() == 0 {
			t.Errorf("%v has no methods", theirs)
		}
	}
}

func TestFunctionsOfPgxpool(t *testing.T) {
	for name, pair := range map[string][2]any{
		"NewPool":           {pgxpool.New, NewPool},
		"NewPoolWithConfig": {pgxpool.NewWithConfig, NewPoolWithConfig},
		"ParseConfig":       {pgxpool.ParseConfig, ParseConfig},
	} {
		if got, want := reflect.TypeOf(pair[1]), ownType(reflect.TypeOf(pair[0])); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

// Every field of pgxpool's Config is a field of ours, and none is hidden by one of the same name.
func TestFieldsOfPgxpoolConfig(t *testing.T) {
	theirs, ours := reflect.TypeFor[pgxpool.Config](), reflect.TypeFor[Config]()
	for _, want := range reflect.VisibleFields(theirs) {
		if !want.IsExported() {
			continue
		}
		got, ok := ours.FieldByName(want.Name)
		if !ok {
			t.Errorf("Config has no field %s", want.Name)
			continue
		}
		if got.Type != want.Type {
			t.Errorf("Config.%s is a %v, want a %v", got.Name, got.Type, want.Type)
		}
		// The first index is that of the embedded *pgxpool.Config.
		if !slices.Equal(got.Index[1:], want.Index) || ours.Field(got.Index[0]).Type != reflect.TypeFor[*pgxpool.Config]() {
			t.Errorf("Config.%s is not pgxpool's", got.Name)
		}
	}
}

// The interfaces that other packages ask for.
var (
	_ interface { // sqlc's DBTX
		Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
		Query(context.Context, string, ...any) (pgx.Rows, error)
		QueryRow(context.Context, string, ...any) pgx.Row
		CopyFrom(context.Context, pgx.Identifier, []string, pgx.CopyFromSource) (int64, error)
		SendBatch(context.Context, *pgx.Batch) pgx.BatchResults
	} = (*Pool)(nil)
	_ interface { // what pgx.BeginFunc and pgx.BeginTxFunc take
		Begin(context.Context) (pgx.Tx, error)
		BeginTx(context.Context, pgx.TxOptions) (pgx.Tx, error)
	} = (*Pool)(nil)
)

// pgx's own helpers work with a Pool.
func TestHelpersOfPgx(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int")
	pool := poolIn(t, cluster, "ord")
	ctx := t.Context()

	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "insert into "+name+" values (1), (2)")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var sum int
	err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, "select id from "+name)
		var id int
		_, err := pgx.ForEachRow(rows, []any{&id}, func() error {
			sum += id
			return nil
		})
		return err
	})
	if err != nil || sum != 3 {
		t.Errorf("the sum is %d, %v", sum, err)
	}
	mine := errors.New("changed my mind")
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "delete from "+name); err != nil {
			return err
		}
		return mine
	})
	if !errors.Is(err, mine) {
		t.Error(err)
	}
	rows, _ := pool.Query(ctx, "select id from "+name+" order by id")
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil || !slices.Equal(ids, []int{1, 2}) {
		t.Errorf("the rows are %v, %v", ids, err)
	}
	for _, conn := range pool.AcquireAllIdle(ctx) {
		conn.Release()
	}
}

// A batch may begin a transaction. Its results then have it, on whichever server.
func TestBatchThatBeginsATransaction(t *testing.T) {
	cluster := sharedCluster(t)
	pool := poolIn(t, cluster, "ord")
	for want, ctx := range map[string]context.Context{
		"nrt": t.Context(),
		"ord": WithReplica(t.Context()),
	} {
		b := &pgx.Batch{}
		b.BeginTx(pgx.TxOptions{AccessMode: pgx.ReadOnly})
		b.Queue("select 1")
		results := pool.SendBatch(ctx, b)
		tx := results.Tx()
		if err := results.Close(); err != nil {
			t.Error(err)
		}
		if tx == nil {
			t.Errorf("the batch on %s has no transaction", want)
			continue
		}
		if got := answeredBy(t, ctx, cluster, tx); got != want {
			t.Errorf("the transaction is on %s, want %s", got, want)
		}
		if err := tx.Commit(ctx); err != nil {
			t.Error(err)
		}
	}
	if n := pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections are still in use", n)
	}
}

// TestReasonsAreDocumented compares the reasons of the package's comment with those that there are.
func TestReasonsAreDocumented(t *testing.T) {
	t.Parallel()
	code, err := os.ReadFile("reason.go")
	noError(t, err)
	docs, err := os.ReadFile("doc.go")
	noError(t, err)
	_, table, found := strings.Cut(string(docs), "the reasons are:")
	if !found {
		t.Fatal("the package's comment has no reasons")
	}
	var want, got []string
	for _, m := range regexp.MustCompile(`because\w+\s+reason = "(\w+)"`).FindAllStringSubmatch(string(code), -1) {
		want = append(want, m[1])
	}
	for _, m := range regexp.MustCompile(`(?m)^//\t(\w+)  `).FindAllStringSubmatch(table, -1) {
		got = append(got, m[1])
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		t.Errorf("the package's comment has the reasons %q, want %q", got, want)
	}
}
