package place

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const certLabel = "system_u:object_r:cert_t:s0"

// group is one that root gives away, and anybody else is in.
func group() (string, int) {
	if os.Geteuid() != 0 {
		return strconv.Itoa(os.Getegid()), os.Getegid()
	}
	return "daemon", 1
}

// attainable is dressed as far as this process can have it so.
func attainable() Set {
	set := dressed()
	if os.Geteuid() == 0 {
		return set
	}
	name, _ := group()
	for i := range set.Files {
		set.Files[i].Owner, set.Files[i].Group, set.Files[i].Label = strconv.Itoa(os.Geteuid()), name, ""
	}
	for i := range set.Directories {
		set.Directories[i].Owner, set.Directories[i].Group, set.Directories[i].Label = strconv.Itoa(os.Geteuid()), name, ""
	}
	return set
}

// dressed is a set with the owners, modes and labels of libvirt's server, with a group that every host has.
func dressed() Set {
	set := generation(1)
	for i := range set.Files {
		set.Files[i].Group, set.Files[i].Mode, set.Files[i].Label = "daemon", 0o440, certLabel
	}
	for i := range set.Directories {
		set.Directories[i].Group, set.Directories[i].Label = "daemon", certLabel
	}
	set.Directories[1].Mode = 0o750
	return set
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s %v: %v", name, args, err)
	}
	return string(out)
}

func label(t *testing.T, path string) string {
	t.Helper()
	return run(t, "getfattr", "--absolute-names", "--only-values", "-n", labelAttribute, path)
}

