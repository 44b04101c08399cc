package hosts_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/run/consumer"
)

// gate is a server on a host that speaks another protocol than http, and wants clients' certificates.
type gate struct {
	*consumer.Process
	h       *host
	world   *world
	pool    *client.Pool
	recipe  string
	address string
	// The places of the recipe's files.
	cert, key string
	program   consumer.Program
	hello     string // what a client says first, after TLS
	answers   string // how what it hears then begins
	trust     []byte
	good      *peer
}

// gateOn begins a gate on a new host of a pool of its own.
func (w *world) gateOn(t *testing.T, recipe string) *gate {
	t.Helper()
	pool := w.pool(t)
	g := &gate{h: w.newHost(t, recipe, machine{pool: pool.Name}), world: w, pool: pool, recipe: recipe, trust: []byte(pool.Root.PEM)}
	g.address = g.h.freeAddress()
	return g
}

// freeAddress is one of the host's own on which nothing listens.
func (h *host) freeAddress() string {
	h.t.Helper()
	free, err := consumer.FreeAddress()
	must(h.t, err)
	_, port, _ := strings.Cut(free, ":")
	return h.at + ":" + port
}

// runsTests are the names of the user and the group that the tests run as.
func runsTests(t testing.TB) (name, group string) {
	t.Helper()
	u, err := user.Current()
	must(t, err)
	g, err := user.LookupGroupId(u.Gid)
	must(t, err)
	return u.Username, g.Name
}

func (g *gate) leaf() *x509.Certificate { return parsed(g.h.t, g.h.read(g.cert)) }

// talk is a connection on which a client has said hello and was answered.
type talk struct {
	g    *gate
	conn *tls.Conn
	in   *bufio.Reader
}

// connect connects as a client with a certificate, which trusts a root, and says hello. TLS 1.3 refuses a client only when it
// reads.
func (g *gate) connect(ctx context.Context, trust []byte, own *peer) (*talk, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(trust)
	config := &tls.Config{RootCAs: roots, ServerName: g.h.name}
	if own != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own.pair, nil }
	}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: time.Minute}, Config: config}
	conn, err := dialer.DialContext(ctx, "tcp", g.address)
	if err != nil {
		return nil, err
	}
	l := &talk{g: g, conn: conn.(*tls.Conn), in: bufio.NewReader(conn)}
	if err := l.hello(); err != nil {
		conn.Close()
		return nil, err
	}
	return l, nil
}

// hello says the client's words and wants the server's.
func (l *talk) hello() error {
	if err := l.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	_, wrote := io.WriteString(l.conn, l.g.hello)
	answer, err := l.in.Peek(len(l.g.answers))
	if err != nil {
		return errors.Join(err, wrote)
	}
	if string(answer) != l.g.answers {
		return fmt.Errorf("the server answers %q", answer)
	}
	l.in.Discard(l.in.Buffered())
	return nil
}

func (l *talk) shown() *x509.Certificate { return l.conn.ConnectionState().PeerCertificates[0] }

// lets wants a client to get in, and returns the certificate that it was shown.
func (g *gate) lets(own *peer) *x509.Certificate {
	g.h.t.Helper()
	l, err := g.connect(g.h.t.Context(), g.trust, own)
	if err != nil {
		g.h.t.Fatalf("%v; the server says: %s", err, lastOf(g.Output(), 3000))
	}
	l.conn.Close()
	return l.shown()
}

// lastOf is the end of a text.
func lastOf(text string, n int) string { return text[max(0, len(text)-n):] }

// turnsAway wants a client to be refused, as whoever it is says with an alert or by hanging up.
func (g *gate) turnsAway(own *peer, says string) {
	g.h.t.Helper()
	l, err := g.connect(g.h.t.Context(), g.trust, own)
	if err == nil {
		l.conn.Close()
		g.h.t.Errorf("a client gets in, whom it should refuse with %q", says)
		return
	}
	if !strings.Contains(err.Error(), says) {
		g.h.t.Errorf("a client is refused with %v, not %q", err, says)
	}
}

