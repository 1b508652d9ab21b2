//go:build !linux

package pgcluster

import "time"

// napTime is 0 where Go's own timers have to do.
const napTime = 0

func nap(d time.Duration) { time.Sleep(d) }
