package flyregion

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/jackc/pgx/v5/tracelog"
)

const (
	// lookupTimeout bounds a lookup that no read waits for.
	lookupTimeout = 5 * time.Second
	// maxAbsent is how many lookups in a row must not have named a replica that can be reached before it is let go. Some
	// name servers answer with only some of the addresses each time.
	maxAbsent = 3
)

// discovery finds the replicas behind the hosts, and keeps the set of them up to date. A name is looked up for the first time
// when somebody connects to its replica. Later all names that have led to replicas are looked up again in the background,
// when a read finds that the interval has passed, and when a replica could not be reached. So nothing is looked up while the
// pool is not used. A lookup that fails changes nothing.
type discovery struct {
	schedule
	set  *replicas
	open func(h *replicaHost, address string) (*replica, error) // makes a replica; the address of a name's first one is ""
	log  func(ctx context.Context, message string, err error)

	ctx  context.Context // ends when the discovery stops
	stop context.CancelFunc

	// mu guards the following fields, and is held to change the set and to add to done.
	mu      sync.Mutex
	hosts   []*replicaHost
	closed  bool
	regions *regionFinder // nil unless ReplicaRegions are "auto"
	leaving []*replica    // were let go, and have connections in use
	left    pastCounts    // of the replicas that were let go before

	done sync.WaitGroup // rounds of lookups, and replicas that are being closed
}

// loggerOf returns a function that writes to the app's log, if the app has pgx write to one.
func loggerOf(tracer pgx.QueryTracer) func(context.Context, string, error) {
	tracers := []pgx.QueryTracer{tracer}
	if several, ok := tracer.(*multitracer.Tracer); ok {
		tracers = several.QueryTracers
	}
	return func(ctx context.Context, message string, err error) {
		for _, tracer := range tracers {
			if t, ok := tracer.(*tracelog.TraceLog); ok && t.LogLevel >= tracelog.LogLevelWarn {
				t.Logger.Log(ctx, tracelog.LogLevelWarn, message, map[string]any{"err": err})
			}
		}
	}
}

// add adds a host, with a replica that has no address yet if the host has to be looked up.
func (d *discovery) add(h *replicaHost) error {
	d.mu.Lock()
	defer d.mu.Unlock()

	if d.closed {
		return errClosedPool
	}
	address := ""
	if h.literal {
		address = h.name
	}
	r, err := d.open(h, address)
	if err != nil {
		return err
	}
	d.hosts = append(d.hosts, h)
	d.set.store(append(slices.Clone(d.set.list()), r))
	if h.joined {
		r.health.doubt()
		r.tracker.background(r.probe)
	}
	return nil
}

// addressOf returns the address of a replica. If it has none yet, its host is looked up, once for all who ask.
func (d *discovery) addressOf(ctx context.Context, r *replica) (string, error) {
	if address := r.address.Load(); address != nil {
		return *address, nil
	}
	select {
	case r.host.looking <- struct{}{}:
		defer func() { <-r.host.looking }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if address := r.address.Load(); address != nil {
		return *address, nil
	}
	addresses, err := r.host.lookUp(ctx)
	if err != nil {
		return "", err
	}
	d.update(r.host, addresses)
	if address := r.address.Load(); address != nil {
		return *address, nil
	}
	return "", &net.DNSError{Err: "leads to no other server than those that are known", Name: r.host.name, IsNotFound: true}
}

// begin begins a round of lookups, unless the discovery is closed.
func (d *discovery) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.done.Go(d.lookUpAgain)
	}
}

// lookUpAgain looks up all names that have led to replicas.
func (d *discovery) lookUpAgain() {
	defer d.running.Store(false)
	ctx, cancel := context.WithTimeout(d.ctx, lookupTimeout)
	defer cancel()

	d.mu.Lock()
	var found []*replicaHost
	for _, h := range d.hosts {
		if h.found {
			found = append(found, h)
		}
	}
	regions := d.regions
	d.mu.Unlock()

	var round sync.WaitGroup
	if regions != nil {
		round.Go(func() { d.lookUpRegions(ctx, regions) })
	}
	for _, h := range found {
		round.Go(func() {
			addresses, err := h.lookUp(ctx)
			if err == nil {
				d.update(h, addresses)
			} else if d.ctx.Err() == nil {
				d.failed(h.name, &h.lookups, err)
			}
		})
	}
	round.Wait()
}

