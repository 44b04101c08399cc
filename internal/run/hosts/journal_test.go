package hosts_test

import (
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

const journalDir = "/etc/ssl/journal-"

// receiver is a host that receives journals.
type receiver struct {
	h       *host
	address string
	output  string // where they are kept, as its programs name it
}

// receiver begins one: its directory is there, and nothing runs.
func (w *world) receiver(t *testing.T, pool string) *receiver {
	t.Helper()
	h := w.newHost(t, "sink", machine{pool: pool})
	address, _ := h.freeAt()
	r := &receiver{h: h, address: address, output: h.inside("/run/journal")}
	r.keep()
	return r
}

// keep makes what a receiver keeps journals in, and by which they know its machine.
func (r *receiver) keep() {
	t, h := r.h.t, r.h
	t.Helper()
	must(t, os.Mkdir(h.path("/run/journal"), 0o755))
	h.write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	if os.Geteuid() == 0 {
		h.run("chown", "systemd-journal-remote:", "/run/journal")
	}
}

// asJournal is a program that runs as systemd's unit has it run.
func (r *receiver) asJournal(p consumer.Program) consumer.Program {
	if os.Geteuid() == 0 {
		p.Args = append([]string{"--reuid=systemd-journal-remote", "--regid=systemd-journal-remote", "--clear-groups", "--pdeathsig", "KILL", p.Path}, p.Args...)
		p.Path = "setpriv"
	}
	return p
}

// holds reports whether a message has arrived.
func (r *receiver) holds(message string) bool {
	out, err := exec.Command("journalctl", "-o", "cat", "--directory="+r.h.path(strings.TrimPrefix(r.output, r.h.root))).CombinedOutput()
	return err == nil && slices.Contains(strings.Split(strings.TrimSpace(string(out)), "\n"), message)
}

// sends is a command that sends a message from a host with the files of a directory.
func (r *receiver) sends(from *host, name, dir, message string) *exec.Cmd {
	from.t.Helper()
	entries := filepath.Join(from.t.TempDir(), "entries")
	must(from.t, consumer.WriteJournalEntry(entries, from.name, message, time.Now()))
	_, port, _ := strings.Cut(r.address, ":")
	return from.command(consumer.JournalUpload{URL: "https://" + name + ":" + port, Certificate: dir + "/cert.pem", Key: dir + "/key.pem", Trust: dir + "/trusted.pem",
		Entries: entries}.Command()...)
}

// sender joins a host that sends its journal, and knows the receiver's name.
func (w *world) sender(t *testing.T, pool string, to *receiver) *host {
	t.Helper()
	h := w.newHost(t, "sender", machine{pool: pool})
	if h.root == "" {
		hosts := string(h.read("/etc/hosts"))
		h.write("/etc/hosts", hosts+to.h.at+" "+to.h.name+" elsewhere.test\n")
	}
	h.write("/opt/restart", "#!/bin/sh\n: >"+h.inside("/run/restarted")+"\n") // each of its runs is a command of the test
	must(t, os.Chmod(h.path("/opt/restart"), 0o755))
	h.write("/etc/chancery/agent.yaml", "steps:\n  systemd-journal-remote:\n    restart: ["+h.inside("/opt/restart")+"]\n")
	h.join(h.journalOrder("upload"))
	h.converge()
	return h
}

// journalOrder is a placement of one of the programs. An ordinary user's host has no accounts of the system.
func (h *host) journalOrder(service string, more ...string) client.PlacementOrder {
	return order("systemd-journal-remote", append([]string{"service=" + service}, more...)...)
}

// reaches is the name under which a sender reaches the receiver: where hosts are directories they share one file of names, so
// it is the address.
func (r *receiver) reaches() string {
	if r.h.root != "" {
		return r.h.at
	}
	return r.h.name
}

// TestJournalRemote: a receiver with what was placed gets a sender's journal; a sender believes no other receiver; and a
// renewal restarts it, after which the sender goes on.
func TestJournalRemote(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool := w.pool(t)
	r := w.receiver(t, pool.Name)
	h := r.h
	dir := journalDir + "remote"
	program := consumer.JournalRemote{Address: r.address, Output: r.output, Certificate: h.inside(dir + "/cert.pem"), Key: h.inside(dir + "/key.pem")}.Program()
	begin := h.restartableAs("systemd-journal-remote", r.asJournal(program))
	h.join(h.journalOrder("remote", "address="+r.address))
	h.converge()
	if seen := h.observed("systemd-journal-remote"); seen.State != client.PlacementDown || !strings.Contains(seen.Message, "asks no sender for a certificate") ||
		!strings.Contains(seen.Message, "ServerKeyFile="+dir+"/key.pem") {
		t.Errorf("before it runs: %+v", seen)
	}
	begin()
	h.converge()
	leaf := parsed(t, h.read(dir+"/cert.pem"))
	if seen := h.observed("systemd-journal-remote"); seen.State != client.PlacementServed || seen.Served != cert.FormatSerial(leaf.SerialNumber) {
		t.Errorf("%+v", seen)
	}
	if os.Geteuid() == 0 {
		if stat := h.run("stat", "-c", "%U:%G %a", dir+"/key.pem"); strings.TrimSpace(stat) != "root:systemd-journal-remote 640" {
			t.Errorf("the key is %s", stat)
		}
	}
	s := w.sender(t, pool.Name, r)
	from := s.inside(journalDir + "upload")
	output(t, r.sends(s, r.reaches(), from, "first"))
	until(t, "the first message has arrived", func() bool { return r.holds("first") })

	stranger := w.sender(t, w.pool(t).Name, r)
	fails(t, r.sends(stranger, r.reaches(), stranger.inside(journalDir+"upload"), "strange"), "certificate")
	if h.root == "" {
		fails(t, r.sends(s, "elsewhere.test", from, "astray"), "no alternative certificate subject name matches target host name 'elsewhere.test'")
	}
	w.chancery(t, "host", "set", h.name, "--dns", "logs-"+h.name)
	h.converge()
	again := parsed(t, h.read(dir+"/cert.pem"))
	if seen := h.observed("systemd-journal-remote"); again.Equal(leaf) || seen.State != client.PlacementServed || seen.Served != cert.FormatSerial(again.SerialNumber) {
		t.Errorf("after a renewal: %+v", seen)
	}
	output(t, r.sends(s, r.reaches(), from, "second"))
	until(t, "the second message has arrived", func() bool { return r.holds("second") })
	for _, message := range []string{"strange", "astray"} {
		if r.holds(message) {
			t.Errorf("%q has arrived", message)
		}
	}
}

// TestJournalSenders: stunnel in front of a receiver lets in the pool's senders and no others, which a journal-remote without
// GnuTLS cannot; and keeps out who was revoked.
func TestJournalSenders(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	d := w.stunnel(t)
	h := d.h
	r := &receiver{h: h, address: d.address, output: h.inside("/run/journal")}
	r.keep()
	behind, _ := h.freeAt()
	h.start(r.asJournal(consumer.JournalRemote{Address: behind, Output: r.output, Plain: true}.Program()))
	config := string(h.read(stunnelConf))
	var lines []string
	for line := range strings.Lines(config) {
		if strings.HasPrefix(line, "connect = ") {
			line = "connect = " + behind + "\n"
		}
		lines = append(lines, line)
	}
	h.write(stunnelConf, strings.Join(lines, ""))
	h.converge()
	d.begin()
	h.converge()

	s := w.sender(t, d.pool.Name, r)
	from := s.inside(journalDir + "upload")
	if seen := s.observed("systemd-journal-remote"); seen.State != client.PlacementPlaced {
		t.Errorf("a sender has no port: %+v", seen)
	}
	if os.Geteuid() == 0 {
		if stat := s.run("stat", "-c", "%U:%G %a", journalDir+"upload/key.pem"); strings.TrimSpace(stat) != "root:systemd-journal 640" {
			t.Errorf("the key is %s", stat)
		}
	}
	output(t, r.sends(s, r.reaches(), from, "from the pool"))
	until(t, "the message has arrived", func() bool { return r.holds("from the pool") })
	rogue := t.TempDir()
	other := w.clientOf(t, w.pool(t), "rogue")
	must(t, os.Symlink(filepath.Join(other.dir, "clientcert.pem"), filepath.Join(rogue, "cert.pem")))
	must(t, os.Symlink(filepath.Join(other.dir, "clientkey.pem"), filepath.Join(rogue, "key.pem")))
	must(t, os.WriteFile(filepath.Join(rogue, "trusted.pem"), d.trust, 0o644))
	fails(t, r.sends(s, r.reaches(), rogue, "rogue"), "failed")
	h.revoked(d.pool, parsed(t, s.read(journalDir+"upload/cert.pem")), d.crl)
	fails(t, r.sends(s, r.reaches(), from, "revoked"), "failed")
	must(t, os.Remove(s.path("/run/restarted")))
	s.converge() // which gets it another certificate
	s.read("/run/restarted")
	output(t, r.sends(s, r.reaches(), from, "renewed"))
	until(t, "the message after the renewal has arrived", func() bool { return r.holds("renewed") })
	for _, message := range []string{"rogue", "revoked"} {
		if r.holds(message) {
			t.Errorf("the message of who is %s has arrived", message)
		}
	}
}
