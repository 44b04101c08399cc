package cert

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// fullTemplate has every extension there is.
func fullTemplate(t testing.TB) *Template {
	skip, proxy := 2, 1
	return &Template{
		Subject:   mustName(t, "CN=Sub CA,OU=Ops,O=Exämple,C=DE"),
		NotBefore: testNow, NotAfter: testNow.AddDate(5, 0, 0),
		BasicConstraints: &BasicConstraints{CA: true, PathLen: 0},
		KeyUsage:         x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment,
		KeyUsageCritical: true,
		ExtKeyUsage: []asn1.ObjectIdentifier{OIDServerAuth, OIDClientAuth, OIDCodeSigning, OIDOCSPSigning, OIDTimeStamping,
			OIDEmailProtection, {1, 2, 3, 4, 5}},
		SAN:                   append(testCSR(t).SAN, IPName(netip.MustParseAddr("::ffff:192.0.2.9"))),
		CRLDistributionPoints: []string{"http://a.example.com/1.crl", "http://b.example.com/1.crl"},
		FreshestCRL:           []string{"http://a.example.com/delta.crl"},
		OCSPServers:           []string{"http://ocsp.example.com/"}, CAIssuers: []string{"http://a.example.com/ca.cer"},
		Policies: []Policy{{ID: asn1.ObjectIdentifier{1, 2, 3, 4}, CPS: "http://example.com/cps", UserNotice: "für Tests"},
			{ID: OIDAnyPolicy}},
		InhibitAnyPolicy: &skip,
		NameConstraints: &NameConstraints{Permitted: namesOf(t, "dns:example.com", "ip:10.0.0.0/8", "email:example.com"),
			Excluded: namesOf(t, "dns:bad.example.com", "ip:2001:db8::/32", "dirname:O=Evil")},
		TLSFeatures: []int{5, 17}, OCSPNoCheck: true,
		ProxyCertInfo:   &ProxyCertInfo{PathLen: &proxy, Language: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 21, 1}, Policy: []byte("p")},
		Extra:           []Extension{{ID: asn1.ObjectIdentifier{1, 2, 3, 99}, Value: []byte{4, 1, 7}}},
		SubjectUniqueID: []byte{1, 2, 3}, IssuerUniqueID: []byte{4, 5},
	}
}

func namesOf(t testing.TB, texts ...string) (result []GeneralName) {
	for _, text := range texts {
		g, err := ParseGeneralName(text)
		if err != nil {
			t.Fatal(err)
		}
		result = append(result, g)
	}
	return result
}

