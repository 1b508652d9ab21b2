package pgcluster

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// process is one line of the system's process table.
type process struct {
	pid, parent int
	zombie      bool
}

// parse reads a process's number, state and parent.
func parse(pid, state, parent string) process {
	p := process{zombie: strings.HasPrefix(state, "Z")}
	p.pid, _ = strconv.Atoi(pid)
	p.parent, _ = strconv.Atoi(parent)
	return p
}

// readProcess reads one of /proc's folders.
func readProcess(folder string) (process, bool) {
	stat, err := os.ReadFile(filepath.Join(folder, "stat"))
	if err != nil {
		return process{}, false // it has ended
	}
	// The program's name stands in parentheses and may hold anything; after it come the state and the parent.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return process{}, false
	}
	return parse(filepath.Base(folder), fields[0], fields[1]), true
}

// askPS returns the processes that ps lists when it is given these arguments.
func askPS(args ...string) []process {
	out, _ := exec.Command("ps", append(args, "-o", "pid=,stat=,ppid=")...).Output()
	var list []process
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) == 3 {
			list = append(list, parse(fields[0], fields[1], fields[2]))
		}
	}
	return list
}

// hasProc says whether the system shows its processes as files.
var hasProc = sync.OnceValue(func() bool {
	_, ok := readProcess("/proc/self")
	return ok
})

func children(pid int) []int {
	var list []process
	if hasProc() {
		folders, _ := filepath.Glob("/proc/[0-9]*")
		for _, folder := range folders {
			if p, ok := readProcess(folder); ok {
				list = append(list, p)
			}
		}
	} else {
		list = askPS("-A")
	}
	var pids []int
	for _, p := range list {
		if p.parent == pid && !p.zombie {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// alive says whether pid runs. A zombie does not: where process 1 never waits for its children they stay for ever.
func alive(pid int) bool {
	if !exists(pid) {
		return false
	}
	if hasProc() {
		p, ok := readProcess(filepath.Join("/proc", strconv.Itoa(pid)))
		return ok && !p.zombie
	}
	list := askPS("-p", strconv.Itoa(pid))
	return len(list) == 1 && !list[0].zombie
}

// waitGone waits until none of the processes runs.
func waitGone(ctx context.Context, pids ...int) error {
	for _, pid := range pids {
		if err := poll(ctx, func() bool { return !alive(pid) }); err != nil {
			return err
		}
	}
	return nil
}

// poll waits until done returns true, or returns ctx's error when that ends first.
func poll(ctx context.Context, done func() bool) error {
	pause := 500 * time.Microsecond
	for !done() {
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, 20*time.Millisecond)
	}
	return nil
}

// postmaster is what a server's postmaster.pid tells.
type postmaster struct {
	pid    int
	memory string // id of its System V shared memory segment, empty if it has none
}

// readPostmaster returns the postmaster of the data folder. ok is false if there is none or it is not alive.
func readPostmaster(data string) (p postmaster, ok bool) {
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return postmaster{}, false
	}
	lines := strings.Split(string(text), "\n")
	p.pid, err = strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || p.pid <= 1 {
		return postmaster{}, false
	}
	if len(lines) > 6 {
		if fields := strings.Fields(lines[6]); len(fields) == 2 {
			p.memory = fields[1]
		}
	}
	return p, alive(p.pid)
}

// removeMemory removes the shared memory segment of a server that was killed. It does nothing if the next start has
// already taken it over, or if the system has no ipcrm: a segment of 56 bytes then stays until the system restarts.
func (p postmaster) removeMemory() {
	if p.memory != "" {
		_ = exec.Command("ipcrm", "-m", p.memory).Run()
	}
}
