package hosts_test

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/run/consumer"
)

// runs starts the host's agent as it usually runs, until the test ends.
func (h *host) runs() *consumer.Process {
	h.t.Helper()
	return h.start(consumer.Program{Path: program(h.t), Args: []string{"agent", "run", "--state", h.state}})
}

// proof runs cert prove-revoked, and returns what it says and its exit code.
func (w *world) proof(t *testing.T, serial string, more ...string) (*client.ProofResult, int) {
	t.Helper()
	cmd := exec.Command(program(t), append([]string{"--dir", string(w.dir), "-o", "json", "cert", "prove-revoked", "--yes", serial}, more...)...)
	var wrong bytes.Buffer
	cmd.Stderr = &wrong
	out, err := cmd.Output()
	exit, ended := errors.AsType[*exec.ExitError](err)
	if err != nil && (!ended || len(out) == 0) {
		t.Fatalf("%v: %s", err, wrong.String())
	}
	p := decode[*client.ProofResult](t, string(out))
	if ended {
		return p, exit.ExitCode()
	}
	return p, 0
}

// changes has nginx read another configuration.
func (s *webServer) changes(to func(conf string) string) {
	s.h.t.Helper()
	s.h.write(nginxConf, to(string(s.h.read(nginxConf))))
	must(s.h.t, s.Signal(syscall.SIGHUP))
}

// saw wants a trial to have a result, and its detail to say something; it returns the trial.
func saw(t *testing.T, p *client.ProofResult, h *host, placement, result, text string) client.ProofTrial {
	t.Helper()
	for _, trial := range p.Trials {
		if trial.Host == h.name && trial.Placement == placement {
			if trial.Result != result || !strings.Contains(trial.Detail, text) {
				t.Errorf("%s of %s: %+v, where %q and %q are expected", placement, h.name, trial, result, text)
			}
			return trial
		}
	}
	t.Fatalf("there is no trial of %s at %s: %+v", placement, h.name, p.Trials)
	return client.ProofTrial{}
}

