package pgcluster

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// noPostgres makes the environment one in which no PostgreSQL is installed and nothing was downloaded yet. It returns the
// folder that downloads are kept in.
func noPostgres(t *testing.T, repository string) (cache string) {
	t.Helper()
	home := openFolder(t)
	t.Setenv("XDG_CACHE_HOME", home)
	t.Setenv("HOME", home) // for macOS
	t.Setenv(envPostgres, "embedded")
	t.Setenv(envRepository, repository)
	a, err := serverAccount()
	must(t, err)
	cache, err = cacheFolder(a)
	must(t, err)
	tmp := openFolder(t)
	must(t, os.Chmod(tmp, 0o777))
	t.Setenv("TMPDIR", tmp)
	t.Cleanup(func() {
		for _, pattern := range []string{filepath.Join(cache, "download-*"), filepath.Join(tmp, "*")} {
			if left, _ := filepath.Glob(pattern); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		}
	})
	return cache
}

// openFolder returns an empty folder that the servers' account can enter.
func openFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	return dir
}

// find finds the PostgreSQL that the environment asks for.
func find(ctx context.Context, p progress) (binaries, error) {
	a, err := serverAccount()
	if err != nil {
		return binaries{}, err
	}
	return findBinaries(ctx, a, p)
}

// installed returns the PostgreSQL that the tests run on.
func installed(t *testing.T) binaries {
	t.Helper()
	b, err := find(testContext(t), Config{}.progress())
	must(t, err)
	return b
}

// archive makes what the repository serves: a jar that holds a .txz that holds bin/. The programs in it are scripts that
// run the installed ones.
func archive(t *testing.T) []byte {
	t.Helper()
	from := installed(t)
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	must(t, w.WriteHeader(&tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}))
	for _, program := range []string{"postgres", "initdb", "pg_ctl"} {
		script := "#!/bin/sh\nexec " + quote(filepath.Join(from.dir, program)) + " \"$@\"\n"
		must(t, w.WriteHeader(&tar.Header{Name: "bin/" + program, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(script))}))
		_, err := io.WriteString(w, script)
		must(t, err)
	}
	must(t, w.WriteHeader(&tar.Header{Name: "share/sample", Typeflag: tar.TypeReg, Mode: 0o644}))
	must(t, w.Close())
	return jar(t, "postgres-any-platform.txz", xz(t, packed.Bytes()))
}

// xz compresses data.
func xz(t *testing.T, data []byte) []byte {
	t.Helper()
	program, err := exec.LookPath("xz")
	if err != nil {
		t.Skip("xz is not installed: no archive can be made")
	}
	cmd := exec.Command(program, "-0", "--stdout")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	must(t, err)
	return out
}

// jar makes a jar of one file.
func jar(t *testing.T, name string, data []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	w := zip.NewWriter(&packed)
	f, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
	must(t, err)
	_, err = f.Write(data)
	must(t, err)
	must(t, w.Close())
	return packed.Bytes()
}

// serve returns the URL of a repository that answers every request for a jar as it is told, and for a checksum with sum,
// or with 404 if that is empty.
func serve(t *testing.T, sum string, answer http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !strings.HasPrefix(r.URL.Path, "/mirror/io/zonky/test/postgres/embedded-postgres-binaries-"):
			http.NotFound(w, r)
		case strings.HasSuffix(r.URL.Path, ".jar"):
			answer(w, r)
		case strings.HasSuffix(r.URL.Path, ".jar.sha256") && sum != "":
			fmt.Fprint(w, sum)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL + "/mirror/"
}

