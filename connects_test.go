package flyregion

import (
	"context"
	"errors"
	"fmt"
	"net"
	neturl "net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// failureOf returns the latest failure to reach a server, nil if there was none.
func failureOf(pool *Pool, target, region string) *ConnectFailure {
	for _, f := range pool.Stat().ConnectFailures() {
		if f.Target == target && f.Region == region {
			return &f
		}
	}
	return nil
}

// Stat says why all reads run on the primary.
func TestConnectFailures(t *testing.T) {
	cluster := sharedCluster(t)
	const password = "hunter2hunter2"
	replicaAt := func(user, database string) func(*Config) {
		return func(c *Config) {
			url, err := neturl.Parse(strings.Replace(cluster.URL(), "app.internal:5432", "ord.app.internal:5433", 1))
			if err != nil {
				t.Fatal(err)
			}
			if user != "" {
				url.User = neturl.UserPassword(user, password)
			}
			url.Path = database
			c.ReplicaConnStrings = map[string]string{"ord": url.String()}
		}
	}
	for _, test := range []struct {
		name   string
		change func(*Config)
		before func(*testing.T, *Pool)
		want   string
		code   string // SQLSTATE
	}{
		{name: "unreachable", want: "failed to connect to `user=", before: func(t *testing.T, _ *Pool) {
			link := cluster.Link("ord", "ord")
			link.Cut()
			t.Cleanup(link.Restore)
		}},
		{name: "not answering", want: "replica in ord did not answer within 300ms", change: waits(time.Millisecond, 300*time.Millisecond),
			before: func(t *testing.T, _ *Pool) {
				link := cluster.Link("ord", "ord")
				link.Stall()
				t.Cleanup(link.Restore)
			}},
		{name: "unknown host", want: "no such host", change: func(c *Config) {
			lookup := c.ConnConfig.LookupFunc
			c.ConnConfig.LookupFunc = func(ctx context.Context, host string) ([]string, error) {
				if strings.HasPrefix(host, "nrt.") {
					return lookup(ctx, host)
				}
				return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
			}
		}},
		{name: "wrong database", want: "database \"missing\" does not exist", code: "3D000", change: replicaAt("", "missing")},
		{name: "wrong password", want: "password authentication failed", code: "28P01", change: replicaAt("nobody", "postgres")},
		{name: "another cluster", want: "no standby of the primary", before: func(_ *testing.T, p *Pool) {
			p.primary.identity.Store(&identity{server: 1, system: 1})
		}},
		{name: "no connection free", want: "no connection free", change: func(c *Config) {
			waits(time.Millisecond, 200*time.Millisecond)(c)
			c.MaxConns = 1
		}, before: func(t *testing.T, p *Pool) {
			conn, err := p.Replica().Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(conn.Release)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			telemetry := record(t)
			change := test.change
			if change == nil {
				change = func(*Config) {}
			}
			pool := poolIn(t, cluster, "ord", telemetry.into, change)
			if failures := pool.Stat().ConnectFailures(); failures != nil {
				t.Errorf("at first there are the failures %v", failures)
			}
			if test.before != nil {
				test.before(t, pool)
			}
			began := time.Now()
			for range 2 { // from the second time on the replica is not tried
				if replicaServes(t, t.Context(), pool) {
					t.Fatal("the replica serves")
				}
			}
			f := failureOf(pool, "replica", "ord")
			if f == nil || failureOf(pool, "primary", "nrt") != nil {
				t.Fatalf("the failures are %v", pool.Stat().ConnectFailures())
			}
			if !strings.Contains(f.Err.Error(), test.want) {
				t.Errorf("the error is %v, want %s", f.Err, test.want)
			}
			var pgErr *pgconn.PgError
			if errors.As(f.Err, &pgErr); test.code != "" && (pgErr == nil || pgErr.Code != test.code) {
				t.Errorf("the error is %v, want SQLSTATE %s", f.Err, test.code)
			}
			if text := fmt.Sprintf("%v %+v", f.Err, *f); strings.Contains(text, password) {
				t.Errorf("the password is in %s", text)
			}
			if f.At.Before(began) || f.At.After(time.Now()) || !f.Recovered.IsZero() {
				t.Errorf("it failed at %v and recovered at %v", f.At, f.Recovered)
			}
			spans := telemetry.named(spanForward)
			if len(spans) != 2 {
				t.Fatalf("there are %d spans", len(spans))
			}
			for _, span := range spans {
				if got := attrOf(span, attrReason).AsString(); got != string(becauseUnreachable) {
					t.Errorf("the reason is %q", got)
				}
				checkCause(t, span, test.want, test.code)
			}
		})
	}
}

// A failure stays, with the time at which the server was reached again.
func TestConnectFailureRecovers(t *testing.T) {
	cluster := sharedCluster(t)
	pool := poolIn(t, cluster, "ord")
	link := cluster.Link("ord", "ord")
	link.Cut()
	t.Cleanup(link.Restore)
	if replicaServes(t, t.Context(), pool) {
		t.Fatal("the replica serves")
	}
	before := pool.Stat()
	link.Restore()
	eventually(t, "the replica serves again", func() bool { return replicaServes(t, t.Context(), pool) })
	f := failureOf(pool, "replica", "ord")
	if f == nil || f.Err == nil || !f.Recovered.After(f.At) {
		t.Fatalf("the failure is %v", f)
	}
	if old := before.ConnectFailures(); len(old) != 1 || !old[0].Recovered.IsZero() {
		t.Errorf("the snapshot has become %v", old)
	}
}

// The primary's failures are noted too, and its connections' tracer is the one that notes them.
func TestPrimaryConnectFailure(t *testing.T) {
	cluster := sharedCluster(t)
	pool := poolIn(t, cluster, "ord")
	link := cluster.Link("ord", "nrt")
	link.Cut()
	t.Cleanup(link.Restore)
	_, err := pool.Exec(t.Context(), "create table never (id int)")
	var connectErr *pgconn.ConnectError
	if !errors.As(err, &connectErr) {
		t.Fatalf("the error is %v", err)
	}
	f := failureOf(pool, "primary", "nrt")
	if f == nil || !errors.As(f.Err, &connectErr) || !f.Recovered.IsZero() || failureOf(pool, "replica", "ord") != nil {
		t.Fatalf("the failures are %v", pool.Stat().ConnectFailures())
	}
	link.Restore()
	if _, err := pool.Exec(WithPrimary(t.Context()), "select 1"); err != nil {
		t.Fatal(err)
	}
	if f = failureOf(pool, "primary", "nrt"); f == nil || !f.Recovered.After(f.At) {
		t.Errorf("the failure is %v", f)
	}

	// Who gives up tells nothing about a server.
	fresh := poolIn(t, cluster, "ord")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, ctx := range []context.Context{WithPrimary(canceled), WithReplica(canceled)} {
		if _, err := fresh.Exec(ctx, "select 1"); !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
	}
	if failures := fresh.Stat().ConnectFailures(); failures != nil {
		t.Errorf("the failures are %v", failures)
	}
	plain := poolIn(t, cluster, "nrt")
	if failures := plain.Stat().ConnectFailures(); failures != nil {
		t.Errorf("the failures of a plain pool are %v", failures)
	}
}
