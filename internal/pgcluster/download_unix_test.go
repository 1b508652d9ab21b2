//go:build unix

package pgcluster

import (
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
)

// What is downloaded under a umask that closes files to others can be run by others, and a copy that an earlier version
// left closed is opened.
func TestDownloadUmask(t *testing.T) {
	good := archive(t)
	var requests atomic.Int32
	cache := noPostgres(t, serve(t, "", func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		_, _ = w.Write(good)
	}))
	must(t, os.Remove(cache))
	defer syscall.Umask(syscall.Umask(0o077))
	b := installed(t)
	home := filepath.Dir(b.dir)
	must(t, filepath.WalkDir(home, func(path string, entry fs.DirEntry, err error) error {
		must(t, err)
		info, err := entry.Info()
		must(t, err)
		want := fs.FileMode(0o755)
		if entry.Name() == "sample" {
			want = 0o644
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode().Perm(), want)
		}
		return nil
	}))
	startCluster(t, Config{})
	if requests.Load() != 1 {
		t.Errorf("downloaded %d times", requests.Load())
	}

	if os.Geteuid() != 0 {
		return // who runs the servers is who owns the files
	}
	must(t, filepath.WalkDir(cache, func(path string, entry fs.DirEntry, err error) error {
		must(t, err)
		if entry.Name() == "sample" {
			return os.Chmod(path, 0o600)
		}
		return os.Chmod(path, 0o700)
	}))
	startCluster(t, Config{})
	if requests.Load() != 1 {
		t.Errorf("downloaded %d times", requests.Load())
	}
}
