package hosts_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/pki/cert"
	"chancery/internal/run/consumer"
)

const qemuDir = "/etc/pki/qemu"

var qemuFiles = []string{"ca-cert.pem", "ca-crl.pem", "client-cert.pem", "client-key.pem", "server-cert.pem", "server-key.pem"}

// qemuHost is a machine with QEMU's account, as Debian makes it.
func (w *world) qemuHost(t *testing.T, name string, m machine) *host {
	t.Helper()
	if os.Geteuid() == 0 {
		m.users = append(m.users, "libvirt-qemu")
		return w.newHost(t, name, m)
	}
	h := w.newHost(t, name, m)
	uid, gid := os.Geteuid(), os.Getegid() // who stands for every account of a host that is a directory
	h.write("/etc/passwd", string(h.read("/etc/passwd"))+fmt.Sprintf("libvirt-qemu:x:%d:%d::/:/bin/sh\n", uid, gid))
	h.write("/etc/group", string(h.read("/etc/group"))+fmt.Sprintf("libvirt-qemu:x:%d:\n", gid))
	return h
}

// qemuOrder is a placement of a service of QEMU. Where the host is a directory, QEMU has to be told of it.
func (h *host) qemuOrder(service, dir string, more ...string) client.PlacementOrder {
	parameters := append([]string{"service=" + service}, more...)
	if h.root != "" {
		parameters = append(parameters, "dir="+h.inside(dir))
	}
	o := order("qemu", parameters...)
	o.Name = "qemu-" + service
	return o
}

// asQEMU is a program that runs as QEMU's own user, whom libvirt would make it.
func (h *host) asQEMU(p consumer.Program) consumer.Program {
	if os.Geteuid() != 0 {
		return p
	}
	id := h.users["libvirt-qemu"]
	p.Args = append([]string{fmt.Sprintf("--reuid=%d", id), fmt.Sprintf("--regid=%d", id), "--clear-groups", "--pdeathsig", "KILL", p.Path}, p.Args...)
	p.Path = "setpriv"
	return p
}

// qemuClient is a directory as a client of QEMU has it: trust, and a pair unless it has none.
func qemuClient(t testing.TB, trust []byte, of *peer) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "ca-cert.pem"), trust, 0o644))
	if of != nil {
		must(t, os.Symlink(filepath.Join(of.dir, "clientcert.pem"), filepath.Join(dir, "client-cert.pem")))
		must(t, os.Symlink(filepath.Join(of.dir, "clientkey.pem"), filepath.Join(dir, "client-key.pem")))
	}
	return dir
}

// freeAt is an address of the host's on which nothing listens, fit for a VNC display.
func (h *host) freeAt() (address, port string) {
	h.t.Helper()
	free, err := consumer.FreeDisplay()
	must(h.t, err)
	_, port, _ = strings.Cut(free, ":")
	return h.at + ":" + port, port
}

