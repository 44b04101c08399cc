package hosts_test

import (
	"bufio"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

// session is virsh in a connection that stays open.
type session struct {
	d   *daemon
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	id  string // of the client, as the daemon numbers them
}

// connect opens a session and has it list the domains once.
func (d *daemon) connect(p *peer) *session {
	d.h.t.Helper()
	before := d.clients()
	s := &session{d: d, cmd: d.h.command("stdbuf", "-oL", "virsh", "-q", "-c", d.uri(d.h.name, p))}
	var err error
	s.in, err = s.cmd.StdinPipe()
	must(d.h.t, err)
	out, err := s.cmd.StdoutPipe()
	must(d.h.t, err)
	s.out = bufio.NewReader(out)
	must(d.h.t, s.cmd.Start())
	late := time.AfterFunc(time.Minute, func() { s.cmd.Process.Kill() })
	d.h.t.Cleanup(func() {
		s.in.Close()
		s.cmd.Wait()
		late.Stop()
	})
	if !s.lists() {
		d.h.t.Fatal("a session cannot list domains")
	}
	for _, id := range d.clients() {
		if !slices.Contains(before, id) {
			s.id = id
		}
	}
	return s
}

// clients are the numbers of the daemon's TLS clients.
func (d *daemon) clients() (ids []string) {
	d.h.t.Helper()
	for line := range strings.Lines(d.h.run("virt-admin", "-q", "srv-clients-list", "libvirtd")) {
		if words := strings.Fields(line); len(words) > 1 && words[1] == "tls" {
			ids = append(ids, words[0])
		}
	}
	return ids
}

// lists reports whether the open session still gets an answer. It asks for the domains and then for the directory that it
// is in, for which it needs no daemon. It connects again where its connection was ended, so the daemon must know it by the
// same number, once it has one.
func (s *session) lists() bool {
	s.d.h.t.Helper()
	if _, err := io.WriteString(s.in, "list --name\npwd\n"); err != nil {
		return false
	}
	found := false
	for {
		line, err := s.out.ReadString('\n')
		if err != nil {
			return false
		}
		switch strings.TrimSpace(line) {
		case "test":
			found = true
		case s.d.h.home:
			return found && (s.id == "" || slices.Contains(s.d.clients(), s.id))
		}
	}
}

// alwaysDue has the authority issue certificates of which two thirds are over from the beginning, for they are backdated
// by five minutes: each look of an agent re-keys.
func (w *world) alwaysDue(t testing.TB, profile string) {
	t.Helper()
	p, err := w.admin.Profile(t.Context(), profile, 0)
	must(t, err)
	text := strings.Replace(p.YAML, "default: 90d", "default: 2m", 1)
	if text == p.YAML {
		t.Fatalf("the profile %s has another validity:\n%s", profile, p.YAML)
	}
	_, err = w.admin.SaveProfile(t.Context(), profile, client.ProfileText{YAML: text})
	must(t, err)
}

// lasting takes that back.
func (w *world) lasting(t testing.TB, profile string) {
	t.Helper()
	p, err := w.admin.Profile(t.Context(), profile, 0)
	must(t, err)
	_, err = w.admin.SaveProfile(t.Context(), profile, client.ProfileText{YAML: strings.Replace(p.YAML, "default: 2m", "default: 90d", 1)})
	must(t, err)
}

// TestRenewalUnderALiveConnection: when two thirds of its life are over a certificate is re-keyed and served, and a session
// that was open stays open, with the same process.
func TestRenewalUnderALiveConnection(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).renews) {
		return
	}
	w := ownWorld(t, "", nil)
	pool := w.pool(t)
	h := w.newHost(t, "host", machine{pool: pool.Name})
	port := h.configure()
	h.join(order("libvirt-server"))
	w.alwaysDue(t, "libvirt-server")
	h.converge()
	d, c := h.libvirtd(port), w.peer(t, pool, "client")
	before := parsed(t, h.read(serverCert))
	d.serves(c, before)
	pid, s := d.pid(), d.connect(c)
	w.lasting(t, "libvirt-server")
	h.converge()
	after := parsed(t, h.read(serverCert))
	if before.PublicKey.(*rsa.PublicKey).Equal(after.PublicKey) {
		t.Error("it was not re-keyed")
	}
	d.serves(c, after)
	if !s.lists() || d.pid() != pid {
		t.Errorf("the session ended, or the daemon: %s, then %s", pid, d.pid())
	}
	if seen := h.observed("libvirt-server"); seen.State != client.PlacementServed || seen.Served != cert.FormatSerial(after.SerialNumber) {
		t.Errorf("reported is %+v", seen)
	}
	h.converge()
	d.serves(c, after) // it stays for two thirds of its life
}

