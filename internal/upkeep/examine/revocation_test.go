package examine

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"chancery/internal/run/consumer"
)

// list signs a CRL.
func (h *holder) list(t testing.TB, next time.Duration, revoked ...*x509.Certificate) []byte {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-48 * time.Hour), NextUpdate: time.Now().Add(next)}
	for _, c := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now().Add(-time.Hour), ReasonCode: 1})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, h.cert, h.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestCRLs(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	other := issue(t, nil, "other", ca)
	twin := issue(t, nil, "issuer of "+t.Name(), ca) // another key of the same name
	answers := map[string]func(*x509.Certificate) []byte{
		"/fresh":   func(*x509.Certificate) []byte { return o.issuer.list(t, time.Hour) },
		"/stale":   func(*x509.Certificate) []byte { return o.issuer.list(t, -time.Hour) },
		"/revoked": func(c *x509.Certificate) []byte { return o.issuer.list(t, time.Hour, c) },
		"/other":   func(*x509.Certificate) []byte { return other.list(t, time.Hour) },
		"/forged":  func(*x509.Certificate) []byte { return twin.list(t, time.Hour) },
		"/garbage": func(*x509.Certificate) []byte { return []byte("<html>not found</html>") },
		"/large":   func(*x509.Certificate) []byte { return make([]byte, mostCRL+1) },
	}
	var served *x509.Certificate
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch make := answers[r.URL.Path]; {
		case make != nil:
			_, _ = w.Write(make(served))
		case r.URL.Path == "/away":
			http.Redirect(w, r, "https://127.0.0.1:1/", http.StatusFound)
		case r.URL.Path == "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	}))
	defer web.Close()
	for path, rule := range map[string]string{
		"/fresh": "", "/stale": "wire.revocation.stale", "/revoked": "wire.revocation.revoked", "/other": "wire.revocation.forged", "/forged": "wire.revocation.forged",
		"/garbage": "wire.revocation.forged", "/large": "wire.revocation.unreachable", "/none": "wire.revocation.unreachable",
		"/away": "wire.revocation.unreachable", "/loop": "wire.revocation.unreachable",
	} {
		leaf := issue(t, o.issuer, "localhost", server("localhost"), func(c *x509.Certificate) { c.CRLDistributionPoints = []string{web.URL + path} })
		served = leaf.cert
		found := at(t, leaf.sServer(t, leaf.path), PortOptions{Trust: o.trust()})
		if rule == "" {
			want(t, found)
		} else {
			want(t, found, rule)
		}
	}
	for _, address := range []string{"ldap://127.0.0.1/cn=x", "https://127.0.0.1:1/", "file:///etc/passwd", "http://user:secret@127.0.0.1:1/"} {
		leaf := issue(t, o.issuer, "localhost", server("localhost"), func(c *x509.Certificate) { c.CRLDistributionPoints = []string{address} })
		found := at(t, leaf.sServer(t, leaf.path), PortOptions{Trust: o.trust()})
		want(t, found, "wire.revocation.scheme")
		if strings.Contains(listing(found), "secret") {
			t.Errorf("a password is told:\n%s", listing(found))
		}
	}
	bare := issue(t, o.issuer, "localhost", server("localhost"))
	want(t, at(t, bare.sServer(t, bare.path), PortOptions{Trust: o.trust()}), "wire.revocation.none")
}

// TestMissingIssuerIsFetched: the certificate says where its issuer is, and so what is missing has a name.
func TestMissingIssuerIsFetched(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(o.issuer.cert.Raw) }))
	defer web.Close()
	leaf := issue(t, o.issuer, "localhost", server("localhost"), func(c *x509.Certificate) { c.IssuingCertificateURL = []string{web.URL} })
	address := leaf.sServer(t, leaf.path[:1])
	found := at(t, address, PortOptions{Trust: o.trust()})
	want(t, found, "wire.path.incomplete", "wire.revocation.none")
	wantOne(t, found, "wire.path.incomplete", "CN=issuer of "+t.Name(), "is missing")
	wantOne(t, at(t, address, PortOptions{}), "wire.path.incomplete", "CN=issuer of "+t.Name(), "is missing")
}

