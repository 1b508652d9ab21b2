package sqltext

import "testing"

// TestStandardStrings says that standard_conforming_strings is on, and that it may not be.
func TestStandardStrings(t *testing.T) {
	for sql, want := range map[string]struct{ on, unknown Access }{
		`select * from t where a ilike $1 escape '\'`:               {Read, Write},
		`select split_part(p, '\', 1), replace(p, '\', '/') from t`: {Read, Write},
		`select 'C:\temp\', 'x'`:                                    {Read, Write},
		`select U&'\'`:                                              {Read, Write},
		`select 'C:\temp\\', 'x'`:                                   {Read, Read},
		`select '\'; delete from t; --'`:                            {Write, Write},
		`select E'\'; delete from t; --'`:                           {Read, Read},
		"select E'a'\n'\\'; delete from t; --'":                     {Write, Write},
		"select E'a' -- x\n 'b'\n'\\', 'c'":                         {Write, Write},
		"select E'a', '\\'":                                         {Read, Write},
		"select E'a'\n'b', '\\'":                                    {Read, Write},
		"select e'a' ilike 'b' escape '\\'":                         {Read, Write},
		"copy t to stdout (escape '\\')":                            {Read, Write},
	} {
		if got := Inspect(sql, Facts{StandardStrings: true}).Access; got != want.on {
			t.Errorf("on: %v, want %v: %s", got, want.on, sql)
		}
		if got := Inspect(sql, Facts{}).Access; got != want.unknown {
			t.Errorf("not known: %v, want %v: %s", got, want.unknown, sql)
		}
	}
}

// TestEncodings says that client_encoding is UTF8, and that it may not be.
func TestEncodings(t *testing.T) {
	for sql, want := range map[string]struct{ utf8, unknown Access }{
		"select E'\x83\\', pg_advisory_lock(1) --'": {Read, Write}, // of SJIS the first two bytes are one character
		"select e'\x83\\\\', 1 --'":                 {Read, Write},
		`select E'größe\n'`:                         {Read, Read},
		`select E'é\n', 1`:                          {Read, Write},
		`select 'é\n', "é\n", $$é\n$$`:              {Read, Read},
		`select E'\né'`:                             {Read, Read},
	} {
		if got := Inspect(sql, Facts{UTF8: true}).Access; got != want.utf8 {
			t.Errorf("UTF8: %v, want %v: %q", got, want.utf8, sql)
		}
		if got := Inspect(sql, Facts{}).Access; got != want.unknown {
			t.Errorf("not known: %v, want %v: %q", got, want.unknown, sql)
		}
	}
}
