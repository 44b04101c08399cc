package cert

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"chancery/internal/fault"

	"golang.org/x/crypto/cryptobyte"
	"pgregory.net/rapid"
)

func TestParseGeneralName(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"dns:host1.example.com", "dns:host1.example.com"},
		{"DNS:Host1.Example.com", "dns:host1.example.com"},
		{"host1.example.com", "dns:host1.example.com"},
		{"dns:bücher.example", "dns:xn--bcher-kva.example"},
		{"dns:*.bücher.example", "dns:*.xn--bcher-kva.example"},
		{"dns:.bücher.example", "dns:.xn--bcher-kva.example"},
		{"dns:日本語。jp", "dns:xn--wgv71a119e.jp"},
		{"ip:192.0.2.1", "ip:192.0.2.1"},
		{"192.0.2.1", "ip:192.0.2.1"},
		{"2001:DB8::1", "ip:2001:db8::1"},
		{"ip:::ffff:192.0.2.1", "ip:192.0.2.1"},
		{"ip:10.1.2.3/8", "ip:10.0.0.0/8"},
		{"10.0.0.0/8", "ip:10.0.0.0/8"},
		{"email:Root@Example.com", "email:Root@Example.com"},
		{"root@bücher.example", "email:root@xn--bcher-kva.example"},
		{"uri:spiffe://example.com/a", "uri:spiffe://example.com/a"},
		{"https://example.com/", "uri:https://example.com/"},
		{"dirname:CN=a,O=b", "dirname:CN=a,O=b"},
		{"rid:1.2.3", "rid:1.2.3"},
		{"othername:1.2.3;utf8:jürgen", "othername:1.2.3;utf8:jürgen"},
		{"othername:1.2.3;0c0161", "othername:1.2.3;utf8:a"},
		{"othername:1.2.3;0401ff", "othername:1.2.3;0401ff"},
		{"x400:0500", "x400:0500"},
		{"ediparty:0500", "ediparty:0500"},
	} {
		g, err := ParseGeneralName(c.text)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		if g.String() != c.want {
			t.Errorf("%q is %q, want %q", c.text, g, c.want)
		}
		again, err := ParseGeneralName(g.String())
		if err != nil || !again.same(g) {
			t.Errorf("%q is written as %q and read as %v, %v", c.text, g, again, err)
		}
	}
	for _, text := range []string{"dns:", "", "ip:1.2.3", "ip:fe80::1%eth0", "ip:1.2.3.4/33", "email:a@", "email:jürgen@example.com",
		"uri:", "uri:http://ü/", "dirname:x", "rid:1", "rid:3.1", "othername:1.2.3", "othername:x;0500", "othername:1.2.3;05",
		"othername:1.2.3;utf8:\xff", "x400:zz", "dns:\u00ad\u00fc..x"} {
		g, err := ParseGeneralName(text)
		if err == nil {
			t.Errorf("%q is read as %v", text, g)
			continue
		}
		refused(t, err, fault.Invalid)
	}
}

// anyGeneralName draws names whose encoding must be read back as it was.
func anyGeneralName() *rapid.Generator[GeneralName] {
	return rapid.Custom(func(t *rapid.T) GeneralName {
		text := rapid.StringMatching(`[ -~]{0,30}`).Draw(t, "text")
		switch rapid.IntRange(0, 6).Draw(t, "kind") {
		case 0:
			return DNSName(text)
		case 1:
			return EmailName(text)
		case 2:
			return URIName(text)
		case 3:
			return IPName(netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "ip"))))
		case 4:
			return GeneralName{Kind: OtherName, OtherName: OIDCommonName, DER: element(12, []byte(text))}
		case 5:
			return GeneralName{Kind: RegisteredID, Value: "2.999." + rapid.StringMatching(`[1-9][0-9]{0,8}`).Draw(t, "arc")}
		}
		g, err := DirName(CommonName(text))
		if err != nil {
			t.Fatal(err)
		}
		return g
	})
}

// TestGeneralNamesIdentity: parse∘marshal is the identity.
func TestGeneralNamesIdentity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(anyGeneralName(), 1, 8).Draw(t, "names")
		der, err := MarshalGeneralNames(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseGeneralNames(der)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(got, want, GeneralName.same) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

func FuzzParseGeneralNames(f *testing.F) {
	for _, text := range []string{"dns:a", "ip:192.0.2.1", "dirname:CN=a", "othername:1.2.3;0500", "rid:1.2.3", "uri:a:b"} {
		g, err := ParseGeneralName(text)
		if err != nil {
			f.Fatal(err)
		}
		der, err := MarshalGeneralNames([]GeneralName{g})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		names, err := ParseGeneralNames(der)
		if err != nil {
			return
		}
		again, err := MarshalGeneralNames(names)
		if err != nil || !bytes.Equal(der, again) {
			t.Fatalf("%x was read as %v and written as %x, %v", der, names, again, err)
		}
	})
}

