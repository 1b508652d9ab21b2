package pgcluster

import (
	"fmt"
	"os"
	"os/exec"
)

// reaper is a shell that outlives us by a moment: it reads from a pipe that nobody writes to, and sees the pipe's end
// when our process ends, however that happens. If the cluster's folder is still there it stops the servers in it and
// removes it. It looks again later, because a server that was just being started may appear only then.
type reaper struct {
	cmd  *exec.Cmd
	pipe *os.File
}

const reaperScript = `
trap '' HUP INT QUIT TERM
cd /
read -r _
clean() {
	round=0
	while [ $round -lt 30 ]; do
		round=$((round + 1))
		signal=QUIT
		[ $round -gt 20 ] && signal=KILL
		found=
		for file in "$1"/*/data/postmaster.pid "$1"/*/bouncer.pid; do
			[ -f "$file" ] || continue
			memory=
			{ read -r pid; read -r _; read -r _; read -r _; read -r _; read -r _; read -r _ memory; } <"$file"
			case $pid in '' | *[!0-9]*) continue ;; esac
			if kill -$signal "$pid"; then
				found=1
			elif [ -n "$memory" ]; then
				ipcrm -m "$memory"
			fi
		done
		[ -n "$found" ] || break
		sleep 0.2
	done
	rm -rf "$1"
}
[ -d "$1" ] || exit 0
clean "$1"
sleep 1
[ -d "$1" ] || exit 0
clean "$1"
sleep 2
clean "$1"
`

func startReaper(folder string) (*reaper, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	cmd := exec.Command("/bin/sh", "-c", reaperScript, "pgcluster-reaper", folder)
	cmd.Stdin = read
	detach(cmd)
	if err := cmd.Start(); err != nil {
		write.Close()
		return nil, fmt.Errorf("pgcluster: starting the process that cleans up: %w", err)
	}
	return &reaper{cmd: cmd, pipe: write}, nil
}

// stop ends the reaper. It has nothing left to do if the folder is gone.
func (r *reaper) stop() {
	_ = r.pipe.Close()
	_ = r.cmd.Wait()
}
