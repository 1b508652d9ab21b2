package pgcluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// downloadVersion is the PostgreSQL that is downloaded.
const downloadVersion = string(embeddedpostgres.V18)

// unpack unpacks the archive that repository.fetch has put into folder, and returns where. It needs the folder for itself.
func unpack(ctx context.Context, folder string) (unpacked string, err error) {
	archive := filepath.Join(folder, artifact()+"-"+downloadVersion+".txz")
	unpacked = filepath.Join(folder, "postgresql")
	run := filepath.Join(folder, "run")
	// embedded-postgres unpacks only when it starts a server. It is given a data folder that no server starts on, and
	// which spares it initdb. So nothing runs, and it is the same for root, whom PostgreSQL does not serve.
	data := filepath.Join(folder, "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte(downloadVersion+"\n"), 0o644); err != nil {
		return "", err
	}
	port, release, err := reservePort()
	if err != nil {
		return "", err
	}
	defer release()
	e := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(embeddedpostgres.V18).
		Port(uint32(port)).
		CachePath(folder).
		RuntimePath(run).
		BinariesPath(unpacked).
		DataPath(data).
		BinaryRepositoryURL("").        // It finds the archive, or fails.
		StartTimeout(time.Millisecond). // There is no server to wait for.
		Logger(nil))

	// It knows no context. What it reads is taken away instead, upon which it fails at once.
	defer context.AfterFunc(ctx, func() { _ = os.Truncate(archive, 0) })()
	err = e.Start()
	if output := outputOf(e); output != nil {
		_ = output.Close()
		_ = os.Remove(output.Name())
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	// It makes this folder when everything is unpacked.
	if _, statErr := os.Stat(run); statErr != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(unpacked, "bin", "postgres")); err != nil {
		return "", errors.New("the archive holds no bin/postgres")
	}
	return unpacked, nil
}

// outputOf returns the file in the temporary folder that embedded-postgres makes and never removes, nil if there is none.
// Nothing but its unexported field knows the file; a test fails when a new version has moved it.
func outputOf(e *embeddedpostgres.EmbeddedPostgres) *os.File {
	logger := reflect.ValueOf(e).Elem().FieldByName("syncedLogger")
	if !logger.IsValid() || logger.Kind() != reflect.Pointer || logger.IsNil() {
		return nil
	}
	file := logger.Elem().FieldByName("file")
	if !file.IsValid() || file.Type() != reflect.TypeFor[*os.File]() {
		return nil
	}
	return (*os.File)(file.UnsafePointer())
}
