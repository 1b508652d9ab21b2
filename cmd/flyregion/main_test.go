package main

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHelp(t *testing.T) {
	for _, tt := range []struct {
		args string
		want string
	}{
		{"", usage()},
		{"help", usage()},
		{"-h", usage()},
		{"--help", usage()},
		{"help demo", demoHelp},
		{"-h demo", demoHelp},
		{"demo -h", demoHelp},
		{"demo --help", demoHelp},
		{"demo help", demoHelp},
	} {
		code, stdout, stderr := runHere(t, tt.args)
		if code != exitOK || stdout != tt.want || stderr != "" {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", tt.args, code, stdout, stderr)
		}
		fits(t, stdout)
	}
	for _, c := range commands {
		if !strings.Contains(usage(), c.name) || !strings.Contains(c.help, "flyregion "+c.name) {
			t.Errorf("%s is not explained", c.name)
		}
	}
}

func TestWrongUsage(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"dmeo", `unknown command "dmeo"`},
		{"help dmeo", `unknown command "dmeo"`},
		{"dmeo -h", `unknown command "dmeo"`},
		{"-x", `unknown command "-x"`},
		{"demo fast", `unknown argument "fast"`},
		{"demo -x", `unknown argument "-x"`},
	} {
		code, stdout, stderr := runHere(t, tt.args)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, tt.want) {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", tt.args, code, stdout, stderr)
		}
		fits(t, stderr)
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
