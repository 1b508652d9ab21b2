//go:build unix

package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestInterruptLeavesNothing interrupts the program at its different steps.
func TestInterruptLeavesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts the demo many times")
	}
	program := build(t)

	for _, tt := range []struct {
		name string
		// at is in the line upon which the signal is sent, after a pause.
		at     string
		pause  time.Duration
		signal syscall.Signal
		// group sends it to what the program runs as well, as a terminal does.
		group bool
	}{
		{"at once", "", 20 * time.Millisecond, syscall.SIGINT, true},
		{"initdb", "making a database", 300 * time.Millisecond, syscall.SIGINT, false},
		{"initdb from a terminal", "making a database", 300 * time.Millisecond, syscall.SIGINT, true},
		{"copy", "starting nrt", 0, syscall.SIGINT, true},
		{"start", "starting nrt", 400 * time.Millisecond, syscall.SIGINT, false},
		{"start from a terminal", "starting nrt", 400 * time.Millisecond, syscall.SIGINT, true},
		{"streaming", "waiting until", 0, syscall.SIGTERM, false},
		{"ready", "ready", 0, syscall.SIGINT, true},
		{"warm-up", "warming up", 500 * time.Millisecond, syscall.SIGINT, true},
		{"measuring", "measuring", 700 * time.Millisecond, syscall.SIGINT, true},
		{"waterfall", "2. A write", 100 * time.Millisecond, syscall.SIGTERM, true},
		{"lag", "3. The same", 200 * time.Millisecond, syscall.SIGINT, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			temp := shortTempDir(t)
			cmd := exec.Command(program, "demo")
			cmd.Env = append(os.Environ(), "TMPDIR="+temp)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			output, err := start(cmd)
			if err != nil {
				t.Fatal(err)
			}
			deadline := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
			defer deadline.Stop()

			var seen bytes.Buffer
			lines := bufio.NewScanner(io.TeeReader(output, &seen))
			for tt.at != "" && lines.Scan() && !strings.Contains(lines.Text(), tt.at) {
			}
			time.Sleep(tt.pause)
			to := cmd.Process.Pid
			if tt.group {
				to = -to
			}
			if err := syscall.Kill(to, tt.signal); err != nil {
				t.Fatalf("%v\n%s", err, seen.String())
			}
			for lines.Scan() {
			}
			err = cmd.Wait()

			var exit *exec.ExitError
			killed := false
			if errors.As(err, &exit) && tt.at == "" {
				// The signal may arrive before the program waits for it, and before there is anything to leave.
				killed = exit.Sys().(syscall.WaitStatus).Signal() == tt.signal
			}
			if exit == nil || !killed && exit.ExitCode() != exitInterrupted {
				t.Errorf("%v, want exit code %d\n%s", err, exitInterrupted, seen.String())
			}
			leavesNothing(t, temp)
		})
	}
}

// TestSecondInterrupt ends the program without giving it time to clean up. Then it takes a moment.
func TestSecondInterrupt(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the program")
	}
	program := build(t)
	temp := shortTempDir(t)
	cmd := exec.Command(program, "demo")
	cmd.Env = append(os.Environ(), "TMPDIR="+temp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	output, err := start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(output)
	for lines.Scan() && !strings.Contains(lines.Text(), "warming up") {
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for lines.Scan() {
		}
		_ = cmd.Wait()
	}()
	for alive := true; alive; {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		select {
		case <-ended:
			alive = false
		case <-time.After(5 * time.Millisecond):
		}
	}

	eventually := time.Now().Add(20 * time.Second)
	for len(leftIn(temp)) > 0 && time.Now().Before(eventually) {
		time.Sleep(100 * time.Millisecond)
	}
	leavesNothing(t, temp)
}

// TestInterruptDownload ends the program while it downloads PostgreSQL from a server that has gone silent.
func TestInterruptDownload(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the program")
	}
	program := build(t)
	for _, tt := range []struct {
		name   string
		signal syscall.Signal
	}{
		{"interrupted", syscall.SIGINT},
		{"killed", syscall.SIGKILL},
	} {
		t.Run(tt.name, func(t *testing.T) {
			begun := make(chan struct{})
			repository := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "14000000")
				_, _ = w.Write(make([]byte, 1<<20))
				w.(http.Flusher).Flush()
				close(begun)
				<-r.Context().Done()
			}))
			defer repository.Close()
			temp := shortTempDir(t)
			cache := filepath.Join(temp, "cache")
			if err := os.Mkdir(cache, 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(program, "demo")
			cmd.Env = append(os.Environ(), "TMPDIR="+temp, "XDG_CACHE_HOME="+cache, "HOME="+cache, // HOME for macOS
				"FLYREGION_POSTGRES=embedded", "FLYREGION_POSTGRES_REPOSITORY="+repository.URL)
			output, err := start(cmd)
			if err != nil {
				t.Fatal(err)
			}
			<-begun
			if err := cmd.Process.Signal(tt.signal); err != nil {
				t.Fatal(err)
			}
			text, _ := io.ReadAll(output)
			err = cmd.Wait()
			if tt.signal == syscall.SIGINT && cmd.ProcessState.ExitCode() != exitInterrupted {
				t.Errorf("%v, want exit code %d\n%s", err, exitInterrupted, text)
			}

			// The folder that downloads are kept in may stay.
			left := func() []string {
				downloads, _ := filepath.Glob(filepath.Join(cache, "*", "download-*"))
				more, _ := filepath.Glob(filepath.Join(cache, "*", "*", "*", "download-*")) // on macOS
				return append(append(downloads, more...), slices.DeleteFunc(leftIn(temp), func(name string) bool { return name == cache })...)
			}
			for end := time.Now().Add(20 * time.Second); tt.signal == syscall.SIGKILL && len(left()) > 0 && time.Now().Before(end); {
				time.Sleep(20 * time.Millisecond)
			}
			if left := left(); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// build returns the program.
func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "flyregion")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return program
}

// start starts cmd and returns all that it prints.
func start(cmd *exec.Cmd) (io.Reader, error) {
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = cmd.Stdout
	return output, cmd.Start()
}

// shortTempDir returns a folder that every user may enter, which a server that root starts needs.
func shortTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "flyregion-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func leavesNothing(t *testing.T, temp string) {
	t.Helper()
	for _, left := range leftIn(temp) {
		t.Error("left behind:", left)
	}
}

// leftIn returns the files in a folder, and the processes that know of it: by their command line, their environment or
// the folder they are in. A server's own processes have nothing but the last.
func leftIn(temp string) (left []string) {
	files, _ := filepath.Glob(filepath.Join(temp, "*"))
	left = append(left, files...)

	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		env, _ := os.ReadFile(filepath.Join(dir, "environ"))
		cwd, _ := os.Readlink(filepath.Join(dir, "cwd"))
		if bytes.Contains(line, []byte(temp)) || bytes.Contains(env, []byte(temp)) || strings.HasPrefix(cwd, temp) {
			left = append(left, dir+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	if len(processes) == 0 {
		out, _ := exec.Command("ps", "-A", "-o", "pid=,command=").Output()
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, temp) {
				left = append(left, strings.TrimSpace(line))
			}
		}
	}
	return left
}
