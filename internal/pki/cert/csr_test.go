package cert

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chancery/internal/fault"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"pgregory.net/rapid"
)

func testCSR(t testing.TB) *CSRTemplate {
	dir, err := DirName(mustName(t, "CN=x,O=y"))
	if err != nil {
		t.Fatal(err)
	}
	return &CSRTemplate{
		Subject: mustName(t, "CN=host1.example.com,O=Example"),
		SAN: []GeneralName{DNSName("host1.example.com"), DNSName("*.example.com"), IPName(netip.MustParseAddr("192.0.2.1")),
			IPName(netip.MustParseAddr("2001:db8::1")), EmailName("root@example.com"), URIName("spiffe://example.com/a"), dir,
			{Kind: RegisteredID, Value: "1.2.3.4"},
			{Kind: OtherName, OtherName: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}, DER: element(cbasn1.UTF8String, []byte("a@b"))}},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []asn1.ObjectIdentifier{OIDServerAuth},
		BasicConstraints:  &BasicConstraints{CA: true, PathLen: 2},
		Extra:             []Extension{{ID: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}},
		ChallengePassword: "s3cret, in UTF-8: ä",
	}
}

func signers(t testing.TB) map[string]crypto.Signer {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]crypto.Signer{"ecdsa-p256": p256(t), "ecdsa-p384": p384, "ecdsa-p521": p521, "rsa-2048": rsaKey(),
		"ed25519": ed25519Key(t)}
}

// TestCSRAgreesWithX509 creates requests with every kind of key and has crypto/x509, OpenSSL and us read them.
func TestCSRAgreesWithX509(t *testing.T) {
	for name, key := range signers(t) {
		der, err := CreateCSR(testCSR(t), key)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		std, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := std.CheckSignature(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		csr, err := ParseCSR(der)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if KeyAlgorithm(csr.PublicKey) != name || !bytes.Equal(csr.SPKI, std.RawSubjectPublicKeyInfo) ||
			!bytes.Equal(csr.RawSubject, std.RawSubject) || len(csr.Extensions) != len(std.Extensions) {
			t.Errorf("%s: read differently: %+v", name, csr)
		}
		checkTestCSR(t, csr)
		out := run(t, der, "openssl", "req", "-inform", "DER", "-noout", "-text", "-verify")
		for _, want := range []string{"verify OK", "DNS:host1.example.com", "IP Address:2001:DB8:0:0:0:0:0:1", "CA:TRUE, pathlen:2",
			"Registered ID:1.2.3.4", "1.2.3.4: critical"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: OpenSSL does not print %q:\n%s", name, want, out)
			}
		}
	}
}

func checkTestCSR(t *testing.T, csr *CSR) {
	t.Helper()
	want := testCSR(t)
	if !slices.EqualFunc(csr.SAN, want.SAN, GeneralName.same) {
		t.Errorf("names %v, want %v", csr.SAN, want.SAN)
	}
	if !csr.Subject.Equal(want.Subject) || csr.KeyUsage != want.KeyUsage || csr.ChallengePassword != want.ChallengePassword ||
		*csr.BasicConstraints != *want.BasicConstraints || !containsOID(csr.ExtKeyUsage, OIDServerAuth) {
		t.Errorf("read as %+v", csr)
	}
}

