package flyregion

import "time"

// mark says that all of a log that there was at a time comes before a position.
type mark struct {
	position LSN
	at       time.Time
}

// minMarkPause is the time between two marks at least.
const minMarkPause = 10 * time.Millisecond

// marks are marks of one log, the earliest first. They are immutable. The older they are the fewer are kept: what lies between
// two of them is at most a quarter of their age.
type marks []mark

// add returns the marks with a later one.
func (m marks) add(latest mark) marks {
	if n := len(m); n > 0 && latest.position > m[n-1].position && elapsed(m[n-1].at, latest.at) < minMarkPause {
		return m
	}
	kept := make(marks, 0, len(m)+1)
	for i, k := range m {
		next := latest
		if i+1 < len(m) {
			next = m[i+1]
		}
		if k.position >= latest.position || k.position >= next.position {
			continue // the later one of two with the same position says more
		}
		if n := len(kept); n == 0 || elapsed(kept[n-1].at, next.at) > elapsed(kept[n-1].at, latest.at)/4 {
			kept = append(kept, k)
		}
	}
	return append(kept, latest)
}

// within returns the earliest mark that is at most d old, nil if there is none.
func (m marks) within(d time.Duration, now time.Time) *mark {
	for i := range m {
		if elapsed(m[i].at, now) <= d {
			return &m[i]
		}
	}
	return nil
}

// before returns the latest mark that is not past a position, nil if there is none. Who has replayed that position shows all
// that there was at the time of the mark.
func (m marks) before(position LSN) *mark {
	for i := len(m) - 1; i >= 0; i-- {
		if m[i].position <= position {
			return &m[i]
		}
	}
	return nil
}

// elapsed returns the time from a reading of this machine's clock to a later one. While a machine is suspended its monotonic
// clock may stand still, and its wall clock may be set back.
func elapsed(from, to time.Time) time.Duration {
	return max(to.Sub(from), to.Round(0).Sub(from.Round(0)), 0)
}