func checksum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func TestDownload(t *testing.T) {
	from, jar := installed(t), archive(t)
	var requests atomic.Int32
	cache := noPostgres(t, serve(t, checksum(jar)+"\n", func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		w.Header().Set("Content-Length", fmt.Sprint(len(jar)))
		_, _ = w.Write(jar)
	}))

	// Several at once, as several processes might.
	found := make([]binaries, 3)
	var mu sync.Mutex
	var steps []string
	last, total := int64(0), int64(0)
	p := progress{
		step: func(step string) {
			mu.Lock()
			defer mu.Unlock()
			steps = append(steps, step)
		},
		received: func(n, of int64) { last, total = n, of },
	}
	var wg sync.WaitGroup
	for i := range found {
		wg.Go(func() {
			b, err := find(testContext(t), p)
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
	for _, b := range found {
		if b != found[0] || !strings.HasPrefix(b.dir, cache) || b.version != from.version {
			t.Errorf("found %v, want a copy of %v in %s", b, from, cache)
		}
	}
	if requests.Load() != 1 {
		t.Errorf("downloaded %d times", requests.Load())
	}
	if last != int64(len(jar)) || total != last {
		t.Errorf("%d of %d bytes were reported, want all %d", last, total, len(jar))
	}
	if text := strings.Join(steps, "\n"); strings.Count(text, "downloading PostgreSQL 18") != 1 ||
		strings.Count(text, "unpacking PostgreSQL 18") != 1 || strings.Count(text, "waiting for another process") > 2 {
		t.Errorf("progress: %q", steps)
	}

	// From now on without a download.
	c := startCluster(t, Config{Replicas: []string{"ord"}})
	if c.binaries != found[0] {
		t.Errorf("runs %v, want %v", c.binaries, found[0])
	}
	must(t, c.Leader().Exec(testContext(t), "create table t ()"))
	must(t, c.Server("ord").WaitReplayed(testContext(t)))
	if requests.Load() != 1 {
		t.Error("downloaded again")
	}
	must(t, c.Stop())
}

// What fails leaves nothing behind, says what to do, and can be tried again.
func TestDownloadFails(t *testing.T) {
	good := archive(t)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	programs := func(text string, more ...byte) []byte {
		var packed bytes.Buffer
		w := tar.NewWriter(&packed)
		for _, name := range []string{"bin/postgres", "bin/initdb", "bin/pg_ctl", "share/more"} {
			content := []byte(text)
			if name == "share/more" {
				content = more
			}
			must(t, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}))
			_, err := w.Write(content)
			must(t, err)
		}
		must(t, w.Close())
		return xz(t, packed.Bytes())
	}
	random := make([]byte, 100_000)
	_, _ = rand.Read(random)
	long := programs("#!/bin/sh\necho 'postgres (PostgreSQL) 18.3'\n", random...)
	send := func(data []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) }
	}
	for _, tt := range []struct {
		name       string
		repository string
		answer     http.HandlerFunc
		sum        string
		want       []string
	}{
		{name: "no server", repository: gone.URL, want: []string{gone.URL, "refused"}},
		{name: "not a URL", repository: "maven:secret@example", want: []string{"not an http or https URL"}},
		{name: "not there", answer: http.NotFound, want: []string{".jar: 404 Not Found"}},
		{name: "forbidden", answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, want: []string{"403 Forbidden"}},
		{name: "cut", answer: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(good)))
			_, _ = w.Write(good[:len(good)/2])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, want: []string{"after ", "unexpected EOF"}},
		{name: "cut, of unknown size", answer: func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(good[:len(good)/2])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, want: []string{"after ", "EOF"}},
		{name: "half, without a word", answer: func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				fmt.Fprintf(conn, "HTTP/1.0 200 OK\r\n\r\n%s", good[:len(good)/2])
				conn.Close()
			}
		}, want: []string{"zip"}},
		{name: "wrong checksum", answer: send(good), sum: checksum([]byte("other")), want: []string{"damaged", checksum(good)}},
		{name: "a page for everything", answer: send([]byte("<html>")), sum: "<html>", want: []string{"damaged"}},
		{name: "garbage", answer: send([]byte("garbage")), want: []string{"zip"}},
		{name: "no archive", answer: send(jar(t, "readme", nil)), want: []string{"no .txz"}},
		{name: "archive of garbage", answer: send(jar(t, "x.txz", []byte("garbage"))), want: []string{"xz"}},
		{name: "archive cut short", answer: send(jar(t, "x.txz", long[:len(long)-1000])), want: []string{"xz"}},
		{name: "empty archive", answer: send(jar(t, "x.txz", xz(t, nil))), want: []string{"no bin/postgres"}},
		{name: "of another machine", answer: send(jar(t, "x.txz", programs("#!/no/such/loader\n"))), want: []string{"does not run here"}},
		{name: "that fails", answer: send(jar(t, "x.txz", programs("#!/bin/sh\necho no such library >&2\nexit 127\n"))), want: []string{"does not run here", "no such library"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			repository := tt.repository
			if tt.answer != nil {
				repository = strings.Replace(serve(t, tt.sum, tt.answer), "://", "://user:secret@", 1)
			}
			cache := noPostgres(t, repository)
			err := Prepare(testContext(t))
			wantError(t, err, append(tt.want, envPostgres, envRepository)...)
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows the repository's password: %v", err)
			}
			if left, _ := os.ReadDir(cache); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}

			t.Setenv(envRepository, serve(t, "", send(good)))
			must(t, Prepare(testContext(t)))
		})
	}
	t.Run("no cache folder", func(t *testing.T) {
		noPostgres(t, gone.URL)
		file := filepath.Join(openFolder(t), "file")
		must(t, os.WriteFile(file, nil, 0o644))
		t.Setenv("XDG_CACHE_HOME", file)
		t.Setenv("HOME", file)
		wantError(t, Prepare(testContext(t)), envPostgres, envRepository)
	})
}