// TestQEMUExport, scenario S14: six files as QEMU's user can read them, a disk that qemu-nbd exports as that user, and
// qemu-img on the other end: let in with the pool's certificates, and with no others.
func TestQEMUExport(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool := w.pool(t)
	h := w.qemuHost(t, "hyper", machine{pool: pool.Name})
	address, _ := h.freeAt()
	begin := h.restartable("qemu", consumer.NBDExport{Address: address, TLS: h.inside(qemuDir)}.Program())
	h.join(h.qemuOrder("default", qemuDir, "address="+address))
	h.converge()
	if seen := h.observed("qemu-default"); seen.State != client.PlacementDown {
		t.Errorf("before anything listens: %+v", seen)
	}
	h.hasSixFiles()
	export := begin()
	h.converge()
	leaf := parsed(t, h.read(qemuDir+"/server-cert.pem"))
	if seen := h.observed("qemu-default"); seen.State != client.PlacementServed || seen.Served != cert.FormatSerial(leaf.SerialNumber) {
		t.Errorf("qemu-nbd serves %+v, and %s was placed", seen, cert.FormatSerial(leaf.SerialNumber))
	}

	other := w.pool(t)
	trust, both := trustOf(pool), append(trustOf(pool), trustOf(other)...)
	good, bad, rogue := w.clientOf(t, pool, "good"), w.clientOf(t, pool, "bad"), w.clientOf(t, other, "rogue")
	image := func(name string, dir string) *exec.Cmd { return h.command(consumer.NBDClient(address, name, dir)...) }
	lets := func(own *peer) {
		t.Helper()
		if out := output(t, image(h.name, qemuClient(t, trust, own))); !strings.Contains(out, "virtual size: 1 MiB") {
			t.Errorf("qemu-img says %s", out)
		}
	}
	lets(good)
	lets(bad)
	says := func(words string, refused func()) {
		t.Helper()
		before := len(export.Output())
		refused()
		until(t, "qemu-nbd says: "+words, func() bool { return strings.Contains(export.Output()[before:], words) })
	}
	// GnuTLS shows no certificate that the server has not asked for by its issuer; who checks nothing shows it.
	says("No certificate was found", func() { fails(t, image(h.name, qemuClient(t, both, rogue)), "qemu-img: Could not open") })
	says("issuer", func() {
		until(t, "a rogue is refused", func() bool { // which a look waits for a moment only
			shown, err := probe.Look(t.Context(), recipe.Probe{Address: address, StartTLS: "nbd"}, &rogue.pair)
			must(t, err)
			return shown.Refused != ""
		})
	})
	says("No certificate was found", func() { fails(t, image(h.name, qemuClient(t, trust, nil)), "qemu-img: Could not open") })
	fails(t, image("elsewhere.test", qemuClient(t, trust, good)), "Certificate does not match the hostname elsewhere.test")
	fails(t, image(h.name, qemuClient(t, trustOf(other), nil)), "issuer")
	lets(good)

	h.revoked(pool, bad.pair.Leaf, qemuDir+"/ca-crl.pem")
	says("revoked", func() { fails(t, image(h.name, qemuClient(t, trust, bad)), "qemu-img: Could not open") })
	lets(good)

	// The host's own client, which a migration or a disk of another host uses, has its CRL from the same directory.
	if out := output(t, h.command(consumer.NBDClient(address, h.name, h.inside(qemuDir))...)); !strings.Contains(out, "virtual size: 1 MiB") {
		t.Errorf("the host's own pair: %s", out)
	}
	h.revoked(pool, leaf, qemuDir+"/ca-crl.pem")
	again := parsed(t, h.read(qemuDir+"/server-cert.pem"))
	if seen := h.observed("qemu-default"); again.Equal(leaf) || seen.State != client.PlacementServed || seen.Served != cert.FormatSerial(again.SerialNumber) {
		t.Errorf("after the server's own certificate was revoked: %+v", seen)
	}
	lets(good)
}

// restartable writes scripts by which a program of QEMU's runs for ever and is restarted, as systemd would, and has the agent
// use the second for a recipe's step. What it returns starts it.
func (h *host) restartable(of string, p consumer.Program) func() *consumer.Process {
	h.t.Helper()
	return h.restartableAs(of, h.asQEMU(p))
}

// restartableAs is restartable for a program that is somebody else's.
func (h *host) restartableAs(of string, p consumer.Program) func() *consumer.Process {
	h.t.Helper()
	ready := p.Ready
	pid := h.inside("/run/restartable.pid")
	h.write("/opt/always", "#!/bin/sh\nwhile :; do\n  "+strings.Join(append([]string{p.Path}, p.Args...), " ")+" &\n  echo $! >"+pid+"\n  wait $!\n  sleep 0.05\ndone\n")
	h.write("/opt/restart", "#!/bin/sh\np=$(cat "+pid+") && kill $p && while kill -0 $p 2>/dev/null; do sleep 0.05; done\n")
	for _, script := range []string{"/opt/always", "/opt/restart"} {
		must(h.t, os.Chmod(h.path(script), 0o755))
	}
	h.write("/etc/chancery/agent.yaml", "steps:\n  "+of+":\n    restart: ["+h.inside("/opt/restart")+"]\n")
	return func() *consumer.Process {
		h.t.Helper()
		return h.start(consumer.Program{Path: h.inside("/opt/always"), Ready: ready})
	}
}

