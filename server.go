package flyregion

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
)

// serverID tells one run of one server from every other: the time its postmaster started, in microseconds since 1970.
// Addresses cannot do that, as Fly's proxy and DNS lead one name to many machines. A crash of a backend leaves the
// postmaster and so the serverID as they were, but closes every connection.
type serverID int64

// report is what a server says about itself.
type report struct {
	server     serverID
	recovering bool // a standby
	readOnly   bool // refuses writes by default: a standby, or a demoted primary, which Fly sets read-only
	replayed   LSN  // how far a standby has replayed; what it had replayed last if it was promoted
	received   LSN  // how far it has received the log, or replayed if that is further
	timeline   int  // of the log: a primary's, or a standby's at its last restartpoint, which may be behind
	version    int  // server_version_num, such as 150018
}

// reportSQL works on PostgreSQL 10 and newer and needs no privilege.
const reportSQL = `select (extract(epoch from pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint, ` +
	`pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only'), ` +
	`coalesce(pg_catalog.pg_last_wal_replay_lsn(), '0/0'), pg_catalog.current_setting('server_version_num'), ` +
	`coalesce(greatest(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn()), '0/0'), ` +
	`case when pg_catalog.pg_is_in_recovery() then (select timeline_id from pg_catalog.pg_control_checkpoint()) ` +
	`else ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int end`

// askReport asks the server at the other end of conn about itself.
func askReport(ctx context.Context, conn *pgconn.PgConn) (report, error) {
	row, err := oneRow(ctx, conn, reportSQL)
	if err != nil {
		return report{}, err
	}
	return parseReport(row)
}

// preparedReport is the name of reportSQL on a connection that asks often: planning takes the server longer than the
// rest.
const preparedReport = "flyregion_report"

func prepareReport(ctx context.Context, conn *pgconn.PgConn) error {
	_, err := conn.Prepare(ctx, preparedReport, reportSQL, nil)
	return err
}

// askPrepared is askReport on a connection that prepareReport was called for. The server runs sql before it answers, if
// that is not empty.
func askPrepared(ctx context.Context, conn *pgconn.PgConn, sql string) (report, error) {
	p := conn.StartPipeline(ctx)
	if sql != "" {
		p.SendQueryParams(sql, nil, nil, nil, nil)
	}
	p.SendQueryPrepared(preparedReport, nil, nil, nil)
	err := p.Sync()
	var last *pgconn.Result
	for err == nil {
		var results any
		if results, err = p.GetResults(); err != nil {
			break
		}
		reader, ok := results.(*pgconn.ResultReader)
		if !ok {
			break // the sync
		}
		last = reader.Read()
		err = last.Err
	}
	if closeErr := p.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return report{}, err
	}
	if last == nil || len(last.Rows) != 1 {
		return report{}, errors.New("flyregion: the server did not answer a report with one row")
	}
	return parseReport(last.Rows[0])
}

func parseReport(row [][]byte) (report, error) {
	if len(row) != 7 {
		return report{}, fmt.Errorf("flyregion: a report of %d columns, want 7", len(row))
	}
	started, err := strconv.ParseInt(string(row[0]), 10, 64)
	if err != nil {
		return report{}, fmt.Errorf("flyregion: pg_postmaster_start_time: %w", err)
	}
	replayed, err := ParseLSN(string(row[3]))
	if err != nil {
		return report{}, err
	}
	received, err := ParseLSN(string(row[5]))
	if err != nil {
		return report{}, err
	}
	timeline, err := strconv.Atoi(string(row[6]))
	if err != nil {
		return report{}, fmt.Errorf("flyregion: timeline: %w", err)
	}
	version, err := strconv.Atoi(string(row[4]))
	if err != nil {
		return report{}, fmt.Errorf("flyregion: server_version_num: %w", err)
	}
	return report{
		server:     serverID(started),
		recovering: string(row[1]) == "t",
		readOnly:   string(row[2]) == "on",
		replayed:   replayed,
		received:   received,
		timeline:   timeline,
		version:    version,
	}, nil
}

// oneRow runs a query of this package's own and returns the row of its last statement.
func oneRow(ctx context.Context, conn *pgconn.PgConn, sql string) ([][]byte, error) {
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) == 0 || len(results[len(results)-1].Rows) != 1 {
		return nil, fmt.Errorf("flyregion: the server did not answer one row to %q", sql)
	}
	return results[len(results)-1].Rows[0], nil
}
