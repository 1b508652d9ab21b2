package pgcluster

import "syscall"

// reservePort returns a free port of 127.0.0.1 that the system gives to nobody else until release is called. A bound
// socket that does not listen refuses connections, and lets another one that also set SO_REUSEADDR, as PostgreSQL does,
// bind and listen: so the port stays the server's also while that is stopped.
func reservePort() (port int, release func(), err error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, err
	}
	err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	var addr syscall.Sockaddr
	if err == nil {
		addr, err = syscall.Getsockname(fd)
	}
	if err != nil {
		_ = syscall.Close(fd)
		return 0, nil, err
	}
	return addr.(*syscall.SockaddrInet4).Port, func() { _ = syscall.Close(fd) }, nil
}
