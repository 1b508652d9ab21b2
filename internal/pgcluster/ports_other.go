//go:build !linux

package pgcluster

import "net"

// reservePort returns a port of 127.0.0.1 that is free now. It cannot be kept free on this system: whoever loses the
// race for it must try again.
func reservePort() (port int, release func(), err error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, nil, err
	}
	port = listener.Addr().(*net.TCPAddr).Port
	return port, func() {}, listener.Close()
}