// TestCSROfOthers reads what OpenSSL and certtool write.
func TestCSROfOthers(t *testing.T) {
	dir := t.TempDir()
	key, request := filepath.Join(dir, "key.pem"), filepath.Join(dir, "csr.pem")
	run(t, nil, "openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out",
		request, "-subj", "/O=Example/CN=host1", "-addext", "subjectAltName=DNS:host1,IP:192.0.2.7", "-addext",
		"keyUsage=critical,digitalSignature")
	text, err := os.ReadFile(request)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := CSRLimits{}.ParsePEM(text)
	if err != nil {
		t.Fatal(err)
	}
	if csr.Subject.String() != "CN=host1,O=Example" || fmt.Sprint(csr.SAN) != "[dns:host1 ip:192.0.2.7]" ||
		csr.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("OpenSSL's request is read as %v %v", csr.Subject, csr.SAN)
	}
	template := filepath.Join(dir, "template")
	if err := os.WriteFile(template, []byte("cn = host2\norganization = Example\ndns_name = host2.example.com\n"+
		"tls_www_server\nsigning_key\nchallenge_password = 123456\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, nil, "certtool", "--generate-request", "--load-privkey", key, "--template", template, "--outfile", request)
	if text, err = os.ReadFile(request); err != nil {
		t.Fatal(err)
	}
	if csr, err = (CSRLimits{}).ParsePEM(text); err != nil {
		t.Fatal(err)
	}
	if csr.Subject.String() != "CN=host2,O=Example" || fmt.Sprint(csr.SAN) != "[dns:host2.example.com]" ||
		csr.ChallengePassword != "123456" {
		t.Errorf("certtool's request is read as %v %v", csr.Subject, csr.SAN)
	}
}

// TestParseCSRRefuses goes through what hostile and broken requests hold, and what the refusal must say.
func TestParseCSRRefuses(t *testing.T) {
	key := p256(t)
	good, err := CreateCSR(testCSR(t), key)
	if err != nil {
		t.Fatal(err)
	}
	point := spkiOf(t, key)[26:]
	offCurve := slices.Clone(point)
	offCurve[40] ^= 1
	modulus, f4 := rsaKey().N, big.NewInt(65537)
	pkcs9, microsoft := OIDExtensionRequest, OIDMicrosoftCertExtension
	of := func(r rawCSR) []byte { return r.der(t, key) }
	many := make([]string, 10000)
	for i := range many {
		many[i] = "h"
	}
	long := strings.Repeat("abcdefghi.", 30) + "com"
	for what, c := range map[string]struct {
		der  []byte
		kind fault.Kind
		says string
	}{
		"empty":             {nil, fault.Invalid, "not a DER SEQUENCE"},
		"garbage":           {[]byte("GET / HTTP/1.1\r\n\r\n"), fault.Invalid, "not a DER SEQUENCE"},
		"10 MB":             {make([]byte, 10<<20), fault.TooLarge, "65536 at most"},
		"truncated":         {good[:len(good)-1], fault.Invalid, "not a DER SEQUENCE"},
		"trailing garbage":  {append(slices.Clone(good), 0), fault.Invalid, "1 octets follow"},
		"indefinite length": {append([]byte{0x30, 0x80}, good[4:]...), fault.Invalid, "definite length"},
		"negative length":   {append([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff}, good[4:]...), fault.Invalid, "definite length"},
		"long length":       {append([]byte{0x30, 0x83, 0, good[2], good[3]}, good[4:]...), fault.Invalid, "definite length"},
		"version 2":         {of(rawCSR{version: []byte{2, 1, 2}}), fault.Invalid, "version 2"},
		"negative version":  {of(rawCSR{version: []byte{2, 1, 0xff}}), fault.Invalid, "version -1"},

		"RSA 512":           {of(rawCSR{spki: rsaSPKI(oddBits(512), f4)}), fault.Invalid, "RSA key of 512 bits"},
		"RSA 1023":          {of(rawCSR{spki: rsaSPKI(oddBits(1023), f4)}), fault.Invalid, "RSA key of 1023 bits"},
		"RSA 2047":          {of(rawCSR{spki: rsaSPKI(oddBits(2047), f4)}), fault.Invalid, "RSA key of 2047 bits"},
		"RSA 8193":          {of(rawCSR{spki: rsaSPKI(oddBits(8193), f4)}), fault.Invalid, "RSA key of 8193 bits"},
		"RSA 16384":         {of(rawCSR{spki: rsaSPKI(oddBits(16384), f4)}), fault.Invalid, "RSA key of 16384 bits"},
		"negative modulus":  {of(rawCSR{spki: rsaSPKI(new(big.Int).Neg(modulus), f4)}), fault.Invalid, "not positive"},
		"even modulus":      {of(rawCSR{spki: rsaSPKI(new(big.Int).Add(modulus, big.NewInt(1)), f4)}), fault.Invalid, "even"},
		"exponent 1":        {of(rawCSR{spki: rsaSPKI(modulus, big.NewInt(1))}), fault.Invalid, "RSA exponent 1:"},
		"exponent 3":        {of(rawCSR{spki: rsaSPKI(modulus, big.NewInt(3))}), fault.Invalid, "RSA exponent 3:"},
		"exponent 65538":    {of(rawCSR{spki: rsaSPKI(modulus, big.NewInt(65538))}), fault.Invalid, "RSA exponent 65538:"},
		"exponent 0":        {of(rawCSR{spki: rsaSPKI(modulus, new(big.Int))}), fault.Invalid, "RSA exponent"},
		"exponent -3":       {of(rawCSR{spki: rsaSPKI(modulus, big.NewInt(-3))}), fault.Invalid, "RSA exponent"},
		"huge exponent":     {of(rawCSR{spki: rsaSPKI(modulus, oddBits(2000))}), fault.Invalid, "RSA exponent of 2000 bits"},
		"unknown curve":     {of(rawCSR{spki: ecSPKI(asn1.ObjectIdentifier{1, 3, 132, 0, 10}, point)}), fault.Invalid, "curve 1.3.132.0.10"},
		"point off curve":   {of(rawCSR{spki: ecSPKI(oidP256, offCurve)}), fault.Invalid, "not an uncompressed point on P-256"},
		"point at infinity": {of(rawCSR{spki: ecSPKI(oidP256, []byte{0})}), fault.Invalid, "not an uncompressed point"},
		"compressed point":  {of(rawCSR{spki: ecSPKI(oidP256, append([]byte{2 + point[64]&1}, point[1:33]...))}), fault.Invalid, "uncompressed"},
		"Ed25519 31 octets": {of(rawCSR{spki: ed25519SPKI(31)}), fault.Invalid, "Ed25519 key is 32 octets"},
		"DSA key":           {of(rawCSR{spki: algorithmSPKI(asn1.ObjectIdentifier{1, 2, 840, 10040, 4, 1})}), fault.Invalid, "1.2.840.10040.4.1 is not accepted"},
		"key of another":    {of(rawCSR{spki: spkiOf(t, p256(t))}), fault.Invalid, "proof of possession"},
		"SHA-1 signature":   {of(rawCSR{identifier: sha1Identifier}), fault.Invalid, "signature algorithm 1.2.840.10045.4.1"},

		"duplicate extension": {of(rawCSR{attributes: request(pkcs9, sanOf("a"), sanOf("b"))}), fault.Invalid, "subjectAltName appears twice"},
		"duplicate attribute": {of(rawCSR{attributes: twice(request(pkcs9, sanOf("a")))}), fault.Invalid, "appears twice"},
		"both requests": {of(rawCSR{attributes: func(b *cryptobyte.Builder) {
			request(pkcs9, sanOf("a"))(b)
			request(microsoft, sanOf("evil"))(b)
		}}), fault.Invalid, "requested twice"},
		"NUL":                {of(rawCSR{attributes: request(pkcs9, sanOf("a.example\x00.evil"))}), fault.Invalid, `'\x00'`},
		"non-ASCII":          {of(rawCSR{attributes: request(pkcs9, sanOf("bücher.example"))}), fault.Invalid, "not ASCII"},
		"300 octets":         {of(rawCSR{attributes: request(pkcs9, sanOf(long))}), fault.Invalid, "303 octets: 253 at most"},
		"64 octets label":    {of(rawCSR{attributes: request(pkcs9, sanOf(strings.Repeat("a", 64)))}), fault.Invalid, "64 octets: 63"},
		"empty name":         {of(rawCSR{attributes: request(pkcs9, sanOf(""))}), fault.Invalid, "is empty"},
		"empty SAN":          {of(rawCSR{attributes: request(pkcs9, sanOf())}), fault.Invalid, "GeneralNames is empty"},
		"blank":              {of(rawCSR{attributes: request(pkcs9, sanOf("a b"))}), fault.Invalid, "letters, digits"},
		"inner wildcard":     {of(rawCSR{attributes: request(microsoft, sanOf("a.*.example"))}), fault.Invalid, "leftmost label"},
		"bad A-label":        {of(rawCSR{attributes: request(pkcs9, sanOf("xn--0.example"))}), fault.Invalid, "no A-label"},
		"address as DNS":     {of(rawCSR{attributes: request(pkcs9, sanOf("192.0.2.1"))}), fault.Invalid, "write an address as ip:"},
		"10000 SANs":         {of(rawCSR{attributes: request(pkcs9, sanOf(many...))}), fault.TooLarge, "10000 names: 100 at most"},
		"5-octet address":    {of(rawCSR{attributes: request(pkcs9, rawSAN(IPAddress, []byte{1, 2, 3, 4, 5}))}), fault.Invalid, "iPAddress of 5 octets"},
		"mailbox":            {of(rawCSR{attributes: request(pkcs9, rawSAN(Email, []byte("root")))}), fault.Invalid, "local@domain"},
		"relative URI":       {of(rawCSR{attributes: request(pkcs9, rawSAN(URI, []byte("/a/b")))}), fault.Invalid, "not absolute"},
		"critical FALSE":     {of(rawCSR{attributes: request(pkcs9, Extension{ID: OIDSubjectAltName})}), fault.Invalid, "extensionRequest"},
		"NUL in subject":     {of(rawCSR{subject: commonNameDER(cbasn1.UTF8String, "a\x00b")}), fault.Invalid, "control character U+0000"},
		"latin1 in UTF8":     {of(rawCSR{subject: commonNameDER(cbasn1.UTF8String, "a\xff")}), fault.Invalid, "not UTF-8"},
		"subject is no name": {of(rawCSR{subject: []byte{0x30, 2, 5, 0}}), fault.Invalid, "relative distinguished name"},
	} {
		t.Run(what, func(t *testing.T) {
			csr, err := ParseCSR(c.der)
			if err == nil {
				t.Fatalf("read as %+v", csr)
			}
			refused(t, err, c.kind, c.says)
		})
	}
}

// TestCSRMicrosoft: names that come by Microsoft's attribute are as visible as those that come by PKCS #9's.
func TestCSRMicrosoft(t *testing.T) {
	key := p256(t)
	csr, err := ParseCSR(rawCSR{attributes: request(OIDMicrosoftCertExtension, sanOf("evil.example.com"))}.der(t, key))
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(csr.SAN) != "[dns:evil.example.com]" || len(csr.Extensions) != 1 {
		t.Errorf("read as %v", csr.SAN)
	}
}

func TestCSRLimits(t *testing.T) {
	key := p256(t)
	names := make([]GeneralName, 101)
	for i := range names {
		names[i] = DNSName(fmt.Sprintf("h%d.example.com", i))
	}
	der, err := CreateCSR(&CSRTemplate{SAN: names}, key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = ParseCSR(der)
	refused(t, err, fault.TooLarge, "101 names: 100 at most")
	if _, err := (CSRLimits{Names: 101}).Parse(der); err != nil {
		t.Error(err)
	}
	_, err = CSRLimits{Octets: 1000}.Parse(der)
	refused(t, err, fault.TooLarge, "1000 at most")
}

func TestCSRPEM(t *testing.T) {
	der, err := CreateCSR(testCSR(t), p256(t))
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	for what, input := range map[string][]byte{"PEM": text, "DER": der, "text before": append([]byte("Subject: x\n"), text...),
		"the old name": bytes.ReplaceAll(text, []byte("CERTIFICATE"), []byte("NEW CERTIFICATE"))} {
		if _, err := (CSRLimits{}).ParsePEM(input); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = CSRLimits{}.ParsePEM(append(text, text...))
	refused(t, err, fault.Invalid, "followed by more")
	_, err = CSRLimits{}.ParsePEM(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("secret")}))
	refused(t, err, fault.Invalid, `"PRIVATE KEY"`)
}

// TestCSRMalleability flips every bit of a request of every kind of key: none of the results may pass, so that a request
// has one form only.
func TestCSRMalleability(t *testing.T) {
	for name, key := range signers(t) {
		if name == "ecdsa-p521" || name == "ecdsa-p384" {
			continue // the same code, and slow
		}
		der, err := CreateCSR(&CSRTemplate{Subject: CommonName("h"), SAN: []GeneralName{DNSName("h")}}, key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseCSR(der); err != nil {
			t.Fatal(err)
		}
		for i := range der {
			for bit := range 8 {
				der[i] ^= 1 << bit
				if _, err := ParseCSR(der); err == nil {
					t.Errorf("%s: bit %d of octet %d may be flipped", name, bit, i)
				}
				der[i] ^= 1 << bit
			}
		}
	}
}

// propCSR: what a request is made of is what is read from it.
func propCSR(key crypto.Signer) func(t *rapid.T) {
	return func(t *rapid.T) {
		label := rapid.StringMatching(`[a-z]([a-z0-9-]{0,8}[a-z0-9])?`)
		want := &CSRTemplate{Subject: CommonName(label.Draw(t, "cn"))}
		for range rapid.IntRange(0, 5).Draw(t, "names") {
			host := label.Draw(t, "label") + ".example.com"
			want.SAN = append(want.SAN, rapid.SampledFrom([]GeneralName{DNSName(host), EmailName("a@" + host),
				URIName("https://" + host + "/x"), IPName(netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "ip"))))}).
				Draw(t, "name"))
		}
		want.KeyUsage = x509.KeyUsage(rapid.IntRange(0, 511).Draw(t, "usage"))
		want.ChallengePassword = rapid.String().Draw(t, "password")
		der, err := CreateCSR(want, key)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseCSR(der)
		if err != nil {
			t.Fatal(err)
		}
		if !got.Subject.Equal(want.Subject) || !slices.EqualFunc(got.SAN, want.SAN, GeneralName.same) ||
			got.KeyUsage != want.KeyUsage || got.ChallengePassword != want.ChallengePassword {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	}
}

