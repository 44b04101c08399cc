package loop

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
)

// TestProcessIsFoundByAPlainFile: the file with a process's number is the consumer's, who could have the agent wait or read
// what is not for him.
func TestProcessIsFoundByAPlainFile(t *testing.T) {
	root := t.TempDir()
	name, err := os.ReadFile("/proc/self/comm")
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(root, "run", "web"), 0o755))
	must(t, os.Mkdir(filepath.Join(root, "var"), 0o755))
	must(t, os.Symlink("../run", filepath.Join(root, "var", "run")))
	at := func(name string) string { return filepath.Join(root, "run", "web", name) }
	must(t, os.WriteFile(at("pid"), fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644))
	must(t, syscall.Mkfifo(at("fifo"), 0o644))
	must(t, os.Symlink("pid", at("link")))
	must(t, os.Symlink("/dev/zero", at("zero")))
	must(t, os.WriteFile(at("large"), make([]byte, mostPIDFile+1), 0o644))
	c := &consumer{system: probe.System{Root: root}, plan: &recipe.Plan{}}
	for file, says := range map[string]string{
		"/run/web/pid": "", "/var/run/web/pid": "", "/run/web/none": "does not exist", "/run/web/fifo": "is a FIFO", "/run/web/link": "is a symbolic link",
		"/run/web/zero": "is a symbolic link", "/run/web/large": "would pass",
	} {
		process, err := c.process(recipe.Signal{PIDFile: file, Process: strings.TrimSpace(string(name)), Signal: "HUP"})
		if err == nil {
			process.Release()
		}
		if (says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", file, err)
		}
	}
}
