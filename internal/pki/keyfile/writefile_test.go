package keyfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"chancery/internal/fault"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "k.pem")
	if err := WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := WriteFile(path, []byte("two"), 0o600)
	if !fault.Is(err, fault.Conflict) || !errors.Is(err, fs.ErrExist) {
		t.Fatalf("second WriteFile: %v", err)
	}
	if string(read(t, path)) != "one" {
		t.Fatal("the refused write changed the file")
	}
	if err := ReplaceFile(path, []byte("two"), 0o640); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o640 || string(read(t, path)) != "two" {
		t.Fatalf("replaced: %v %v", st, err)
	}
	onlyFiles(t, dir, "k.pem")
}

func onlyFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	var names []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if strings.Join(names, " ") != strings.Join(want, " ") {
		t.Fatalf("the directory holds %q, want %q", names, want)
	}
}

// The umask belongs to the whole process, so this test must not run beside others.
func TestWriteFileRespectsUmask(t *testing.T) {
	for _, tc := range []struct {
		umask      int
		mode, want fs.FileMode
	}{{0o277, 0o600, 0o400}, {0o022, 0o666, 0o644}, {0o777, 0o600, 0}, {0, 0o640, 0o640}} {
		dir := t.TempDir()
		path := filepath.Join(dir, "k")
		old := syscall.Umask(tc.umask)
		err := WriteFile(path, []byte("x"), tc.mode)
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode() != tc.want || st.Size() != 1 {
			t.Errorf("umask %o, mode %o: got %v %v, want %v", tc.umask, tc.mode, st.Mode(), err, tc.want)
		}
	}
}

func TestWriteFileLeavesNothingWhenItFails(t *testing.T) {
	dir := t.TempDir()
	if err := WriteFile(filepath.Join(dir, "none", "k"), nil, 0o600); err == nil {
		t.Fatal("a missing directory was accepted")
	}
	target := filepath.Join(dir, "d")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceFile(target, []byte("x"), 0o600); err == nil {
		t.Fatal("a directory was replaced by a file")
	}
	// A dangling link is there already: to write through it would create a file where somebody else chose.
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "l"), []byte("x"), 0o600); !fault.Is(err, fault.Conflict) {
		t.Fatalf("through a dangling link: %v", err)
	}
	onlyFiles(t, dir, "d", "l")
	if err := ReplaceFile(filepath.Join(dir, "l"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	onlyFiles(t, dir, "d", "l")
}
