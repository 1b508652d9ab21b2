package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Backup is a copy of a server's data, as it was at one moment.
type Backup struct {
	server *Server
	folder string
}

// Backup copies the server's data. A server that is running is stopped meanwhile, so that its sessions end.
func (s *Server) Backup(ctx context.Context) (*Backup, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	running := s.Running()
	if err := s.stop(ctx); err != nil {
		return nil, err
	}
	b := &Backup{server: s}
	for i := 1; ; i++ {
		b.folder = filepath.Join(s.folder, fmt.Sprintf("backup-%d", i))
		if _, err := os.Stat(b.folder); errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	err := run(ctx, "cp", "-pR", s.data(), b.folder)
	if running {
		err = errors.Join(err, s.start(ctx, false))
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Restore makes the server go on from a backup of its own, on the same timeline, as if what it has done since had never
// been. It is killed if it is running, and is running when Restore returns: as the leader if it is that now, else as a
// replica. Other servers keep what they have, and may be ahead of it then. The backup can be restored again.
func (s *Server) Restore(ctx context.Context, b *Backup) error {
	if b.server != s {
		return fmt.Errorf("pgcluster: a backup of the server in %s cannot be restored in %s", b.server.region, s.region)
	}
	if err := s.Kill(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.RemoveAll(s.data()); err != nil {
		return err
	}
	if err := run(ctx, "cp", "-pR", b.folder, s.data()); err != nil {
		return err
	}
	if s.source() != nil {
		if err := s.follow(); err != nil {
			return err
		}
	} else if err := os.Remove(filepath.Join(s.data(), "standby.signal")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return s.start(ctx, false)
}
