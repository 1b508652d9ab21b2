package pgcluster

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// flycastIP is the address of <app>.flycast: Fly's proxy, which is near every site and leads to the leader.
var flycastIP = netip.MustParseAddr("fdaa:0:1::3")

// serverIP returns the private address of the i-th server's machine.
func serverIP(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fdaa:0:1:a7b:%x:0:0:2", i+1))
}

// machineID returns the id of the i-th server's machine, in the form that Fly uses.
func machineID(i int) string {
	return fmt.Sprintf("e784%010x", i+1)
}

// LookupHost returns the private IPv6 addresses of a Fly name, as Fly's DNS does. It knows, for the app's name and
// region codes, without regard to case and with or without a trailing dot:
//
//	<app>.internal, global.<app>.internal    all servers
//	<region>.<app>.internal                  that region's servers
//	top<N>.nearest.of.<app>.internal         the N servers with the lowest latency from this site, nearest first
//	<machine id>.vm.<app>.internal           that server
//	<app>.flycast                            the proxy that leads to the leader
//
// Servers that were unlisted are left out. An address is returned as it is. Any other name gives a *net.DNSError whose IsNotFound is true.
func (s *Site) LookupHost(ctx context.Context, host string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return []string{ip.String()}, nil
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if name == s.cluster.app+".flycast" {
		return []string{flycastIP.String()}, nil
	}
	servers := s.find(name)
	if len(servers) == 0 {
		return nil, notFound(host)
	}
	ips := make([]string, len(servers))
	for i, server := range servers {
		ips[i] = server.ip.String()
	}
	return ips, nil
}

// LookupTXT returns what Fly's DNS tells about the app in TXT records: for regions.<app>.internal the region codes,
// separated by commas; for vms.<app>.internal the machine ids, each followed by a space and its region. Any other name
// gives a *net.DNSError whose IsNotFound is true.
func (s *Site) LookupTXT(ctx context.Context, host string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var texts []string
	switch strings.ToLower(strings.TrimSuffix(host, ".")) {
	case "regions." + s.cluster.app + ".internal":
		for _, server := range s.cluster.listed() {
			if !slices.Contains(texts, server.region) {
				texts = append(texts, server.region)
			}
		}
	case "vms." + s.cluster.app + ".internal":
		for _, server := range s.cluster.listed() {
			texts = append(texts, server.machine+" "+server.region)
		}
	default:
		return nil, notFound(host)
	}
	return []string{strings.Join(texts, ",")}, nil
}

func notFound(host string) error {
	return &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (s *Site) find(name string) []*Server {
	servers := s.cluster.listed()
	suffix := s.cluster.app + ".internal"
	if name == suffix || name == "global."+suffix {
		return servers
	}
	label, ok := strings.CutSuffix(name, "."+suffix)
	if !ok {
		return nil
	}
	if n, ok := strings.CutSuffix(label, ".nearest.of"); ok {
		count, err := strconv.Atoi(strings.TrimPrefix(n, "top"))
		if !strings.HasPrefix(n, "top") || err != nil || count < 1 {
			return nil
		}
		near := slices.Clone(servers)
		distance := func(server *Server) int64 { return s.cluster.network.leg(s.region, server.region).Load() }
		slices.SortStableFunc(near, func(a, b *Server) int {
			if a.region == s.region || b.region == s.region {
				// The site's own region is nearest also when no latency was set.
				if a.region != b.region {
					if a.region == s.region {
						return -1
					}
					return 1
				}
			}
			switch da, db := distance(a), distance(b); {
			case da < db:
				return -1
			case da > db:
				return 1
			default:
				return 0
			}
		})
		return near[:min(count, len(near))]
	}
	machine, isMachine := strings.CutSuffix(label, ".vm")
	return slices.DeleteFunc(servers, func(server *Server) bool {
		return isMachine && server.machine != machine || !isMachine && server.region != label
	})
}

// listed returns the servers that lookups show.
func (c *Cluster) listed() []*Server {
	return slices.DeleteFunc(c.Servers(), func(s *Server) bool { return s.unlisted.Load() })
}

func (c *Cluster) serverByIP(ip netip.Addr) *Server {
	for _, server := range c.servers {
		if server.ip == ip {
			return server
		}
	}
	return nil
}
