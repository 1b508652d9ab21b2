// Package flyregion makes one pool of PostgreSQL connections span the regions of a Fly.io Postgres cluster, or of any
// primary with streaming replicas. Reads run on the replica beside the app, writes on the primary, and a read never
// misses a write that this process has made.
//
//	pool, err := flyregion.NewPool(ctx, os.Getenv("DATABASE_URL")) // was pgxpool.New
//
// A [Pool] has the methods of [github.com/jackc/pgx/v5/pgxpool.Pool]. Where the process runs, and where the primary is,
// comes from Fly's environment. Without that environment, and in the primary's region, a Pool is one plain pgxpool unless
// replicas are configured there. [Pool.Describe] says which servers a pool uses, and why.
//
// # How a read knows what it must see
//
// PostgreSQL numbers the bytes of its write-ahead log. Each write brings back the position ([LSN]) at which it committed,
// in its own round trip: the question for it leaves in the same packet, behind the statement. A read then waits until
// the replica has replayed that position. It waits only as long as that can be faster than asking the primary, and then
// goes to the primary. It never returns anything older.
//
// The whole process is one session by default. [WithSession] narrows what a read must see to what one user or request
// wrote, [WithoutWait] drops it, [WithMaxLag] and [WithFresh] widen it to what other processes wrote, [WithPrimary] and
// [WithReplica] choose the server, and [Config.AwaitWrites] makes writes wait instead of reads.
//
// A replica that is further behind than [Config.MaxReplicaLag] serves no read, also none that needs no position, while the
// primary can be reached. While it cannot, reads go on to run on the replicas. [WithMaxLag] has a limit of its own.
//
// # Several replicas
//
// Each address that a host's name has is a replica, with a pool of its own. While the Pool is used, the names are looked up again
// every [Config.DiscoveryInterval] and when a replica could not be reached: servers that join are read from, and those that leave
// are let go. [Config.Balance] says which of several replicas a read goes to. One that shows what the read has to see comes
// before one that does not, and a read waits only if none does, for whichever does first. [Pool.Replicas] tells the state of each.
//
// A read that no replica can serve runs on the primary, unless there is [Config.NoFallback].
//
// # What a write costs
//
// A write takes one round trip, as it does with pgx on the same connection. The first use of a statement on a connection
// costs what it costs with pgx. That is one round trip more in pgx.QueryExecModeCacheStatement, which is the default, and in
// QueryExecModeCacheDescribe, because the server is asked for the types of the parameters before they are encoded. All new
// statements of a batch share it. QueryExecModeDescribeExec pays it every time.
// QueryExecModeExec and QueryExecModeSimpleProtocol never pay it. Nobody waits for the answer to BEGIN: a transaction of one statement takes two
// round trips.
//
// # What runs where
//
// [Classify] says whether a statement reads or writes. What it does not know goes to the primary. So does a call of a
// function that the database's catalog says is VOLATILE, because a function may catch a replica's refusal. Declare a
// function STABLE if it only reads: then calls of it run on the replica. The name of a prepared statement counts as its SQL.
//
// A read moves to the primary if the replica refuses it (a function that writes), cannot run it (a conflict with replay, a
// lock, a table that is not replayed yet) or loses it (a broken connection), as long as no row of it was delivered.
// Transactions run on the primary, except read-only ones. Nothing is ever written twice.
//
// # After a failover
//
// A standby may have replayed what the new primary never had. It is read from only if it belongs to the primary's cluster
// and shows that it is on the primary's timeline. A role with the privileges of pg_read_all_stats sees that at once. Any
// other role sees it after the standby's next restartpoint. Until then reads go to the primary.
//
// # Spans and metrics
//
// [Stat.Statements] counts what was sent to which server, and why. With OpenTelemetry (see [Telemetry]) there are also:
//
//	span flyregion.forward           a statement, batch or transaction on the primary
//	  flyregion.operation            exec, query, batch, begin, copy or prepare
//	  flyregion.reason               why it is there, see below
//	  flyregion.region               the replica that it came from, if it came from one
//	  event exception                the error that made it leave that replica
//	span flyregion.replica_wait      a read that waited for a replica to replay its session's writes
//	  flyregion.region               the replica
//	  flyregion.lsn.required         the position of the session's last write
//	  flyregion.lsn.found            the replica's position at the end
//	  flyregion.lag.bytes            the bytes between them
//	  flyregion.outcome              replayed, fell_back, refused (WithReplica) or context_ended
//	flyregion.statements             counter, by flyregion.target and flyregion.reason
//	flyregion.replica_wait.duration  histogram in seconds, by flyregion.region and flyregion.outcome
//	flyregion.replica.lag.bytes      gauge, by flyregion.region, server.address and server.port; the servers are asked when it is read
//	flyregion.replica.lag.seconds    gauge, likewise: the age of the last replayed transaction, 0 if all is replayed
//
// The target is primary or replica, and the reasons are:
//
//	read                 it reads
//	write                it writes, or it is not known to read
//	transaction          it is a transaction that may write
//	asked                the context or a comment in the SQL says so
//	position_unknown     the position of the session's last write is not known, or the primary's under WithFresh and WithMaxLag
//	primary_sooner       the primary was expected to answer before the replica shows the session's writes
//	replica_lag          the replica did not replay the session's writes in time, or under WithFresh everybody's
//	replica_behind       the replica is further behind than Config.MaxReplicaLag or WithMaxLag allows
//	replica_unreachable  there is no connection to a replica
//	replica_refused      the replica took it for a write, now or before
//	replica_lost         the connection broke, or the replica ended it
//	replica_conflict     replay canceled it, or held a lock for too long
//	replica_missing      a table or another object is not on the replica yet
//	replica_broken       the replica lacks a file, space or memory, or its copy is corrupt
//	catalog_unknown      the catalog could not be asked whether a function is VOLATILE
//	argument_used_once   an argument could not be sent to a second server
package flyregion