// TestFullCertificate has crypto/x509, OpenSSL and certtool read a certificate with everything in it.
func TestFullCertificate(t *testing.T) {
	key := p256(t)
	issuer := newRoot(t, key)
	c := issue(t, fullTemplate(t), spkiOf(t, rsaKey()), issuer, key, "unique-identifiers")
	if err := c.CheckSignatureFrom(issuer.Certificate); err != nil {
		t.Error(err)
	}
	if len(c.Extensions) != 16 || !c.IsCA || !c.MaxPathLenZero || len(c.ExtKeyUsage) != 6 || len(c.UnknownExtKeyUsage) != 1 ||
		len(c.PermittedDNSDomains) != 1 || len(c.ExcludedIPRanges) != 1 || len(c.Policies) != 2 || c.InhibitAnyPolicy != 2 ||
		len(c.CRLDistributionPoints) != 2 || len(c.DNSNames) != 2 || len(c.IPAddresses) != 3 || len(c.URIs) != 1 {
		t.Errorf("crypto/x509 reads %+v", c)
	}
	if !bytes.Equal(c.AuthorityKeyId, issuer.Certificate.SubjectKeyId) || len(c.SubjectKeyId) != 20 {
		t.Errorf("key identifiers %x and %x", c.AuthorityKeyId, c.SubjectKeyId)
	}
	text := run(t, c.Raw, "openssl", "x509", "-inform", "DER", "-noout", "-text")
	for _, want := range []string{
		"CA:TRUE, pathlen:0", "Digital Signature, Non Repudiation, Certificate Sign, CRL Sign",
		"TLS Web Server Authentication", "OCSP Signing", "1.2.3.4.5", "Registered ID:1.2.3.4", "URI:http://b.example.com/1.crl",
		"OCSP - URI:http://ocsp.example.com/", "CA Issuers - URI:http://a.example.com/ca.cer", "CPS: http://example.com/cps",
		"Explicit Text: f", "X509v3 Any Policy", "X509v3 Inhibit Any Policy: critical", "DNS:bad.example.com",
		"IP:10.0.0.0/255.0.0.0", "DirName:O = Evil", "status_request", "OCSP No Check", "Path Length Constraint: 01",
		"Freshest CRL", "Issuer Unique ID:", "Subject Unique ID:", "1.2.3.99", "IP Address:192.0.2.9", "othername: UPN::a@b",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("OpenSSL does not print %q", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
	run(t, c.Raw, "openssl", "asn1parse", "-inform", "DER")
	text = run(t, c.Raw, "certtool", "-i", "--inder")
	for _, want := range []string{"Certificate Authority (CA): TRUE", "Path Length Constraint: 0", "Non repudiation.",
		"1.2.3.4.5", "DNSname: host1.example.com", "URI: http://b.example.com/1.crl",
		"Access Location URI: http://ocsp.example.com/", "OCSP signing.", "Status Request(5)", "10.0.0.0/8",
		"2.5.29.32.0", "Note: für Tests", "URI: http://example.com/cps", "Inhibit anyPolicy skip certs: 2"} {
		if !strings.Contains(text, want) {
			t.Errorf("certtool does not print %q:\n%s", want, text)
		}
	}
}

// TestExtensionsAgreeWithX509 compares octet by octet what both encoders make of the same template.
func TestExtensionsAgreeWithX509(t *testing.T) {
	key, leaf := p256(t), p256(t)
	issuer := newRoot(t, key)
	std := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "h"}, NotBefore: testNow, NotAfter: testNow.Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, MaxPathLen: 3, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{"a.example.com"}, EmailAddresses: []string{"a@example.com"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)},
		CRLDistributionPoints: []string{"http://a.example.com/crl"}, OCSPServer: []string{"http://a.example.com/o"},
		IssuingCertificateURL: []string{"http://a.example.com/c"}, PermittedDNSDomains: []string{"example.com"},
		PermittedDNSDomainsCritical: true, SubjectKeyId: SubjectKeyIDOf(spkiOf(t, leaf), KeyIDRFC5280),
	}
	der, err := x509.CreateCertificate(rand.Reader, std, issuer.Certificate, leaf.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	want := parse(t, der)
	tbs, err := Build(&Template{
		Subject: CommonName("h"), NotBefore: testNow, NotAfter: testNow.Add(time.Hour),
		BasicConstraints: &BasicConstraints{CA: true, PathLen: 3}, KeyUsage: std.KeyUsage, KeyUsageCritical: true,
		ExtKeyUsage:           []asn1.ObjectIdentifier{OIDServerAuth, OIDClientAuth},
		SAN:                   namesOf(t, "dns:a.example.com", "email:a@example.com", "ip:192.0.2.1"),
		CRLDistributionPoints: std.CRLDistributionPoints, OCSPServers: std.OCSPServer, CAIssuers: std.IssuingCertificateURL,
		NameConstraints: &NameConstraints{Permitted: namesOf(t, "dns:example.com")},
	}, spkiOf(t, leaf), big.NewInt(7), issuer)
	if err != nil {
		t.Fatal(err)
	}
	linted, err := tbs.Lint(Lints{})
	if err != nil {
		t.Fatal(err)
	}
	der, err = linted.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	got := parse(t, der)
	if !bytes.Equal(got.RawSubject, want.RawSubject) || !bytes.Equal(got.RawIssuer, want.RawIssuer) ||
		len(got.Extensions) != len(want.Extensions) {
		t.Errorf("got %d extensions, want %d", len(got.Extensions), len(want.Extensions))
	}
	compared := 0
	for _, e := range want.Extensions {
		if value := extensionOf(got, e.Id); !bytes.Equal(value, e.Value) {
			t.Errorf("%s: got %x, want %x", ExtensionName(e.Id), value, e.Value)
		}
		compared++
	}
	if compared < 9 {
		t.Errorf("only %d extensions were compared", compared)
	}
}

