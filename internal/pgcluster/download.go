package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

const downloadVersion = embeddedpostgres.V18

// downloadedBinaries returns the PostgreSQL that embedded-postgres downloads. Once downloaded it is kept in
// flyregion/postgresql-<version> in the user's cache folder. A download that has begun is not interrupted by ctx.
func downloadedBinaries(ctx context.Context, progress func(string)) (binaries, error) {
	cache, err := cacheFolder()
	if err != nil {
		return binaries{}, err
	}
	home := filepath.Join(cache, fmt.Sprintf("postgresql-%s-%s-%s", downloadVersion, runtime.GOOS, runtime.GOARCH))
	if b, err := inspectBinaries(ctx, filepath.Join(home, "bin")); err == nil {
		return b, nil
	}
	if err := ctx.Err(); err != nil {
		return binaries{}, err
	}
	progress(fmt.Sprintf("downloading PostgreSQL %s", downloadVersion))
	if err := download(cache, home); err != nil {
		return binaries{}, err
	}
	return inspectBinaries(ctx, filepath.Join(home, "bin"))
}

// download makes the folder home. All is done in a folder of its own that is renamed in the end, so that several
// processes can download at once: the first one wins.
func download(cache, home string) error {
	tmp, err := os.MkdirTemp(cache, "download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	unpacked := filepath.Join(tmp, "postgresql")
	// embedded-postgres downloads only when it starts a server. It is given a data folder that no server starts on, and
	// which spares it initdb. So nothing runs, and it is the same for root, whom PostgreSQL does not serve.
	data := filepath.Join(tmp, "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte(major(string(downloadVersion))+"\n"), 0o644); err != nil {
		return err
	}
	port, release, err := reservePort()
	if err != nil {
		return err
	}
	defer release()
	config := embeddedpostgres.DefaultConfig().
		Version(downloadVersion).
		Port(uint32(port)).
		CachePath(filepath.Join(tmp, "archive")).
		RuntimePath(filepath.Join(tmp, "run")).
		BinariesPath(unpacked).
		DataPath(data).
		Logger(nil)
	if repository := os.Getenv(envRepository); repository != "" {
		config = config.BinaryRepositoryURL(strings.TrimSuffix(repository, "/"))
	}
	e := newEngine(config)
	startErr := e.start()
	e.release()
	if _, err := os.Stat(filepath.Join(unpacked, "bin", "postgres")); err != nil {
		if startErr == nil {
			startErr = errors.New("the downloaded archive holds no bin/postgres")
		}
		return startErr
	}
	if err := os.Rename(unpacked, home); err != nil {
		if _, statErr := os.Stat(filepath.Join(home, "bin", "postgres")); statErr == nil {
			return nil // another process was faster
		}
		return err
	}
	return nil
}

// cacheFolder returns the folder that downloads are kept in. PostgreSQL runs as another user when we are root, and that
// user cannot execute what lies in root's home folder.
func cacheFolder() (string, error) {
	dir, err := os.UserCacheDir()
	if os.Geteuid() == 0 && (err != nil || !worldSearchable(dir)) {
		dir, err = "/var/cache", nil
	}
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "flyregion")
	return dir, os.MkdirAll(dir, 0o755)
}

func major(version string) string {
	m, _, _ := strings.Cut(version, ".")
	return m
}