// hasSixFiles wants the files as QEMU's user can read them and nobody else, and a second run to change nothing.
func (h *host) hasSixFiles() {
	t := h.t
	t.Helper()
	inodes := map[string]uint64{}
	for _, name := range qemuFiles {
		inodes[name] = h.inode(qemuDir + "/" + name)
	}
	entries, err := os.ReadDir(h.path(qemuDir))
	must(t, err)
	if len(entries) != len(qemuFiles) {
		t.Errorf("%d files in %s: %v", len(entries), qemuDir, entries)
	}
	if os.Geteuid() == 0 && h.root == "" {
		stat := h.run("stat", "-c", "%U:%G %a %n", "/etc/pki", qemuDir)
		for _, name := range qemuFiles {
			stat += h.run("stat", "-c", "%U:%G %a", qemuDir+"/"+name)
		}
		want := "root:root 755 /etc/pki\nroot:libvirt-qemu 750 " + qemuDir + "\n" + strings.Repeat("root:libvirt-qemu 440\n", len(qemuFiles))
		if stat != want {
			t.Errorf("placed is\n%s, and not\n%s", stat, want)
		}
		label := strings.TrimRight(h.run("getfattr", "--only-values", "-n", "security.selinux", qemuDir+"/server-key.pem"), "\x00")
		if label != "system_u:object_r:cert_t:s0" {
			t.Errorf("the key has the label %q", label)
		}
	}
	h.converge()
	for _, name := range qemuFiles {
		if now := h.inode(qemuDir + "/" + name); now != inodes[name] {
			t.Errorf("%s was written again", name)
		}
	}
}

// TestQEMUUnreadable: what QEMU's user could not read is not placed: neither a key that would be root's alone, nor any below a
// directory that is closed to him.
func TestQEMUUnreadable(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		// Only root can place what another is to read; an agent that is not root stands for every account itself.
		readableByPlan(t)
		return
	}
	w := theWorld(t)
	h := w.qemuHost(t, "hyper", machine{})
	h.write("/etc/chancery/recipes/closed.yaml", closedRecipe)
	h.write("/etc/chancery/agent.yaml", "recipes: [qemu, local/closed]\n")
	h.join(order("local/closed"))
	h.refuses("libvirt-qemu could not read /etc/pki/closed/server-key.pem, which is to be root:root with mode 0400")
	h.absent("/etc/pki/closed")
	h.run("mkdir", "-p", "-m", "0700", "/etc/pki/shut")
	orders := []client.PlacementOrder{order("qemu", "dir=/etc/pki/shut/qemu")}
	_, err := w.admin.ChangeHost(t.Context(), h.name, client.ChangeHostRequest{Placements: &orders})
	must(t, err)
	h.refuses("/etc/pki/shut, mode 0700 of user 0 and group 0, is in the way: permission denied")
	h.absent("/etc/pki/shut/qemu")
	h.run("chmod", "0711", "/etc/pki/shut")
	h.converge()
	h.read("/etc/pki/shut/qemu/server-key.pem")
}

// closedRecipe keeps a key from those who are to read it.
const closedRecipe = `name: closed
title: a key that its consumer cannot read
about: of a test
certificates:
  - {profile: server, key: [{algorithm: ecdsa-p256}], names: ["dns:${host.names}"], usages: [serverAuth]}
files:
  - {path: /etc/pki/closed/server-key.pem, content: [key], owner: root, group: root, mode: "0400"}
  - {path: /etc/pki/closed/server-cert.pem, content: [path]}
user: libvirt-qemu
`

// readableByPlan judges such a plan by itself.
func readableByPlan(t *testing.T) {
	r, err := recipe.Parse([]byte(closedRecipe), "closed")
	must(t, err)
	plan, err := r.Resolve(recipe.Host{Name: "h.test", DNS: []string{"h.test"}}, nil, nil)
	must(t, err)
	plan.User = "nobody"
	if err := probe.Planned(context.Background(), probe.System{AsRoot: true}, plan); err == nil || !strings.Contains(err.Error(), "could not read") {
		t.Errorf("a key of root's alone for nobody: %v", err)
	}
}

// qemuMachine starts a machine as QEMU's user and returns its process.
func (h *host) qemuMachine(m consumer.QEMUMachine) *consumer.Process {
	h.t.Helper()
	p, err := m.Program()
	must(h.t, err)
	ready := h.path(m.Socket)
	p.Ready = consumer.Answering(ready)
	return h.start(h.asQEMU(p))
}

