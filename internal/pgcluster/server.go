package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

var errStopped = errors.New("pgcluster: the cluster was stopped")

// Server is one PostgreSQL server of a cluster: a real one, in processes of its own.
type Server struct {
	cluster     *Cluster
	region      string
	name        string
	machine     string
	ip          netip.Addr
	folder      string
	replication *Link            // to the server that this one streams from
	upstream    *net.TCPListener // what its primary_conninfo names
	follows     *Server          // that it streams from, nil for the leader; guarded by the cluster's mu

	mu      sync.Mutex // held while the server is started, stopped or killed
	release func()     // of the port
	closed  bool

	unlisted atomic.Bool

	portMu sync.Mutex
	port   int
}

// Region returns the server's region.
func (s *Server) Region() string {
	return s.region
}

// Name returns what Cluster.Server knows the server by.
func (s *Server) Name() string {
	return s.name
}

// Unlist takes the server's machine out of the answers to lookups, as when it is stopped or destroyed. The server itself runs
// on, and is reached at its address. List brings it back.
func (s *Server) Unlist() { s.unlisted.Store(true) }

// List is the reverse of Unlist.
func (s *Server) List() { s.unlisted.Store(false) }

// IP returns the address of the server's machine in the network of a Site.
func (s *Server) IP() string {
	return s.ip.String()
}

// Machine returns the id of the server's machine, as in <id>.vm.<app>.internal.
func (s *Server) Machine() string {
	return s.machine
}

// Addr returns the address that the server really listens on, 127.0.0.1 and a port. It is reached there without latency,
// and whatever the state of the links. It stays the same when the server is stopped and started.
func (s *Server) Addr() string {
	s.portMu.Lock()
	defer s.portMu.Unlock()
	return fmt.Sprintf("127.0.0.1:%d", s.port)
}

// ConnString returns a URL for a connection to Addr as superuser.
func (s *Server) ConnString() string {
	return fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable", superuser, password, s.Addr(), database)
}

// Exec runs sql as superuser on a connection of its own, straight on the server. Without args it may hold several
// statements.
func (s *Server) Exec(ctx context.Context, sql string, args ...any) error {
	return s.connected(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql, args...)
		return err
	})
}

// Running says whether the server's processes run. It may still be starting.
func (s *Server) Running() bool {
	_, ok := readPostmaster(s.data())
	return ok
}

// Log returns all that the server has logged so far.
func (s *Server) Log() (string, error) {
	text, err := os.ReadFile(filepath.Join(s.folder, "log", logFile))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}

// Start starts the server again after Stop or Kill, on the same data and the same port, and returns when it accepts
// connections. It does nothing if the server is running. A server that was the leader before another one was promoted
// starts as a replica.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.start(ctx, false)
}

// Stop shuts the server down (PostgreSQL's fast shutdown: sessions are ended, nothing is lost) and returns when it is
// down. It does nothing if the server is not running. When ctx ends first, the server is made to stop at once.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stop(ctx)
}

// Restart is Stop and Start.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.stop(ctx); err != nil {
		return err
	}
	return s.start(ctx, false)
}

func (s *Server) data() string {
	return filepath.Join(s.folder, "data")
}

// connected calls use with a connection of its own. If replay cancels what use runs on a standby, it calls use again.
func (s *Server) connected(ctx context.Context, use func(*pgx.Conn) error) error {
	for {
		err := s.connectedOnce(ctx, use)
		if !isConflict(err) || ctx.Err() != nil {
			return err
		}
	}
}

func (s *Server) connectedOnce(ctx context.Context, use func(*pgx.Conn) error) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return use(conn)
}

// isConflict reports whether replay has canceled a statement, or ended the session.
func isConflict(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && strings.HasSuffix(pgErr.Message, "due to conflict with recovery")
}

func (s *Server) connect(ctx context.Context) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(s.ConnString())
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["application_name"] = "pgcluster"
	return pgx.ConnectConfig(ctx, config)
}

