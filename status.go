package flyregion

import (
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// ReplicaStatus says what a [Pool] knows of one replica. Nothing is asked for it: it is as new as the pool's last use of the
// replica.
type ReplicaStatus struct {
	Region string
	// Host is the name or address that the replica was configured by, and Address is the host and port, or the path of the
	// socket, that it has led to. Address is empty until the name was looked up.
	Host, Address string
	// Machine is the id of the Fly Machine if Host has it (<id>.vm.<app>.internal), else empty.
	Machine string
	// Role is "standby", "primary", or empty until the server has answered. A server that is out of recovery and is not the
	// primary that the Pool is connected to is a "primary" too.
	Role string

	// Reachable says whether reads may go to the replica. If not, UnreachableSince is when it was first found so, and Err is
	// the latest error. It is tried again in the background while the Pool is used.
	Reachable        bool
	UnreachableSince time.Time
	Err              error

	// Position is the replay position in the replica's latest report, 0 if there was none, and BytesBehind how far that is
	// behind what the Pool itself has written, 0 if it is not behind or the Pool has written nothing that it knows the position of.
	Position    LSN
	BytesBehind int64
	// Lag is how far the replica was behind the primary at most when it was last asked, as [Config.MaxReplicaLag] measures it. It
	// is the largest Duration if that is not known.
	Lag time.Duration
	// RoundTrip is how long the replica takes to answer a question, a moving average, 0 if it was not measured yet.
	RoundTrip time.Duration

	Conns *pgxpool.Stat // the replica's pool
	Reads int64         // how many reads it was sent
	// LeftAlone says why no read goes to the replica at present, "" if reads may: "unreachable", "behind" by more than
	// [Config.MaxReplicaLag] while the primary can be reached, "weight 0", "same server" as another one that
	// the same name leads to by another address, or "reserve", which is read from only while no other replica can be reached.
	LeftAlone string
}

// status returns what is known of the replica. own is what the pool has written, and outage says that the primary cannot be
// reached.
func (r *replica) status(own sessionState, outage bool) ReplicaStatus {
	s := ReplicaStatus{
		Region:    r.region,
		Host:      visibleHost(r.host.name),
		Address:   r.endpoint(),
		Machine:   machineOf(r.host.name),
		Reachable: r.health.good(),
		Lag:       r.tracker.currentLag(),
		RoundTrip: r.tracker.roundTrip.average(),
		Conns:     r.pool.Stat(),
		Reads:     r.reads.load(),
	}
	switch {
	case !s.Reachable:
		s.UnreachableSince, s.Err = r.health.unreachableSince(), r.connects.lastError()
		s.LeftAlone = "unreachable"
	case r.tracker.staleness.isTooFar() && !outage:
		s.LeftAlone = "behind"
	case r.host.weight == 0:
		s.LeftAlone = "weight 0"
	case r.isAlias():
		s.LeftAlone = "same server"
	case r.host.reserve:
		s.LeftAlone = "reserve"
	}
	if latest := r.tracker.latest.Load(); latest != nil {
		s.Position = latest.position
		if s.Role = "primary"; latest.recovering {
			s.Role = "standby"
			s.BytesBehind = max(0, int64(own.position)-int64(latest.position))
		}
	}
	return s
}

// machineOf returns the Machine that a name in Fly's private network is of, "" if it is not of one.
func machineOf(host string) string {
	if _, ok := flyApp(host); !ok {
		return ""
	}
	if labels := strings.Split(strings.ToLower(host), "."); len(labels) > 2 && labels[1] == "vm" {
		return labels[0]
	}
	return ""
}
