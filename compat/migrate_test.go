package compat

import (
	"context"
	"testing"
	"testing/fstest"

	"github.com/flyregion/flyregion"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/tern/v2/migrate"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

func TestGoose(t *testing.T) {
	pool := newPool(t)
	ctx := t.Context()
	db := flyregion.OpenDB(pool)
	defer db.Close()
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		t.Fatal(err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, fstest.MapFS{
		"1_dog.sql":  {Data: []byte("-- +goose Up\ncreate table goose_dog (id int primary key);\n-- +goose Down\ndrop table goose_dog;")},
		"2_name.sql": {Data: []byte("-- +goose Up\nalter table goose_dog add name text;\ninsert into goose_dog values (1, 'Rex');\n-- +goose Down\ndelete from goose_dog;\nalter table goose_dog drop name;")},
		"3_index.sql": {Data: []byte("-- +goose NO TRANSACTION\n-- +goose Up\ncreate index concurrently goose_dog_name on goose_dog (name);\n" +
			"-- +goose Down\ndrop index concurrently goose_dog_name;")},
	}, goose.WithSessionLocker(locker))
	if err != nil {
		t.Fatal(err)
	}
	onPrimary(t, "create table goose_dog", func() error {
		results, err := provider.Up(ctx)
		equal(t, "migrations", len(results), 3)
		return err
	})
	// The replica need not have the table yet, nor the row.
	var name string
	if err := pool.QueryRow(ctx, "select name from goose_dog where id = 1").Scan(&name); err != nil || name != "Rex" {
		t.Errorf("right after the migration the name is %q, %v", name, err)
	}
	if version, err := provider.GetDBVersion(ctx); err != nil || version != 3 {
		t.Errorf("version %d, %v", version, err)
	}
	status, err := provider.Status(ctx)
	if err != nil || len(status) != 3 || status[2].State != goose.StateApplied {
		t.Errorf("status %v, %v", status, err)
	}
	onReplica(t, pool, "select name from goose_dog", func() error {
		return pool.QueryRow(ctx, "select name from goose_dog where id = 1").Scan(&name)
	})
	onPrimary(t, "drop index concurrently goose_dog_name", func() error {
		_, err := provider.DownTo(ctx, 1)
		return err
	})
	if results, err := provider.Up(ctx); err != nil || len(results) != 2 {
		t.Errorf("again: %v, %v", results, err)
	}
}

func TestTern(t *testing.T) {
	pool := newPool(t)
	ctx := t.Context()
	version := func(want int32) {
		t.Helper()
		var got int32
		if err := pool.QueryRow(ctx, "select version from tern_version").Scan(&got); err != nil || got != want {
			t.Errorf("version %d, %v, want %d", got, err, want)
		}
	}
	err := pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		migrator, err := migrate.NewMigrator(ctx, conn.Conn(), "public.tern_version")
		if err != nil {
			return err
		}
		migrator.AppendMigration("owl", "create table tern_owl (id int primary key); insert into tern_owl values (1)", "drop table tern_owl")
		migrator.AppendMigration("name", "alter table tern_owl add name text default 'Hedwig'", "alter table tern_owl drop name")
		onPrimary(t, "create table tern_owl", func() error { return migrator.Migrate(ctx) })
		version(2)
		onPrimary(t, "alter table tern_owl drop name", func() error { return migrator.MigrateTo(ctx, 1) })
		version(1)
		onPrimary(t, "alter table tern_owl add name", func() error { return migrator.MigrateTo(ctx, 2) })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	read := func() error {
		var name string
		err := pool.QueryRow(ctx, "select name from tern_owl").Scan(&name)
		equal(t, "name", name, "Hedwig")
		return err
	}
	if err := read(); err != nil {
		t.Errorf("right after the migration: %v", err)
	}
	onReplica(t, pool, "select name from tern_owl", read)

	// A connection of the pool that is kept, as tern's command would, is one to the primary.
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	own := conn.Hijack()
	defer own.Close(context.Background())
	migrator, err := migrate.NewMigrator(ctx, own, "public.tern_version")
	if err != nil {
		t.Fatal(err)
	}
	if v, err := migrator.GetCurrentVersion(ctx); err != nil || v != 2 {
		t.Errorf("version %d, %v", v, err)
	}
}