// TestSignConsumes: what is linted is signed once, by the issuer's key, and also a failure consumes it.
func TestSignConsumes(t *testing.T) {
	key := p256(t)
	issuer := newRoot(t, key)
	build := func() *Linted {
		tbs, err := Build(leafTemplate(), spkiOf(t, p256(t)), big.NewInt(1), issuer)
		if err != nil {
			t.Fatal(err)
		}
		linted, err := tbs.Lint(Lints{})
		if err != nil {
			t.Fatal(err)
		}
		return linted
	}
	linted := build()
	linted.TBS()[len(linted.TBS())-1] ^= 1 // a copy: what was linted stays what it is
	der, err := linted.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	if c := parse(t, der); !bytes.Equal(c.RawTBSCertificate, linted.TBS()) || c.SerialNumber.Cmp(linted.SerialNumber()) != 0 {
		t.Error("what was signed is not what was linted")
	}
	if _, err := linted.Sign(key); !errors.Is(err, ErrConsumed) {
		t.Errorf("a second signature: %v", err)
	}
	linted = build()
	for _, other := range signers(t) {
		if _, err := linted.Sign(other); err == nil {
			t.Error("another key signed")
		}
		break
	}
	if _, err := linted.Sign(key); !errors.Is(err, ErrConsumed) {
		t.Errorf("a failure must consume too, got %v", err)
	}
	linted = build()
	var done sync.WaitGroup
	results := make(chan error, 8)
	for range 8 {
		done.Go(func() { _, err := linted.Sign(key); results <- err })
	}
	done.Wait()
	close(results)
	signed := 0
	for err := range results {
		if err == nil {
			signed++
		}
	}
	if signed != 1 {
		t.Errorf("%d of 8 concurrent calls signed", signed)
	}
	if _, err := Build(leafTemplate(), spkiOf(t, key), big.NewInt(1), nil); err == nil {
		t.Error("built without an issuer")
	}
	if _, err := Build(leafTemplate(), spkiOf(t, key), nil, issuer); err == nil {
		t.Error("built without a serial number")
	}
	if _, err := Build(leafTemplate(), []byte{1}, big.NewInt(1), issuer); err == nil {
		t.Error("built for no key")
	}
}

// TestEveryKeySigns makes a root and a leaf with each kind of key and has OpenSSL verify the path.
func TestEveryKeySigns(t *testing.T) {
	for name, key := range signers(t) {
		issuer := newRoot(t, key)
		c := issue(t, leafTemplate(), spkiOf(t, p256(t)), issuer, key)
		at := testNow.Add(time.Hour).Unix()
		out := run(t, nil, "openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-attime", big.NewInt(at).String(), "-CAfile",
			writePEM(t, "CERTIFICATE", issuer.Certificate.Raw), writePEM(t, "CERTIFICATE", c.Raw))
		if !strings.Contains(out, ": OK") {
			t.Errorf("%s: %s", name, out)
		}
		for a := ECDSAWithSHA256; a.known(); a++ {
			if _, err := a.For(key.Public()); (err == nil) != (signatureAlgorithms[a].family == familyOf(key.Public())) {
				t.Errorf("%s for %s: %v", a, name, err)
			}
			if again, err := ParseSignatureAlgorithm(a.String()); err != nil || again != a {
				t.Errorf("%s is read as %s, %v", a, again, err)
			}
		}
	}
}

// TestTimes holds RFC 5280 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050 on, whole seconds, UTC.
func TestTimes(t *testing.T) {
	key := p256(t)
	east := time.FixedZone("east", 3600)
	for _, c := range []struct {
		at   time.Time
		want string
	}{
		{time.Date(2049, 12, 31, 23, 59, 59, 999, time.UTC), "\x17\x0d491231235959Z"},
		{time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC), "\x18\x0f20500101000000Z"},
		{time.Date(2050, 1, 1, 0, 30, 0, 0, east), "\x17\x0d491231233000Z"},
		{NoExpiry, "\x18\x0f99991231235959Z"},
	} {
		template := rootTemplate(t)
		template.NotAfter = c.at
		tbs, err := BuildSelfSigned(template, spkiOf(t, key), big.NewInt(1), 0)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(tbs.DER(), []byte(c.want)) {
			t.Errorf("%s is not encoded as %q", c.at, c.want)
		}
		if _, err := tbs.Lint(Lints{}); err != nil {
			t.Errorf("%s: %v", c.at, err)
		}
	}
}

