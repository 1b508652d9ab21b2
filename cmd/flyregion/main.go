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
	"strings"
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
	help    func(p *page)
	run     func(ctx context.Context, stdout, stderr io.Writer) error
}

// commands returns all of them. A variable would refer to itself: help shows the others.
func commands() []command {
	return []command{
		{name: "demo", summary: "three regions on this machine: local reads, own writes", help: demoHelp, run: demo},
		{name: "version", summary: "which flyregion this is", help: versionHelp, run: version},
		{name: "help", summary: "this text; 'flyregion help demo' says more about demo", help: helpHelp, run: help},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal ends ctx and with it, in good order, all that runs. From then on a second one ends the process.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process around it. It returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		args = []string{"help"}
	}
	name, args := args[0], args[1:]
	switch {
	case isHelp(name) && len(args) > 0 && isHelp(args[0]):
		name = "help" // flyregion help help, flyregion help -h
	case isHelp(name) && len(args) > 0:
		name, args = args[0], append([]string{"help"}, args[1:]...) // flyregion help demo is flyregion demo help
	case isHelp(name):
		name = "help"
	case name == "-version" || name == "--version":
		name = "version"
	}

	c, ok := commandNamed(name)
	if !ok {
		return misused(stderr, fmt.Sprintf("flyregion: unknown %s %q", kind(name, "command"), name), "flyregion help")
	}
	if len(args) > 0 && isHelp(args[0]) {
		if len(args) == 1 {
			c.help(newPage(stdout))
			return exitOK
		}
		args = args[1:]
	}
	if len(args) > 0 {
		return misused(stderr, fmt.Sprintf("flyregion %s: unknown %s %q", c.name, kind(args[0], "argument"), args[0]), "flyregion help "+c.name)
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
		fmt.Fprintln(stderr, wrap("flyregion: "+err.Error(), widthOf(stderr)))
		return exitFailure
	}
}

// misused tells a user what is wrong with the command line, and which command says what is right.
func misused(stderr io.Writer, what, see string) int {
	fmt.Fprintln(stderr, wrap(what+"\nRun '"+see+"' for what there is.", widthOf(stderr)))
	return exitUsage
}

// kind says what an argument of the command line is: a flag, or what is wanted in its place.
func kind(arg, wanted string) string {
	if strings.HasPrefix(arg, "-") {
		return "flag"
	}
	return wanted
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

func commandNamed(name string) (c command, ok bool) {
	for _, c := range commands() {
		if c.name == name {
			return c, true
		}
	}
	return command{}, false
}

func isHelp(arg string) bool {
	switch arg {
	case "help", "-h", "-help", "--help":
		return true
	}
	return false
}
