package flyregion

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/flyregion/flyregion/internal/pgcluster"
)

// The types of DNS records (RFC 1035, section 3.2.2, and RFC 3596).
const (
	typeA    = 1
	typeTXT  = 16
	typeAAAA = 28
)

// findRecords returns the data of a name's records of one type. known is false if there is no such name.
type findRecords func(name string, kind uint16) (records [][]byte, known bool)

// answerNames returns the answer to a query, in the format of RFC 1035, section 4. A query has one question. The answer repeats
// it and adds the records that it asks for.
func answerNames(query []byte, find findRecords) ([]byte, error) {
	const (
		header           = 12     // ID, flags, and the numbers of questions, answers, authorities and additional records: 2 bytes each
		response         = 0x8400 // flags: a response, authoritative
		recursionDesired = 0x0100 // flag, repeated from the query
		noSuchName       = 3      // response code
		ttl              = 0
	)
	malformed := fmt.Errorf("not a DNS query: %x", query)
	if len(query) < header {
		return nil, malformed
	}
	// A name is a series of labels, each behind its length. An empty one ends it.
	var labels []string
	rest := query[header:]
	for len(rest) > 0 && rest[0] > 0 {
		end := 1 + int(rest[0])
		if end > len(rest) {
			return nil, malformed
		}
		labels = append(labels, string(rest[1:end]))
		rest = rest[end:]
	}
	// The type and the class follow, 2 bytes each.
	if len(rest) < 5 {
		return nil, malformed
	}
	typeAndClass := rest[1:5]
	question := query[header : len(query)-len(rest)+5]

	records, known := find(strings.ToLower(strings.Join(labels, ".")), binary.BigEndian.Uint16(typeAndClass))
	flags := response | binary.BigEndian.Uint16(query[2:])&recursionDesired
	if !known {
		flags |= noSuchName
	}
	reply := slices.Clone(query[:2])
	for _, field := range []uint16{flags, 1, uint16(len(records)), 0, 0} {
		reply = binary.BigEndian.AppendUint16(reply, field)
	}
	reply = append(reply, question...)
	for _, data := range records {
		reply = append(reply, 0xc0, header) // the name that stands at this offset
		reply = append(reply, typeAndClass...)
		reply = binary.BigEndian.AppendUint32(reply, ttl)
		reply = binary.BigEndian.AppendUint16(reply, uint16(len(data)))
		reply = append(reply, data...)
	}
	return reply, nil
}

// serveNames runs a DNS server on loopback until the test ends, and returns a resolver that asks it.
func serveNames(t testing.TB, find findRecords) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			reply, err := answerNames(buf[:n], find)
			if err != nil {
				t.Error(err)
				continue
			}
			_, _ = conn.WriteTo(reply, from)
		}
	})
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
	})
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "udp4", conn.LocalAddr().String())
		},
	}
}

// flyNames returns the records of Fly's names, as a process at a site is told them.
func flyNames(site *pgcluster.Site) findRecords {
	return func(name string, kind uint16) (records [][]byte, known bool) {
		ctx := context.Background()
		texts, err := site.LookupTXT(ctx, name)
		if err == nil {
			if kind == typeTXT {
				text := strings.Join(texts, ",") // its length is in the first byte
				records = append(records, append([]byte{byte(len(text))}, text...))
			}
			return records, true
		}
		ips, err := site.LookupHost(ctx, name)
		if err == nil && kind == typeAAAA {
			for _, ip := range ips {
				records = append(records, netip.MustParseAddr(ip).AsSlice())
			}
		}
		return records, err == nil
	}
}

// resolveBy has a pool look names up by a resolver.
func resolveBy(resolver *net.Resolver) func(*Config) {
	return func(c *Config) {
		c.ConnConfig.LookupFunc, c.LookupTXTFunc = resolver.LookupHost, resolver.LookupTXT
	}
}
