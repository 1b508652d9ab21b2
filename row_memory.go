package flyregion

import (
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
)

// rowMemory is what a row is copied to. Each connection has one, which its reads use one after the other: a row is scanned
// before its connection is released.
type rowMemory struct {
	fields []pgconn.FieldDescription
	values [][]byte
	bytes  []byte // of values
}

// maxRowMemory is how many bytes, and how many columns, a rowMemory keeps for the next row.
const maxRowMemory, maxRowColumns = 8192, 64

// copy returns copies of a row's fields and values.
func (m *rowMemory) copy(fields []pgconn.FieldDescription, values [][]byte) ([]pgconn.FieldDescription, [][]byte) {
	size := 0
	for _, v := range values {
		size += len(v)
	}
	memory := m
	if size > maxRowMemory || len(fields) > maxRowColumns {
		memory = &rowMemory{}
	}
	memory.fields = append(memory.fields[:0], fields...)
	// Neither is nil: that means no row, or NULL.
	memory.values = slices.Grow(memory.values[:0], max(len(values), 1))
	buf := slices.Grow(memory.bytes[:0], max(size, 1))
	for _, v := range values {
		if v == nil {
			memory.values = append(memory.values, nil)
			continue
		}
		from := len(buf)
		buf = append(buf, v...)
		memory.values = append(memory.values, buf[from:len(buf):len(buf)])
	}
	memory.bytes = buf
	return memory.fields, memory.values
}