// serves wants a certificate on the wire, and the authority to know that it is.
func (g *gate) serves(want *x509.Certificate) {
	g.h.t.Helper()
	serial := cert.FormatSerial(want.SerialNumber)
	if seen := onTheWire(g.h.t, g.h, g.address); seen != serial {
		g.h.t.Errorf("%s is served, not %s", seen, serial)
	}
	if seen := g.h.observed(g.recipe); seen.State != client.PlacementServed || seen.Served != serial || seen.Serial != serial {
		g.h.t.Errorf("reported is %+v, not %s served", seen, serial)
	}
}

// rekey gives the host another name, for which it gets another key, and wants that served by the same process.
func (g *gate) rekey(prefix string) {
	t := g.h.t
	t.Helper()
	before := g.leaf()
	g.world.chancery(t, "host", "set", g.h.name, "--dns", prefix+"-"+g.h.name)
	g.h.converge()
	after := g.leaf()
	if string(after.RawSubjectPublicKeyInfo) == string(before.RawSubjectPublicKeyInfo) {
		t.Error("it was not re-keyed")
	}
	g.serves(after)
	if shown := g.lets(g.good); !shown.Equal(after) {
		t.Errorf("a new connection is shown %s", cert.FormatSerial(shown.SerialNumber))
	}
	g.alive()
}

func (g *gate) alive() {
	g.h.t.Helper()
	select {
	case <-g.Done():
		g.h.t.Errorf("it ended: %s", g.Output())
	default:
	}
}

// mends wants the agent to repair what somebody changed.
func (g *gate) mends(key os.FileMode) {
	t, h := g.h.t, g.h
	t.Helper()
	leaf := g.leaf()
	must(t, os.Chmod(h.path(g.key), 0o644))
	must(t, os.WriteFile(h.path(g.cert), keyfile.EncodeCertificates(selfMade(t, g.trust, "x").pair.Leaf), 0o644))
	h.converge()
	if mended := strings.Join(h.observed(g.recipe).Repaired, "\n"); !strings.Contains(mended, g.key) || !strings.Contains(mended, g.cert) {
		t.Errorf("reported is %q", mended)
	}
	if st, err := os.Stat(h.path(g.key)); err != nil || st.Mode() != key || !g.leaf().Equal(leaf) {
		t.Errorf("not mended: %v %v", st, err)
	}
	g.serves(leaf)
	g.lets(g.good)
}

// fails renews while a step of the host's own spoils the key, and wants the old pair back, in use, and the reason told.
func (g *gate) fails(steps, script, says string) {
	t, h := g.h.t, g.h
	t.Helper()
	before := g.leaf()
	other, err := keyfile.EncodePKCS8(ecKey(t))
	must(t, err)
	h.write("/opt/other.key", string(other))
	names := strings.NewReplacer("SPOIL", h.inside("/opt/spoil"), "OTHER", h.inside("/opt/other.key"), "KEY", h.inside(g.key), "DONE", h.inside("/opt/spoilt"))
	h.write("/opt/spoil", names.Replace(script))
	must(t, os.Chmod(h.path("/opt/spoil"), 0o755))
	own := ""
	if text, err := os.ReadFile(h.path("/etc/chancery/agent.yaml")); err == nil {
		own = string(text)
	}
	h.write("/etc/chancery/agent.yaml", own+"steps:\n  "+g.recipe+":\n    "+names.Replace(steps)+"\n")
	g.world.chancery(t, "host", "set", h.name, "--dns", "other-"+h.name)
	h.refuses("the old files are back")
	if seen := h.observed(g.recipe); seen.State != client.PlacementFailed || !strings.Contains(seen.Message, says) ||
		seen.Serial != cert.FormatSerial(before.SerialNumber) {
		t.Errorf("reported is %+v, where %q is expected", seen, says)
	}
	if shown := g.lets(g.good); !shown.Equal(before) {
		t.Errorf("%s is served, not the old certificate", shown.Subject)
	}
	h.write("/etc/chancery/agent.yaml", own)
	h.converge()
	if after := g.leaf(); after.Equal(before) {
		t.Error("the new pair is not placed when it can be")
	} else {
		g.serves(after)
	}
	g.alive()
}