func TestCSRIdentity(t *testing.T) { rapid.Check(t, propCSR(ed25519Key(t))) }

// FuzzParseCSR: no input panics, every error is a refusal, what passes is what crypto/x509 reads too, and no
// request gets a host a name that is not its own.
func FuzzParseCSR(f *testing.F) {
	der, err := CreateCSR(testCSR(f), p256(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add(rawCSR{attributes: request(OIDMicrosoftCertExtension, sanOf("a"))}.der(f, ed25519Key(f)))
	f.Add(rawCSR{spki: rsaSPKI(oddBits(2048), big.NewInt(65537))}.der(f, ed25519Key(f)))
	server := profile(f, "server")
	issuer := newRoot(f, p256(f))
	f.Fuzz(func(t *testing.T, der []byte) {
		// What is behind the signature must stand hostile octets too: a caller can sign whatever it likes.
		if unsigned, _, err := readCSR(der); err == nil {
			for _, g := range unsigned.SAN {
				_ = CheckGeneralName(g)
			}
			if unsigned.PublicKey, err = ParsePublicKey(unsigned.SPKI); err == nil {
				if linted, err := server.Build(Request{Caller: host1(), CSR: unsigned}, issuer, testNow); err == nil && len(unsigned.SAN) > 3 {
					t.Fatalf("a host got %d names: %x", len(unsigned.SAN), linted.TBS())
				}
			}
		}
		csr, err := ParseCSR(der)
		if err != nil {
			if kind := fault.KindOf(err); kind != fault.Invalid && kind != fault.TooLarge {
				t.Fatalf("%x: %v is no refusal", der, err)
			}
			return
		}
		std, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatalf("%x: accepted here, and crypto/x509 says %v", der, err)
		}
		if err := std.CheckSignature(); err != nil || !bytes.Equal(std.RawSubjectPublicKeyInfo, csr.SPKI) {
			t.Fatalf("%x: crypto/x509 reads another request, %v", der, err)
		}
	})
}

// FuzzCSRIdentity is TestCSRIdentity driven by the fuzzer's coverage.
func FuzzCSRIdentity(f *testing.F) { f.Fuzz(rapid.MakeFuzz(propCSR(ed25519Key(f)))) }

// TestTruncatedPEM cuts a request off: the refusal must say so, and not that some DER is malformed.
func TestTruncatedPEM(t *testing.T) {
	der, err := CreateCSR(&CSRTemplate{Subject: CommonName("a")}, p256(t))
	if err != nil {
		t.Fatal(err)
	}
	whole := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	cuts := 0
	for length := len("-----BEGIN CERTIFICATE REQUEST-----"); length < len(whole)-1; length += 7 {
		_, err := CSRLimits{}.ParsePEM([]byte("text before\n" + whole[:length]))
		refused(t, err, fault.Invalid, "-----END CERTIFICATE REQUEST----- is missing")
		cuts++
	}
	if cuts < 20 {
		t.Fatalf("cut at %d places only", cuts)
	}
	if err := CheckPEMEnd([]byte(whole)); err != nil {
		t.Error(err)
	}
}