// What was downloaded may run and be of no use all the same.
func TestDownloadedDoesNotStart(t *testing.T) {
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	for name, script := range map[string]string{
		"bin/postgres": "#!/bin/sh\necho 'postgres (PostgreSQL) 18.3'\n",
		"bin/initdb":   "#!/bin/sh\necho no such collation\nexit 1\n",
		"bin/pg_ctl":   "#!/bin/sh\n",
	} {
		must(t, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(script))}))
		_, err := io.WriteString(w, script)
		must(t, err)
	}
	must(t, w.Close())
	bad := jar(t, "x.txz", xz(t, packed.Bytes()))
	noPostgres(t, serve(t, "", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bad) }))
	_, err := Start(testContext(t), Config{})
	wantError(t, err, "no such collation", envPostgres, envRepository)
}

// A server that goes silent is given up.
func TestDownloadSilence(t *testing.T) {
	done := make(chan struct{})
	url := serve(t, "", func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(make([]byte, 1<<16))
		w.(http.Flusher).Flush()
		<-done
	})
	defer close(done)
	t.Setenv(envRepository, url)
	repo, err := newRepository()
	must(t, err)
	defer repo.client.CloseIdleConnections()
	repo.silence = 50 * time.Millisecond
	err = repo.fetch(testContext(t), downloadVersion, t.TempDir(), func(int64, int64) {})
	wantError(t, err, ".jar: nothing came for 50ms")
}

