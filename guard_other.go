//go:build !linux

package flyregion

import (
	"net"
	"time"
)

func setUserTimeout(net.Conn, time.Duration) {}
