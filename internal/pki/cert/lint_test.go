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

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// lintCase changes a template that passes so that one lint must refuse it.
type lintCase struct {
	lint   string
	says   string
	change func(*Template)
	serial *big.Int
	spki   []byte
	issuer func(*Template) // changes the issuer
}

func lintCases(t *testing.T) []lintCase {
	subject := func(tag cbasn1.Tag, oid asn1.ObjectIdentifier, value string) func(*Template) {
		return func(x *Template) { x.Subject = Name{{{Type: oid, Value: value, Tag: tag}}} }
	}
	ca := func(change func(*Template)) func(*Template) {
		return func(x *Template) {
			x.BasicConstraints, x.ExtKeyUsage, x.SAN = &BasicConstraints{CA: true, PathLen: -1}, nil, nil
			x.KeyUsage = x509.KeyUsageCertSign
			change(x)
		}
	}
	usage := func(u x509.KeyUsage) func(*Template) { return func(x *Template) { x.KeyUsage = u } }
	extra := func(e Extension) func(*Template) { return func(x *Template) { x.Extra = []Extension{e} } }
	sub := func(x *Template) {
		x.NameConstraints = &NameConstraints{Permitted: namesOf(t, "dns:example.com"), Excluded: namesOf(t, "dns:bad.example.com")}
		x.BasicConstraints.PathLen = 0
	}
	return []lintCase{
		{lint: "serial-number", says: "not positive", serial: big.NewInt(-7)},
		{lint: "serial-number", says: "not positive", serial: new(big.Int)},
		{lint: "serial-number", says: "21 octets: 20 at most", serial: new(big.Int).Lsh(big.NewInt(1), 159)},
		{lint: "validity-order", says: "before notBefore", change: func(x *Template) { x.NotAfter = x.NotBefore.Add(-time.Second) }},
		{lint: "validity-within-issuer", says: "beyond the issuer's", change: func(x *Template) { x.NotAfter = testNow.AddDate(11, 0, 0) }},
		{lint: "subject-present", says: "a CA needs a subject", change: ca(func(x *Template) { x.Subject = nil })},
		{lint: "subject-present", says: "critical subjectAltName", change: func(x *Template) { x.Subject, x.SAN = nil, nil }},
		{lint: "subject-strings", says: "must be an IA5String", change: subject(cbasn1.UTF8String, OIDDomainComponent, "x")},
		{lint: "subject-strings", says: "PrintableString or a UTF8String", change: subject(cbasn1.T61String, OIDCommonName, "x")},
		{lint: "subject-strings", says: "not in PrintableString", change: subject(cbasn1.PrintableString, OIDCommonName, "a@b")},
		{lint: "subject-strings", says: "CN of 65 characters: 64", change: subject(0, OIDCommonName, strings.Repeat("a", 65))},
		{lint: "subject-strings", says: "two capital letters", change: subject(0, OIDCountry, "de")},
		{lint: "subject-strings", says: "C of 3 characters", change: subject(0, OIDCountry, "DEU")},
		{lint: "subject-strings", says: "O is empty", change: subject(0, OIDOrganization, "")},
		{lint: "subject-strings", says: "no string", change: subject(cbasn1.OCTET_STRING, OIDCommonName, "x")},
		{lint: "subject-characters", says: "U+0000", change: subject(0, OIDCommonName, "a\x00b")},
		{lint: "subject-characters", says: "U+202E", change: subject(0, OIDCommonName, "a\u202eb")},
		{lint: "subject-blanks", says: "blank at an end", change: subject(0, OIDCommonName, "host1 ")},
		{lint: "public-key", says: "RSA key of 1023 bits", spki: rsaSPKI(oddBits(1023), big.NewInt(65537)),
			change: usage(x509.KeyUsageDigitalSignature)},
		{lint: "unique-identifiers", says: "not to be made", change: func(x *Template) { x.SubjectUniqueID = []byte{1} }},
		{lint: "extension-unique", says: "subjectAltName appears twice", change: extra(sanOf("host2.example.com"))},
		{lint: "extension-critical", says: "basicConstraints: critical must be true",
			change: ca(func(x *Template) {
				x.BasicConstraints = nil
				x.Extra = []Extension{{ID: OIDBasicConstraints, Value: []byte{0x30, 3, 1, 1, 0xff}}}
			})},
		{lint: "extension-critical", says: "authorityInfoAccess: critical must be false",
			change: extra(Extension{ID: OIDAuthorityInfoAccess, Critical: true, Value: []byte{0x30, 0}})},
		{lint: "authority-key-id", says: "missing", change: func(x *Template) { x.OmitAuthorityKeyID = true }},
		{lint: "authority-key-id", says: "is not the issuer's", change: func(x *Template) { x.AuthorityKeyID = []byte{1} }},
		{lint: "subject-key-id", says: "a CA needs", change: ca(func(x *Template) { x.SubjectKeyID = KeyIDNone })},
		{lint: "key-usage", says: "without a usage", change: func(x *Template) {
			x.KeyUsage = 0
			x.Extra = []Extension{{ID: OIDKeyUsage, Value: []byte{3, 1, 0}}}
		}},
		{lint: "key-usage", says: "keyUsage with keyCertSign", change: ca(usage(x509.KeyUsageCRLSign))},
		{lint: "key-usage", says: "without basicConstraints CA:TRUE", change: usage(x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature)},
		{lint: "key-usage", says: "with keyAgreement only", change: usage(x509.KeyUsageEncipherOnly | x509.KeyUsageDigitalSignature)},
		{lint: "key-usage-of-key", says: "not for an EC key", change: usage(x509.KeyUsageKeyEncipherment | x509.KeyUsageDigitalSignature)},
		{lint: "key-usage-of-key", says: "not for an RSA key", change: usage(x509.KeyUsageKeyAgreement), spki: spkiOf(t, rsaKey())},
		{lint: "key-usage-of-key", says: "only signs", change: usage(x509.KeyUsageKeyAgreement), spki: spkiOf(t, ed25519Key(t))},
		{lint: "policies", says: "appears twice", change: func(x *Template) {
			x.Policies = []Policy{{ID: asn1.ObjectIdentifier{1, 2, 3}}, {ID: asn1.ObjectIdentifier{1, 2, 3}}}
		}},
		{lint: "san-content", says: "letters, digits", change: func(x *Template) { x.SAN = []GeneralName{DNSName("a\x00b")} }},
		{lint: "san-content", says: "253 at most", change: func(x *Template) { x.SAN = []GeneralName{DNSName(strings.Repeat("abcdefghi.", 30) + "com")} }},
		{lint: "basic-constraints", says: "pathLenConstraint without CA", change: func(x *Template) {
			x.BasicConstraints = nil
			x.Extra = []Extension{{ID: OIDBasicConstraints, Critical: true, Value: []byte{0x30, 3, 2, 1, 0}}}
		}},
		{lint: "path-length", says: "permits no CA below", issuer: sub, change: ca(func(x *Template) { x.Subject = mustName(t, "CN=x") })},
		{lint: "path-length", says: "permits a path length of 0 to 1", issuer: func(x *Template) { x.BasicConstraints.PathLen = 2 },
			change: ca(func(x *Template) { x.BasicConstraints.PathLen = 2 })},
		{lint: "name-constraints", says: "certificate of a CA", change: func(x *Template) {
			x.NameConstraints = &NameConstraints{Permitted: namesOf(t, "dns:a")}
		}},
		{lint: "name-constraints", says: "host or .domain", change: ca(func(x *Template) {
			x.NameConstraints = &NameConstraints{Permitted: []GeneralName{URIName("https://example.com")}}
		})},
		{lint: "name-constraints", says: "no wildcard", change: ca(func(x *Template) {
			x.NameConstraints = &NameConstraints{Excluded: []GeneralName{DNSName("*.example.com")}}
		})},
		{lint: "name-constraints", says: "not understood", change: ca(func(x *Template) {
			x.NameConstraints = &NameConstraints{Excluded: []GeneralName{{Kind: RegisteredID, Value: "1.2.3"}}}
		})},
		{lint: "issuer-constraints", says: "excluded by dns:bad.example.com", issuer: sub, change: func(x *Template) {
			x.SAN = []GeneralName{DNSName("a.bad.example.com")}
		}},
		{lint: "issuer-constraints", says: "not within the permitted", issuer: sub, change: func(x *Template) {
			x.SAN = []GeneralName{DNSName("example.org")}
		}},
		{lint: "ext-key-usage", says: "appears twice", change: func(x *Template) { x.ExtKeyUsage = append(x.ExtKeyUsage, OIDServerAuth) }},
		{lint: "ext-key-usage", says: "critical", change: func(x *Template) {
			x.ExtKeyUsage, x.ExtKeyUsageCritical = []asn1.ObjectIdentifier{OIDAnyExtKeyUsage}, true
		}},
		{lint: "ext-key-usage", says: "needs keyUsage digitalSignature", change: usage(x509.KeyUsageContentCommitment)},
		{lint: "pointers", says: "must be plain http", change: func(x *Template) { x.OCSPServers = []string{"https://a.example.com/"} }},
		{lint: "pointers", says: "not an absolute URI", change: func(x *Template) { x.CRLDistributionPoints = []string{"/crl"} }},
		{lint: "pointers", says: "http or ldap", change: func(x *Template) { x.CAIssuers = []string{"file:///ca.cer"} }},
		{lint: "ocsp-nocheck", says: "without the extended key usage OCSPSigning", change: func(x *Template) { x.OCSPNoCheck = true }},
	}
}

