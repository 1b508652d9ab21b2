package main

import (
	"os"
	"syscall"
	"testing"
	"unsafe"
)

func TestWidthOfATerminal(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer terminal.Close()
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	for columns, want := range map[uint16]int{0: defaultWidth, 20: minWidth, 40: 40, 60: 60, 80: 80, 100: 100, 300: maxWidth} {
		size := struct{ rows, columns, x, y uint16 }{rows: 24, columns: columns}
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, terminal.Fd(), syscall.TIOCSWINSZ, uintptr(unsafe.Pointer(&size))); errno != 0 {
			t.Fatal(errno)
		}
		if p := newPage(terminal); p.width != want || !p.coloured {
			t.Errorf("%d columns: width %d, coloured %v, want %d and colours", columns, p.width, p.coloured, want)
		}
		if p := newProgress(terminal); p.width != want || !p.rewrite {
			t.Errorf("%d columns: width %d of the progress, written over %v", columns, p.width, p.rewrite)
		}
	}
	t.Setenv("TERM", "dumb")
	if newPage(terminal).coloured || newProgress(terminal).rewrite {
		t.Error("a terminal that understands nothing gets control characters")
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	t.Setenv("TERM", "xterm")
	if isTerminal(null) || widthOf(null) != defaultWidth {
		t.Errorf("%s is a terminal", os.DevNull)
	}
}
