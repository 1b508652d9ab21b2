package pgcluster

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A process that is killed leaves neither processes nor files of its cluster behind.
func TestReaper(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envChild+"=1")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	folder := strings.TrimSpace(line)
	if err != nil || !filepath.IsAbs(folder) {
		t.Fatalf("the child says %q, %v", line, err)
	}
	var pids []int
	for _, region := range []string{"nrt", "ord"} {
		p, ok := readPostmaster(filepath.Join(folder, region, "data"))
		if !ok {
			t.Fatalf("%s does not run", region)
		}
		pids = append(pids, p.pid)
		pids = append(pids, children(p.pid)...)
	}
	if text, err := os.ReadFile(filepath.Join(folder, "bouncer-1", "bouncer.pid")); err == nil {
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		must(t, err)
		pids = append(pids, pid)
	} else if _, err := findBouncer(); err == nil {
		t.Error("PgBouncer does not run")
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	eventually(t, "the folder is gone", func() bool {
		_, err := os.Stat(folder)
		return errors.Is(err, os.ErrNotExist)
	})
	for _, pid := range pids {
		eventually(t, "the processes are gone", func() bool { return !alive(pid) })
	}
}
