package flyregion

import (
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

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
