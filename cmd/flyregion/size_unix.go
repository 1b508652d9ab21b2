//go:build darwin || linux

package main

import (
	"os"
	"syscall"
	"unsafe"
)

// columns returns how many columns a terminal has, 0 if it does not say. ok is false if file is no terminal.
func columns(file *os.File) (n int, ok bool) {
	var size struct{ rows, columns, x, y uint16 }
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, file.Fd(), syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	return int(size.columns), errno == 0
}
