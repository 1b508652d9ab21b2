package flyregion

import (
	"testing"
	"time"
)

// statusOf returns what the pool says of the replica in a region, but for reserves.
func statusOf(t testing.TB, pool *Pool, region string) ReplicaStatus {
	t.Helper()
	for _, r := range pool.Replicas() {
		if r.Region == region && r.LeftAlone != "reserve" {
			return r
		}
	}
	t.Fatalf("no replica in %s among %+v", region, pool.Replicas())
	return ReplicaStatus{}
}

func TestReplicas(t *testing.T) {
	cluster := sharedCluster(t)
	name := table(t, cluster, "id int, v text")
	ctx := t.Context()
	pool := poolIn(t, cluster, "ord", inBoth, func(c *Config) { c.MaxReplicaWait = 300 * time.Millisecond })

	if s := statusOf(t, pool, "ord"); s.Host != "ord.app.internal" || s.Address != "" || s.Role != "" || !s.Reachable || s.Reads != 0 || s.Position != 0 ||
		s.RoundTrip != 0 || s.LeftAlone != "" {
		t.Errorf("before the first read: %+v", s)
	}

	awaitReplica(t, ctx, pool)
	before := statusOf(t, pool, "ord")
	for range 3 {
		counts(t, ctx, pool, name)
	}
	s := statusOf(t, pool, "ord")
	if s.Address == "" || s.Role != "standby" || s.Reads != before.Reads+3 || s.Position == 0 || s.RoundTrip <= 0 || s.Conns.TotalConns() < 1 || s.Lag > time.Minute {
		t.Errorf("after reads: %+v", s)
	}
	if s := statusOf(t, pool, "syd"); s.Address != "" || s.Reads != 0 {
		t.Errorf("a replica that was not needed: %+v", s)
	}

	thaw := freeze(t, cluster)
	if err := execs(ctx, pool, insertText(name, 1)); err != nil {
		t.Fatal(err)
	}
	counts(t, ctx, pool, name)
	if s := statusOf(t, pool, "ord"); s.BytesBehind == 0 {
		t.Errorf("behind: %+v", s)
	}
	thaw()

	link := cluster.Link("ord", "ord")
	t.Cleanup(link.Restore)
	began := time.Now()
	link.Cut()
	eventually(t, "it is out of reach", func() bool {
		counts(t, ctx, pool, name)
		s = statusOf(t, pool, "ord")
		return !s.Reachable
	})
	if s.Err == nil || s.UnreachableSince.Before(began) || s.LeftAlone != "unreachable" {
		t.Errorf("out of reach: %+v", s)
	}
	since, first := s.UnreachableSince, s.Err
	eventually(t, "it was tried again", func() bool {
		counts(t, ctx, pool, name)
		return statusOf(t, pool, "ord").Err != first
	})
	if s := statusOf(t, pool, "ord"); !s.UnreachableSince.Equal(since) {
		t.Errorf("out of reach since %v, want %v", s.UnreachableSince, since)
	}
	link.Restore()
	eventually(t, "it is within reach", func() bool {
		counts(t, ctx, pool, name)
		s := statusOf(t, pool, "ord")
		return s.Reachable && s.UnreachableSince.IsZero() && s.Err == nil && s.LeftAlone == ""
	})
}

func TestReplicasOfPlainPool(t *testing.T) {
	if all := poolIn(t, sharedCluster(t), "nrt").Replicas(); all != nil {
		t.Errorf("%+v", all)
	}
}

func TestMachineOf(t *testing.T) {
	for host, want := range map[string]string{
		"3d8d9001c24789.vm.app.internal": "3d8d9001c24789",
		"ord.app.internal":               "",
		"db.example.com":                 "",
		"x.vm.example.com":               "",
	} {
		if got := machineOf(host); got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
}
