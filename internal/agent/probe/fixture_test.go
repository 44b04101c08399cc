package probe

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/pki/keyfile"
)

// TestMain lets the test binary be the child that tries to read as another user.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "agent" && os.Args[2] == "readable" {
		os.Exit(ReadableMain(os.Args[3:]))
	}
	os.Exit(m.Run())
}

// holder is a certificate and its key.
type holder struct {
	cert *x509.Certificate
	key  crypto.Signer
	path []*x509.Certificate // leaf first, the root left out
}

// issue makes a certificate under issuer, or one that is self-signed where that is nil. Each change edits the template.
func issue(t testing.TB, issuer *holder, name string, changes ...func(*x509.Certificate)) *holder {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return issueFor(t, issuer, key, name, changes...)
}

func issueFor(t testing.TB, issuer *holder, key crypto.Signer, name string, changes ...func(*x509.Certificate)) *holder {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"probe"}, CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	for _, change := range changes {
		change(template)
	}
	parent, signer := template, key
	if issuer != nil {
		parent, signer = issuer.cert, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	h := &holder{cert: c, key: key, path: []*x509.Certificate{c}}
	if issuer != nil && string(issuer.cert.RawSubject) != string(issuer.cert.RawIssuer) {
		h.path = append(h.path, issuer.path...)
	}
	return h
}

func ca(c *x509.Certificate) {
	c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
}

func server(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		for _, n := range names {
			if a := net.ParseIP(n); a != nil {
				c.IPAddresses = append(c.IPAddresses, a)
			} else {
				c.DNSNames = append(c.DNSNames, n)
			}
		}
	}
}

func client(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) }

func expired(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }

// office is a root, an issuer under it, and a leaf of the issuer for localhost.
type office struct{ root, issuer, leaf *holder }

func newOffice(t testing.TB) *office {
	t.Helper()
	o := new(office)
	o.root = issue(t, nil, "root "+t.Name(), ca)
	o.issuer = issue(t, o.root, "issuer "+t.Name(), ca)
	o.leaf = issue(t, o.issuer, "localhost", server("localhost", "127.0.0.1"), client)
	return o
}

func (o *office) roots() []*x509.Certificate { return []*x509.Certificate{o.root.cert} }

func (h *holder) tls() *tls.Certificate {
	c := &tls.Certificate{PrivateKey: h.key}
	for _, p := range h.path {
		c.Certificate = append(c.Certificate, p.Raw)
	}
	return c
}

// files writes the certificates and the key of the first into dir and returns the paths.
func (h *holder) files(t testing.TB, dir, name string, path ...*x509.Certificate) (certificate, key string) {
	t.Helper()
	if len(path) == 0 {
		path = h.path
	}
	encoded, err := keyfile.EncodePKCS8(h.key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	write(t, certificate, keyfile.EncodeCertificates(path...))
	write(t, key, encoded)
	return certificate, key
}

// write puts a file into place in one step, since a server may read it at any time.
func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// wantError fails unless err says all of the words.
func wantError(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; one was expected that says %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not say %q: %v", w, err)
		}
	}
}
