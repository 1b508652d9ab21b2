package flyregion

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
)

// TestOneServerByTwoAddresses has a name lead to one server by two addresses, and to another one.
func TestOneServerByTwoAddresses(t *testing.T) {
	cluster := sharedCluster(t)
	names := namesFor(cluster)
	ord, other := cluster.Server("ord").IP(), "fdaa:0:1:a7b:2::99"
	var leads atomic.Pointer[string] // where the other address leads
	leads.Store(&ord)
	names.answer(ordName, func(context.Context) ([]string, error) { return []string{ord, other, cluster.Server("syd").IP()}, nil })
	pool := poolIn(t, cluster, "ord", names.into, func(c *Config) {
		dial := c.ConnConfig.DialFunc
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dial(ctx, network, strings.Replace(addr, other, *leads.Load(), 1))
		}
	})
	readOn(t, cluster, pool, "ord", "syd")
	list := found(pool)
	if len(list) != 3 {
		t.Fatalf("there are %d replicas", len(list))
	}
	eventually(t, "the second address is found to lead to the same server", func() bool {
		_ = servedBy(t, cluster, pool, 3)
		return list[1].isAlias()
	})

	const n = 600
	before := list[1].reads.load()
	if by := servedBy(t, cluster, pool, n); by["ord"] < n*4/10 || by["syd"] < n*4/10 || list[1].reads.load() != before {
		t.Errorf("of %d reads these were served: %v, %d by the second address", n, by, list[1].reads.load()-before)
	}
	if s := pool.Replicas(); s[0].LeftAlone != "" || s[1].LeftAlone != "same server" || s[2].LeftAlone != "" {
		t.Errorf("left alone are %q, %q and %q", s[0].LeftAlone, s[1].LeftAlone, s[2].LeftAlone)
	}
	if got := pool.Describe(); !strings.Contains(got, "(2 replicas in ord)") {
		t.Error(got)
	}

	list[0].health.doubt()
	servedBy(t, cluster, pool, 10)
	if list[1].reads.load() == before {
		t.Error("the second address is not read from while the first cannot be reached")
	}
	list[0].health.recover()
	if !list[1].isAlias() {
		t.Error("the second address is read from although the first can be reached again")
	}
	for _, server := range []string{"syd", "ord", "syd", "ord"} {
		ip := cluster.Server(server).IP()
		leads.Store(&ip)
		list[1].pool.Reset()
		if got := answeredBy(t, t.Context(), cluster, list[1].pool); got != server {
			t.Fatalf("%s answers for %s", got, server)
		}
	}
	if list[1].isAlias() {
		t.Error("an address that leads to several servers counts as one of them")
	}
}
