package cert

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"testing"
	"time"

	"chancery/internal/fault"

	"golang.org/x/crypto/cryptobyte"
)

// pathCase changes a good path of leaf, sub CA and root so that one rule must refuse it.
type pathCase struct {
	rule, says      string // "" : valid
	root, sub, leaf func(*Template)
	options         func(*PathOptions)
	change          func(path []*x509.Certificate) []*x509.Certificate
}

func policyExtension(policies ...string) Extension {
	var b cryptobyte.Builder
	list := make([]Policy, len(policies))
	for i, text := range policies {
		oid, err := ParseOID(text)
		if err != nil {
			panic(err)
		}
		list[i].ID = oid
	}
	if err := addPolicyInformation(&b, list); err != nil {
		panic(err)
	}
	return Extension{ID: OIDCertificatePolicies, Value: b.BytesOrPanic()}
}

// testPath issues the path; each certificate may break lints, so it is signed past them.
func (c pathCase) path(t *testing.T) []*x509.Certificate {
	keys := []*ecdsa.PrivateKey{p256(t), p256(t), p256(t)}
	root := rootTemplate(t)
	sub := rootTemplate(t)
	sub.Subject = mustName(t, "CN=Sub,O=Example")
	leaf := leafTemplate()
	for template, change := range map[*Template]func(*Template){root: c.root, sub: c.sub, leaf: c.leaf} {
		if change != nil {
			change(template)
		}
	}
	rootCert := signAnything(t, root, spkiOf(t, keys[0]), nil, keys[0])
	subCert := signAnything(t, sub, spkiOf(t, keys[1]), rootCert, keys[0])
	return []*x509.Certificate{signAnything(t, leaf, spkiOf(t, keys[2]), subCert, keys[1]), subCert, rootCert}
}

// signAnything signs a template without lints.
func signAnything(t *testing.T, template *Template, spki []byte, issuer *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	serial, err := NewSerial()
	if err != nil {
		t.Fatal(err)
	}
	var tbs *TBS
	if issuer == nil {
		tbs, err = BuildSelfSigned(template, spki, serial, 0)
	} else {
		tbs, err = Build(template, spki, serial, &Issuer{Certificate: issuer})
	}
	if err != nil {
		t.Fatal(err)
	}
	der, err := (&Linted{tbs: tbs, serial: serial}).Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der)
}

func pathCases(t *testing.T) []pathCase {
	policies := func(texts ...string) func(*Template) {
		return func(x *Template) { x.Extra = append(x.Extra, policyExtension(texts...)) }
	}
	explicit := func(o *PathOptions) { o.ExplicitPolicy = true }
	wants := func(oid asn1.ObjectIdentifier) func(*PathOptions) {
		return func(o *PathOptions) { o.ExtKeyUsages = []asn1.ObjectIdentifier{oid} }
	}
	pathLen := func(n int) func(*Template) { return func(x *Template) { x.BasicConstraints.PathLen = n } }
	critical := func(x *Template) { x.Extra = []Extension{{ID: asn1.ObjectIdentifier{1, 2, 3}, Critical: true}} }
	constrained := func(x *Template) {
		x.NameConstraints = &NameConstraints{Permitted: namesOf(t, "dns:example.com"), Excluded: namesOf(t, "dns:bad.example.com")}
	}
	return []pathCase{
		{},
		{options: wants(OIDServerAuth)},
		{options: wants(OIDClientAuth), rule: "extKeyUsage", says: "[clientAuth]"},
		{sub: func(x *Template) { x.ExtKeyUsage = []asn1.ObjectIdentifier{OIDClientAuth} }, options: wants(OIDServerAuth), rule: "extKeyUsage",
			says: "certificate 2 of the path (CN=Sub"},
		{sub: func(x *Template) { x.ExtKeyUsage = []asn1.ObjectIdentifier{OIDAnyExtKeyUsage} }, options: wants(OIDServerAuth)},
		{options: func(o *PathOptions) { o.Time = testNow.AddDate(1, 0, 0) }, rule: "validity", says: "not valid after"},
		{options: func(o *PathOptions) { o.Time = testNow.AddDate(-1, 0, 0) }, rule: "validity", says: "certificate 3 of the path (CN=Root"},
		{leaf: func(x *Template) { x.NotBefore = testNow.Add(time.Hour) }, rule: "validity", says: "not valid before"},
		{sub: func(x *Template) { x.BasicConstraints = nil }, rule: "basic constraints", says: "is no CA"},
		{sub: func(x *Template) { x.KeyUsage = x509.KeyUsageCRLSign }, rule: "key usage", says: "lacks keyCertSign"},
		{sub: func(x *Template) { x.KeyUsage = 0 }},
		{root: pathLen(0), rule: "path length", says: "permits no CA here"},
		{root: pathLen(1)},
		{sub: pathLen(0)},
		{sub: constrained},
		{root: constrained},
		{sub: constrained, leaf: func(x *Template) { x.SAN = namesOf(t, "dns:a.bad.example.com") }, rule: "name constraints", says: "excluded"},
		{root: constrained, leaf: func(x *Template) { x.SAN = namesOf(t, "dns:example.org") }, rule: "name constraints", says: "not within"},
		{leaf: critical, rule: "critical extension", says: "1.2.3 is critical"},
		{sub: critical, rule: "critical extension", says: "certificate 2"},
		{options: explicit, rule: "certificate policies", says: "explicit policy"},
		{options: explicit, sub: policies("1.2.3", "1.2.4"), leaf: policies("1.2.3")},
		{options: explicit, sub: policies("2.5.29.32.0"), leaf: policies("1.2.3")},
		{options: explicit, sub: policies("1.2.4"), leaf: policies("1.2.3"), rule: "certificate policies", says: "explicit policy"},
		{options: func(o *PathOptions) { o.ExplicitPolicy, o.InhibitAnyPolicy = true, true }, sub: policies("2.5.29.32.0"),
			leaf: policies("1.2.3"), rule: "certificate policies", says: "explicit policy"},
		{options: func(o *PathOptions) {
			o.ExplicitPolicy, o.InitialPolicies = true, []asn1.ObjectIdentifier{{1, 2, 9}}
		}, sub: policies("1.2.3"), leaf: policies("1.2.3"), rule: "certificate policies", says: "none that is wanted"},
		{sub: func(x *Template) {
			x.Extra = []Extension{{ID: OIDPolicyConstraints, Critical: true, Value: []byte{0x30, 3, 0x80, 1, 0}}}
		},
			rule: "certificate policies", says: "explicit policy"},
		{change: func(p []*x509.Certificate) []*x509.Certificate { return []*x509.Certificate{p[0], p[2]} }, rule: "signature",
			says: "not signed by the key of CN=Root"},
		{change: func(p []*x509.Certificate) []*x509.Certificate { return p[2:] }},
		{change: func(p []*x509.Certificate) []*x509.Certificate { return p[1:] }},
		{change: func(p []*x509.Certificate) []*x509.Certificate { return slices.Repeat(p, 11) }, rule: "", says: "33 certificates"},
	}
}