// TestBadIssuance: of what a careless or hostile authority hands out nothing is placed, an alarm is raised, and the old
// certificate is served. The next good one is placed.
func TestBadIssuance(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).rollsBack) {
		return
	}
	w := ownWorld(t, "", nil)
	pool, owner := w.ownedPool(t)
	h := w.newHost(t, "host", machine{pool: pool.Name})
	port := h.configure()
	h.join(order("libvirt-server"))
	w.alwaysDue(t, "libvirt-server")
	h.converge()
	d, c := h.libvirtd(port), w.peer(t, pool, "client")
	before := parsed(t, h.read(serverCert))
	d.serves(c, before)
	var inodes []uint64
	for _, path := range placed {
		inodes = append(inodes, h.inode(path))
	}
	liar := w.between(t, h)
	rogue, _ := w.ownedPool(t)
	for name, change := range map[string]func(*client.Certificate){
		"not of the key": func(out *client.Certificate) {
			other := w.peerOf(t, pool, "libvirt-server", "other")
			out.PEM, out.Chain = pems(other.pair.Certificate[:1]), pems(other.pair.Certificate[1:])
		},
		"expired": func(out *client.Certificate) {
			genuine := parsed(t, []byte(out.PEM))
			template := *genuine
			template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(77), genuine.NotBefore.AddDate(0, 0, -9), genuine.NotBefore.AddDate(0, 0, -1)
			template.ExtraExtensions = genuine.Extensions
			der, err := x509.CreateCertificate(nil, &template, owner.Certificate, genuine.PublicKey, owner.Signer)
			if err != nil {
				t.Error(err)
			}
			out.PEM, out.Chain = pems([][]byte{der}), ""
		},
		"of another CA":    func(out *client.Certificate) { out.Chain = rogue.Issuer.PEM },
		"without its path": func(out *client.Certificate) { out.Chain = "" },
		"cut short":        func(out *client.Certificate) { out.PEM = out.PEM[:len(out.PEM)/2] },
	} {
		liar.change(change)
		out, err := h.agent("run", "--once").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "ALARM") {
			t.Errorf("%s: %v, and no alarm:\n%s", name, err, out)
		}
		for i, path := range placed {
			if h.inode(path) != inodes[i] {
				t.Errorf("%s: %s was replaced", name, path)
			}
		}
		if seen := h.observed("libvirt-server"); seen.State != client.PlacementFailed || !strings.Contains(seen.Message, "ALARM") {
			t.Errorf("%s: reported is %+v", name, seen)
		}
	}
	d.serves(c, before)
	liar.change(nil)
	w.lasting(t, "libvirt-server")
	h.converge()
	d.serves(c, parsed(t, h.read(serverCert)))
	if parsed(t, h.read(serverCert)).Equal(before) {
		t.Error("the next good certificate was not placed")
	}
}

