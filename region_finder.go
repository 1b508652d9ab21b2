package flyregion

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
)

// regionFinder finds the regions in which an app of Fly's has Machines. It is what ReplicaRegions "auto" stands for. None of its
// fields but those that the discovery's mu guards changes.
type regionFinder struct {
	own    string // this process's region, which is read from in any case
	names  []string
	lookUp func(ctx context.Context, name string) ([]string, error)
	hosts  func(region string) ([]*replicaHost, error)

	lookups lookups
	absent  map[string]int // how many lookups in a row have not named a region that is read from; the discovery's mu guards this
}

// newRegionFinder returns a finder for the Fly apps among the hosts of c, nil if the regions are not to be found. hosts makes
// the hosts of a region.
func newRegionFinder(c *Config, hosts func(region string) ([]*replicaHost, error)) *regionFinder {
	if !c.auto() || c.Region == c.PrimaryRegion {
		return nil
	}
	f := &regionFinder{own: c.Region, lookUp: c.LookupTXTFunc, hosts: hosts, absent: map[string]int{}}
	if f.lookUp == nil {
		f.lookUp = net.DefaultResolver.LookupTXT
	}
	for _, a := range connectAttempts(&c.ConnConfig.Config) {
		if app, ok := flyApp(a.Host); ok && !slices.Contains(f.names, "regions."+app+".internal") {
			f.names = append(f.names, "regions."+app+".internal")
		}
	}
	return f
}

// find returns the regions that the TXT records tell, at least one.
func (f *regionFinder) find(ctx context.Context) (regions []string, err error) {
	for _, name := range f.names {
		texts, err := f.lookUp(ctx, name)
		if err != nil {
			return nil, err
		}
		found := 0
		for _, region := range strings.Split(strings.Join(texts, ","), ",") {
			if region = strings.ToLower(strings.TrimSpace(region)); !isFlyRegion(region) {
				continue
			}
			if found++; !slices.Contains(regions, region) {
				regions = append(regions, region)
			}
		}
		if found == 0 || found > maxAddresses {
			return nil, &net.DNSError{Err: fmt.Sprintf("%d regions: want 1 to %d", found, maxAddresses), Name: name}
		}
	}
	return regions, nil
}

// order sorts replicas: this process's own region first, then the others by their shortest round trip, those last of which none
// is known yet, and the reserves at the end.
func (f *regionFinder) order(list []*replica) {
	distance := map[string]int64{}
	for _, r := range list {
		if d := int64(r.tracker.roundTrip.average()); d > 0 && (distance[r.region] == 0 || d < distance[r.region]) {
			distance[r.region] = d
		}
	}
	rank := func(r *replica) int64 {
		switch d := distance[r.region]; {
		case r.host.reserve:
			return never
		case r.region == f.own:
			return 0
		case d == 0:
			return never - 1
		default:
			return d
		}
	}
	slices.SortStableFunc(list, func(a, b *replica) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.region, b.region))
	})
}
