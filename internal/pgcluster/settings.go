package pgcluster

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The superuser that initdb makes, and the database that is there then.
const (
	superuser = "postgres"
	password  = "postgres"
	database  = "postgres"
)

// logFile is the name of a server's log in its log folder.
const logFile = "server.log"

// settings returns the servers' common settings. They go to postgresql.conf rather than to the command line, so that
// ALTER SYSTEM can change them while a test runs.
func settings(config Config) map[string]string {
	s := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"unix_socket_directories": "", // their paths may not be longer than 107 bytes, and nobody needs them
		"max_connections":         "300",
		"shared_buffers":          "32MB",
		// Nothing here outlives the cluster's folder, also when a server is killed.
		"dynamic_shared_memory_type": "mmap",
		"fsync":                      "off",
		"autovacuum":                 "off",
		"jit":                        "off",
		"min_wal_size":               "32MB",
		"wal_level":                  "replica",
		"max_wal_senders":            fmt.Sprint(10 + 2*len(config.Replicas)),
		// A replica that was cut off finds all it missed.
		"wal_keep_size":                "1GB",
		"hot_standby":                  "on",
		"hot_standby_feedback":         "off",
		"wal_receiver_status_interval": "1s",
		"wal_retrieve_retry_interval":  "100ms",
		"max_prepared_transactions":    "5",
		"timezone":                     "UTC",
		"lc_messages":                  "C",
		"log_timezone":                 "UTC",
		"logging_collector":            "on",
		"log_filename":                 logFile,
		"log_rotation_age":             "0",
		"log_rotation_size":            "0",
		"log_checkpoints":              "off",
		"log_line_prefix":              "%m [%p] %q%a ",
	}
	maps.Copy(s, config.Parameters)
	return s
}

// writeSettings appends the settings to the postgresql.conf of the data folder.
func writeSettings(data string, settings map[string]string) error {
	file, err := os.OpenFile(filepath.Join(data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	var text strings.Builder
	text.WriteString("\n")
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&text, "%s = '%s'\n", name, strings.NewReplacer("'", "''", `\`, `\\`).Replace(settings[name]))
	}
	if _, err := file.WriteString(text.String()); err != nil {
		return err
	}
	return file.Close()
}
