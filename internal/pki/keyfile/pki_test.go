package keyfile

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"
)

// path is a root, an intermediate and a leaf with their keys.
type path struct {
	rootKey, caKey, key crypto.Signer
	root, ca, leaf      *x509.Certificate
}

func (p *path) chain() []*x509.Certificate { return []*x509.Certificate{p.leaf, p.ca, p.root} }

func newPath(t *testing.T, a Algorithm) *path {
	t.Helper()
	p := &path{rootKey: generate(t, ECDSAP256), caKey: generate(t, ECDSAP256), key: generate(t, a)}
	p.root = certify(t, pkix.Name{CommonName: "Test Root"}, p.rootKey, nil, p.rootKey)
	p.ca = certify(t, pkix.Name{CommonName: "Test CA"}, p.caKey, p.root, p.rootKey)
	p.leaf = certify(t, pkix.Name{CommonName: "host1.example.test"}, p.key, p.ca, p.caKey)
	return p
}

// certify signs a certificate; without an issuer it signs itself. Whatever is not named host… is a CA.
func certify(t *testing.T, name pkix.Name, key crypto.Signer, issuer *x509.Certificate, issuerKey crypto.Signer) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		t.Fatal(err)
	}
	leaf := len(name.CommonName) > 4 && name.CommonName[:4] == "host"
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), Subject: name, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		BasicConstraintsValid: true, IsCA: !leaf, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if template.IsCA {
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	if issuer == nil {
		issuer = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), issuerKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func publicDER(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func bigOne() *big.Int { return big.NewInt(1) }
