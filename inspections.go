package flyregion

import (
	"hash/maphash"
	"strings"
	"sync/atomic"

	"github.com/flyregion/flyregion/internal/sqltext"
)

// inspections remembers what [sqltext.Inspect] has told of the SQL that an app repeats: to hash and compare SQL takes less
// time than to read it token by token. It belongs to the catalogAnswers whose facts SQL was inspected with. New answers
// begin with an empty one, so nothing is told by facts that no longer hold.
//
// It is a table of fixed size without locks. SQL is remembered when it is run again, so that SQL which is never the same,
// because it has values in it, takes no memory and replaces nothing. A lookup that finds its entry writes to no memory.
type inspections struct {
	sets [inspectionSets]inspectionSet
}

// inspectionSets is a power of two.
const inspectionSets = 512

// inspectionSet holds SQL whose hashes have the same lowest bits.
type inspectionSet struct {
	entries [2]atomic.Pointer[inspection] // the newer one first
	// missed is the hash of the SQL that was looked up last and not found. In place of the lowest bits, which are the same in
	// all hashes of a set, it has how many lookups in a row that were.
	missed atomic.Uint64
}

// inspection is what one SQL text tells. It is immutable.
type inspection struct {
	hash                  uint64
	sql                   string // a copy: the app may have built its SQL in memory that it uses again
	standardStrings, utf8 bool   // the facts of the connections that it was inspected with
	statement             sqltext.Statement
	shape                 uint64 // of sqltext.Shape
}

// rememberedAt is how many inspections in a row remember a statement. One run of it makes up to four: for its route, for the
// sql.Conn that it runs on (two), and for its questions to the primary.
const rememberedAt = 5

// maxInspection is the longest SQL, in bytes, that is remembered. So a table takes 4 MB at most.
const maxInspection = 4096

var inspectionSeed = maphash.MakeSeed()

// inspect is [sqltext.Inspect] for facts that have the answers of the catalog that t belongs to. A nil t remembers nothing.
func (t *inspections) inspect(sql string, facts sqltext.Facts) sqltext.Statement {
	if t == nil || len(sql) > maxInspection {
		return sqltext.Inspect(sql, facts)
	}
	hash := hashOf(sql)
	set := t.set(hash)
	known := set.find(hash, sql)
	if known != nil && known.standardStrings == facts.StandardStrings && known.utf8 == facts.UTF8 {
		return known.statement
	}

	s := sqltext.Inspect(sql, facts)
	if known == nil && set.miss(hash) < rememberedAt {
		return s
	}
	set.add(known, &inspection{
		hash: hash, sql: strings.Clone(sql), standardStrings: facts.StandardStrings, utf8: facts.UTF8,
		statement: s, shape: sqltext.Shape(sql),
	})
	return s
}

// shape is [sqltext.Shape].
func (t *inspections) shape(sql string) uint64 {
	if t != nil && len(sql) <= maxInspection {
		hash := hashOf(sql)
		if known := t.set(hash).find(hash, sql); known != nil {
			return known.shape
		}
	}
	return sqltext.Shape(sql)
}

func hashOf(sql string) uint64 { return maphash.String(inspectionSeed, sql) }

func (t *inspections) set(hash uint64) *inspectionSet {
	return &t.sets[hash%uint64(len(t.sets))]
}

// find returns the entry of SQL, nil if there is none.
func (s *inspectionSet) find(hash uint64, sql string) *inspection {
	for i := range s.entries {
		if e := s.entries[i].Load(); e != nil && e.hash == hash && e.sql == sql {
			return e
		}
	}
	return nil
}

// miss counts a lookup that has found nothing. It returns how many lookups of the same SQL in a row that were, or
// rememberedAt if they were more.
func (s *inspectionSet) miss(hash uint64) uint64 {
	const low = inspectionSets - 1
	n, last := uint64(1), s.missed.Load()
	if last&^low == hash&^low {
		n = min(last&low+1, rememberedAt)
	}
	s.missed.Store(hash&^low | n)
	return n
}

// add adds an entry in place of old, or of the older entry if old is nil. Concurrent calls may lose an entry, or add it
// twice, which does no harm.
func (s *inspectionSet) add(old, next *inspection) {
	if old == nil {
		s.entries[1].Store(s.entries[0].Load())
		s.entries[0].Store(next)
		return
	}
	for i := range s.entries {
		if s.entries[i].CompareAndSwap(old, next) {
			return
		}
	}
}
