package compat

import (
	"testing"

	"github.com/flyregion/flyregion"
	"github.com/georgysavva/scany/v2/pgxscan"
	"github.com/jackc/pgx/v5"
)

var _ pgxscan.Querier = (*flyregion.Pool)(nil)

func TestScany(t *testing.T) {
	type cat struct {
		ID   int
		Name string
	}
	pool := newPool(t)
	ctx := t.Context()
	onPrimary(t, "create table scany_cat", func() error {
		_, err := pool.Exec(ctx, "create table scany_cat (id int generated always as identity primary key, name text)")
		return err
	})
	var c cat
	onPrimary(t, "insert into scany_cat", func() error {
		return pgxscan.Get(ctx, pool, &c, "insert into scany_cat (name) values ($1) returning id, name", "Tom")
	})
	var got cat
	if err := pgxscan.Get(ctx, pool, &got, "select * from scany_cat where id = $1", c.ID); err != nil || got != c {
		t.Errorf("right after it was inserted it is %v, %v", got, err)
	}
	onReplica(t, pool, "select id, name from scany_cat", func() error {
		var all []*cat
		err := pgxscan.Select(ctx, pool, &all, "select id, name from scany_cat order by id")
		equal(t, "number of cats", len(all), 1)
		return err
	})
	onReplica(t, pool, "select name from scany_cat", func() error {
		var name string
		equal(t, "not found", pgxscan.NotFound(pgxscan.Get(ctx, pool, &name, "select name from scany_cat where id = -1")), true)
		return nil
	})
	onPrimary(t, "update scany_cat", func() error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "update scany_cat set name = 'Felix'"); err != nil {
				return err
			}
			err := pgxscan.Get(ctx, tx, &got, "select * from scany_cat limit 1")
			equal(t, "name in the transaction", got.Name, "Felix")
			return err
		})
	})
	rows, err := pool.Query(ctx, "select * from scany_cat")
	if err != nil {
		t.Fatal(err)
	}
	if err := pgxscan.ScanOne(&got, rows); err != nil || got.Name != "Felix" {
		t.Errorf("after the transaction it is %v, %v", got, err)
	}
}
