package hosts_test

import (
	"path/filepath"
	"testing"

	"chancery/internal/upkeep/datadir"
)

// webUnits are what the pages about hosts with nginx have systemctl start and stop.
func webUnits() map[string]unit {
	return map[string]unit{
		"nginx":          {run: `setpriv --pdeathsig TERM nginx -g "daemon off;"`, ready: "[ -s /run/nginx.pid ]"},
		"chancery-agent": {run: "setpriv --pdeathsig TERM chancery agent run", ready: "[ -e /run/chancery-agent.main ]"},
	}
}

// TestAKeyWasStolenPage types docs/a-key-was-stolen.md on two hosts with nginx.
func TestAKeyWasStolenPage(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).revokes) {
		return
	}
	s := newStage(t, ownWorld(t, "", nil), map[string]string{"authority": "192.0.2.10", "web1": "192.0.2.11", "web2": "192.0.2.12"}, machine{pool: "web"}, webUnits())
	s.play("../../../docs/a-key-was-stolen.md", 21, 17)
}

// TestBringYourOwnCAPage types docs/bring-your-own-ca.md, which makes the authority and starts its node.
func TestBringYourOwnCAPage(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).isAccepted) {
		return
	}
	units := webUnits()
	units["chancery"] = unit{run: `setpriv --pdeathsig TERM chancery serve --dir "$CHANCERY_DIR"`, ready: "chancery status"}
	w := &world{dir: datadir.Dir(filepath.Join(t.TempDir(), "authority"))}
	s := newStage(t, w, map[string]string{"authority": "192.0.2.10", "web1": "192.0.2.11"}, machine{pool: "default"}, units)
	s.play("../../../docs/bring-your-own-ca.md", 17, 13)
}
