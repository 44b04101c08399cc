package root

import (
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
)

func newRoot(t *testing.T, o Options) *Root {
	t.Helper()
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(o, key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func name(t *testing.T, text string) cert.Name {
	t.Helper()
	n, err := cert.ParseName(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func spkiOf(t *testing.T) []byte {
	t.Helper()
	key, err := keyfile.Generate(keyfile.ECDSAP384, 0)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := cert.MarshalPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return spki
}

func writePEM(t *testing.T, dir, file, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(dir, file)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestOpenSSLAccepts has OpenSSL and GnuTLS check an issuer under a root, with the root's CRL.
func TestOpenSSLAccepts(t *testing.T) {
	constraint, err := cert.ParseGeneralName("dns:fleet.example")
	if err != nil {
		t.Fatal(err)
	}
	r := newRoot(t, Options{Subject: name(t, "CN=Root,O=Example"), PathLen: 1, Constraints: &cert.NameConstraints{Permitted: []cert.GeneralName{constraint}}})
	issuer, err := r.SignIssuer(Options{Subject: name(t, "CN=Issuer,O=Example"), PathLen: 0}, spkiOf(t),
		cert.Issuer{CRLDistributionPoints: []string{"http://pki.example/crl/root.crl"}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	list, err := r.SignCRL(big.NewInt(1), nil, time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	rootFile := writePEM(t, dir, "root.pem", "CERTIFICATE", r.Certificate.Raw)
	issuerFile := writePEM(t, dir, "issuer.pem", "CERTIFICATE", issuer.Raw)
	crlFile := writePEM(t, dir, "root.crl", "X509 CRL", list)
	for _, args := range [][]string{
		{"openssl", "verify", "-x509_strict", "-crl_check", "-CAfile", rootFile, "-CRLfile", crlFile, issuerFile},
		{"certtool", "--verify-crl", "--load-ca-certificate", rootFile, "--infile", crlFile},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	// GnuTLS holds the common name of a CA that is judged by itself against DNS constraints, so it judges one under a root without.
	plain := newRoot(t, Options{Subject: name(t, "CN=Root,O=Example"), PathLen: 1})
	below, err := plain.SignIssuer(Options{Subject: name(t, "CN=Issuer,O=Example"), PathLen: 0}, spkiOf(t), cert.Issuer{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("certtool", "--verify", "--load-ca-certificate", writePEM(t, dir, "plain.pem", "CERTIFICATE", plain.Certificate.Raw),
		"--infile", writePEM(t, dir, "below.pem", "CERTIFICATE", below.Raw)).CombinedOutput()
	if err != nil {
		t.Errorf("certtool: %v: %s", err, out)
	}
	if !issuer.MaxPathLenZero || issuer.NotAfter.After(r.Certificate.NotAfter) {
		t.Errorf("issuer has path length %d and ends %v", issuer.MaxPathLen, issuer.NotAfter)
	}
}

func TestRevokedIssuerIsInTheCRL(t *testing.T) {
	r := newRoot(t, Options{Subject: name(t, "CN=Root"), PathLen: -1})
	der, err := r.SignCRL(big.NewInt(7), []crl.Entry{{Serial: big.NewInt(99), RevokedAt: time.Now(), Reason: crl.CACompromise}}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	if len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].ReasonCode != int(crl.CACompromise) {
		t.Fatalf("entries %v", list.RevokedCertificateEntries)
	}
}

func TestIssuerBeyondTheRootIsRefused(t *testing.T) {
	r := newRoot(t, Options{Subject: name(t, "CN=Root"), PathLen: 0, Validity: 24 * time.Hour})
	_, err := r.SignIssuer(Options{Subject: name(t, "CN=Issuer"), Validity: 48 * time.Hour}, spkiOf(t), cert.Issuer{}, time.Now())
	if !fault.Is(err, fault.Invalid) {
		t.Fatalf("error %v", err)
	}
}

func TestOpenRefusesAnotherKeyAndNoRoot(t *testing.T) {
	r, other := newRoot(t, Options{Subject: name(t, "CN=A"), PathLen: 1}), newRoot(t, Options{Subject: name(t, "CN=B"), PathLen: 1})
	if _, err := Open(r.Certificate, other.Signer); fault.KindOf(err) == fault.Internal {
		t.Errorf("another key: %v", err)
	}
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := cert.MarshalPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := r.SignIssuer(Options{Subject: name(t, "CN=C")}, spki, cert.Issuer{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(issuer, key); !fault.Is(err, fault.Invalid) {
		t.Errorf("an issuer that is no root: %v", err)
	}
	if _, err := Open(r.Certificate, r.Signer); err != nil {
		t.Errorf("the root itself: %v", err)
	}
}

func TestParseConstraints(t *testing.T) {
	c, err := ParseConstraints([]string{"+dns:example.com", "dns:example.net", "-ip:10.0.0.0/8", "!dns:other.example"})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Permitted) != 2 || len(c.Excluded) != 2 || c.Excluded[0].String() != "ip:10.0.0.0/8" {
		t.Errorf("got %v", c)
	}
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"+", "-", "+ip:10.0.0.0/33", "dns:-", "dns:*.example.com", "nonsense:x"} {
		c, err := ParseConstraints([]string{bad})
		if err == nil {
			_, err = New(Options{Subject: name(t, "CN=Root"), Constraints: c}, key, time.Now())
		}
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: error %v", bad, err)
		}
	}
}
