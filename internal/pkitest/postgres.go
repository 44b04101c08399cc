package pkitest

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the administrator's connection below

	"chancery/internal/run/consumer"
)

// postgresBin is where the programs of PostgreSQL are: where Debian puts those of 15, or in the directory that
// CHANCERY_TEST_POSTGRES names, for a look at another release.
func postgresBin() string {
	if dir := os.Getenv("CHANCERY_TEST_POSTGRES"); dir != "" {
		return dir
	}
	return "/usr/lib/postgresql/15/bin"
}

// PostgresServer is a PostgreSQL that a test started.
type PostgresServer struct {
	Dir  string // holds the socket, the data directory "data" and the log
	Port int
	PID  int
	stop *os.File // the watcher ends the server when this closes, and so also when the test binary is killed
	done chan error
}

// URL is how to reach a database of the server over its Unix socket.
func (s *PostgresServer) URL(database string) string {
	return fmt.Sprintf("postgres://chancery@/%s?host=%s&port=%d", database, s.Dir, s.Port)
}

// TCP is how to reach it over the loopback address.
func (s *PostgresServer) TCP(database string) string {
	return fmt.Sprintf("postgres://chancery@127.0.0.1:%d/%s?sslmode=disable", s.Port, database)
}

// shared is the one server of this test binary. It ends with the process.
var shared = sync.OnceValues(func() (*PostgresServer, error) {
	s, err := StartPostgres()
	if err != nil {
		return nil, err
	}
	if err := s.exec("CREATE DATABASE chancery_template"); err != nil {
		return nil, err
	}
	return s, migrate(s.URL("chancery_template"))
})

// databases numbers the databases of the shared server.
var databases atomic.Int64

func postgresURL(tb testing.TB) string {
	tb.Helper()
	s, err := shared()
	if err != nil {
		tb.Fatalf("start PostgreSQL: %v", err)
	}
	name := fmt.Sprintf("test_%d", databases.Add(1))
	if err := s.exec("CREATE DATABASE " + name + " TEMPLATE chancery_template"); err != nil {
		tb.Fatalf("create a database: %v", err)
	}
	tb.Cleanup(func() {
		if err := s.exec("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			tb.Errorf("drop the database: %v", err)
		}
	})
	return s.URL(name)
}

// Postgres starts a server for one test, with settings of its own, and stops it when the test ends.
func Postgres(tb testing.TB, settings ...string) *PostgresServer {
	tb.Helper()
	s, err := StartPostgres(settings...)
	if err != nil {
		tb.Fatalf("start PostgreSQL: %v", err)
	}
	tb.Cleanup(s.Stop)
	return s
}

// watcher runs the server, starts it anew after a crash for each line it reads, and ends it when its standard input does. It is a
// process group of its own, so that a signal to the test's group does not leave the server behind.
const watcher = `
dir=$1; bin=$2; shift 2
cd "$dir" || exit 1
start() {
	"$bin/postgres" -D "$dir/data" "$@" >>"$dir/log" 2>&1 &
	pid=$!
	echo $pid >"$dir/pid.new" && mv "$dir/pid.new" "$dir/pid"
}
start "$@"
while read -r _; do
	wait $pid
	start "$@"
done
kill -QUIT $pid 2>/dev/null
wait $pid
cd /; rm -rf "$dir"
`

// StartPostgres makes a cluster in a temporary directory and starts it. As root it becomes the user postgres, or nobody, since
// PostgreSQL refuses to run as root.
func StartPostgres(settings ...string) (*PostgresServer, error) {
	owner, err := unprivileged()
	if err != nil {
		return nil, err
	}
	for range 5 { // somebody else may take the port between our look and the start; what did not start leaves no directory
		var s *PostgresServer
		if s, err = startPostgres(owner, settings); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func startPostgres(owner *syscall.Credential, settings []string) (*PostgresServer, error) {
	dir, err := os.MkdirTemp("/tmp", "chancery-pg-") // short: a socket's path has 107 octets at most
	if err != nil {
		return nil, err
	}
	if owner != nil {
		if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
			return nil, err
		}
	}
	initdb := exec.Command(filepath.Join(postgresBin(), "initdb"), "-D", filepath.Join(dir, "data"), "-U", "chancery", "-A", "trust",
		"-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions")
	initdb.Dir = dir
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
	if out, err := initdb.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("initdb (is postgresql-15 installed, and CHANCERY_TEST_POSTGRES empty or right?): %w\n%s", err, out)
	}
	return launch(dir, owner, settings)
}

