package flyregion

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// begin starts a transaction on a replica.
func (rd *reads) begin(ctx context.Context, rt *route, options pgx.TxOptions) (pgx.Tx, error) {
	tx, read, err := onReplica(ctx, rd, rt, plainConns, "", func(conn *pgxpool.Conn) (pgx.Tx, error) {
		return conn.BeginTx(ctx, options)
	})
	if err != nil || rt.to == targetPrimary {
		return nil, err
	}
	return &replicaTx{Tx: tx, replicaRead: read}, nil
}

// replicaTx is a read-only transaction on a replica.
type replicaTx struct {
	pgx.Tx
	replicaRead[*pgxpool.Conn]
}

// Commit commits the transaction and gives its connection back.
func (tx *replicaTx) Commit(ctx context.Context) error {
	err := tx.Tx.Commit(ctx)
	tx.release()
	return err
}

// Rollback rolls the transaction back and gives its connection back.
func (tx *replicaTx) Rollback(ctx context.Context) error {
	err := tx.Tx.Rollback(ctx)
	tx.release()
	return err
}
