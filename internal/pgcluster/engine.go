package pgcluster

import (
	"os"
	"reflect"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// engine is one run of a server under embedded-postgres.
//
// Two things that embedded-postgres leaves behind are tidied up here. Its health check runs a query and never closes the
// rows, so that a connection stays open until the garbage collector finds it: that session carries a name of its own, by
// which Server.Start ends it. And it makes a temporary file for what the programs print, which it neither removes nor
// closes.
type engine struct {
	postgres *embeddedpostgres.EmbeddedPostgres
}

const (
	superuser = "postgres"
	password  = "postgres"
	database  = "postgres"

	healthName = "pgcluster-health"
)

func newEngine(config embeddedpostgres.Config) *engine {
	// embedded-postgres puts the database's name as it is into the health check's connection string. It has no other use
	// for the name when the data folder is there already, and here it always is.
	return &engine{postgres: embeddedpostgres.NewDatabase(config.
		Username(superuser).
		Password(password).
		Database(database + " application_name=" + healthName + " log_min_messages=panic"))}
}

func (e *engine) start() error {
	err := e.postgres.Start()
	if output := e.output(); output != nil {
		// It is still open, here and in the server, and that is all it takes: with no Logger it is not read again.
		_ = os.Remove(output.Name())
	}
	return err
}

// stop shuts the server down and waits until it has.
func (e *engine) stop() error {
	return e.postgres.Stop()
}

// release closes what embedded-postgres does not. The engine is of no use after it.
func (e *engine) release() {
	if output := e.output(); output != nil {
		_ = output.Close()
	}
}

// output returns the file that embedded-postgres lets the programs print to, nil if there is none. Nothing but its
// unexported field knows the file; a test fails when a new version has moved it.
func (e *engine) output() *os.File {
	logger := reflect.ValueOf(e.postgres).Elem().FieldByName("syncedLogger")
	if !logger.IsValid() || logger.Kind() != reflect.Pointer || logger.IsNil() {
		return nil
	}
	file := logger.Elem().FieldByName("file")
	if !file.IsValid() || file.Type() != reflect.TypeFor[*os.File]() {
		return nil
	}
	return (*os.File)(file.UnsafePointer())
}
