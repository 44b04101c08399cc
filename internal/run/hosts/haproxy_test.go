package hosts_test

import (
	"strings"
	"testing"

	"chancery/internal/run/consumer"
)

const (
	haproxyConf   = "/etc/haproxy/haproxy.cfg"
	haproxySocket = "/run/haproxy.sock"
)

// haproxy joins a host whose HAProxy is configured and does not run yet. Its certificate, path and key are one file.
func (w *world) haproxy(t *testing.T, socket, level string, more ...string) *door {
	t.Helper()
	d := w.doorOn(t, "haproxy")
	h := d.h
	in, tls := h.inside, "/etc/haproxy/tls/"
	d.recipe, d.cert, d.key, d.crl, d.pidFile = "haproxy", tls+"site.pem", tls+"site.pem", tls+"clients-crl.pem", "/run/haproxy.pid"
	server := consumer.HAProxyServer{
		Address: d.address, Certificate: in(d.cert), PIDFile: in(d.pidFile), Level: level,
		Bind: "ca-file " + in(tls+"clients-ca.pem") + " verify required crl-file " + in(d.crl),
	}
	parameters := append([]string{"clients=true", "address=" + d.address, "conf=" + in(haproxyConf), "pid_file=" + in(d.pidFile)}, more...)
	if socket != "" {
		server.Socket = in(socket)
		parameters = append(parameters, "socket="+in(socket))
	}
	h.write(haproxyConf, server.Config())
	d.program = server.Program(in(haproxyConf))
	h.join(order("haproxy", parameters...))
	return d
}

// worker is the process that serves; a reload makes another one.
func (d *door) worker() string {
	return strings.TrimSpace(d.h.run("ps", "-o", "pid=", "--ppid", strings.TrimSpace(string(d.h.read(d.pidFile)))))
}

func TestHAProxy(t *testing.T) {
	t.Parallel()
	theWorld(t).haproxy(t, haproxySocket, "").firstDay()
}

// TestHAProxyRenewalUnderAConnection, scenario S17: over the socket the process that serves takes the new key, and a
// connection that was there before goes on with it.
func TestHAProxyRenewalUnderAConnection(t *testing.T) {
	t.Parallel()
	d := theWorld(t).haproxy(t, haproxySocket, "").opened()
	live, before, worker := d.line(), d.leaf(), d.worker()
	if !live.shows().Equal(before) {
		t.Error("the connection is of another certificate")
	}
	d.rekey("shop")
	if !live.shows().Equal(before) {
		t.Error("the connection was lost, and a new one took its place")
	}
	if now := d.worker(); now != worker {
		t.Errorf("process %s served, and now %s: it was reloaded", worker, now)
	}
	if said := d.h.observed("haproxy").Message; said != "" {
		t.Errorf("the host says %q", said)
	}
}

// TestHAProxyReload: where the socket does not do it, or there is none, the master is told, and the host says why.
func TestHAProxyReload(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	for name, c := range map[string]struct{ socket, level, says string }{
		"no socket":                  {"", "", ""},
		"a socket that may not":      {haproxySocket, "operator", "Permission denied"},
		"a socket that is not there": {"", "", "connect: no such file or directory"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			var more []string
			if name == "a socket that is not there" {
				more = []string{"socket=/run/nobody.sock"}
			}
			d := w.haproxy(t, c.socket, c.level, more...).opened()
			worker := d.worker()
			d.rekey("shop")
			until(t, "another process serves", func() bool { return d.worker() != worker })
			if said := d.h.observed("haproxy").Message; !strings.Contains(said, c.says) || c.says == "" && said != "" {
				t.Errorf("the host says %q, where %q is expected", said, c.says)
			}
		})
	}
}

// TestHAProxyRenewalThatFails: what is wrong is found by haproxy -c, the old file comes back, and the running process hears of
// nothing.
func TestHAProxyRenewalThatFails(t *testing.T) {
	t.Parallel()
	d := theWorld(t).haproxy(t, haproxySocket, "").opened()
	worker := d.worker()
	spoil := "#!/bin/sh\nsed -i '/PRIVATE/,$d' KEY\ncat OTHER >>KEY\nexec haproxy -c -f CONF\n"
	d.fails(failure{"check: [SPOIL]", spoil, "inconsistencies between private key and certificate"}, haproxyConf)
	if now := d.worker(); now != worker {
		t.Errorf("process %s served, and now %s: it was reloaded", worker, now)
	}
}

// TestHAProxyRevocation: new CRLs are a reload, since HAProxy dies of what its socket offers for them; new certificates
// before, between and after are not.
func TestHAProxyRevocation(t *testing.T) {
	t.Parallel()
	d := theWorld(t).haproxy(t, haproxySocket, "").opened()
	d.rekey("first")
	worker := d.worker()
	d.revokes()
	until(t, "another process serves alone", func() bool { return d.worker() != worker && !strings.Contains(d.worker(), worker) })
	worker = d.worker()
	d.rekey("last")
	if now := d.worker(); now != worker {
		t.Errorf("process %q served, and now %q: it was reloaded", worker, now)
	}
}
