package flyregion

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// clock orders what happens in this process: each number that is drawn from it is higher than all before. Wall time cannot
// do that, as it may stand still or jump.
var clock atomic.Uint64

// customDataKey is where a connection's CustomData has its *primaryConn or *replicaConn.
const customDataKey = "github.com/flyregion/flyregion"

// serverID identifies one run of one server: the time its postmaster started, in microseconds since 1970. Addresses cannot
// do that, as Fly's proxy and DNS lead one name to many machines. A crash of a backend does not change the serverID, but it
// closes every connection.
type serverID int64

// report is a server's answer to reportSQL. It is immutable once it was parsed.
type report struct {
	asked  uint64        // when the question was sent, by this process's clock
	at     time.Time     // likewise, by this machine's clock
	took   time.Duration // until the answer was there; 0 if the server was asked to wait
	server serverID
	// system identifies the cluster: a primary, its standbys and copies of them have the same. It is 0 if the role may not
	// see it.
	system     uint64
	recovering bool // a standby
	readOnly   bool // transaction_read_only, which is on for every transaction on a standby
	// readOnlyDefault is default_transaction_read_only, which keeps the session read-only when its server is promoted.
	readOnlyDefault bool
	pooled          bool // a pooler is in between, and may run each transaction in another session

	// position is the replay position of a standby, and the flush position of any other server.
	position LSN
	// received is the end of what a standby has received of the log. It is 0 from the start of the standby until it streams.
	received LSN
	// timeline is that of a primary's log. A standby's log is of this timeline or a newer one; of exactly this one if it
	// streams and the role may see that. It is 0 if the role may not see it.
	timeline int
	// wallTime is what the server's clock showed.
	wallTime serverTime
	// committed is when the last transaction that a standby has replayed was committed, by the clock of its primary. It is 0
	// if the standby has replayed none since it was started.
	committed serverTime
	// streams says that a standby's WAL receiver streams, or just that it runs if the role may not see more. It is true for any
	// other server.
	streams bool
	version int // server_version_num, such as 150018
}

// serverTime is a time in microseconds since 1970, by the clock of one server. Those of two machines differ.
type serverTime int64

// clockReading is what the clock of a server showed when it was asked.
type clockReading struct {
	shown serverTime
	at    time.Time // when the question was sent, by this machine's clock
}

// when returns what the server's clock shows at a time of this machine, at the latest.
func (c *clockReading) when(now time.Time) serverTime {
	return c.shown + serverTime(elapsed(c.at, now).Microseconds())
}

// since returns the time from one time of a server to another.
func (t serverTime) since(earlier serverTime) time.Duration {
	return max(time.Duration(t-earlier)*time.Microsecond, 0)
}

// reportSQL works on PostgreSQL 10 and newer. A standby's position is read before its timeline, so that the timeline holds
// for all that comes before the position. What the WAL receiver does is read in one call, as the receiver may end between
// two. For roles without the privileges of pg_read_all_stats all of it is null but the pid. The control file is updated at
// the next restartpoint.
const (
	reportSQL = reportStart +
		`case when pg_catalog.pg_is_in_recovery() then greatest(` +
		`(select timeline_id from pg_catalog.pg_control_checkpoint()), ` +
		`(select min_recovery_end_timeline from pg_catalog.pg_control_recovery())) ` +
		`else ` + primaryTimeline + ` end, ` +
		`(select system_identifier from pg_catalog.pg_control_system()), ` +
		`(select case when status = 'streaming' then received_tli when status is null and pid is not null then ` + hiddenTimeline +
		` else ` + noReceiver + ` end from pg_catalog.pg_stat_get_wal_receiver())`

	// unprivilegedReportSQL is for a role that may not call the functions of reportSQL.
	unprivilegedReportSQL = reportStart +
		`case when pg_catalog.pg_is_in_recovery() then 0 else ` + primaryTimeline + ` end, 0, ` + hiddenTimeline

	// These stand for the timeline that a standby streams where there is none to see.
	hiddenTimeline = "0"
	noReceiver     = "-1"

	reportStart = `select (extract(epoch from pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint, ` +
		`pg_catalog.current_setting('server_version_num'), ` +
		`pg_catalog.pg_backend_pid(), ` +
		`pg_catalog.current_setting('transaction_read_only'), ` +
		`pg_catalog.current_setting('default_transaction_read_only'), ` +
		`pg_catalog.pg_is_in_recovery(), ` +
		`coalesce(case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn() ` +
		`else pg_catalog.pg_current_wal_flush_lsn() end, '0/0'), ` +
		`coalesce(pg_catalog.pg_last_wal_receive_lsn(), '0/0'), ` +
		`(extract(epoch from pg_catalog.clock_timestamp()) * 1000000)::bigint, ` +
		`coalesce((extract(epoch from pg_catalog.pg_last_xact_replay_timestamp()) * 1000000)::bigint, 0), `

	primaryTimeline = `('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int`
)

// askReport asks the server at the other end of conn about itself.
func askReport(ctx context.Context, conn *pgconn.PgConn) (report, error) {
	r, err := ask(ctx, conn, reportSQL)
	if err != nil && isRefused(err) {
		return ask(ctx, conn, unprivilegedReportSQL)
	}
	return r, err
}

func ask(ctx context.Context, conn *pgconn.PgConn, sql string) (report, error) {
	asked, at := clock.Add(1), time.Now()
	row, err := oneRow(ctx, conn, sql)
	if err != nil {
		return report{}, err
	}
	r, err := parseReport(row, asked, at, conn)
	r.took = time.Since(at)
	return r, err
}

