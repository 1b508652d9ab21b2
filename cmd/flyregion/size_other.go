//go:build !(darwin || linux)

package main

import "os"

// columns returns 0, because it does not know how many columns a terminal has. ok is false if file is no terminal.
func columns(file *os.File) (n int, ok bool) {
	info, err := file.Stat()
	return 0, err == nil && info.Mode()&os.ModeCharDevice != 0
}
