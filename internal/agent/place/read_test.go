package place

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestReadPlainReadsRegularFilesAlone(t *testing.T) {
	root := t.TempDir()
	at := func(p string) string { return filepath.Join(root, p) }
	for _, err := range []error{
		os.Mkdir(at("d"), 0o755), os.WriteFile(at("d/file"), []byte("hello"), 0o600), os.WriteFile(at("d/large"), make([]byte, 65), 0o600),
		syscall.Mkfifo(at("d/fifo"), 0o600), os.Symlink("file", at("d/link")), os.Symlink("/dev/zero", at("d/zero")), os.Symlink("d", at("over")),
		os.Symlink("..", at("d/up")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, says := range map[string]string{
		"/d/file": "", "/over/file": "", "/d/up/d/file": "", root + "/d/file": "",
		"/d/large": "has 65 octets", "/d/fifo": "is a FIFO", "/d/link": "is a symbolic link", "/d/zero": "is a symbolic link", "/d": "is a directory",
		"d/file": "not absolute", "/d/../d/file": "not absolute and clean",
	} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			text, err := ReadPlain(root, name, 64)
			switch {
			case says == "" && (err != nil || string(text) != "hello"):
				t.Errorf("%s: %q, %v", name, text, err)
			case says != "" && (err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "would pass")):
				t.Errorf("%s: %v", name, err)
			}
		}()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatalf("%s: it waits", name)
		}
	}
	for _, name := range []string{"/d/none", "/none/file"} {
		if _, err := ReadPlain(root, name, 64); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestReadPlainFollowsLinksOfRootAlone: the owner of a directory does not choose what the agent reads.
func TestReadPlainFollowsLinksOfRootAlone(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "theirs")
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "secret"), 0o700), os.WriteFile(filepath.Join(dir, "secret", "file"), []byte("hidden"), 0o600),
		os.Symlink("secret", link),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 { // else the link is another user's than root's already
		if text, err := ReadPlain("", link+"/file", 64); err != nil || string(text) != "hidden" {
			t.Errorf("over a link of root: %q, %v", text, err)
		}
		if err := os.Lchown(link, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := ReadPlain("", link+"/file", 64); err == nil || !strings.Contains(err.Error(), "only links that root made") {
		t.Errorf("%q, %v", text, err)
	}
}
