package flyregion

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
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
