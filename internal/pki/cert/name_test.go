package cert

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"strings"
	"testing"

	"chancery/internal/fault"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"pgregory.net/rapid"
)

func TestParseName(t *testing.T) {
	for _, c := range []struct {
		text, again string // again is what String writes; "" is text
		types       string // string types in encoded order
	}{
		{"CN=host1,O=libvirt.org", "", "Printable Printable"},
		{"CN=host1 , O = libvirt.org ", "CN=host1,O=libvirt.org", "Printable Printable"},
		{"", "", ""},
		{"cn=a", "CN=a", "Printable"},
		{"DC=example,DC=com", "", "IA5 IA5"},
		{"UID=jsmith,DC=example,DC=net", "", "IA5 IA5 Printable"},
		{"OU=Sales+CN=J.  Smith,DC=example,DC=net", "", "IA5 IA5 Printable+Printable"},
		{`CN=James \"Jim\" Smith\, III,DC=net`, "", "IA5 UTF8"},
		{`CN=Before\0dAfter,DC=net`, "", "IA5 UTF8"},
		{`CN=Lu\C4\8Di\C4\87`, "CN=Lučić", "UTF8"},
		{"CN=Lučić", "", "UTF8"},
		{`CN=\ a\ `, "", "Printable"},
		{`CN=\#x`, "", "UTF8"},
		{`CN=a#b=c`, "", "UTF8"},
		{`CN=`, "", "Printable"},
		{`1.3.6.1.4.1.1466.0=#04024869`, "", "4"},
		{`OID.2.5.4.3=x`, "CN=x", "Printable"},
		{`1.2.3.4=abc`, "1.2.3.4=#1303616263", "Printable"},
		{`CN=#0c0161`, "CN=a", "UTF8"},
		{"emailAddress=a@example.com,CN=a_b", "", "UTF8 IA5"},
		{"E=a@example.com", "emailAddress=a@example.com", "IA5"},
		{`CN=*.example.com`, "", "UTF8"},
		{"C=DE,serialNumber=12 (3)", "", "Printable Printable"},
	} {
		n, err := ParseName(c.text)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		if c.again == "" {
			c.again = c.text
		}
		if n.String() != c.again {
			t.Errorf("%q is written as %q, want %q", c.text, n, c.again)
		}
		der, err := n.DER()
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		parsed, err := ParseNameDER(der)
		if err != nil {
			t.Errorf("%q: read back: %v", c.text, err)
			continue
		}
		if got := typesOf(parsed); got != c.types {
			t.Errorf("%q has the string types %q, want %q", c.text, got, c.types)
		}
		if !n.Equal(parsed) {
			t.Errorf("%q: what is read back is not equal", c.text)
		}
	}
}

func typesOf(n Name) string {
	short := map[cbasn1.Tag]string{cbasn1.PrintableString: "Printable", cbasn1.UTF8String: "UTF8", cbasn1.IA5String: "IA5",
		cbasn1.OCTET_STRING: "4"}
	var rdns []string
	for _, rdn := range n {
		var tags []string
		for _, a := range rdn {
			tags = append(tags, short[a.Tag])
		}
		rdns = append(rdns, strings.Join(tags, "+"))
	}
	return strings.Join(rdns, " ")
}

