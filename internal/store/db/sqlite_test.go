package db_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

func TestSecondProcessIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	cmd, in, lines := startChild(t, "hold", dir, false)
	expect(t, lines, "open")
	_, err := db.Open(t.Context(), db.Options{URL: childURL(dir)})
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), fmt.Sprint(cmd.Process.Pid)) {
		t.Fatalf("a second process: %v", err)
	}
	in.Close()
	expect(t, lines, "ok")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	pkitest.Open(t, db.Options{URL: childURL(dir)})
	if _, err := db.Open(t.Context(), db.Options{URL: childURL(dir)}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second handle of this process: %v", err)
	}
}

// TestKilledProcessLosesNothingAcknowledged kills a writer with SIGKILL between any two of its instructions.
func TestKilledProcessLosesNothingAcknowledged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	cmd, _, lines := startChild(t, "write", dir, false)
	var acknowledged []string
	for len(acknowledged) < 500 && lines.Scan() {
		acknowledged = append(acknowledged, lines.Text())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() { // what was said before it died counts too
		acknowledged = append(acknowledged, lines.Text())
	}
	if len(acknowledged) < 500 {
		t.Fatalf("the child acknowledged %d rows, and last said %q", len(acknowledged), lines.Text())
	}
	d := pkitest.Open(t, db.Options{URL: childURL(dir)})
	for _, id := range acknowledged {
		var n int
		err := d.Read(t.Context(), func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "SELECT COUNT(*) FROM items WHERE id = $1", id).Scan(&n)
		})
		if err != nil || n != 1 {
			t.Fatalf("acknowledged row %s: %d, %v", id, n, err)
		}
	}
}

func TestFullDisk(t *testing.T) {
	_, _, lines := startChild(t, "full", t.TempDir(), true)
	expect(t, lines, "ok")
}

func TestReadOnlyFileSystem(t *testing.T) {
	_, _, lines := startChild(t, "readonly", t.TempDir(), true)
	expect(t, lines, "ok")
}

// TestForeignDirectory runs only what an ordinary user can see: as root the child becomes nobody first.
func TestForeignDirectory(t *testing.T) {
	if os.Geteuid() != 0 { // root reads everything; an ordinary user cannot read a directory without permissions
		dir := filepath.Join(t.TempDir(), "data")
		if err := os.Mkdir(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Open(t.Context(), db.Options{URL: childURL(dir)}); !fault.Is(err, fault.Unavailable) {
			t.Fatalf("a directory without write permission: %v", err)
		}
		return
	}
	dir, err := os.MkdirTemp("/tmp", "chancery-foreign-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary := filepath.Join(dir, "test")
	if err := copyTo(os.Args[0], binary); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary)
	cmd.Env = append(os.Environ(), childMode+"=foreign", childDir+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "ok\n" {
		t.Fatalf("%v: %s", err, out)
	}
}

func copyTo(from, to string) error {
	if err := os.Link(from, to); err == nil {
		return os.Chmod(to, 0o755)
	}
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o755)
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "data")
	d := pkitest.Open(t, db.Options{URL: childURL(dir)})
	makeTable(t, d)
	if err := d.Tx(t.Context(), func(tx *db.Tx) error { return insert(t.Context(), tx, "a", 1) }); err != nil {
		t.Fatal(err)
	}
	mode := func(path string) os.FileMode {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Mode().Perm()
	}
	if m := mode(dir); m != 0o700 {
		t.Errorf("the directory has mode %o", m)
	}
	for _, name := range []string{"chancery.db", "chancery.db-wal", "chancery.db-shm", "chancery.db.lock"} {
		if m := mode(filepath.Join(dir, name)); m != 0o600 {
			t.Errorf("%s has mode %o", name, m)
		}
	}
	wide := filepath.Join(t.TempDir(), "wide")
	if err := os.Mkdir(wide, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(wide, 0o770); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Open(t.Context(), db.Options{URL: childURL(wide)}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a directory that others may write to: %v", err)
	}
}

func TestURLsThatNameNothing(t *testing.T) {
	for _, url := range []string{"", "chancery.db", "sqlite:chancery.db", "sqlite:", "mysql://h/d"} {
		if _, err := db.Open(t.Context(), db.Options{URL: url}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", url, err)
		}
	}
	if _, err := db.Open(t.Context(), db.Options{URL: "sqlite:/x/y", Durability: "some"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("durability: %v", err)
	}
}

// TestOddPath: the path goes into a URI, whose reserved characters it may hold.
func TestOddPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b?c#d%20e'f")
	d := pkitest.Open(t, db.Options{URL: childURL(dir)})
	makeTable(t, d)
	if _, err := os.Stat(filepath.Join(dir, "chancery.db-wal")); err != nil {
		t.Error(err)
	}
	if err := d.CopyFile(t.Context(), filepath.Join(dir, "copy's.db")); err != nil {
		t.Error(err)
	}
}

func TestFileThatIsNoDatabase(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "chancery.db"), []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Open(t.Context(), db.Options{URL: childURL(dir)}); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("garbage: %v", err)
	}
}

func TestCopyFile(t *testing.T) {
	ctx := t.Context()
	d := pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)})
	makeTable(t, d)
	for i := range 50 {
		if err := d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, fmt.Sprint(i), 1) }); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "copy", "chancery.db")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	stop, stopped := context.WithCancel(ctx)
	wrote := make(chan error, 1)
	go func() { // writers go on
		for i := 1000; stop.Err() == nil; i++ {
			if err := d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, fmt.Sprint(i), 1) }); err != nil {
				wrote <- err
				return
			}
		}
		wrote <- nil
	}()
	err := d.CopyFile(ctx, path)
	stopped()
	if err := <-wrote; err != nil {
		t.Errorf("writing meanwhile: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the copy: %v, %v", st.Mode(), err)
	}
	if n := count(t, pkitest.Open(t, db.Options{URL: "sqlite:" + path})); n < 50 {
		t.Errorf("the copy has %d rows", n)
	}
	if err := d.CopyFile(ctx, path); err == nil {
		t.Error("a copy was overwritten")
	}
	p := pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.Postgres)})
	if err := p.CopyFile(ctx, path+"2"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a copy of PostgreSQL: %v", err)
	}
}