func TestSerial(t *testing.T) {
	seen := map[string]bool{}
	var all big.Int
	for range 1000 {
		serial, err := NewSerial()
		if err != nil {
			t.Fatal(err)
		}
		if serial.Sign() <= 0 || serial.BitLen() > 159 || seen[serial.String()] {
			t.Fatalf("serial number %s", serial)
		}
		seen[serial.String()] = true
		all.Or(&all, serial)
		if again, err := ParseSerial(FormatSerial(serial)); err != nil || again.Cmp(serial) != 0 {
			t.Fatalf("%s is read as %s, %v", serial, again, err)
		}
	}
	if all.BitLen() != 159 || len(seen) != 1000 {
		t.Errorf("%d bits were ever set", all.BitLen())
	}
	for text, want := range map[string]string{"0x07AB": "07ab", "1f:03:c9": "1f03c9", " 7 ": "07", "-5": "-05"} {
		if serial, err := ParseSerial(text); err != nil || FormatSerial(serial) != want {
			t.Errorf("%q is read as %v, %v", text, serial, err)
		}
	}
	for _, text := range []string{"", "xyz", "0x", "+5", "1_0", "12 34"} {
		if serial, err := ParseSerial(text); err == nil {
			t.Errorf("%q is read as %s", text, serial)
		}
	}
}

// TestSubjectKeyID compares the methods with OpenSSL ("hash") and certtool (the public key ID).
func TestSubjectKeyID(t *testing.T) {
	key := p256(t)
	c := newRoot(t, key).Certificate
	spki := spkiOf(t, key)
	if !bytes.Equal(c.SubjectKeyId, SubjectKeyIDOf(spki, KeyIDRFC5280)) {
		t.Errorf("the default is %x", c.SubjectKeyId)
	}
	out := run(t, c.Raw, "certtool", "-i", "--inder")
	if id := SubjectKeyIDOf(spki, KeyIDSPKI); !strings.Contains(out, "sha1:"+FormatSerial(new(big.Int).SetBytes(id))) {
		t.Errorf("certtool does not print the public key ID %x:\n%s", id, out)
	}
	if len(SubjectKeyIDOf(spki, KeyIDSHA256)) != 20 || SubjectKeyIDOf(spki, KeyIDNone) != nil ||
		SubjectKeyIDOf([]byte("x"), KeyIDRFC5280) != nil {
		t.Error("RFC 7093 takes 160 bits, and no key has no identifier")
	}
}

// TestTBSIdentity: what is put into a template is what is taken out of the encoding.
func TestTBSIdentity(t *testing.T) {
	key := ed25519Key(t)
	issuer, spki := newRoot(t, key), spkiOf(t, key)
	rapid.Check(t, func(t *rapid.T) {
		template := &Template{Subject: CommonName(rapid.StringMatching(`[a-z]{1,64}`).Draw(t, "cn"))}
		template.NotBefore = time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "from"), 0).UTC()
		template.NotAfter = template.NotBefore.Add(time.Duration(rapid.Int64Range(0, 4e9).Draw(t, "for")) * time.Second)
		template.KeyUsage = x509.KeyUsage(rapid.IntRange(0, 511).Draw(t, "usage"))
		template.SAN = rapid.SliceOfN(anyGeneralName(), 0, 5).Draw(t, "san")
		serial := new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(t, "serial"))
		tbs, err := Build(template, spki, serial, issuer)
		if err != nil {
			t.Fatal(err)
		}
		v, err := parseTBS(tbs.DER())
		if err != nil {
			t.Fatal(err)
		}
		if v.serial.Cmp(serial) != 0 || !v.notBefore.Equal(template.NotBefore) || !v.notAfter.Equal(template.NotAfter) ||
			v.keyUsage != template.KeyUsage || !v.subjectName.Equal(template.Subject) || !bytes.Equal(v.spki, spki) ||
			len(v.san) != len(template.SAN) {
			t.Fatalf("%+v was read from %+v", v, template)
		}
		for i, g := range template.SAN {
			if !v.san[i].same(g) {
				t.Fatalf("name %v became %v", g, v.san[i])
			}
		}
	})
}
