package flyregion

import (
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flyregion/flyregion/internal/sqltext"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// settingPrefix begins the names of this package's settings in a connection string.
const settingPrefix = "fly_"

// settings are what a connection string may say, by name without the prefix.
var settings = map[string]func(c *Config, value string) error{
	"region":             func(c *Config, v string) error { return setRegion(&c.Region, &c.environment.region, v) },
	"primary_region":     func(c *Config, v string) error { return setRegion(&c.PrimaryRegion, &c.environment.primaryRegion, v) },
	"replica_regions":    func(c *Config, v string) error { c.ReplicaRegions = strings.Split(v, ","); return nil },
	"replica_hosts":      func(c *Config, v string) error { c.ReplicaHosts = strings.Split(v, ","); return nil },
	"balance":            func(c *Config, v string) error { c.Balance = Balance(v); return nil },
	"fallback":           func(c *Config, v string) error { return setReverse(&c.NoFallback, v) },
	"min_replica_wait":   func(c *Config, v string) error { return setDuration(&c.MinReplicaWait, v) },
	"max_replica_wait":   func(c *Config, v string) error { return setDuration(&c.MaxReplicaWait, v) },
	"max_replica_lag":    func(c *Config, v string) error { return setDuration(&c.MaxReplicaLag, v) },
	"discovery_interval": func(c *Config, v string) error { return setDuration(&c.DiscoveryInterval, v) },
	"await_writes":       func(c *Config, v string) error { return setBool(&c.AwaitWrites, v) },
	"simulate_replica":   func(c *Config, v string) error { return setBool(&c.SimulateReplica, v) },
}

// setRegion sets a region in place of that of the environment.
func setRegion(to *string, instead *variable, value string) error {
	if _, err := parseRegion(value); err != nil {
		return err
	}
	*to, *instead = value, variable{}
	return nil
}

func setDuration(to *time.Duration, value string) error {
	d, err := time.ParseDuration(value)
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 50ms", value)
	}
	*to = d
	return nil
}

func setBool(to *bool, value string) error {
	b, err := strconv.ParseBool(value)
	if err != nil {
		return fmt.Errorf("%q is neither true nor false", value)
	}
	*to = b
	return nil
}

func setReverse(to *bool, value string) error {
	err := setBool(to, value)
	*to = !*to
	return err
}

// ParseConfig builds a Config from connString, which takes all that [pgxpool.ParseConfig] takes and the settings of this
// package, and from the environment (FLY_REGION, MY_REGION, PRIMARY_REGION, FLY_APP_NAME and what pgx reads). The
// settings, each also a field of [Config]:
//
//   - fly_region: where this process runs
//   - fly_primary_region: where the writable server is
//   - fly_replica_regions: regions to read from, separated by commas, or auto for those that Fly's DNS tells
//   - fly_replica_hosts: replicas to read from where there are no regions, such as db2:5432,db3:5432
//   - fly_balance: local, random, round_robin, weighted or least_busy
//   - fly_fallback: false for reads that fail rather than run on the primary
//   - fly_min_replica_wait, fly_max_replica_wait: bounds of a read's wait, such as 10ms
//   - fly_max_replica_lag: how far behind a replica may be that is read from, such as 30s; 0 for no limit
//   - fly_discovery_interval: how often names of replicas are looked up, such as 5s
//   - fly_await_writes: true for writes that return when the replica has replayed them
//   - fly_simulate_replica: true for reads through read-only sessions on a single server
//
// They are not sent to the server. The environment is read only here. An error is a [*pgconn.ParseConfigError] that names the
// setting. [NewPoolWithConfig] checks whether the settings lead to a replica, because fields may be set before that.
func ParseConfig(connString string) (*Config, error) {
	template, err := pgxpool.ParseConfig(connString)
	if err != nil {
		return nil, err
	}

	c := &Config{
		Config:               template,
		AppName:              os.Getenv("FLY_APP_NAME"),
		Balance:              BalanceLocal,
		MinReplicaWait:       defaultMinReplicaWait,
		MaxReplicaWait:       defaultMaxReplicaWait,
		MaxReplicaLag:        defaultMaxReplicaLag,
		DiscoveryInterval:    defaultDiscoveryInterval,
		createdByParseConfig: true,
	}
	c.environment.region = firstVariable("FLY_REGION", "MY_REGION")
	c.environment.primaryRegion = firstVariable("PRIMARY_REGION")
	c.Region, c.PrimaryRegion = c.environment.region.value, c.environment.primaryRegion.value

	params := template.ConnConfig.RuntimeParams
	for _, name := range slices.Sorted(maps.Keys(params)) {
		if !isSetting(name) {
			continue
		}
		set, ok := settings[strings.TrimPrefix(name, settingPrefix)]
		if !ok {
			return nil, pgconn.NewParseConfigError(connString, fmt.Sprintf("unknown setting %s: want one of %s", name, settingNames()), nil)
		}
		if err := set(c, params[name]); err != nil {
			return nil, pgconn.NewParseConfigError(connString, "cannot parse "+name, err)
		}
		delete(params, name)
	}

	if err := c.normalize(); err != nil {
		return nil, pgconn.NewParseConfigError(connString, "wrong setting", err)
	}
	return c, nil
}

