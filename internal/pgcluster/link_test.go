package pgcluster

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestLatency(t *testing.T) {
	t.Parallel()
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	link := c.Link("ord", "nrt")
	c.SetLatency("nrt", "ord", 30*time.Millisecond)

	atLeast := func(what string, want time.Duration, do func()) {
		t.Helper()
		start := time.Now()
		do()
		if took := time.Since(start); took < want {
			t.Errorf("%s took %v, want at least %v", what, took, want)
		}
	}

	var conn *pgx.Conn
	atLeast("connecting", 90*time.Millisecond, func() {
		conn = connect(t, c, "ord", "nrt.app.internal", 5433) // TCP, the startup message and the password
	})
	if n := link.Turns(); n != 2 {
		t.Errorf("connecting took %d turns", n)
	}
	atLeast("a query", 30*time.Millisecond, func() { execute(t, conn, "select 1") })
	if n := link.Turns(); n != 3 {
		t.Errorf("a query took %d turns", n-2)
	}
	before, beforeClient := link.Bytes()
	atLeast("a batch", 30*time.Millisecond, func() {
		batch := &pgx.Batch{}
		for range 50 {
			batch.Queue("select repeat('x', 1000)")
		}
		must(t, conn.SendBatch(testContext(t), batch).Close())
	})
	if toServer, toClient := link.Bytes(); toServer <= before || toClient-beforeClient < 1000 {
		t.Errorf("%d and %d bytes", toServer-before, toClient-beforeClient)
	}

	// It applies to connections that are open.
	c.SetLatency("ord", "nrt", 80*time.Millisecond)
	atLeast("a query", 80*time.Millisecond, func() { execute(t, conn, "select 1") })
	c.SetLatency("ord", "nrt", 0)
	execute(t, conn, "select 1")

	// The proxy beside the replica leads to the leader.
	c.SetLatency("fra", "ord", 40*time.Millisecond)
	c.SetLatency("nrt", "ord", 30*time.Millisecond)
	conn = connect(t, c, "fra", "ord.app.internal", 5432)
	if queryOne[bool](t, conn, "select pg_is_in_recovery()") {
		t.Error("port 5432 does not lead to the leader")
	}
	atLeast("a query through the proxy", 70*time.Millisecond, func() { execute(t, conn, "select 1") })

	// And the replica gets its WAL as late.
	replica := connect(t, c, "ord", "ord.app.internal", 5433)
	direct, err := c.Leader().connect(testContext(t))
	must(t, err)
	defer direct.Close(context.Background())
	must(t, c.Server("ord").WaitReplayed(testContext(t)))
	c.SetLatency("nrt", "ord", 100*time.Millisecond)
	start := time.Now()
	execute(t, direct, "create table t ()")
	eventually(t, "the table is on the replica", func() bool {
		return queryOne[bool](t, replica, "select to_regclass('t') is not null")
	})
	if took := time.Since(start); took < 50*time.Millisecond {
		t.Errorf("the replica had it after %v", took)
	}
}

func TestLinkCut(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	link := c.Link("ord", "nrt")
	conn := connect(t, c, "ord", "nrt.app.internal", 5432)
	other := connect(t, c, "ord", "ord.app.internal", 5433)
	if link.Conns() != 1 {
		t.Errorf("%d connections", link.Conns())
	}
	link.Cut()
	if err := conn.Ping(ctx); err == nil {
		t.Error("a connection survived the cut")
	}
	if link.Conns() != 0 {
		t.Errorf("%d connections", link.Conns())
	}
	for _, port := range []int{5432, 5433} {
		if _, err := tryConnect(ctx, c, "ord", "nrt.app.internal", port); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("connecting over a link that is cut: %v", err)
		}
	}
	must(t, other.Ping(ctx))
	connect(t, c, "syd", "nrt.app.internal", 5432)
	link.Restore()
	connect(t, c, "ord", "nrt.app.internal", 5432)

	// A WAL stream that is cut comes back.
	replication := c.Replication("ord")
	replication.Cut()
	must(t, c.Leader().Exec(ctx, "create table t ()"))
	if queryOne[bool](t, other, "select to_regclass('t') is not null") {
		t.Error("WAL passes a link that is cut")
	}
	replication.Restore()
	must(t, c.Server("ord").WaitReplayed(ctx))
	if !queryOne[bool](t, other, "select to_regclass('t') is not null") {
		t.Error("WaitReplayed returned too early")
	}
}

