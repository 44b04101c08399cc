package certtool

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/pki/cert"
)

// fragments are what random templates are made of; most are right, some are traps.
var fragments = strings.Split(`cn = host1
organization = O1
o = O2
unit = U1
ou = U2
locality = L
state = it's
country = GB
uid = u
dc = example
dn = CN=d,O=e
dn_oid = 2.5.4.12 Dr
pkcs9_email = a@b
dns_name = a.example
dns_name = *.b.example
uri = http://u/
ip_address = 192.0.2.1
ip_address = 2001:db8::1
email = x@y
other_name = 1.2.3 0500
other_name_utf8 = 1.2.3 ü
other_name_octet = 1.2.3 z
xmpp_name = j@x
krb5_principal = u/h@R
ca
ca = no
path_len = 2
path_len = x
cert_signing_key
crl_signing_key
signing_key
encryption_key
key_agreement
data_encipherment
non_repudiation
tls_www_server
tls_www_client
code_signing_key
ocsp_signing_key
time_stamping_key
email_protection_key
ipsec_ike_key
key_purpose_oid = 1.2.3.4
crl_dist_points = http://c/
ocsp_uri = http://o/
ca_issuers_uri = http://i/
policy1 = 1.2.3
policy1_txt = t
policy2 = 1.2.4
policy2_url = http://p/
policy4 = 1.2.5
inhibit_anypolicy_skip_certs = 1
nc_permit_dns = x.example
nc_exclude_ip = 10.0.0.0/8
nc_permit_email = .example
add_extension = 1.2.3.5 0x0500
add_critical_extension = 1.2.3.5 octet_string(0x00)
add_extension = 2.5.29.19 30030101ff
add_extension = 2.5.29.15 03020640
add_extension = 2.5.29.17 3003820178
tls_feature = 5
subject_unique_id = 0011
serial = 0x0123
# a comment
unknown_option = x
CN = ignored
proxy_policy_language = 1.2.3
password = p`, "\n")

// TestRandomTemplates has the two programs agree on combinations that nobody thought of.
func TestRandomTemplates(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := mathrand.New(mathrand.NewPCG(1, 0)) // any other seed must pass too
	compared, strictToo := 0, 0
	for range 60 {
		template := fixedActivation + fixedExpiration
		for range 1 + r.IntN(14) {
			template += fragments[r.IntN(len(fragments))] + "\n"
		}
		if !strings.Contains(template, "serial =") {
			template = fixedSerial + template
		}
		key := []string{"rsa", "ec", "ed"}[r.IntN(3)]
		ours, warnings, err := l.build(t, template, key, Compat, Options{})
		theirs, talk := l.generate(t, template, key)
		if (err != nil) != (theirs == nil) {
			t.Fatalf("we say %v, certtool says %s, for %s and\n%s", err, talk, key, template)
		}
		if err != nil {
			continue
		}
		compared++
		a, b := asCertificate(t, ours), mustTakeApart(t, theirs)
		if a.subject == nil || len(a.subject) == 2 {
			for i := range a.extensions { // RFC 5280 4.2.1.6: see the divergences
				if a.extensions[i].ID.Equal(cert.OIDSubjectAltName) {
					a.extensions[i].Critical = false
				}
			}
		}
		compare(t, a, b)
		if want := warningsOf(talk); !slices.Equal(warnings, want) {
			t.Errorf("warnings: ours %q, certtool's %q", warnings, want)
		}
		l.comparePrint(t, theirs, talk)
		if strict, _, err := l.build(t, template, key, Strict, Options{}); err == nil {
			strictToo++
			if !bytes.Equal(strict, ours) {
				t.Errorf("the modes differ")
			}
		}
		if t.Failed() {
			t.Fatalf("for %s and\n%s", key, template)
		}
	}
	if compared < 40 {
		t.Fatalf("only %d templates were compared", compared)
	}
}

// lexemes are what random text is made of.
var lexemes = []string{"cn", "unit", "UNIT", "ca", "signing_key", "serial", "policy1_x", "=", ":", " = ", " ", "\t", "\n", "\n", "\n", "\r\n", "#", " #x",
	"\"", "'", "\\", "\\\n", "\\\"", ";", "[", "a", "b c", "1", "-", "_", "^", ",", "\v", "\"q\"", "'q'"}

