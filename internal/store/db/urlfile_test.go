package db

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestURLIsReadFromARegularFile: a node that starts waits for no FIFO, and reads no file that others may read or that has no end.
func TestURLIsReadFromARegularFile(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.WriteFile(at("good"), []byte("postgres://h/d\n"), 0o600), os.Symlink("good", at("link")), os.WriteFile(at("wide"), nil, 0o640),
		syscall.Mkfifo(at("fifo"), 0o600), os.Symlink("/dev/zero", at("zero")), os.WriteFile(at("large"), nil, 0o600), os.Truncate(at("large"), 1<<30),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"good", "link"} {
		if url, err := URLFromFile(at(name)); err != nil || url != "postgres://h/d" {
			t.Errorf("%s: %q, %v", name, url, err)
		}
	}
	for name, says := range map[string]string{
		"wide": "has mode 0640", "fifo": "is a FIFO", "zero": "is a device", "large": "has 1073741824 octets", "none": "no such file", ".": "is a directory",
	} {
		if _, err := URLFromFile(at(name)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
