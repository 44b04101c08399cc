package cert

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"
	"time"
)

// BenchmarkIssue compares issuing by the encoder here, lints included, with x509.CreateCertificate. The template is the
// same: names, usages, key identifiers, pointers.
func BenchmarkIssue(b *testing.B) {
	caKey, leaf := p256(b), p256(b)
	issuer := newRoot(b, caKey)
	issuer.CRLDistributionPoints = []string{"http://pki.example.com/crl/1"}
	issuer.OCSPServers = []string{"http://pki.example.com/ocsp"}
	spki := spkiOf(b, leaf)
	b.Run("own", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			serial, _ := NewSerial()
			template := leafTemplate()
			template.CRLDistributionPoints, template.OCSPServers = issuer.CRLDistributionPoints, issuer.OCSPServers
			tbs, err := Build(template, spki, serial, issuer)
			if err != nil {
				b.Fatal(err)
			}
			linted, err := tbs.Lint(Lints{})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := linted.Sign(caKey); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("profile", func(b *testing.B) {
		p, err := BuiltinProfile("server")
		if err != nil {
			b.Fatal(err)
		}
		der, err := CreateCSR(&CSRTemplate{SAN: []GeneralName{DNSName("host1.example.com")}}, leaf)
		if err != nil {
			b.Fatal(err)
		}
		csr, err := ParseCSR(der)
		if err != nil {
			b.Fatal(err)
		}
		request := Request{CSR: csr, Caller: Caller{Name: "host1", Roles: []string{"host"},
			Entitlements: map[string][]string{"host.names": {"host1.example.com"}}}}
		b.ReportAllocs()
		for b.Loop() {
			linted, err := p.Build(request, issuer, testNow)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := linted.Sign(caKey); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("x509", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			serial, _ := NewSerial()
			template := &x509.Certificate{
				SerialNumber: serial, Subject: pkix.Name{CommonName: "host1.example.com"}, NotBefore: testNow.Add(-5 * time.Minute),
				NotAfter: testNow.AddDate(0, 0, 90), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
				ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"host1.example.com"},
				CRLDistributionPoints: issuer.CRLDistributionPoints, OCSPServer: issuer.OCSPServers,
			}
			if _, err := x509.CreateCertificate(rand.Reader, template, issuer.Certificate, leaf.Public(), caKey); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkLint is the price of the lints alone.
func BenchmarkLint(b *testing.B) {
	issuer := newRoot(b, p256(b))
	serial, _ := NewSerial()
	tbs, err := Build(leafTemplate(), spkiOf(b, p256(b)), serial, issuer)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := tbs.Lint(Lints{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParseCSR is what a hostile caller makes the authority pay at most once a request.
func BenchmarkParseCSR(b *testing.B) {
	der, err := CreateCSR(&CSRTemplate{SAN: []GeneralName{DNSName("host1.example.com")}}, p256(b))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := ParseCSR(der); err != nil {
			b.Fatal(err)
		}
	}
}