func launch(dir string, owner *syscall.Credential, settings []string) (*PostgresServer, error) {
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	args := []string{"-c", watcher, "watcher", dir, postgresBin(), "-p", strconv.Itoa(port), "-k", dir, "-h", "127.0.0.1"}
	// A test loses processes and never the machine, so nothing waits for the disk, which others keep busy.
	for _, set := range slices.Concat([]string{"max_connections=100", "shared_buffers=64MB", "timezone=UTC", "log_timezone=UTC", "fsync=off",
		"full_page_writes=off"}, settings) {
		args = append(args, "-c", set)
	}
	in, out, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	cmd := exec.Command("/bin/sh", args...)
	cmd.Stdin = in
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: owner}
	if err := cmd.Start(); err != nil {
		out.Close()
		return nil, err
	}
	s := &PostgresServer{Dir: dir, Port: port, stop: out, done: make(chan error, 1)}
	go func() { s.done <- cmd.Wait() }()
	if err := s.ready(); err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		s.Stop()
		return nil, fmt.Errorf("%w\n%s", err, bytes.TrimSpace(log))
	}
	return s, nil
}

// ready waits until the server answers.
func (s *PostgresServer) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	pool, err := sql.Open("pgx", s.URL("postgres"))
	if err != nil {
		return err
	}
	defer pool.Close()
	for {
		if err = pool.PingContext(ctx); err == nil {
			break
		}
		select {
		case end := <-s.done:
			s.done <- end
			return fmt.Errorf("the server ended: %w", errors.Join(end, err))
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
	text, err := os.ReadFile(filepath.Join(s.Dir, "pid"))
	if err != nil {
		return err
	}
	s.PID, err = strconv.Atoi(strings.TrimSpace(string(text)))
	return err
}

// Stop ends the server at once, as a crash would, and removes its directory.
func (s *PostgresServer) Stop() {
	s.stop.Close()
	err := <-s.done
	s.done <- err
}

// Crash ends the server as if the machine had failed; Restart starts it again on the same directory and port.
func (s *PostgresServer) Crash() error { return syscall.Kill(s.PID, syscall.SIGQUIT) }

// Restart starts the server after Crash, and returns when it answers.
func (s *PostgresServer) Restart() error {
	old := s.PID
	if _, err := s.stop.WriteString("\n"); err != nil {
		return err
	}
	for s.PID == old {
		if err := s.ready(); err != nil {
			return err
		}
	}
	return nil
}

// Exec runs one statement as the administrator, on the database postgres.
func (s *PostgresServer) Exec(tb testing.TB, query string) {
	tb.Helper()
	if err := s.exec(query); err != nil {
		tb.Fatalf("%s: %v", query, err)
	}
}

// Reload has the server read its files anew, and waits until whoever connects finds it so: PostgreSQL answers once it has sent the signal.
func (s *PostgresServer) Reload(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	const loaded = "SELECT pg_conf_load_time()::text"
	var before string
	s.query(tb, ctx, loaded, &before)
	s.Exec(tb, "SELECT pg_reload_conf()")
	for now := before; now == before; time.Sleep(5 * time.Millisecond) {
		s.query(tb, ctx, loaded, &now)
	}
}

// exec runs one statement as the administrator.
func (s *PostgresServer) exec(query string) error {
	pool, err := sql.Open("pgx", s.URL("postgres"))
	if err != nil {
		return err
	}
	defer pool.Close()
	_, err = pool.Exec(query)
	return err
}

// unprivileged is whom to run PostgreSQL as; nil means as ourselves.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			uid, _ := strconv.ParseUint(u.Uid, 10, 32)
			gid, _ := strconv.ParseUint(u.Gid, 10, 32)
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("there is neither a user postgres nor nobody to run PostgreSQL as")
}

// FreePort is a TCP port of the loopback address that nobody listens on now, and that is its caller's as long as the process lives.
func FreePort() (int, error) {
	address, err := consumer.FreeAddress()
	if err != nil {
		return 0, err
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(port)
}