// TestQEMUMigration, scenario S14: a machine migrates to another host and back, so that each host is server and client; not
// to a name that the host does not have, and not with the certificate of another pool.
func TestQEMUMigration(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool := w.pool(t)
	const dir = "/etc/pki/libvirt-migrate"
	var hosts []*host
	for _, name := range []string{"here", "there"} {
		h := w.qemuHost(t, name, machine{pool: pool.Name})
		h.join(h.qemuOrder("migrate", dir))
		h.converge()
		if seen := h.observed("qemu-migrate"); seen.State != client.PlacementPlaced {
			t.Errorf("%+v", seen)
		}
		hosts = append(hosts, h)
	}
	here, there := hosts[0], hosts[1]
	here.migrates(there, dir, here.inside(dir), there.name, "completed", "")
	there.migrates(here, dir, there.inside(dir), here.name, "completed", "")
	here.migrates(there, dir, here.inside(dir), here.name, "failed", "Certificate does not match the hostname "+here.name)
	other := w.pool(t)
	rogue := qemuClient(t, append(trustOf(pool), trustOf(other)...), w.clientOf(t, other, "rogue"))
	here.migrates(there, dir, rogue, there.name, "failed", "")
}

// migrates has a new machine migrate from this host to another, with the certificates of a directory, and wants it to end so.
func (h *host) migrates(to *host, serverDir, clientDir, name, want, says string) {
	t := h.t
	t.Helper()
	number := shared.hosts.Add(1)
	source := consumer.QEMUMachine{Name: "m", Socket: h.inside(h.socketDir() + fmt.Sprintf("/s%d", number)), Migrate: clientDir, Role: "client", Memory: true}
	target := consumer.QEMUMachine{Name: "m", Socket: to.inside(to.socketDir() + fmt.Sprintf("/t%d", number)), Migrate: to.inside(serverDir), Role: "server",
		Memory: true, Waits: true}
	there := to.qemuMachine(target)
	if clientDir == h.inside(serverDir) {
		h.qemuMachine(source)
	} else {
		p, err := source.Program() // what belongs to the test is not QEMU's to read
		must(t, err)
		p.Ready = consumer.Answering(h.path(source.Socket))
		h.start(p)
	}
	_, port := to.freeAt()
	uri := "tcp:" + to.at + ":" + port
	ask := func(socket, command string, arguments any) json.RawMessage {
		t.Helper()
		said, err := consumer.QMP(t.Context(), socket, command, arguments)
		must(t, err)
		return said
	}
	ask(to.path(target.Socket), "migrate-set-parameters", map[string]any{"tls-creds": "migrate0"})
	ask(to.path(target.Socket), "migrate-incoming", map[string]any{"uri": uri})
	ask(h.path(source.Socket), "migrate-set-parameters", map[string]any{"tls-creds": "migrate0", "tls-hostname": name})
	ask(h.path(source.Socket), "migrate", map[string]any{"uri": uri})
	var state struct {
		Status string
		Error  string `json:"error-desc"`
	}
	until(t, "the migration ends", func() bool {
		must(t, json.Unmarshal(ask(h.path(source.Socket), "query-migrate", nil), &state))
		return state.Status == "completed" || state.Status == "failed"
	})
	if want == "failed" && says == "" {
		// In TLS 1.3 a client has all it needs before the server has judged its certificate, and has sent the little there is: it may
		// say "completed". What counts is that the other end refuses it, and that no machine runs there.
		until(t, "the other end refuses", func() bool { return strings.Contains(strings.ToLower(there.Output()), "verif") })
		var machine struct{ Running bool }
		if must(t, json.Unmarshal(ask(to.path(target.Socket), "query-status", nil), &machine)); machine.Running {
			t.Errorf("the machine runs on %s; there was said: %s", to.name, there.Output())
		}
		return
	}
	if state.Status != want || !strings.Contains(state.Error, says) {
		t.Errorf("the migration from %s to %s is %s (%s), and not %s (%s); there was said: %s", h.name, to.name, state.Status, state.Error, want, says, there.Output())
	}
}

// socketDir is the directory of the sockets of machines, in which QEMU's user makes them.
func (h *host) socketDir() string {
	h.t.Helper()
	const dir = "/run/qemu"
	if _, err := os.Stat(h.path(dir)); err != nil {
		must(h.t, os.Mkdir(h.path(dir), 0o770))
		if os.Geteuid() == 0 {
			must(h.t, os.Chown(h.path(dir), 0, h.users["libvirt-qemu"]))
		}
		must(h.t, os.Chmod(h.path(dir), 0o770))
	}
	return dir
}
