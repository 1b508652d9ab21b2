package main

import (
	"context"
	"io"
)

// help prints what flyregion is and can do.
func help(_ context.Context, stdout, _ io.Writer) error {
	usage(newPage(stdout))
	return nil
}

func usage(p *page) {
	p.paragraphs(
		`flyregion: one PostgreSQL pool for an app in several regions of Fly.io. Reads run on the replica beside the app, `+
			`writes on the primary, and a read never misses a write that the app made before.`,
		`Usage:`)
	p.line("    flyregion <command>")
	p.line()
	p.paragraphs(`Commands:`)
	var list []definition
	for _, c := range commands() {
		list = append(list, definition{c.name, c.summary})
	}
	p.definitions(4, list...)
	p.line()
	p.wrapped("", plain, `The package: go doc github.com/flyregion/flyregion`)
}

func helpHelp(p *page) {
	p.paragraphs(
		`flyregion help: what flyregion is and which commands it has, or what one of them does.`,
		`Usage:`)
	p.line("    flyregion help [command]")
}

func versionHelp(p *page) {
	p.paragraphs(
		`flyregion version: which flyregion this is: its version or, if it was built in a clone, the commit, and the Go `+
			`that built it.`,
		`Usage:`)
	p.line("    flyregion version")
}

func demoHelp(p *page) {
	p.paragraphs(
		`flyregion demo: see what package flyregion does, on this machine.`,
		`Starts a real PostgreSQL primary in nrt (Tokyo) and streaming replicas in ord (Chicago) and syd (Sydney), with the `+
			`latencies that a public benchmark measured between them, and an app in each region whose pool is made by `+
			`flyregion.NewPool and that knows nothing of regions. It shows`)
	p.definitions(2,
		definition{"1.", `the same read done the plain way, every query to the primary, and through flyregion;`},
		definition{"2.", `a write followed at once by a read of it, in each region, as a waterfall of its spans;`},
		definition{"3.", `the same while replay is paused in ord: the read goes to the primary rather than be stale or hang.`})
	p.line()
	p.paragraphs(
		`It takes about ten seconds. When it ends, and also when Ctrl-C ends it, nothing is left behind. If no PostgreSQL is `+
			`installed, one is downloaded the first time and kept in the user's cache folder.`,
		`Usage:`)
	p.line("    flyregion demo")
	p.line()
	p.paragraphs(`Environment:`)
	p.definitions(4,
		definition{"FLYREGION_POSTGRES", `folder of the PostgreSQL programs to run, or the word embedded to download them; ` +
			`default the newest that is installed`},
		definition{"FLYREGION_POSTGRES_REPOSITORY", `URL of the Maven repository to download them from; default Maven Central`},
		definition{"OTEL_EXPORTER_OTLP_ENDPOINT", `where to send the spans too, such as http://localhost:4318`},
		definition{"NO_COLOR", `no colours, also on a terminal`})
}

// paragraphs prints each of them with an empty line behind it.
func (p *page) paragraphs(all ...string) {
	for _, text := range all {
		p.wrapped("", plain, text)
		p.line()
	}
}
