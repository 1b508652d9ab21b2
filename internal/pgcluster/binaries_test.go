package pgcluster

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestNoPostgres(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	url := server.URL
	t.Run("nothing installed", func(t *testing.T) {
		if dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres"); len(dirs) > 0 {
			t.Skip("PostgreSQL is installed where it is always found")
		}
		noPostgres(t, url)
		t.Setenv(envPostgres, "")
		t.Setenv("PATH", t.TempDir())
		_, err := Start(testContext(t), Config{})
		wantError(t, err, envPostgres, envRepository, url, "install PostgreSQL")
	})
	t.Run("wrong folder", func(t *testing.T) {
		dir := t.TempDir()
		t.Setenv(envPostgres, dir)
		_, err := Start(testContext(t), Config{})
		wantError(t, err, envPostgres, dir, "postgres", "14 to 19")
	})
	t.Run("too old", func(t *testing.T) {
		dir := openFolder(t)
		for _, program := range []string{"postgres", "initdb", "pg_ctl"} {
			must(t, os.WriteFile(filepath.Join(dir, program), []byte("#!/bin/sh\necho 'postgres (PostgreSQL) 9.6.24'\n"), 0o755))
		}
		t.Setenv(envPostgres, dir)
		_, err := Start(testContext(t), Config{})
		wantError(t, err, envPostgres, dir, "9.6.24", "too old", "14 to 19")
		if strings.Contains(err.Error(), "not the bin folder") {
			t.Errorf("it contradicts itself: %v", err)
		}
	})
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
}

func TestBinariesVersions(t *testing.T) {
	for line, want := range map[string]string{
		"postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)": "15.18",
		"postgres (PostgreSQL) 19rc1":                          "19rc1",
		"postgres (PostgreSQL) 18beta2 (Homebrew)":             "18beta2",
		"postgres (EnterpriseDB) x":                            "",
	} {
		got := ""
		if match := versionPattern.FindStringSubmatch(line); match != nil {
			got = match[1]
		}
		if got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// The scripts' quoting must hold whatever a folder is called.
func TestQuote(t *testing.T) {
	for _, s := range []string{"plain", "two words", `it's "quoted"`, "$HOME `ls` \\", ""} {
		out, err := exec.Command("/bin/sh", "-c", "printf %s "+quote(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q becomes %q, %v", s, out, err)
		}
	}
}
