package loop_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnitsAreUnderstoodBySystemd: each line of the units that are shipped is one that systemd knows, memory is bounded, and
// nothing is forbidden that what the agent runs needs: Java writes the code that it runs, and netlink tells the host's addresses.
func TestUnitsAreUnderstoodBySystemd(t *testing.T) {
	units, err := filepath.Glob("../../../deploy/systemd/*.service")
	must(t, err)
	if len(units) < 3 {
		t.Fatalf("%d units", len(units))
	}
	dir := t.TempDir()
	args := []string{"verify", "--man=no"}
	texts := map[string]string{}
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		must(t, err)
		name := filepath.Base(unit)
		texts[name] = string(text)
		here := strings.ReplaceAll(string(text), "ExecStart=/usr/local/bin/chancery", "ExecStart=/bin/true") // which need not be installed
		if here == string(text) {
			t.Errorf("%s starts something else", name)
		}
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(here), 0o644))
		args = append(args, filepath.Join(dir, name))
	}
	if out, err := exec.Command("systemd-analyze", args...).CombinedOutput(); err != nil || strings.Contains(string(out), dir) {
		t.Errorf("%v: %s", err, out)
	}
	agent := texts["chancery-agent.service"]
	for _, line := range []string{"MemoryMax=", "OOMPolicy=continue", "NoNewPrivileges=yes", "ProtectSystem=strict"} {
		if !strings.Contains(agent, "\n"+line) {
			t.Errorf("the agent's unit has no %s", line)
		}
	}
	if strings.Contains(agent, "\nMemoryDenyWriteExecute=") {
		t.Error("the agent's unit keeps Java from starting, which os-trust runs where the host has it")
	}
	if !strings.Contains(agent, "AF_NETLINK") {
		t.Error("the agent's unit keeps the host's own addresses from it")
	}
}
