package keyfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"chancery/internal/fault"
)

func opened(t *testing.T, path string) *Place {
	t.Helper()
	p, err := OpenPlace(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// TestPlaceIsNotLedAway swaps the directory for a link to another one between any two steps: nothing is read, made or left in that.
func TestPlaceIsNotLedAway(t *testing.T) {
	for _, taken := range []bool{true, false} {
		for swapped := range 4 {
			base := t.TempDir()
			in, moved, other := filepath.Join(base, "in"), filepath.Join(base, "moved"), filepath.Join(base, "other")
			if err := errors.Join(os.Mkdir(in, 0o700), os.Mkdir(other, 0o700), os.WriteFile(filepath.Join(other, "key"), []byte("theirs"), 0o600)); err != nil {
				t.Fatal(err)
			}
			uid, gid := another()
			if taken {
				owned(t, filepath.Join(in, "key"), 0o600, uid, gid)
			}
			owned(t, in, 0o700, uid, gid)
			p := opened(t, filepath.Join(in, "key"))
			for step, do := range []func() error{
				func() error {
					text, err := p.Read(100)
					if taken && string(text) != "before" || !taken && !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("swapped before step %d: read %q, %v", swapped, text, err)
					}
					return nil
				},
				func() error { return p.Prepare(0o600) },
				func() error { return p.Fill([]byte("after")) },
				p.Put,
			} {
				if step == swapped {
					if err := errors.Join(os.Rename(in, moved), os.Symlink("other", in)); err != nil {
						t.Fatal(err)
					}
				}
				if err := do(); err != nil {
					t.Fatalf("swapped before step %d: step %d: %v", swapped, step, err)
				}
			}
			p.Close()
			isOwned(t, filepath.Join(moved, "key"), 0o600, uid, gid)
			onlyFiles(t, moved, "key")
			onlyFiles(t, other, "key")
			if got := read(t, filepath.Join(other, "key")); string(got) != "theirs" {
				t.Errorf("swapped before step %d: the other directory's file is %q", swapped, got)
			}
		}
	}
}

// TestPlaceIsLookedAtOnce: what came since in the place of the file that was looked at is not read for it, be it a link or another file.
func TestPlaceIsLookedAtOnce(t *testing.T) {
	dir := t.TempDir()
	key, other := filepath.Join(dir, "key"), filepath.Join(dir, "other")
	for _, swap := range []func(from, to string) error{os.Symlink, os.Link} {
		for _, file := range []string{key, other} {
			if err := os.WriteFile(file, []byte(file), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		p := opened(t, key)
		if err := errors.Join(os.Remove(key), swap(other, key)); err != nil {
			t.Fatal(err)
		}
		if text, err := p.Read(100); err == nil {
			t.Errorf("it reads %q", text)
		}
		if err := os.Remove(key); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPlaceThatIsLetGo leaves all as it was.
func TestPlaceThatIsLetGo(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	uid, gid := another()
	owned(t, key, 0o640, uid, gid)
	p := opened(t, key)
	if err := errors.Join(p.Prepare(0o600), p.Fill([]byte("after"))); err != nil {
		t.Fatal(err)
	}
	if !p.Taken() || p.Owner() != uid || !p.Is(opened(t, filepath.Join(dir, ".", "key"))) || p.Is(opened(t, filepath.Join(dir, "none"))) {
		t.Errorf("%+v", p)
	}
	p.Close()
	onlyFiles(t, dir, "key")
	if got := read(t, key); string(got) != "before" {
		t.Errorf("it holds %q", got)
	}
	if err := os.Mkdir(filepath.Join(dir, "a directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := opened(t, filepath.Join(dir, "a directory")).Prepare(0o600); !fault.Is(err, fault.Conflict) {
		t.Errorf("in the place of a directory: %v", err)
	}
}

// TestMkdirBeside: directories of root's, and files in them, are whose the directory is that they come into.
func TestMkdirBeside(t *testing.T) {
	dir := t.TempDir()
	uid, gid := another()
	owned(t, dir, 0o700, uid, gid)
	in := filepath.Join(dir, "a", "b")
	for range 2 {
		if err := MkdirBeside(in, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, made := range []string{filepath.Dir(in), in} {
		if st, err := os.Stat(made); err != nil || !st.IsDir() || st.Mode().Perm() != 0o700 || uidOf(st) != uid || gidOf(st) != gid {
			t.Errorf("%s: %v, %v", made, st, err)
		}
	}
	file := filepath.Join(in, "new")
	if err := WriteBeside(file, []byte("after"), 0o600); err != nil {
		t.Fatal(err)
	}
	isOwned(t, file, 0o600, uid, gid)
	if err := WriteBeside(file, []byte("again"), 0o600); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second time: %v", err)
	}
	isOwned(t, file, 0o600, uid, gid)
	onlyFiles(t, in, "new")
	if err := MkdirBeside(filepath.Join(file, "c"), 0o700); err == nil {
		t.Error("a directory in a file")
	}
}
