package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/flyregion/flyregion/internal/pgcluster"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// Where there is no PostgreSQL this says so once.
	if err := pgcluster.Prepare(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func TestHelp(t *testing.T) {
	for _, tt := range []struct {
		args string
		want func(*page)
	}{
		{"", usage},
		{"help", usage},
		{"-h", usage},
		{"--help", usage},
		{"help demo", demoHelp},
		{"-h demo", demoHelp},
		{"demo -h", demoHelp},
		{"demo --help", demoHelp},
		{"demo help", demoHelp},
		{"help version", versionHelp},
		{"version -h", versionHelp},
		{"help help", helpHelp},
		{"help -h", helpHelp},
		{"-h help", helpHelp},
		{"-h -h", helpHelp},
	} {
		code, stdout, stderr := runHere(t, tt.args)
		if want := printed(defaultWidth, tt.want); code != exitOK || stdout != want || stderr != "" {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q, want %q", tt.args, code, stdout, stderr, want)
		}
	}
	for _, c := range commands() {
		if !strings.Contains(printed(defaultWidth, usage), "    "+c.name+" ") || !strings.Contains(printed(defaultWidth, c.help), "flyregion "+c.name) {
			t.Errorf("%s is not explained", c.name)
		}
		for _, width := range []int{minWidth, 60, defaultWidth, maxWidth} {
			fits(t, width, printed(width, c.help))
			fits(t, width, printed(width, usage))
		}
	}
}

// printed returns what is printed on a page.
func printed(width int, print func(*page)) string {
	var out bytes.Buffer
	print(pageOf(&out, width))
	return out.String()
}

func TestWrongUsage(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"dmeo", `unknown command "dmeo"`},
		{"help dmeo", `unknown command "dmeo"`},
		{"dmeo -h", `unknown command "dmeo"`},
		{"-x", `unknown flag "-x"`},
		{"help -x", `unknown flag "-x"`},
		{"demo fast", `flyregion demo: unknown argument "fast"`},
		{"demo -x", `flyregion demo: unknown flag "-x"`},
		{"demo -x -h", `flyregion demo: unknown flag "-x"`},
		{"help demo fast", `flyregion demo: unknown argument "fast"`},
		{"version 1", `flyregion version: unknown argument "1"`},
		{"--version 1", `flyregion version: unknown argument "1"`},
		{"help help demo", `flyregion help: unknown argument "demo"`},
	} {
		code, stdout, stderr := runHere(t, tt.args)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, tt.want) || !strings.Contains(stderr, "Run 'flyregion help") {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", tt.args, code, stdout, stderr)
		}
		fits(t, defaultWidth, stderr)
	}
}

func TestVersion(t *testing.T) {
	for _, args := range []string{"version", "-version", "--version"} {
		code, stdout, stderr := runHere(t, args)
		if code != exitOK || !strings.HasPrefix(stdout, "flyregion") || !strings.Contains(stdout, runtime.Version()) ||
			strings.Count(stdout, "\n") != 1 || stderr != "" {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
	built := &debug.BuildInfo{GoVersion: "go1.26.0", Main: debug.Module{Version: "v1.2.3"}}
	on := " go1.26.0 " + runtime.GOOS + "/" + runtime.GOARCH
	for _, tt := range []struct {
		version string
		vcs     []debug.BuildSetting
		want    string
	}{
		{"v1.2.3", nil, "flyregion v1.2.3," + on},
		{"(devel)", nil, "flyregion (devel)," + on},
		{"", nil, "flyregion," + on},
		{"(devel)", []debug.BuildSetting{
			{Key: "vcs.revision", Value: "0123456789abcdef0123456789abcdef01234567"},
			{Key: "vcs.time", Value: "2026-01-02T03:04:05Z"},
			{Key: "vcs.modified", Value: "true"},
		}, "flyregion (devel), commit 0123456789ab of 2026-01-02T03:04:05Z with changes," + on},
	} {
		built.Main.Version, built.Settings = tt.version, tt.vcs
		if got := describe(built); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
	if got := describe(nil); !strings.Contains(got, "version unknown") {
		t.Error(got)
	}
}

func TestWithoutPostgres(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "none")
	t.Setenv("FLYREGION_POSTGRES", folder)
	code, stdout, stderr := runHere(t, "demo")
	if code != exitFailure || stdout != "" {
		t.Errorf("exit code %d, stdout %q", code, stdout)
	}
	if strings.Count(stderr, "flyregion: ") != 1 || !strings.Contains(stderr, "FLYREGION_POSTGRES") || !strings.Contains(stderr, folder) {
		t.Errorf("stderr %q", stderr)
	}
}

func TestInterrupted(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	failed := errors.New("failed")
	if !interrupted(ended, failed) {
		t.Error("a failure after a signal is not an interruption")
	}
	if interrupted(ended, errors.Join(failed, &cleanupError{failed})) {
		t.Error("what was left behind is not told")
	}
	if interrupted(t.Context(), failed) {
		t.Error("a failure is an interruption")
	}
}

// runHere runs the command in this process.
func runHere(t *testing.T, args string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = run(t.Context(), strings.Fields(args), &out, &errOut)
	return code, out.String(), errOut.String()
}
