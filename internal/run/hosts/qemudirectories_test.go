package hosts_test

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/run/consumer"
)

// manyServices are the directories of one machine that have no test of their own, with what belongs into each.
var manyServices = []struct {
	service string
	files   []string
}{
	{"spice", []string{"ca-cert.pem", "ca-crl.pem", "server-cert.pem", "server-key.pem"}},
	{"chardev", qemuFiles},
	{"backup", []string{"ca-cert.pem", "ca-crl.pem", "server-cert.pem", "server-key.pem"}},
	{"nbd", []string{"ca-cert.pem", "ca-crl.pem", "client-cert.pem", "client-key.pem"}},
}

func serviceDir(service string) string { return "/etc/pki/libvirt-" + service }

// busy is a machine with a SPICE display, a character device that is a monitor, and a disk that can be exported, each with
// the certificates of its own directory and the options that libvirt gives for it.
type busy struct {
	*consumer.Process
	h                      *host
	socket                 string
	spice, chardev, backup string // addresses
}

func (h *host) busyMachine(name string) *busy {
	t := h.t
	t.Helper()
	b := &busy{h: h, socket: h.socketDir() + "/" + name}
	var spicePort, chardevPort string
	b.spice, spicePort = h.freeAt()
	b.chardev, chardevPort = h.freeAt()
	p, err := consumer.QEMUMachine{Name: "busy", Socket: h.inside(b.socket)}.Program()
	must(t, err)
	creds := func(id, role, service string) []string {
		return []string{"-object", "tls-creds-x509,id=" + id + ",endpoint=" + role + ",verify-peer=yes,dir=" + h.inside(serviceDir(service))}
	}
	p.Args = slices.Concat(p.Args, creds("chardev0", "server", "chardev"), creds("chardev1", "client", "chardev"), creds("backup0", "server", "backup"),
		[]string{
			"-spice", "addr=" + h.at + ",tls-port=" + spicePort + ",disable-ticketing=on,x509-dir=" + h.inside(serviceDir("spice")),
			"-chardev", "socket,id=console,host=" + h.at + ",port=" + chardevPort + ",server=on,wait=off,tls-creds=chardev0", "-mon", "chardev=console,mode=control",
			"-blockdev", "driver=null-co,node-name=disk0,size=1048576",
		})
	p.Ready = consumer.Answering(h.path(b.socket))
	b.Process = h.start(h.asQEMU(p))
	backup, backupPort := h.freeAt()
	b.backup = backup
	b.ask("nbd-server-start", map[string]any{"tls-creds": "backup0", "addr": map[string]any{"type": "inet", "data": map[string]any{"host": h.at, "port": backupPort}}})
	b.ask("block-export-add", map[string]any{"type": "nbd", "id": "e0", "node-name": "disk0", "name": "disk"})
	return b
}

func (b *busy) ask(command string, arguments any) json.RawMessage {
	b.h.t.Helper()
	said, err := consumer.QMP(b.h.t.Context(), b.h.path(b.socket), command, arguments)
	must(b.h.t, err)
	return said
}

// sClient is openssl s_client as somebody who trusts what is in a file and expects the host's name; own may be nil.
func (h *host) sClient(address, trust string, own *peer, more ...string) *exec.Cmd {
	words := []string{"openssl", "s_client", "-connect", address, "-CAfile", trust, "-verify_return_error", "-verify_hostname", h.name}
	if own != nil {
		words = append(words, "-cert", filepath.Join(own.dir, "clientcert.pem"), "-key", filepath.Join(own.dir, "clientkey.pem"))
	}
	return h.command(append(words, more...)...)
}

// greets connects to the character device and reports whether the monitor behind it says a word before the connection ends.
func (b *busy) greets(trust string, own *peer) bool {
	t := b.h.t
	t.Helper()
	cmd := b.h.sClient(b.chardev, trust, own, "-quiet")
	in, err := cmd.StdinPipe() // at whose end s_client would go
	must(t, err)
	defer in.Close()
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	bound := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	line, _ := bufio.NewReader(out).ReadString('\n')
	inTime := bound.Stop()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if !inTime {
		t.Errorf("for a minute the character device neither said a word nor ended the connection; QEMU says %s", b.Output())
	}
	return strings.Contains(line, `{"QMP"`)
}

