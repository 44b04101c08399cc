package certtool

import (
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"chancery/internal/pki/cert"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const tagNumericString = cbasn1.Tag(18)

// attributeType is an attribute that certtool knows: its name in dn and in print, and the string type of its value, 0
// for a DirectoryString.
type attributeType struct {
	name string
	oid  asn1.ObjectIdentifier
	tag  cbasn1.Tag
}

func arcs(text string) asn1.ObjectIdentifier {
	oid, err := cert.ParseOID(text)
	if err != nil {
		panic(err) // only constants come here
	}
	return oid
}

// attributeTypes are the attributes that GnuTLS has names for. Certificates with others can be printed but not asked for.
var attributeTypes = []attributeType{
	{"CN", cert.OIDCommonName, 0}, {"C", cert.OIDCountry, cbasn1.PrintableString}, {"ST", cert.OIDState, 0},
	{"L", cert.OIDLocality, 0}, {"O", cert.OIDOrganization, 0}, {"OU", cert.OIDOrganizationalUnit, 0},
	{"street", cert.OIDStreet, 0}, {"title", cert.OIDTitle, 0}, {"description", cert.OIDDescription, 0},
	{"serialNumber", cert.OIDSerialNumber, cbasn1.PrintableString}, {"surName", cert.OIDSurname, 0},
	{"givenName", cert.OIDGivenName, 0}, {"initials", cert.OIDInitials, 0},
	{"generationQualifier", cert.OIDGenerationQualifier, 0}, {"pseudonym", cert.OIDPseudonym, 0},
	{"dnQualifier", cert.OIDDNQualifier, cbasn1.PrintableString}, {"postalCode", cert.OIDPostalCode, 0},
	{"businessCategory", cert.OIDBusinessCategory, 0}, {"name", arcs("2.5.4.41"), 0},
	{"telephoneNumber", arcs("2.5.4.20"), cbasn1.PrintableString},
	{"DC", cert.OIDDomainComponent, cbasn1.IA5String}, {"UID", cert.OIDUserID, 0},
	{"EMAIL", cert.OIDEmailAddress, cbasn1.IA5String}, {"userPrincipalName", arcs("1.2.840.113556.1.4.656"), 0},
	{"placeOfBirth", arcs("1.3.6.1.5.5.7.9.2"), 0}, {"gender", arcs("1.3.6.1.5.5.7.9.3"), cbasn1.PrintableString},
	{"countryOfCitizenship", arcs("1.3.6.1.5.5.7.9.4"), cbasn1.PrintableString},
	{"countryOfResidence", arcs("1.3.6.1.5.5.7.9.5"), cbasn1.PrintableString},
	{"jurisdictionOfIncorporationLocalityName", arcs("1.3.6.1.4.1.311.60.2.1.1"), 0},
	{"jurisdictionOfIncorporationStateOrProvinceName", arcs("1.3.6.1.4.1.311.60.2.1.2"), 0},
	{"jurisdictionOfIncorporationCountryName", arcs("1.3.6.1.4.1.311.60.2.1.3"), cbasn1.PrintableString},
	{"INN", arcs("1.2.643.3.131.1.1"), tagNumericString}, {"OGRN", arcs("1.2.643.100.1"), tagNumericString},
	{"SNILS", arcs("1.2.643.100.3"), tagNumericString},
}

func attributeByOID(oid asn1.ObjectIdentifier) (attributeType, bool) {
	i := slices.IndexFunc(attributeTypes, func(t attributeType) bool { return t.oid.Equal(oid) })
	if i < 0 {
		return attributeType{oid: oid}, false
	}
	return attributeTypes[i], true
}

// attribute encodes text as GnuTLS does: PrintableString where it can be (an apostrophe does not count as printable
// there), otherwise UTF8String; and the type's own string type where it has one.
func (t attributeType) attribute(text string) (cert.Attribute, error) {
	a := cert.Attribute{Type: t.oid, Value: text, Tag: t.tag}
	printable := isPrintable(text)
	switch {
	case text == "":
		return a, fmt.Errorf("the value is empty")
	case t.tag == 0 && printable && !strings.Contains(text, "'"):
		a.Tag = cbasn1.PrintableString
	case t.tag == 0:
		a.Tag = cbasn1.UTF8String
	case t.tag == cbasn1.PrintableString && !printable:
		return a, fmt.Errorf("%q does not fit a PrintableString, which has letters, digits and '()+,-./:=? only", text)
	case t.tag == tagNumericString && strings.Trim(text, "0123456789 ") != "":
		return a, fmt.Errorf("%q does not fit a NumericString, which has digits and blanks only", text)
	case t.tag == cbasn1.IA5String && !isASCII(text):
		return a, fmt.Errorf("%q does not fit an IA5String, which is ASCII only", text)
	}
	return a, nil
}

func isASCII(text string) bool {
	return strings.IndexFunc(text, func(r rune) bool { return r >= 0x80 }) < 0
}

func isPrintable(text string) bool {
	return strings.IndexFunc(text, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' ||
			strings.ContainsRune(" '()+,-./:=?", r))
	}) < 0
}