func TestLinkStall(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	link := c.Link("ord", "nrt")
	conn := connect(t, c, "ord", "nrt.app.internal", 5432)
	link.Stall()
	before, _ := link.Bytes()
	answer := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "create table t ()")
		answer <- err
	}()
	connecting, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := tryConnect(connecting, c, "ord", "nrt.app.internal", 5432); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("connecting over a link that is stalled: %v", err)
	}
	select {
	case err := <-answer:
		t.Errorf("an answer came: %v", err)
	default:
	}
	if after, _ := link.Bytes(); after != before {
		t.Errorf("%d bytes passed", after-before)
	}
	link.Restore()
	must(t, <-answer)
	eventually(t, "the connection that was given up is gone", func() bool { return link.Conns() == 1 })

	// The black hole does not hold up Stop.
	link.Stall()
	c.Replication("ord").Stall()
	go conn.Exec(ctx, "select 1")
	must(t, c.Stop())
}

func TestLinkCutAfter(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{})
	link := c.Link("ord", "nrt")
	must(t, c.Leader().Exec(ctx, "create table t (n int)"))
	for _, latency := range []time.Duration{0, 5 * time.Millisecond} {
		c.SetLatency("ord", "nrt", latency)
		conn := connect(t, c, "ord", "nrt.app.internal", 5432)
		bystander := connect(t, c, "ord", "nrt.app.internal", 5432)
		link.CutAfter(func(chunk []byte) bool { return bytes.Contains(chunk, []byte("insert")) })
		execute(t, conn, "select 1")
		if _, err := conn.Exec(ctx, "insert into t values (1)"); err == nil {
			t.Error("the answer came through")
		}
		if err := bystander.Ping(ctx); err == nil {
			t.Error("the link is not cut for others")
		}
		if _, err := tryConnect(ctx, c, "ord", "nrt.app.internal", 5432); err == nil {
			t.Error("the link takes new connections")
		}
		if link.Conns() != 0 {
			t.Errorf("%d connections", link.Conns())
		}
		link.Restore()
		eventually(t, "the row is there", func() bool {
			conn := connect(t, c, "syd", "nrt.app.internal", 5432)
			defer conn.Close(ctx)
			n := queryOne[int](t, conn, "select count(*) from t")
			if n > 1 {
				t.Fatalf("%d rows", n)
			}
			return n == 1
		})
		conn = connect(t, c, "ord", "nrt.app.internal", 5432)
		execute(t, conn, "truncate t") // only once: it is not cut again
		conn.Close(ctx)
	}
}

func TestDialRefuses(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	site := c.From("ord")
	real := strings.TrimPrefix(c.Leader().Addr(), "127.0.0.1:")
	for _, addr := range []string{
		"nrt.app.internal:80", "nrt.app.internal:" + real, "[" + c.Leader().ip.String() + "]:5434", "[fdaa::99]:5433",
		"app.flycast:5433", c.Leader().Addr(),
	} {
		if _, err := site.DialContext(ctx, "tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	var dnsErr *net.DNSError
	if _, err := site.DialContext(ctx, "tcp", "fra.app.internal:5433"); !errors.As(err, &dnsErr) {
		t.Error(err)
	}
	if _, err := site.DialContext(ctx, "udp", "ord.app.internal:5433"); err == nil {
		t.Error("udp works")
	}
	if _, err := site.DialContext(ctx, "tcp", "ord.app.internal"); err == nil {
		t.Error("no port works")
	}

	conn := connect(t, c, "ord", "ord.app.internal", 5433)
	must(t, c.Server("ord").Stop(ctx))
	if err := conn.Ping(ctx); err == nil {
		t.Error("a connection survived its server")
	}
	if _, err := tryConnect(ctx, c, "ord", "ord.app.internal", 5433); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connecting to a server that is stopped: %v", err)
	}

	c.SetLatency("ord", "nrt", time.Hour)
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	_, err := site.DialContext(short, "tcp", "nrt.app.internal:5432")
	var netErr net.Error
	if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &netErr) || !netErr.Timeout() {
		t.Error(err)
	}
}

