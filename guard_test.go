package flyregion

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestGuardEndsAllStuckCalls has a call get stuck while the replica is asked because of another one. Neither waits for a second
// question.
func TestGuardEndsAllStuckCalls(t *testing.T) {
	t.Parallel()
	var (
		wg     sync.WaitGroup
		asked  atomic.Int64
		asking = make(chan struct{}, 10)
		answer = make(chan bool)
	)
	defer wg.Wait()
	g := newGuard("ord", func(context.Context) bool {
		asked.Add(1)
		asking <- struct{}{}
		return <-answer // false: it does not answer
	}, func(f func(context.Context)) bool {
		wg.Go(func() { f(t.Context()) })
		return true
	}, func(error) {})
	defer g.close()
	release := sync.OnceFunc(func() { close(answer) })
	defer release()

	read := func() (*guardedConn, <-chan error) {
		near, far := net.Pipe()
		t.Cleanup(func() { near.Close(); far.Close() })
		conn, err := g.dial(func(context.Context, string, string) (net.Conn, error) { return near, nil })(t.Context(), "", "")
		noError(t, err)
		ended := make(chan error, 1)
		go func() {
			_, err := conn.Read(make([]byte, 1))
			ended <- err
		}()
		return conn.(*guardedConn), ended
	}
	_, first := read()
	<-asking
	conn, second := read()
	eventually(t, "the second call is stuck", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return conn.checks >= stuckChecks
	})
	release()
	for _, ended := range []<-chan error{first, second} {
		var silent *silentError
		if err := <-ended; !errors.As(err, &silent) {
			t.Errorf("a stuck call ends with %v", err)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the replica was asked %d times", n)
	}
}

// TestIdleConnOfSilentReplica has a read take a connection that was idle for so long that pgxpool pings it, of a replica that was
// heard a moment ago and is silent now. The read waits for it no longer than MaxReplicaWait.
func TestIdleConnOfSilentReplica(t *testing.T) {
	cluster := sharedCluster(t)
	link := cluster.Link("ord", "ord")
	t.Cleanup(link.Restore)
	pool := poolIn(t, cluster, "ord")
	awaitReplica(t, t.Context(), pool)
	ctx := WithReplica(t.Context())
	read := func(sql string) error { return pool.QueryRow(ctx, sql).Scan(new(string)) }

	r := pool.replicas.preferred()
	var wg sync.WaitGroup
	eventually(t, "there are two connections", func() bool {
		for range 2 {
			wg.Go(func() {
				if err := read("select pg_sleep(0.05)"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return r.open.Load() > 1
	})
	// One of them is in use all the time, the others are not.
	for began := time.Now(); time.Since(began) < 1500*time.Millisecond; {
		noError(t, read("select 'x'"))
	}
	link.Stall()
	wg.Go(func() { _ = read("select 'x'") })
	eventually(t, "a read uses the first connection", func() bool { return r.used.Load() == 1 })
	if err := read("select 'x'"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the read ends with %v", err)
	}
	link.Restore()
	wg.Wait()
}
