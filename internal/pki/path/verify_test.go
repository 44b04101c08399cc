package path_test

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/path"
)

// pathCase changes a good path of leaf, sub CA and root so that one rule must refuse it.
type pathCase struct {
	rule, says      string // "" : valid
	root, sub, leaf func(*cert.Template)
	options         func(*path.Options)
	change          func(chain []*x509.Certificate) []*x509.Certificate
}

// path issues the path; each certificate may break lints, so it is signed past them.
func (c pathCase) path(t *testing.T) []*x509.Certificate {
	t.Helper()
	keys := []*ecdsa.PrivateKey{p256(t), p256(t), p256(t)}
	root, sub := caTemplate("Root"), caTemplate("Sub")
	leaf := &cert.Template{
		Subject: cert.CommonName("host1.example.com"), NotBefore: testNow.Add(-5 * time.Minute), NotAfter: testNow.AddDate(0, 0, 90),
		BasicConstraints: &cert.BasicConstraints{}, KeyUsage: x509.KeyUsageDigitalSignature, KeyUsageCritical: true,
		ExtKeyUsage: []asn1.ObjectIdentifier{cert.OIDServerAuth}, SAN: []cert.GeneralName{cert.DNSName("host1.example.com")},
	}
	for template, change := range map[*cert.Template]func(*cert.Template){root: c.root, sub: c.sub, leaf: c.leaf} {
		if change != nil {
			change(template)
		}
	}
	rootCert := sign(t, root, keys[0], nil, keys[0])
	subCert := sign(t, sub, keys[1], rootCert, keys[0])
	return []*x509.Certificate{sign(t, leaf, keys[2], subCert, keys[1]), subCert, rootCert}
}

func pathCases(t *testing.T) []pathCase {
	policies := func(texts ...string) func(*cert.Template) {
		return func(x *cert.Template) { x.Policies = policiesOf(t, texts...) }
	}
	explicit := func(o *path.Options) { o.ExplicitPolicy = true }
	wants := func(oid asn1.ObjectIdentifier) func(*path.Options) {
		return func(o *path.Options) { o.ExtKeyUsages = []asn1.ObjectIdentifier{oid} }
	}
	usage := func(oid asn1.ObjectIdentifier) func(*cert.Template) {
		return func(x *cert.Template) { x.ExtKeyUsage = []asn1.ObjectIdentifier{oid} }
	}
	pathLen := func(n int) func(*cert.Template) { return func(x *cert.Template) { x.BasicConstraints.PathLen = n } }
	critical := func(x *cert.Template) {
		x.Extra = []cert.Extension{{ID: asn1.ObjectIdentifier{1, 2, 3}, Critical: true}}
	}
	names := func(texts ...string) func(*cert.Template) {
		return func(x *cert.Template) { x.SAN = namesOf(t, texts...) }
	}
	constrained := func(x *cert.Template) {
		x.NameConstraints = &cert.NameConstraints{Permitted: namesOf(t, "dns:example.com"), Excluded: namesOf(t, "dns:bad.example.com")}
	}
	return []pathCase{
		{},
		{options: wants(cert.OIDServerAuth)},
		{options: wants(cert.OIDClientAuth), rule: "extKeyUsage", says: "[clientAuth]"},
		{sub: usage(cert.OIDClientAuth), options: wants(cert.OIDServerAuth), rule: "extKeyUsage",
			says: "certificate 2 of the path (CN=Sub"},
		{sub: usage(cert.OIDAnyExtKeyUsage), options: wants(cert.OIDServerAuth)},
		{options: func(o *path.Options) { o.Time = testNow.AddDate(1, 0, 0) }, rule: "validity", says: "not valid after"},
		{options: func(o *path.Options) { o.Time = testNow.AddDate(-1, 0, 0) }, rule: "validity", says: "certificate 3 of the path (CN=Root"},
		{leaf: func(x *cert.Template) { x.NotBefore = testNow.Add(time.Hour) }, rule: "validity", says: "not valid before"},
		{sub: func(x *cert.Template) { x.BasicConstraints = nil }, rule: "basic constraints", says: "is no CA"},
		{sub: func(x *cert.Template) { x.KeyUsage = x509.KeyUsageCRLSign }, rule: "key usage", says: "lacks keyCertSign"},
		{sub: func(x *cert.Template) { x.KeyUsage = 0 }},
		{root: pathLen(0), rule: "path length", says: "permits no CA here"},
		{root: pathLen(1)},
		{sub: pathLen(0)},
		{sub: constrained},
		{root: constrained},
		{sub: constrained, leaf: names("dns:a.bad.example.com"), rule: "name constraints", says: "excluded"},
		{root: constrained, leaf: names("dns:example.org"), rule: "name constraints", says: "not within"},
		{leaf: critical, rule: "critical extension", says: "1.2.3 is critical"},
		{sub: critical, rule: "critical extension", says: "certificate 2"},
		{options: explicit, rule: "certificate policies", says: "explicit policy"},
		{options: explicit, sub: policies("1.2.3", "1.2.4"), leaf: policies("1.2.3")},
		{options: explicit, sub: policies("2.5.29.32.0"), leaf: policies("1.2.3")},
		{options: explicit, sub: policies("1.2.4"), leaf: policies("1.2.3"), rule: "certificate policies", says: "explicit policy"},
		{options: func(o *path.Options) { o.ExplicitPolicy, o.InhibitAnyPolicy = true, true }, sub: policies("2.5.29.32.0"),
			leaf: policies("1.2.3"), rule: "certificate policies", says: "explicit policy"},
		{options: func(o *path.Options) {
			o.ExplicitPolicy, o.InitialPolicies = true, []asn1.ObjectIdentifier{{1, 2, 9}}
		}, sub: policies("1.2.3"), leaf: policies("1.2.3"), rule: "certificate policies", says: "none that is wanted"},
		{sub: func(x *cert.Template) {
			x.Extra = []cert.Extension{{ID: cert.OIDPolicyConstraints, Critical: true, Value: []byte{0x30, 3, 0x80, 1, 0}}}
		},
			rule: "certificate policies", says: "explicit policy"},
		{change: func(p []*x509.Certificate) []*x509.Certificate { return []*x509.Certificate{p[0], p[2]} }, rule: "signature",
			says: "not signed by the key of CN=Root"},
		{change: func(p []*x509.Certificate) []*x509.Certificate { return p[2:] }},
		{change: func(p []*x509.Certificate) []*x509.Certificate { return p[1:] }},
		{change: func(p []*x509.Certificate) []*x509.Certificate { return slices.Repeat(p, 11) }, rule: "", says: "33 certificates"},
	}
}