// TestRandomText holds the lexers of the two programs against each other.
func TestRandomText(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := mathrand.New(mathrand.NewPCG(2, 0)) // any other seed must pass too
	compared := 0
	for range 60 {
		template := fixedSerial + fixedActivation + fixedExpiration
		for range 1 + r.IntN(16) {
			template += lexemes[r.IntN(len(lexemes))]
		}
		ours, warnings, err := l.build(t, template, "ec", Compat, Options{})
		theirs, talk := l.generate(t, template, "ec")
		if (err != nil) != (theirs == nil) {
			t.Fatalf("we say %v, certtool says %s, for\n%q", err, talk, template)
		}
		if err == nil {
			compared++
			compare(t, asCertificate(t, ours), mustTakeApart(t, theirs))
			if want := warningsOf(talk); !slices.Equal(warnings, want) {
				t.Errorf("warnings: ours %q, certtool's %q", warnings, want)
			}
		}
		if t.Failed() {
			t.Fatalf("for\n%q", template)
		}
	}
	if compared < 20 {
		t.Fatalf("only %d texts were compared", compared)
	}
}

// Dates that count from now, within the seconds that the two programs are apart.
func TestRelativeDates(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	templates := []string{"", "expiration_days = 1\n", "expiration_days = 36500\n", "expiration_days = 0\n", "expiration_days = -2\n", "expiration_days = -3\n",
		"expiration_days = soon\n", "expiration_days = 10x\n", "expiration_days = 99999999999\n", "expiration_date = \"next year\"\n",
		"activation_date = \"1 hour ago\"\nexpiration_days = 2\n", "activation_date = yesterday\nexpiration_date = \"3 weeks\"\n",
		"activation_date = \"2 years\"\n", "expiration_date = \"next monday\"\n", "expiration_days = \"\"\n"}
	for _, template := range templates {
		before := time.Now().UTC().Add(-2 * time.Second) // time(2), which certtool asks, is a tick of the kernel behind: long, where a machine stands still
		der, talk := l.generate(t, fixedSerial+template, "ec")
		if der == nil {
			t.Fatalf("certtool refuses %q: %s", template, talk)
		}
		theirs := mustTakeApart(t, der)
		parsed, _, err := Parse([]byte(template), Compat)
		must(t, err)
		low, err := parsed.Certificate(before, l.keys["ec"], Options{})
		must(t, err)
		high, err := parsed.Certificate(time.Now().UTC(), l.keys["ec"], Options{})
		must(t, err)
		for _, p := range [][3]time.Time{{low.Template.NotBefore, theirs.notBefore, high.Template.NotBefore}, {low.Template.NotAfter, theirs.notAfter, high.Template.NotAfter}} {
			if p[1].Before(p[0]) || p[1].After(p[2]) {
				t.Errorf("%q: certtool's %v is not from %v to %v", template, p[1], p[0], p[2])
			}
		}
	}
	for _, template := range []string{"expiration_days = 0\n", "expiration_days = -2\n", "expiration_days = -3\n", "activation_date = \"2 years\"\n"} {
		parsed, _, err := Parse([]byte(template), Strict)
		if err == nil {
			_, err = parsed.Certificate(time.Now().UTC(), l.keys["ec"], Options{})
		}
		if err == nil {
			t.Errorf("the strict mode takes %q", template)
		}
	}
}

