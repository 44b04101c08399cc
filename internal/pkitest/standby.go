package pkitest

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Standby starts a streaming standby of the server, which answers what only reads, and stops it when the test ends. It is
// asynchronous unless the server's synchronous_standby_names names it; its application_name is given.
func (s *PostgresServer) Standby(tb testing.TB, name string, settings ...string) *PostgresServer {
	tb.Helper()
	var standby *PostgresServer
	var err error
	for range 5 { // as StartPostgres
		if standby, err = s.standby(name, settings); err == nil {
			break
		}
	}
	if err != nil {
		tb.Fatalf("start a standby: %v", err)
	}
	tb.Cleanup(standby.Stop)
	return standby
}

func (s *PostgresServer) standby(name string, settings []string) (*PostgresServer, error) {
	owner, err := unprivileged()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", "chancery-pg-")
	if err != nil {
		return nil, err
	}
	if owner != nil {
		if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
			return nil, err
		}
	}
	copied := exec.Command(filepath.Join(postgresBin(), "pg_basebackup"), "-D", filepath.Join(dir, "data"), "-h", s.Dir, "-p", strconv.Itoa(s.Port),
		"-U", "chancery", "-X", "stream", "-c", "fast", "--no-sync", "-R")
	copied.Dir = dir
	copied.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
	if out, err := copied.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("pg_basebackup: %w\n%s", err, out)
	}
	conninfo := fmt.Sprintf("primary_conninfo=host=%s port=%d user=chancery application_name=%s", s.Dir, s.Port, name)
	return launch(dir, owner, append([]string{"hot_standby=on", conninfo}, settings...))
}

// Freeze stops the server with all of its processes, as a machine that hangs: its connections stay open, and say nothing. The end
// of the test thaws it.
func (s *PostgresServer) Freeze(tb testing.TB) {
	tb.Helper()
	tb.Cleanup(func() { s.Thaw(tb) })
	s.signal(tb, syscall.SIGSTOP)
}

// Thaw lets the server go on.
func (s *PostgresServer) Thaw(tb testing.TB) {
	tb.Helper()
	s.signal(tb, syscall.SIGCONT)
}

// Kill ends the server with all of its processes, as a machine that loses its power.
func (s *PostgresServer) Kill(tb testing.TB) {
	tb.Helper()
	s.signal(tb, syscall.SIGKILL)
}

// signal signals the server, and then its processes, so that it makes no new ones.
func (s *PostgresServer) signal(tb testing.TB, what syscall.Signal) {
	tb.Helper()
	children, err := s.children()
	if err != nil {
		tb.Fatalf("find the processes of the server: %v", err)
	}
	if err := syscall.Kill(s.PID, what); err != nil && err != syscall.ESRCH {
		tb.Fatalf("signal the server: %v", err)
	}
	if what == syscall.SIGSTOP {
		children, err = s.children() // with those that it made meanwhile
	}
	for _, pid := range children {
		if err := syscall.Kill(pid, what); err != nil && err != syscall.ESRCH {
			tb.Fatalf("signal process %d of the server: %v", pid, err)
		}
	}
	if err != nil {
		tb.Fatalf("find the processes of the server: %v", err)
	}
}

func (s *PostgresServer) children() ([]int, error) {
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// The name in parentheses may hold spaces; the state and the parent's id follow it.
		_, rest, ok := strings.Cut(string(text[max(0, strings.LastIndexByte(string(text), ')')):]), ") ")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 2 {
			continue
		}
		if parent, _ := strconv.Atoi(fields[1]); parent == s.PID {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				return nil, err
			}
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// Replayed waits until a standby shows all that its primary has written by now.
func (s *PostgresServer) Replayed(tb testing.TB, primary *PostgresServer) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var position string
	primary.query(tb, ctx, "SELECT pg_current_wal_insert_lsn()::text", &position)
	for done := false; !done; {
		s.query(tb, ctx, "SELECT pg_last_wal_replay_lsn() >= '"+position+"'::pg_lsn", &done)
		if !done {
			select {
			case <-ctx.Done():
				tb.Fatalf("the standby did not replay up to %s", position)
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
}

// Followers is how many standbys follow this server now. A copy that was just made streams too, and is seen for a moment after its end.
func (s *PostgresServer) Followers(tb testing.TB) (n int) {
	tb.Helper()
	s.query(tb, tb.Context(), "SELECT COUNT(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name <> 'pg_basebackup'", &n)
	return n
}

func (s *PostgresServer) query(tb testing.TB, ctx context.Context, query string, dest any) {
	tb.Helper()
	pool, err := sql.Open("pgx", s.URL("postgres"))
	if err != nil {
		tb.Fatal(err)
	}
	defer pool.Close()
	if err := pool.QueryRowContext(ctx, query).Scan(dest); err != nil {
		tb.Fatalf("%s: %v", query, err)
	}
}
