package consumer

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// PostgreSQL is a database server of our own, on a Unix socket and a loopback port.
type PostgreSQL struct {
	*Process
	Address string // host:port on loopback
	host    string // what clients connect to: the socket's directory, or 127.0.0.1 where its path is too long
}

// PostgreSQLOptions says how durable the server shall be.
type PostgreSQLOptions struct {
	// Durable leaves fsync and synchronous_commit on. Tests of logic turn it off; a benchmark must not.
	Durable  bool
	Settings []string // more name=value settings
	// Home is where the data directory is made, and Address where the server listens; the caller need not know before
	// where they are empty.
	Home, Address string
}

// StartPostgreSQL makes a cluster in a new directory below dir and starts it. PostgreSQL refuses to run as root, so a
// root caller runs it as the user postgres, who must be able to reach dir.
func StartPostgreSQL(ctx context.Context, dir string, o PostgreSQLOptions) (*PostgreSQL, error) {
	bin, err := postgreSQLPrograms()
	if err != nil {
		return nil, err
	}
	home := o.Home
	if home == "" {
		home, err = os.MkdirTemp(dir, "pg")
	} else {
		err = os.MkdirAll(home, 0o700)
	}
	if err != nil {
		return nil, err
	}
	as, err := unprivileged(home)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(home, "data")
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", data, "-A", "trust", "-U", "postgres", "-N", "-E", "UTF8", "--locale=C")
	initdb.Dir, initdb.SysProcAttr = home, &syscall.SysProcAttr{Credential: as}
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	address := o.Address
	if address == "" {
		if address, err = FreeAddress(); err != nil {
			return nil, err
		}
	}
	_, port, _ := strings.Cut(address, ":")
	host := home
	if len(home) > 80 { // a socket's whole path may have 107 octets
		host = "127.0.0.1"
	}
	settings := []string{"listen_addresses=127.0.0.1", "port=" + port, "max_connections=200", "timezone=UTC", "unix_socket_directories="}
	if host == home {
		settings[len(settings)-1] += home
	}
	if !o.Durable {
		settings = append(settings, "fsync=off", "full_page_writes=off", "synchronous_commit=off")
	}
	args := []string{"-D", data}
	for _, s := range append(settings, o.Settings...) {
		args = append(args, "-c", s)
	}
	run, err := Start(ctx, Program{
		Path: filepath.Join(bin, "postgres"), Args: args, Dir: home, User: as,
		Stop: syscall.SIGINT, // a fast shutdown: sessions are ended, the data is whole
		Ready: func(ctx context.Context) error {
			return exec.CommandContext(ctx, filepath.Join(bin, "pg_isready"), "-q", "-h", host, "-p", port).Run()
		},
	})
	if err != nil {
		return nil, err
	}
	return &PostgreSQL{Process: run, Address: address, host: host}, nil
}

// URL returns the connection URL of a database on this server, over the Unix socket where there is one.
func (p *PostgreSQL) URL(database string) string {
	_, port, _ := strings.Cut(p.Address, ":")
	q := url.Values{"host": {p.host}, "port": {port}, "user": {"postgres"}, "sslmode": {"disable"}}
	return "postgres:///" + database + "?" + q.Encode()
}

// postgreSQLPrograms finds the newest installed release of 15 or later; Debian keeps its programs out of PATH.
func postgreSQLPrograms() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	release := func(path string) int {
		n, _ := strconv.Atoi(strings.Split(path, "/")[4])
		return n
	}
	found = slices.DeleteFunc(found, func(p string) bool { return release(p) < 15 })
	if len(found) > 0 {
		return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return release(a) - release(b) })), nil
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		return filepath.Dir(path), nil
	}
	return "", fmt.Errorf("no PostgreSQL server of release 15 or later in /usr/lib/postgresql or PATH: install the package postgresql-15")
}

// postgreSQLUser is who runs PostgreSQL: postgres where we are root. It needs an account.
func postgreSQLUser() (u *user.User, err error) {
	if os.Geteuid() == 0 {
		u, err = user.Lookup("postgres")
	} else {
		u, err = user.LookupId(strconv.Itoa(os.Geteuid()))
	}
	if err != nil {
		return nil, fmt.Errorf("find the user to run PostgreSQL as: %w", err)
	}
	return u, nil
}

// unprivileged returns the credential to run as, and gives that user the directory; nil where we are not root.
func unprivileged(dir string) (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := postgreSQLUser()
	if err != nil {
		return nil, err
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		return nil, err
	}
	// A test's own directory is 0700 root; the server only needs to pass through.
	for parent := filepath.Dir(dir); parent != "/" && parent != os.TempDir(); parent = filepath.Dir(parent) {
		st, err := os.Stat(parent)
		if err != nil {
			return nil, err
		}
		if st.Mode().Perm()&0o011 == 0 {
			if err := os.Chmod(parent, st.Mode().Perm()|0o011); err != nil {
				return nil, err
			}
		}
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}
