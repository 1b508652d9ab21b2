package sqltext

import (
	"fmt"
	"strings"
	"testing"
)

func BenchmarkInspect(b *testing.B) {
	for _, sql := range []string{
		benchmarkShortQuery,
		benchmarkQuery(300),
		benchmarkQuery(3000),
		benchmarkInsert(1 << 20),
	} {
		b.Run(fmt.Sprintf("%d_bytes", len(sql)), func(b *testing.B) {
			b.SetBytes(int64(len(sql)))
			b.ReportAllocs()
			for b.Loop() {
				classify(sql)
			}
		})
	}
}

func BenchmarkShape(b *testing.B) {
	for _, sql := range []string{
		benchmarkShortQuery,
		benchmarkQuery(300),
		benchmarkQuery(3000),
	} {
		b.Run(fmt.Sprintf("%d_bytes", len(sql)), func(b *testing.B) {
			b.SetBytes(int64(len(sql)))
			b.ReportAllocs()
			for b.Loop() {
				Shape(sql)
			}
		})
	}
}

const benchmarkShortQuery = "SELECT id, name, email FROM users WHERE id = $1 AND active"

// benchmarkQuery returns a query of about so many bytes, as an ORM writes them.
func benchmarkQuery(size int) string {
	const tail = ` FROM "orders" AS o LEFT JOIN customers c ON (c.id = o.customer_id) WHERE o.status IN ('open', 'paid') AND ` +
		`o.created_at > now() - interval '7 days' ORDER BY o.id DESC LIMIT $1`
	var b strings.Builder
	b.WriteString("SELECT o.id")
	for i := 0; b.Len()+len(tail) < size-20; i++ {
		fmt.Fprintf(&b, `, o."column_%d", coalesce(c.name_%d, '')`, i, i)
	}
	b.WriteString(tail)
	return b.String()
}

// benchmarkInsert returns an insert of many rows, with short and long values.
func benchmarkInsert(size int) string {
	var b strings.Builder
	b.WriteString("INSERT INTO events (id, kind, at, payload, score) VALUES ")
	for i := 0; b.Len() < size; i++ {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, `(%d, 'page_view', now(), '{"url": "https://example.com/a/%d", "referrer": "it''s unknown"}', %d.5)`, i, i, i%7)
	}
	return b.String()
}