// TestLints shows for each lint a certificate that it refuses, and that the refusal names the lint.
func TestLints(t *testing.T) {
	key := p256(t)
	seen := map[string]bool{}
	for _, c := range lintCases(t) {
		template := leafTemplate()
		if c.change != nil {
			c.change(template)
		}
		if c.serial == nil {
			c.serial = big.NewInt(7)
		}
		if c.spki == nil {
			c.spki = spkiOf(t, key)
		}
		if c.issuer == nil {
			c.issuer = func(*Template) {}
		}
		tbs, err := Build(template, c.spki, c.serial, newRoot(t, key, c.issuer))
		if err != nil {
			t.Errorf("%s: %v", c.lint, err)
			continue
		}
		_, err = tbs.Lint(Lints{})
		refused(t, err, fault.Invalid, "lint "+c.lint+" (", c.says)
		seen[c.lint] = true
		names, fixed := LintNames()
		_, err = tbs.Lint(Lints{Off: []string{c.lint}})
		if fixed[c.lint] {
			refused(t, err, fault.Invalid, "cannot be turned off")
			continue
		}
		off := slices.DeleteFunc(names, func(name string) bool { return fixed[name] })
		if linted, err := tbs.Lint(Lints{Off: off}); err == nil && len(linted.Warnings()) == 0 {
			t.Errorf("%s is off and its finding is no warning", c.lint)
		}
	}
	elsewhere := []string{"validity-encoding", "issuer-usage"} // see the tests below
	names, _ := LintNames()
	for _, name := range names {
		if !seen[name] && !slices.Contains(elsewhere, name) {
			t.Errorf("no case for lint %s", name)
		}
	}
	_, err := (&TBS{}).Lint(Lints{Off: []string{"no-such-lint"}})
	refused(t, err, fault.Invalid, "there is no lint")
}

