package flyregion

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// ConnectFailure is the latest failure to reach one server.
type ConnectFailure struct {
	Target string // "primary" or "replica"
	Region string // the server's
	// Err is the error as pgx or this package has returned it. Its text names hosts, the user and the database, but no
	// password. A [*pgconn.ConnectError] in it has the whole configuration, so do not print its fields.
	Err error
	At  time.Time
	// Recovered is when the server was last reached after the failure. It is zero if the server was not reached since then,
	// or if nobody has tried: connections that were open before the failure may still work.
	Recovered time.Time
}

// connects remembers how connecting to one server went. The zero value is that of a server that nobody has connected to.
type connects struct {
	failure   atomic.Pointer[connectFailure] // the latest, which a later success leaves here
	succeeded atomic.Int64                   // when the server was last reached, in nanoseconds since 1970
}

type connectFailure struct {
	err error
	at  time.Time
}

// failed notes that the server could not be reached. A caller who has given up tells nothing about the server.
func (c *connects) failed(err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		c.failure.Store(&connectFailure{err: err, at: time.Now()})
	}
}

// reached notes that a new connection was opened, or that the server has answered after a failure.
func (c *connects) reached() { c.succeeded.Store(time.Now().UnixNano()) }

// lastError returns the latest error, nil if there was none.
func (c *connects) lastError() error {
	if f := c.failure.Load(); f != nil {
		return f.err
	}
	return nil
}

// appendTo appends the latest failure, if there was one, to the others.
func (c *connects) appendTo(failures []ConnectFailure, to target, region string) []ConnectFailure {
	f := c.failure.Load()
	if f == nil {
		return failures
	}
	failure := ConnectFailure{Target: to.String(), Region: region, Err: f.err, At: f.at}
	if at := time.Unix(0, c.succeeded.Load()); at.After(f.at) {
		failure.Recovered = at
	}
	return append(failures, failure)
}
