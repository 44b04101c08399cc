package path_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// testNow is the time of the tests whose certificates no other program reads.
var testNow = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

func p256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func caTemplate(commonName string) *cert.Template {
	organization := cert.RDN{{Type: cert.OIDOrganization, Value: "Example"}}
	return &cert.Template{
		Subject:   append(cert.Name{organization}, cert.CommonName(commonName)...),
		NotBefore: testNow.Add(-time.Hour), NotAfter: testNow.AddDate(10, 0, 0),
		BasicConstraints: &cert.BasicConstraints{CA: true, PathLen: -1}, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		KeyUsageCritical: true,
	}
}

// sign signs a template past all lints: what a path check must refuse cannot be issued. Without an issuer it is self-signed.
func sign(t *testing.T, template *cert.Template, key *ecdsa.PrivateKey, issuer *x509.Certificate, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	serial, err := cert.NewSerial()
	if err != nil {
		t.Fatal(err)
	}
	spki, err := cert.MarshalPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	var tbs *cert.TBS
	if issuer == nil {
		tbs, err = cert.BuildSelfSigned(template, spki, serial, cert.ECDSAWithSHA256)
	} else {
		tbs, err = cert.Build(template, spki, serial, &cert.Issuer{Certificate: issuer, Algorithm: cert.ECDSAWithSHA256})
	}
	if err != nil {
		t.Fatal(err)
	}
	signature, err := cert.ECDSAWithSHA256.Sign(by, tbs.DER())
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs.DER())
		b.AddBytes(cert.ECDSAWithSHA256.Identifier())
		b.AddASN1BitString(signature)
	})
	c, err := x509.ParseCertificate(b.BytesOrPanic())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func policiesOf(t *testing.T, texts ...string) []cert.Policy {
	t.Helper()
	policies := make([]cert.Policy, len(texts))
	for i, text := range texts {
		oid, err := cert.ParseOID(text)
		if err != nil {
			t.Fatal(err)
		}
		policies[i].ID = oid
	}
	return policies
}

func namesOf(t *testing.T, texts ...string) []cert.GeneralName {
	t.Helper()
	names := make([]cert.GeneralName, len(texts))
	for i, text := range texts {
		name, err := cert.ParseGeneralName(text)
		if err != nil {
			t.Fatal(err)
		}
		names[i] = name
	}
	return names
}

// refused fails the test unless err is a refusal of the kind that says all of the words.
func refused(t *testing.T, err error, kind fault.Kind, words ...string) {
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
