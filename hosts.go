package flyregion

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// replicaPort is where PostgreSQL itself listens on every Machine of a Fly Postgres app. On 5432 a proxy listens that
// leads to the leader, whichever region it is in, so that a read there would not be local. See
// https://fly.io/docs/postgres/advanced-guides/high-availability-and-global-replication/ and the port in
// https://github.com/fly-apps/postgres-flex.
const replicaPort = 5433

// nearestOf begins the name of the nearest Machine of an app.
const nearestOf = "top1.nearest.of."

// parseRegion returns code without surrounding space and in lower case. It accepts any DNS label, as regions that are
// not Fly's are named by whoever names them ("us-east-1"); [flyRegion] is the stricter check for a Fly name. An empty
// code is an error: what an unset region means is for the caller to say.
func parseRegion(code string) (string, error) {
	region := strings.TrimSpace(code)
	if region == "" {
		return "", fmt.Errorf(`region %q is empty: want a code such as "nrt"`, code)
	}
	if !isDNSLabel(region) {
		return "", fmt.Errorf("region %q is not a region code: want up to 63 letters, digits and inner dashes, "+
			`such as "nrt" or "us-east-1"`, code)
	}
	return strings.ToLower(region), nil
}

// flyRegion returns code in the form that Fly's names have it. Fly's region codes are three letters
// (https://fly.io/docs/reference/regions/). Anything else would only be found out by a name that never resolves, or,
// with a label that Fly gave a meaning ("global", "vm"), by one that leads to other servers than meant.
func flyRegion(code string) (string, error) {
	region, err := parseRegion(code)
	if err != nil || !isFlyRegion(region) {
		return "", fmt.Errorf(`region %q is not a Fly region code: want three letters such as "nrt"`, code)
	}
	return region, nil
}

// isFlyRegion reports whether label, in lower case, can be the region in "<region>.<app>.internal". Of the labels that
// Fly reserves in that place only "vms" (a TXT record with the app's Machines) looks like a region.
func isFlyRegion(label string) bool {
	if len(label) != 3 || label == "vms" {
		return false
	}
	for i := range len(label) {
		if label[i] < 'a' || label[i] > 'z' {
			return false
		}
	}
	return true
}

// flyApp returns the app that host names in Fly's private network. The forms are those that
// https://fly.io/docs/networking/private-networking/ lists for the Machines of an app,
//
//	<app>.internal
//	global.<app>.internal
//	<region>.<app>.internal
//	<id>.vm.<app>.internal
//	top<number>.nearest.of.<app>.internal
//
// and <app>.flycast (https://fly.io/docs/networking/flycast/). Case does not count, and one trailing dot may follow.
//
// Two forms name Machines of an app and are left alone nevertheless: <group>.process.<app>.internal and
// <value>.<key>.kv._metadata.<app>.internal. They choose Machines by what these do, no name of Fly's combines that with
// a region, and without it the app's name may lead to Machines that run no PostgreSQL. Also left alone are the names
// that have only TXT records (vms, regions, _apps, _instances), WireGuard peers (<peer>._peer.internal), and what
// others keep under .internal, such as metadata.google.internal and host.docker.internal.
func flyApp(host string) (app string, ok bool) {
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	for i, label := range labels {
		// Checked before the case is changed: strings.ToLower makes ASCII letters of some that are not.
		if !isDNSLabel(label) {
			return "", false
		}
		labels[i] = strings.ToLower(label)
	}
	if len(labels) < 2 {
		return "", false
	}

	app, domain, qualifier := labels[len(labels)-2], labels[len(labels)-1], labels[:len(labels)-2]
	switch domain {
	case "flycast":
		ok = len(qualifier) == 0
	case "internal":
		ok = isMachineQualifier(qualifier)
	}
	if !ok {
		return "", false
	}
	return app, true
}