// serves wants a certificate at an address, as openssl sees and believes it.
func (b *busy) serves(address, trust, what string, own *peer, want string) {
	t := b.h.t
	t.Helper()
	if got := parsed(t, []byte(output(t, b.h.sClient(address, trust, own)))); cert.FormatSerial(got.SerialNumber) != want {
		t.Errorf("%s: %s serves %s, and not %s", what, address, cert.FormatSerial(got.SerialNumber), want)
	}
}

func (h *host) serialIn(service string) string {
	h.t.Helper()
	return cert.FormatSerial(parsed(h.t, h.read(serviceDir(service)+"/server-cert.pem")).SerialNumber)
}

// TestQEMUDirectories, scenario S14: the directories for SPICE, character devices, backups and disks of one machine, each with
// who is on the other end: let in with the pool's certificates, and refused without or with those of others. What runs keeps
// the certificates that it began with, as the recipe says, and has the new ones once it is started again.
func TestQEMUDirectories(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool, other := w.pool(t), w.pool(t)
	h := w.qemuHost(t, "hyper", machine{pool: pool.Name})
	var orders []client.PlacementOrder
	for _, s := range manyServices {
		orders = append(orders, h.qemuOrder(s.service, serviceDir(s.service), "key=ecdsa-p256"))
	}
	h.join(orders...)
	bad := w.clientOf(t, pool, "bad")
	h.revoked(pool, bad.pair.Leaf, serviceDir("chardev")+"/ca-crl.pem")
	for _, s := range manyServices {
		entries, err := os.ReadDir(h.path(serviceDir(s.service)))
		must(t, err)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if seen := h.observed("qemu-" + s.service); !slices.Equal(names, s.files) || seen.State != client.PlacementPlaced {
			t.Errorf("%s has %v: %+v", serviceDir(s.service), names, seen)
		}
	}
	b := h.busyMachine("b1")
	good, rogue := w.clientOf(t, pool, "good"), w.clientOf(t, other, "rogue")
	trust := filepath.Join(good.dir, "cacert.pem")
	b.display(trust, filepath.Join(rogue.dir, "cacert.pem"))
	b.device(trust, good, map[string]*peer{"without a certificate": nil, "with another pool's": rogue, "with a revoked one": bad})
	b.deviceCalls(w, pool, other)
	b.exports(append(trustOf(pool), trustOf(other)...), good, rogue, bad)

	before := map[string]string{"spice": h.serialIn("spice"), "chardev": h.serialIn("chardev")}
	w.chancery(t, "host", "set", h.name, "--dns", "console-"+h.name)
	h.converge()
	b.serves(b.spice, trust, "spice, before the renewal", nil, before["spice"])
	b.serves(b.chardev, trust, "chardev, before the renewal", good, before["chardev"])
	must(t, b.Stop())
	again := h.busyMachine("b2")
	for service, old := range before {
		if h.serialIn(service) == old {
			t.Errorf("%s was not re-keyed", service)
		}
	}
	again.serves(again.spice, trust, "spice", nil, h.serialIn("spice"))
	again.serves(again.chardev, trust, "chardev", good, h.serialIn("chardev"))
}

// display looks at the SPICE display, which asks no client for a certificate.
func (b *busy) display(trust, others string) {
	t := b.h.t
	t.Helper()
	b.serves(b.spice, trust, "spice", nil, b.h.serialIn("spice"))
	fails(t, b.h.sClient(b.spice, others, nil), "verify error:num=")
	fails(t, b.h.sClient(b.spice, trust, nil, "-verify_hostname", "elsewhere.test"), "hostname mismatch")
}

