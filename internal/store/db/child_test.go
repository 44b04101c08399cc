package db_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/store/db"
)

// childDir is where a child finds its directory.
const childDir = "CHANCERY_DB_TEST_DIR"

// child is this binary run again as another process. It says "ok" or what went wrong.
func child(mode string) int {
	if err := map[string]func(dir string) error{
		"hold": holdOpen, "write": writeForEver, "full": fillDisk, "readonly": openReadOnly, "foreign": openForeign,
	}[mode](os.Getenv(childDir)); err != nil {
		fmt.Println("child:", err)
		return 1
	}
	fmt.Println("ok")
	return 0
}

func childURL(dir string) string { return "sqlite:" + filepath.Join(dir, "chancery.db") }

// holdOpen keeps the database open until its standard input ends.
func holdOpen(dir string) error {
	d, err := db.Open(context.Background(), db.Options{URL: childURL(dir)})
	if err != nil {
		return err
	}
	fmt.Println("open")
	io.Copy(io.Discard, os.Stdin)
	return d.Close()
}

// writeForEver says the id of each row after its transaction was acknowledged.
func writeForEver(dir string) error {
	ctx := context.Background()
	d, err := db.Open(ctx, db.Options{URL: childURL(dir)})
	if err != nil {
		return err
	}
	if _, err := d.Migrator().Exec("CREATE TABLE items (id TEXT NOT NULL PRIMARY KEY, n BIGINT NOT NULL, body BYTEA NOT NULL)"); err != nil {
		return err
	}
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprint(w, ".", i)
				if err := d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, id, 1) }); err != nil {
					fmt.Println("child:", err)
					return
				}
				os.Stdout.WriteString(id + "\n")
			}
		}()
	}
	select {}
}

// fillDisk works on a file system of 2 MiB that only this process sees.
func fillDisk(dir string) error {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m,mode=0700"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	ctx := context.Background()
	d, err := db.Open(ctx, db.Options{URL: childURL(dir)})
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err := d.Migrator().Exec("CREATE TABLE items (id TEXT NOT NULL PRIMARY KEY, n BIGINT NOT NULL, body BYTEA NOT NULL)"); err != nil {
		return err
	}
	kept := 0
	var full error
	for kept < 1000 && full == nil {
		full = d.Tx(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO items (id, n, body) VALUES ($1, $2, $3)", db.NewID(), int64(1), make([]byte, 50_000))
			return err
		})
		if full == nil {
			kept++
		}
	}
	if !fault.Is(full, fault.Unavailable) || errors.Is(full, db.ErrUnknownOutcome) || !strings.Contains(full.Error(), "full") {
		return fmt.Errorf("a full disk after %d rows: %v", kept, full)
	}
	see := func(want int) error {
		var n int
		err := d.Read(ctx, func(tx *db.Tx) error { return tx.QueryRow(ctx, "SELECT COUNT(*) FROM items").Scan(&n) })
		if err != nil || n != want {
			return fmt.Errorf("%d rows, want %d: %w", n, want, err)
		}
		return nil
	}
	if err := see(kept); err != nil {
		return fmt.Errorf("reading with a full disk: %w", err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=64m"); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	for range 20 {
		if err := d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, db.NewID(), 1) }); err != nil {
			return fmt.Errorf("after space was made: %w", err)
		}
	}
	return see(kept + 20)
}

// openReadOnly opens a database whose file system is read-only.
func openReadOnly(dir string) error {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m,mode=0700"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	d, err := db.Open(context.Background(), db.Options{URL: childURL(dir)})
	if err != nil {
		return err
	}
	if err := d.Close(); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, "size=2m"); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	_, err = db.Open(context.Background(), db.Options{URL: childURL(dir)})
	if f, ok := errors.AsType[*fault.Error](err); !ok || f.Kind != fault.Unavailable || !strings.Contains(f.Message, dir) || f.Hint == "" {
		return fmt.Errorf("a read-only file system: %v", err)
	}
	return nil
}

// openForeign opens the directory of another user.
func openForeign(dir string) error {
	_, err := db.Open(context.Background(), db.Options{URL: childURL(dir)})
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), dir) {
		return fmt.Errorf("another user's directory: %v", err)
	}
	return nil
}

// startChild runs this binary in the given mode. With namespace it has mounts, and without root a user namespace, of its own.
func startChild(t *testing.T, mode, dir string, namespace bool) (*exec.Cmd, io.WriteCloser, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childMode+"="+mode, childDir+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if namespace {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS
		if os.Geteuid() != 0 {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
		}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("start a child: %v", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, in, bufio.NewScanner(out)
}

// expect reads a line of the child.
func expect(t *testing.T, lines *bufio.Scanner, want string) {
	t.Helper()
	if !lines.Scan() || lines.Text() != want {
		t.Fatalf("the child says %q, want %q", lines.Text(), want)
	}
}
