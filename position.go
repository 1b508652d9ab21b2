package flyregion

import (
	"strconv"

	"github.com/flyregion/flyregion/internal/piggyback"
)

// positionSQL asks the primary for its flush and insert positions and its identity. It is sent right behind the statement,
// so that the server runs it after the commit, and it costs no round trip. A standby answers it with an error.
const positionSQL = `select pg_catalog.pg_current_wal_flush_lsn(), pg_catalog.pg_current_wal_insert_lsn(), ` +
	`pg_catalog.current_setting('synchronous_commit'), ` +
	`(extract(epoch from pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint, ` +
	`pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), ` +
	`pg_catalog.current_setting('transaction_read_only')`

// wroteSQL asks in the statement's own transaction whether that has written anything, which the SQL does not tell for sure,
// and whether it commits asynchronously, which SET LOCAL or a function may have changed.
const wroteSQL = `select pg_catalog.txid_current_if_assigned() is not null, pg_catalog.current_setting('synchronous_commit')`

// asyncSQL stands in for wroteSQL if the statement is a write by its SQL. The server does not have to plan it.
const asyncSQL = `show synchronous_commit`

var (
	positionMessage = piggyback.Query(positionSQL)
	wroteMessages   = piggyback.Unnamed(wroteSQL)
	asyncMessages   = piggyback.Unnamed(asyncSQL)
)

// positionOfAnswer reads the answer to positionSQL. ok is false if it is not one.
func positionOfAnswer(row piggyback.Row) (p position, a primaryAnswer, ok bool) {
	if row.Len != 6 || len(row.Columns[4]) < 8 {
		return position{}, primaryAnswer{}, false
	}
	var errs [4]error
	var server, timeline int64
	p.flush, errs[0] = ParseLSN(row.Columns[0])
	p.insert, errs[1] = ParseLSN(row.Columns[1])
	server, errs[2] = strconv.ParseInt(row.Columns[3], 10, 64)
	timeline, errs[3] = strconv.ParseInt(row.Columns[4][:8], 16, 64)
	if errs != [4]error{} {
		return position{}, primaryAnswer{}, false
	}
	p.origin = serverID(server)
	return p, primaryAnswer{
		server: p.origin, timeline: int(timeline), async: row.Columns[2] == "off", readOnly: row.Columns[5] == "on",
	}, true
}

// primaryAnswer is the answer to positionSQL without the position.
type primaryAnswer struct {
	server   serverID
	timeline int
	async    bool // the session commits asynchronously
	readOnly bool // the transaction is read-only, as on a primary that was demoted
}