func TestCancelRequest(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	c := startCluster(t, Config{})
	conn := connect(t, c, "ord", "nrt.app.internal", 5432)
	if got := conn.PgConn().Conn().RemoteAddr().String(); got != "["+c.Server("nrt").ip.String()+"]:5432" {
		t.Errorf("remote address %s", got)
	}
	done := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "select pg_sleep(3600)")
		done <- err
	}()
	for {
		must(t, conn.PgConn().CancelRequest(ctx))
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), "57014") {
				t.Error(err)
			}
			return
		case <-time.After(50 * time.Millisecond): // it may have come before the query
		}
	}
}

// echo is a server that answers with what it gets, and closes its side when the client has closed its own.
func echo(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	return listener.Addr().String()
}

func joinEcho(t *testing.T, n *network, link *Link, way path, addr string) *net.TCPConn {
	t.Helper()
	server, err := net.Dial("tcp4", addr)
	must(t, err)
	near, far, err := n.pair(testContext(t))
	must(t, err)
	if !link.join(newConn(link, way, far, server.(*net.TCPConn))) {
		t.Fatal("the link is closed")
	}
	t.Cleanup(func() { near.Close() })
	return near
}

// Bytes keep their order whatever happens to the latency, many are in flight at a time, and a half-closed connection
// delivers the rest.
func TestFlowOrder(t *testing.T) {
	t.Parallel()
	n, err := newNetwork()
	must(t, err)
	link, addr := n.link("a", "b"), echo(t)
	t.Cleanup(n.close)
	leg := n.leg("a", "b")
	conn := joinEcho(t, n, link, path{leg}, addr)

	const chunks, size = 400, 10_000
	go func() {
		for i := range chunks {
			leg.Store(int64(i%7) * int64(time.Millisecond))
			if i == 200 {
				link.Stall()
				time.AfterFunc(20*time.Millisecond, link.Restore)
			}
			if _, err := conn.Write(bytes.Repeat([]byte{byte(i)}, size)); err != nil {
				t.Error(err)
			}
		}
		leg.Store(0)
		if err := conn.CloseWrite(); err != nil {
			t.Error(err)
		}
	}()
	got, err := io.ReadAll(conn)
	must(t, err)
	if len(got) != chunks*size {
		t.Fatalf("%d bytes", len(got))
	}
	for i, b := range got {
		if b != byte(i/size) {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
	if up, down := link.Bytes(); up != chunks*size || down != chunks*size {
		t.Errorf("%d and %d bytes", up, down)
	}
	eventually(t, "the connection is gone", func() bool { return link.Conns() == 0 })
}

// With a high latency a conversation that does not wait for answers is not slowed down: it is one round trip.
func TestFlowIsNotThrottled(t *testing.T) {
	t.Parallel()
	n, err := newNetwork()
	must(t, err)
	link, addr := n.link("a", "b"), echo(t)
	t.Cleanup(n.close)
	leg := n.leg("a", "b")
	leg.Store(int64(100 * time.Millisecond))
	conn := joinEcho(t, n, link, path{leg}, addr)
	start := time.Now()
	sent := make([]byte, 8<<20)
	go func() {
		conn.Write(sent)
		conn.CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	must(t, err)
	took := time.Since(start)
	if !bytes.Equal(got, sent) || took < 100*time.Millisecond {
		t.Errorf("%d bytes after %v", len(got), took)
	}
	t.Logf("%d MB there and back in %v at a round trip of 100ms", len(got)>>20, took)
}

func TestLinkResets(t *testing.T) {
	t.Parallel()
	n, err := newNetwork()
	must(t, err)
	link, addr := n.link("a", "b"), echo(t)
	t.Cleanup(n.close)
	conn := joinEcho(t, n, link, nil, addr)
	link.Cut()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read after a cut: %v", err)
	}
	link.Restore()
	conn = joinEcho(t, n, link, nil, addr)
	link.Stall()
	must(t, conn.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	_, err = conn.Write([]byte("x"))
	must(t, err)
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read on a stalled link: %v", err)
	}
	link.Restore()
	must(t, conn.SetReadDeadline(time.Time{}))
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Errorf("read after a stall: %v", err)
	}
}