func TestParseNameRefuses(t *testing.T) {
	for text, word := range map[string]string{
		"CN":                "type=value",
		"CN=a,":             "type=value",
		"CN=a;O=b":          "must be escaped",
		"CN=a<b":            "must be escaped",
		"CN=\x00":           "must be escaped",
		`CN=a\`:             "lone backslash",
		`CN=a\zz`:           "two hexadecimal digits",
		"FOO=bar":           "not known",
		"CN=#zz":            "hexadecimal digits",
		"CN=#0c05":          "not one DER element",
		"CN=#0c016100":      "not one DER element",
		"CN=#0c01ff":        "not UTF-8",
		"CN=a+CN=a":         "repeated",
		"CN=\xff":           "not UTF-8",
		"DC=münchen":        "ASCII",
		"C=Döland":          "PrintableString",
		"1.2=#0c0161,3.4=x": "not known",
		"+CN=a":             "not known",
	} {
		_, err := ParseName(text)
		refused(t, err, fault.Invalid, word)
	}
}

func TestParseNameDERRefuses(t *testing.T) {
	for what, text := range map[string]string{
		"empty":                 "",
		"not a sequence":        "3100",
		"trailing octets":       "300000",
		"empty RDN":             "30023100",
		"attribute without set": "300a3008060355040313016 1",
		"BER length":            "30818f",
		"indefinite length":     "30800000",
		"bad UTF-8":             "300c310a300806035504030c01ff",
		"high Printable":        "300c310a300806035504031301ff",
		"odd BMP":               "300c310a300806035504031e0161",
		"surrogate BMP":         "300d310b300906035504031e02d800",
		"short Universal":       "300c310a300806035504031c0161",
		"RDN out of order":      "301831163009060355040a13026161300906035504031302 6161",
	} {
		der, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if n, err := ParseNameDER(der); err == nil {
			t.Errorf("%s: read as %q", what, n)
		}
	}
}

// TestNameEqual holds the comparison of RFC 5280 7.1.
func TestNameEqual(t *testing.T) {
	name := func(text string) Name { return mustName(t, text) }
	utf8Name := Name{{{Type: OIDCommonName, Value: "Example CA", Tag: cbasn1.UTF8String}}}
	bmpName := Name{{{Type: OIDCommonName, Value: "Example CA", Tag: tagBMPString}}}
	for _, c := range []struct {
		a, b  Name
		equal bool
	}{
		{name("CN=Example CA"), utf8Name, true},
		{bmpName, utf8Name, true},
		{name("CN=example   ca"), utf8Name, true},
		{name("CN=\\ Example CA\\ "), utf8Name, true},
		{name("CN=ExampleCA"), utf8Name, false},
		{name("O=Example CA"), utf8Name, false},
		{name("CN=Straße"), name("CN=STRASSE"), true},
		{name("CN=ﬁx"), name("CN=fix"), true},
		{name("CN=a+O=b"), name("O=b+CN=a"), true},
		{name("CN=a,O=b"), name("O=b,CN=a"), false},
		{name("CN=a"), name("CN=a,O=b"), false},
		{name("CN=#040161"), name("CN=a"), false},
		{Name{}, Name{}, true},
	} {
		if c.a.Equal(c.b) != c.equal || c.b.Equal(c.a) != c.equal {
			t.Errorf("%q and %q: equal must be %t", c.a, c.b, c.equal)
		}
	}
	if !name("CN=a,O=b").HasPrefix(name("O=B")) || name("O=b").HasPrefix(name("CN=a,O=b")) {
		t.Error("a subtree is what begins with its RDNs")
	}
}

// TestNameAgreesWithPKIX compares our encoding with that of crypto/x509/pkix.
func TestNameAgreesWithPKIX(t *testing.T) {
	std := pkix.Name{Country: []string{"DE"}, Organization: []string{"Exämple"}, OrganizationalUnit: []string{"Ops"},
		Locality: []string{"Köln"}, CommonName: "host1", SerialNumber: "42"}
	want, err := asn1.Marshal(std.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	got, err := mustName(t, "serialNumber=42,CN=host1,OU=Ops,O=Exämple,L=Köln,C=DE").DER()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

// TestNameAgreesWithOpenSSL has OpenSSL print subjects of ours in RFC 2253 form.
func TestNameAgreesWithOpenSSL(t *testing.T) {
	for _, text := range []string{`CN=a\, b,O=x\+y,C=DE`, `CN=\ a\ ,OU=Ops+CN=b`, `CN=Lučić,DC=example,DC=com`, `CN=\#x\"\\\<\>\;`,
		`UID=u,CN=x`} {
		key := p256(t)
		der, err := CreateCSR(&CSRTemplate{Subject: mustName(t, text)}, key)
		if err != nil {
			t.Fatal(err)
		}
		out := run(t, der, "openssl", "req", "-inform", "DER", "-noout", "-subject", "-nameopt", "RFC2253,-esc_msb,utf8")
		got := strings.TrimPrefix(strings.TrimSpace(out), "subject=")
		n, err := ParseName(got)
		if err != nil {
			t.Errorf("OpenSSL prints %q as %q: %v", text, got, err)
			continue
		}
		if !n.Equal(mustName(t, text)) {
			t.Errorf("OpenSSL prints %q as %q", text, got)
		}
	}
}