// TestLintReadsOctets: the lints judge what is signed, so damage to the octets is seen whatever the template said.
func TestLintReadsOctets(t *testing.T) {
	key := p256(t)
	issuer := newRoot(t, key)
	damage := func(old, replacement string) error {
		tbs, err := Build(leafTemplate(), spkiOf(t, key), big.NewInt(7), issuer)
		if err != nil {
			t.Fatal(err)
		}
		before := string(tbs.der)
		tbs.der = []byte(strings.Replace(before, old, replacement, 1))
		if string(tbs.der) == before || len(old) != len(replacement) {
			t.Fatalf("%q is not in the certificate", old)
		}
		_, err = tbs.Lint(Lints{})
		return err
	}
	refused(t, damage("\x17\x0d261102115500Z", "\x17\x0d261302115500Z"), fault.Invalid, "validity-encoding", "261302115500Z")
	refused(t, damage("\x17\x0d261102115500Z", "\x17\x0d2611021155+01"), fault.Invalid, "validity-encoding")
	refused(t, damage("host1.example.com\x30", "host1\x00example.com\x30"), fault.Invalid, "subject-characters")
	refused(t, damage("\x02\x01\x02\x02\x01\x07", "\x02\x01\x01\x02\x01\x07"), fault.Invalid, "lint encoding")
}

