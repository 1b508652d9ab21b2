package flyregion

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
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

// splitHost returns the name and the port of one of [Config.ReplicaHosts]: "db2", "db2:5432", an address, or the folder of a
// socket.
func splitHost(host string, defaultPort uint16) (name string, port uint16, err error) {
	if isLiteral(host) || isHostName(host) {
		return host, defaultPort, nil
	}
	name, text, err := net.SplitHostPort(host)
	if err != nil || !isLiteral(name) && !isHostName(name) {
		return "", 0, fmt.Errorf(`%q is not a host: want a name or an address, and a port if it is not that of the primary, such as "db2:5432"`, host)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q has the port %q: want 1 to 65535", host, text)
	}
	return name, uint16(n), nil
}

// normalHost returns the form of a host that other ways to write it have too.
func normalHost(name string) string {
	if address, err := netip.ParseAddr(name); err == nil {
		return address.String()
	}
	if isLiteral(name) {
		return name // the folder of a socket
	}
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// isHostName reports whether s can be the name of a host.
func isHostName(s string) bool {
	return s != "" && !slices.ContainsFunc(strings.Split(strings.TrimSuffix(s, "."), "."), func(label string) bool { return !isDNSLabel(label) })
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

// hostsToRead returns the hosts that the replicas of regions are found by, in the order in which they are read from, the
// reserves last.
func (c *Config) hostsToRead(regions []string) (hosts []*replicaHost, err error) {
	defer func() {
		for _, h := range hosts {
			h.weight = c.weightOf(h)
		}
	}()
	if len(c.ReplicaHosts) > 0 {
		return hostsOf(c.Region, c.replicaHostsConfig(), ""), nil
	}
	var reserves []*replicaHost
	for _, region := range regions {
		config, attrs, err := c.replicaConfig(region)
		if err != nil {
			return nil, fmt.Errorf("invalid %s: %w", c.settingOf(region), err)
		}
		for _, h := range hostsOf(region, config, attrs) {
			switch {
			case h.reserve && region == c.PrimaryRegion:
				// The nearest replica of all is no nearer than the primary.
			case !h.reserve:
				hosts = append(hosts, h)
			case !slices.ContainsFunc(reserves, func(o *replicaHost) bool { return o.name == h.name && o.port == h.port }):
				reserves = append(reserves, h)
			}
		}
	}
	return append(hosts, reserves...), nil
}

// weightNames returns the names by which ReplicaWeights may mean a host, the most exact one last.
func weightNames(h *replicaHost) []string {
	return []string{h.region, h.name, net.JoinHostPort(h.name, strconv.Itoa(int(h.port)))}
}

// weightOf returns a host's weight.
func (c *Config) weightOf(h *replicaHost) int {
	if !h.reserve {
		for _, name := range slices.Backward(weightNames(h)) {
			if weight, ok := c.ReplicaWeights[name]; ok {
				return weight
			}
		}
	}
	return 1
}

// checkWeights refuses weights with which nothing could be read from hosts, and weights for nobody.
func (c *Config) checkWeights(hosts []*replicaHost) error {
	var known []string
	total := 0
	for _, h := range hosts {
		if !h.reserve {
			known = append(known, weightNames(h)...)
			total += h.weight
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.ReplicaWeights)) {
		switch weight := c.ReplicaWeights[name]; {
		case !slices.Contains(known, name) && !(c.auto() && isFlyRegion(name)):
			slices.Sort(known)
			return fmt.Errorf("invalid ReplicaWeights: %q is no region or host that is read from: want one of %q", name, slices.Compact(known))
		case weight < 0 || weight > maxWeight:
			return fmt.Errorf("invalid ReplicaWeights: %q has weight %d: want 0 to %d", name, weight, maxWeight)
		}
	}
	if total == 0 && !c.auto() {
		return fmt.Errorf("invalid ReplicaWeights: %v: all replicas have weight 0: want 1 or more for one of them", c.ReplicaWeights)
	}
	return nil
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

// addresses names the servers that c leads to. Fly's nearest Machine of all is left out: it is for a region without one.
func addresses(c *pgconn.Config) string {
	var all []string
	for i, a := range connectAttempts(c) {
		_, address := pgconn.NetworkAddress(visibleHost(a.Host), a.Port)
		if !slices.Contains(all, address) && (i == 0 || !strings.HasPrefix(address, nearestOf)) {
			all = append(all, address)
		}
	}
	return strings.Join(all, " or ")
}

// inWords joins words with commas and an "and".
func inWords(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " and " + words[last]
}

// describe says which servers a pool reads from and writes to.
func describe(c *Config, p *primary, rs *replicas) string {
	switch {
	case rs == nil:
		return "one plain pool: " + c.whyPlain()
	case c.SimulateReplica:
		return "one server, " + addresses(&c.ConnConfig.Config) + ": reads in read-only sessions (SimulateReplica), writes in others"
	}
	reads := rs.describe()
	var from string
	switch {
	case len(reads) == 1:
		from = reads[0]
	case c.Balancer != nil:
		from = inWords(reads) + " as the app's Balancer chooses"
	case c.Balance == BalanceRandom:
		from = inWords(reads) + " at random"
	case c.Balance == BalanceWeighted:
		from = inWords(reads) + " in turn by weight"
	case c.Balance == BalanceLeastBusy:
		from = inWords(reads) + ", where a read is expected to end first"
	case c.Balance == BalanceRoundRobin:
		from = inWords(reads) + " in turn"
	default:
		from = strings.Join(reads, ", else on ")
	}
	if c.NoFallback {
		from += " only"
	}
	return "reads on " + from + ", writes on " + addresses(&p.pool.Config().ConnConfig.Config)
}

// describe says for each region which hosts reads go to, how many replicas were found there, and whether one of them has
// turned out to be none. Those of weight 0 and aliases are left out, and Fly's nearest Machine of all, which is for a region
// without one.
func (rs *replicas) describe() (regions []string) {
	list := slices.DeleteFunc(slices.Clone(rs.list()), func(r *replica) bool { return r.host.reserve || r.host.weight == 0 || r.isAlias() })
	for len(list) > 0 {
		rest := slices.IndexFunc(list, func(r *replica) bool { return r.region != list[0].region })
		if rest < 0 {
			rest = len(list)
		}
		regions = append(regions, describeRegion(list[:rest]))
		list = list[rest:]
	}
	return regions
}

func describeRegion(list []*replica) string {
	var hosts []string
	for _, r := range list {
		if host := addresses(&r.host.config.ConnConfig.Config); !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	text := inWords(hosts) + " (replica"
	if len(list) > 1 {
		text = fmt.Sprintf("%s (%d replicas", inWords(hosts), len(list))
	}
	if list[0].region != "" {
		text += " in " + list[0].region
	}
	for _, r := range list {
		wrong := r.wrongServer()
		switch {
		case wrong == "":
		case len(list) == 1:
			text += ", but " + wrong
		case !r.isPrimary():
			text += ", but of " + r.endpoint() + ": " + wrong
		}
	}
	return text + ")"
}