// TestPathRules: each rule refuses by its name, and names the certificate.
func TestPathRules(t *testing.T) {
	for i, c := range pathCases(t) {
		t.Run(fmt.Sprint(i, c.rule, c.says), func(t *testing.T) {
			path := c.path(t)
			options := PathOptions{Time: testNow.Add(time.Minute)}
			if c.options != nil {
				c.options(&options)
			}
			given := path
			if c.change != nil {
				given = c.change(path)
			}
			result, err := VerifyPath(given, options)
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
			built, buildErr := BuildPath(path[0], path[1:], path[2:], options)
			if (buildErr == nil) != (err == nil) || (err == nil && len(built) != 3) ||
				(err != nil && err.Error() != buildErr.Error()) {
				t.Errorf("built %d certificates, %v", len(built), buildErr)
			}
		})
	}
}

// TestBuildPathMissing: what is missing is said.
func TestBuildPathMissing(t *testing.T) {
	path := pathCase{}.path(t)
	options := PathOptions{Time: testNow.Add(time.Minute)}
	_, err := BuildPath(path[0], nil, path[2:], options)
	refused(t, err, fault.Invalid, `the issuer "CN=Sub,O=Example" of CN=host1.example.com is neither given nor trusted`)
	_, err = BuildPath(path[0], path[1:2], nil, options)
	refused(t, err, fault.Invalid, `the issuer "CN=Root,O=Example"`)
	if built, err := BuildPath(path[0], path[1:], path[:1], options); err != nil || len(built) != 1 {
		t.Errorf("a pinned leaf is its own path: %d, %v", len(built), err)
	}
	if _, err := VerifyPath(path, PathOptions{}); err == nil || fault.KindOf(err) != fault.Internal {
		t.Errorf("a path needs a time: %v", err)
	}
}

// TestPolicyResult: the policies are those of the anchor's domain that the user wants.
func TestPolicyResult(t *testing.T) {
	mapping := Extension{ID: OIDPolicyMappings, Value: element(0x30, element(0x30, []byte{6, 2, 0x2a, 3, 6, 2, 0x2a, 4}))} // 1.2.3 → 1.2.4
	path := pathCase{
		sub:  func(x *Template) { x.Extra = []Extension{policyExtension("1.2.3", "1.2.7"), mapping} },
		leaf: func(x *Template) { x.Extra = []Extension{policyExtension("1.2.4", "1.2.7")} },
	}.path(t)
	for want, options := range map[string]PathOptions{
		"[1.2.3 1.2.7]": {},
		"[1.2.3]":       {InitialPolicies: []asn1.ObjectIdentifier{{1, 2, 3}, {1, 2, 4}}, ExplicitPolicy: true},
		"[1.2.7]":       {InhibitPolicyMapping: true},
		"[]":            {InitialPolicies: []asn1.ObjectIdentifier{{1, 2, 4}}},
	} {
		options.Time = testNow.Add(time.Minute)
		result, err := VerifyPath(path, options)
		if err != nil || fmt.Sprint(result.Policies) != want {
			t.Errorf("%+v: %v, %v, want %s", options, result, err, want)
		}
	}
}

// TestPathCost: a path with more names and constraints than anyone needs is refused and not computed.
func TestPathCost(t *testing.T) {
	many := make([]GeneralName, 600)
	for i := range many {
		many[i] = DNSName(fmt.Sprintf("h%d.example.com", i))
	}
	path := pathCase{
		sub:  func(x *Template) { x.NameConstraints = &NameConstraints{Excluded: many} },
		leaf: func(x *Template) { x.SAN = many },
	}.path(t)
	_, err := VerifyPath(path, PathOptions{Time: testNow.Add(time.Minute)})
	refused(t, err, fault.Invalid, "name constraints", "more names")
}
