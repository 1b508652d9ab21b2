package flyregion

import (
	"maps"
	"sync"
	"sync/atomic"
)

// preparedNames has the statements that [pgxpool.Config]'s AfterConnect prepares, which exist on every connection to every
// server. The app passes their names in place of SQL, and they are routed by the SQL that they stand for.
type preparedNames struct {
	mu        sync.Mutex                        // held by writers
	sqlByName atomic.Pointer[map[string]string] // the map is immutable
}

const (
	// maxPreparedNames bounds the names, for an AfterConnect that generates new ones each time.
	maxPreparedNames = 1000
	// maxPreparedName is the longest name, in bytes, that PostgreSQL does not cut (NAMEDATALEN).
	maxPreparedName = 63
)

// lookup returns the SQL that a name stands for, "" if that differs between connections. ok is false if AfterConnect has not
// prepared the name.
func (n *preparedNames) lookup(name string) (text string, ok bool) {
	names := n.sqlByName.Load()
	if names == nil || len(name) > maxPreparedName {
		return "", false
	}
	text, ok = (*names)[name]
	return text, ok
}

// add notes that AfterConnect has prepared text under a name.
func (n *preparedNames) add(name, text string) {
	n.mu.Lock()
	defer n.mu.Unlock()

	old := map[string]string{}
	if names := n.sqlByName.Load(); names != nil {
		old = *names
	}
	switch sql, ok := old[name]; {
	case ok && sql != text:
		text = ""
	case ok, len(old) == maxPreparedNames, len(name) > maxPreparedName:
		return
	}
	next := maps.Clone(old)
	next[name] = text
	n.sqlByName.Store(&next)
}
