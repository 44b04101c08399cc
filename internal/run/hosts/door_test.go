package hosts_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/run/consumer"
)

// door is a server on a host that wants clients' certificates and refuses others while they shake hands. It answers "hello".
type door struct {
	*webServer
	world        *world
	pool         *client.Pool
	recipe       string
	cert, key    string // where the recipe puts them
	crl          string
	pidFile      string
	program      consumer.Program
	trust        []byte
	good         *peer
	unrecognized string // what a client is told whose issuer is not known
}

func (d *door) begin() {
	d.h.t.Helper()
	d.Process = d.h.start(d.program)
}

// opened is a door whose server runs and serves what was placed.
func (d *door) opened() *door {
	d.h.t.Helper()
	d.h.converge()
	d.begin()
	d.h.converge()
	d.good = d.world.clientOf(d.h.t, d.pool, "good")
	d.serves(d.leaf())
	return d
}

func (d *door) leaf() *x509.Certificate { return parsed(d.h.t, d.h.read(d.cert)) }

// serves wants a certificate on the wire, and the authority to know that it is.
func (d *door) serves(want *x509.Certificate) {
	d.h.t.Helper()
	serial := cert.FormatSerial(want.SerialNumber)
	if seen := onTheWire(d.h.t, d.h, d.address); seen != serial {
		d.h.t.Errorf("%s is served, not %s", seen, serial)
	}
	if seen := d.h.observed(d.recipe); seen.State != client.PlacementServed || seen.Served != serial || seen.Serial != serial {
		d.h.t.Errorf("reported is %+v, not %s served", seen, serial)
	}
}

// turnsAway wants a client to be refused with an alert. Processes that were told of new files may take a moment.
func (d *door) turnsAway(own *peer, alert string) {
	d.h.t.Helper()
	var last error
	until(d.h.t, "it refuses with "+alert, func() bool {
		var answer *http.Response
		if answer, last = d.get(d.trust, own, "/"); last == nil {
			answer.Body.Close()
			return false
		}
		// It may close before it has read the request, and what was written after the alert then takes that away.
		cut := errors.Is(last, syscall.ECONNRESET) || errors.Is(last, syscall.EPIPE)
		if !cut && !strings.Contains(last.Error(), "remote error: tls: ") {
			d.h.t.Fatal(last)
		}
		return strings.Contains(last.Error(), alert)
	})
}

// firstDay takes a server from a host that has just joined to one that lets in whom it should, mends what somebody changed,
// and stays down when it was stopped.
func (d *door) firstDay() {
	t, h := d.h.t, d.h
	t.Helper()
	h.converge()
	if seen := h.observed(d.recipe); seen.State != client.PlacementDown || seen.Served != "" || seen.Serial == "" {
		t.Errorf("before it runs: %+v", seen)
	}
	d.begin()
	h.converge()
	leaf := d.leaf()
	d.serves(leaf)
	other := d.world.pool(t)
	good := d.world.clientOf(t, d.pool, "good")
	if shown := d.lets(d.trust, good); !shown.Equal(leaf) {
		t.Errorf("a client is shown %s", shown.Subject)
	}
	d.turnsAway(d.world.clientOf(t, other, "good"), d.unrecognized)
	d.turnsAway(selfMade(t, d.trust, "good"), d.unrecognized)
	d.turnsAway(nil, "certificate required")
	if _, err := d.get([]byte(other.Root.PEM), good, "/"); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a client of another pool believes the server: %v", err)
	}
	must(t, os.Chmod(h.path(d.key), 0o644))
	must(t, os.WriteFile(h.path(d.cert), keyfile.EncodeCertificates(selfMade(t, d.trust, "x").pair.Leaf), 0o644))
	h.converge()
	if mended := strings.Join(h.observed(d.recipe).Repaired, "\n"); !strings.Contains(mended, d.key) || !strings.Contains(mended, d.cert) {
		t.Errorf("reported is %q", mended)
	}
	if st, err := os.Stat(h.path(d.key)); err != nil || st.Mode() != 0o600 || !d.leaf().Equal(leaf) {
		t.Errorf("not mended: %v %v", st, err)
	}
	d.lets(d.trust, good)
	must(t, d.Stop())
	h.converge()
	if seen := h.observed(d.recipe); seen.State != client.PlacementDown {
		t.Errorf("after it was stopped: %+v", seen)
	}
	if err := consumer.Listening(d.address)(t.Context()); err == nil {
		t.Error("the agent started what was stopped")
	}
}

// rekey gives the host another name, for which it gets another key, and wants that served by the same process.
func (d *door) rekey(prefix string) {
	t := d.h.t
	t.Helper()
	before, pid := d.leaf(), string(d.h.read(d.pidFile))
	d.world.chancery(t, "host", "set", d.h.name, "--dns", prefix+"-"+d.h.name)
	d.h.converge()
	after := d.leaf()
	if string(after.RawSubjectPublicKeyInfo) == string(before.RawSubjectPublicKeyInfo) {
		t.Error("it was not re-keyed")
	}
	d.serves(after)
	if shown := d.lets(d.trust, d.good); !shown.Equal(after) {
		t.Errorf("a new connection is shown %s", cert.FormatSerial(shown.SerialNumber))
	}
	if now := string(d.h.read(d.pidFile)); now != pid {
		t.Errorf("it was restarted: %s, then %s", pid, now)
	}
	select {
	case <-d.Done():
		t.Errorf("it ended: %s", d.Output())
	default:
	}
}

