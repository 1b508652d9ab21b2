package flyregion

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// replicaHost is one host that replicas were configured by: a name, which has an address for each server, or an address.
type replicaHost struct {
	region string
	name   string
	port   uint16
	config *pgxpool.Config // of connections to it, but for what a replica adds

	literal        bool // an address or a socket, or a name that is left to pgx: it stands for one server and is never looked up
	weight         int  // how often BalanceWeighted reads from it; 0: no read goes there
	reserve        bool // it is read from only if none of the other hosts leads to a replica that can be reached
	joined         bool // it was found while the pool was in use: no read should be the first to try it
	prefersStandby bool // a server that is no standby is read from only if there is no other: target_session_attrs=prefer-standby

	looking chan struct{} // of capacity one: full while the name is looked up for the first time
	found   bool          // the name has been looked up with success; the discovery's mu guards this
	lookups lookups
}

// lookups is how the lookups of a name went, but for a host's first one, whose error goes to who connects.
type lookups struct {
	connects connects
	failing  bool // the latest one has failed; the discovery's mu guards this
}

// hostsOf returns the hosts that config tries, each with the attempts that are made to connect to it. attrs is the
// target_session_attrs that they were given with.
func hostsOf(region string, config *pgxpool.Config, attrs string) []*replicaHost {
	attempts := connectAttempts(&config.ConnConfig.Config)
	var hosts []*replicaHost
	for _, a := range attempts {
		if slices.ContainsFunc(hosts, func(h *replicaHost) bool { return h.name == a.Host && h.port == a.Port }) {
			continue
		}
		h := &replicaHost{
			region: region, name: a.Host, port: a.Port, config: config.Copy(),
			literal:        isLiteral(a.Host),
			reserve:        strings.HasPrefix(a.Host, nearestOf),
			prefersStandby: attrs == "prefer-standby" && len(attempts) > 1,
			looking:        make(chan struct{}, 1),
		}
		if h.reserve {
			h.config.MinConns, h.config.MinIdleConns = 0, 0
		}
		setConnectAttempts(&h.config.ConnConfig.Config, slices.DeleteFunc(slices.Clone(attempts), func(b *pgconn.FallbackConfig) bool {
			return b.Host != a.Host || b.Port != a.Port
		}))
		hosts = append(hosts, h)
	}
	return hosts
}

// maxAddresses is how many replicas a name may lead to. More are taken for an error of the name server.
const maxAddresses = 100

// lookUp returns the addresses of the host's name as LookupFunc gives them, at least one and each once.
func (h *replicaHost) lookUp(ctx context.Context) ([]string, error) {
	answer, err := h.config.ConnConfig.LookupFunc(ctx, h.name)
	if err != nil {
		return nil, err
	}
	var addresses []string
	for _, address := range answer {
		if isUsable(address) && !slices.Contains(addresses, address) {
			addresses = append(addresses, address)
		}
	}
	if len(addresses) == 0 || len(addresses) > maxAddresses {
		return nil, &net.DNSError{Err: fmt.Sprintf("%d usable addresses: want 1 to %d", len(addresses), maxAddresses), Name: h.name, IsNotFound: len(addresses) == 0}
	}
	return addresses, nil
}

// isUsable reports whether a server can have an address. As with pgx, a LookupFunc may add a port, and may return a name.
func isUsable(address string) bool {
	host := address
	if before, port, err := net.SplitHostPort(address); err == nil {
		if host = before; port == "0" {
			return false
		}
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return !ip.IsUnspecified() && !ip.IsMulticast() && ip != netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return filepath.IsAbs(host) || isHostName(host)
}

// endpoint returns what is dialed for an address of the host.
func (h *replicaHost) endpoint(address string) string {
	if host, port, err := net.SplitHostPort(address); err == nil {
		return net.JoinHostPort(host, port)
	}
	_, endpoint := pgconn.NetworkAddress(address, h.port)
	return endpoint
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
