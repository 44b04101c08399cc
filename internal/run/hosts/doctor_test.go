package hosts_test

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/pki/keyfile"
)

// doctor runs a look and returns the rules that are broken, and what was said in all.
func (w *world) doctor(t testing.TB, fails bool, args ...string) (rules []string, said string) {
	t.Helper()
	cmd := exec.Command(program(t), append([]string{"--dir", string(w.dir), "-o", "json", "doctor"}, args...)...)
	var wrong strings.Builder
	cmd.Stderr = &wrong
	out, err := cmd.Output()
	exit, _ := errors.AsType[*exec.ExitError](err)
	if (err != nil) != fails || err != nil && (exit == nil || exit.ExitCode() != 1) {
		t.Errorf("doctor %v: %v\n%s%s", args, err, out, wrong.String())
	}
	d := json.NewDecoder(strings.NewReader(string(out)))
	looked := 0
	for {
		var f client.Finding
		if err := d.Decode(&f); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%v in %s%s", err, out, wrong.String())
		}
		looked++
		if f.Level != "ok" && !slices.Contains(rules, f.Check) {
			rules = append(rules, f.Check)
		}
	}
	if looked == 0 {
		t.Errorf("doctor %v looked at nothing: %s", args, wrong.String())
	}
	return rules, string(out)
}

// TestDoctor: a host with a real nginx is looked at from the node and on the host, while one thing after the other goes wrong.
func TestDoctor(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	s := w.runningWeb(t, machine{directory: true})
	h := s.h
	onHost := []string{h.name, "--state", h.state}
	wants := func(what string, fails bool, args []string, rules ...string) string {
		t.Helper()
		got, said := w.doctor(t, fails, args...)
		for _, rule := range rules {
			if !slices.Contains(got, rule) {
				t.Errorf("%s: doctor %v does not find %s, but %v:\n%s", what, args, rule, got, said)
			}
		}
		if len(got) != len(rules) {
			t.Errorf("%s: doctor %v finds %v, and not %v:\n%s", what, args, got, rules, said)
		}
		return said
	}
	wants("all is well", false, []string{h.name})
	wants("no agent runs", false, onHost, "host.agent.stopped")
	wants("no agent runs, and warnings count", true, append(onHost, "--strict"), "host.agent.stopped")
	// The host's own CRL address is the authority's, and so is the issuer: the port by itself is right, too.
	said := wants("the port", false, []string{s.address, "--servername", h.name, "--recipe", "nginx"})
	if !strings.Contains(said, "placement nginx, serial") || !strings.Contains(said, "as its agent reported") {
		t.Errorf("it is not told whose it is:\n%s", said)
	}

	must(t, os.Chmod(h.path(nginxKey), 0o644))
	wants("a mode", true, onHost, "host.agent.stopped", "host.local.mode")
	h.converge()
	wants("a mode, mended", false, onHost, "host.agent.stopped")

	// The certificate is replaced on disk, and the process is not told.
	certificate, key := h.read(nginxCert), h.read(nginxKey)
	before := h.observed("nginx").Serial
	must(t, s.Stop())
	pair, err := tls.X509KeyPair(certificate, key)
	must(t, err)
	listener, err := tls.Listen("tcp", s.address, &tls.Config{Certificates: []tls.Certificate{pair}})
	must(t, err)
	defer listener.Close()
	go accept(listener)
	_, err = w.admin.Revoke(t.Context(), "", before, client.RevokeRequest{Reason: "superseded"})
	must(t, err)
	wants("revoked by the record", true, []string{s.address, "--servername", h.name, "--offline"}, "wire.ours.revoked")
	if out, err := h.agent("run", "--once").CombinedOutput(); err == nil {
		t.Errorf("the agent believes the old process: %s", out)
	}
	got, all := w.doctor(t, true, h.name)
	if !slices.Contains(got, "host.placement.failed") {
		t.Errorf("what the agent could not do is not told: %v\n%s", got, all)
	}

	// Somebody else has the port: the host's report and what is seen from here are two things.
	must(t, listener.Close())
	s.begin()
	h.converge()
	wants("mended", false, []string{h.name})
	must(t, s.Stop())
	stranger, err := keyfile.EncodePKCS8(ecKey(t))
	must(t, err)
	file := t.TempDir() + "/stranger"
	must(t, os.WriteFile(file+".key", stranger, 0o600))
	output(t, exec.Command("openssl", "req", "-x509", "-key", file+".key", "-out", file+".pem", "-subj", "/CN="+h.name, "-addext", "subjectAltName=DNS:"+h.name, "-days", "9"))
	pair, err = tls.LoadX509KeyPair(file+".pem", file+".key")
	must(t, err)
	other, err := tls.Listen("tcp", s.address, &tls.Config{Certificates: []tls.Certificate{pair}})
	must(t, err)
	defer other.Close()
	go accept(other)
	got, all = w.doctor(t, true, onHost...)
	for _, rule := range []string{"host.port.contradiction", "host.port.wrong", "host.local.stale"} {
		if !slices.Contains(got, rule) {
			t.Errorf("%s is not found: %v\n%s", rule, got, all)
		}
	}

	// The older one of two, served by somebody who does not know.
	newer := w.chancery(t, "-o", "json", "doctor", "scan", s.address)
	if !strings.Contains(newer, `"where":"`+s.address) || strings.Contains(newer, `"ours"`) {
		t.Errorf("a scan of it says %s", newer)
	}
	serverKey := t.TempDir() + "/k"
	must(t, os.WriteFile(serverKey, stranger, 0o600))
	for _, name := range []string{"/first.pem", "/second.pem"} {
		w.chancery(t, "cert", "issue", "--profile", "server", "--key", serverKey, "--name", "dns:doctor.test", "--subject", "CN=doctor.test", "--chain", "--out", strings.TrimSuffix(serverKey, "/k")+name)
	}
	pair, err = tls.LoadX509KeyPair(strings.TrimSuffix(serverKey, "/k")+"/first.pem", serverKey)
	must(t, err)
	third, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	must(t, err)
	defer third.Close()
	go accept(third)
	wants("a newer one was issued", true, []string{third.Addr().String(), "--servername", "doctor.test", "--offline"}, "wire.ours.newer")
	if scan := w.chancery(t, "-o", "json", "doctor", "scan", third.Addr().String()); !strings.Contains(scan, `"ours":"default"`) {
		t.Errorf("a scan does not know its own: %s", scan)
	}
}

// accept shakes hands with whoever comes.
func accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			if conn.(*tls.Conn).Handshake() == nil {
				_, _ = io.Copy(io.Discard, conn)
			}
		}()
	}
}
