package pgcluster

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// mavenCentral is the repository that PostgreSQL is downloaded from by default.
const mavenCentral = "https://repo1.maven.org/maven2"

// silence is how long a download waits for a server that sends nothing.
const silence = 30 * time.Second

// repository is a Maven repository that has the archives of https://github.com/zonkyio/embedded-postgres-binaries.
type repository struct {
	url     string
	client  *http.Client
	silence time.Duration
}

// newRepository returns the repository that the environment names. Close its client's idle connections after use.
func newRepository() (*repository, error) {
	address := os.Getenv(envRepository)
	if address == "" {
		address = mavenCentral
	}
	// The address is not part of the error: it may hold a password.
	if u, err := url.Parse(address); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%s is not an http or https URL", envRepository)
	}
	return &repository{
		url:     strings.TrimSuffix(address, "/"),
		client:  &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()},
		silence: silence,
	}, nil
}

// artifact returns the name of the archive for this machine, as https://github.com/fergusstrange/embedded-postgres has it.
func artifact() string {
	_, err := os.Stat("/etc/alpine-release")
	machine, _ := exec.Command("uname", "-m").Output()
	return artifactFor(runtime.GOOS, runtime.GOARCH, string(machine), err == nil)
}

func artifactFor(system, arch, machine string, alpine bool) string {
	switch {
	case arch == "arm64":
		arch = "arm64v8"
	case arch == "arm" && strings.HasPrefix(machine, "armv7"):
		arch = "arm32v7"
	case arch == "arm" && strings.HasPrefix(machine, "armv6"):
		arch = "arm32v6"
	}
	if system == "linux" && alpine {
		arch += "-alpine"
	}
	return "embedded-postgres-binaries-" + system + "-" + arch
}

// fetch downloads the archive of a version into folder, as <artifact>-<version>.txz.
func (r *repository) fetch(ctx context.Context, version, folder string, received func(received, total int64)) error {
	name := artifact()
	file := name + "-" + version
	address := strings.Join([]string{r.url, "io/zonky/test/postgres", name, version, file + ".jar"}, "/")
	jar, err := os.Create(filepath.Join(folder, file+".jar"))
	if err != nil {
		return err
	}
	defer jar.Close()
	sum := sha256.New()
	if err := r.get(ctx, address, io.MultiWriter(jar, sum), received); err != nil {
		return err
	}
	if err := r.verify(ctx, address, hex.EncodeToString(sum.Sum(nil))); err != nil {
		return err
	}
	if err := jar.Close(); err != nil {
		return err
	}
	if err := extract(jar.Name(), filepath.Join(folder, file+".txz")); err != nil {
		return fmt.Errorf("%s: %w", redacted(address), err)
	}
	return nil
}

// verify compares the checksum of what was downloaded with the one beside it in the repository. A mirror need not have it.
func (r *repository) verify(ctx context.Context, address, sum string) error {
	var text strings.Builder
	err := r.get(ctx, address+".sha256", &text, func(int64, int64) {})
	if status := (*statusError)(nil); errors.As(err, &status) && status.code == http.StatusNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	want, _, _ := strings.Cut(strings.TrimSpace(text.String()), " ")
	if !strings.EqualFold(want, sum) {
		return fmt.Errorf("%s is damaged: its SHA-256 is %s, which is not what the .sha256 file beside it says", redacted(address), sum)
	}
	return nil
}

// statusError is an answer that is not what was asked for.
type statusError struct {
	url  string
	code int
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s: %d %s", e.url, e.code, http.StatusText(e.code))
}

// get copies what is at an address. received is told how much has come and how much there is, -1 if that is not known.
func (r *repository) get(ctx context.Context, address string, to io.Writer, received func(received, total int64)) (err error) {
	silent := fmt.Errorf("%s: nothing came for %v", redacted(address), r.silence)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(r.silence, func() { cancel(silent) })
	defer timer.Stop()
	defer func() {
		if err != nil && context.Cause(ctx) == silent {
			err = silent
		}
	}()

	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	response, err := r.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return &statusError{redacted(address), response.StatusCode}
	}
	var n int64
	buffer := make([]byte, 64<<10)
	for {
		count, err := response.Body.Read(buffer)
		if count > 0 {
			timer.Reset(r.silence)
			n += int64(count)
			if _, err := to.Write(buffer[:count]); err != nil {
				return err
			}
			received(n, response.ContentLength)
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("%s: after %d bytes: %w", redacted(address), n, err)
		}
	}
}

// redacted returns an address without the password that it may hold.
func redacted(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "the repository"
	}
	return u.Redacted()
}

// extract copies the .txz archive out of a jar.
func extract(jar, to string) error {
	reader, err := zip.OpenReader(jar)
	if err != nil {
		return err
	}
	defer reader.Close()
	for _, entry := range reader.File {
		if entry.Mode().IsRegular() && strings.HasSuffix(entry.Name, ".txz") {
			return extractFile(entry, to)
		}
	}
	return errors.New("it holds no .txz archive")
}

func extractFile(entry *zip.File, to string) error {
	from, err := entry.Open()
	if err != nil {
		return err
	}
	defer from.Close()
	file, err := os.Create(to)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.Copy(file, from); err != nil {
		return err
	}
	return file.Close()
}
