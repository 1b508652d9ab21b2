//go:build unix

package piggyback

import (
	"net"
	"syscall"
)

// Alive reports whether an idle connection is open and has nothing to read, as far as this host's kernel knows. It sends
// nothing and does not wait. A server that closes a connection, or a network that resets it, makes it readable.
func Alive(conn net.Conn) bool {
	for {
		wrapped, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = wrapped.NetConn()
	}
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}

	// RawConn.Read would wait for a Read in another goroutine. Control does not.
	var peekErr error
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, peekErr = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	return err == nil && (peekErr == syscall.EAGAIN || peekErr == syscall.EWOULDBLOCK)
}