// TestRules: each rule refuses by its name, and names the certificate.
func TestRules(t *testing.T) {
	for i, c := range pathCases(t) {
		t.Run(fmt.Sprint(i, c.rule, c.says), func(t *testing.T) {
			chain := c.path(t)
			options := path.Options{Time: testNow.Add(time.Minute)}
			if c.options != nil {
				c.options(&options)
			}
			given := chain
			if c.change != nil {
				given = c.change(chain)
			}
			result, err := path.Verify(given, options)
			if c.rule == "" && c.says == "" {
				if err != nil || result == nil {
					t.Fatal(err)
				}
			} else {
				refused(t, err, fault.KindOf(err), c.rule, c.says)
				if e, ok := err.(*fault.Error); !ok || e.Pointer != c.rule {
					t.Errorf("%v does not point at the rule", err)
				}
			}
			if c.change != nil {
				return
			}
			built, buildErr := path.Build(chain[0], chain[1:], chain[2:], options)
			if (buildErr == nil) != (err == nil) || (err == nil && len(built) != 3) ||
				(err != nil && err.Error() != buildErr.Error()) {
				t.Errorf("built %d certificates, %v", len(built), buildErr)
			}
		})
	}
}

// TestBuildMissing: what is missing is said.
func TestBuildMissing(t *testing.T) {
	chain := pathCase{}.path(t)
	options := path.Options{Time: testNow.Add(time.Minute)}
	_, err := path.Build(chain[0], nil, chain[2:], options)
	refused(t, err, fault.Invalid, `the issuer "CN=Sub,O=Example" of CN=host1.example.com is neither given nor trusted`)
	_, err = path.Build(chain[0], chain[1:2], nil, options)
	refused(t, err, fault.Invalid, `the issuer "CN=Root,O=Example"`)
	if built, err := path.Build(chain[0], chain[1:], chain[:1], options); err != nil || len(built) != 1 {
		t.Errorf("a pinned leaf is its own path: %d, %v", len(built), err)
	}
	if _, err := path.Verify(chain, path.Options{}); err == nil || fault.KindOf(err) != fault.Internal {
		t.Errorf("a path needs a time: %v", err)
	}
}

// TestPolicyResult: the policies are those of the anchor's domain that the user wants.
func TestPolicyResult(t *testing.T) {
	// 1.2.3 → 1.2.4
	mapping := cert.Extension{ID: cert.OIDPolicyMappings, Value: []byte{0x30, 10, 0x30, 8, 6, 2, 0x2a, 3, 6, 2, 0x2a, 4}}
	chain := pathCase{
		sub: func(x *cert.Template) {
			x.Policies, x.Extra = policiesOf(t, "1.2.3", "1.2.7"), []cert.Extension{mapping}
		},
		leaf: func(x *cert.Template) { x.Policies = policiesOf(t, "1.2.4", "1.2.7") },
	}.path(t)
	for want, options := range map[string]path.Options{
		"[1.2.3 1.2.7]": {},
		"[1.2.3]":       {InitialPolicies: []asn1.ObjectIdentifier{{1, 2, 3}, {1, 2, 4}}, ExplicitPolicy: true},
		"[1.2.7]":       {InhibitPolicyMapping: true},
		"[]":            {InitialPolicies: []asn1.ObjectIdentifier{{1, 2, 4}}},
	} {
		options.Time = testNow.Add(time.Minute)
		result, err := path.Verify(chain, options)
		if err != nil || fmt.Sprint(result.Policies) != want {
			t.Errorf("%+v: %v, %v, want %s", options, result, err, want)
		}
	}
}

// TestCost: a path with more names and constraints than anyone needs is refused and not computed.
func TestCost(t *testing.T) {
	many := make([]cert.GeneralName, 600)
	for i := range many {
		many[i] = cert.DNSName(fmt.Sprintf("h%d.example.com", i))
	}
	chain := pathCase{
		sub:  func(x *cert.Template) { x.NameConstraints = &cert.NameConstraints{Excluded: many} },
		leaf: func(x *cert.Template) { x.SAN = many },
	}.path(t)
	_, err := path.Verify(chain, path.Options{Time: testNow.Add(time.Minute)})
	refused(t, err, fault.Invalid, "name constraints", "more names")
}
