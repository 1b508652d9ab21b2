package compat

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	"github.com/flyregion/flyregion"
	"github.com/jmoiron/sqlx"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

type gormOwner struct {
	ID   uint
	Name string `gorm:"uniqueIndex"`
	Pets []gormPet
}

type gormPet struct {
	ID          uint
	GormOwnerID uint
	Name        string
}

func TestGORM(t *testing.T) {
	pool := newPool(t)
	ctx := t.Context()
	own := flyregion.OpenDB(pool)
	defer own.Close()
	db, err := gorm.Open(postgres.New(postgres.Config{Conn: own}), &gorm.Config{Logger: logger.Discard, TranslateError: true})
	if err != nil {
		t.Fatal(err)
	}
	db = db.WithContext(ctx)
	onPrimary(t, "create table \"gorm_owners\"", func() error { return db.AutoMigrate(&gormOwner{}, &gormPet{}) })
	// It asks what is there already.
	if err := db.AutoMigrate(&gormOwner{}, &gormPet{}); err != nil {
		t.Errorf("again: %v", err)
	}

	owner := gormOwner{Name: "Jon", Pets: []gormPet{{Name: "Garfield"}, {Name: "Odie"}}}
	onPrimary(t, "insert into \"gorm_pets\"", func() error { return db.Create(&owner).Error })
	find := func() error {
		var found gormOwner
		err := db.Preload("Pets").First(&found, "name = ?", "Jon").Error
		equal(t, "pets", len(found.Pets), 2)
		equal(t, "id", found.ID, owner.ID)
		return err
	}
	if err := find(); err != nil {
		t.Errorf("right after it was created: %v", err)
	}
	onReplica(t, pool, "from \"gorm_pets\"", find)
	if err := db.Create(&gormOwner{Name: "Jon"}).Error; !errors.Is(err, gorm.ErrDuplicatedKey) {
		t.Errorf("a second owner of that name: %v", err)
	}
	if err := db.First(&gormOwner{}, "name = ?", "nobody").Error; !errors.Is(err, gorm.ErrRecordNotFound) {
		t.Errorf("nobody: %v", err)
	}

	onPrimary(t, "update \"gorm_owners\"", func() error {
		return db.Transaction(func(tx *gorm.DB) error {
			if err := tx.Model(&owner).Update("name", "John").Error; err != nil {
				return err
			}
			undone := errors.New("undone")
			err := tx.Transaction(func(tx *gorm.DB) error {
				return errors.Join(undone, tx.Delete(&gormPet{}, "true").Error)
			})
			if !errors.Is(err, undone) {
				return err
			}
			var n int64
			err = tx.Model(&gormPet{}).Count(&n).Error
			equal(t, "pets in the transaction", n, 2)
			return err
		})
	})
	var found gormOwner
	if err := db.First(&found, owner.ID).Error; err != nil || found.Name != "John" {
		t.Errorf("after the transaction it is %v, %v", found, err)
	}
	onReplica(t, pool, "count(*) FROM \"gorm_owners\"", func() error {
		return db.Transaction(func(tx *gorm.DB) error {
			var n int64
			err := tx.Model(&gormOwner{}).Count(&n).Error
			equal(t, "owners", n, 1)
			return err
		}, &sql.TxOptions{ReadOnly: true})
	})
	prepared := db.Session(&gorm.Session{PrepareStmt: true})
	for range 2 {
		onReplica(t, pool, "FROM \"gorm_pets\" WHERE name", func() error { return prepared.Find(&[]gormPet{}, "name = ?", "Odie").Error })
		onPrimary(t, "UPDATE \"gorm_pets\"", func() error {
			return prepared.Model(&gormPet{}).Where("name = ?", "Odie").Update("name", "Odie").Error
		})
	}
	if p, ok := prepared.ConnPool.(*gorm.PreparedStmtDB); ok {
		p.Close()
	}
	onPrimary(t, "for update", func() error {
		return db.Raw("select * from gorm_pets for update").Scan(&[]gormPet{}).Error
	})
}