func TestWhatTheIssuerNeeds(t *testing.T) {
	now := time.Date(2027, 1, 2, 3, 4, 5, 6, time.UTC)
	for template, want := range map[string][2]bool{"": {false, false}, "expiration_days = -1\n": {true, true}, "expiration_days = 5\n": {true, false},
		"expiration_date = \"9999-12-31 23:59:59\"\n": {true, true}} {
		parsed, _, err := Parse([]byte(template), Strict)
		must(t, err)
		c, err := parsed.Certificate(now, nil, Options{})
		must(t, err)
		if c.EndIsStated != want[0] || c.NeverExpires != want[1] || !c.Template.NotBefore.Equal(now.Truncate(time.Second)) {
			t.Errorf("%q: %+v", template, c)
		}
	}
	parsed, _, err := Parse([]byte("encryption_key\npassword = p\nchallenge_password = c\npkcs12_key_name = n\n"), Strict)
	must(t, err)
	c, err := parsed.Certificate(now, &ecdsa.PublicKey{Curve: elliptic.P256()}, Options{})
	must(t, err)
	if len(c.Warnings) != 1 || c.Warnings[0].Line != 1 || parsed.Text("password") != "p" || parsed.Text("challenge_password") != "c" ||
		parsed.Text("pkcs12_key_name") != "n" || parsed.Has("ca") || parsed.Mode() != Strict {
		t.Errorf("got %+v", c.Warnings)
	}
}

// Names that come as raw DER are shown to the checks of names all the same.
func TestRawNamesAreLifted(t *testing.T) {
	for _, template := range []string{"cn = x\nadd_critical_extension = 2.5.29.17 3003820178\n", "cn = x\nhonor_crq_extensions\n"} {
		parsed, _, err := Parse([]byte(template), Strict)
		must(t, err)
		raw := []cert.Extension{{ID: cert.OIDSubjectAltName, Critical: true, Value: []byte{0x30, 3, 0x82, 1, 'x'}}}
		c, err := parsed.Certificate(time.Now(), nil, Options{Request: &Request{Extensions: raw}})
		must(t, err)
		if got := c.Template; len(got.SAN) != 1 || got.SAN[0].String() != "dns:x" || !got.SANCritical || len(got.Extra) != 0 {
			t.Errorf("%q: SAN %v, extra %v", template, got.SAN, got.Extra)
		}
	}
}

func (l *lab) request(t *testing.T) (*Request, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	extensions := []pkix.Extension{
		{Id: cert.OIDSubjectAltName, Value: []byte{0x30, 5, 0x82, 3, 'r', 'e', 'q'}},
		{Id: cert.OIDKeyUsage, Value: []byte{3, 2, 3, 8}},
		{Id: cert.OIDExtKeyUsage, Value: []byte{0x30, 4, 6, 2, 0x2a, 3}},
		{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}},
		{Id: cert.OIDBasicConstraints, Value: []byte{0x30, 3, 1, 1, 0xff}},
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "req", Organization: []string{"R"}}, ExtraExtensions: extensions}, key)
	must(t, err)
	parsed, err := x509.ParseCertificateRequest(der)
	must(t, err)
	name, err := cert.ParseNameDER(parsed.RawSubject)
	must(t, err)
	r := &Request{Subject: name}
	for _, x := range extensions {
		r.Extensions = append(r.Extensions, cert.Extension{ID: x.Id, Critical: x.Critical, Value: x.Value})
	}
	l.keys["csr"] = key.Public()
	return r, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func TestRequestsAreHonoredAsCerttoolDoes(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	request, text := l.request(t)
	l.write(t, "r.csr", text)
	for _, template := range []string{"", "cn = t\n", "honor_crq_extensions\n", "honor_crq_ext = 2.5.29.17\ndns_name = t\n",
		"honor_crq_extensions\ndns_name = t\ntls_www_server\nkey_agreement\n", "honor_crq_ext = 1.2.3\nhonor_crq_ext = 2.5.29.19\n",
		"honor_crq_ext = 1.2.9\n", "honor_crq_extensions\nadd_extension = 1.2.3 0501\nca\n"} {
		template = withFixed(template)
		l.write(t, "t.tmpl", template)
		out, talk, ok := l.run(t, "--generate-certificate", "--template", "t.tmpl", "--load-request", "r.csr",
			"--load-ca-certificate", "ca.pem", "--load-ca-privkey", "ca.key")
		if !ok {
			t.Fatalf("certtool refuses: %s", talk)
		}
		ours, _, err := l.build(t, template, "csr", Strict, Options{Request: request})
		must(t, err)
		compare(t, asCertificate(t, ours), mustTakeApart(t, pemBlock(t, out)))
		if t.Failed() {
			t.Fatalf("for\n%s", template)
		}
	}
}