// isMachineQualifier reports whether labels, in lower case, choose among the Machines of the app they stand before by
// place or identity. No labels at all choose every Machine.
func isMachineQualifier(labels []string) bool {
	switch len(labels) {
	case 0:
		return true
	case 1:
		return labels[0] == "global" || isFlyRegion(labels[0])
	case 2:
		return labels[1] == "vm"
	case 3:
		return isTopNumber(labels[0]) && labels[1] == "nearest" && labels[2] == "of"
	default:
		return false
	}
}

// isTopNumber reports whether label is "top" and a number from 1.
func isTopNumber(label string) bool {
	number, ok := strings.CutPrefix(label, "top")
	return ok && number != "" && number[0] != '0' && strings.Trim(number, "0123456789") == ""
}

// isDNSLabel reports whether s is a label of a host name as RFC 1123 has it, in either case. Fly's app names are such
// labels.
func isDNSLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// isManagedPostgres reports whether host is a name of Fly Managed Postgres, such as "pgbouncer.<cluster>.flympg.net" and
// "direct.<cluster>.flympg.net" (https://fly.io/docs/mpg/client-configuration/). Such a name holds no app and no region.
func isManagedPostgres(host string) bool {
	return strings.HasSuffix(strings.ToLower(strings.TrimSuffix(host, ".")), ".flympg.net")
}

// visibleHost returns host as it may be shown. In a URL whose password holds an unescaped "@", pgconn takes the end of the
// password for the beginning of the host.
func visibleHost(host string) string {
	return host[strings.LastIndexByte(host, '@')+1:]
}

// primaryHost returns the name of host's app in region, the primary's. A .flycast name is the app's in every region and is
// kept, in lower case and without its trailing dot. A name that is not Fly's is returned as it is. With a Fly name, .flycast
// too, region must be a code of Fly's.
func primaryHost(host, region string) (string, error) {
	app, ok := flyApp(host)
	if !ok {
		return host, nil
	}
	region, err := flyRegion(region)
	if err != nil {
		return "", err
	}
	if name := strings.ToLower(strings.TrimSuffix(host, ".")); strings.HasSuffix(name, ".flycast") {
		return name, nil
	}
	return region + "." + app + ".internal", nil
}

// replicaHosts returns the names under which a replica of host's app is reached from region, best first: the Machines
// in region, then the nearest one of all, which is a better place to read from than the primary if region has none, or
// none that runs. Flycast cannot address a region, so a .flycast name becomes an .internal one. It returns nil if host
// is not a Fly name.
func replicaHosts(host, region string) ([]string, error) {
	app, ok := flyApp(host)
	if !ok {
		return nil, nil
	}
	region, err := flyRegion(region)
	if err != nil {
		return nil, err
	}
	return []string{region + "." + app + ".internal", nearestOf + app + ".internal"}, nil
}

// pointAtPrimary makes c connect to the primary in region instead of the Fly names that it holds, at the same ports.
// Other hosts keep their place among them. c does not change if it holds no Fly name or region is wrong.
func pointAtPrimary(c *pgconn.Config, region string) error {
	var attempts []*pgconn.FallbackConfig
	anyFly := false
	for _, a := range connectAttempts(c) {
		host, err := primaryHost(a.Host, region)
		if err != nil {
			return err
		}
		if _, ok := flyApp(a.Host); ok {
			anyFly = true
		}
		attempts = appendAttempt(attempts, attemptAt(a, host, a.Port))
	}
	if anyFly {
		setConnectAttempts(c, attempts)
	}
	return nil
}

// pointAtReplica makes c connect to the replica in region, of every app among its hosts, and next to the nearest
// replica of each. Hosts that are not Fly names are left out, as nothing is known of their replicas. It reports false,
// and c does not change, if there is no Fly name at all.
func pointAtReplica(c *pgconn.Config, region string) (bool, error) {
	var local, nearest []*pgconn.FallbackConfig
	for _, a := range connectAttempts(c) {
		hosts, err := replicaHosts(a.Host, region)
		if err != nil {
			return false, err
		}
		if hosts == nil {
			continue
		}
		local = appendAttempt(local, attemptAt(a, hosts[0], replicaPort))
		nearest = appendAttempt(nearest, attemptAt(a, hosts[1], replicaPort))
	}
	if len(local) == 0 {
		return false, nil
	}
	setConnectAttempts(c, append(local, nearest...))
	return true, nil
}