// device calls the character device, as who reads a machine's console would.
func (b *busy) device(trust string, good *peer, refused map[string]*peer) {
	t := b.h.t
	t.Helper()
	b.serves(b.chardev, trust, "chardev", good, b.h.serialIn("chardev"))
	if !b.greets(trust, good) {
		t.Errorf("the character device says nothing to a client of the pool; QEMU says %s", b.Output())
	}
	for who, own := range refused {
		if b.greets(trust, own) {
			t.Errorf("the character device talks to a client %s", who)
		}
	}
	if !b.greets(trust, good) {
		t.Error("after refusals the character device says nothing to a client of the pool")
	}
}

// deviceCalls has a character device of the machine call a server that demands a certificate; it talks to none of another pool.
func (b *busy) deviceCalls(w *world, pool, other *client.Pool) {
	t, h := b.h.t, b.h
	t.Helper()
	calls := func(id string, of *client.Pool) (server *consumer.Process, connected func() bool) {
		t.Helper()
		p := w.peerWith(t, of, "server", "localhost", ecKey(t))
		trust := filepath.Join(p.dir, "both.pem")
		must(t, os.WriteFile(trust, append(trustOf(pool), trustOf(other)...), 0o644))
		address, err := consumer.FreeAddress()
		must(t, err)
		server = h.start(consumer.Program{Path: "openssl", Ready: consumer.Listening(address), Args: []string{"s_server", "-accept", address, "-CAfile", trust,
			"-cert", filepath.Join(p.dir, "clientcert.pem"), "-key", filepath.Join(p.dir, "clientkey.pem"), "-cert_chain", filepath.Join(p.dir, "clientcert.pem"),
			"-Verify", "2", "-verify_return_error", "-rev"}})
		_, port, _ := strings.Cut(address, ":")
		b.ask("chardev-add", map[string]any{"id": id, "backend": map[string]any{"type": "socket", "data": map[string]any{"server": false, "tls-creds": "chardev1",
			"addr": map[string]any{"type": "inet", "data": map[string]any{"host": "localhost", "port": port, "ipv4": true, "ipv6": false}}}}})
		return server, func() bool {
			var devices []struct{ Label, Filename string }
			must(t, json.Unmarshal(b.ask("query-chardev", nil), &devices))
			for _, d := range devices {
				if d.Label == id {
					return !strings.HasPrefix(d.Filename, "disconnected:")
				}
			}
			t.Fatalf("there is no device %s: %+v", id, devices)
			return false
		}
	}
	server, connected := calls("out", pool)
	until(t, "a device is connected", connected)
	until(t, "the server has seen the host's certificate", func() bool { return strings.Contains(server.Output(), "depth=0 CN = "+h.name) })
	b.ask("chardev-remove", map[string]any{"id": "out"})
	server, connected = calls("astray", other)
	// The server has seen all of the handshake before a client of TLS 1.3 has judged it; what counts is that the client then goes.
	until(t, "the device leaves a server of another pool", func() bool {
		_, after, shaken := strings.Cut(server.Output(), "CONNECTION ESTABLISHED")
		return shaken && (strings.Contains(after, "CONNECTION CLOSED") || strings.Contains(after, ":error:"))
	})
	if connected() {
		t.Errorf("a device is connected to a server of another pool, which says %s", server.Output())
	}
}

// exports has qemu-img look at the disk, with the host's own certificates for disks of others among those of clients.
func (b *busy) exports(trust []byte, good, rogue, bad *peer) {
	t, h := b.h.t, b.h
	t.Helper()
	for _, dir := range []string{qemuClient(t, trust, good), h.inside(serviceDir("nbd"))} {
		if out := output(t, h.command(consumer.NBDClient(b.backup, h.name, dir)...)); !strings.Contains(out, "virtual size: 1 MiB") {
			t.Errorf("qemu-img with %s says %s", dir, out)
		}
	}
	for _, own := range []*peer{nil, rogue, bad} {
		fails(t, h.command(consumer.NBDClient(b.backup, h.name, qemuClient(t, trust, own))...), "qemu-img: Could not open")
	}
	fails(t, h.command(consumer.NBDClient(b.backup, "elsewhere.test", qemuClient(t, trust, good))...), "Certificate does not match the hostname elsewhere.test")
}