// TestLintIssuer: an issuer that is no CA, or may not sign certificates, issues nothing.
func TestLintIssuer(t *testing.T) {
	key := p256(t)
	leaf := issue(t, leafTemplate(), spkiOf(t, key), newRoot(t, key), key)
	build := func(issuer *x509.Certificate) error {
		tbs, err := Build(leafTemplate(), spkiOf(t, key), big.NewInt(7), &Issuer{Certificate: issuer})
		if err != nil {
			t.Fatal(err)
		}
		_, err = tbs.Lint(Lints{})
		return err
	}
	refused(t, build(leaf), fault.Invalid, "issuer-usage", "is not a CA")
	root := *newRoot(t, key).Certificate
	root.KeyUsage = x509.KeyUsageCRLSign
	refused(t, build(&root), fault.Invalid, "issuer-usage", "lacks keyCertSign")
}

// TestLintNamesAll: a certificate with several faults is refused once, and all are named.
func TestLintNamesAll(t *testing.T) {
	key := p256(t)
	template := leafTemplate()
	template.NotAfter = testNow.AddDate(-1, 0, 0)
	template.SAN = []GeneralName{DNSName("a b")}
	tbs, err := Build(template, spkiOf(t, key), big.NewInt(-1), newRoot(t, key))
	if err != nil {
		t.Fatal(err)
	}
	_, err = tbs.Lint(Lints{})
	refused(t, err, fault.Invalid, "serial-number", "validity-order", "san-content")
}

// TestBuildRefuses: what cannot be encoded is refused before any lint.
func TestBuildRefuses(t *testing.T) {
	key := p256(t)
	issuer := newRoot(t, key)
	minus := -1
	for what, change := range map[string]func(*Template){
		"path length": func(x *Template) { x.BasicConstraints = &BasicConstraints{PathLen: 1} },
		"keyUsage":    func(x *Template) { x.KeyUsage = 1 << 9 },
		"EKU":         func(x *Template) { x.ExtKeyUsage = []asn1.ObjectIdentifier{{1}} },
		"SAN":         func(x *Template) { x.SAN = []GeneralName{DNSName("bücher.example")} },
		"address":     func(x *Template) { x.SAN = []GeneralName{{Kind: IPAddress, Value: "x"}} },
		"otherName":   func(x *Template) { x.SAN = []GeneralName{{Kind: OtherName, OtherName: oidCPS, DER: []byte{4}}} },
		"kind":        func(x *Template) { x.SAN = []GeneralName{{Kind: 9}} },
		"rid":         func(x *Template) { x.SAN = []GeneralName{{Kind: RegisteredID, Value: "x"}} },
		"dirname":     func(x *Template) { x.SAN = []GeneralName{{Kind: DirectoryName, DER: []byte{1}}} },
		"URL":         func(x *Template) { x.OCSPServers = []string{"http://bücher.example/"} },
		"CDP":         func(x *Template) { x.CRLDistributionPoints = []string{"http://bücher.example/"} },
		"policy":      func(x *Template) { x.Policies = []Policy{{}} },
		"notice":      func(x *Template) { x.Policies = []Policy{{ID: OIDAnyPolicy, UserNotice: strings.Repeat("ä", 201)}} },
		"CPS":         func(x *Template) { x.Policies = []Policy{{ID: OIDAnyPolicy, CPS: "ä"}} },
		"inhibit":     func(x *Template) { x.InhibitAnyPolicy = &minus },
		"constraints": func(x *Template) { x.NameConstraints = &NameConstraints{} },
		"constraint":  func(x *Template) { x.NameConstraints = &NameConstraints{Permitted: []GeneralName{{Kind: IPAddress}}} },
		"feature":     func(x *Template) { x.TLSFeatures = []int{70000} },
		"proxy":       func(x *Template) { x.ProxyCertInfo = &ProxyCertInfo{} },
		"extra":       func(x *Template) { x.Extra = []Extension{{ID: asn1.ObjectIdentifier{5, 6, 7, 8}}} },
		"subject":     func(x *Template) { x.Subject = Name{{{Type: OIDCountry, Value: "Ö"}}} },
		"empty RDN":   func(x *Template) { x.Subject = Name{{}} },
	} {
		template := leafTemplate()
		change(template)
		if _, err := Build(template, spkiOf(t, key), big.NewInt(1), issuer); err == nil {
			t.Errorf("%s: encoded", what)
		} else if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v is no refusal", what, err)
		}
	}
}