// explainLookups has c say where a region was taken from when the lookup of a host fails that was made from it. given has
// the hosts that were there before.
func explainLookups(c, given *pgconn.Config, region, origin string) {
	made := map[string]string{} // the apps of hosts that were made
	for _, a := range connectAttempts(given) {
		app, ok := flyApp(a.Host)
		if host := region + "." + app + ".internal"; ok && host != a.Host {
			made[host] = app
		}
	}
	if len(made) == 0 {
		return
	}
	lookup := c.LookupFunc
	c.LookupFunc = func(ctx context.Context, host string) ([]string, error) {
		addresses, err := lookup(ctx, host)
		if app, ours := made[host]; ours && err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w (the host was made from %s: want a region where %s.internal has a Machine)", err, origin, app)
		}
		return addresses, err
	}
}

// connectAttempts returns what pgconn tries in turn to connect: every host, each with and without TLS if sslmode is
// allow or prefer. pgconn keeps the first in the config itself and the others as its fallbacks.
func connectAttempts(c *pgconn.Config) []*pgconn.FallbackConfig {
	first := &pgconn.FallbackConfig{Host: c.Host, Port: c.Port, TLSConfig: c.TLSConfig}
	return append([]*pgconn.FallbackConfig{first}, c.Fallbacks...)
}

// setConnectAttempts is the reverse of [connectAttempts]. The fallbacks of c are replaced, not written to, as a config
// that was copied by value shares them.
func setConnectAttempts(c *pgconn.Config, attempts []*pgconn.FallbackConfig) {
	c.Host, c.Port, c.TLSConfig = attempts[0].Host, attempts[0].Port, attempts[0].TLSConfig
	c.Fallbacks = attempts[1:]
}

// attemptAt returns a made to another host and port. TLS has to ask for the new host and to check its certificate,
// unless it asked for something else than the old one: then that was set on purpose, or SNI was switched off.
func attemptAt(a *pgconn.FallbackConfig, host string, port uint16) *pgconn.FallbackConfig {
	tlsConfig := a.TLSConfig
	if host != a.Host && tlsConfig != nil && strings.EqualFold(tlsConfig.ServerName, a.Host) {
		tlsConfig = tlsConfig.Clone() // a tls.Config may be in use elsewhere
		tlsConfig.ServerName = host
	}
	return &pgconn.FallbackConfig{Host: host, Port: port, TLSConfig: tlsConfig}
}

// appendAttempt appends a unless attempts has it: several names of one app become one.
func appendAttempt(attempts []*pgconn.FallbackConfig, a *pgconn.FallbackConfig) []*pgconn.FallbackConfig {
	if slices.ContainsFunc(attempts, func(b *pgconn.FallbackConfig) bool {
		return a.Host == b.Host && a.Port == b.Port && sameTLS(a.TLSConfig, b.TLSConfig)
	}) {
		return attempts
	}
	return append(attempts, a)
}

// sameTLS reports whether a and b make the same attempt on one host. pgconn makes a tls.Config for each host of a
// connection string, out of the same settings and certificates, so only the name and whether it is checked can differ.
func sameTLS(a, b *tls.Config) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.ServerName == b.ServerName && a.InsecureSkipVerify == b.InsecureSkipVerify
}

// isLiteral reports whether a host is an address or the folder of a socket, and no name.
func isLiteral(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil || filepath.IsAbs(host) || strings.HasPrefix(host, "@")
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

// isHostName reports whether s can be the name of a host. Underscores are allowed, as container networks give names with them.
func isHostName(s string) bool {
	name := strings.ReplaceAll(strings.TrimSuffix(s, "."), "_", "x")
	return name != "" && !slices.ContainsFunc(strings.Split(name, "."), func(label string) bool { return !isDNSLabel(label) })
}
