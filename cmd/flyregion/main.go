// Command flyregion shows what package flyregion does.
//
// Usage:
//
//	flyregion demo
//
// starts a PostgreSQL primary and two replicas on this machine, as far apart as Tokyo, Chicago and Sydney, and an app
// beside each, and shows what the apps' reads and writes cost. See flyregion help demo.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Exit codes. That of an interruption is what a shell gives for a command that SIGINT ended.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// command is one of the things that flyregion can do.
type command struct {
	name    string
	summary string
	help    string
	run     func(ctx context.Context, stdout, stderr io.Writer) error
}

var commands = []command{
	{name: "demo", summary: "three regions on this machine: local reads, own writes", help: demoHelp, run: demo},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal ends ctx and with it, in good order, all that runs. From then on a second one ends the process.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process around it. It returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 || isHelp(args[0]) && len(args) == 1 {
		fmt.Fprint(stdout, usage())
		return exitOK
	}
	if isHelp(args[0]) {
		args = []string{args[1], args[0]}
	}

	c := commandNamed(args[0])
	if c == nil {
		fmt.Fprintf(stderr, "flyregion: unknown command %q\nRun 'flyregion help' for those that there are.\n", args[0])
		return exitUsage
	}
	for _, arg := range args[1:] {
		if isHelp(arg) {
			fmt.Fprint(stdout, c.help)
			return exitOK
		}
	}
	if len(args) > 1 {
		fmt.Fprintf(stderr, "flyregion %s: unknown argument %q\nRun 'flyregion help %s'.\n", c.name, args[1], c.name)
		return exitUsage
	}

	err := c.run(ctx, stdout, stderr)
	switch {
	case err == nil:
		return exitOK
	case interrupted(ctx, err):
		if isTerminal(stderr) {
			fmt.Fprint(stderr, "\r") // over the ^C that the terminal prints
		}
		fmt.Fprintln(stderr, "flyregion: interrupted; nothing is left running")
		return exitInterrupted
	default:
		fmt.Fprintln(stderr, wrap("flyregion: "+err.Error(), pageWidth))
		return exitFailure
	}
}

// interrupted reports whether err came of a signal. A terminal sends Ctrl-C to the programs that we run as well, and one
// that ends may be noticed before our own signal is.
func interrupted(ctx context.Context, err error) bool {
	const notice = 100 * time.Millisecond
	select {
	case <-ctx.Done():
	case <-time.After(notice):
		return false
	}
	return !isCleanupError(err)
}

func commandNamed(name string) *command {
	for i := range commands {
		if commands[i].name == name {
			return &commands[i]
		}
	}
	return nil
}

func isHelp(arg string) bool {
	switch arg {
	case "help", "-h", "-help", "--help":
		return true
	}
	return false
}

func usage() string {
	text := `flyregion: one PostgreSQL pool for an app in several regions of Fly.io.
Reads run on the replica beside the app, writes on the primary, and a read
never misses a write that the app made before.

Usage:

    flyregion <command>

Commands:

`
	for _, c := range commands {
		text += fmt.Sprintf("    %-6s %s\n", c.name, c.summary)
	}
	return text + `    help   this text; 'flyregion help demo' says more about demo

The package: go doc github.com/flyregion/flyregion
`
}
