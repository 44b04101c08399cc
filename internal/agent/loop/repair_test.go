package loop_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"chancery/internal/agent/loop"
)

// journal is what a crash left: the text of the only journal, and nil where there is none.
func (m *machine) journal() []byte {
	m.t.Helper()
	all, err := filepath.Glob(filepath.Join(m.state, "journal", "journal", "*.journal"))
	must(m.t, err)
	if len(all) == 0 {
		return nil
	}
	text, err := os.ReadFile(all[0])
	must(m.t, err)
	return text
}

// TestBootRepairNeedsTheJournalAlone kills an agent in the middle of a placement, and spoils all that repairing must do
// without. A consumer that starts next finds all of the placement or none.
func TestBootRepairNeedsTheJournalAlone(t *testing.T) {
	all, err := strconv.Atoi(newMachine(t, plain(nil)).killed("files", 0))
	must(t, err)
	phases := map[string]int{}
	for at := all / 3; at < all && len(phases) < 2; at += 7 {
		m := newMachine(t, plain(nil))
		m.killed("files", at)
		left := m.journal()
		if left == nil {
			continue
		}
		phase := string(bytes.TrimSpace(left[:16]))
		if phases[phase]++; phases[phase] > 1 {
			continue
		}
		spoilt := map[string]string{
			m.path("/etc/chancery/agent.yaml"): "recipes: [plain", filepath.Join(m.state, "identity.json"): "",
			filepath.Join(m.state, "roots.pem"): "", filepath.Join(m.state, "desired.json"): "",
		}
		was := map[string][]byte{}
		for file, text := range spoilt {
			was[file], _ = os.ReadFile(file)
			must(t, os.WriteFile(file, []byte(text), 0o600))
		}
		if a, err := loop.New(m.options); err == nil {
			a.Close()
			t.Fatal("an agent starts on what was spoilt")
		}
		must(t, command(t.Context(), "agent", "repair", "--state", m.state))
		if m.journal() != nil {
			t.Errorf("killed at %d in phase %s: the journal is left", at, phase)
		}
		there, err := filepath.Glob(m.path("/etc/ssl/*"))
		must(t, err)
		if phase == "forward" {
			m.pair("/etc/ssl/a.pem", "/etc/ssl/a.key")
			m.read("/etc/ssl/ca.pem")
			m.read("/etc/ssl/crl.pem")
		} else if len(there) > 0 {
			t.Errorf("killed at %d in phase %s: %v is there", at, phase, there)
		}
		for file, text := range was {
			if text == nil {
				must(t, os.Remove(file))
				continue
			}
			must(t, os.WriteFile(file, text, 0o600))
		}
		m.settled()
	}
	if phases["forward"] == 0 || phases["staging"] == 0 {
		t.Fatalf("only these phases were met: %v", phases)
	}
}
