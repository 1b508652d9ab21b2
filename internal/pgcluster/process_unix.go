//go:build unix

package pgcluster

import (
	"os/exec"
	"syscall"
)

const (
	signalKill      = syscall.SIGKILL
	signalFreeze    = syscall.SIGSTOP
	signalThaw      = syscall.SIGCONT
	signalFast      = syscall.SIGINT  // PostgreSQL's fast shutdown
	signalImmediate = syscall.SIGQUIT // PostgreSQL's immediate shutdown
)

func kill(pid int, signal syscall.Signal) {
	_ = syscall.Kill(pid, signal)
}

func exists(pid int) bool {
	return syscall.Kill(pid, 0) != syscall.ESRCH
}

// detach keeps a terminal's signals from the command.
func detach(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
}

const supported = true
