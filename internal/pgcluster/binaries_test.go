package pgcluster

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// noPostgres makes the environment one in which no PostgreSQL is installed and nothing was downloaded yet.
func noPostgres(t *testing.T, repository string) {
	t.Helper()
	cache := t.TempDir() // under folders that everyone may search
	must(t, os.Chmod(cache, 0o755))
	must(t, os.Chmod(filepath.Dir(cache), 0o755))
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("HOME", cache) // for macOS
	t.Setenv(envPostgres, "embedded")
	t.Setenv(envRepository, repository)
}

func TestDownload(t *testing.T) {
	if _, err := exec.LookPath("xz"); err != nil {
		t.Skip("xz is not installed: no archive can be made")
	}
	installed, err := findBinaries(testContext(t), func(string) {})
	if err != nil {
		t.Skipf("no PostgreSQL to put into an archive: %v", err)
	}
	jar := archive(t, installed)
	sum := sha256.Sum256(jar)
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !strings.HasPrefix(r.URL.Path, "/mirror/io/zonky/test/postgres/embedded-postgres-binaries-"):
			http.NotFound(w, r)
		case strings.HasSuffix(r.URL.Path, ".jar"):
			requests.Add(1)
			w.Write(jar)
		case strings.HasSuffix(r.URL.Path, ".jar.sha256"):
			fmt.Fprint(w, hex.EncodeToString(sum[:]))
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	defer http.DefaultClient.CloseIdleConnections() // which is what embedded-postgres downloads with
	noPostgres(t, server.URL+"/mirror/")
	tmp := t.TempDir()
	must(t, os.Chmod(tmp, 0o777))
	t.Setenv("TMPDIR", tmp)

	// Two at once, as two processes might.
	found := make([]binaries, 2)
	var wg sync.WaitGroup
	for i := range found {
		wg.Go(func() {
			b, err := findBinaries(testContext(t), func(string) {})
			if err != nil {
				t.Error(err)
			}
			found[i] = b
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	if found[0] != found[1] || found[0].dir == installed.dir || found[0].version != installed.version {
		t.Errorf("found %v and %v, want a copy of %v", found[0], found[1], installed)
	}
	cached := filepath.Dir(filepath.Dir(filepath.Dir(found[0].dir)))
	if left, _ := filepath.Glob(filepath.Join(cached, "*", "download-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}

	// From now on without a download.
	before := requests.Load()
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	if c.binaries != found[0] {
		t.Errorf("runs %v, want %v", c.binaries, found[0])
	}
	must(t, c.Leader().Exec(testContext(t), "create table t ()"))
	must(t, c.Server("ord").WaitReplayed(testContext(t)))
	if requests.Load() != before {
		t.Error("downloaded again")
	}
	must(t, c.Stop())
	if left, _ := os.ReadDir(tmp); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// archive makes what the repository serves: a jar that holds a .txz that holds bin/. The programs in it are scripts that
// run the installed ones.
func archive(t *testing.T, installed binaries) []byte {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "bin"), 0o755))
	for _, program := range []string{"postgres", "initdb", "pg_ctl"} {
		script := "#!/bin/sh\nexec " + quote(filepath.Join(installed.dir, program)) + " \"$@\"\n"
		must(t, os.WriteFile(filepath.Join(dir, "bin", program), []byte(script), 0o755))
	}
	txz := filepath.Join(dir, "postgres.txz")
	if out, err := exec.Command("tar", "-C", dir, "-cJf", txz, "bin").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	packed, err := os.ReadFile(txz)
	must(t, err)
	var jar bytes.Buffer
	w := zip.NewWriter(&jar)
	f, err := w.Create("postgres-any-platform.txz")
	must(t, err)
	_, err = f.Write(packed)
	must(t, err)
	must(t, w.Close())
	return jar.Bytes()
}

func TestNoPostgres(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	url := server.URL
	defer http.DefaultClient.CloseIdleConnections()
	t.Run("not in the repository", func(t *testing.T) {
		noPostgres(t, url)
		_, err := Start(testContext(t), Config{})
		wantError(t, err, envPostgres, envRepository)
	})
	server.Close()
	t.Run("no repository", func(t *testing.T) {
		noPostgres(t, url)
		_, err := Start(testContext(t), Config{})
		wantError(t, err, envPostgres, envRepository, url)
	})
	t.Run("nothing installed", func(t *testing.T) {
		if dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres"); len(dirs) > 0 {
			t.Skip("PostgreSQL is installed where it is always found")
		}
		noPostgres(t, url)
		t.Setenv(envPostgres, "")
		t.Setenv("PATH", t.TempDir())
		_, err := Start(testContext(t), Config{})
		wantError(t, err, envPostgres, "install PostgreSQL")
	})
	t.Run("wrong folder", func(t *testing.T) {
		dir := t.TempDir()
		t.Setenv(envPostgres, dir)
		_, err := Start(testContext(t), Config{})
		wantError(t, err, envPostgres, dir)
	})
	t.Run("too old", func(t *testing.T) {
		dir := t.TempDir()
		for _, program := range []string{"postgres", "initdb", "pg_ctl"} {
			must(t, os.WriteFile(filepath.Join(dir, program), []byte("#!/bin/sh\necho 'postgres (PostgreSQL) 9.6.24'\n"), 0o755))
		}
		t.Setenv(envPostgres, dir)
		_, err := Start(testContext(t), Config{})
		wantError(t, err, envPostgres, dir, "9.6.24")
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
