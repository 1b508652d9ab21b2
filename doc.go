// Package flyregion makes one pool of PostgreSQL connections span the regions of a Fly.io Postgres cluster, or of any
// primary with streaming replicas. Reads run on the replica beside the app, writes on the primary, and a read never
// misses a write that this process has made.
//
//	pool, err := flyregion.NewPool(ctx, os.Getenv("DATABASE_URL")) // was pgxpool.New
//
// A [Pool] has the methods of [github.com/jackc/pgx/v5/pgxpool.Pool]. Where the process runs, and where the primary is,
// comes from Fly's environment; without it, and in the primary's region, a Pool is one plain pgxpool.
//
// # How a read knows what it must see
//
// PostgreSQL numbers the bytes of its write-ahead log. Each write brings back the position ([LSN]) at which it committed,
// in its own round trip: the question for it leaves in the same packet, behind the statement. A read then waits until
// the replica has replayed that position, for as long as that can be faster than asking the primary, and otherwise goes
// to the primary. It never returns something older.
//
// The whole process is one session by default. [WithSession] narrows what a read must see to what one user or request
// wrote, [WithoutWait] drops it, [WithPrimary] and [WithReplica] choose the server, and [Config.AwaitWrites] makes the
// writes wait and not the reads.
//
// # What a write costs
//
// A write takes one round trip, as it does with pgx on the same connection. The first use of a text on a connection costs
// what it costs with pgx: one trip more in pgx.QueryExecModeCacheStatement, which is the default, and in
// QueryExecModeCacheDescribe, for the server has to be asked for the types of the parameters before they can be encoded;
// all new texts of a batch share that trip. QueryExecModeDescribeExec pays it every time, QueryExecModeExec and
// QueryExecModeSimpleProtocol never do. BEGIN leaves with the first statement of its transaction, so that one of one
// statement takes two trips.
//
// # What runs where
//
// [Classify] says whether a statement reads or writes, by its text; what it does not know goes to the primary. So does a
// call of a function that the database's catalog says is VOLATILE, as a function may catch a replica's refusal: declare
// those that only read STABLE, and they stay local. The name
// of a statement that the config's AfterConnect prepares is taken for the text that it stands for. A read
// that the replica refuses (a function that writes), cannot run (a conflict with replay, a table that is not replayed
// yet) or loses (a broken connection) runs on the primary, unseen, as long as no row of it was delivered. Transactions
// run on the primary, but for read-only ones. Nothing is ever written twice.
package flyregion
