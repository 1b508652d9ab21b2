package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

// version prints which flyregion this is.
func version(_ context.Context, stdout, _ io.Writer) error {
	info, _ := debug.ReadBuildInfo()
	_, err := fmt.Fprintln(stdout, describe(info))
	return err
}

// describe says in a line which flyregion a build is. info may be nil.
func describe(info *debug.BuildInfo) string {
	text := "flyregion"
	if info == nil {
		return text + ", version unknown, " + runtime.Version()
	}
	if v := info.Main.Version; v != "" {
		text += " " + v
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if commit := settings["vcs.revision"]; commit != "" {
		text += fmt.Sprintf(", commit %.12s", commit)
		if at := settings["vcs.time"]; at != "" {
			text += " of " + at
		}
		if settings["vcs.modified"] == "true" {
			text += " with changes"
		}
	}
	return fmt.Sprintf("%s, %s %s/%s", text, info.GoVersion, runtime.GOOS, runtime.GOARCH)
}
