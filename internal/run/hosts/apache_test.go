package hosts_test

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"chancery/internal/run/consumer"
)

const (
	apacheConf = "/etc/apache2/apache2.conf"
	apacheRun  = "/run/apache2"
)

// apache joins a host whose Apache is configured and does not run yet.
func (w *world) apache(t *testing.T) *door {
	t.Helper()
	d := w.doorOn(t, "apache")
	h := d.h
	in, tls := h.inside, "/etc/apache2/tls/"
	d.recipe, d.cert, d.key, d.crl, d.pidFile = "apache", tls+"server.pem", tls+"server.key", tls+"clients-crl.pem", apacheRun+"/httpd.pid"
	server := consumer.ApacheServer{
		Address: d.address, Name: h.name, Run: in(apacheRun), Certificate: in(d.cert), Key: in(d.key),
		More: []string{"SSLVerifyClient require", "SSLVerifyDepth 2", "SSLCACertificateFile " + in(tls+"clients-ca.pem"),
			"SSLCARevocationFile " + in(d.crl), "SSLCARevocationCheck chain"},
	}
	h.write(apacheConf, server.Config())
	must(t, server.Pages(h.path(apacheRun)))
	must(t, os.MkdirAll(h.path("/run/lock"), 0o755)) // apache2ctl makes its own directory there
	d.program = server.Program(in(apacheConf))
	parameters := []string{"clients=true", "address=" + d.address, "conf=" + in(apacheConf), "pid_file=" + in(d.pidFile)}
	if h.root != "" { // apache2ctl knows the machine's directories only
		parameters = append(parameters, "ctl=/usr/sbin/apache2")
	}
	h.join(order("apache", parameters...))
	return d
}

func TestApache(t *testing.T) {
	t.Parallel()
	theWorld(t).apache(t).firstDay()
}

// TestApacheRenewalUnderADownload, scenario S17: a download that runs while a new key is placed gets its octets from the
// old process.
func TestApacheRenewalUnderADownload(t *testing.T) {
	t.Parallel()
	d := theWorld(t).apache(t).opened()
	began := time.Now()
	slow, err := d.get(d.trust, d.good, "/slow")
	must(t, err)
	defer slow.Body.Close()
	got := make([]byte, 5)
	if _, err := io.ReadFull(slow.Body, got); err != nil {
		t.Fatal(err)
	}
	d.rekey("shop")
	// It comes at 1 KiB a second: what is past this was not sent when the certificate changed.
	sent := 1024*int(1+time.Since(began)/time.Second) + 1024
	more := make([]byte, sent/5*5)
	if _, err := io.ReadFull(slow.Body, more); err != nil {
		t.Fatalf("the download: %v", err)
	}
	if text := string(got) + string(more); text != strings.Repeat("slow ", len(text)/5) {
		t.Errorf("the download has other octets: %q", text)
	}
}

// TestApacheReloadThatFails: a pair that is spoilt after it was placed passes apache2's own check, and would end the whole
// server; the agent sees it on disk and does not tell the server of it.
func TestApacheReloadThatFails(t *testing.T) {
	t.Parallel()
	d := theWorld(t).apache(t).opened()
	spoil := "#!/bin/sh\ncat OTHER >KEY\nexec apache2 -t -f CONF\n"
	d.fails(failure{"check: [SPOIL]", spoil, "do not belong together"}, apacheConf)
	d.rekey("again")
}

// TestApacheEndsOnAMismatch is what the agent guards against: apache2 calls a mismatched pair good, and ends on the signal.
func TestApacheEndsOnAMismatch(t *testing.T) {
	t.Parallel()
	d := theWorld(t).apache(t).opened()
	must(t, os.WriteFile(d.h.path(d.key), encodeKey(t), 0o600))
	if out, err := d.h.command("apache2", "-t", "-f", d.h.inside(apacheConf)).CombinedOutput(); err != nil || !strings.Contains(string(out), "Syntax OK") {
		t.Errorf("apache2 -t sees the mismatch by itself now: %v: %s", err, out)
	}
	d.h.converge() // mends it before anybody tells the server
	d.lets(d.trust, d.good)
	must(t, os.WriteFile(d.h.path(d.key), encodeKey(t), 0o600))
	d.h.run("sh", "-c", `kill -USR1 "$(cat "$1")"`, "sh", d.h.inside(d.pidFile))
	<-d.Done()
	d.h.converge()
	d.begin()
	d.h.converge()
	d.serves(d.leaf())
}

func TestApacheRevocation(t *testing.T) {
	t.Parallel()
	theWorld(t).apache(t).opened().revokes()
}
