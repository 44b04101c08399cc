package pkitest_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

const childMode = "CHANCERY_PKITEST_CHILD"

// TestServerDoesNotOutliveTheTest kills a process that has started PostgreSQL: the server and its directory go too.
func TestServerDoesNotOutliveTheTest(t *testing.T) {
	if os.Getenv(childMode) != "" {
		s, err := pkitest.StartPostgres("fsync=off")
		fmt.Println("started", s.PID, s.Dir, err)
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestServerDoesNotOutliveTheTest$")
	cmd.Env = append(os.Environ(), childMode+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	var dir, end string
	lines := bufio.NewScanner(out)
	lines.Scan()
	if _, err := fmt.Sscan(strings.TrimPrefix(lines.Text(), "started "), &pid, &dir, &end); err != nil || pid == 0 {
		cmd.Process.Kill()
		t.Fatalf("the child says %q", lines.Text())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, statErr := os.Stat(dir)
		if os.IsNotExist(statErr) && syscall.Kill(pid, 0) == syscall.ESRCH {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("server %d or %s is still there", pid, dir)
		}
	}
}

// TestEachDatabaseIsFresh: both engines, each test with a database of its own that has the schema and nothing else.
func TestEachDatabaseIsFresh(t *testing.T) {
	var ran []db.Dialect
	for range 2 {
		pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
			ran = append(ran, d.Dialect())
			err := d.Tx(t.Context(), func(tx *db.Tx) error {
				_, err := tx.Exec(t.Context(), "INSERT INTO clock (name, high_water) VALUES ('x', 1)")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	if !slices.Equal(ran, []db.Dialect{db.SQLite, db.Postgres, db.SQLite, db.Postgres}) {
		t.Errorf("ran on %v", ran)
	}
}

// TestFaultsDoWhatTheySay looks at the rows behind the faults.
func TestFaultsDoWhatTheySay(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		var faults pkitest.Faults
		d := pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})
		write := func(name string) error {
			return d.Tx(t.Context(), func(tx *db.Tx) error {
				_, err := tx.Exec(t.Context(), "INSERT INTO clock (name, high_water) VALUES ($1, 1)", name)
				return err
			})
		}
		faults.FailCommit(2, pkitest.NotPersisted)
		faults.FailCommit(3, pkitest.PersistedAnyway)
		for i, fails := range []bool{false, true, true, false} {
			if err := write(fmt.Sprint(i)); (err != nil) != fails {
				t.Errorf("write %d: %v", i, err)
			}
		}
		var names string
		err := d.Read(t.Context(), func(tx *db.Tx) error {
			names = ""
			rows, err := tx.Query(t.Context(), "SELECT name FROM clock ORDER BY name")
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var name string
				if err := rows.Scan(&name); err != nil {
					return err
				}
				names += name
			}
			return rows.Err()
		})
		if err != nil || names != "023" || faults.Commits() != 4 || faults.Statements() < 8 {
			t.Errorf("rows %q, %d commits, %d statements, %v", names, faults.Commits(), faults.Statements(), err)
		}
	})
}
