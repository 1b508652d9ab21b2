package pgcluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// account is who runs the servers. PostgreSQL refuses to run as root, so that root must run it as somebody else.
type account struct {
	name     string // empty: as ourselves
	uid, gid int
}

func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.Atoi(u.Uid)
		gid, gidErr := strconv.Atoi(u.Gid)
		if uidErr == nil && gidErr == nil {
			return account{name: name, uid: uid, gid: gid}, nil
		}
	}
	return account{}, errors.New("pgcluster: PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")
}

// own gives path to the account.
func (a account) own(path string) error {
	if a.name == "" {
		return nil
	}
	return os.Chown(path, a.uid, a.gid)
}

// prefix returns the start of a shell command that runs the command after it as the account.
func (a account) prefix() (string, error) {
	if a.name == "" {
		return "", nil
	}
	if path, err := exec.LookPath("setpriv"); err == nil {
		return fmt.Sprintf("%s --reuid=%d --regid=%d --clear-groups ", quote(path), a.uid, a.gid), nil
	}
	if path, err := exec.LookPath("runuser"); err == nil {
		return fmt.Sprintf("%s -u %s -- ", quote(path), quote(a.name)), nil
	}
	if path, err := exec.LookPath("su"); err == nil {
		return fmt.Sprintf(`%s -s /bin/sh %s -c 'exec "$0" "$@"' -- `, quote(path), quote(a.name)), nil
	}
	return "", fmt.Errorf("pgcluster: PostgreSQL does not run as root, and none of setpriv, runuser and su is there to run it as %s", a.name)
}

// writeScripts makes folder/bin with a script for each program that is run. They run it as the account, in a clean
// environment.
func writeScripts(folder string, b binaries, a account) error {
	prefix, err := a.prefix()
	if err != nil {
		return err
	}
	bin := filepath.Join(folder, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	for _, program := range []string{"initdb", "pg_ctl"} {
		if err := writeScript(filepath.Join(bin, program), prefix, filepath.Join(b.dir, program)); err != nil {
			return err
		}
	}
	return nil
}

// writeScript makes a script that runs a program behind the prefix of an account.
func writeScript(path, prefix, program string) error {
	// cd: the current folder may be closed to the account. unset: libpq in the servers' WAL receivers would obey these.
	// LC_ALL: without it a server does not start on some macOS systems.
	script := "#!/bin/sh\n" +
		"cd / || exit 1\n" +
		"umask 077\n" +
		"unset PGDATA PGHOST PGHOSTADDR PGPORT PGUSER PGPASSWORD PGPASSFILE PGDATABASE PGOPTIONS PGSERVICE PGSSLMODE PGSSLROOTCERT PGAPPNAME PGTARGETSESSIONATTRS PGCTLTIMEOUT\n" +
		"LC_ALL=C\n" +
		"export LC_ALL\n" +
		"exec " + prefix + quote(program) + " \"$@\"\n"
	return os.WriteFile(path, []byte(script), 0o755)
}

// quote quotes s for the shell.
func quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// worldSearchable says whether every user can reach what lies in dir.
func worldSearchable(dir string) bool {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	for {
		info, err := os.Stat(dir)
		if err == nil && info.Mode().Perm()&0o001 == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}

// makeFolder makes the folder that all of a cluster lies in.
func makeFolder(a account) (string, error) {
	base := os.TempDir()
	if a.name != "" && !worldSearchable(base) {
		base = "/tmp"
	}
	folder, err := os.MkdirTemp(base, "pgcluster-")
	if err != nil {
		return "", err
	}
	if folder, err = filepath.Abs(folder); err == nil && a.name != "" {
		err = os.Chmod(folder, 0o711)
	}
	if err != nil {
		os.RemoveAll(folder)
		return "", err
	}
	return folder, nil
}
