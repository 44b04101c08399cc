package probe

import (
	"crypto/x509"
	"encoding/hex"
	"strings"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

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
	var rdns []string
	for _, rdn := range name {
		var attributes []string
		for _, a := range rdn {
			attributes = append(attributes, allowListAttribute(a))
		}
		rdns = append(rdns, strings.Join(attributes, "+"))
	}
	return strings.Join(rdns, ",")
}

// allowListAttribute prints one attribute; one that GnuTLS has no name for as its number and the DER of its value.
func allowListAttribute(a cert.Attribute) string {
	id := a.Type.String()
	if name := gnuTLSName(id); name != "" {
		return name + "=" + escapeDN(a.Value)
	}
	tag := a.Tag
	if tag == 0 {
		tag = cbasn1.UTF8String
	}
	return id + "=#" + hex.EncodeToString(derOf(byte(tag), a.Value))
}

// derOf is a primitive value with its tag and length.
func derOf(tag byte, content string) []byte {
	der := []byte{tag}
	switch n := len(content); {
	case n < 0x80:
		der = append(der, byte(n))
	case n < 0x100:
		der = append(der, 0x81, byte(n))
	default:
		der = append(der, 0x82, byte(n>>8), byte(n))
	}
	return append(der, content...)
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

// gnuTLSName is the name that GnuTLS prints for an attribute type; empty where it has none.
func gnuTLSName(id string) string { return gnuTLSNames()[id] }

func gnuTLSNames() map[string]string {
	return map[string]string{
		"2.5.4.3":  "CN",
		"2.5.4.4":  "surName",
		"2.5.4.5":  "serialNumber",
		"2.5.4.6":  "C",
		"2.5.4.7":  "L",
		"2.5.4.8":  "ST",
		"2.5.4.9":  "street",
		"2.5.4.10": "O",
		"2.5.4.11": "OU",
		"2.5.4.12": "title",
		"2.5.4.13": "description",
		"2.5.4.15": "businessCategory",
		"2.5.4.17": "postalCode",
		"2.5.4.41": "name",
		"2.5.4.42": "givenName",
		"2.5.4.43": "initials",
		"2.5.4.44": "generationQualifier",
		"2.5.4.46": "dnQualifier",
		"2.5.4.65": "pseudonym",

		"0.9.2342.19200300.100.1.1":  "UID",
		"0.9.2342.19200300.100.1.25": "DC",
		"1.2.840.113549.1.9.1":       "EMAIL",
		"1.2.840.113549.1.9.20":      "friendlyName",
		"1.3.6.1.4.1.311.60.2.1.1":   "jurisdictionOfIncorporationLocalityName",
		"1.3.6.1.4.1.311.60.2.1.2":   "jurisdictionOfIncorporationStateOrProvinceName",
		"1.3.6.1.4.1.311.60.2.1.3":   "jurisdictionOfIncorporationCountryName",
	}
}
