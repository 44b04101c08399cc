package token_test

import (
	"bytes"
	"strings"
	"testing"
	"unicode"

	"chancery/internal/fault"
	"chancery/internal/store/token"
)

// TestURIs reads what RFC 7512 allows, section 3's examples of keys among it, and writes it in one form.
func TestURIs(t *testing.T) {
	for in, want := range map[string]string{
		"pkcs11:token=ca;object=issuer":                                       "pkcs11:token=ca;object=issuer;type=private",
		"PKCS11:object=issuer;token=ca":                                       "pkcs11:token=ca;object=issuer;type=private",
		"pkcs11:id=%69%95%3E%5C%F4%BD%EC%91":                                  "pkcs11:id=%69%95%3E%5C%F4%BD%EC%91;type=private",
		"pkcs11:id=abc":                                                       "pkcs11:id=%61%62%63;type=private",
		"pkcs11:object=my-pubkey;type=private":                                "pkcs11:object=my-pubkey;type=private",
		"pkcs11:token=My%20token%25%20created%20by%20Joe;id=%01":              "pkcs11:token=My%20token%25%20created%20by%20Joe;id=%01;type=private",
		"pkcs11:token=A%20name%20with%20a%20substring%20%25%3B;object=%C3%A9": "pkcs11:token=A%20name%20with%20a%20substring%20%25%3B;object=%C3%A9;type=private",
		"pkcs11:token=Software%20PKCS%2311%20softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;object=my-certificate;id=%69?pin-source=file:/etc/token_pin": "pkcs11:token=Software%20PKCS%2311%20softtoken;manufacturer=Snake%20Oil%2C%20Inc.;model=1.0;object=my-certificate;id=%69;type=private?pin-source=/etc/token_pin",
		"pkcs11:object=a&b;slot-id=327?module-name=softhsm2":          "pkcs11:slot-id=327;object=a%26b;type=private?module-name=softhsm2",
		"pkcs11:object=a?module-path=/usr/lib/x.so&pin-source=/run/p": "pkcs11:object=a;type=private?pin-source=/run/p&module-path=/usr/lib/x.so",
		"pkcs11:object=a?pin-source=file:///run/p":                    "pkcs11:object=a;type=private?pin-source=/run/p",
		"pkcs11:object=a?pin-source=/p?module-path=/m":                "pkcs11:object=a;type=private?pin-source=/p%3Fmodule-path%3D/m",
		"pkcs11:token=padded%20%20;object=a":                          "pkcs11:token=padded;object=a;type=private",
	} {
		u, err := token.Parse(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if u.String() != want {
			t.Errorf("%s\nis read as %s\nand not as %s", in, u, want)
		}
	}
}

// TestHostileURIs is what is refused, and what the refusal names.
func TestHostileURIs(t *testing.T) {
	for in, want := range map[string]string{
		"pkcs11:":                                      "names no key",
		"pkcs11:token=ca":                              "names no key",
		"pkcs12:object=a":                              "does not begin",
		"pkcs11:object=a;object=b":                     "object stands twice",
		"pkcs11:object=a;":                             "NAME=VALUE",
		"pkcs11:;object=a":                             "NAME=VALUE",
		"pkcs11:object":                                "NAME=VALUE",
		"pkcs11:object=":                               "empty",
		"pkcs11:token=%20;object=a":                    "empty",
		"pkcs11:object=a%":                             "cut short",
		"pkcs11:object=a%2":                            "cut short",
		"pkcs11:object=a%zz":                           "percent-encoding",
		"pkcs11:object=a b":                            "percent-encoded",
		"pkcs11:object=a/b":                            "percent-encoded",
		"pkcs11:object=a#b":                            "percent-encoded",
		"pkcs11:object=%00":                            "control",
		"pkcs11:object=a%0Ab":                          "control",
		"pkcs11:object=%FF":                            "UTF-8",
		"pkcs11:object=a;x-vendor=1":                   "no attribute",
		"pkcs11:object=a;TOKEN=1":                      "no attribute",
		"pkcs11:object=a;type=public":                  "type",
		"pkcs11:object=a;slot-id=-1":                   "slot-id",
		"pkcs11:object=a;slot-id=+1":                   "slot-id",
		"pkcs11:object=a;slot-id=99999999999999999999": "slot-id",
		"pkcs11:object=a;serial=12345678901234567":     "octets",
		"pkcs11:object=a;pin-source=%2Fp":              "question mark",
		"pkcs11:object=a;module-path=%2Fp":             "question mark",
		"pkcs11:object=a;pin-value=4711":               "question mark",
		"pkcs11:object=a?pin-value=4711":               "change the PIN",
		"pkcs11:object=a?pin-source=%7Ccat%20/etc/pin": "absolute path",
		"pkcs11:object=a?pin-source=http:%2F%2Fx":      "absolute path",
		"pkcs11:object=a?pin-source=../pin":            "absolute path",
		"pkcs11:object=a?module-path=lib.so":           "absolute",
		"pkcs11:object=a?module-name=../../x":          "plain name",
		"pkcs11:object=a?module-name=x&module-path=/y": "exclude each other",
		"pkcs11:object=a?token=b":                      "no attribute",
		"pkcs11:object=a?pin-source=/a&pin-source=/b":  "twice",
		"pkcs11:object=" + strings.Repeat("a", 3000):   "characters",
	} {
		_, err := token.Parse(in)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; it should say %q", in, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "4711") {
			t.Errorf("%s: the refusal says the PIN", in)
		}
	}
}

// FuzzParse holds that what is read has one written form, which reads as itself, and that nothing in it can end a line or
// stand for an argument of its own.
func FuzzParse(f *testing.F) {
	f.Add("pkcs11:token=ca;object=issuer?pin-source=/run/pin&module-name=softhsm2")
	f.Fuzz(func(t *testing.T, in string) {
		u, err := token.Parse(in)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("a refusal of another kind: %v", err)
			}
			return
		}
		text := u.String()
		again, err := token.Parse(text)
		if err != nil || again.String() != text || !bytes.Equal(again.ID, u.ID) || again.Object != u.Object || again.Token != u.Token {
			t.Fatalf("%q is written as %q, which is read as %v: %v", in, text, again, err)
		}
		if strings.ContainsFunc(text, func(r rune) bool { return r > unicode.MaxASCII || r <= ' ' }) {
			t.Fatalf("%q is written with more than printable ASCII: %q", in, text)
		}
	})
}

// TestParseToken: a token may be named with no key; with one, that is the one which is found.
func TestParseToken(t *testing.T) {
	for text, finds := range map[string]bool{
		"pkcs11:token=ca":                 true,
		"pkcs11:token=ca;object=issuer":   true,
		"pkcs11:id=%01":                   true,
		"pkcs11:object=issuer;id=%01":     true,
		"pkcs11:object=issuer;id=%02":     false,
		"pkcs11:token=ca;object=issued":   false,
		"pkcs11:token=ca;id=%01%00":       false,
		"pkcs11:token=ca;object=Issuer":   false,
		"pkcs11:token=ca?pin-source=/pin": true,
	} {
		u, err := token.ParseToken(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got := u.Finds(&token.URI{Token: "ca", Object: "issuer", ID: []byte{1}}); got != finds {
			t.Errorf("%s finds the key: %v", text, got)
		}
	}
	for _, text := range []string{"token=ca", "pkcs11:token=ca;token=ca", "pkcs11:token=ca?pin-value=1", "pkcs11:token=ca?module-name=a&module-path=/a"} {
		if _, err := token.ParseToken(text); err == nil {
			t.Errorf("%s is read", text)
		}
	}
}
