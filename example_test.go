package flyregion_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/flyregion/flyregion"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/tracelog"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// The constructor is all that changes in an app: this was pgxpool.New. On Fly the environment says the rest.
func ExampleNewPool() {
	ctx := context.Background()
	pool, err := flyregion.NewPool(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	if _, err := pool.Exec(ctx, "create table if not exists visits (page text)"); err != nil {
		log.Fatal(err)
	}
	defer pool.Exec(ctx, "drop table visits")

	// The write runs on the primary, and the read sees it on the replica.
	if _, err := pool.Exec(ctx, "insert into visits values ($1)", "/home"); err != nil {
		log.Fatal(err)
	}
	var visits int
	if err := pool.QueryRow(ctx, "select count(*) from visits").Scan(&visits); err != nil {
		log.Fatal(err)
	}
	fmt.Println(visits, "visit")
	// Output: 1 visit
}

// The app's own tracer, here the one of pgx that logs, sees every query of the app wherever it runs, and nothing else.
func ExampleNewPoolWithConfig_tracer() {
	config, err := flyregion.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	config.ConnConfig.Tracer = &tracelog.TraceLog{
		LogLevel: tracelog.LogLevelInfo,
		Logger: tracelog.LoggerFunc(func(_ context.Context, _ tracelog.LogLevel, msg string, data map[string]any) {
			if msg == "Query" {
				fmt.Println(data["sql"])
			}
		}),
	}

	ctx := context.Background()
	pool, err := flyregion.NewPoolWithConfig(ctx, config)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	if _, err := pool.Exec(ctx, "create table if not exists orders (id int)"); err != nil {
		log.Fatal(err)
	}
	if _, err := pool.Exec(ctx, "select id from orders"); err != nil {
		log.Fatal(err)
	}
	if _, err := pool.Exec(ctx, "drop table orders"); err != nil {
		log.Fatal(err)
	}
	// Output:
	// create table if not exists orders (id int)
	// select id from orders
	// drop table orders
}

// Off Fly, a replica is named by its connection string.
func ExampleNewPoolWithConfig_replicaConnStrings() {
	config, err := flyregion.ParseConfig(os.Getenv("PRIMARY_URL"))
	if err != nil {
		log.Fatal(err)
	}
	config.Region = "ord"        // where this process runs
	config.PrimaryRegion = "nrt" // where the primary is
	config.ReplicaConnStrings = map[string]string{"ord": os.Getenv("ORD_URL")}

	ctx := context.Background()
	pool, err := flyregion.NewPoolWithConfig(ctx, config)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	var standby bool
	if err := pool.QueryRow(ctx, "select pg_is_in_recovery()").Scan(&standby); err != nil {
		log.Fatal(err)
	}
	fmt.Println("a read of the pool runs on a standby:", standby)
	err = pool.QueryRow(flyregion.WithPrimary(ctx), "select pg_is_in_recovery()").Scan(&standby)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("a read under WithPrimary runs on a standby:", standby)
	// Output:
	// a read of the pool runs on a standby: true
	// a read under WithPrimary runs on a standby: false
}

// On a laptop with one server, reads run in read-only sessions, so that a statement that writes where it should not is
// found before it meets a replica.
func ExampleNewPoolWithConfig_simulateReplica() {
	config, err := flyregion.ParseConfig(os.Getenv("PRIMARY_URL"))
	if err != nil {
		log.Fatal(err)
	}
	config.SimulateReplica = true // or fly_simulate_replica=true in the connection string

	ctx := context.Background()
	pool, err := flyregion.NewPoolWithConfig(ctx, config)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	_, err = pool.Exec(flyregion.WithReplica(ctx), "create table reports (id int)")
	fmt.Println(err)
	// Output: ERROR: cannot execute CREATE TABLE in a read-only transaction (SQLSTATE 25006)
}

// With AwaitWrites a write returns when the replica shows it, so that other processes that read there see it as well.
func ExampleNewPoolWithConfig_awaitWrites() {
	config, err := flyregion.ParseConfig(os.Getenv("PRIMARY_URL"))
	if err != nil {
		log.Fatal(err)
	}
	config.Region, config.PrimaryRegion = "ord", "nrt"
	config.ReplicaConnStrings = map[string]string{"ord": os.Getenv("ORD_URL")}
	config.AwaitWrites = true // or fly_await_writes=true in the connection string

	ctx := context.Background()
	pool, err := flyregion.NewPoolWithConfig(ctx, config)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	if _, err := pool.Exec(ctx, "create table if not exists prices (cents int)"); err != nil {
		log.Fatal(err)
	}
	defer pool.Exec(ctx, "drop table prices")
	if _, err := pool.Exec(ctx, "insert into prices values (995)"); err != nil {
		log.Fatal(err)
	}

	// Replica is a plain pgxpool.Pool, whose statements wait for nothing.
	var cents int
	if err := pool.Replica().QueryRow(ctx, "select cents from prices").Scan(&cents); err != nil {
		log.Fatal(err)
	}
	fmt.Println(cents)
	// Output: 995
}

// A function that is not declared STABLE runs on the primary, as it may write. Functions says of one that it only reads.
// It is better to declare the function STABLE, where one can.
func ExampleNewPoolWithConfig_functions() {
	config, err := flyregion.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	config.Functions = map[string]flyregion.Access{
		"vat_of":   flyregion.Read,  // only reads, but is not declared so
		"audit_of": flyregion.Write, // writes, but is declared STABLE
	}

	ctx := context.Background()
	pool, err := flyregion.NewPoolWithConfig(ctx, config)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	_, err = pool.Exec(ctx, "create or replace function vat_of(net int) returns int language sql as 'select net / 5'")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Exec(ctx, "drop function vat_of")

	var vat int
	if err := pool.QueryRow(ctx, "select vat_of(1000)").Scan(&vat); err != nil {
		log.Fatal(err)
	}
	fmt.Println(vat)
	// Output: 200
}

// Spans go to OpenTelemetry's global providers, or to those in Telemetry.
func ExampleNewPoolWithConfig_telemetry() {
	spans := tracetest.NewInMemoryExporter() // an app has an exporter of OTLP here
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))

	config, err := flyregion.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	config.Telemetry = flyregion.Telemetry{TracerProvider: provider}

	ctx := context.Background()
	pool, err := flyregion.NewPoolWithConfig(ctx, config)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	if _, err := pool.Exec(ctx, "create table if not exists events (id int)"); err != nil {
		log.Fatal(err)
	}
	for _, span := range spans.GetSpans() {
		fmt.Println(span.Name)
		for _, a := range span.Attributes {
			if a.Key == "flyregion.reason" {
				fmt.Println(a.Key, "=", a.Value.AsString())
			}
		}
	}
	if _, err := pool.Exec(ctx, "drop table events"); err != nil {
		log.Fatal(err)
	}
	// Output:
	// flyregion.forward
	// flyregion.reason = write
}