// answer signs an OCSP answer.
func (h *holder) answer(t testing.TB, c *x509.Certificate, status int, next time.Duration, responder *holder) []byte {
	t.Helper()
	by, template := h, ocsp.Response{Status: status, SerialNumber: c.SerialNumber, ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: time.Now().Add(next), RevokedAt: time.Now().Add(-time.Hour), RevocationReason: 1}
	if responder != nil {
		by, template.Certificate = responder, responder.cert
	}
	der, err := ocsp.CreateResponse(h.cert, by.cert, template, by.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestOCSP(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	other := issue(t, nil, "other", ca)
	signs := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning} }
	delegate, impostor, late := issue(t, o.issuer, "responder", signs), issue(t, o.issuer, "impostor", server("x")), issue(t, o.issuer, "late", signs, expired)
	var c *x509.Certificate
	answers := map[string]func() []byte{
		"/good":     func() []byte { return o.issuer.answer(t, c, ocsp.Good, time.Hour, nil) },
		"/delegate": func() []byte { return o.issuer.answer(t, c, ocsp.Good, time.Hour, delegate) },
		"/revoked":  func() []byte { return o.issuer.answer(t, c, ocsp.Revoked, time.Hour, nil) },
		"/unknown":  func() []byte { return o.issuer.answer(t, c, ocsp.Unknown, time.Hour, nil) },
		"/stale":    func() []byte { return o.issuer.answer(t, c, ocsp.Good, -time.Hour, nil) },
		"/impostor": func() []byte { return o.issuer.answer(t, c, ocsp.Good, time.Hour, impostor) },
		"/late":     func() []byte { return o.issuer.answer(t, c, ocsp.Good, time.Hour, late) },
		"/other":    func() []byte { return other.answer(t, c, ocsp.Good, time.Hour, nil) },
		"/another":  func() []byte { return o.issuer.answer(t, o.leaf.cert, ocsp.Good, time.Hour, nil) },
		"/refused":  func() []byte { return ocsp.UnauthorizedErrorResponse },
		"/later":    func() []byte { return ocsp.TryLaterErrorResponse },
		"/garbage":  func() []byte { return []byte("hello") },
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			_, _ = w.Write(answers[r.URL.Path]())
		}
	}))
	defer web.Close()
	for path, rule := range map[string]string{
		"/good": "", "/delegate": "", "/revoked": "wire.revocation.revoked", "/unknown": "wire.revocation.unknown", "/stale": "wire.revocation.stale",
		"/impostor": "wire.revocation.forged", "/late": "wire.revocation.forged", "/other": "wire.revocation.forged", "/another": "wire.revocation.forged",
		"/refused": "wire.revocation.unknown", "/later": "wire.revocation.unreachable", "/garbage": "wire.revocation.forged",
	} {
		leaf := issue(t, o.issuer, "localhost", server("localhost"), func(c *x509.Certificate) { c.OCSPServer = []string{web.URL + path} })
		c = leaf.cert
		served := say(t, func(n net.Conn) {
			_ = tls.Server(n, &tls.Config{Certificates: []tls.Certificate{*leaf.pair()}}).Handshake()
		})
		found := at(t, served, PortOptions{Trust: o.trust()})
		if rule == "" {
			want(t, found)
		} else {
			want(t, found, rule)
		}
	}
}

func TestStaples(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	demand := func(c *x509.Certificate) { // RFC 7633: status_request
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte{0x30, 3, 2, 1, 5}})
	}
	leaf := issue(t, o.issuer, "localhost", server("localhost"), known, demand)
	for name, c := range map[string]struct {
		staple []byte
		broken []string
	}{
		"good":    {o.issuer.answer(t, leaf.cert, ocsp.Good, time.Hour, nil), nil},
		"none":    {nil, []string{"wire.staple.missing"}},
		"stale":   {o.issuer.answer(t, leaf.cert, ocsp.Good, -time.Hour, nil), []string{"wire.staple.invalid"}},
		"another": {o.issuer.answer(t, o.leaf.cert, ocsp.Good, time.Hour, nil), []string{"wire.staple.invalid"}},
		"garbage": {[]byte("\x1b[2J"), []string{"wire.staple.invalid"}},
		"revoked": {o.issuer.answer(t, leaf.cert, ocsp.Revoked, time.Hour, nil), []string{"wire.revocation.revoked"}},
	} {
		t.Run(name, func(t *testing.T) {
			pair := leaf.pair()
			pair.OCSPStaple = c.staple
			served := say(t, func(n net.Conn) { _ = tls.Server(n, &tls.Config{Certificates: []tls.Certificate{*pair}}).Handshake() })
			want(t, at(t, served, PortOptions{Trust: o.trust(), Offline: true}), c.broken...)
		})
	}
}

// TestOpenSSLResponder asks a responder that is not ours.
func TestOpenSSLResponder(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	address, err := consumer.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	good := issue(t, o.issuer, "localhost", server("localhost"), func(c *x509.Certificate) { c.OCSPServer = []string{"http://" + address + "/"} })
	bad := issue(t, o.issuer, "localhost", server("localhost"), func(c *x509.Certificate) { c.OCSPServer = []string{"http://" + address + "/"} })
	dir := t.TempDir()
	end := time.Now().Add(24 * time.Hour).UTC().Format("060102150405Z")
	index := fmt.Sprintf("V\t%s\t\t%X\tunknown\t/CN=localhost\nR\t%s\t%s,keyCompromise\t%X\tunknown\t/CN=localhost\n", end, good.cert.SerialNumber, end,
		time.Now().Add(-time.Hour).UTC().Format("060102150405Z"), bad.cert.SerialNumber)
	put(t, filepath.Join(dir, "index.txt"), []byte(index), 0o600)
	issuer, key := o.issuer.files(t)
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(address)
	question, err := ocsp.CreateRequest(good.cert, o.issuer.cert, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := consumer.Start(context.WithoutCancel(t.Context()), consumer.Program{
		Path: path, Args: []string{"ocsp", "-index", filepath.Join(dir, "index.txt"), "-port", port, "-rsigner", issuer, "-rkey", key, "-CA", issuer, "-nmin", "60"},
		Ready: func(ctx context.Context) error { // it waits for ever on a connection that asks nothing
			_, err := newFetcher(reach{at: netip.MustParseAddr("127.0.0.1")}).do(ctx, "http://"+address+"/", question, mostOCSP)
			return err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop() })
	want(t, at(t, good.sServer(t, good.path), PortOptions{Trust: o.trust()}))
	wantOne(t, at(t, bad.sServer(t, bad.path), PortOptions{Trust: o.trust()}), "wire.revocation.revoked", "keyCompromise")
}