// anyName draws names of all kinds of values.
func anyName() *rapid.Generator[Name] {
	types := []asn1.ObjectIdentifier{OIDCommonName, OIDOrganization, OIDOrganizationalUnit, OIDUserID, OIDState, {1, 2, 3, 4}}
	attribute := rapid.Custom(func(t *rapid.T) Attribute {
		a := Attribute{Type: rapid.SampledFrom(types).Draw(t, "type"), Value: rapid.String().Draw(t, "value")}
		if rapid.Bool().Draw(t, "ascii") {
			a.Value = rapid.StringMatching(`[ -~]{0,20}`).Draw(t, "text")
			a.Tag = rapid.SampledFrom([]cbasn1.Tag{0, cbasn1.IA5String, cbasn1.T61String, tagBMPString, tagUniversalString,
				cbasn1.OCTET_STRING, tagVisibleString}).Draw(t, "tag")
		}
		return a
	})
	return rapid.Custom(func(t *rapid.T) Name {
		n := Name{}
		for range rapid.IntRange(0, 4).Draw(t, "rdns") {
			n = append(n, RDN(rapid.SliceOfNDistinct(attribute, 1, 3, Attribute.String).Draw(t, "rdn")))
		}
		return n
	})
}

func propNameDER(t *rapid.T) {
	// A string type may not carry a character that was drawn, and two attributes may encode alike.
	encodes := func(n Name) bool { _, err := n.DER(); return err == nil }
	n := anyName().Filter(encodes).Draw(t, "name")
	der, err := n.DER()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := ParseNameDER(der)
	if err != nil {
		t.Fatalf("%q: %v", n, err)
	}
	again, err := parsed.DER()
	if err != nil || !bytes.Equal(der, again) {
		t.Fatalf("%x is written again as %x, %v", der, again, err)
	}
	text, err := ParseName(parsed.String())
	if err != nil {
		t.Fatalf("%q: %v", parsed, err)
	}
	if !text.Equal(parsed) || text.String() != parsed.String() {
		t.Fatalf("%q is read as %q", parsed, text)
	}
}

// TestNameIdentity: parse∘marshal is the identity on DER, and print∘parse on text.
func TestNameIdentity(t *testing.T) { rapid.Check(t, propNameDER) }

func FuzzParseName(f *testing.F) {
	for _, seed := range []string{"CN=host1,O=libvirt.org", `CN=\ \0d\,+O=#0c0161`, "1.2.3=#040161", "CN=a+CN=b", ";", "CN=\\"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := ParseName(text)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("%q: %v is no refusal", text, err)
			}
			return
		}
		der, err := n.DER()
		if err != nil {
			t.Fatalf("%q was read and cannot be encoded: %v", text, err)
		}
		again, err := ParseName(n.String())
		if err != nil {
			t.Fatalf("%q was written as %q, which is refused: %v", text, n, err)
		}
		der2, err := again.DER()
		if err != nil || !again.Equal(n) {
			t.Fatalf("%q: %x became %x, %v", text, der, der2, err)
		}
	})
}

func FuzzParseNameDER(f *testing.F) {
	der, err := mustName(f, `CN=Lučić+O=x,DC=example,1.2.3=#040161`).DER()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		n, err := ParseNameDER(der)
		if err != nil {
			return
		}
		again, err := n.DER()
		if err != nil || !bytes.Equal(der, again) {
			t.Fatalf("%x was read as %q and written as %x, %v: DER has one form", der, n, again, err)
		}
	})
}

// FuzzNameIdentity is TestNameIdentity driven by the fuzzer's coverage.
func FuzzNameIdentity(f *testing.F) { f.Fuzz(rapid.MakeFuzz(propNameDER)) }