// A library that needs database/sql gets a sql.DB that routes statements as the pool does.
func ExampleOpenDB() {
	ctx := context.Background()
	pool, err := flyregion.NewPool(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	db := flyregion.OpenDB(pool)
	defer db.Close()

	if _, err := db.ExecContext(ctx, "create table if not exists stock (item text, left_over int)"); err != nil {
		log.Fatal(err)
	}
	defer db.ExecContext(ctx, "drop table stock")
	if _, err := db.ExecContext(ctx, "insert into stock values ($1, $2)", "tea", 12); err != nil {
		log.Fatal(err)
	}
	var left int
	if err := db.QueryRowContext(ctx, "select left_over from stock where item = $1", "tea").Scan(&left); err != nil {
		log.Fatal(err)
	}
	fmt.Println(left, "left")
	// Output: 12 left
}

// Under WithReplica a read never goes to the primary. It fails if the replica is too far behind.
func ExampleWithReplica() {
	config, err := flyregion.ParseConfig(os.Getenv("PRIMARY_URL"))
	if err != nil {
		log.Fatal(err)
	}
	config.Region, config.PrimaryRegion = "ord", "nrt"
	config.ReplicaConnStrings = map[string]string{"ord": os.Getenv("ORD_URL")}

	ctx := context.Background()
	pool, err := flyregion.NewPoolWithConfig(ctx, config)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	if _, err := pool.Exec(ctx, "create table if not exists sales (cents int)"); err != nil {
		log.Fatal(err)
	}
	defer pool.Exec(ctx, "drop table sales")

	var sales int
	err = pool.QueryRow(flyregion.WithReplica(ctx), "select count(*) from sales").Scan(&sales)
	if behind, ok := errors.AsType[*flyregion.ReplicaLagError](err); ok {
		// errors.Is(err, flyregion.ErrReplicaLag) holds too.
		fmt.Println("the replica in", behind.Region, "is", uint64(behind.Required-behind.Replayed), "bytes behind")
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sales, "sales")
	// Output: 0 sales
}

// A read-only transaction runs on the replica, and every other one on the primary.
func ExamplePool_BeginTx() {
	ctx := context.Background()
	pool, err := flyregion.NewPool(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	// Both statements see the same state of the database.
	snapshot := pgx.TxOptions{AccessMode: pgx.ReadOnly, IsoLevel: pgx.RepeatableRead}
	err = pgx.BeginTxFunc(ctx, pool, snapshot, func(tx pgx.Tx) error {
		var tables, views int
		if err := tx.QueryRow(ctx, "select count(*) from pg_tables where schemaname = 'nowhere'").Scan(&tables); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, "select count(*) from pg_views where schemaname = 'nowhere'").Scan(&views); err != nil {
			return err
		}
		fmt.Println(tables, "tables and", views, "views")
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output: 0 tables and 0 views
}

// A read that may be a little behind waits for no write.
func ExampleWithoutWait() {
	ctx := context.Background()
	pool, err := flyregion.NewPool(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	var tables int
	err = pool.QueryRow(flyregion.WithoutWait(ctx), "select count(*) from pg_tables where schemaname = 'nowhere'").Scan(&tables)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(tables, "tables")
	// Output: 0 tables
}

// A library that writes, listens or migrates gets the primary's pool, which is a plain pgxpool.Pool. What it writes is
// seen by the reads that follow.
func ExamplePool_Primary() {
	ctx := context.Background()
	pool, err := flyregion.NewPool(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	migrations := pool.Primary()
	if _, err := migrations.Exec(ctx, "create table if not exists jobs (id int)"); err != nil {
		log.Fatal(err)
	}
	defer migrations.Exec(ctx, "drop table jobs")

	var jobs int
	if err := pool.QueryRow(ctx, "select count(*) from jobs").Scan(&jobs); err != nil {
		log.Fatal(err)
	}
	fmt.Println(jobs, "jobs")
	// Output: 0 jobs
}

// The reads of a session wait for the session's own writes, and not for those of others.
func ExampleWithSession() {
	ctx := context.Background()
	pool, err := flyregion.NewPool(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	// One for each user, say.
	var alice flyregion.Session
	ctx = flyregion.WithSession(ctx, &alice)

	if _, err := pool.Exec(ctx, "create table if not exists carts (item text)"); err != nil {
		log.Fatal(err)
	}
	defer pool.Exec(ctx, "drop table carts")
	if _, err := pool.Exec(ctx, "insert into carts values ('tea')"); err != nil {
		log.Fatal(err)
	}
	var item string
	if err := pool.QueryRow(ctx, "select item from carts").Scan(&item); err != nil {
		log.Fatal(err)
	}
	fmt.Println(item)
	// Output: tea
}

func ExampleClassify() {
	for _, sql := range []string{
		"select * from visits",
		"select * from visits for update",
		"insert into visits values (1)",
		"with v as (delete from visits returning *) select * from v",
		"select nextval('visits_id_seq')",
		"explain select 1",
	} {
		fmt.Printf("%-5s %s\n", flyregion.Classify(sql), sql)
	}
	// Output:
	// read  select * from visits
	// write select * from visits for update
	// write insert into visits values (1)
	// write with v as (delete from visits returning *) select * from v
	// write select nextval('visits_id_seq')
	// read  explain select 1
}

func ExampleParseLSN() {
	earlier, err := flyregion.ParseLSN("16/B374D848")
	if err != nil {
		log.Fatal(err)
	}
	later, err := flyregion.ParseLSN("16/B374E000")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(earlier < later, uint64(later-earlier), "bytes behind", later)

	_, err = flyregion.ParseLSN("16")
	fmt.Println(err)
	// Output:
	// true 1976 bytes behind 16/B374E000
	// flyregion: "16" is not an LSN: want two hexadecimal numbers such as 16/B374D848
}

// ConnConfig leads a connection of one's own to the replica in a region, and where there is none to the nearest one.
func ExampleConnConfig() {
	config, err := flyregion.ConnConfig("postgres://app:secret@shop-db.internal:5432/shop?sslmode=disable", "ord")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s:%d\n", config.Host, config.Port)
	for _, next := range config.Fallbacks {
		fmt.Printf("%s:%d\n", next.Host, next.Port)
	}
	// conn, err := pgx.ConnectConfig(ctx, config)

	// Output:
	// ord.shop-db.internal:5433
	// top1.nearest.of.shop-db.internal:5433
}