// isRefused reports whether the role may not call a function, or the server does not have it.
func isRefused(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	switch pgErr.Code {
	case "42501", "42883", "0A000":
		return true
	}
	return false
}

// preparedReport is the name of the prepared statement on a connection that asks often: planning takes the server longer
// than all else.
const preparedReport = "flyregion_report"

// prepareReport prepares the SQL that r is the answer to.
func prepareReport(ctx context.Context, conn *pgconn.PgConn, r *report) error {
	sql := reportSQL
	if r.system == 0 {
		sql = unprivilegedReportSQL
	}
	_, err := conn.Prepare(ctx, preparedReport, sql, nil)
	return err
}

// askPrepared is askReport on a connection that prepareReport was called for. The server runs sql before it answers, if
// that is not empty.
func askPrepared(ctx context.Context, conn *pgconn.PgConn, sql string) (report, error) {
	asked, at := clock.Add(1), time.Now()
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
	r, err := parseReport(last.Rows[0], asked, at, conn)
	if sql == "" {
		r.took = time.Since(at)
	}
	return r, err
}

func parseReport(row [][]byte, asked uint64, at time.Time, conn *pgconn.PgConn) (r report, err error) {
	const columns = 13
	if len(row) != columns {
		return report{}, fmt.Errorf("flyregion: a report of %d columns, want %d", len(row), columns)
	}
	number := func(column int, name string) (n int64) {
		if err == nil {
			if n, err = strconv.ParseInt(string(row[column]), 10, 64); err != nil {
				err = fmt.Errorf("flyregion: %s: %w", name, err)
			}
		}
		return n
	}
	position := func(column int) (l LSN) {
		if err == nil {
			l, err = ParseLSN(string(row[column]))
		}
		return l
	}
	r = report{
		asked:           asked,
		at:              at,
		server:          serverID(number(0, "pg_postmaster_start_time")),
		version:         int(number(1, "server_version_num")),
		pooled:          uint32(number(2, "pg_backend_pid")) != conn.PID(),
		readOnly:        string(row[3]) == "on",
		readOnlyDefault: string(row[4]) == "on",
		recovering:      string(row[5]) == "t",
		position:        position(6),
		received:        position(7),
		wallTime:        serverTime(number(8, "clock_timestamp")),
		committed:       serverTime(number(9, "pg_last_xact_replay_timestamp")),
		timeline:        int(number(10, "timeline")),
		system:          uint64(number(11, "system_identifier")),
	}
	streamed := int(number(12, "received_tli"))
	r.streams = !r.recovering || streamed >= 0
	if r.recovering {
		r.timeline = max(r.timeline, streamed)
	}
	if r.received > 0 {
		// A standby that begins to stream reports the beginning of a WAL file, which may be before its replay position.
		r.received = max(r.received, r.position)
	}
	return r, err
}

// identity identifies a primary, and has what it first reported to this process. It is immutable.
type identity struct {
	server   serverID
	system   uint64
	timeline int
	flushed  LSN    // the flush position in its first report
	since    uint64 // when that report had been received, by this process's clock
	// formerly are the system identifiers of other clusters that the pool's primary was of before, as before an upgrade
	// with pg_upgrade.
	formerly []uint64
}

// mayHaveBeen reports whether a system identifier other than the primary's may stand for its cluster: because one of them is
// not known, or as the primary was of that cluster before. i is nil if the primary is not known.
func (i *identity) mayHaveBeen(system uint64) bool {
	switch {
	case i == nil:
		return true
	case i.system == system:
		return false
	}
	return i.system == 0 || system == 0 || slices.Contains(i.formerly, system)
}

// identityOf returns the identity of a primary that a report has just been received from. It is the current one if the
// primary is the same.
func identityOf(current *identity, r *report) *identity {
	if current != nil && current.server == r.server && current.system == r.system && current.timeline == r.timeline {
		return current
	}
	next := &identity{server: r.server, system: r.system, timeline: r.timeline, flushed: r.position, since: clock.Add(1)}
	if current != nil {
		next.formerly = current.formerly
		if old := current.system; old != 0 && old != r.system && !slices.Contains(next.formerly, old) {
			next.formerly = append(slices.Clip(next.formerly), old)
		}
	}
	return next
}

// validateBoth returns a ValidateConnect that calls the app's own, if there is one, and then ours. pgx connects to a server
// that the app's own does not prefer where there is no other, so ours sees that too.
func validateBoth(theirs, ours pgconn.ValidateConnectFunc) pgconn.ValidateConnectFunc {
	if theirs == nil {
		return ours
	}
	return func(ctx context.Context, conn *pgconn.PgConn) error {
		notPreferred := theirs(ctx, conn)
		if _, ok := notPreferred.(*pgconn.NotPreferredError); notPreferred != nil && !ok {
			return notPreferred
		}
		if err := ours(ctx, conn); err != nil {
			return err
		}
		return notPreferred
	}
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

// expired reports whether the deadline of limited has passed, which was made from ctx, and ctx has not ended. The error of
// limited may be set a moment later.
func expired(ctx, limited context.Context) bool {
	ours, limits := limited.Deadline()
	if theirs, set := ctx.Deadline(); !limits || set && !ours.Before(theirs) {
		return false
	}
	return ctx.Err() == nil && !time.Now().Before(ours)
}

// inRegion names a replica by its region, which is "" for [Config.ReplicaHosts] of a process that has none.
func inRegion(region string) string {
	if region == "" {
		return "replica"
	}
	return "replica in " + region
}

// noAnswerError returns the error of who has waited for a replica's answer for as long as this package does.
func noAnswerError(region string, waited time.Duration, cause error) error {
	return fmt.Errorf("flyregion: %s did not answer within %v: %w", inRegion(region), waited, cause)
}
