package compat

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

type greetArgs struct {
	Name string `json:"name"`
}

func (greetArgs) Kind() string { return "greet" }

type greeter struct {
	river.WorkerDefaults[greetArgs]
	work func(context.Context, greetArgs) error
}

func (g *greeter) Work(ctx context.Context, job *river.Job[greetArgs]) error {
	return g.work(ctx, job.Args)
}

func TestRiver(t *testing.T) {
	pool := newPool(t)
	ctx := t.Context()
	driver := riverpgxv5.New(pool.Primary())
	migrator, err := rivermigrate.New(driver, nil)
	if err != nil {
		t.Fatal(err)
	}
	onPrimary(t, "create table river_job", func() error {
		_, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
		return err
	})
	if _, err := pool.Exec(ctx, "create table greeting (name text primary key)"); err != nil {
		t.Fatal(err)
	}

	workers := river.NewWorkers()
	river.AddWorker(workers, &greeter{work: func(ctx context.Context, args greetArgs) error {
		_, err := pool.Exec(ctx, "insert into greeting values ($1)", args.Name)
		return err
	}})
	client, err := river.NewClient(driver, &river.Config{
		Queues:  map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 2}},
		Workers: workers,
		Logger:  slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	completed, cancel := client.Subscribe(river.EventKindJobCompleted, river.EventKindJobFailed)
	defer cancel()
	if err := client.Start(ctx); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := client.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}()

	var id int64
	onPrimary(t, "insert into river_job(", func() error {
		inserted, err := client.Insert(ctx, greetArgs{"Ann"}, nil)
		if err != nil {
			return err
		}
		id = inserted.Job.ID
		return nil
	})
	// What went through Primary() shows in a read through the pool at once.
	var kind string
	if err := pool.QueryRow(ctx, "select kind from river_job where id = $1", id).Scan(&kind); err != nil || kind != "greet" {
		t.Errorf("right after it was inserted the job's kind is %q, %v", kind, err)
	}
	// A job belongs to the transaction that it is inserted in.
	undone := errors.New("undone")
	insert := func(name string, err error) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := client.InsertTx(ctx, tx, greetArgs{name}, nil); err != nil {
				return err
			}
			return err
		})
	}
	if err := insert("Bob", nil); err != nil {
		t.Error(err)
	}
	if err := insert("Carl", undone); !errors.Is(err, undone) {
		t.Error(err)
	}

	for range 2 {
		select {
		case event := <-completed:
			equal(t, "event", event.Kind, river.EventKindJobCompleted)
		case <-time.After(30 * time.Second):
			t.Fatal("a job was not worked")
		}
	}
	onReplica(t, pool, "from greeting", func() error {
		rows, err := pool.Query(ctx, "select name from greeting order by name")
		if err != nil {
			return err
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if len(names) != 2 || names[0] != "Ann" || names[1] != "Bob" {
			t.Errorf("greeted were %v", names)
		}
		return err
	})
	onReplica(t, pool, "from river_job where state = 'completed'", func() error {
		var n int
		err := pool.QueryRow(ctx, "select count(*) from river_job where state = 'completed'").Scan(&n)
		equal(t, "completed jobs", n, 2)
		return err
	})
	if err := client.Stop(ctx); err != nil {
		t.Error(err)
	}
	<-client.Stopped()
}
