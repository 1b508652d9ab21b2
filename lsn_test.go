package flyregion

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

func FuzzParseLSN(f *testing.F) {
	for _, s := range []string{"0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "16/b374d848", "00000016/00000000", "", "/", "1", "1/", "/1", "1/2/3", "123456789/0", "-1/0", "+1/0", "0x1/0", " 1/0", "1_0/0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLSN(s)
		if err != nil {
			if l != 0 || !strings.Contains(err.Error(), fmt.Sprintf("%q", s)) {
				t.Errorf("ParseLSN(%q) = %d, %v", s, l, err)
			}
			return
		}
		again, err := ParseLSN(l.String())
		if err != nil || again != l {
			t.Errorf("ParseLSN(%q) = %d, and of its String %q: %d, %v", s, l, l.String(), again, err)
		}
		// The text is what Sscanf, less strict, reads too.
		var hi, lo uint32
		if _, err := fmt.Sscanf(s, "%X/%X", &hi, &lo); err != nil || l != LSN(hi)<<32|LSN(lo) {
			t.Errorf("ParseLSN(%q) = %d, want %X and %X, %v", s, l, hi, lo, err)
		}
	})
}

func TestParseLSN(t *testing.T) {
	for s, want := range map[string]LSN{
		"0/0": 0, "0/1": 1, "1/0": 1 << 32, "16/B374D848": 0x16B374D848, "16/b374d848": 0x16B374D848, "FFFFFFFF/FFFFFFFF": 1<<64 - 1,
	} {
		if got, err := ParseLSN(s); got != want || err != nil {
			t.Errorf("ParseLSN(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "0", "/", "0/", "/0", "0/0/0", "0/0 ", " 0/0", "G/0", "123456789/0", "0/123456789", "-1/0", "0x1/0", "١/0"} {
		if got, err := ParseLSN(s); err == nil {
			t.Errorf("ParseLSN(%q) = %d", s, got)
		}
	}
	if got := LSN(0x16B374D848).String(); got != "16/B374D848" {
		t.Errorf("String gives %q", got)
	}
}

// TestParseLSNLikeServer compares with the server's own text form.
func TestParseLSNLikeServer(t *testing.T) {
	conn, err := pgx.Connect(t.Context(), sharedCluster(t).Leader().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for range 200 {
		l := LSN(rand.Uint64() >> rand.IntN(64))
		var text string
		if err := conn.QueryRow(t.Context(), "select $1::text::pg_lsn::text", l.String()).Scan(&text); err != nil {
			t.Fatal(err)
		}
		if got, err := ParseLSN(text); got != l || err != nil {
			t.Errorf("%d is %q on the server, and ParseLSN gives %d, %v", l, text, got, err)
		}
	}
}
