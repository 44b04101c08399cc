package hosts_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"chancery/internal/run/consumer"
)

const (
	stunnelConf = "/etc/stunnel/tunnel.conf"
	stunnelLog  = "/run/tunnel/stunnel.log"
)

// stunnel joins a host whose stunnel is configured, in front of a server without TLS, and does not run yet. As root it runs
// as a user of its own, who reads the files again at each SIGHUP.
func (w *world) stunnel(t *testing.T) *door {
	t.Helper()
	d := w.doorOn(t, "stunnel")
	h := d.h
	in, tls := h.inside, "/etc/stunnel/tls/"
	d.recipe, d.cert, d.key, d.crl, d.pidFile = "stunnel", tls+"server.pem", tls+"server.key", tls+"clients-crl.pem", "/run/tunnel/stunnel.pid"
	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello from behind") }))
	t.Cleanup(behind.Close)
	server := consumer.StunnelServer{
		Accept: d.address, Connect: behind.Listener.Addr().String(), Certificate: in(d.cert), Key: in(d.key), PIDFile: in(d.pidFile), Log: in(stunnelLog),
		More: []string{"verifyChain = yes", "CAfile = " + in(tls+"clients-ca.pem"), "CRLfile = " + in(d.crl)},
	}
	parameters := []string{"clients=true", "address=" + d.address, "pid_file=" + in(d.pidFile), "process=stunnel4"}
	config := server.Config()
	must(t, os.MkdirAll(h.path("/run/tunnel"), 0o755))
	if os.Geteuid() == 0 {
		config = "setuid = stunnel4\nsetgid = stunnel4\n" + config
		parameters = append(parameters, "user=stunnel4")
		h.run("chown", "stunnel4:", "/run/tunnel")
	}
	h.write(stunnelConf, config)
	d.program = server.Program(in(stunnelConf))
	h.join(order("stunnel", parameters...))
	return d
}

func TestStunnel(t *testing.T) {
	t.Parallel()
	theWorld(t).stunnel(t).firstDay()
}

// TestStunnelRenewalUnderAConnection, scenario S17: a connection that is open goes on through the old key's end.
func TestStunnelRenewalUnderAConnection(t *testing.T) {
	t.Parallel()
	d := theWorld(t).stunnel(t).opened()
	live, before := d.line(), d.leaf()
	if !live.shows().Equal(before) {
		t.Error("the connection is of another certificate")
	}
	d.rekey("shop")
	if !live.shows().Equal(before) {
		t.Error("the connection was lost, and a new one took its place")
	}
	if os.Geteuid() == 0 {
		if owner := strings.TrimSpace(d.h.run("stat", "-c", "%U %a", d.key)); owner != "stunnel4 600" {
			t.Errorf("the key is %s", owner)
		}
	}
	if log := string(d.h.read(stunnelLog)); strings.Contains(log, "Insecure file permissions") {
		t.Errorf("stunnel complains: %s", log)
	}
}

// TestStunnelRenewalThatFails: stunnel has no check of its own and keeps the old files where it cannot use the new ones, saying
// so in its log only. The agent sees it on the port.
func TestStunnelRenewalThatFails(t *testing.T) {
	t.Parallel()
	d := theWorld(t).stunnel(t).opened()
	spoil := "#!/bin/sh\n[ -e /run/spoilt ] || cat OTHER >KEY\n: >/run/spoilt\nkill -HUP \"$(cat PID)\"\n" // once; the old files are not spoilt
	spoil = strings.NewReplacer("PID", d.h.inside(d.pidFile), "/run/spoilt", d.h.inside("/run/spoilt")).Replace(spoil)
	d.fails(failure{"reload-stunnel4: [SPOIL]", spoil, "serves certificate"}, stunnelConf)
	if log := string(d.h.read(stunnelLog)); !strings.Contains(log, "key values mismatch") {
		t.Errorf("stunnel did not see the spoilt pair: %s", log)
	}
}

func TestStunnelRevocation(t *testing.T) {
	t.Parallel()
	theWorld(t).stunnel(t).opened().revokes()
}