func TestSQLX(t *testing.T) {
	type fish struct {
		ID   int
		Name string
	}
	pool := newPool(t)
	ctx := t.Context()
	db := sqlx.NewDb(flyregion.OpenDB(pool), "pgx")
	defer db.Close()
	onPrimary(t, "create table sqlx_fish", func() error {
		_, err := db.ExecContext(ctx, "create table sqlx_fish (id int generated always as identity primary key, name text)")
		return err
	})
	onPrimary(t, "insert into sqlx_fish", func() error {
		result, err := db.NamedExecContext(ctx, "insert into sqlx_fish (name) values (:name)", []fish{{Name: "Nemo"}, {Name: "Dory"}})
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		equal(t, "rows", n, 2)
		return err
	})
	list := func() error {
		var all []fish
		err := db.SelectContext(ctx, &all, "select * from sqlx_fish order by id")
		equal(t, "number of fish", len(all), 2)
		return err
	}
	if err := list(); err != nil {
		t.Errorf("right after they were inserted: %v", err)
	}
	onReplica(t, pool, "select * from sqlx_fish order", list)
	onReplica(t, pool, "sqlx_fish where id in", func() error {
		query, args, err := sqlx.In("select name from sqlx_fish where id in (?)", []int{1, 2})
		if err != nil {
			return err
		}
		var names []string
		err = db.SelectContext(ctx, &names, db.Rebind(query), args...)
		equal(t, "names", len(names), 2)
		return err
	})
	if err := db.GetContext(ctx, &fish{}, "select * from sqlx_fish where id = -1"); !errors.Is(err, sql.ErrNoRows) {
		t.Errorf("none: %v", err)
	}
	onPrimary(t, "update sqlx_fish", func() error {
		tx, err := db.BeginTxx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		stmt, err := tx.PrepareNamedContext(ctx, "update sqlx_fish set name = :name where id = :id")
		if err != nil {
			return err
		}
		if _, err := stmt.ExecContext(ctx, fish{1, "Marlin"}); err != nil {
			return err
		}
		return tx.Commit()
	})
	var f fish
	if err := db.GetContext(ctx, &f, "select * from sqlx_fish where id = 1"); err != nil || f.Name != "Marlin" {
		t.Errorf("after the transaction it is %v, %v", f, err)
	}
}

// TestEnt uses what the code that ent generates uses: its SQL driver and its query builder.
func TestEnt(t *testing.T) {
	pool := newPool(t)
	ctx := t.Context()
	driver := entsql.OpenDB(dialect.Postgres, flyregion.OpenDB(pool))
	defer driver.Close()
	onPrimary(t, "create table ent_bird", func() error {
		return driver.Exec(ctx, "create table ent_bird (id int generated always as identity primary key, name text)", []any{}, nil)
	})
	builder := entsql.Dialect(dialect.Postgres)
	onPrimary(t, "insert into \"ent_bird\"", func() error {
		query, args := builder.Insert("ent_bird").Columns("name").Values("Tweety").Returning("id").Query()
		var rows entsql.Rows
		if err := driver.Query(ctx, query, args, &rows); err != nil {
			return err
		}
		defer rows.Close()
		id, err := entsql.ScanInt(&rows)
		equal(t, "id", id, 1)
		return err
	})
	name := func(ctx context.Context, q dialect.ExecQuerier) (string, error) {
		query, args := builder.Select("name").From(entsql.Table("ent_bird")).Where(entsql.EQ("id", 1)).Query()
		var rows entsql.Rows
		if err := q.Query(ctx, query, args, &rows); err != nil {
			return "", err
		}
		defer rows.Close()
		return entsql.ScanString(&rows)
	}
	if got, err := name(ctx, driver); err != nil || got != "Tweety" {
		t.Errorf("right after it was inserted it is %q, %v", got, err)
	}
	onReplica(t, pool, "from \"ent_bird\"", func() error {
		_, err := name(ctx, driver)
		return err
	})
	onPrimary(t, "update \"ent_bird\"", func() error {
		tx, err := driver.Tx(ctx)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		query, args := builder.Update("ent_bird").Set("name", "Woody").Query()
		if err := tx.Exec(ctx, query, args, nil); err != nil {
			return err
		}
		got, err := name(ctx, tx)
		equal(t, "name in the transaction", got, "Woody")
		return errors.Join(err, tx.Commit())
	})
	onReplica(t, pool, "from \"ent_bird\"", func() error {
		tx, err := driver.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
		if err != nil {
			return err
		}
		defer tx.Rollback()
		got, err := name(ctx, tx)
		equal(t, "name", got, "Woody")
		return err
	})
}