// failed notes a lookup that has changed nothing. Of several in a row the log has the first.
func (d *discovery) failed(name string, l *lookups, err error) {
	l.connects.failed(err)
	d.mu.Lock()
	first := !l.failing
	l.failing = true
	d.mu.Unlock()
	if first {
		d.log(d.ctx, fmt.Sprintf("flyregion: %s cannot be looked up: the replicas that it has led to stay", name), err)
	}
}

// succeeded notes a lookup after which nothing is amiss. The discovery's mu must be held.
func (l *lookups) succeeded() {
	if l.failing {
		l.failing = false
		l.connects.reached()
	}
}

// update makes the replicas of a host those at addresses.
func (d *discovery) update(h *replicaHost, addresses []string) {
	d.mu.Lock()
	defer d.mu.Unlock()

	if d.closed || !slices.Contains(d.hosts, h) { // its region may have been let go in the meantime
		return
	}
	d.due.CompareAndSwap(never, time.Now().Add(d.interval).UnixNano())
	h.lookups.succeeded()
	later := h.found
	h.found = true

	list := slices.Clone(d.set.list())
	for _, address := range addresses {
		endpoint := h.endpoint(address)
		at := slices.IndexFunc(list, func(r *replica) bool {
			return r.endpoint() == endpoint && (h.reserve || !r.host.reserve && r.region == h.region)
		})
		if at >= 0 {
			continue
		}
		if at = slices.IndexFunc(list, func(r *replica) bool { return r.host == h && r.address.Load() == nil }); at >= 0 {
			list[at].address.Store(&address)
			continue
		}
		r, err := d.open(h, address)
		if err != nil { // the first replica of this host was made from the same config
			d.log(d.ctx, "flyregion: "+h.name+" leads to another replica, which cannot be used", err)
			continue
		}
		if later {
			// No read should be the first to try it, in case that nobody is there.
			r.health.doubt()
			r.tracker.background(r.probe)
		}
		list = slices.Insert(list, d.placeOf(h, list), r)
	}

	list, leaving := d.sort(list, h, addresses)
	d.set.store(list)
	for _, r := range leaving {
		d.leave(r)
	}
}

// sort returns the replicas that stay and those that are let go. Those stay that other hosts have led to, those at addresses,
// and one that can be reached until a few answers in a row have not named it. And all stay while nobody at addresses can be
// reached, as the answer is then worth little.
func (d *discovery) sort(list []*replica, h *replicaHost, addresses []string) (stay, leaving []*replica) {
	named := func(r *replica) bool {
		return slices.ContainsFunc(addresses, func(address string) bool { return h.endpoint(address) == r.endpoint() })
	}
	anybody := slices.ContainsFunc(list, func(r *replica) bool { return named(r) && r.health.good() })
	for _, r := range list {
		switch {
		case r.host != h || r.address.Load() == nil:
		case named(r):
			r.absent = 0
		case anybody:
			if r.absent++; r.absent >= maxAbsent || !r.health.good() {
				leaving = append(leaving, r)
				continue
			}
		}
		stay = append(stay, r)
	}
	return stay, leaving
}

// leave closes a replica that is let go. mu must be held.
func (d *discovery) leave(r *replica) {
	r.left.Store(true)
	d.leaving = append(d.leaving, r)
	d.done.Go(func() {
		r.close()
		d.mu.Lock()
		defer d.mu.Unlock()
		d.leaving = slices.DeleteFunc(slices.Clone(d.leaving), func(other *replica) bool { return other == r })
		d.left.add(r.pool.Stat())
	})
}

