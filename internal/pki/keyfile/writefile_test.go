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

// another is a user and a group that root may leave a file to, and the caller's own for anybody else.
func another() (uid, gid int) {
	if os.Geteuid() == 0 {
		return 65534, 65533
	}
	return os.Geteuid(), os.Getegid()
}

// owned makes a file, or finds a directory, and leaves it to a user.
func owned(t *testing.T, path string, mode fs.FileMode, uid, gid int) {
	t.Helper()
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(path, []byte("before"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chown(path, uid, gid), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

func isOwned(t *testing.T, path string, mode fs.FileMode, uid, gid int) {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode() != mode || uidOf(st) != uid || gidOf(st) != gid || string(read(t, path)) != "after" {
		t.Errorf("%s has %v of %d:%d and %q, want %v of %d:%d", path, st.Mode(), uidOf(st), gidOf(st), read(t, path), mode, uid, gid)
	}
}

// What root's command writes beside the service is the service's, a file that an older one of root's lies in the way of too.
func TestReplaceBeside(t *testing.T) {
	dir := t.TempDir()
	uid, gid := another()
	owned(t, dir, 0o700, uid, gid)
	path := filepath.Join(dir, "login.pem")
	owned(t, path, 0o600, os.Geteuid(), os.Getegid())
	for _, path := range []string{path, filepath.Join(dir, "new")} {
		if err := ReplaceBeside(path, []byte("after"), 0o600); err != nil {
			t.Fatal(err)
		}
		isOwned(t, path, 0o600, uid, gid)
	}
	onlyFiles(t, dir, "login.pem", "new")
}

// A key that a group reads stays so, and a link stays a link: unless another user could lead root astray by it.
func TestReplaceKept(t *testing.T) {
	dir := t.TempDir()
	uid, gid := another()
	key, link := filepath.Join(dir, "key"), filepath.Join(dir, "link")
	owned(t, key, 0o640, os.Geteuid(), gid)
	if err := os.Symlink("key", link); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceKept(link, []byte("after"), 0o600); err != nil {
		t.Fatal(err)
	}
	isOwned(t, key, 0o640, os.Geteuid(), gid)
	if to, err := os.Readlink(link); err != nil || to != "key" {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	for mode, want := range map[fs.FileMode]fs.FileMode{0o666: 0o640, 0o400: 0o600, 0o670: 0o640, 0o600: 0o600} {
		owned(t, key, mode, uid, gid)
		if err := ReplaceKept(key, []byte("after"), 0o600); err != nil {
			t.Fatal(err)
		}
		isOwned(t, key, want, uid, gid)
	}
	if err := ReplaceKept(filepath.Join(dir, "new"), []byte("after"), 0o644); err != nil {
		t.Fatal(err)
	}
	isOwned(t, filepath.Join(dir, "new"), 0o644, os.Geteuid(), os.Getegid())
	for name, to := range map[string]string{"dangling": "nowhere", "to-link": "link", "to-directory": "."} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := ReplaceKept(filepath.Join(dir, name), []byte("led"), 0o600); !fault.Is(err, fault.Conflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if os.Geteuid() == 0 {
		owned(t, key, 0o600, 0, 0)
		if err := os.Lchown(link, uid, gid); err != nil {
			t.Fatal(err)
		}
		if err := ReplaceKept(link, []byte("led"), 0o600); !fault.Is(err, fault.Denied) {
			t.Errorf("root is led by another's link: %v", err)
		}
	}
	if string(read(t, key)) != "after" {
		t.Errorf("the key is %q", read(t, key))
	}
}
