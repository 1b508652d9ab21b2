package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrNoBouncer is what StartBouncer's error is if PgBouncer is not installed.
var ErrNoBouncer = errors.New("PgBouncer is not installed (for example: apt-get install pgbouncer)")

// Bouncer is a PgBouncer in front of one of a cluster's servers: a real one, in a process of its own. When the process ends
// by itself it is started again, as a service manager does. PgBouncer before 1.21 ends itself when it loses a server while
// it cancels a statement there (https://github.com/pgbouncer/pgbouncer/issues/822).
type Bouncer struct {
	cluster  *Cluster
	folder   string
	port     int
	release  func() // of the port
	link     *Link
	upstream *net.TCPListener // where it finds its server
	failures atomic.Int64

	mu      sync.Mutex
	cmd     *exec.Cmd     // nil before the first start
	ended   chan struct{} // closed when the process of cmd has ended
	stopped bool          // no further process is to be started

	supervisor sync.WaitGroup
	stopOnce   sync.Once
	stopErr    error
}

// StartBouncer starts a PgBouncer and returns when it answers. It leads to the server in a region or, if the region is
// empty, to the leader, whichever that is when it connects. Its settings, such as pool_mode, are those of the section
// [pgbouncer] of its configuration, besides those that it needs to run. It stops with the cluster. The error is ErrNoBouncer
// if PgBouncer is not installed.
func (c *Cluster) StartBouncer(ctx context.Context, region string, settings map[string]string) (*Bouncer, error) {
	program, err := findBouncer()
	if err != nil {
		return nil, err
	}
	to, at := c.Leader, c.Leader().region
	if region != "" {
		server := c.Server(region)
		if server == nil {
			return nil, fmt.Errorf("pgcluster: a bouncer for %q: there is no server", region)
		}
		to, at = func() *Server { return server }, region
	}
	b := &Bouncer{cluster: c, link: newLink()}
	c.mu.Lock()
	stopped := c.stopped
	if !stopped {
		c.bouncers = append(c.bouncers, b)
		b.folder = filepath.Join(c.folder, fmt.Sprintf("bouncer-%d", len(c.bouncers)))
	}
	c.mu.Unlock()
	if stopped {
		return nil, errStopped
	}
	if err := b.start(ctx, program, at, to, settings); err != nil {
		return nil, errors.Join(fmt.Errorf("pgcluster: starting PgBouncer: %w", err), b.Stop())
	}
	return b, nil
}

// findBouncer returns PgBouncer's path. Debian keeps it where ordinary users do not look for programs.
func findBouncer() (string, error) {
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer", "/usr/local/sbin/pgbouncer"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNoBouncer
}

func (b *Bouncer) start(ctx context.Context, program, region string, to func() *Server, settings map[string]string) (err error) {
	c := b.cluster
	if b.upstream, err = c.relay(c.live, b.link, region, to); err != nil {
		return err
	}
	if b.port, b.release, err = reservePort(); err != nil {
		return err
	}
	if err := os.Mkdir(b.folder, 0o711); err != nil {
		return err
	}
	prefix, err := c.account.prefix()
	if err != nil {
		return err
	}
	if err := writeScript(b.script(), prefix, program); err != nil {
		return err
	}
	all := map[string]string{
		"listen_addr":        "127.0.0.1",
		"listen_port":        strconv.Itoa(b.port),
		"unix_socket_dir":    "",
		"auth_type":          "trust",
		"auth_file":          filepath.Join(b.folder, "users"),
		"pidfile":            b.pidFile(),
		"logfile":            b.logFile(),
		"max_client_conn":    "500",
		"server_tls_sslmode": "disable",
		// After a failed login it tries its server again soon, and not after 15 s.
		"server_login_retry": "0.1",
	}
	maps.Copy(all, settings)
	var text strings.Builder
	fmt.Fprintf(&text, "[databases]\n* = host=127.0.0.1 port=%s\n[pgbouncer]\n", portOf(b.upstream.Addr()))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&text, "%s = %s\n", name, all[name])
	}
	for path, content := range map[string]string{b.ini(): text.String(), all["auth_file"]: fmt.Sprintf("%q %q\n", superuser, password)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return err
		}
		if err := c.account.own(path); err != nil {
			return err
		}
	}
	if err := c.account.own(b.folder); err != nil {
		return err
	}

	if err := b.launch(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var last error
	err = poll(ctx, func() bool {
		select {
		case <-b.ended:
			return true
		default:
		}
		var conn *pgx.Conn
		if conn, last = pgx.Connect(ctx, b.ConnString()); last != nil {
			return false
		}
		_ = conn.Close(ctx)
		return true
	})
	if err != nil || last != nil {
		log, _ := b.Log()
		return fmt.Errorf("%w\nit logged:\n%s", errors.Join(err, last), log)
	}
	b.supervisor.Go(b.supervise)
	return nil
}