// TestCRLsThatAreLate: what was issued waits for the CRLs that its consumer needs. It is neither placed without them nor
// thrown away, as if the authority had issued something wrong.
func TestCRLsThatAreLate(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	h := w.newHost(t, "host", machine{})
	h.write(h.conf(), "")
	h.join(order("libvirt-server", "conf="+h.conf()))
	liar := w.between(t, h)
	liar.withholds(true)
	for range 2 {
		out, err := h.agent("run", "--once").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "no CRL in force") || strings.Contains(string(out), "ALARM") {
			t.Errorf("without CRLs: %v\n%s", err, out)
		}
	}
	h.absent("/etc/pki")
	liar.withholds(false)
	h.converge()
	issued := 0
	for c, err := range w.admin.Certificates(t.Context(), client.CertificateFilter{Name: h.name, Profile: "libvirt-server"}) {
		must(t, err)
		if issued++; c.Serial != h.observed("libvirt-server").Serial {
			t.Errorf("certificate %s was issued and is not placed", c.Serial)
		}
	}
	if issued != 1 {
		t.Errorf("%d certificates were issued", issued)
	}
}

func pems(ders [][]byte) string {
	var b strings.Builder
	for _, der := range ders {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return b.String()
}

// TestReloadThatFails: where the daemon does not take the new files, it goes on with the old ones, and they are put back.
func TestReloadThatFails(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).rollsBack) {
		return
	}
	w := theWorld(t)
	pool := w.pool(t)
	h := w.newHost(t, "host", machine{pool: pool.Name})
	port := h.configure()
	h.join(order("libvirt-server"))
	h.converge()
	d, c := h.libvirtd(port), w.peer(t, pool, "client")
	before, key := parsed(t, h.read(serverCert)), string(h.read(serverKey))
	d.serves(c, before)

	// By hand: a pair that does not match. The daemon refuses it and keeps the old; the agent mends it.
	must(t, os.WriteFile(h.path(serverKey), encodeKey(t), 0o600))
	update := h.command("virt-admin", "-q", "server-update-tls", "libvirtd")
	if out, err := update.CombinedOutput(); err == nil {
		t.Errorf("the daemon took a pair that does not match: %s", out)
	}
	d.serves(c, before)
	h.converge()
	if string(h.read(serverKey)) != key {
		t.Error("the key was not put back")
	}
	h.run("virt-admin", "-q", "server-update-tls", "libvirtd")
	d.serves(c, before)

	// In the middle of a placement: somebody spoils the files between placing and reloading.
	must(t, os.WriteFile(filepath.Join(h.home, "other.key"), encodeKey(t), 0o600))
	h.write("/opt/spoil", "#!/bin/sh\n[ -e /opt/spoilt ] && exec virt-admin -q server-update-tls libvirtd\n"+
		"touch /opt/spoilt\ncat "+filepath.Join(h.home, "other.key")+" >"+serverKey+"\nexec virt-admin -q server-update-tls libvirtd\n")
	must(t, os.Chmod(h.path("/opt/spoil"), 0o755))
	h.write("/etc/chancery/agent.yaml", "steps:\n  libvirt-server:\n    reload: [/opt/spoil]\n")
	w.chancery(t, "host", "set", h.name, "--dns", "another-"+h.name)
	h.refuses("the old files are back")
	if string(h.read(serverKey)) != key || !parsed(t, h.read(serverCert)).Equal(before) {
		t.Error("the old pair was not put back")
	}
	d.serves(c, before)
	if seen := h.observed("libvirt-server"); seen.State != client.PlacementFailed || seen.Serial != cert.FormatSerial(before.SerialNumber) {
		t.Errorf("reported is %+v", seen)
	}
	h.converge() // the reload does as it should now
	if parsed(t, h.read(serverCert)).Equal(before) {
		t.Error("the new pair is not placed when it can be")
	}
	d.serves(c, parsed(t, h.read(serverCert)))
}

func encodeKey(t testing.TB) []byte {
	t.Helper()
	text, err := keyfile.EncodePKCS8(aKey())
	must(t, err)
	return text
}
