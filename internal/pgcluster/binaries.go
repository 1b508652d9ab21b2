package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	// oldestMajor is the oldest PostgreSQL that has all that a cluster needs (pg_get_wal_replay_pause_state).
	oldestMajor = 14

	envPostgres   = "FLYREGION_POSTGRES"
	envRepository = "FLYREGION_POSTGRES_REPOSITORY"
)

// binaries is an installed PostgreSQL.
type binaries struct {
	dir     string // holds postgres, initdb and pg_ctl
	version string // for example "15.18"
}

// findBinaries finds the PostgreSQL to run: the one that FLYREGION_POSTGRES names, else the newest that is installed, else
// one that is downloaded once and kept in the user's cache folder.
func findBinaries(ctx context.Context, progress func(string)) (binaries, error) {
	switch value := os.Getenv(envPostgres); value {
	case "":
	case "embedded":
		b, err := downloadedBinaries(ctx, progress)
		if err != nil {
			return binaries{}, fmt.Errorf("pgcluster: %s=embedded, but PostgreSQL cannot be downloaded: %w; "+
				"set %s to a mirror, or %s to the folder of an installed PostgreSQL's postgres, initdb and pg_ctl",
				envPostgres, err, envRepository, envPostgres)
		}
		return b, nil
	default:
		b, err := inspectBinaries(ctx, value)
		if err != nil {
			return binaries{}, fmt.Errorf("pgcluster: %s=%q is not the bin folder of a PostgreSQL server: %w", envPostgres, value, err)
		}
		return b, nil
	}

	var unfit []error
	for _, dir := range installedFolders(ctx) {
		b, err := inspectBinaries(ctx, dir)
		if err == nil {
			return b, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			unfit = append(unfit, err)
		}
	}
	b, err := downloadedBinaries(ctx, progress)
	if err != nil {
		if ctx.Err() != nil {
			return binaries{}, ctx.Err()
		}
		err = errors.Join(append(unfit, err)...)
		return binaries{}, fmt.Errorf("pgcluster: no PostgreSQL server is installed and none can be downloaded: "+
			"install PostgreSQL %d or newer (for example: apt-get install postgresql, brew install postgresql), or set %s to "+
			"the folder that holds its postgres, initdb and pg_ctl: %w", oldestMajor, envPostgres, err)
	}
	return b, nil
}

// installedFolders returns the folders in which an installed PostgreSQL may be, the preferred one first.
func installedFolders(ctx context.Context) []string {
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	major := func(dir string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
		return n
	}
	slices.SortFunc(dirs, func(a, b string) int { return major(b) - major(a) })
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	return dirs
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) (([0-9]+)[0-9a-z.]*)`)

// inspectBinaries returns what is installed in dir. The error is an os.ErrNotExist if there is no server.
func inspectBinaries(ctx context.Context, dir string) (binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return binaries{}, err
	}
	for _, program := range []string{"postgres", "initdb", "pg_ctl"} {
		if _, err := os.Stat(filepath.Join(dir, program)); err != nil {
			return binaries{}, err
		}
	}
	path := filepath.Join(dir, "postgres")
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return binaries{}, fmt.Errorf("%s --version: %w: %s", path, err, strings.TrimSpace(string(out)))
	}
	match := versionPattern.FindStringSubmatch(string(out))
	if match == nil {
		return binaries{}, fmt.Errorf("%s --version says %q", path, strings.TrimSpace(string(out)))
	}
	if major, _ := strconv.Atoi(match[2]); major < oldestMajor {
		return binaries{}, fmt.Errorf("%s is PostgreSQL %s, which is older than %d", path, match[1], oldestMajor)
	}
	return binaries{dir: dir, version: match[1]}, nil
}
