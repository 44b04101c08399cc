package cert

import (
	"crypto/x509"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
)

func profile(t testing.TB, name string) *Profile {
	t.Helper()
	p, err := BuiltinProfile(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// host1 is a host that the authority knows by two names and an address.
func host1() Caller {
	return Caller{Name: "host1", Roles: []string{"host"}, Entitlements: map[string][]string{
		"host.names": {"host1.example.com", "host1"}, "host.addresses": {"192.0.2.1"}}}
}

// libvirtHost is entitled to the common name of its pool's root as its organization.
func libvirtHost() Caller {
	c := host1()
	c.Entitlements["host.authorities"] = []string{"default Root"}
	return c
}

// TestLibvirtProfiles: a host gets its authority's name and no other organization, and the usages that libvirt looks for, the
// extended one critical so that no server is let in as a client.
func TestLibvirtProfiles(t *testing.T) {
	issuer := newRoot(t, p256(t))
	for name, usage := range map[string]string{"libvirt-server": "serverAuth", "libvirt-client": "clientAuth"} {
		p := profile(t, name)
		request := Request{Caller: libvirtHost(), SPKI: spkiOf(t, p256(t)), Subject: mustName(t, "O=default Root,CN=host1.example.com"),
			Names: namesOf(t, "dns:host1.example.com", "ip:192.0.2.1")}
		template, _, err := p.Template(request, issuer, testNow)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := strings.Join(KeyUsageNames(template.KeyUsage), " "); got != "digitalSignature" {
			t.Errorf("%s: an EC key has usage %s", name, got)
		}
		forRSA := request
		forRSA.SPKI = spkiOf(t, rsaKey())
		if template, _, err := p.Template(forRSA, issuer, testNow); err != nil ||
			strings.Join(KeyUsageNames(template.KeyUsage), " ") != "digitalSignature keyEncipherment" {
			t.Errorf("%s: an RSA key: %v", name, err)
		}
		if got := template.Subject.String(); got != "CN=host1.example.com,O=default Root" {
			t.Errorf("%s: subject %s: libvirt's list of names has the organization first in encoded order", name, got)
		}
		if !p.Usage.ExtendedCritical || len(p.Usage.Extended) != 1 || p.Usage.Extended[0] != usage {
			t.Errorf("%s: %+v", name, p.Usage)
		}
		for _, subject := range []string{"O=other Root,CN=host1.example.com", "O=default Root,CN=host2.example.com", "OU=x,CN=host1"} {
			request.Subject = mustName(t, subject)
			_, _, err := p.Template(request, issuer, testNow)
			refused(t, err, fault.Denied, "host1")
		}
	}
}

func operator() Caller { return Caller{Name: "ops", Roles: []string{"operator"}} }

func csrOf(t testing.TB, template *CSRTemplate) *CSR {
	t.Helper()
	der, err := CreateCSR(template, p256(t))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := ParseCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// TestWish: names are a wish. What a host is entitled to is granted, and everything else is refused by name, at once.
func TestWish(t *testing.T) {
	key := p256(t)
	issuer := newRoot(t, key)
	server := profile(t, "server")
	linted, err := server.Build(Request{Caller: host1(), CSR: csrOf(t, &CSRTemplate{
		Subject: CommonName("host1.example.com"), SAN: namesOf(t, "dns:host1", "ip:192.0.2.1", "dns:HOST1.example.com")})},
		issuer, testNow)
	if err != nil {
		t.Fatal(err)
	}
	der, err := linted.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	c := parse(t, der)
	if c.Subject.String() != "CN=host1.example.com" || !slices.Equal(c.DNSNames, []string{"host1", "host1.example.com"}) ||
		len(c.IPAddresses) != 1 || c.KeyUsage != x509.KeyUsageDigitalSignature || len(c.ExtKeyUsage) != 1 ||
		c.IsCA || !c.NotBefore.Equal(testNow.Add(-5*time.Minute)) || !c.NotAfter.Equal(testNow.AddDate(0, 0, 90)) {
		t.Errorf("issued %v %v %v from %v to %v", c.Subject, c.DNSNames, c.KeyUsage, c.NotBefore, c.NotAfter)
	}

	upn := GeneralName{Kind: OtherName, OtherName: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}, DER: element(12, []byte("admin@x"))}
	_, err = server.Build(Request{Caller: host1(), CSR: csrOf(t, &CSRTemplate{
		Subject: mustName(t, "CN=host2.example.com,O=Evil,emailAddress=a@b"),
		SAN: append(namesOf(t, "dns:host1.example.com", "dns:host2.example.com", "dns:*.example.com", "ip:192.0.2.2",
			"email:root@example.com", "uri:spiffe://example.com/admin", "dirname:CN=admin", "rid:1.2.3"), upn),
		BasicConstraints: &BasicConstraints{CA: true}, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []asn1.ObjectIdentifier{OIDServerAuth, OIDCodeSigning},
		Extra:       []Extension{{ID: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: []byte{5, 0}}, {ID: OIDTLSFeature, Value: mustStapleValue}},
	})}, issuer, testNow)
	refused(t, err, fault.Denied, "profile server refuses", "dns:host2.example.com", "dns:*.example.com", "ip:192.0.2.2",
		"email:root@example.com", "uri:spiffe://example.com/admin", "dirname:CN=admin", "rid:1.2.3",
		"othername:1.3.6.1.4.1.311.20.2.3", `common name "host2.example.com"`, "O=Evil", "emailAddress=a@b", "CA:TRUE", "keyCertSign",
		"codeSigning", "1.2.3.4", "tlsFeature", "host1 (host)")
	if strings.Contains(err.Error(), "dns:host1.example.com is") {
		t.Errorf("what the host is entitled to is refused: %v", err)
	}
}

// TestWishMicrosoft: the names of Microsoft's attribute are judged as any others.
func TestWishMicrosoft(t *testing.T) {
	key := p256(t)
	csr, err := ParseCSR(rawCSR{attributes: request(OIDMicrosoftCertExtension, sanOf("evil.example.com"))}.der(t, key))
	if err != nil {
		t.Fatal(err)
	}
	_, err = profile(t, "server").Build(Request{Caller: host1(), CSR: csr}, newRoot(t, key), testNow)
	refused(t, err, fault.Denied, "dns:evil.example.com")
}

// TestBuiltinProfiles issues by each of them, has OpenSSL judge the purpose, and checks the usages.
func TestBuiltinProfiles(t *testing.T) {
	key := p256(t)
	issuer := newRoot(t, key)
	issuer.CRLDistributionPoints, issuer.OCSPServers = []string{"http://pki.example.com/1.crl"}, []string{"http://pki.example.com/o"}
	issuer.CAIssuers, issuer.FreshestCRL = []string{"http://pki.example.com/1.cer"}, []string{"http://pki.example.com/1d.crl"}
	for name, c := range map[string]struct {
		request Request
		usage   string // of an RSA key
		purpose string
		days    int
	}{
		"server": {Request{Caller: operator(), Names: namesOf(t, "dns:a.example.com", "dns:*.b.example.com", "ip:10.0.0.1")},
			"digitalSignature keyEncipherment", "sslserver", 90},
		"client": {Request{Caller: operator(), Subject: mustName(t, "CN=Jane Doe,O=Example"), Names: namesOf(t, "email:jane@example.com")},
			"digitalSignature", "sslclient", 90},
		"peer": {Request{Caller: host1(), Names: namesOf(t, "dns:host1.example.com")}, "digitalSignature keyEncipherment", "sslclient", 90},
		"ocsp-responder": {Request{Caller: Caller{Name: "authority", Roles: []string{"authority"}}, Subject: CommonName("OCSP 1")},
			"digitalSignature", "ocsphelper", 30},
		"identity": {Request{Caller: host1()}, "digitalSignature", "sslclient", 30},
		"libvirt-server": {Request{Caller: libvirtHost(), Subject: mustName(t, "O=default Root,CN=host1.example.com")},
			"digitalSignature keyEncipherment", "sslserver", 90},
		"libvirt-client": {Request{Caller: libvirtHost(), Subject: mustName(t, "O=default Root,CN=host1.example.com")},
			"digitalSignature keyEncipherment", "sslclient", 90},
	} {
		p := profile(t, name)
		c.request.SPKI = spkiOf(t, rsaKey())
		linted, err := p.Build(c.request, issuer, testNow)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		der, err := linted.Sign(key)
		if err != nil {
			t.Fatal(err)
		}
		crt := parse(t, der)
		if got := strings.Join(KeyUsageNames(crt.KeyUsage), " "); got != c.usage {
			t.Errorf("%s: key usage %s, want %s", name, got, c.usage)
		}
		if !crt.NotAfter.Equal(testNow.AddDate(0, 0, c.days)) || len(crt.IssuingCertificateURL) != 1 ||
			(len(crt.OCSPServer) == 1) == p.Extensions.OCSPNoCheck {
			t.Errorf("%s: until %s, OCSP %v", name, crt.NotAfter, crt.OCSPServer)
		}
		run(t, nil, "openssl", "verify", "-x509_strict", "-purpose", c.purpose, "-attime",
			big.NewInt(testNow.Unix()).String(), "-CAfile", writePEM(t, "CERTIFICATE", issuer.Certificate.Raw), writePEM(t, "CERTIFICATE", der))
		if len(crt.Subject.Names) == 0 {
			t.Errorf("%s: no subject", name)
		}
		if !p.Automatic(c.request.Caller) || p.Automatic(Caller{Name: "x", Roles: []string{"stranger"}}) {
			t.Errorf("%s: approval", name)
		}
		// The same profile for an EC key leaves out what such a key cannot do.
		c.request.SPKI = spkiOf(t, p256(t))
		template, _, err := p.Template(c.request, issuer, testNow)
		if err != nil || template.KeyUsage&x509.KeyUsageKeyEncipherment != 0 {
			t.Errorf("%s: %v, key usage %v", name, err, KeyUsageNames(template.KeyUsage))
		}
	}
	if len(BuiltinProfiles()) != 8 {
		t.Errorf("the built-in profiles are %v", BuiltinProfiles())
	}
	if _, err := BuiltinProfile("../server"); !fault.Is(err, fault.NotFound) {
		t.Errorf("got %v", err)
	}
}

// TestProfileCA: path lengths follow the issuer's, and only a CA profile makes CAs.
func TestProfileCA(t *testing.T) {
	key := p256(t)
	root := newRoot(t, key, func(x *Template) { x.BasicConstraints.PathLen = 2 })
	admin := Caller{Name: "root", Roles: []string{"admin"}}
	p := profile(t, "ca")
	build := func(r Request) (*x509.Certificate, error) {
		r.Caller, r.SPKI = admin, spkiOf(t, p256(t))
		if r.Subject == nil {
			r.Subject = mustName(t, "CN=Issuing 1,O=Example")
		}
		linted, err := p.Build(r, root, testNow)
		if err != nil {
			return nil, err
		}
		der, err := linted.Sign(key)
		if err != nil {
			t.Fatal(err)
		}
		return parse(t, der), nil
	}
	c, err := build(Request{})
	if err != nil {
		t.Fatal(err)
	}
	if !c.IsCA || !c.MaxPathLenZero || c.KeyUsage&x509.KeyUsageCertSign == 0 || !c.NotAfter.Equal(testNow.Add(5*365*24*time.Hour)) {
		t.Errorf("issued CA %t, path length %d, until %s", c.IsCA, c.MaxPathLen, c.NotAfter)
	}
	one := 1
	_, err = build(Request{PathLen: &one})
	refused(t, err, fault.Invalid, "pathLen: 1 is asked for: 0 to 0")
	p.CA.PathLength = -1
	if c, err = build(Request{}); err != nil || c.MaxPathLen != 1 {
		t.Errorf("path length %v, %v; the issuer's 2 permits 1", c, err)
	}
	p.CA = &CAPolicy{Permitted: []string{"dns:example.com"}, Excluded: []string{"ip:0.0.0.0/0"}}
	if c, err = build(Request{}); err != nil || len(c.PermittedDNSDomains) != 1 || len(c.ExcludedIPRanges) != 1 {
		t.Errorf("constraints are missing: %v", err)
	}
	root = newRoot(t, key, func(x *Template) { x.BasicConstraints.PathLen = 0 })
	_, err = build(Request{})
	refused(t, err, fault.Invalid, "permits no CA below")
	_, err = profile(t, "server").Build(Request{Caller: operator(), SPKI: spkiOf(t, key), Names: namesOf(t, "dns:a.b"), PathLen: &one}, root, testNow)
	refused(t, err, fault.Invalid, "makes no CAs")
}

func TestProfileValidity(t *testing.T) {
	key := p256(t)
	spki := spkiOf(t, key)
	short := newRoot(t, key, func(x *Template) { x.NotAfter = testNow.AddDate(0, 0, 30) })
	long := newRoot(t, key)
	day := 24 * time.Hour
	for _, c := range []struct {
		what   string
		issuer *Issuer
		req    Request
		until  time.Time
		says   string
	}{
		{"the default", long, Request{}, testNow.Add(90 * day), ""},
		{"shorter", long, Request{Validity: time.Hour}, testNow.Add(time.Hour), ""},
		{"a date", long, Request{NotAfter: testNow.Add(3 * day)}, testNow.Add(3 * day), ""},
		{"too long", long, Request{Validity: 91 * day}, time.Time{}, "more than 90d"},
		{"in the past", long, Request{NotAfter: testNow}, time.Time{}, "not after now"},
		{"before its beginning", long, Request{NotBefore: testNow.Add(2 * day), NotAfter: testNow.Add(day)}, time.Time{}, "before notBefore"},
		{"negative", long, Request{Validity: -day}, time.Time{}, "not after now"},
		{"later", long, Request{NotBefore: testNow.Add(10 * day)}, testNow.Add(100 * day), ""},
		{"backdated", long, Request{NotBefore: testNow.Add(-day)}, time.Time{}, "at the earliest"},
		{"the default beyond the issuer", short, Request{}, short.Certificate.NotAfter, ""},
		{"asked beyond the issuer", short, Request{Validity: 31 * day}, time.Time{}, "beyond the issuer's"},
		{"asked up to the issuer", short, Request{NotAfter: short.Certificate.NotAfter}, short.Certificate.NotAfter, ""},
	} {
		c.req.Caller, c.req.SPKI, c.req.Names = operator(), spki, namesOf(t, "dns:a.example.com")
		template, _, err := profile(t, "server").Template(c.req, c.issuer, testNow)
		switch {
		case c.says != "":
			refused(t, err, fault.Invalid, c.says)
		case err != nil:
			t.Errorf("%s: %v", c.what, err)
		case !template.NotAfter.Equal(c.until):
			t.Errorf("%s: until %s, want %s", c.what, template.NotAfter, c.until)
		}
	}
	future := newRoot(t, key, func(x *Template) { x.NotBefore = testNow.Add(time.Hour) })
	_, _, err := profile(t, "server").Template(Request{Caller: operator(), SPKI: spki, Names: namesOf(t, "dns:a.b")}, future, testNow)
	refused(t, err, fault.Invalid, "issuer: it is not valid before 2026-11-02T13:00:00Z")
	p := profile(t, "server")
	p.Validity.BeyondIssuer = "refuse"
	_, _, err = p.Template(Request{Caller: operator(), SPKI: spki, Names: namesOf(t, "dns:a.b")}, short, testNow)
	refused(t, err, fault.Invalid, "beyond the issuer's")
}

const customProfile = `
name: custom
names:
  common_name: subject
  fixed: O=Example,C=DE
  rules:
    - callers: [ci]
      dns: ["*.ci.example.com", "web-*.example.com", ".deep.example.com"]
      wildcard: ["apps.example.com"]
      ip: [10.1.0.0/16, "2001:db8::5"]
      email: ["build-*@example.com"]
      uri: ["spiffe://example.com/ci/*", "https://*.example.com/**"]
      dirname: ["O=Example"]
      other_name: [1.3.6.1.5.2.2]
      registered_id: [1.2.3.4]
      subject: {CN: ["ci-*"], OU: ["${caller.name}"]}
    - roles: [host]
      dns: ["*.${host.names}"]
      uri: ["spiffe://example.com/host/${caller.name}"]
key:
  algorithms: [rsa, ecdsa-p256]
  rsa_min: 3072
usage:
  key_usage: [digitalSignature, keyEncipherment, keyAgreement]
  key_usage_critical: false
  keep_for_ec: true
  extended: [serverAuth, 1.2.3.4.5]
validity: {default: 1d12h, max: 2w, backdate: 0s}
extensions:
  crl: false
  must_staple: true
  policies: [{id: 1.2.3.4, cps: "http://example.com/cps", notice: test}]
  subject_key_id: spki
  copy: [1.2.3.5]
  ignore: [1.2.3.6]
lints: {off: [key-usage-of-key]}
approval: {automatic: [host], two_person: true}
`

func TestCustomProfile(t *testing.T) {
	p, err := ParseProfile([]byte(customProfile))
	if err != nil {
		t.Fatal(err)
	}
	ci, host := Caller{Name: "ci"}, host1()
	star := Caller{Name: "x", Roles: []string{"host"}, Entitlements: map[string][]string{"host.names": {"*", "**", "${caller.name}", ""}}}
	for _, c := range []struct {
		caller Caller
		name   string
		ok     bool
	}{
		{ci, "dns:a.ci.example.com", true},
		{ci, "dns:a.b.ci.example.com", false},
		{ci, "dns:ci.example.com", false},
		{ci, "dns:*.ci.example.com", false},
		{ci, "dns:web-1.example.com", true},
		{ci, "dns:web-1.evil.com", false},
		{ci, "dns:web-a.b.example.com", false},
		{ci, "dns:a.b.deep.example.com", true},
		{ci, "dns:deep.example.com", false},
		{ci, "dns:*.apps.example.com", true},
		{ci, "dns:apps.example.com", false},
		{ci, "dns:*.x.apps.example.com", false},
		{ci, "ip:10.1.2.3", true},
		{ci, "ip:10.2.2.3", false},
		{ci, "ip:2001:db8::5", true},
		{ci, "ip:2001:db8::6", false},
		{ci, "email:build-1@example.com", true},
		{ci, "email:root@example.com", false},
		{ci, "email:build-1@evil.example.com", false},
		{ci, "uri:spiffe://example.com/ci/1", true},
		{ci, "uri:spiffe://example.com/ci/1/2", false},
		{ci, "uri:https://a.example.com/b/c", true},
		{ci, "uri:https://evil.org/.example.com/", false},
		{ci, "uri:https://evil.org?.example.com/", false},
		{ci, "dirname:CN=a,O=Example", true},
		{ci, "dirname:CN=a", false},
		{ci, "othername:1.3.6.1.5.2.2;0500", true},
		{ci, "othername:1.3.6.1.5.2.3;0500", false},
		{ci, "rid:1.2.3.4", true},
		{ci, "rid:1.2.3.5", false},
		{host, "dns:a.host1.example.com", true},
		{host, "dns:host1.example.com", false},
		{host, "uri:spiffe://example.com/host/host1", true},
		{host, "uri:spiffe://example.com/host/host2", false},
		{host, "dns:a.ci.example.com", false},
		{star, "dns:a.b", false},
		{star, "dns:a.x", false},
		{Caller{}, "dns:a.ci.example.com", false},
	} {
		if got := p.Entitled(c.caller, namesOf(t, c.name)[0]); got != c.ok {
			t.Errorf("%s, %s: %t, want %t", c.caller.Name, c.name, got, c.ok)
		}
	}

	key := p256(t)
	issuer := newRoot(t, key)
	issuer.CRLDistributionPoints = []string{"http://a.example.com/crl"}
	csr := csrOf(t, &CSRTemplate{Subject: mustName(t, "CN=ci-7,OU=ci,O=Example"), SAN: namesOf(t, "dns:a.ci.example.com"),
		Extra: []Extension{{ID: asn1.ObjectIdentifier{1, 2, 3, 5}, Value: []byte{4, 0}}, {ID: asn1.ObjectIdentifier{1, 2, 3, 6}, Value: []byte{4, 0}},
			{ID: OIDTLSFeature, Value: mustStapleValue}}})
	linted, err := p.Build(Request{Caller: ci, CSR: csr}, issuer, testNow)
	if err != nil {
		t.Fatal(err)
	}
	der, err := linted.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	c := parse(t, der)
	want := "CN=ci-7,OU=ci,O=Example,C=DE"
	if got, _ := ParseNameDER(c.RawSubject); got.String() != want {
		t.Errorf("subject %s, want %s", got, want)
	}
	if c.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment|x509.KeyUsageKeyAgreement || len(linted.Warnings()) != 1 {
		t.Errorf("key usage %v, warnings %v", KeyUsageNames(c.KeyUsage), linted.Warnings())
	}
	if extensionOf(c, asn1.ObjectIdentifier{1, 2, 3, 5}) == nil || extensionOf(c, asn1.ObjectIdentifier{1, 2, 3, 6}) != nil ||
		extensionOf(c, OIDTLSFeature) == nil || len(c.CRLDistributionPoints) != 0 || len(c.Policies) != 1 ||
		!c.NotAfter.Equal(testNow.Add(36*time.Hour)) || !c.NotBefore.Equal(testNow) {
		t.Errorf("extensions %v", c.Extensions)
	}
	_, err = p.Build(Request{Caller: ci, SPKI: spkiOf(t, rsaKey()), Subject: CommonName("x")}, issuer, testNow)
	refused(t, err, fault.Denied, "RSA key of 2048 bits: 3072 to 8192", "CN=x is not among")
	_, err = p.Build(Request{Caller: ci, SPKI: spkiOf(t, ed25519Key(t)), Subject: CommonName("ci-1")}, issuer, testNow)
	refused(t, err, fault.Invalid, "ed25519 is not allowed: use one of rsa, ecdsa-p256")
	_, err = p.Build(Request{Caller: ci, Subject: CommonName("ci-1")}, issuer, testNow)
	refused(t, err, fault.Invalid, "either a certification request or a public key")
}

// TestCommonName goes through the four ways of the common name.
func TestCommonName(t *testing.T) {
	issuer := newRoot(t, p256(t))
	spki := spkiOf(t, p256(t))
	for _, c := range []struct {
		policy, subject string
		names           []GeneralName
		want, says      string
	}{
		{"names", "", namesOf(t, "ip:192.0.2.1", "dns:host1.example.com"), "CN=host1.example.com", ""},
		{"names", "", namesOf(t, "ip:192.0.2.1"), "", ""},
		{"names", "CN=host1", nil, "CN=host1", ""},
		{"names", "CN=192.0.2.1", nil, "CN=192.0.2.1", ""},
		{"names", "CN=192.0.2.2", nil, "", `common name "192.0.2.2"`},
		{"names", "CN=my host", nil, "", "must be a DNS name"},
		{"names", "CN=*.example.com", nil, "", `common name "*.example.com"`},
		{"names", "CN=host1,CN=host1", nil, "", "2 common names"},
		{"caller", "", nil, "CN=host1", ""},
		{"caller", "CN=host1", nil, "CN=host1", ""},
		{"caller", "CN=host2", nil, "", `gets its own, "host1"`},
		{"none", "", namesOf(t, "dns:host1"), "", ""},
		{"none", "CN=host1", namesOf(t, "dns:host1"), "", "gives none"},
		{"subject", "CN=host1", nil, "", "CN=host1 is not among"},
	} {
		p := profile(t, "server")
		p.Names.CommonName, p.Names.Required = c.policy, false
		r := Request{Caller: host1(), SPKI: spki, Subject: mustName(t, c.subject), Names: c.names}
		template, _, err := p.Template(r, issuer, testNow)
		switch {
		case c.says != "":
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%+v: got %v", c, err)
			}
		case err != nil:
			t.Errorf("%+v: %v", c, err)
		case template.Subject.String() != c.want:
			t.Errorf("%+v: subject %q", c, template.Subject)
		case c.policy == "names" && c.subject != "" && len(template.SAN) != 1:
			t.Errorf("%+v: the common name is not in the subjectAltName %v", c, template.SAN)
		}
	}
	_, _, err := profile(t, "server").Template(Request{Caller: host1(), SPKI: spki}, issuer, testNow)
	refused(t, err, fault.Invalid, "a DNS name or an address is needed")
	many := slices.Repeat(namesOf(t, "dns:host1"), 101)
	_, _, err = profile(t, "server").Template(Request{Caller: host1(), SPKI: spki, Names: many}, issuer, testNow)
	refused(t, err, fault.Invalid, "101 names are asked for: 100 at most")
}