// line is a connection that is kept, on which a client asks again and again.
type line struct {
	d    *door
	page *http.Client
}

func (d *door) line() *line {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(d.trust)
	config := &tls.Config{RootCAs: roots, ServerName: d.h.name, Certificates: []tls.Certificate{d.good.pair}}
	transport := &http.Transport{TLSClientConfig: config, MaxConnsPerHost: 1}
	d.h.t.Cleanup(transport.CloseIdleConnections)
	return &line{d: d, page: &http.Client{Transport: transport, Timeout: 5 * time.Minute}}
}

// shows asks for the page, and returns the certificate with which the connection began.
func (l *line) shows() *x509.Certificate {
	l.d.h.t.Helper()
	answer, err := l.page.Get("https://" + l.d.address + "/")
	must(l.d.h.t, err)
	text, err := io.ReadAll(answer.Body)
	must(l.d.h.t, errors.Join(err, answer.Body.Close()))
	if !strings.HasPrefix(string(text), "hello") {
		l.d.h.t.Errorf("%s %q", answer.Status, text)
	}
	return answer.TLS.PeerCertificates[0]
}

// failure is a way in which a renewal fails on the host: a step that agent.yaml replaces, the script that it runs (SPOIL),
// and what is reported.
type failure struct{ steps, script, says string }

// fails renews while the host's own steps make it fail: the old pair comes back and is served, the reason is reported, and
// once the steps are the recipe's again the new pair is placed. In steps and script stand SPOIL, KEY, OTHER (a key that is
// not the certificate's) and CONF for paths.
func (d *door) fails(f failure, conf string) {
	t, h := d.h.t, d.h
	t.Helper()
	before, key := d.leaf(), string(h.read(d.key))
	names := strings.NewReplacer("SPOIL", h.inside("/opt/spoil"), "OTHER", h.inside("/opt/other.key"), "KEY", h.inside(d.key), "CONF", h.inside(conf))
	other, err := keyfile.EncodePKCS8(ecKey(t))
	must(t, err)
	h.write("/opt/other.key", string(other))
	h.write("/opt/spoil", names.Replace(f.script))
	must(t, os.Chmod(h.path("/opt/spoil"), 0o755))
	h.write("/etc/chancery/agent.yaml", "steps:\n  "+d.recipe+":\n    "+names.Replace(f.steps)+"\n")
	d.world.chancery(t, "host", "set", h.name, "--dns", "other-"+h.name)
	h.refuses("the old files are back")
	if seen := h.observed(d.recipe); seen.State != client.PlacementFailed || !strings.Contains(seen.Message, f.says) ||
		seen.Serial != cert.FormatSerial(before.SerialNumber) {
		t.Errorf("reported is %+v, where %q is expected", seen, f.says)
	}
	if string(h.read(d.key)) != key || !d.leaf().Equal(before) {
		t.Error("the old pair was not put back")
	}
	until(t, "the old certificate is served", func() bool {
		answer, err := d.get(d.trust, d.good, "/")
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.TLS.PeerCertificates[0].Equal(before)
	})
	must(t, os.Remove(h.path("/etc/chancery/agent.yaml")))
	h.converge()
	if after := d.leaf(); after.Equal(before) {
		t.Error("the new pair is not placed when it can be")
	} else {
		d.serves(after)
	}
}

// revokes wants a revoked client to be kept out as soon as the agent has placed the CRL, and no other, and a revoked server to
// get a new key.
func (d *door) revokes() {
	t := d.h.t
	t.Helper()
	bad := d.world.clientOf(t, d.pool, "bad")
	d.lets(d.trust, d.good)
	d.lets(d.trust, bad)
	d.h.revoked(d.pool, bad.pair.Leaf, d.crl)
	d.turnsAway(bad, "revoked certificate")
	d.lets(d.trust, d.good)
	leaf := d.leaf()
	d.h.revoked(d.pool, leaf, d.crl)
	again := d.leaf()
	if string(again.RawSubjectPublicKeyInfo) == string(leaf.RawSubjectPublicKeyInfo) {
		t.Error("a revoked server was not re-keyed")
	}
	d.serves(again)
	d.lets(d.trust, d.good)
}

// doorOn begins a door on a new host of a pool of its own.
func (w *world) doorOn(t *testing.T, name string) *door {
	t.Helper()
	pool := w.pool(t)
	h := w.newHost(t, name, machine{pool: pool.Name})
	free, err := consumer.FreeAddress()
	must(t, err)
	_, port, _ := strings.Cut(free, ":")
	return &door{webServer: &webServer{h: h, address: h.at + ":" + port}, world: w, pool: pool, trust: []byte(pool.Root.PEM), unrecognized: "unknown certificate authority"}
}
