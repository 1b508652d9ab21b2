package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Kill ends all of the server's processes at once (SIGKILL), as when its machine loses power, and returns when they are
// gone. Start works afterwards: the server then recovers, a replica from its last restartpoint. Kill does nothing if the
// server is not running.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errStopped
	}
	if p, ok := readPostmaster(s.data()); ok {
		if err := s.killAll(p); err != nil {
			return err
		}
	}
	return nil
}

// killAll kills all processes of the server, waits until they are gone and removes their shared memory.
func (s *Server) killAll(p postmaster) error {
	// A frozen postmaster starts no further child and tells no child to end by itself.
	kill(p.pid, signalFreeze)
	pids := append(children(p.pid), p.pid)
	for i := len(pids) - 1; i >= 0; i-- {
		kill(pids[i], signalKill)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := waitGone(ctx, pids...); err != nil {
		return fmt.Errorf("pgcluster: server %s survives SIGKILL: %w", s.name, err)
	}
	// A zombie still has its process id: PostgreSQL would take it for a server that runs on this data.
	file := filepath.Join(s.data(), "postmaster.pid")
	p.removeMemory()
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Freeze stops all of the server's processes (SIGSTOP), as when its machine is suspended: connections stay open, and the kernel
// takes new ones, but nothing answers until Thaw. It does nothing if the server is not running.
func (s *Server) Freeze() { s.signal(signalFreeze) }

// Thaw lets the processes run on after Freeze.
func (s *Server) Thaw() { s.signal(signalThaw) }

// signal sends a signal to the postmaster and then to its children, of which a frozen one starts no more.
func (s *Server) signal(signal syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := readPostmaster(s.data()); ok && !s.closed {
		p.signal(signal)
	}
}

func (p postmaster) signal(signal syscall.Signal) {
	kill(p.pid, signal)
	for _, pid := range children(p.pid) {
		kill(pid, signal)
	}
}

// Crash kills one server process (SIGKILL), upon which the postmaster ends all others and recovers without ending
// itself: the server loses its shared memory but not its start time. Crash returns when it accepts connections again.
func (s *Server) Crash(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	witness, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer witness.Close(context.WithoutCancel(ctx))
	victim, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer victim.Close(context.WithoutCancel(ctx))
	kill(int(victim.PgConn().PID()), signalKill)
	// The postmaster has noticed when it has ended the other session. Until then it still takes connections.
	err = poll(ctx, func() bool {
		_, err := witness.Exec(ctx, "select")
		return err != nil
	})
	if err == nil {
		err = poll(ctx, func() bool {
			return s.connected(ctx, func(conn *pgx.Conn) error { return nil }) == nil
		})
	}
	if err != nil {
		return fmt.Errorf("pgcluster: crash of server %s: %w", s.name, err)
	}
	return nil
}

// PauseReplay makes a replica receive WAL but no longer replay it, and returns when it has come to a halt.
func (s *Server) PauseReplay(ctx context.Context) error {
	return s.connected(ctx, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, "select pg_wal_replay_pause()"); err != nil {
			return err
		}
		return pollQuery(ctx, conn, "select pg_get_wal_replay_pause_state() = 'paused'")
	})
}

// ResumeReplay makes a replica replay again after PauseReplay. It does not wait until the replica has caught up: see
// WaitReplayed.
func (s *Server) ResumeReplay(ctx context.Context) error {
	return s.Exec(ctx, "select pg_wal_replay_resume()")
}

// DelayReplay makes a replica replay each commit only when it is that old, also after the replica was started anew: so one
// that is killed comes back older than it was. Without a delay it replays again as soon as it can.
func (s *Server) DelayReplay(ctx context.Context, delay time.Duration) error {
	return s.connected(ctx, func(conn *pgx.Conn) error {
		change := "alter system reset recovery_min_apply_delay"
		if delay > 0 {
			change = fmt.Sprintf("alter system set recovery_min_apply_delay = '%dms'", delay.Milliseconds())
		}
		if _, err := conn.Exec(ctx, change); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, "select pg_reload_conf()")
		return err
	})
}

// WaitReplayed returns when the replica has replayed all that the leader had written to its WAL when it was called. On the
// leader itself it returns at once.
func (s *Server) WaitReplayed(ctx context.Context) error {
	leader := s.cluster.Leader()
	if s == leader {
		return nil
	}
	var position string
	err := leader.connected(ctx, func(conn *pgx.Conn) error {
		// The log may be flushed up to the middle of a record, which nothing ends before the log writer's next round. A
		// commit ends it at once.
		var rest int64
		err := conn.QueryRow(ctx, "select pg_current_wal_insert_lsn() - pg_current_wal_flush_lsn()").Scan(&rest)
		if err == nil && rest > 0 {
			_, err = conn.Exec(ctx, "set synchronous_commit = local; select pg_logical_emit_message(true, '', '')")
		}
		if err != nil {
			return err
		}
		return conn.QueryRow(ctx, "select pg_current_wal_flush_lsn()::text").Scan(&position)
	})
	if err != nil {
		return err
	}
	return s.connected(ctx, func(conn *pgx.Conn) error {
		return pollQuery(ctx, conn, "select coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)", position)
	})
}

// pollQuery runs a query until it returns true.
func pollQuery(ctx context.Context, conn *pgx.Conn, sql string, args ...any) error {
	var queryErr error
	err := poll(ctx, func() bool {
		var done bool
		queryErr = conn.QueryRow(ctx, sql, args...).Scan(&done)
		return done || queryErr != nil
	})
	return errors.Join(queryErr, err)
}