// A download that is interrupted ends at once, and leaves nothing behind.
func TestDownloadInterrupted(t *testing.T) {
	interrupt := func(t *testing.T, cache string, when func(cancel func()) progress) {
		t.Helper()
		ctx, cancel := context.WithCancel(testContext(t))
		defer cancel()
		_, err := find(ctx, when(cancel))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want that it was canceled", err)
		}
		if left, _ := os.ReadDir(cache); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	atStep := func(name string) func(cancel func()) progress {
		return func(cancel func()) progress {
			p := Config{}.progress()
			p.step = func(step string) {
				if strings.HasPrefix(step, name) {
					cancel()
				}
			}
			return p
		}
	}
	t.Run("before the answer", func(t *testing.T) {
		arrived := make(chan func(), 1)
		cache := noPostgres(t, serve(t, "", func(_ http.ResponseWriter, r *http.Request) {
			(<-arrived)()
			<-r.Context().Done()
		}))
		interrupt(t, cache, func(cancel func()) progress {
			arrived <- cancel
			return Config{}.progress()
		})
	})
	t.Run("in the middle", func(t *testing.T) {
		cache := noPostgres(t, serve(t, "", func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(make([]byte, 1<<20))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}))
		interrupt(t, cache, func(cancel func()) progress {
			p := Config{}.progress()
			p.received = func(int64, int64) { cancel() }
			return p
		})
	})
	t.Run("unpacking", func(t *testing.T) {
		good := archive(t)
		cache := noPostgres(t, serve(t, "", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(good) }))
		interrupt(t, cache, atStep("unpacking"))
	})
	t.Run("waiting for another process", func(t *testing.T) {
		cache := noPostgres(t, serve(t, "", http.NotFound))
		unlock, err := lock(testContext(t), cache, Config{}.progress())
		must(t, err)
		defer unlock()
		interrupt(t, cache, atStep("waiting"))
	})
}

// Unpacking takes seconds. It ends soon after its context does, and not when everything is unpacked.
func TestUnpackInterrupted(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	folder := t.TempDir()
	must(t, os.WriteFile(filepath.Join(folder, artifact()+"-"+downloadVersion+".txz"), zeros(t, 1<<30), 0o644))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		_ = poll(testContext(t), func() bool {
			begun, _ := filepath.Glob(filepath.Join(folder, "*", "zeros"))
			return len(begun) > 0
		})
	}()
	if _, err := unpack(ctx, folder); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it was canceled", err)
	}
	if unpacked, _ := filepath.Glob(filepath.Join(folder, "*", "zeros")); len(unpacked) > 0 {
		t.Error("it was unpacked to the end")
	}
	if left, _ := os.ReadDir(os.TempDir()); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// zeros returns a .txz archive of one file that is large and takes long to unpack.
func zeros(t *testing.T, size int64) []byte {
	t.Helper()
	const part = 64 << 20
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	must(t, w.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Mode: 0o644, Size: size}))
	packed := xz(t, head.Bytes())
	// One .xz file after another is a .xz file.
	return append(packed, bytes.Repeat(xz(t, make([]byte, part)), int(size/part))...)
}

// A copy that does not run is replaced.
func TestDownloadReplacesBrokenCopy(t *testing.T) {
	good := archive(t)
	noPostgres(t, serve(t, "", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(good) }))
	b := installed(t)
	for name, harm := range map[string]func(program string) error{
		"empty":   func(program string) error { return os.WriteFile(program, nil, 0o755) },
		"missing": os.Remove,
		"text":    func(program string) error { return os.WriteFile(program, []byte("\x00"), 0o644) },
	} {
		must(t, harm(filepath.Join(b.dir, "postgres")))
		if again := installed(t); again != b {
			t.Errorf("%s: found %v, want %v", name, again, b)
		}
	}
}

func TestArtifact(t *testing.T) {
	for _, tt := range []struct {
		system, arch, machine string
		alpine                bool
		want                  string
	}{
		{"linux", "amd64", "x86_64\n", false, "linux-amd64"},
		{"linux", "amd64", "x86_64\n", true, "linux-amd64-alpine"},
		{"linux", "arm64", "aarch64\n", false, "linux-arm64v8"},
		{"linux", "arm64", "aarch64\n", true, "linux-arm64v8-alpine"},
		{"linux", "arm", "armv7l\n", false, "linux-arm32v7"},
		{"linux", "arm", "armv6l\n", true, "linux-arm32v6-alpine"},
		{"darwin", "amd64", "x86_64\n", false, "darwin-amd64"},
		{"darwin", "arm64", "arm64\n", false, "darwin-arm64v8"},
	} {
		if got := artifactFor(tt.system, tt.arch, tt.machine, tt.alpine); got != "embedded-postgres-binaries-"+tt.want {
			t.Errorf("%v: %s", tt, got)
		}
	}
}
