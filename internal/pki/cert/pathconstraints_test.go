package cert

import (
	"crypto/x509"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// TestNamesOutsideTheRootsConstraints constrains a root, and not the issuer under it: what the lint refuses, OpenSSL refuses,
// and what the lint lets pass, OpenSSL accepts.
func TestNamesOutsideTheRootsConstraints(t *testing.T) {
	rootKey, issuerKey := p256(t), p256(t)
	root := newRoot(t, rootKey, func(x *Template) {
		x.NameConstraints = &NameConstraints{
			Permitted: []GeneralName{DNSName("example.com"), {Kind: IPAddress, Value: "192.0.2.0/24"}, EmailName("example.com")},
			Excluded:  []GeneralName{DNSName("secret.example.com"), {Kind: IPAddress, Value: "192.0.2.128/25"}},
		}
	})
	below := rootTemplate(t)
	below.Subject, below.NotAfter = mustName(t, "CN=Issuing,O=Example"), testNow.AddDate(5, 0, 0)
	issuing := issue(t, below, spkiOf(t, issuerKey), root, rootKey)
	knows := &Issuer{Certificate: issuing, Above: []*x509.Certificate{root.Certificate}}
	ignores := &Issuer{Certificate: issuing}
	read, err := ReadPathConstraints([]*x509.Certificate{issuing, root.Certificate})
	if err != nil {
		t.Fatal(err)
	}
	cached := &Issuer{Certificate: issuing, Constraints: read}

	rootFile, issuingFile := writePEM(t, "CERTIFICATE", root.Certificate.Raw), writePEM(t, "CERTIFICATE", issuing.Raw)
	leafKey := p256(t)
	refusals, passes := 0, 0
	for _, names := range [][]GeneralName{
		{DNSName("a.example.com")}, {DNSName("example.com")}, {DNSName("*.sub.example.com")}, {DNSName("a.evil.com")},
		{DNSName("badexample.com")}, {DNSName("example.com.evil.com")}, {DNSName("secret.example.com")}, {DNSName("x.secret.example.com")},
		{DNSName("a.example.com"), DNSName("b.evil.com")}, {{Kind: IPAddress, Value: "192.0.2.1"}}, {{Kind: IPAddress, Value: "192.0.2.200"}},
		{{Kind: IPAddress, Value: "198.51.100.1"}}, {{Kind: IPAddress, Value: "2001:db8::1"}}, {EmailName("a@example.com")},
		{EmailName("a@mail.example.com")}, {EmailName("a@evil.com")}, {URIName("https://a.evil.com/")}, {DNSName("A.EXAMPLE.COM")},
	} {
		template := leafTemplate()
		template.Subject, template.SAN = CommonName("host"), names
		leaf := issue(t, template, spkiOf(t, leafKey), ignores, issuerKey)
		out, err := exec.Command("openssl", "verify", "-attime", strconv.FormatInt(testNow.Unix(), 10), "-CAfile", rootFile,
			"-untrusted", issuingFile, writePEM(t, "CERTIFICATE", leaf.Raw)).CombinedOutput()
		theirs := err == nil
		for _, issuer := range []*Issuer{knows, cached} {
			serial, err := NewSerial()
			if err != nil {
				t.Fatal(err)
			}
			tbs, err := Build(template, spkiOf(t, leafKey), serial, issuer)
			if err != nil {
				t.Fatal(err)
			}
			_, err = tbs.Lint(Lints{})
			if (err == nil) != theirs {
				t.Errorf("%v: ours says %v, OpenSSL %s", names, err, out)
			}
			if err != nil && (!strings.Contains(err.Error(), "issuer-constraints") || !strings.Contains(err.Error(), "above the issuer")) {
				t.Errorf("%v: refused by %v, not for the root's constraints", names, err)
			}
		}
		if theirs {
			passes++
		} else if refusals++; !strings.Contains(string(out), "subtree violation") {
			t.Errorf("%v: OpenSSL refuses for another reason: %s", names, out)
		}
	}
	if passes < 6 || refusals < 9 {
		t.Errorf("%d names passed and %d were refused: the test saw too few", passes, refusals)
	}
}

// BenchmarkPathConstraints is what constraints of a path cost for each certificate: read once, and read each time.
func BenchmarkPathConstraints(b *testing.B) {
	key := p256(b)
	root := newRoot(b, key, func(x *Template) {
		x.NameConstraints = &NameConstraints{Permitted: []GeneralName{DNSName("example.com")}}
	})
	path := []*x509.Certificate{newRoot(b, key).Certificate, root.Certificate}
	read, err := ReadPathConstraints(path)
	if err != nil {
		b.Fatal(err)
	}
	names := []GeneralName{DNSName("a.example.com")}
	for name, constraints := range map[string]*PathConstraints{"once": read, "each time": nil} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				c := constraints
				if c == nil {
					if c, err = ReadPathConstraints(path); err != nil {
						b.Fatal(err)
					}
				}
				if err := c.Check(nil, names); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
