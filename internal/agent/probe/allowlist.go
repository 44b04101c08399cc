package probe

import (
	"crypto/x509"
	encoding "encoding/asn1"
	"encoding/hex"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/pki/cert"
)

// AllowListLine is the subject as libvirt's tls_allowed_dn_list compares it and virt-pki-query-dn prints it: in the order
// of its encoding, with GnuTLS's names of attributes and RFC 4514's escapes. It is empty for a subject that is empty or
// cannot be read, which no list can name.
func AllowListLine(leaf *x509.Certificate) string {
	name, err := cert.ParseNameDER(leaf.RawSubject)
	if err != nil {
		return ""
	}
	raw, body := cryptobyte.String(leaf.RawSubject), cryptobyte.String(nil)
	if !raw.ReadASN1(&body, asn1.SEQUENCE) {
		return ""
	}
	var rdns []string
	for _, rdn := range name {
		var set cryptobyte.String
		if !body.ReadASN1(&set, asn1.SET) {
			return ""
		}
		var attributes []string
		for _, a := range rdn {
			var one, value cryptobyte.String
			if !set.ReadASN1(&one, asn1.SEQUENCE) || !one.ReadASN1ObjectIdentifier(new(encoding.ObjectIdentifier)) ||
				!one.ReadAnyASN1Element(&value, new(asn1.Tag)) {
				return ""
			}
			attributes = append(attributes, allowListAttribute(a, value))
		}
		rdns = append(rdns, strings.Join(attributes, "+"))
	}
	return strings.Join(rdns, ",")
}

// allowListAttribute prints one attribute: as text where its value has the syntax that GnuTLS expects of the type, and
// otherwise as the DER of its value.
func allowListAttribute(a cert.Attribute, value []byte) string {
	id := a.Type.String()
	kind, known := gnuTLSAttributes()[id]
	if !known {
		return id + "=#" + hex.EncodeToString(value)
	}
	if !slices.Contains(kind.syntax, a.Tag) {
		return kind.name + "=#" + hex.EncodeToString(value)
	}
	return kind.name + "=" + escapeDN(a.Value)
}

// escapeDN escapes as RFC 4514 section 2.4 demands, by a backslash.
func escapeDN(text string) string {
	var b strings.Builder
	for i, c := range []byte(text) {
		switch {
		case strings.IndexByte(`,+"\<>;`, c) >= 0,
			i == 0 && (c == ' ' || c == '#'),
			i == len(text)-1 && c == ' ':
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	return b.String()
}

// gnuTLSAttribute is how GnuTLS prints an attribute type, and of which string types its value may be for that.
type gnuTLSAttribute struct {
	name   string
	syntax []asn1.Tag
}

func gnuTLSAttributes() map[string]gnuTLSAttribute {
	directory := []asn1.Tag{asn1.UTF8String, asn1.PrintableString, asn1.T61String, 30} // 30 is BMPString
	printable, ia5 := []asn1.Tag{asn1.PrintableString}, []asn1.Tag{asn1.IA5String}
	return map[string]gnuTLSAttribute{
		"2.5.4.3":  {"CN", directory},
		"2.5.4.4":  {"surName", directory},
		"2.5.4.5":  {"serialNumber", printable},
		"2.5.4.6":  {"C", printable},
		"2.5.4.7":  {"L", directory},
		"2.5.4.8":  {"ST", directory},
		"2.5.4.9":  {"street", directory},
		"2.5.4.10": {"O", directory},
		"2.5.4.11": {"OU", directory},
		"2.5.4.12": {"title", directory},
		"2.5.4.13": {"description", directory},
		"2.5.4.15": {"businessCategory", directory},
		"2.5.4.17": {"postalCode", directory},
		"2.5.4.20": {"telephoneNumber", printable},
		"2.5.4.41": {"name", directory},
		"2.5.4.42": {"givenName", directory},
		"2.5.4.43": {"initials", directory},
		"2.5.4.44": {"generationQualifier", directory},
		"2.5.4.46": {"dnQualifier", printable},
		"2.5.4.65": {"pseudonym", directory},

		"0.9.2342.19200300.100.1.1":  {"UID", directory},
		"0.9.2342.19200300.100.1.25": {"DC", ia5},
		"1.2.840.113549.1.9.1":       {"EMAIL", ia5},
		"1.2.840.113549.1.9.20":      {"1.2.840.113549.1.9.20", []asn1.Tag{30}},
		"1.3.6.1.4.1.311.60.2.1.1":   {"jurisdictionOfIncorporationLocalityName", directory},
		"1.3.6.1.4.1.311.60.2.1.2":   {"jurisdictionOfIncorporationStateOrProvinceName", directory},
		"1.3.6.1.4.1.311.60.2.1.3":   {"jurisdictionOfIncorporationCountryName", printable},
	}
}
