package pgcluster

import (
	"syscall"
	"time"
)

// napTime is how much of a delay is slept by the kernel's clock. Go's timers fire up to a millisecond late in a process
// that has nothing else to do, as it waits for them in whole milliseconds; a network between near regions has shorter
// delays than that.
const napTime = 1500 * time.Microsecond

// nap sleeps for at most napTime. It cannot be interrupted.
func nap(d time.Duration) {
	t := syscall.NsecToTimespec(int64(d))
	_ = syscall.Nanosleep(&t, nil)
}
