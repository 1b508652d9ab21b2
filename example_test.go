package flyregion_test

import (
	"context"
	"fmt"
	"log"

	"github.com/flyregion/flyregion"
	"github.com/jackc/pgx/v5/tracelog"
)

// databaseURL stands for os.Getenv("DATABASE_URL"). It leads to a server that runs as long as the tests do, whose reads go
// through read-only sessions, as they would on a replica.
func databaseURL() string { return flyregion.ServerURL() }

// The constructor is all that changes in an app: this was pgxpool.New. On Fly the environment says the rest.
func ExampleNewPool() {
	ctx := context.Background()
	pool, err := flyregion.NewPool(ctx, databaseURL())
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
	config, err := flyregion.ParseConfig(databaseURL())
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

// A read that may be a little behind waits for no write.
func ExampleWithoutWait() {
	ctx := context.Background()
	pool, err := flyregion.NewPool(ctx, databaseURL())
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
	pool, err := flyregion.NewPool(ctx, databaseURL())
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
	pool, err := flyregion.NewPool(ctx, databaseURL())
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