// TestProveRevoked: a certificate whose key was stolen is refused by stunnel, nginx, PostgreSQL and libvirtd, once the list with
// its twins is placed, and each of them takes a good one. What has no port is said to have none.
func TestProveRevoked(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).revokes) {
		return
	}
	w := theWorld(t)
	d := w.stunnel(t).opened()
	pool := d.pool
	web := w.runningWeb(t, machine{pool: pool.Name})
	database := w.runningDatabase(t, machine{pool: pool.Name}, "bad")
	virt := w.newHost(t, "virt", machine{pool: pool.Name})
	port := virt.configure()
	virt.join(order("libvirt-server"), order("plain", "key=/etc/ssl/own.key", "cert=/etc/ssl/own.pem", "crl=/etc/ssl/own.crl"))
	virt.converge()
	daemon := virt.libvirtd(port)
	own, err := keyfile.Generate(keyfile.RSA3072, 0) // which is never certified again
	must(t, err)
	bad := w.peerWith(t, pool, "libvirt-client", "bad", own)
	daemon.lets(virt.name, bad)
	web.lets(d.trust, bad)
	for _, h := range []*host{d.h, web.h, database.h, virt} {
		h.runs()
	}
	fails(t, exec.Command(program(t), "--dir", string(w.dir), "cert", "prove-revoked", bad.serial), "chancery cert revoke "+bad.serial)
	w.chancery(t, "cert", "revoke", bad.serial, "--reason", "keyCompromise")

	p, code := w.proof(t, bad.serial, "--timeout", "4m")
	if code != 0 || !p.Proven() || len(p.Trials) != 5 {
		t.Errorf("exit code %d: %+v", code, p)
	}
	for _, s := range []struct {
		h               *host
		placement, text string
	}{
		{d.h, "stunnel", "revoked certificate"}, {web.h, "nginx", "400"}, {database.h, "postgresql", "revoked certificate"}, {virt, "libvirt-server", "hung up"},
	} {
		trial := saw(t, p, s.h, s.placement, client.ProofRefused, s.text)
		if !trial.Twin || trial.With == "" || trial.With == bad.serial || trial.CRL == "" || !strings.Contains(trial.Detail, "which is good, is taken") {
			t.Errorf("%+v", trial)
		}
		twin, err := w.admin.Certificate(t.Context(), pool.Issuer.Name, trial.With)
		must(t, err)
		if twin.State != "revoked" || twin.Profile != "proof-twin" || !strings.Contains(strings.Join(twin.SAN, " "), "dns:bad") {
			t.Errorf("the inventory says of the twin: %+v", twin)
		}
	}
	if trial := saw(t, p, virt, "plain", client.ProofNotTried, "which lists it"); trial.Untried != client.UntriedNoPort || len(p.Twins) != 4 {
		t.Errorf("%+v, and twins for %v", trial, p.Twins)
	}
	last, code := w.proof(t, bad.serial, "--last")
	if code != 0 || last.ID != p.ID || !last.Proven() {
		t.Errorf("exit code %d: %+v", code, last)
	}
	text := w.chancery(t, "cert", "prove-revoked", bad.serial, "--last")
	if !strings.Contains(text, "HOST") || !strings.Contains(text, "twin ") || strings.Count(text, "\n") != 6 {
		t.Errorf("the table is\n%s", text)
	}
	until(t, "stunnel, which closes its port for a moment when its agent tells it of a list, lets a good one in", func() bool {
		answer, err := d.get(d.trust, d.good, "/")
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
	web.lets(d.trust, d.good)
}

// TestProveAccepted: a server that reads no CRL, and one whose agent is held back, still take it: the alarm. One that asks nobody
// for a certificate proves nothing either way, and a host that is off is named.
func TestProveAccepted(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool := w.pool(t)
	m := machine{pool: pool.Name}
	deaf, held, open, off := w.runningWeb(t, m), w.runningWeb(t, m), w.runningWeb(t, m), w.runningWeb(t, m)
	deaf.changes(func(conf string) string { return strings.ReplaceAll(conf, "ssl_crl ", "# ") })
	open.changes(func(conf string) string { return strings.ReplaceAll(conf, "ssl_verify_client on;", "") })
	held.h.write("/etc/chancery/agent.yaml", "recipes: [plain]\n") // nothing is placed there any more
	good, bad := w.clientOf(t, pool, "good"), w.clientOf(t, pool, "bad")
	for _, s := range []*webServer{deaf, held, open} {
		s.lets([]byte(pool.Root.PEM), good)
	}
	deaf.h.runs()
	open.h.runs()
	back := held.h.runs()
	w.chancery(t, "cert", "revoke", bad.serial, "--reason", "keyCompromise")
	p, code := w.proof(t, bad.serial, "--timeout", "90s")
	if code != 1 || p.Proven() {
		t.Errorf("exit code %d: %+v", code, p)
	}
	until(t, "those that run have tried it", func() bool { // which on a busy machine takes longer than the command waits
		p, _ = w.proof(t, bad.serial, "--last")
		return p.Count(client.ProofWaiting) == 0 && p.Count(client.ProofSilent) == 1
	})
	saw(t, p, deaf.h, "nginx", client.ProofAccepted, "HTTP 200")
	saw(t, p, held.h, "nginx", client.ProofAccepted, "which does not list it")
	if trial := saw(t, p, open.h, "nginx", client.ProofOpen, "asks for no client certificate: it lets everybody in"); trial.With != "" {
		t.Errorf("%+v", trial)
	}
	saw(t, p, off.h, "nginx", client.ProofSilent, "its agent has not said anything")

	// Once what was wrong is mended, a later look says so.
	deaf.changes(func(conf string) string { return strings.ReplaceAll(conf, "# ", "ssl_crl ") })
	must(t, back.Stop())
	must(t, os.Remove(held.h.path("/etc/chancery/agent.yaml")))
	held.h.runs()
	until(t, "both refuse it", func() bool {
		p, _ = w.proof(t, bad.serial, "--last")
		return p.Count(client.ProofRefused) == 2
	})
}

// TestProveHeld: the host that has the key of a certificate shows that itself, and others a twin of it; and what is on hold can
// be tried.
func TestProveHeld(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool := w.pool(t)
	s, other := w.runningWeb(t, machine{pool: pool.Name}), w.runningWeb(t, machine{pool: pool.Name})
	_, err := w.admin.ChangeHost(t.Context(), s.h.name, client.ChangeHostRequest{Placements: &[]client.PlacementOrder{
		order("nginx", "clients=true", "address="+s.address, "conf="+s.h.inside(nginxConf)),
		order("plain", "key=/etc/ssl/own.key", "cert=/etc/ssl/own.pem", "profile=peer"),
	}})
	must(t, err)
	s.h.converge()
	own := cert.FormatSerial(parsed(t, s.h.read("/etc/ssl/own.pem")).SerialNumber)
	s.h.runs()
	other.h.runs()
	w.chancery(t, "cert", "hold", own)
	p, code := w.proof(t, own, "--timeout", "4m", "--twins")
	if code != 0 || p.State != "held" || !p.Proven() {
		t.Errorf("exit code %d: %+v", code, p)
	}
	if trial := saw(t, p, s.h, "nginx", client.ProofRefused, "which is good, is taken"); trial.With != own || trial.Twin {
		t.Errorf("%+v", trial)
	}
	if trial := saw(t, p, other.h, "nginx", client.ProofRefused, "which is good, is taken"); trial.With == own || !trial.Twin {
		t.Errorf("%+v", trial)
	}
	saw(t, p, s.h, "plain", client.ProofNotTried, "hold no CRL")
}
