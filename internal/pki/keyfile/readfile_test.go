package keyfile

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/internal/fault"
)

// hazards are files that are there and must not be read: by name, and what is said of each.
func hazards(t *testing.T) (dir string, says map[string]string) {
	t.Helper()
	dir = t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	sparse, err := os.OpenFile(at("sparse"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", at("socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	for _, err := range []error{
		sparse.Truncate(1 << 30), sparse.Close(), syscall.Mkfifo(at("fifo"), 0o600), os.Mkdir(at("directory"), 0o700),
		os.Symlink("fifo", at("link-to-fifo")), os.Symlink("/dev/zero", at("link-to-zero")), os.Symlink("sparse", at("link-to-sparse")),
		os.WriteFile(at("full"), make([]byte, 65), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir, map[string]string{
		"sparse": "has 1073741824 octets", "fifo": "is a FIFO", "directory": "is a directory", "link-to-fifo": "is a FIFO", "socket": "is a socket",
		"link-to-zero": "is a device", "link-to-sparse": "has 1073741824 octets", "full": "has 65 octets",
	}
}

func TestOnlyRegularFilesWithinBoundsAreRead(t *testing.T) {
	dir, says := hazards(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.WriteFile(at("good"), []byte("hello"), 0o600), os.Symlink("good", at("link")), os.WriteFile(at("open"), []byte("hello"), 0o640),
		os.Symlink("open", at("link-to-open")), os.WriteFile(at("limit"), make([]byte, 64), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, read := range map[string]func(string, int64) ([]byte, error){"file": ReadFile, "secret": ReadSecret} {
		for _, good := range []string{"good", "link"} {
			if text, err := read(at(good), 64); err != nil || string(text) != "hello" {
				t.Errorf("%s %s: %q, %v", name, good, text, err)
			}
		}
		if text, err := read(at("limit"), 64); err != nil || len(text) != 64 {
			t.Errorf("%s of just the limit: %d, %v", name, len(text), err)
		}
		if _, err := read(at("none"), 64); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s that is not there: %v", name, err)
		}
		for file, why := range says {
			done := make(chan error, 1)
			go func() {
				_, err := read(at(file), 64)
				done <- err
			}()
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "would pass") {
					t.Errorf("%s %s: %v", name, file, err)
				}
			case <-time.After(time.Minute):
				t.Fatalf("%s %s: it waits", name, file)
			}
		}
	}
	for _, open := range []string{"open", "link-to-open"} {
		if text, err := ReadFile(at(open), 64); err != nil || string(text) != "hello" {
			t.Errorf("%s: %v", open, err)
		}
		if _, err := ReadSecret(at(open), 64); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "has mode 0640") {
			t.Errorf("secret %s: %v", open, err)
		}
	}
	// A file of the kernel's says that it has no octets, and has.
	if _, err := ReadFile("/proc/self/maps", 64); !fault.Is(err, fault.TooLarge) {
		t.Errorf("a file that does not say its size: %v", err)
	}
}