// isSetting reports whether a parameter is meant for this package. PostgreSQL takes no parameter of such a name.
func isSetting(name string) bool { return strings.HasPrefix(strings.ToLower(name), settingPrefix) }

func settingNames() string {
	var names []string
	for short := range settings {
		names = append(names, settingPrefix+short)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// normalize brings region codes into one form and refuses what contradicts itself.
func (c *Config) normalize() (err error) {
	if c.Region != "" {
		if c.Region, err = parseRegion(c.Region); err != nil {
			return fmt.Errorf("invalid %s: %w", nameOfRegion, err)
		}
	}
	if c.PrimaryRegion != "" {
		if c.PrimaryRegion, err = parseRegion(c.PrimaryRegion); err != nil {
			return fmt.Errorf("invalid %s: %w", nameOfPrimaryRegion, err)
		}
	}
	for i, region := range c.ReplicaRegions {
		if c.ReplicaRegions[i], err = parseRegion(region); err != nil {
			return fmt.Errorf("invalid %s: %w", nameOfReplicaRegions, err)
		}
		if slices.Contains(c.ReplicaRegions[:i], c.ReplicaRegions[i]) {
			return fmt.Errorf("invalid %s: %q is there twice", nameOfReplicaRegions, region)
		}
	}
	if err := c.checkReplicaConnStrings(); err != nil {
		return err
	}
	if err := c.checkReplicaHosts(); err != nil {
		return err
	}

	for _, name := range slices.Sorted(maps.Keys(c.Functions)) {
		if !sqltext.IsFunctionName(name) {
			return fmt.Errorf("invalid Functions: %q is not the name of a function in lower case, without a schema", name)
		}
		if access := c.Functions[name]; access != Read && access != Write {
			return fmt.Errorf("invalid Functions: %q is %d: want Read or Write", name, access)
		}
	}

	switch {
	case slices.Contains(c.ReplicaRegions, autoRegions) && len(c.ReplicaRegions) > 1:
		return fmt.Errorf("invalid %s: %q is in place of regions: want it alone, or regions", nameOfReplicaRegions, autoRegions)
	case c.auto() && !c.onFly():
		return fmt.Errorf("invalid %s: %q asks Fly's DNS: %s: want regions, or %s", nameOfReplicaRegions, autoRegions, c.notOnFly(), nameOfReplicaHosts)
	case len(c.ReplicaRegions) > 0 && c.PrimaryRegion == "":
		return fmt.Errorf("no %s, which %s %q need", nameOfPrimaryRegion, nameOfReplicaRegions, c.ReplicaRegions)
	case len(c.ReplicaConnStrings) > 0 && c.PrimaryRegion == "":
		return fmt.Errorf("no %s, which ReplicaConnStrings need", nameOfPrimaryRegion)
	case !slices.Contains(balances, c.Balance):
		return fmt.Errorf("invalid Balance (fly_balance): %q is unknown: want one of %q", c.Balance, balances)
	case len(c.ReplicaWeights) > 0 && c.Balance != BalanceWeighted:
		return fmt.Errorf("invalid ReplicaWeights: %v: they are for a Balance (fly_balance) of %q, and it is %q: want no weights, or that Balance",
			c.ReplicaWeights, BalanceWeighted, c.Balance)
	case c.MinReplicaWait < 0:
		return fmt.Errorf("invalid MinReplicaWait (fly_min_replica_wait): %v is negative: want 0 or more, such as 10ms", c.MinReplicaWait)
	case c.MaxReplicaWait <= 0:
		return fmt.Errorf("invalid MaxReplicaWait (fly_max_replica_wait): %v is not positive: want a time such as 1s", c.MaxReplicaWait)
	case c.DiscoveryInterval <= 0:
		return fmt.Errorf("invalid DiscoveryInterval (fly_discovery_interval): %v is not positive: want a time such as 5s", c.DiscoveryInterval)
	case c.MinReplicaWait > c.MaxReplicaWait:
		return fmt.Errorf("invalid MinReplicaWait (fly_min_replica_wait): %v is longer than MaxReplicaWait (fly_max_replica_wait) %v",
			c.MinReplicaWait, c.MaxReplicaWait)
	case c.MaxReplicaLag < 0:
		return fmt.Errorf("invalid MaxReplicaLag (fly_max_replica_lag): %v is negative: want a time such as 30s, or 0 for no limit", c.MaxReplicaLag)
	}
	if wrong := unwritable(c.ConnConfig.ValidateConnect); wrong != "" && (c.SimulateReplica || c.hasReplicas()) {
		return fmt.Errorf("target_session_attrs=%s contradicts a pool with replicas: it writes to the server that it is for: "+
			"want read-write or none", wrong)
	}
	if c.SimulateReplica && len(c.replicaRegions()) > 0 {
		return fmt.Errorf("invalid SimulateReplica (fly_simulate_replica): it is for one server, and Region (fly_region, FLY_REGION) %q has replicas", c.Region)
	}
	return nil
}

// ConnConfig parses connString as [ParseConfig] does and returns the configuration of a connection to the replica in region,
// for an app's own [pgx.Conn]. The hosts of a connection string without a Fly name are left as they are. An error is a
// [*pgconn.ParseConfigError].
func ConnConfig(connString, region string) (*pgx.ConnConfig, error) {
	c, err := ParseConfig(connString)
	if err != nil {
		return nil, err
	}
	config, _, err := c.replicaConfig(region)
	if err != nil {
		return nil, pgconn.NewParseConfigError(connString, "wrong setting", err)
	}
	return config.ConnConfig, nil
}

// primaryConfig returns the configuration of the primary's pool, without what the pool adds to it.
func (c *Config) primaryConfig() (*pgxpool.Config, error) {
	config := c.Config.Copy()
	c.nameApp(config)
	if dropsTo := config.ConnConfig.ValidateConnect; sessionAttrs(dropsTo) != "" {
		config.ConnConfig.ValidateConnect = nil
	}
	conn := &config.ConnConfig.Config
	if c.PrimaryRegion == "" { // with ReplicaHosts
		return config, nil
	}
	if err := pointAtPrimary(conn, c.PrimaryRegion); err != nil {
		return nil, err
	}
	explainLookups(conn, &c.ConnConfig.Config, c.PrimaryRegion, c.originOfPrimary())
	return config, nil
}

// replicaConfig returns the configuration of a replica's pool, without what the pool adds to it, and the target_session_attrs
// of a connection string in ReplicaConnStrings.
func (c *Config) replicaConfig(region string) (_ *pgxpool.Config, attrs string, err error) {
	config := c.Config.Copy()
	c.nameApp(config)
	conn := config.ConnConfig
	if sessionAttrs(conn.ValidateConnect) != "" {
		conn.ValidateConnect = nil
	}

	connString, named := c.ReplicaConnStrings[region]
	if !named {
		if _, err := pointAtReplica(&conn.Config, region); err != nil {
			return nil, "", err
		}
		explainLookups(&conn.Config, &c.ConnConfig.Config, region, c.originOf(region))
		return config, attrs, nil
	}

	other, err := pgxpool.ParseConfig(connString)
	if err != nil {
		return nil, "", err
	}
	for name := range other.ConnConfig.RuntimeParams {
		if isSetting(name) {
			return nil, "", fmt.Errorf("setting %s belongs in the pool's own connection string", name)
		}
	}
	conn.Host, conn.Port, conn.Fallbacks = other.ConnConfig.Host, other.ConnConfig.Port, other.ConnConfig.Fallbacks
	conn.TLSConfig, conn.SSLNegotiation = other.ConnConfig.TLSConfig, other.ConnConfig.SSLNegotiation
	switch attrs = sessionAttrs(other.ConnConfig.ValidateConnect); attrs {
	case "standby", "prefer-standby":
		conn.ValidateConnect = validateBoth(conn.ValidateConnect, other.ConnConfig.ValidateConnect)
	}
	conn.Database, conn.User, conn.Password = other.ConnConfig.Database, other.ConnConfig.User, other.ConnConfig.Password
	maps.Copy(conn.RuntimeParams, other.ConnConfig.RuntimeParams)
	return config, attrs, nil
}

// replicaHostsConfig returns the configuration of connections to the ReplicaHosts: those to the first host of the connection
// string, elsewhere.
func (c *Config) replicaHostsConfig() *pgxpool.Config {
	config := c.Config.Copy()
	c.nameApp(config)
	conn := config.ConnConfig
	if sessionAttrs(conn.ValidateConnect) != "" {
		conn.ValidateConnect = nil
	}
	var attempts []*pgconn.FallbackConfig
	for _, host := range c.ReplicaHosts {
		name, port, _ := splitHost(host, conn.Port) // checked by checkReplicaHosts
		for _, a := range connectAttempts(&conn.Config) {
			if a.Host == conn.Host && a.Port == conn.Port {
				attempts = append(attempts, attemptAt(a, name, port))
			}
		}
	}
	setConnectAttempts(&conn.Config, attempts)
	return config
}

// nameApp sets the application_name to AppName, if none is set.
func (c *Config) nameApp(config *pgxpool.Config) {
	params := config.ConnConfig.RuntimeParams
	if _, named := params["application_name"]; !named && c.AppName != "" {
		params["application_name"] = c.AppName
	}
}

// validators are the ValidateConnect functions that pgx sets for target_session_attrs. They are about the one server of the
// connection string, and this package has its own checks for the primary and the replicas.
var validators = map[uintptr]string{
	reflect.ValueOf(pgconn.ValidateConnectTargetSessionAttrsReadWrite).Pointer():     "read-write",
	reflect.ValueOf(pgconn.ValidateConnectTargetSessionAttrsReadOnly).Pointer():      "read-only",
	reflect.ValueOf(pgconn.ValidateConnectTargetSessionAttrsPrimary).Pointer():       "primary",
	reflect.ValueOf(pgconn.ValidateConnectTargetSessionAttrsStandby).Pointer():       "standby",
	reflect.ValueOf(pgconn.ValidateConnectTargetSessionAttrsPreferStandby).Pointer(): "prefer-standby",
}

// sessionAttrs returns the target_session_attrs that validate stands for, "" if it is the app's own function.
func sessionAttrs(validate pgconn.ValidateConnectFunc) string {
	if validate == nil {
		return ""
	}
	return validators[reflect.ValueOf(validate).Pointer()]
}

// unwritable returns the target_session_attrs that validate stands for if no primary satisfies it, else "".
func unwritable(validate pgconn.ValidateConnectFunc) string {
	if attrs := sessionAttrs(validate); attrs == "read-only" || attrs == "standby" {
		return attrs
	}
	return ""
}