func TestSelfSignedAndProxy(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	template := withFixed("cn = root\nca\ncert_signing_key\n")
	l.write(t, "t.tmpl", template)
	out, talk, ok := l.run(t, "--generate-self-signed", "--template", "t.tmpl", "--load-privkey", "ec.key")
	if !ok {
		t.Fatal(talk)
	}
	ours, _, err := l.build(t, template, "ec", Strict, Options{SelfSigned: true})
	must(t, err)
	theirs := mustTakeApart(t, pemBlock(t, out))
	a := asCertificate(t, ours)
	a.issuer = a.subject // build signs with the lab's CA
	compare(t, a, theirs)
	var b bytes.Buffer
	b.WriteString(GeneratingSelfSigned)
	must(t, PrintUnsigned(&b, pemBlock(t, out)))
	b.WriteString(Signing)
	if asCerttool(b.String()) != talk {
		t.Errorf("the text differs at:\n%s", firstDifference(asCerttool(b.String()), talk))
	}

	for _, template := range []string{"cn = p\npath_len = 2\nsigning_key\n", "cn = p\nproxy_policy_language = 1.3.6.1.5.5.7.21.2\ndns_name = x\n", "unit = u\n"} {
		template = withFixed(template)
		l.write(t, "t.tmpl", template)
		out, talk, ok := l.run(t, "--generate-proxy", "--template", "t.tmpl", "--load-privkey", "ec.key", "--load-certificate", "ca.pem", "--load-ca-privkey", "ca.key")
		if !ok {
			t.Fatal(talk)
		}
		name, err := cert.ParseNameDER(l.ca.RawSubject)
		must(t, err)
		ours, _, err := l.build(t, template, "ec", Compat, Options{ProxyOf: name})
		must(t, err)
		compare(t, asCertificate(t, ours), mustTakeApart(t, pemBlock(t, out)))
		l.comparePrint(t, pemBlock(t, out), strings.Replace(talk, "a proxy", "a signed", 1))
	}
}