// subject puts the fields into certtool's order, which is not the order of the file.
func (b *builder) subject(o Options) error {
	if o.Request != nil {
		b.out.Subject = o.Request.Subject
		b.warnUnused(o.Request.Subject)
		return nil
	}
	name := cert.Name{}
	if o.ProxyOf != nil {
		name = slices.Clone(o.ProxyOf)
		for _, e := range b.settings["cn"] {
			a, err := attributeTypes[0].attribute(e.value)
			if err != nil {
				return refuse(e, "%w", err)
			}
			name = append(name, cert.RDN{a})
		}
		b.out.Subject = name
		return nil
	}
	if e, ok := b.first("dn"); ok {
		given, err := parseDN(e.value)
		if err != nil {
			return refuse(e, "%w", err)
		}
		name = given
	}
	fromDN := len(name)
	for _, field := range []struct {
		values []setting
		oid    asn1.ObjectIdentifier
	}{
		{b.settings["country"], cert.OIDCountry}, {b.settings["state"], cert.OIDState},
		{b.settings["locality"], cert.OIDLocality},
		{b.aliased("organization", "o"), cert.OIDOrganization}, {b.aliased("unit", "ou"), cert.OIDOrganizationalUnit},
		{b.settings["cn"], cert.OIDCommonName}, {b.settings["uid"], cert.OIDUserID},
		{b.settings["dc"], cert.OIDDomainComponent},
		{b.settings["dn_oid"], nil}, {b.settings["pkcs9_email"], cert.OIDEmailAddress},
	} {
		for _, e := range field.values {
			oid, text := field.oid, e.value
			if oid == nil {
				var err error
				if oid, text, err = oidAndRest(e); err != nil {
					return err
				}
			}
			t, known := attributeByOID(oid)
			if !known {
				return refuse(e, "the attribute type %s is not one that certtool can encode", oid)
			}
			a, err := t.attribute(text)
			if err != nil {
				return refuse(e, "%w", err)
			}
			if b.mode == Strict && t.name == "CN" && len(name[:fromDN].Attributes(oid)) > 0 {
				return refuse(e, "dn has a common name already, and certtool adds this one as a second; remove one of them")
			}
			name = append(name, cert.RDN{a})
		}
	}
	b.out.Subject = name
	return nil
}

// warnUnused says in the strict mode which subject options have no effect, since the request has a subject of its own.
func (b *builder) warnUnused(subject cert.Name) {
	if b.mode != Strict {
		return
	}
	for _, name := range []string{"dn", "cn", "organization", "o", "unit", "ou", "country", "state", "locality", "uid", "dc", "dn_oid", "pkcs9_email"} {
		for _, e := range b.settings[name] {
			b.warn(e, "%s is not used: the subject of the request, %q, stands, as with certtool --load-request", e.name, subject)
		}
	}
}

// parseDN reads the value of dn as GnuTLS does: RFC 4514 text, most specific first, one attribute to a part. Escapes
// cannot occur, as the backslashes of a template value vanish; quotes are ordinary characters.
func parseDN(text string) (cert.Name, error) {
	const blanks = " \t\n\v\f\r"
	if strings.Contains(text, "\n") {
		return nil, fmt.Errorf("%q goes over a line end", text)
	}
	name := cert.Name{}
	rest := text
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, ",")
		kind, value, found := strings.Cut(strings.TrimLeft(part, blanks), "=")
		kind, value = strings.TrimRight(kind, blanks), strings.Trim(value, blanks)
		switch {
		case !found || kind == "" || value == "":
			return nil, fmt.Errorf("%q is not an attribute such as CN=host1, in %q", part, text)
		case strings.Contains(value, "+"):
			return nil, fmt.Errorf("%q has a +; certtool reads one attribute to a part, and no escapes", part)
		}
		a, err := dnAttribute(kind, value)
		if err != nil {
			return nil, fmt.Errorf("%w, in %q", err, text)
		}
		name = append(name, cert.RDN{a})
	}
	slices.Reverse(name)
	return name, nil
}

func dnAttribute(kind, value string) (cert.Attribute, error) {
	i := slices.IndexFunc(attributeTypes, func(t attributeType) bool { return strings.EqualFold(t.name, kind) })
	var t attributeType
	if i >= 0 {
		t = attributeTypes[i]
	} else {
		oid, err := cert.ParseOID(kind)
		if err != nil {
			return cert.Attribute{}, fmt.Errorf("the attribute type %q is not known; CN, O, OU, C, ST, L, DC, UID, EMAIL, "+
				"serialNumber … and dotted object identifiers are", kind)
		}
		var known bool
		if t, known = attributeByOID(oid); !known && value[0] != '#' {
			return cert.Attribute{}, fmt.Errorf("the attribute type %s takes a value as # and the hexadecimal digits of its "+
				"DER only", oid)
		}
	}
	if value[0] != '#' {
		return t.attribute(value)
	}
	der, err := hex.DecodeString(value[1:])
	input := cryptobyte.String(der)
	var content cryptobyte.String
	var tag cbasn1.Tag
	if err != nil || !input.ReadAnyASN1(&content, &tag) || !input.Empty() {
		return cert.Attribute{}, fmt.Errorf("%q is not # and the hexadecimal digits of one DER element", value)
	}
	return cert.Attribute{Type: t.oid, Value: string(content), Tag: tag}, nil
}
