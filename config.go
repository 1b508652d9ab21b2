package flyregion

import (
	"context"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Config is the configuration of a [Pool]. It must be made by [ParseConfig] and can then be modified.
type Config struct {
	// Config is the template of every server's pool: its limits, hooks, tracer, TLS, DialFunc and LookupFunc hold for
	// the primary and for each replica, and each of them has MaxConns connections of its own.
	*pgxpool.Config

	// Region is where this process runs, such as "ord". The default is fly_region in the connection string, then the
	// environment variable FLY_REGION, then MY_REGION, which is for processes outside of Fly. When it is empty, or the same
	// as PrimaryRegion, the pool is one plain pgxpool, unless there are ReplicaHosts or replicas in this region.
	Region string

	// PrimaryRegion is where the writable server is. The default is fly_primary_region in the connection string, then
	// the environment's PRIMARY_REGION. When it is empty the pool is one plain pgxpool, unless there are ReplicaHosts.
	//
	// If the two regions lead to no replica and both come from the environment, the pool is one plain pgxpool. If the
	// connection string or the app has set one of them, NewPoolWithConfig returns an error. It also returns one if Region was
	// set in this way and there is no PrimaryRegion. A field that is set to the environment's value counts as the
	// environment's.
	PrimaryRegion string

	// ReplicaRegions are the regions to read from, in order of preference. The default is fly_replica_regions in the
	// connection string, separated by commas, then the Region alone. NewPoolWithConfig returns an error if one of them has
	// neither a Fly name nor a connection string in ReplicaConnStrings, or if there is no Region.
	//
	// All processes of an app can have the same. One in the primary's region reads from the replicas in this region if it is
	// among them, and from no others. The primary is then one of the servers that it reads from, as its region's name leads
	// to it too. A process in the primary's region is one plain pgxpool if the region is not among them.
	//
	// The word "auto" in place of regions stands for those where the database has Machines, as Fly's DNS tells
	// (https://fly.io/docs/networking/private-networking/): the Region first, then by measured round trip. It needs a Fly
	// name. The answer is asked for again every DiscoveryInterval.
	ReplicaRegions []string

	// ReplicaHosts are the replicas to read from where there are no regions, as with RDS, Patroni or Kubernetes: names or
	// addresses, each with a port if it is not that of the connection string, such as "db2:5432". All of them are as good as
	// each other. A name may have several addresses. All else is as the connection string says it for its first host. The
	// default is fly_replica_hosts in the connection string, separated by commas. They cannot be combined with ReplicaRegions
	// and ReplicaConnStrings, and need neither Region nor PrimaryRegion.
	ReplicaHosts []string

	// LookupTXTFunc looks up TXT records for ReplicaRegions "auto", as [net.Resolver.LookupTXT] does, which is the default.
	LookupTXTFunc func(ctx context.Context, name string) ([]string, error)

	// ReplicaConnStrings are connection strings of replicas by region, for clusters that are not on Fly. Of each only
	// the servers, the user, the password, the database, TLS and run-time parameters are used, and target_session_attrs if
	// it is standby or prefer-standby. A region without one is reached under its Fly name.
	//
	// A host name may have several addresses, and a connection string several hosts. Each of them is a replica. Addresses of one
	// name that turn out to lead to the same server, as those of localhost do, are read from as one.
	//
	// If there are ReplicaRegions, each region here must be one of them. If there are none, Region must be one of the regions
	// here or the PrimaryRegion, and the others are for processes of the app that run there. Otherwise NewPoolWithConfig
	// returns an error.
	ReplicaConnStrings map[string]string

	// AppName is the application_name of a pool with replicas, unless the connection string or the environment (PGAPPNAME)
	// sets one. The default is the environment's FLY_APP_NAME.
	AppName string

	// Balance says which of several replicas a read goes to. The default is fly_balance in the connection string, then
	// BalanceLocal.
	Balance Balance

	// ReplicaWeights are the weights of replicas for BalanceWeighted, by region ("ord"), by host ("db2.example.com"), or by host
	// and port ("db2.example.com:5433"). The most exact one counts. Each server that a host leads to has it. A replica without
	// one has weight 1. No read goes to a replica of weight 0. NewPoolWithConfig returns an error if a weight is negative, is
	// for a region or host that is not read from, or if all are 0. The default is none.
	ReplicaWeights map[string]int

	// Balancer chooses among replicas in place of Balance. Balance chooses if the Balancer panics or returns no index of a
	// candidate, which [Stat.BalancerMistakes] counts. The default is none.
	Balancer Balancer

	// NoFallback keeps reads off the primary. A read that a replica cannot serve or run, or that it loses before the first row,
	// then runs on another replica. If none can serve it, it waits and fails as under [WithReplica]: with the replica's error,
	// or after MaxReplicaWait with an [ErrReplicaLag]. What a replica refuses as a write still runs on the primary, and so does what
	// the catalog cannot be asked about. The default is the reverse of fly_fallback in the connection string, then false.
	NoFallback bool

	// MinReplicaWait and MaxReplicaWait bound the time that a read waits for the replica to replay what its session
	// wrote, before it goes to the primary. Between them this time is the measured round trip to the primary: a longer
	// wait is slower than the primary. Under [WithReplica] it is MaxReplicaWait. MaxReplicaWait is also the longest that a
	// read waits for a connection to a replica. It must be more than 0. The defaults are fly_min_replica_wait and
	// fly_max_replica_wait in the connection string, then 10 ms and 1 s.
	//
	// A MinReplicaWait of 0 is for a primary that is so near that it answers before a replica has replayed a write, and for
	// reads that should be fast rather than spare the primary. A read then does not wait at all if the wait is expected to
	// be longer than the primary's answer, and runs on the primary. What is expected is measured all the time: waits for
	// the replica, and answers of both. For 50 ms after a session's last write its reads may then all run on the primary, and
	// so does the next one, from which the position of that write is learned. The reason in spans and metrics is
	// primary_sooner. Nothing of this changes what a read sees.
	MinReplicaWait time.Duration
	MaxReplicaWait time.Duration

	// DiscoveryInterval is how often the names of replicas are looked up again while the pool is in use, so that servers that
	// join are read from and servers that leave are let go. They are also looked up when a replica could not be reached. A
	// lookup that fails changes nothing. A LookupFunc of the embedded config is used if the app has set one. It must be more
	// than 0. The default is fly_discovery_interval in the connection string, then 5 s.
	DiscoveryInterval time.Duration

	// MaxReplicaLag is how far behind a replica may be that reads run on, also those that need no position ([WithoutWait], or a
	// session that has not written). One that is further behind is left alone until it has caught up, and if all are the
	// primary reads. The reason in spans and metrics is replica_behind. Under [WithReplica] such a read fails with an
	// [ErrReplicaLag]. The default is fly_max_replica_lag in the connection string, then 30 s. 0 means no limit.
	//
	// A replica is too far behind if it has not replayed all that it has received and the last transaction that it has replayed
	// was committed longer ago, or if its WAL receiver has been gone that long. While reads are made it is asked every
	// second, or four times in the limit if that is shorter, on a connection beside the pool's. A read that comes when it has not
	// been asked for longer than the limit asks first, which is a round trip to the replica.
	//
	// The age of a transaction is measured by the primary's clock, which this process knows once it has been connected to the
	// primary. Until then the replica's clock stands in for it, so that the difference of the two counts as lag. Such an age alone
	// makes no replica count as too far behind that has replayed what it had received when it was asked before. A link that
	// drops packets is noticed by the standby after its wal_receiver_timeout, which is a minute by default.
	//
	// The limit holds while the primary can be reached. A primary that is down ends the WAL receivers of its standbys. When
	// all replicas are too far behind and the primary has not answered anything for a second, a read tries to connect to it
	// first, for 5 s at most. If that fails, reads run on the replicas, also under [WithReplica], until the primary answers
	// again. They see what their session has written. A replica that lacks that does not serve them.
	MaxReplicaLag time.Duration

	// AwaitWrites makes each write return only when all replicas that this process reads from have replayed it, or after
	// MaxReplicaWait. A replica that cannot be reached is not waited for. Other processes that read there then see the write
	// too. Without AwaitWrites only reads wait. The default is fly_await_writes in the connection string, then false.
	AwaitWrites bool

	// SimulateReplica makes a pool on a single server send its reads through a second pool to the same server, whose
	// sessions are read-only, so that an app gets a replica's refusals during development. It cannot be combined with
	// regions that have replicas. The default is fly_simulate_replica in the connection string, then false.
	SimulateReplica bool

	// Functions says what calls of the app's own functions are: Write if they have to run on the primary, Read if not. The
	// names are in lower case and without a schema. It overrides what the package itself and the database's catalog know
	// of a name. A function that is not in it is a Write if the catalog has a VOLATILE function of its name, and else a
	// Read. VOLATILE is PostgreSQL's default. Declare a function STABLE if it only reads, as PostgreSQL's manual asks: then
	// reads that call it run on the replica. The catalog is asked every minute, and when this pool has changed the
	// schema. The default is none.
	Functions map[string]Access

	// Telemetry says where spans and metrics go.
	Telemetry Telemetry

	// environment has the regions that ParseConfig has found in the environment, if the connection string says nothing of
	// them. Any other value of Region and PrimaryRegion was set on purpose.
	environment struct{ region, primaryRegion variable }

	createdByParseConfig bool
}

const (
	defaultMinReplicaWait = 10 * time.Millisecond
	defaultMaxReplicaWait = time.Second
	defaultMaxReplicaLag  = 30 * time.Second

	defaultDiscoveryInterval = 5 * time.Second
)

// Copy returns a deep copy of the config that is safe to use and modify. As with [pgxpool.Config.Copy], the TLS
// configurations are shared in what crypto/tls says must not be modified.
func (c *Config) Copy() *Config {
	copied := *c
	copied.Config = c.Config.Copy()
	copied.ReplicaRegions = slices.Clone(c.ReplicaRegions)
	copied.ReplicaHosts = slices.Clone(c.ReplicaHosts)
	copied.ReplicaConnStrings = maps.Clone(c.ReplicaConnStrings)
	copied.ReplicaWeights = maps.Clone(c.ReplicaWeights)
	copied.Functions = maps.Clone(c.Functions)
	return &copied
}

// variable is a variable of the environment.
type variable struct{ name, value string }

// firstVariable returns the first variable of names that is not empty.
func firstVariable(names ...string) (v variable) {
	for _, name := range names {
		if v = (variable{name, os.Getenv(name)}); v.value != "" {
			break
		}
	}
	return v
}

// gave reports whether region is the variable's. It is not if region is empty.
func (v variable) gave(region string) bool {
	return region != "" && strings.EqualFold(strings.TrimSpace(v.value), region)
}
