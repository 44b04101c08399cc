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
	// A unit whose condition does not hold is not started, and not tried again.
	if path, not := strings.CutPrefix(said["ConditionPathExists"], "!"); not {
		before += fmt.Sprintf(" [ ! -e %s ] || { rm -f /run/%s.wanted; exit 1; };", strings.Replace(path, "/var/lib", "/opt", 1), name)
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
	s.play("../../../docs/database.md", 30, 11)
	s.socketIsRoots()
	s.firstNodeGoes()
}

// socketIsRoots asserts that of those on a member's machine root alone is let in as the owner of the database: a node beside it runs as the
// user chancery, and may be one that was removed, or that answers OCSP alone.
func (s *stage) socketIsRoots() {
	s.t.Helper()
	ask := "psql -h /run/postgresql -U chancery -d chancery -Atc 'SELECT current_user'"
	if got := strings.TrimSpace(s.types("db2", ask)); got != "chancery" {
		s.t.Errorf("root of a member's machine is %q in its database, not the owner", got)
	}
	out, err := s.machines["db2"].shell("setpriv --reuid chancery --clear-groups " + ask).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Peer authentication failed") {
		s.t.Errorf("the user chancery of a member's machine was let in as the owner: %v\n%s", err, out)
	}
}

// firstNodeGoes asserts that nothing on the machine of the node that was the first lets it in at PostgreSQL once another one has removed it.
func (s *stage) firstNodeGoes() {
	s.t.Helper()
	const tls = "sslmode=verify-full sslrootcert=/etc/chancery/database/root.crt"
	let := func(login string) (string, error) {
		real, _ := s.replaced()
		script := strings.NewReplacer(real...).Replace("psql 'host=192.0.2.11,192.0.2.12,192.0.2.13 target_session_attrs=read-write dbname=chancery " +
			tls + " " + login + "' -Atc 'SELECT session_user'")
		out, err := s.machines["authority"].shell(script).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	own := "user=chancery_node1 sslcert=first.pem sslkey=first.pem"
	s.types("authority", `(umask 077 && cp "$CHANCERY_DIR/database/login.pem" first.pem)`)
	if got, err := let(own); err != nil || got != "chancery_node1" {
		s.t.Fatalf("the login of the first node is %q, %v: this proves nothing", got, err)
	}
	s.types("authority", `chancery clone invite --out clone.token
chancery clone join --token-file clone.token --dir /opt/node2 --name node2 --address https://192.0.2.10:8543 --listen 192.0.2.10:8543 \
  --public-listen 192.0.2.10:8180 --metrics-listen 192.0.2.10:9543 --database-file /etc/chancery/database-url >join.out 2>&1 &
join=$!
timeout 60 sh -c 'until chancery clone status node2 >/dev/null 2>&1; do sleep 0.1; done'
chancery clone approve node2 $(chancery clone status node2 -o json | sed -n 's/.*"fingerprint": *"\([^"]*\)".*/\1/p')
wait $join || { cat join.out; exit 1; }`)
	node := s.machines["authority"]
	s.t.Cleanup(func() { _ = node.shell("kill $(cat /run/node2.main)").Run() })
	s.types("authority", `(sh -c 'echo $$ >/run/node2.main; exec setpriv --pdeathsig TERM env CHANCERY_DIR=/opt/node2 chancery serve --dir /opt/node2' >/run/node2.out 2>&1 &)
chancery clone status node2 --wait 1m >/dev/null
chancery --address https://192.0.2.10:8543 clone remove node1 --compromised`)
	if got, err := let(own); err == nil || !strings.Contains(got, `no pg_hba.conf entry for host "127.0.0.1", user "chancery_node1"`) {
		s.t.Errorf("the removed first node is let in by its own login: %v\n%s", err, got)
	}
	host := "user=chancery sslcert=/etc/chancery/database/postgresql.crt sslkey=/etc/chancery/database/postgresql.key"
	if got, err := let(host); err == nil || !strings.Contains(got, `certificate authentication failed for user "chancery"`) {
		s.t.Errorf("the removed first node is let in as the owner: %v\n%s", err, got)
	}
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
		"/var/lib/chancery-member-rescue": "/opt/chancery-member-rescue",
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
	if len(files) < 10 {
		s.t.Errorf("%s has %d files", dir, len(files))
	}
}