// placeOf returns the index in list for a new replica of a host: behind those of the host and of the hosts before it. mu must be
// held.
func (d *discovery) placeOf(h *replicaHost, list []*replica) int {
	before := d.hosts[:slices.Index(d.hosts, h)+1]
	for i, r := range slices.Backward(list) {
		if slices.Contains(before, r.host) {
			return i + 1
		}
	}
	return 0
}

// close closes all replicas. It returns when their connections were released and closed, and no goroutine of them or of the
// discovery runs any more.
func (d *discovery) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.stop()

	var closing sync.WaitGroup
	for _, r := range d.set.list() {
		closing.Go(r.close)
	}
	closing.Wait()
	d.done.Wait()
}

// stat adds the statistics of the replicas to s.
func (d *discovery) stat(s *Stat) {
	d.mu.Lock()
	defer d.mu.Unlock()

	for _, r := range d.set.inUse() {
		s.replicas = append(s.replicas, replicaStat{r.region, r.health.good(), r.pool.Stat()})
	}
	for _, r := range d.leaving {
		s.leaving = append(s.leaving, r.pool.Stat())
	}
	s.left = d.left
}

// appendFailures appends the latest failures to reach replicas, and to look up the hosts of those that stay nevertheless.
func (d *discovery) appendFailures(failures []ConnectFailure) []ConnectFailure {
	for _, r := range d.set.inUse() {
		failures = r.connects.appendTo(failures, targetReplica, r.region)
	}
	d.mu.Lock()
	hosts, regions := slices.Clone(d.hosts), d.regions
	d.mu.Unlock()
	for _, h := range hosts {
		failures = h.lookups.connects.appendTo(failures, targetReplica, h.region)
	}
	if regions != nil {
		failures = regions.lookups.connects.appendTo(failures, targetReplica, regions.own)
	}
	return failures
}

// find has the first read look up the regions of a finder, unless that is nil.
func (d *discovery) find(f *regionFinder) {
	if f == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.regions, d.set.order = f, f.order
	d.due.Store(0)
}

// lookUpRegions has the regions read from in which there are Machines now.
func (d *discovery) lookUpRegions(ctx context.Context, f *regionFinder) {
	regions, err := f.find(ctx)
	if err != nil {
		if d.ctx.Err() == nil {
			d.failed(strings.Join(f.names, " and "), &f.lookups, err)
		}
		return
	}
	d.mu.Lock()
	f.lookups.succeeded()
	known := []string{f.own}
	for _, h := range d.hosts {
		if !slices.Contains(known, h.region) {
			known = append(known, h.region)
		}
	}
	d.mu.Unlock()

	for _, region := range regions {
		if slices.Contains(known, region) {
			continue
		}
		hosts, err := f.hosts(region)
		if err != nil { // a region of Fly's has hosts
			d.log(ctx, "flyregion: replicas in "+region+" cannot be read from", err)
			continue
		}
		for _, h := range hosts {
			if h.joined = true; h.reserve {
				continue
			}
			if err := d.add(h); err != nil && !errors.Is(err, errClosedPool) {
				d.log(ctx, "flyregion: "+h.name+" cannot be read from", err)
			}
		}
	}
	d.leaveRegions(f, slices.DeleteFunc(known, func(region string) bool {
		return region == f.own || slices.Contains(regions, region)
	}), regions)
}

// leaveRegions lets the replicas of regions go that a few answers in a row have not named.
func (d *discovery) leaveRegions(f *regionFinder, absent, present []string) {
	d.mu.Lock()
	defer d.mu.Unlock()

	for _, region := range present {
		delete(f.absent, region)
	}
	for _, region := range absent {
		if f.absent[region]++; f.absent[region] < maxAbsent || d.closed {
			continue
		}
		delete(f.absent, region)
		d.hosts = slices.DeleteFunc(d.hosts, func(h *replicaHost) bool { return h.region == region })
		var stay []*replica
		for _, r := range d.set.list() {
			if r.region != region {
				stay = append(stay, r)
				continue
			}
			d.leave(r)
		}
		d.set.store(stay)
	}
}
