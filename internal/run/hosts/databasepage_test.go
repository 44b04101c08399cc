package hosts_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/upkeep/datadir"
)

// deployed is where the files for the members of a database are.
const deployed = "../../../deploy/patroni"

// service is the unit of a file of deploy/patroni: its command, as its user.
func service(t *testing.T, name, before string) unit {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(deployed, name+".service"))
	must(t, err)
	said := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		said[key] = value
	}
	if said["User"] == "" || said["ExecStart"] == "" || said["KillMode"] != "process" && name == "patroni" {
		t.Fatalf("the unit of %s is %v", name, said)
	}
	return unit{
		run: fmt.Sprintf("sh -c '%s exec setpriv --reuid %s --regid %[2]s --clear-groups --pdeathsig TERM env HOME=/run %s'", before, said["User"],
			said["ExecStart"]),
		ready: "[ -e /run/" + name + ".main ]",
	}
}

// TestDatabasePage types docs/database.md: an authority moves from SQLite to three PostgreSQLs under Patroni, whose files are those of
// deploy/patroni and whose certificates it has issued. Directories of /var/lib are in /opt here, since machines share that.
func TestDatabasePage(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).isAccepted) {
		return
	}
	s := newDatabaseStage(t, &world{dir: datadir.Dir(filepath.Join(t.TempDir(), "authority"))})
	s.play("../../../docs/database.md", 23, 9)
}

// newDatabaseStage is a node's machine and three members of a database, with the files of deploy/patroni to take from.
func newDatabaseStage(t *testing.T, w *world) *stage {
	t.Helper()
	units := webUnits()
	delete(units, "nginx")
	units["chancery"] = unit{run: `setpriv --pdeathsig TERM chancery serve --dir "$CHANCERY_DIR"`, ready: "chancery status"}
	units["chancery-agent-control"] = unit{
		run:   "setpriv --pdeathsig TERM chancery agent run --state /opt/chancery-agent-control",
		ready: "[ -e /run/chancery-agent-control.main ]",
	}
	units["etcd"] = service(t, "etcd", "set -a; . /etc/default/etcd;")
	units["patroni"] = service(t, "patroni", "install -d -o postgres /run/postgresql;")
	s := newStage(t, w, map[string]string{"authority": "192.0.2.10", "db1": "192.0.2.11", "db2": "192.0.2.12", "db3": "192.0.2.13"},
		machine{pool: "database", users: []string{"chancery"}}, units)
	for _, name := range []string{"db1", "db2", "db3"} {
		s.aliases[name+"-control"] = name
	}
	s.words = map[string]string{
		"/var/lib/postgresql": "/opt/postgresql", "/var/lib/etcd": "/opt/etcd", "/var/lib/chancery-agent": "/opt/chancery-agent",
		// On one machine a member's packets come from 127.0.0.1, which is in nobody's certificate.
		"ETCD_INITIAL_CLUSTER_STATE=new": "ETCD_INITIAL_CLUSTER_STATE=new\nETCD_EXPERIMENTAL_PEER_SKIP_CLIENT_SAN_VERIFICATION=true",
		"max_connections: 200":           "max_connections: 200\n        shared_buffers: 32MB",
	}
	for name, h := range s.machines {
		if name == "authority" {
			continue
		}
		for user, dir := range map[string]string{"postgres": "/opt/postgresql", "etcd": "/opt/etcd"} {
			h.run("install", "-d", "-o", user, "-m", "0700", dir)
		}
		h.run("install", "-d", "/etc/etcd", "/etc/default", "/etc/systemd/system")
		at := filepath.Join(h.home, "root", "deploy")
		must(t, os.Mkdir(at, 0o755))
		output(t, exec.Command("cp", "-r", deployed, at))
		s.reword(filepath.Join(at, "patroni"))
	}
	return s
}

// reword puts the stage's addresses and words into the files of a directory.
func (s *stage) reword(dir string) {
	s.t.Helper()
	files, err := os.ReadDir(dir)
	must(s.t, err)
	real, _ := s.replaced()
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		text, err := os.ReadFile(path)
		must(s.t, err)
		must(s.t, os.WriteFile(path, []byte(strings.NewReplacer(real...).Replace(string(text))), 0o644))
	}
	if len(files) < 9 {
		s.t.Errorf("%s has %d files", dir, len(files))
	}
}
