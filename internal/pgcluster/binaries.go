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
	"time"
)

const (
	// oldestMajor is the oldest PostgreSQL that has all that a cluster needs (pg_get_wal_replay_pause_state).
	oldestMajor = 14
	// newestMajor is the newest PostgreSQL that the tests are known to pass on. A newer one is tried.
	newestMajor = 19

	envPostgres   = "FLYREGION_POSTGRES"
	envRepository = "FLYREGION_POSTGRES_REPOSITORY"
)

// binaries is an installed PostgreSQL.
type binaries struct {
	dir        string // holds postgres, initdb and pg_ctl
	version    string // for example "15.18"
	downloaded bool
}

// advice says how to run another PostgreSQL than the one that is downloaded.
var advice = fmt.Sprintf("install PostgreSQL %d to %d (for example: apt-get install postgresql, brew install postgresql), "+
	"or set %s to the folder that holds its postgres, initdb and pg_ctl, "+
	"or set %s to the URL of a Maven repository that can be reached", oldestMajor, newestMajor, envPostgres, envRepository)

// Prepare finds the PostgreSQL that Start runs, and downloads it if there is none. Start does that too. Prepare is for tests,
// which start many clusters and should fail once where there is no PostgreSQL.
func Prepare(ctx context.Context) error {
	a, err := serverAccount()
	if err != nil {
		return err
	}
	_, err = findBinaries(ctx, a, Config{}.progress())
	return err
}

// findBinaries finds the PostgreSQL to run: the one that FLYREGION_POSTGRES names, else the newest that is installed, else
// one that is downloaded once and kept in the user's cache folder.
func findBinaries(ctx context.Context, a account, p progress) (binaries, error) {
	value := os.Getenv(envPostgres)
	if value != "" && value != "embedded" {
		b, err := inspectBinaries(ctx, a, value)
		if err != nil {
			return binaries{}, fmt.Errorf("pgcluster: cannot use %s=%q: %w: want the bin folder of PostgreSQL %d to %d",
				envPostgres, value, err, oldestMajor, newestMajor)
		}
		return b, nil
	}

	why := fmt.Sprintf("%s=embedded, but PostgreSQL cannot be downloaded", envPostgres)
	var unfit []error
	if value == "" {
		why = "no PostgreSQL server that can be used is installed and none can be downloaded"
		for _, dir := range installedFolders(ctx) {
			b, err := inspectBinaries(ctx, a, dir)
			if err == nil {
				return b, nil
			}
			if !errors.Is(err, os.ErrNotExist) {
				unfit = append(unfit, err)
			}
		}
	}
	b, err := downloadedBinaries(ctx, a, p)
	if ctx.Err() != nil {
		return binaries{}, ctx.Err()
	}
	if err != nil {
		return binaries{}, fmt.Errorf("pgcluster: %s: %w\n%s", why, errors.Join(append(unfit, err)...), advice)
	}
	b.downloaded = true
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

// inspectBinaries returns what is installed in dir and the account can run. The error is an os.ErrNotExist if there is no
// server.
func inspectBinaries(ctx context.Context, a account, dir string) (binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return binaries{}, err
	}
	for _, program := range []string{"postgres", "initdb", "pg_ctl"} {
		if _, err := os.Stat(filepath.Join(dir, program)); err != nil {
			return binaries{}, err
		}
	}
	prefix, err := a.prefix()
	if err != nil {
		return binaries{}, err
	}
	path := filepath.Join(dir, "postgres")
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", "cd / && exec "+prefix+quote(path)+" --version")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		by := ""
		if a.name != "" {
			by = " as user " + a.name
		}
		return binaries{}, fmt.Errorf("%s --version%s: %w: %s", path, by, err, strings.TrimSpace(string(out)))
	}
	match := versionPattern.FindStringSubmatch(string(out))
	if match == nil {
		return binaries{}, fmt.Errorf("%s --version says %q", path, strings.TrimSpace(string(out)))
	}
	if major, _ := strconv.Atoi(match[2]); major < oldestMajor {
		return binaries{}, fmt.Errorf("%s is PostgreSQL %s, which is too old", path, match[1])
	}
	return binaries{dir: dir, version: match[1]}, nil
}
