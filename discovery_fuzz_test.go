package flyregion

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// FuzzSplitHost has what splitHost takes be taken again in the form that names the port.
func FuzzSplitHost(f *testing.F) {
	f.Fuzz(func(t *testing.T, host string) {
		const port = 5431
		name, n, err := splitHost(host, port)
		if err != nil {
			if name != "" || n != 0 || !strings.Contains(err.Error(), strconv.Quote(host)) {
				t.Fatalf("%q gave %q, %d, %v", host, name, n, err)
			}
			return
		}
		if n == 0 || !isLiteral(name) && !isHostName(name) {
			t.Fatalf("%q gave %q, %d", host, name, n)
		}
		if name == host && n != port {
			t.Fatalf("%q names no port and gave %d", host, n)
		}
		if strings.HasPrefix(name, "@") || filepath.IsAbs(name) {
			return // a socket
		}
		whole := net.JoinHostPort(name, strconv.Itoa(int(n)))
		if again, m, err := splitHost(whole, port+1); err != nil || again != name || m != n {
			t.Fatalf("%q gave %q, which gave %q, %d, %v", host, whole, again, m, err)
		}
	})
}

// FuzzUsableAddress has a name server answer anything. What is taken for an address can be dialed.
func FuzzUsableAddress(f *testing.F) {
	f.Fuzz(func(t *testing.T, address string) {
		if !isUsable(address) {
			return
		}
		endpoint := (&replicaHost{port: 5433}).endpoint(address)
		if filepath.IsAbs(address) && filepath.IsAbs(endpoint) {
			return // a socket
		}
		host, port, err := net.SplitHostPort(endpoint)
		if err != nil || host == "" || port == "0" {
			t.Fatalf("%q is usable and leads to %q: %v", address, endpoint, err)
		}
	})
}

// FuzzFindRegions has a name server answer anything in a TXT record. What is taken for a region can be a part of a name.
func FuzzFindRegions(f *testing.F) {
	f.Fuzz(func(t *testing.T, first, second string) {
		finder := &regionFinder{names: []string{"regions.app.internal"}, lookUp: func(context.Context, string) ([]string, error) {
			return []string{first, second}, nil
		}}
		regions, err := finder.find(t.Context())
		if (err == nil) != (len(regions) > 0) || len(regions) > maxAddresses {
			t.Fatalf("%q and %q gave %q, %v", first, second, regions, err)
		}
		for i, region := range regions {
			if slices.Contains(regions[:i], region) {
				t.Fatalf("%q and %q gave %q twice", first, second, region)
			}
			if _, err := replicaHosts("app.internal", region); err != nil || region != strings.ToLower(region) {
				t.Fatalf("%q and %q gave %q, %v", first, second, region, err)
			}
		}
	})
}
