//go:build !unix

package pgcluster

import (
	"os/exec"
	"syscall"
)

const (
	signalKill      = syscall.SIGKILL
	signalFreeze    = syscall.SIGKILL
	signalThaw      = syscall.SIGKILL
	signalFast      = syscall.SIGKILL
	signalImmediate = syscall.SIGKILL
)

// Start refuses to run where there are no Unix processes; these only let the package compile.

func kill(int, syscall.Signal) {}

func exists(int) bool { return false }

func detach(*exec.Cmd) {}

const supported = false
