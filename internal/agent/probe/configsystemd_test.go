package probe

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"chancery/internal/agent/recipe"
)

// TestSystemdConfig: drop-ins come after the file, in the order of their names, and an empty value takes a setting back.
func TestSystemdConfig(t *testing.T) {
	root := t.TempDir()
	sys := System{Root: root}
	rule := []recipe.FactRule{{Name: "conf", Config: "/etc/systemd/journal-remote.conf", Syntax: "systemd"}}
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(root, "etc/systemd", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	facts := func(want recipe.Facts) {
		t.Helper()
		found, err := Gather(t.Context(), sys, rule, nil)
		if err != nil || !maps.Equal(found.Facts, want) {
			t.Errorf("found %v, error %v; not %v", found, err, want)
		}
	}
	facts(recipe.Facts{})
	write("journal-remote.conf.d/20-b.conf", "[Remote]\nSplitMode=none\n")
	facts(recipe.Facts{"conf.SplitMode": "none"})
	write("journal-remote.conf", "# a comment\n; another\n\n[Remote]\n#Seal=false\n ServerKeyFile = /etc/a/key.pem \nSplitMode=host\nTrustedCertificateFile=/etc/a \\\n# within\n  b\n")
	write("journal-remote.conf.d/10-a.conf", "[Remote]\nServerKeyFile=\nServerCertificateFile=/etc/b/cert.pem\r\n")
	write("journal-remote.conf.d/30.disabled", "[Remote]\nSplitMode=host\n")
	facts(recipe.Facts{"conf.SplitMode": "none", "conf.ServerCertificateFile": "/etc/b/cert.pem", "conf.TrustedCertificateFile": "/etc/a    b"})
	for _, bad := range []string{"SplitMode=host\n", "[Remote]\nSplitMode\n", "[Remote]\n=x\n"} {
		write("journal-remote.conf", bad)
		if _, err := Gather(t.Context(), sys, rule, nil); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}
