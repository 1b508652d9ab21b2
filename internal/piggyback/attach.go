package piggyback

import (
	"context"
	"reflect"

	"github.com/jackc/pgx/v5/pgconn"
)

// Attach puts a Conn between conn and its network connection. conn must be idle; it is meant to be called by a
// [pgconn.ValidateConnectFunc].
//
// AfterNetConnect comes too early for that: pgconn binds SCRAM authentication to the TLS channel only where it finds the
// *tls.Conn itself. So the connection is taken apart and put together anew when it is established, in place, as others
// hold the pointer.
func Attach(ctx context.Context, conn *pgconn.PgConn, on Events) (*Conn, error) {
	if err := conn.SyncConn(ctx); err != nil {
		return nil, err
	}
	parts, err := conn.Hijack()
	if err != nil {
		return nil, err
	}
	c := New(parts.Conn, on)
	parts.Conn = c
	attached, err := pgconn.Construct(parts)
	if err != nil {
		return nil, err
	}
	reflect.ValueOf(conn).Elem().Set(reflect.ValueOf(attached).Elem())
	return c, nil
}