func TestCheckGeneralName(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	for text, says := range map[string]string{
		"dns:a":                                 "",
		"dns:a_b.example.com":                   "",
		"dns:*.example.com":                     "",
		"dns:" + label63 + ".example":           "",
		"dns:xn--bcher-kva.example":             "",
		"dns:" + label63 + "a.example":          "63 at most",
		"dns:" + strings.Repeat("abcdefg.", 32): "253 at most",
		"dns:a.":                                "a dot at an end",
		"dns:.a":                                "empty label",
		"dns:a..b":                              "empty label",
		"dns:-a":                                "hyphen",
		"dns:a-.b":                              "hyphen",
		"dns:*":                                 "leftmost label",
		"dns:*.":                                "is empty",
		"dns:a.*.b":                             "leftmost label",
		"dns:*a.b":                              "leftmost label",
		"dns:*.*.b":                             "leftmost label",
		"dns:a b":                               "letters, digits",
		"dns:a/b":                               "letters, digits",
		"dns:10.0.0.1":                          "write an address as ip:",
		"dns:xn--a.example":                     "no A-label",
		"email:a.b+c@example.com":               "",
		"email:a@b@example.com":                 "local@domain",
		"email:.a@example.com":                  "dot-string",
		"email:a b@example.com":                 "dot-string",
		"email:a@*.example.com":                 "no wildcard",
		"email:" + label63 + "aa@example.com":   "64 octets",
		"uri:urn:uuid:f81d4fae-7dec-11d0-a765":  "",
		"uri:spiffe://example.com/ns/a":         "",
		"uri:https://192.0.2.1/x":               "",
		"uri:https://[2001:db8::1]:8443/x":      "",
		"uri:/a":                                "not absolute",
		"uri:https://a b/":                      "percent-encoded",
		"uri:https://ex_*.com/":                 "leftmost label",
		"uri:spiffe://example.com/a/../b":       "dot segment",
		"uri:spiffe://example.com/a/%2e%2E/b":   "dot segment",
		"x400:0500":                             "not issued",
		"ediparty:0500":                         "not issued",
		"dirname:":                              "directoryName is empty",
		"dirname:CN=a":                          "",
		"ip:192.0.2.1":                          "",
		"ip:192.0.2.0/24":                       "no address",
		"rid:1.2.3":                             "",
		"othername:1.3.6.1.4.1.311.20.2.3;utf8:a": "",
	} {
		g, err := ParseGeneralName(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		err = CheckGeneralName(g)
		switch {
		case says == "" && err != nil:
			t.Errorf("%q: %v", text, err)
		case says != "" && (err == nil || !strings.Contains(err.Error(), says)):
			t.Errorf("%q: got %v, want a refusal that says %q", text, err, says)
		}
	}
	for _, name := range []string{"a\x00b", "a\nb", "bücher.example", "a\x7f"} {
		if CheckGeneralName(DNSName(name)) == nil {
			t.Errorf("%q passes", name)
		}
	}
}

// TestNameConstraints is a table of RFC 5280 4.2.1.10.
func TestNameConstraints(t *testing.T) {
	for _, c := range []struct {
		permitted, excluded, name string
		ok                        bool
	}{
		{"dns:example.com", "", "dns:example.com", true},
		{"dns:example.com", "", "dns:a.b.example.com", true},
		{"dns:example.com", "", "dns:EXAMPLE.com", true},
		{"dns:example.com", "", "dns:badexample.com", false},
		{"dns:example.com", "", "dns:example.com.evil.org", false},
		{"dns:example.com", "", "dns:*.example.com", true},
		{"dns:a.example.com", "", "dns:*.example.com", false},
		{"dns:.example.com", "", "dns:example.com", false},
		{"dns:.example.com", "", "dns:a.example.com", true},
		{"dns:.example.com", "", "dns:*.example.com", true},
		{"dns:example.com", "", "ip:10.0.0.1", true}, // another kind is not constrained
		{"", "dns:example.com", "dns:a.example.com", false},
		{"", "dns:a.example.com", "dns:*.example.com", false}, // the wildcard stands for it
		{"", "dns:a.b.example.com", "dns:*.example.com", true},
		{"", "dns:example.com", "dns:*.com", false},
		{"", "dns:.example.com", "dns:*.example.com", false},
		{"", "dns:.a.example.com", "dns:*.example.com", true},
		{"", "dns:example.com", "dns:example.org", true},
		{"dns:example.com", "dns:secret.example.com", "dns:x.secret.example.com", false},
		{"ip:10.0.0.0/8", "", "ip:10.255.0.1", true},
		{"ip:10.0.0.0/8", "", "ip:11.0.0.1", false},
		{"ip:10.0.0.0/8", "", "ip:2001:db8::1", false},
		{"", "ip:0.0.0.0/0", "ip:2001:db8::1", true},
		{"", "ip:2001:db8::/32", "ip:2001:db8:1::1", false},
		{"email:example.com", "", "email:a@example.com", true},
		{"email:example.com", "", "email:a@sub.example.com", false},
		{"email:.example.com", "", "email:a@sub.example.com", true},
		{"email:.example.com", "", "email:a@example.com", false},
		{"email:a@example.com", "", "email:a@EXAMPLE.com", true},
		{"email:a@example.com", "", "email:A@example.com", false}, // the local part is the holder's business
		{"uri:example.com", "", "uri:https://example.com:8443/x", true},
		{"uri:example.com", "", "uri:https://a.example.com/", false},
		{"uri:.example.com", "", "uri:https://a.example.com/", true},
		{"uri:example.com", "", "uri:https://192.0.2.1/", false},
		{"uri:example.com", "", "uri:urn:x:y", false},
		{"", "uri:example.com", "uri:https://user@example.com/", false},
		{"dirname:O=Example", "", "dirname:CN=a,O=EXAMPLE", true},
		{"dirname:O=Example", "", "dirname:CN=a,O=Other", false},
		{"", "dirname:O=Example", "dirname:CN=a,O=Example", false},
		{"rid:1.2.3", "", "rid:1.2.3", false},      // not supported, so refused where it appears
		{"", "rid:1.2.3", "dns:example.com", true}, // and of no matter where it does not
	} {
		constraints := &NameConstraints{Permitted: constraintNames(t, c.permitted), Excluded: constraintNames(t, c.excluded)}
		err := constraints.Check(nil, constraintNames(t, c.name))
		if (err == nil) != c.ok {
			t.Errorf("permitted %q, excluded %q, name %q: got %v, want ok %t", c.permitted, c.excluded, c.name, err, c.ok)
		}
		var b cryptobyte.Builder
		if err := constraints.add(&b); err != nil {
			t.Fatal(err)
		}
		read, err := ParseNameConstraints(b.BytesOrPanic())
		if err != nil || !slices.EqualFunc(read.Permitted, constraints.Permitted, GeneralName.same) ||
			!slices.EqualFunc(read.Excluded, constraints.Excluded, GeneralName.same) {
			t.Errorf("%v is read back as %v, %v", constraints, read, err)
		}
	}
}

func constraintNames(t *testing.T, texts ...string) (result []GeneralName) {
	for _, text := range texts {
		if text == "" {
			continue
		}
		g, err := ParseGeneralName(strings.Replace(text, "uri:.", "dns:.", 1))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(text, "uri:") {
			g.Kind = URI
		}
		if strings.HasPrefix(text, "email:") {
			g.Kind = Email
		}
		result = append(result, g)
	}
	return result
}

// TestNameConstraintsOfSubject: the subject counts as a directoryName, its emailAddress as a mailbox, and a common name
// that consumers would take for a DNS name as one.
func TestNameConstraintsOfSubject(t *testing.T) {
	c := &NameConstraints{Excluded: constraintNames(t, "dns:evil.example", "email:evil.example", "dirname:O=Evil")}
	for subject, ok := range map[string]bool{
		"CN=host.good.example,O=Good":          true,
		"CN=host.evil.example,O=Good":          false,
		"CN=host1,O=Evil":                      false,
		"emailAddress=a@evil.example,CN=a":     false,
		"emailAddress=a@good.example,CN=a b c": true,
	} {
		if err := c.Check(mustName(t, subject), nil); (err == nil) != ok {
			t.Errorf("%q: got %v, want ok %t", subject, err, ok)
		}
	}
	if err := c.Check(mustName(t, "CN=host.evil.example"), constraintNames(t, "dns:good.example")); err != nil {
		t.Errorf("a common name counts only where no DNS name is in the subjectAltName: %v", err)
	}
}
