package client

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestIdentityIsReadFromRegularFilesAlone: a handshake does not wait for a FIFO, and reads no file without an end.
func TestIdentityIsReadFromRegularFilesAlone(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	sparse, err := os.Create(at("sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		sparse.Truncate(1 << 30), sparse.Close(), syscall.Mkfifo(at("fifo"), 0o600), os.Mkdir(at("directory"), 0o700), os.Symlink("/dev/zero", at("zero")),
		os.Symlink("fifo", at("link")), os.WriteFile(at("good"), []byte("hello"), 0o600), os.Symlink("good", at("to-good")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"good", "to-good"} {
		if text, err := readFile(at(name)); err != nil || string(text) != "hello" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	for _, name := range []string{"sparse", "fifo", "directory", "zero", "link"} {
		done := make(chan error, 3)
		go func() {
			_, err := RootsFile(at(name))
			done <- err
			_, err = CertificateFiles(at(name), at("good"))()
			done <- err
			_, err = readFile(at(name))
			done <- err
		}()
		for range 3 {
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), "would pass") {
					t.Errorf("%s: %v", name, err)
				}
			case <-time.After(time.Minute):
				t.Fatalf("%s: it waits", name)
			}
		}
	}
}
