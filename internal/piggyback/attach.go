package piggyback

import (
	"context"
	"reflect"

	"github.com/jackc/pgx/v5/pgconn"
)

// Attach puts a Conn between conn and its network connection. conn must be idle; it is meant to be called by a
// [pgconn.ValidateConnectFunc].
//
// [pgconn.Config]'s AfterNetConnect would be too early: pgconn binds SCRAM authentication to the TLS channel only if its
// network connection is the *tls.Conn itself. So Attach hijacks the established connection and constructs it anew, in place,
// as pgconn's caller has the pointer to it.
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
