package flyregion

import (
	"maps"
	"sync"
	"sync/atomic"
)

// preparedNames knows the statements that [pgxpool.Config]'s AfterConnect prepares, which exist on every connection to
// every server: their names stand in place of SQL afterwards, and are routed by the text that they stand for.
type preparedNames struct {
	mu        sync.Mutex // for writers
	sqlByName atomic.Pointer[map[string]string]
}

const (
	// maxPreparedNames bounds what an AfterConnect can fill that invents names as it goes.
	maxPreparedNames = 1000
	// maxPreparedName is the longest name in bytes, which PostgreSQL would cut (NAMEDATALEN).
	maxPreparedName = 63
)

// lookup returns what a name stands for, "" if it means different things on different connections. It reports whether
// anything is known of the name.
func (n *preparedNames) lookup(name string) (text string, ok bool) {
	names := n.sqlByName.Load()
	if names == nil || len(name) > maxPreparedName {
		return "", false
	}
	text, ok = (*names)[name]
	return text, ok
}

func (n *preparedNames) add(name, text string) {
	n.mu.Lock()
	defer n.mu.Unlock()

	old := map[string]string{}
	if names := n.sqlByName.Load(); names != nil {
		old = *names
	}
	switch known, ok := old[name]; {
	case ok && known != text:
		text = ""
	case ok, len(old) == maxPreparedNames, len(name) > maxPreparedName:
		return
	}
	next := maps.Clone(old)
	next[name] = text
	n.sqlByName.Store(&next)
}