// TestOwnersModesLabels: as wanted, a second pass changes no inode, and each kind of drift is reported by name and repaired.
func TestOwnersModesLabels(t *testing.T) {
	dir := t.TempDir() // on a disk, whose file system has labels
	s := scene{root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state")}
	if err := os.Mkdir(s.root, 0o755); err != nil {
		t.Fatal(err)
	}
	p := s.placer(t)
	set := attainable()
	out := mustPlace(t, p, set)
	if len(out.Unset) != 0 {
		t.Fatalf("could not be set: %v", out.Unset)
	}
	private := s.path("/etc/pki/web/private")
	key := filepath.Join(private, "key.pem")
	_, gid := group()
	stat := strings.Fields(run(t, "stat", "-c", "%g:%a", s.path("/etc/pki/web"), private, key))
	if want := fmt.Sprintf("%d:755 %d:750 %d:440", gid, gid, gid); strings.Join(stat, " ") != want {
		t.Fatalf("stat says %v, want %v", stat, want)
	}
	for _, path := range []string{s.path("/etc/pki/web"), private, key, s.path("/etc/pki/web/cert.pem")} {
		if os.Geteuid() == 0 && label(t, path) != certLabel {
			t.Errorf("%s has label %q", path, label(t, path))
		}
	}
	was := s.inodes(t, set)
	if out := mustPlace(t, p, set); len(out.Changed) > 0 {
		t.Fatalf("second pass: %+v", out)
	}
	if now := s.inodes(t, set); now[0] != was[0] {
		t.Fatal("the second pass wrote")
	}
	drifts := driftsOf(key, private)
	if least := 6; len(drifts) < least {
		t.Fatalf("only %d kinds of drift", len(drifts))
	}
	for name, d := range drifts {
		if err := d.drift(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		words, err := p.Difference(set)
		if err != nil || len(words) != 1 || !strings.Contains(words[0], d.says) {
			t.Errorf("%s: differences: %q, %v", name, words, err)
		}
		if out := mustPlace(t, p, set); len(out.Changed) != 1 {
			t.Errorf("%s: changed: %v", name, out.Changed)
		}
		if words, err := p.Difference(set); err != nil || len(words) != 0 {
			t.Errorf("%s: after the repair: %v, %v", name, words, err)
		}
	}
}

// drift is something that happens to what was placed, and how it is told.
type drift struct {
	drift func() error
	says  string
}

// driftsOf are those that this process can cause.
func driftsOf(key, private string) map[string]drift {
	drifts := map[string]drift{
		"mode":             {func() error { return os.Chmod(key, 0o644) }, "has mode 0644, wanted 0440"},
		"setuid":           {func() error { return unix.Chmod(key, 0o4440) }, "has mode 4440, wanted 0440"},
		"missing":          {func() error { return os.Remove(key) }, "is missing"},
		"list":             {func() error { return unix.Setxattr(key, listAttribute, accessList(nobody), 0) }, "has an access control list"},
		"directory's mode": {func() error { return os.Chmod(private, 0o777) }, "private has mode 0777, wanted 0750"},
		"content": {func() error {
			return errors.Join(os.Chmod(key, 0o640), os.WriteFile(key, []byte("other"), 0o440), os.Chmod(key, 0o440))
		}, "has another content"},
	}
	if os.Geteuid() != 0 {
		return drifts
	}
	drifts["owner"] = drift{func() error { return os.Chown(key, nobody, -1) }, "belongs to user 65534, wanted 0"}
	drifts["group"] = drift{func() error { return os.Chown(key, -1, 0) }, "belongs to group 0, wanted 1"}
	drifts["label"] = drift{func() error {
		return exec.Command("setfattr", "-n", labelAttribute, "-v", "system_u:object_r:etc_t:s0", key).Run()
	}, `has label "system_u:object_r:etc_t:s0", wanted "` + certLabel + `"`}
	drifts["no label"] = drift{func() error { return exec.Command("setfattr", "-x", labelAttribute, key).Run() }, `has label ""`}
	drifts["directory's group"] = drift{func() error { return os.Chown(private, -1, 0) }, "private belongs to group 0"}
	drifts["directory's label"] = drift{func() error {
		return exec.Command("setfattr", "-x", labelAttribute, private).Run()
	}, `private has label ""`}
	return drifts
}

// accessList is an access control list as the kernel keeps it: owner, one more user, group, mask, others.
func accessList(uid uint32) []byte {
	list := binary.LittleEndian.AppendUint32(nil, 2) // the version
	for _, e := range []struct {
		tag, rights uint16
		id          uint32
	}{{1, 7, ^uint32(0)}, {2, 4, uid}, {4, 4, ^uint32(0)}, {0x10, 4, ^uint32(0)}, {0x20, 0, ^uint32(0)}} {
		list = binary.LittleEndian.AppendUint16(list, e.tag)
		list = binary.LittleEndian.AppendUint16(list, e.rights)
		list = binary.LittleEndian.AppendUint32(list, e.id)
	}
	return list
}

// TestNeverWider looks at every file after every operation of a renewal that is refused and of an adoption, under a umask of
// 0 and in a directory whose default list lets nobody in: what holds a key is never readable by more than its final owner
// and group, and belongs to nobody else.
func TestNeverWider(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := t.TempDir()
	s := scene{root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state")}
	web := s.path("/etc/pki/web/private")
	if err := os.MkdirAll(web, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(web, "system.posix_acl_default", accessList(nobody), 0); err != nil {
		t.Fatal(err)
	}
	looks := 0
	watch := func(op Operation) error {
		return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || err == nil && d.IsDir() {
				return nil
			}
			if err != nil {
				return err
			}
			return wide(path, &looks)
		})
	}
	first := attainable()
	p := s.placer(t, func(o *Options) { o.Cut = watch })
	mustPlace(t, p, first)
	second := attainable()
	second.Files[0].Data = []byte("key of another generation")
	c := &consumer{probe: func() error { return errors.New("not served") }}
	if out, err := p.Place(t.Context(), second, &first, c); !out.RolledBack {
		t.Fatal(err)
	}
	p.Close()
	if err := os.RemoveAll(s.state); err != nil {
		t.Fatal(err)
	}
	second.Adopt = true
	if out := mustPlace(t, s.placer(t, func(o *Options) { o.Cut = watch }), second); len(out.Kept) != 1 {
		t.Fatalf("%+v", out)
	}
	if looks < 500 {
		t.Fatalf("only %d looks at a key: the test proves too little", looks)
	}
}

func wide(path string, looks *int) error {
	st, err := os.Lstat(path)
	if err != nil {
		return nil //nolint:nilerr // it is gone
	}
	data, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(data, []byte("key of")) && !bytes.Contains(data, []byte("a2V5IG9m")) {
		return nil //nolint:nilerr // it is gone, or holds no key, plain or in the base64 of the journal
	}
	*looks++
	sys := st.Sys().(*syscall.Stat_t)
	buffer := make([]byte, 256)
	_, gid := group()
	_, listed := unix.Getxattr(path, listAttribute, buffer)
	switch {
	case int(sys.Uid) != os.Geteuid(), st.Mode()&0o337 != 0 && st.Mode() != 0o600,
		st.Mode()&0o040 != 0 && int(sys.Gid) != gid, listed == nil:
		return errors.New(path + " is wider than wanted: " + st.Mode().String())
	}
	return nil
}

// TestWithoutRoot: what cannot be set is reported each time and is no drift; a group that the file cannot have does not pass its
// rights to the one that it has.
func TestWithoutRoot(t *testing.T) {
	if !withoutRoot(t) {
		return
	}
	s := newScene(t)
	p := s.placer(t, func(o *Options) {
		o.Cut = func(op Operation) error {
			if op.Name == "label" {
				return unix.EPERM // as most kernels say; one without security modules lets a file's owner set it
			}
			return nil
		}
	})
	set := dressed()
	set.Files[1].Mode = 0o644
	for range 2 {
		out := mustPlace(t, p, set)
		said := strings.Join(out.Unset, "\n")
		for _, want := range []string{
			"key.pem: owner root cannot be set without root", "key.pem: group daemon cannot be set without root, so the mode is 0400 and not 0440",
			"cert.pem: group daemon cannot be set without root\n", "key.pem: label " + certLabel + " cannot be set here",
			"private: label " + certLabel + " cannot be set here",
		} {
			if strings.Count(said, want) != 1 {
				t.Errorf("%q is said %d times:\n%s", want, strings.Count(said, want), said)
			}
		}
		if words, err := p.Difference(set); err != nil || len(words) != 0 {
			t.Fatalf("drift for ever: %v, %v", words, err)
		}
	}
	st, err := os.Stat(s.path(set.Files[0].Path))
	if err != nil || st.Mode() != 0o400 {
		t.Fatalf("%v, %v", st, err)
	}
	if out := mustPlace(t, p, set); len(out.Changed) != 0 {
		t.Fatalf("changed: %v", out.Changed)
	}
	if err := os.Chmod(s.path(set.Files[0].Path), 0o440); err != nil {
		t.Fatal(err)
	}
	if words, err := p.Difference(set); err != nil || len(words) != 1 {
		t.Fatalf("a mode is wider than it may be here: %v, %v", words, err)
	}
}

// TestUnprivilegedTarget: a directory in which an agent without root may not write is refused, and nothing is changed.
func TestUnprivilegedTarget(t *testing.T) {
	if !withoutRoot(t) {
		return
	}
	s := newScene(t)
	first, second := generation(1), generation(2)
	p := s.placer(t)
	mustPlace(t, p, first)
	web := s.path("/etc/pki/web")
	if err := os.Chmod(web, 0o555); err != nil {
		t.Fatal(err)
	}
	first.Directories, second.Directories = nil, nil // else it would be held to its mode
	c := &consumer{}
	_, err := p.Place(t.Context(), second, &first, c)
	if !errors.Is(err, fs.ErrPermission) || len(c.calls) > 0 {
		t.Fatalf("error: %v, calls %v", err, c.calls)
	}
	mustBe(t, s, first)
	if err := os.Chmod(web, 0o755); err != nil {
		t.Fatal(err)
	}
	mustPlace(t, p, second)
	mustBe(t, s, second)
}

// TestListOfADirectory: what an administrator lets others do with a directory that was there is his to say; the rights do not
// come down to our files.
func TestListOfADirectory(t *testing.T) {
	dir := t.TempDir()
	s := scene{root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state")}
	web := s.path("/etc/pki/web")
	if err := os.MkdirAll(web, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{listAttribute, "system.posix_acl_default"} {
		if err := unix.Setxattr(web, name, accessList(nobody), 0); err != nil {
			t.Fatal(err)
		}
	}
	p := s.placer(t)
	set := attainable()
	for range 2 {
		mustPlace(t, p, set)
		if words, err := p.Difference(set); err != nil || len(words) > 0 {
			t.Fatalf("differences: %v, %v", words, err)
		}
	}
	buffer := make([]byte, 256)
	if _, err := unix.Getxattr(web, listAttribute, buffer); err != nil {
		t.Errorf("the directory's list is gone: %v", err)
	}
	for _, path := range []string{s.path(set.Files[0].Path), s.path(set.Files[1].Path), filepath.Join(web, "private")} {
		if _, err := unix.Getxattr(path, listAttribute, buffer); !errors.Is(err, unix.ENODATA) {
			t.Errorf("%s has a list: %v", path, err)
		}
	}
}
