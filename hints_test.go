package flyregion

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/flyregion/flyregion/internal/sqltext"

	"github.com/jackc/pgx/v5"
)

// ormTags are the comments of an ORM and of sqlcommenter, which are no hints.
const ormTags = "/*controller='users',action='flyregion%3Aprimary',traceparent='00-5bd66ef5095369c7b0d1f8f4bd33716a-c532cb4098ac3dd2-01'*/"

// TestHints asks each way of running a text which server answered.
func TestHints(t *testing.T) {
	cluster := sharedCluster(t)
	ctx := t.Context()
	pool := poolIn(t, cluster, "ord")
	const (
		toPrimary = "/* flyregion:primary */"
		toReplica = "/* flyregion:replica */"
		refused   = readOnlySQL + " and true is not null"
		write     = readOnlySQL + " from pg_backend_pid()" // to Classify
	)
	pool.router.refused.addPermanent(sqltext.Shape(refused))
	for _, c := range []struct {
		ctx     context.Context
		sql     string
		replica bool
	}{
		{ctx, readOnlySQL, true},
		{ctx, toPrimary + readOnlySQL, false},
		{ctx, readOnlySQL + toPrimary, false},
		{ctx, "/*flyregion:primary*/ " + readOnlySQL + ";", false},
		{ctx, "\n/*\tflyregion:primary\n*/\n" + readOnlySQL, false},
		{ctx, strings.Replace(readOnlySQL, " ", toPrimary, 1), false},
		{ctx, ormTags + readOnlySQL, true},
		{ctx, readOnlySQL + ormTags, true},
		{ctx, ormTags + toPrimary + readOnlySQL, false},
		{ctx, toPrimary + " " + ormTags + " " + readOnlySQL, false},
		{ctx, readOnlySQL + " " + ormTags + " " + toPrimary, false},
		{ctx, readOnlySQL + toPrimary + ormTags, false},
		{ctx, "-- name: IsReplica :one\n" + toPrimary + "\n" + readOnlySQL + " -- by hand", false},
		{ctx, "/*+ SeqScan(t) */ " + readOnlySQL + " /* a /* nested */ comment */ " + toPrimary, false},
		{ctx, toReplica + readOnlySQL + toPrimary, false},
		{ctx, "-- " + toPrimary + "\n" + readOnlySQL, true},
		{ctx, "/* " + toPrimary + " */" + readOnlySQL, true},
		{ctx, "/* not flyregion:primary */" + readOnlySQL, true},
		{ctx, readOnlySQL + " and '" + toPrimary + "' <> ''", true},
		{ctx, readOnlySQL + " and $$" + toPrimary + "$$ <> ''", true},

		{ctx, toReplica + readOnlySQL, true},
		{ctx, write, false},
		{ctx, toReplica + write, true},
		{ctx, ormTags + write + ormTags + toReplica, true},
		{ctx, refused, false},
		{ctx, toReplica + refused, true},

		{WithPrimary(ctx), toReplica + readOnlySQL, false},
		{WithReplica(ctx), toPrimary + readOnlySQL, true},
	} {
		if err := pool.WaitReplayed(ctx); err != nil {
			t.Fatal(err)
		}
		for name, ask := range map[string]func() (bool, error){
			"QueryRow": func() (replica bool, err error) {
				return replica, pool.QueryRow(c.ctx, c.sql).Scan(&replica)
			},
			"QueryRow, simple": func() (replica bool, err error) {
				return replica, pool.QueryRow(c.ctx, c.sql, pgx.QueryExecModeSimpleProtocol).Scan(&replica)
			},
			"Query": func() (bool, error) {
				rows, err := pool.Query(c.ctx, c.sql)
				if err != nil {
					return false, err
				}
				return pgx.CollectExactlyOneRow(rows, pgx.RowTo[bool])
			},
			"Exec": func() (bool, error) {
				r := pool.router.route(c.ctx, c.sql, nil)
				_, err := pool.Exec(c.ctx, c.sql)
				return r.to == targetReplica, err
			},
		} {
			if replica, err := ask(); err != nil || replica != c.replica {
				t.Errorf("%s: the replica answers: %v, %v, want %v: %s", name, replica, err, c.replica, c.sql)
			}
		}
	}

	for _, c := range []struct {
		texts   []string
		replica bool
	}{
		{[]string{"select 1", readOnlySQL}, true},
		{[]string{"select 1" + toPrimary, readOnlySQL}, false},
		{[]string{toReplica + "select 1", ormTags + toPrimary + readOnlySQL}, false},
		{[]string{refused, readOnlySQL}, false},
		{[]string{refused + toReplica, readOnlySQL}, true},
	} {
		var replica bool
		results := pool.SendBatch(ctx, batchOf(c.texts...))
		_, err := results.Exec()
		err = errors.Join(err, results.QueryRow().Scan(&replica), results.Close())
		if err != nil || replica != c.replica {
			t.Errorf("the replica answers: %v, %v, want %v: %q", replica, err, c.replica, c.texts)
		}
	}

	// A hint never makes a write fail, or run twice.
	name := table(t, cluster, "id int")
	if tag, err := pool.Exec(ctx, toReplica+"insert into "+name+" values (1)"); err != nil || tag.RowsAffected() != 1 {
		t.Errorf("%v, %v", tag, err)
	}
	var n int
	if err := pool.QueryRow(ctx, "select count(*) from "+name).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d rows, %v", n, err)
	}

	// An argument that the replica used up would be missing on the primary.
	for _, sql := range []string{"insert into " + name + " values ($1)", "select $1"} {
		if r := pool.router.route(ctx, toReplica+sql, []any{strings.NewReader("1")}); r.to != targetPrimary {
			t.Errorf("with an argument to be read once %s goes to the %s", sql, r.to)
		}
	}

	// Where there is one server it is a comment like others.
	one := poolIn(t, cluster, "nrt")
	for _, hint := range []string{toPrimary, toReplica} {
		if replicaServes(t, ctx, one) || one.QueryRow(ctx, hint+"select 1").Scan(&n) != nil {
			t.Errorf("%s on one server", hint)
		}
	}
}
