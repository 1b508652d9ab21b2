package flyregion

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// The settings of regions, as errors name them.
const (
	nameOfRegion         = "Region (fly_region, FLY_REGION, MY_REGION)"
	nameOfPrimaryRegion  = "PrimaryRegion (fly_primary_region, PRIMARY_REGION)"
	nameOfReplicaRegions = "ReplicaRegions (fly_replica_regions)"
	nameOfReplicaHosts   = "ReplicaHosts (fly_replica_hosts)"
)

// autoRegions is what [Config.ReplicaRegions] has in place of regions that Fly's DNS is to tell.
const autoRegions = "auto"

// auto reports whether the regions to read from are those that Fly's DNS tells.
func (c *Config) auto() bool { return len(c.ReplicaRegions) == 1 && c.ReplicaRegions[0] == autoRegions }

// hasReplicas reports whether the pool is more than one plain pgxpool.
func (c *Config) hasReplicas() bool {
	return len(c.ReplicaHosts) > 0 || len(c.replicaRegions()) > 0
}

// checkReplicaHosts refuses hosts of replicas that cannot be meant.
func (c *Config) checkReplicaHosts() error {
	if c.ReplicaHosts == nil {
		return nil
	}
	invalid := func(problem string, of ...any) error {
		return fmt.Errorf("invalid "+nameOfReplicaHosts+": "+problem, of...)
	}
	var seen []string
	for _, host := range c.ReplicaHosts {
		name, port, err := splitHost(host, c.ConnConfig.Port)
		if err != nil {
			return invalid("%w", err)
		}
		_, address := pgconn.NetworkAddress(normalHost(name), port)
		if slices.Contains(seen, address) {
			return invalid("%q is there twice", host)
		}
		seen = append(seen, address)
	}
	switch {
	case len(seen) == 0:
		return invalid(`it is empty: want hosts of replicas such as "db2:5432"`)
	case len(c.ReplicaRegions) > 0:
		return invalid("%q are for this process alone, and %s %q for several: want one of the two", c.ReplicaHosts, nameOfReplicaRegions, c.ReplicaRegions)
	case len(c.ReplicaConnStrings) > 0:
		return invalid("%q are for this process alone, and ReplicaConnStrings for several: want one of the two", c.ReplicaHosts)
	case c.SimulateReplica:
		return invalid("%q are replicas, and SimulateReplica (fly_simulate_replica) is for one server: want one of the two", c.ReplicaHosts)
	}
	return nil
}

// checkReplicaConnStrings refuses connection strings of replicas that no process would use.
func (c *Config) checkReplicaConnStrings() error {
	for _, region := range slices.Sorted(maps.Keys(c.ReplicaConnStrings)) {
		normal, err := parseRegion(region)
		switch {
		case err != nil:
			return fmt.Errorf("invalid ReplicaConnStrings: %w", err)
		case normal != region:
			return fmt.Errorf("invalid ReplicaConnStrings: %q is not a region code in lower case: want %q", region, normal)
		case strings.TrimSpace(c.ReplicaConnStrings[region]) == "":
			return fmt.Errorf("invalid ReplicaConnStrings: that of %q is empty: want a connection string of a replica", region)
		case len(c.ReplicaRegions) > 0 && !slices.Contains(c.ReplicaRegions, region):
			return fmt.Errorf("invalid ReplicaConnStrings: %q is none of %s %q: want it there too", region, nameOfReplicaRegions, c.ReplicaRegions)
		}
	}
	return nil
}

// checkReplicas refuses settings that were made on purpose and lead to no replica. Where the environment alone leads to
// none, one plain pool does.
func (c *Config) checkReplicas() error {
	connStrings := slices.Sorted(maps.Keys(c.ReplicaConnStrings))
	regionSet := c.Region != "" && !c.environment.region.gave(c.Region)
	primarySet := c.PrimaryRegion != "" && !c.environment.primaryRegion.gave(c.PrimaryRegion)

	switch {
	case len(c.ReplicaHosts) > 0:
		return nil
	case len(c.ReplicaRegions) > 0 && c.Region == "":
		return fmt.Errorf("no %s, which %s %q need: want where this process runs, or %q for one plain pool",
			nameOfRegion, nameOfReplicaRegions, c.ReplicaRegions, c.PrimaryRegion)
	case len(connStrings) > 0 && c.Region == "":
		return fmt.Errorf("no %s, which ReplicaConnStrings of %q need: want where this process runs, or %q for one plain pool",
			nameOfRegion, connStrings, c.PrimaryRegion)
	case regionSet && c.PrimaryRegion == "" && !c.SimulateReplica:
		return fmt.Errorf("no %s, which Region (fly_region) %q needs: want where the primary is, or %q for one plain pool",
			nameOfPrimaryRegion, c.Region, c.Region)
	case c.Region == "" || c.PrimaryRegion == "":
		return nil
	}

	for _, region := range c.regionsToRead() {
		_, named := c.ReplicaConnStrings[region]
		switch {
		case named:
		case len(c.ReplicaRegions) > 0 && !c.onFly():
			return fmt.Errorf("invalid %s: %q has no replica: %s: want its connection string in ReplicaConnStrings",
				nameOfReplicaRegions, region, c.notOnFly())
		case len(c.ReplicaRegions) == 0 && len(connStrings) > 0:
			return fmt.Errorf("invalid ReplicaConnStrings: those of %q have none of %s %q: want one, or %s to read from others",
				connStrings, nameOfRegion, region, nameOfReplicaRegions)
		case c.onFly() || c.SimulateReplica:
		case regionSet:
			return fmt.Errorf("invalid Region (fly_region): %q has no replica: %s: want its connection string in ReplicaConnStrings, "+
				"or Region %q for one plain pool", region, c.notOnFly(), c.PrimaryRegion)
		case primarySet:
			return fmt.Errorf("invalid PrimaryRegion (fly_primary_region): with %q this process reads from a replica in %s %q, which has none: %s: "+
				"want its connection string in ReplicaConnStrings, or PrimaryRegion %q for one plain pool",
				c.PrimaryRegion, nameOfRegion, region, c.notOnFly(), region)
		}
	}
	return nil
}