// start starts the server. The first time it may choose another port.
func (s *Server) start(ctx context.Context, first bool) error {
	if s.closed {
		return errStopped
	}
	if s.Running() {
		return nil
	}
	for attempt := 1; ; attempt++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		lost, err := s.startOnce(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !lost || attempt == 10 {
			return fmt.Errorf("pgcluster: starting server %s: %w", s.name, err)
		}
		// Somebody else has the port. That is all but impossible where ports can be reserved.
		if first {
			if err := s.choosePort(); err != nil {
				return err
			}
		} else if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// startOnce starts the server. lost says whether it failed because its port is taken.
func (s *Server) startOnce(ctx context.Context) (lost bool, err error) {
	before, _ := s.Log()
	err = s.control(ctx)
	if err == nil {
		return false, nil
	}
	s.destroy()
	lost = strings.Contains(s.loggedSince(before), "could not create any TCP/IP sockets")
	return lost, s.withLog(err, before)
}

// loggedSince returns what the server has logged since its log was before.
func (s *Server) loggedSince(before string) string {
	after, _ := s.Log()
	return strings.TrimSpace(strings.TrimPrefix(after, before))
}

// withLog adds to an error what the server has logged since its log was before.
func (s *Server) withLog(err error, before string) error {
	if logged := s.loggedSince(before); logged != "" {
		return fmt.Errorf("%w\nthe server logged:\n%s", err, logged)
	}
	return err
}

// control runs pg_ctl, which starts the server and returns when that accepts connections.
func (s *Server) control(ctx context.Context) error {
	// What is printed goes to a file: the server inherits it and would keep a pipe open.
	output, err := os.CreateTemp(s.folder, "start-")
	if err != nil {
		return err
	}
	defer os.Remove(output.Name())
	defer output.Close()
	cmd := exec.Command(filepath.Join(s.cluster.folder, "bin", "pg_ctl"),
		"start", "-w", "-D", s.data(), "-o", fmt.Sprintf("-p %d", s.port))
	cmd.Stdout, cmd.Stderr = output, output
	detach(cmd)

	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = s.abort(ended)
	}
	if err == nil {
		return ctx.Err()
	}
	text, _ := os.ReadFile(output.Name())
	return fmt.Errorf("pg_ctl: %w\n%s", err, strings.TrimSpace(string(text)))
}

// abort stops the server that pg_ctl is starting, and returns how pg_ctl ended. It does not kill pg_ctl, which may be
// about to make a server that nobody would know of then. pg_ctl ends by itself when the server has.
func (s *Server) abort(ended <-chan error) error {
	for {
		if p, ok := readPostmaster(s.data()); ok {
			kill(p.pid, signalImmediate)
		}
		select {
		case err := <-ended:
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (s *Server) stop(ctx context.Context) error {
	if s.closed {
		return errStopped
	}
	p, ok := readPostmaster(s.data())
	if !ok {
		return nil
	}
	hurry := context.AfterFunc(ctx, func() { kill(p.pid, signalImmediate) })
	defer hurry()
	kill(p.pid, signalFast)
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := waitGone(patience, p.pid); err != nil {
		return fmt.Errorf("pgcluster: stopping server %s: %w", s.name, err)
	}
	return ctx.Err()
}

// close stops the server for good, at once.
func (s *Server) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	err := s.destroy()
	if s.release != nil {
		s.release()
	}
	return err
}

// destroy stops the server at once, and by force if need be. Its data will need recovery.
func (s *Server) destroy() error {
	p, ok := readPostmaster(s.data())
	if ok {
		kill(p.pid, signalImmediate)
		p.signal(signalThaw)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if waitGone(ctx, p.pid) != nil {
			if err := s.killAll(p); err != nil {
				return err
			}
		}
	}
	if _, err := os.Stat(filepath.Join(s.data(), "postmaster.pid")); err == nil {
		p.removeMemory() // nobody else will
	}
	return nil
}

func (s *Server) choosePort() error {
	port, release, err := reservePort()
	if err != nil {
		return fmt.Errorf("pgcluster: a port for server %s: %w", s.name, err)
	}
	if s.release != nil {
		s.release()
	}
	s.release = release
	s.portMu.Lock()
	defer s.portMu.Unlock()
	s.port = port
	return nil
}