// launch starts the process, unless the bouncer was stopped.
func (b *Bouncer) launch() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return errStopped
	}
	cmd := exec.Command(b.script(), "-q", b.ini())
	detach(cmd)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	b.cmd, b.ended = cmd, ended
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	return nil
}

// supervise starts the process again when it has ended, until the bouncer is stopped.
func (b *Bouncer) supervise() {
	for {
		<-b.ended // which only launch changes
		b.mu.Lock()
		stopped := b.stopped
		if !stopped {
			b.failures.Add(1)
			// The id in it may soon be that of another process, and that of a zombie would keep the next PgBouncer from starting.
			_ = os.Remove(b.pidFile())
		}
		b.mu.Unlock()
		if stopped || sleep(b.cluster.live, 100*time.Millisecond) != nil || b.launch() != nil {
			return
		}
	}
}

func (b *Bouncer) pidFile() string { return filepath.Join(b.folder, "bouncer.pid") }
func (b *Bouncer) logFile() string { return filepath.Join(b.folder, "log") }
func (b *Bouncer) script() string  { return filepath.Join(b.folder, "pgbouncer") }
func (b *Bouncer) ini() string     { return filepath.Join(b.folder, "ini") }

// Addr returns the address that it listens on, 127.0.0.1 and a port.
func (b *Bouncer) Addr() string {
	return fmt.Sprintf("127.0.0.1:%d", b.port)
}

// ConnString returns a URL for a connection through it as superuser.
func (b *Bouncer) ConnString() string {
	return fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable", superuser, password, b.Addr(), database)
}

// Log returns all that it has logged so far.
func (b *Bouncer) Log() (string, error) {
	text, err := os.ReadFile(b.logFile())
	return string(text), err
}

// Link returns the path from it to its server.
func (b *Bouncer) Link() *Link {
	return b.link
}

// Reconnect closes its connections to its server, so that it makes new ones: to the leader of then, if it leads to that.
// Those of its clients stay.
func (b *Bouncer) Reconnect() {
	b.link.reset()
}

// Failures returns how often its process has ended without Stop, by itself or by Kill. The process is soon started again.
func (b *Bouncer) Failures() int64 {
	return b.failures.Load()
}

// Kill ends its process at once (SIGKILL). It does not wait for the next one.
func (b *Bouncer) Kill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kill()
}

// kill ends the process and returns the ids to wait for. The process that was started may be the parent of PgBouncer, which
// it runs as another user: PgBouncer's own id is in its pid file. b.mu is held.
func (b *Bouncer) kill() (pids []int) {
	select {
	case <-b.ended:
		return nil
	default:
	}
	pids = []int{b.cmd.Process.Pid}
	if text, err := os.ReadFile(b.pidFile()); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && pid > 1 && pid != pids[0] {
			pids = append(pids, pid)
		}
	}
	for _, pid := range pids {
		kill(pid, signalKill)
	}
	return pids
}

// Stop ends it and returns when it has gone. Further calls do nothing and return what the first one did.
func (b *Bouncer) Stop() error {
	b.stopOnce.Do(func() {
		b.stopErr = b.stop()
		if b.upstream != nil {
			b.upstream.Close()
		}
		b.link.close()
		if b.release != nil {
			b.release()
		}
	})
	return b.stopErr
}

func (b *Bouncer) stop() error {
	b.mu.Lock()
	b.stopped = true
	var pids []int
	if b.cmd != nil {
		pids = b.kill()
	}
	b.mu.Unlock()
	b.supervisor.Wait()
	if b.cmd == nil {
		return os.RemoveAll(b.folder)
	}
	<-b.ended
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := waitGone(ctx, pids...); err != nil {
		return fmt.Errorf("pgcluster: PgBouncer survives SIGKILL: %w", err)
	}
	return os.RemoveAll(b.folder)
}
