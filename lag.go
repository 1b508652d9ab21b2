package flyregion

import (
	"context"
	"strconv"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
)

// lagSQL asks a standby how far it has replayed, and how old the last transaction that it replayed is if it has more to
// replay. On a server that is no standby both are as if it had replayed everything.
const lagSQL = `select coalesce(pg_catalog.pg_last_wal_replay_lsn(), '0/0'), ` +
	`case when pg_catalog.pg_last_wal_receive_lsn() is distinct from pg_catalog.pg_last_wal_replay_lsn() ` +
	`then coalesce(extract(epoch from pg_catalog.clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp()), 0) else 0 end, ` +
	`pg_catalog.pg_is_in_recovery()`

// measureLag returns how far each replica is behind the primary. It asks all servers at the same time, and leaves out the
// replicas that do not answer. If the primary does not answer it returns nil.
func measureLag(ctx context.Context, p *primary, replicas []*replica) []lag {
	ctx, cancel := context.WithTimeout(ctx, watcherTimeout)
	defer cancel()

	var (
		wg      sync.WaitGroup
		flushed LSN
		found   = make([]replicaLag, len(replicas))
	)
	wg.Go(func() {
		if state, err := p.currentFlush(ctx); err == nil {
			flushed = state.position
		}
	})
	for i, r := range replicas {
		wg.Go(func() { found[i] = r.measureLag(ctx) })
	}
	wg.Wait()
	if flushed == 0 {
		return nil
	}

	var lags []lag
	for i, l := range found {
		if !l.ok {
			continue
		}
		behind := int64(0)
		if l.recovering && flushed > l.replayed {
			behind = int64(flushed - l.replayed)
		}
		lags = append(lags, lag{region: replicas[i].region, endpoint: replicas[i].endpoint(), bytes: behind, seconds: l.seconds})
	}
	return lags
}

// replicaLag is what one replica has reported. It is worth something only if ok is true.
type replicaLag struct {
	replayed   LSN
	seconds    float64
	recovering bool
	ok         bool
}

// measureLag asks the replica on the watcher's connection, so that it takes none of the app's.
func (r *replica) measureLag(ctx context.Context) (l replicaLag) {
	err := r.tracker.use(ctx, func(conn *pgconn.PgConn) error {
		row, err := oneRow(ctx, conn, lagSQL)
		if err != nil {
			return err
		}
		if l.replayed, err = ParseLSN(string(row[0])); err != nil {
			return err
		}
		l.recovering = string(row[2]) == "t"
		l.seconds, err = strconv.ParseFloat(string(row[1]), 64)
		return err
	})
	l.ok = err == nil
	return l
}