// regionsToRead returns the regions that a process reads from, its own one among those of Fly's DNS. In the primary's region
// it is at most this one, as the primary is nearer than all others.
func (c *Config) regionsToRead() []string {
	_, named := c.ReplicaConnStrings[c.Region]
	switch {
	case c.auto():
		return []string{c.Region}
	case c.Region == c.PrimaryRegion:
		if slices.Contains(c.ReplicaRegions, c.Region) || named && len(c.ReplicaRegions) == 0 {
			return []string{c.Region}
		}
		return nil
	case len(c.ReplicaRegions) > 0:
		return c.ReplicaRegions
	}
	return []string{c.Region}
}

// replicaRegions returns the regions to read from, none where one plain pool does.
func (c *Config) replicaRegions() []string {
	if c.Region == "" || c.PrimaryRegion == "" {
		return nil
	}
	var reachable []string
	for _, region := range c.regionsToRead() {
		if _, named := c.ReplicaConnStrings[region]; named || c.onFly() {
			reachable = append(reachable, region)
		}
	}
	if i := slices.Index(reachable, c.Region); i > 0 {
		reachable = slices.Insert(slices.Delete(reachable, i, i+1), 0, c.Region)
	}
	return reachable
}

// originOf says where a region to read from was taken from.
func (c *Config) originOf(region string) string {
	switch {
	case slices.Contains(c.ReplicaRegions, region) || c.auto():
		return fmt.Sprintf("%s %q", nameOfReplicaRegions, c.ReplicaRegions)
	case region != c.Region:
		return fmt.Sprintf("region %q", region)
	case c.environment.region.gave(region):
		return c.environment.region.name + "=" + region
	}
	return fmt.Sprintf("Region (fly_region) %q", region)
}

// originOfPrimary says where the primary's region was taken from.
func (c *Config) originOfPrimary() string {
	if c.environment.primaryRegion.gave(c.PrimaryRegion) {
		return c.environment.primaryRegion.name + "=" + c.PrimaryRegion
	}
	return fmt.Sprintf("PrimaryRegion (fly_primary_region) %q", c.PrimaryRegion)
}

// settingOf names the setting that a region to read from comes from.
func (c *Config) settingOf(region string) string {
	if _, named := c.ReplicaConnStrings[region]; named {
		return fmt.Sprintf("ReplicaConnStrings[%q]", region)
	}
	if len(c.ReplicaRegions) > 0 {
		return nameOfReplicaRegions
	}
	return nameOfRegion
}

// onFly reports whether a host is a name of Fly's private network, which leads to other regions too.
func (c *Config) onFly() bool {
	return slices.ContainsFunc(connectAttempts(&c.ConnConfig.Config), func(a *pgconn.FallbackConfig) bool {
		_, ok := flyApp(a.Host)
		return ok
	})
}

// notOnFly says why no host leads to replicas.
func (c *Config) notOnFly() string {
	var hosts []string
	for _, a := range connectAttempts(&c.ConnConfig.Config) {
		if host := visibleHost(a.Host); !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	switch {
	case isManagedPostgres(hosts[0]):
		return hosts[0] + " is Fly Managed Postgres"
	case len(hosts) == 1:
		return hosts[0] + " is no Fly name"
	default:
		return inWords(hosts) + " are no Fly names"
	}
}

// whyPlain says why one plain pool does.
func (c *Config) whyPlain() string {
	switch {
	case c.Region != "" && c.Region == c.PrimaryRegion:
		why := "this process runs in the primary's region " + c.Region
		switch {
		case len(c.ReplicaRegions) > 0:
			why += ", so that nothing is read from ReplicaRegions " + inWords(c.ReplicaRegions)
		case len(c.ReplicaConnStrings) > 0:
			why += ", so that nothing is read from ReplicaConnStrings of " + inWords(slices.Sorted(maps.Keys(c.ReplicaConnStrings)))
		}
		return why
	case !c.onFly():
		return c.notOnFly() + " and no replica is configured"
	case c.Region == "":
		return "no " + nameOfRegion + " is set"
	default:
		return "no " + nameOfPrimaryRegion + " is set"
	}
}

// inWords joins words with commas and an "and".
func inWords(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " and " + words[last]
}
