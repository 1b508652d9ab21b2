package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// downloadedBinaries returns the PostgreSQL that was downloaded. The first time it downloads it, into the folder
// postgresql-<version>-<system> of the cache folder, where it stays.
func downloadedBinaries(ctx context.Context, a account, p progress) (binaries, error) {
	cache, err := cacheFolder(a)
	if err != nil {
		return binaries{}, err
	}
	home := filepath.Join(cache, fmt.Sprintf("postgresql-%s-%s-%s", downloadVersion, runtime.GOOS, runtime.GOARCH))
	if b, err := cachedBinaries(ctx, a, home); err == nil {
		return b, nil
	}
	unlock, err := lock(ctx, cache, p)
	if err != nil {
		return binaries{}, err
	}
	defer unlock()
	// Another process may have been faster.
	if b, err := cachedBinaries(ctx, a, home); err == nil {
		return b, nil
	}
	if err := ctx.Err(); err != nil {
		return binaries{}, err
	}
	if err := download(ctx, a, cache, home, p); err != nil {
		return binaries{}, err
	}
	return inspectBinaries(ctx, a, filepath.Join(home, "bin"))
}

// cachedBinaries returns what was downloaded before. It mends a copy that the account cannot read.
func cachedBinaries(ctx context.Context, a account, home string) (binaries, error) {
	bin := filepath.Join(home, "bin")
	b, err := inspectBinaries(ctx, a, bin)
	if err == nil || errors.Is(err, os.ErrNotExist) || ctx.Err() != nil {
		return b, err
	}
	if err := openToAll(home); err != nil {
		return binaries{}, err
	}
	return inspectBinaries(ctx, a, bin)
}

// download makes the folder home, in place of a broken one if there is one. All is done in a folder of its own that is
// renamed in the end. It is removed whatever happens, also when this process is killed.
func download(ctx context.Context, a account, cache, home string, p progress) error {
	repo, err := newRepository()
	if err != nil {
		return err
	}
	defer repo.client.CloseIdleConnections()
	tmp, err := os.MkdirTemp(cache, "download-")
	if err != nil {
		return err
	}
	r, err := startReaper(tmp)
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	defer func() {
		_ = os.RemoveAll(tmp) // or the reaper does
		r.stop()
	}()
	if err := os.Chmod(tmp, 0o711); err != nil {
		return err
	}

	p.step("downloading PostgreSQL " + downloadVersion)
	if err := repo.fetch(ctx, downloadVersion, tmp, p.received); err != nil {
		return err
	}
	p.step("unpacking PostgreSQL " + downloadVersion)
	unpacked, err := unpack(ctx, tmp)
	if err != nil {
		return err
	}
	if err := openToAll(unpacked); err != nil {
		return err
	}
	if _, err := inspectBinaries(ctx, a, filepath.Join(unpacked, "bin")); err != nil {
		return fmt.Errorf("what was downloaded does not run here: %w", err)
	}
	if err := os.Rename(home, filepath.Join(tmp, "broken")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Rename(unpacked, home)
}

// lock waits until no other process downloads into the folder, and keeps others waiting until unlock is called. Where the
// file system has no locks each process downloads for itself, and the last one stays.
func lock(ctx context.Context, folder string, p progress) (unlock func(), err error) {
	file, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	if !tryLock(file) {
		p.step("waiting for another process that downloads PostgreSQL")
		if err := poll(ctx, func() bool { return tryLock(file) }); err != nil {
			file.Close()
			return nil, err
		}
	}
	return func() { file.Close() }, nil
}

// openToAll lets everyone read what is in the folder, and run what its owner may run. The servers may run as another user
// than the one who unpacked it, whose umask may have closed it.
func openToAll(folder string) error {
	return filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() | 0o444
		if entry.IsDir() || mode&0o100 != 0 {
			mode |= 0o111
		}
		if mode == info.Mode().Perm() {
			return nil
		}
		return os.Chmod(path, mode)
	})
}

// cacheFolder returns the folder that downloads are kept in. If the servers run as another user, that user can reach it:
// root's home folder is closed to others as a rule.
func cacheFolder(a account) (string, error) {
	dir, err := os.UserCacheDir()
	if a.name != "" && (err != nil || !worldSearchable(dir)) {
		dir, err = "/var/cache", nil
	}
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "flyregion")
	if a.name == "" {
		return dir, os.MkdirAll(dir, 0o755)
	}
	if err := makeOpen(dir); err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// makeOpen makes a folder, and those above it, that everyone may enter whatever the umask.
func makeOpen(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, os.ErrNotExist) {
		if err := makeOpen(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o755)
	}
	switch {
	case err == nil:
		return os.Chmod(dir, 0o755)
	case errors.Is(err, os.ErrExist):
		return nil
	default:
		return err
	}
}
