package cert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/internal/fault"
)

// testNow is the time of all tests that need one.
var testNow = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

func p256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// rsaKey is made once: it takes a tenth of a second.
var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func ed25519Key(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func spkiOf(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	spki, err := MarshalPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return spki
}

func mustName(t testing.TB, text string) Name {
	t.Helper()
	n, err := ParseName(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func rootTemplate(t testing.TB) *Template {
	return &Template{
		Subject: mustName(t, "CN=Root,O=Example"), NotBefore: testNow.Add(-time.Hour), NotAfter: testNow.AddDate(10, 0, 0),
		BasicConstraints: &BasicConstraints{CA: true, PathLen: -1}, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		KeyUsageCritical: true,
	}
}

// newRoot makes a self-signed issuer with the key; change may alter its template.
func newRoot(t testing.TB, key crypto.Signer, change ...func(*Template)) *Issuer {
	t.Helper()
	template := rootTemplate(t)
	for _, f := range change {
		f(template)
	}
	serial, err := NewSerial()
	if err != nil {
		t.Fatal(err)
	}
	tbs, err := BuildSelfSigned(template, spkiOf(t, key), serial, 0)
	if err != nil {
		t.Fatal(err)
	}
	linted, err := tbs.Lint(Lints{})
	if err != nil {
		t.Fatal(err)
	}
	der, err := linted.SignVerified(key)
	if err != nil {
		t.Fatal(err)
	}
	return &Issuer{Certificate: parse(t, der)}
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func leafTemplate() *Template {
	return &Template{
		Subject: CommonName("host1.example.com"), NotBefore: testNow.Add(-5 * time.Minute), NotAfter: testNow.AddDate(0, 0, 90),
		BasicConstraints: &BasicConstraints{}, KeyUsage: x509.KeyUsageDigitalSignature, KeyUsageCritical: true,
		ExtKeyUsage: []asn1.ObjectIdentifier{OIDServerAuth}, SAN: []GeneralName{DNSName("host1.example.com")},
	}
}

// issue builds, lints and signs, and returns the parsed certificate.
func issue(t testing.TB, template *Template, spki []byte, issuer *Issuer, signer crypto.Signer, off ...string) *x509.Certificate {
	t.Helper()
	serial, err := NewSerial()
	if err != nil {
		t.Fatal(err)
	}
	tbs, err := Build(template, spki, serial, issuer)
	if err != nil {
		t.Fatal(err)
	}
	linted, err := tbs.Lint(Lints{Off: off})
	if err != nil {
		t.Fatal(err)
	}
	der, err := linted.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der)
}

// refused fails the test unless err is a refusal of the kind that says all of the words.
func refused(t testing.TB, err error, kind fault.Kind, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("accepted; want a refusal that says %q", words)
		return
	}
	if !fault.Is(err, kind) {
		t.Errorf("%v is of kind %s, want %s", err, fault.KindOf(err), kind)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("refusal %q does not say %q", err, word)
		}
	}
}

// run runs a program that the tests need; its absence is a failure and not a reason to skip.
func run(t testing.TB, stdin []byte, name string, args ...string) string {
	t.Helper()
	program, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("this test needs %s: %v", name, err)
	}
	command := exec.Command(program, args...)
	command.Stdin = strings.NewReader(string(stdin))
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func writePEM(t testing.TB, kind string, der []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func extensionOf(c *x509.Certificate, oid asn1.ObjectIdentifier) []byte {
	for _, e := range c.Extensions {
		if e.Id.Equal(oid) {
			return e.Value
		}
	}
	return nil
}
