package probe

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// FuzzConfig: whatever a configuration file holds, its reader ends, and hands on only what is safe in a path or argument,
// and no secret. A file that includes itself ends too.
func FuzzConfig(f *testing.F) {
	syntaxes := []string{"libvirt", "postgresql", "nginx", "systemd"}
	f.Fuzz(func(t *testing.T, which byte, text []byte) {
		if strings.Contains(string(text), "include") && strings.Contains(string(text), "/") {
			return // reads what is on this machine, which is not the file's doing
		}
		dir := t.TempDir()
		path := filepath.Join(dir, "conf")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readConfig(System{}, path, syntaxes[int(which)%len(syntaxes)])
		for _, name := range slices.Sorted(maps.Keys(got)) {
			if name == "" || plain(name) != nil || plain(got[name]) != nil || secretSetting(name) {
				t.Errorf("setting %q = %q (%v)", name, got[name], err)
			}
		}
		if len(got) > configNames {
			t.Errorf("%d settings", len(got))
		}
	})
}