func TestCRLTemplates(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	victim, _ := l.generate(t, withFixed("cn = v\n"), "ec")
	l.write(t, "v.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: victim})))
	for _, c := range []struct {
		template, strict string
		refused          bool
	}{
		{template: ""}, {template: "crl_number = 3\ncrl_next_update = 5\n"}, {template: "crl_number = 0x0102\n"},
		{template: "crl_this_update_date = 2026-01-01\ncrl_next_update_date = 2026-02-01\ncrl_revocation_date = \"2025-12-01 UTC\"\ncrl_number = 9\n"},
		{template: "crl_next_update = -1\n"}, {template: "crl_next_update = 0\n", strict: "from 1"}, {template: "crl_next_update = x\n", strict: "decimal"},
		{template: "crl_number = x\n", strict: "decimal", refused: true}, {template: "crl_number = 0\n", strict: "decimal", refused: true},
		{template: "crl_number = 0x123\n", strict: "even", refused: true}, {template: "crl_number = 0x0102030405060708090a0b0c0d0e0f10111213141516\n", strict: "20", refused: true},
		{template: "crl_this_update_date = 2027-01-01\ncrl_next_update_date = 2026-01-01\n", strict: "would not be after"},
		{template: "crl_this_update_date = 2036-01-01\ncrl_next_update = 3\n", strict: "would not be after"},
		{template: "crl_next_update_date = \"next year\"\ncrl_next_update = 3\n", strict: "beside"}, {template: "crl_next_update_date = \"Feb 30\"\n", strict: "does not exist", refused: true},
		{template: "cn = x\nexpiration_days = 3\n"}, {template: "serial = x\n", strict: "decimal", refused: true}, {template: "other_name = 1.2.3\n", strict: "identifier", refused: true},
		{template: "dn = XX=x\nother_name = x y\nexpiration_date = xyz\n"},
	} {
		l.write(t, "c.tmpl", c.template)
		before := time.Now().UTC().Add(-20 * time.Millisecond) // time(2), which certtool asks, is behind by up to a tick
		out, talk, ok := l.run(t, "--generate-crl", "--template", "c.tmpl", "--load-certificate", "v.pem", "--load-ca-certificate", "ca.pem", "--load-ca-privkey", "ca.key")
		low, errLow := crlOf(c.template, Compat, before)
		high, _ := crlOf(c.template, Compat, time.Now().UTC())
		if ok == c.refused || (errLow != nil) != c.refused {
			t.Fatalf("%q: we say %v, certtool says %v %s", c.template, errLow, ok, talk)
		}
		if _, err := crlOf(c.template, Strict, before); (err != nil) != (c.strict != "") || err != nil && !strings.Contains(err.Error(), c.strict) {
			t.Errorf("%q: the strict mode says %v, want %q", c.template, err, c.strict)
		}
		if c.refused {
			continue
		}
		theirs, err := x509.ParseRevocationList(pemBlock(t, out))
		must(t, err)
		if low.Number != nil && low.Number.Cmp(theirs.Number) != 0 {
			t.Errorf("%q: number %v, certtool's %v", c.template, low.Number, theirs.Number)
		}
		for _, p := range [][3]time.Time{{low.ThisUpdate, theirs.ThisUpdate, high.ThisUpdate}, {low.NextUpdate, theirs.NextUpdate, high.NextUpdate},
			{low.RevokedAt, theirs.RevokedCertificateEntries[0].RevocationTime, high.RevokedAt}} {
			if p[1].Before(p[0]) || p[1].After(p[2]) {
				t.Errorf("%q: certtool's %v is not from %v to %v", c.template, p[1], p[0], p[2])
			}
		}
		l.comparePrintedCRL(t, out, talk)
	}
}

func crlOf(template string, mode Mode, now time.Time) (*CRL, error) {
	parsed, _, err := Parse([]byte(template), mode)
	if err != nil {
		return nil, err
	}
	return parsed.CRL(now)
}

func (l *lab) comparePrintedCRL(t *testing.T, pemText, talk string) {
	t.Helper()
	l.write(t, "c.pem", pemText)
	want, _, ok := l.run(t, "--crl-info", "--infile", "c.pem")
	if !ok {
		t.Fatal("certtool cannot print its CRL")
	}
	var b bytes.Buffer
	must(t, PrintCRL(&b, pemBlock(t, pemText)))
	if asCerttool(b.String()) != want {
		t.Errorf("the printed CRL differs at:\n%s", firstDifference(asCerttool(b.String()), want))
	}
	text, _, _ := strings.Cut(b.String(), "-----BEGIN")
	if GeneratingCRL+text != talk {
		t.Errorf("the text of generation differs at:\n%s", firstDifference(fmt.Sprint(GeneratingCRL, text), talk))
	}
}

// S1 of the libvirt scenarios: the page's template becomes a certificate that certtool and openssl verify.
func TestLibvirtTemplateIsIssued(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	signer, err := x509.ParsePKCS8PrivateKey(pemBlock(t, l.read(t, "ca.key")))
	must(t, err)
	parsed, _, err := Parse([]byte("organization = libvirt.org\ncn = host1\ntls_www_server\nencryption_key\nsigning_key\n"), Strict)
	must(t, err)
	now := time.Now()
	c, err := parsed.Certificate(now, l.keys["rsa"], Options{})
	must(t, err)
	spki, err := x509.MarshalPKIXPublicKey(l.keys["rsa"])
	must(t, err)
	serial, err := cert.NewSerial()
	must(t, err)
	tbs, err := cert.Build(c.Template, spki, serial, l.issuer)
	must(t, err)
	linted, err := tbs.Lint(cert.Lints{})
	must(t, err)
	der, err := linted.Sign(signer.(crypto.Signer))
	must(t, err)
	l.write(t, "c.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	if out, talk, ok := l.run(t, "--verify", "--load-ca-certificate", "ca.pem", "--infile", "c.pem"); !ok {
		t.Errorf("certtool does not verify it: %s%s", out, talk)
	}
	l.openssl(t, "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "ca.pem", "c.pem")
	l.comparePrintedCertificate(t, der)
	if days := c.Template.NotAfter.Sub(c.Template.NotBefore).Hours() / 24; days != 365 {
		t.Errorf("it is valid for %v days", days)
	}
}
