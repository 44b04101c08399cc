package probe

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"chancery/internal/fault"
)

// openTree makes DIR/a/b/key readable by all, with DIR itself searchable by all, and returns DIR.
func openTree(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "readable") // the parents of t.TempDir are 0700
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.MkdirAll(dir+"/a/b", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/a/b/key", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// stranger is an account of this machine that is not our own.
func stranger(t *testing.T) User {
	t.Helper()
	for _, name := range []string{"nobody", "daemon"} {
		u, err := System{}.User(name)
		if err != nil {
			t.Fatal(err)
		}
		if u.UID != os.Geteuid() {
			return u
		}
	}
	panic("two accounts have the same number")
}

// readableCases are changes to the tree, and what they do to a stranger, who owns nothing there: "" lets him read, else
// the end of the path that is in the way. They are made by tests as root and by an ordinary user alike, so none changes
// an owner.
var readableCases = []struct {
	name, path string
	perm       fs.FileMode
	stops      string
}{
	{"all open", "", 0, ""},
	{"file for its owner", "a/b/key", 0o600, "a/b/key"},
	{"file for its group", "a/b/key", 0o640, "a/b/key"},
	{"file for others", "a/b/key", 0o604, ""},
	{"directory for its owner", "a/b", 0o700, "a/b,"},
	{"directory searchable, not listed", "a/b", 0o711, ""},
	{"directory listed, not searchable", "a/b", 0o754, "a/b,"},
	{"upper directory for its group", "a", 0o750, "/a,"},
}

// TestReadable tries as a stranger, by the kernel where this process is root; and by the mode bits, which must agree.
func TestReadable(t *testing.T) {
	other := stranger(t)
	for _, c := range readableCases {
		t.Run(c.name, func(t *testing.T) {
			dir := openTree(t)
			if c.path != "" {
				if err := os.Chmod(filepath.Join(dir, c.path), c.perm); err != nil {
					t.Fatal(err)
				}
			}
			key := dir + "/a/b/key"
			judge := func(how string, err error) {
				if c.stops == "" && err != nil {
					t.Errorf("%s: %v", how, err)
				}
				if c.stops != "" {
					wantError(t, err, c.stops, "permission denied", "in the way")
				}
			}
			if os.Geteuid() == 0 {
				sys := System{AsRoot: true}
				judge("kernel", Readable(t.Context(), sys, key, "nobody", ""))
				judge("kernel below a root", Readable(t.Context(), System{Root: dir, AsRoot: true}, "/a/b/key", "nobody", ""))
				if err := Readable(t.Context(), sys, key, "root", ""); err != nil {
					t.Errorf("root: %v", err)
				}
			}
			judge("mode bits", unreadable(walk(key, modeBits(other)), "nobody", ""))
			err := Readable(t.Context(), System{}, key, other.Name, "")
			judge("without the right", err)
			if c.stops != "" {
				wantError(t, err, other.Name+" cannot read it", "computed from the mode bits")
			}
			// Below a root our own user stands for all.
			if err := Readable(t.Context(), System{Root: dir}, "/a/b/key", "nobody", ""); err != nil {
				t.Errorf("our own: %v", err)
			}
		})
	}
}

// TestReadableByItsGroup is the recipe's usual case: a key of root that the group of the daemon may read.
func TestReadableByItsGroup(t *testing.T) {
	daemon, err := System{}.Group("daemon")
	if err != nil {
		t.Fatal(err)
	}
	other := stranger(t)
	dir := openTree(t)
	key := dir + "/a/b/key"
	if os.Geteuid() == 0 {
		if err := os.Chown(key, 0, daemon); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(key, 0o440); err != nil {
			t.Fatal(err)
		}
		sys := System{AsRoot: true}
		wantError(t, Readable(t.Context(), sys, key, "nobody", ""), "a/b/key", "group 1")
		if err := Readable(t.Context(), sys, key, "nobody", "daemon"); err != nil {
			t.Errorf("in the group: %v", err)
		}
		if err := Readable(t.Context(), sys, key, "daemon", ""); err != nil {
			t.Errorf("a user of the group: %v", err)
		}
	}
	// The first class that the user is in decides, even where a later one would allow more.
	st, err := os.Stat(key)
	if err != nil {
		t.Fatal(err)
	}
	gid := int(st.Sys().(*syscall.Stat_t).Gid)
	if err := os.Chmod(key, 0o604); err != nil {
		t.Fatal(err)
	}
	if err := walk(key, modeBits(User{UID: other.UID, GID: gid})); err == nil {
		t.Error("a group without the right reads by the right of others")
	}
	if err := os.Chmod(key, 0o040); err != nil {
		t.Fatal(err)
	}
	if err := walk(key, modeBits(User{UID: other.UID, GID: other.GID, Groups: []int{gid}})); err != nil {
		t.Errorf("by a supplementary group: %v", err)
	}
	if err := walk(key, modeBits(User{UID: os.Getuid(), GID: gid})); os.Getuid() != 0 && err == nil {
		t.Error("an owner without the right reads by the right of his group")
	}
}

// TestReadableFollowsLinks: links count as what they lead to, and a loop ends.
func TestReadableFollowsLinks(t *testing.T) {
	other := stranger(t)
	dir := openTree(t)
	for name, target := range map[string]string{"abs": dir + "/a", "rel": "a/../a", "loop": "loop", "dangling": "nowhere", "file": "a/b/key"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for path, word := range map[string]string{"abs/b/key": "", "rel/b/key": "", "file": "", "loop/b": "too many symbolic links", "dangling": "no such file", "file/x": "is no directory"} {
		err := walk(filepath.Join(dir, path), modeBits(other))
		if word == "" && err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if word != "" {
			wantError(t, err, word)
		}
	}
	if err := os.Chmod(dir+"/a", 0o700); err != nil {
		t.Fatal(err)
	}
	wantError(t, walk(dir+"/abs/b/key", modeBits(other)), dir+"/a,")
	if os.Geteuid() == 0 {
		wantError(t, Readable(t.Context(), System{AsRoot: true}, dir+"/rel/b/key", "nobody", ""), dir+"/a,", "in the way")
	}
}

func TestReadableThatCannotBeAsked(t *testing.T) {
	sys := System{AsRoot: os.Geteuid() == 0}
	wantError(t, Readable(t.Context(), sys, "/no/such/file", "nobody", ""), "no such file", "/no")
	if err := Readable(t.Context(), sys, "relative", "nobody", ""); !fault.Is(err, fault.Invalid) {
		t.Errorf("relative: %v", err)
	}
	if err := Readable(t.Context(), sys, "/etc/passwd", "no-such-user", ""); !fault.Is(err, fault.NotFound) {
		t.Errorf("no user: %v", err)
	}
	if err := Readable(t.Context(), sys, "/etc/passwd", "nobody", "no-such-group"); !fault.Is(err, fault.NotFound) {
		t.Errorf("no group: %v", err)
	}
	wantError(t, Readable(t.Context(), sys, "/etc", "nobody", ""), "is a directory")
	if os.Geteuid() == 0 {
		sys.Self = []string{"/bin/false"}
		if err := Readable(t.Context(), sys, "/etc/passwd", "nobody", ""); err == nil || fault.Is(err, fault.Invalid) {
			t.Errorf("a child that fails is taken for an answer: %v", err)
		}
	}
	for _, args := range [][]string{nil, {"0"}, {"-1", "0", "0", "/"}, {"0", "0", "", "/"}, {"root", "0", "0", "/"}} {
		if code := ReadableMain(args); code != exitFailed {
			t.Errorf("%q: %d", args, code)
		}
	}
}
