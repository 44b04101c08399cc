package cert

import (
	"encoding/asn1"
	"encoding/hex"
	"slices"
	"strings"
	"unicode/utf8"

	"chancery/internal/fault"

	"golang.org/x/crypto/cryptobyte"
)

// Attribute types of names (X.520, RFC 4519, RFC 2985).
var (
	OIDCommonName          = asn1.ObjectIdentifier{2, 5, 4, 3}
	OIDSurname             = asn1.ObjectIdentifier{2, 5, 4, 4}
	OIDSerialNumber        = asn1.ObjectIdentifier{2, 5, 4, 5}
	OIDCountry             = asn1.ObjectIdentifier{2, 5, 4, 6}
	OIDLocality            = asn1.ObjectIdentifier{2, 5, 4, 7}
	OIDState               = asn1.ObjectIdentifier{2, 5, 4, 8}
	OIDStreet              = asn1.ObjectIdentifier{2, 5, 4, 9}
	OIDOrganization        = asn1.ObjectIdentifier{2, 5, 4, 10}
	OIDOrganizationalUnit  = asn1.ObjectIdentifier{2, 5, 4, 11}
	OIDTitle               = asn1.ObjectIdentifier{2, 5, 4, 12}
	OIDDescription         = asn1.ObjectIdentifier{2, 5, 4, 13}
	OIDBusinessCategory    = asn1.ObjectIdentifier{2, 5, 4, 15}
	OIDPostalCode          = asn1.ObjectIdentifier{2, 5, 4, 17}
	OIDGivenName           = asn1.ObjectIdentifier{2, 5, 4, 42}
	OIDInitials            = asn1.ObjectIdentifier{2, 5, 4, 43}
	OIDGenerationQualifier = asn1.ObjectIdentifier{2, 5, 4, 44}
	OIDDNQualifier         = asn1.ObjectIdentifier{2, 5, 4, 46}
	OIDPseudonym           = asn1.ObjectIdentifier{2, 5, 4, 65}
	OIDUserID              = asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}
	OIDDomainComponent     = asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 25}
	OIDEmailAddress        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}
)

// attributeTypes are the descriptors that names are read and written with. The first of a type is the one written; the
// bounds are the upper bounds of X.520 (RFC 5280 appendix A), 0 where there is none.
var attributeTypes = []struct {
	name  string
	oid   asn1.ObjectIdentifier
	bound int
}{
	{"CN", OIDCommonName, 64}, {"commonName", OIDCommonName, 64},
	{"L", OIDLocality, 128}, {"localityName", OIDLocality, 128},
	{"ST", OIDState, 128}, {"stateOrProvinceName", OIDState, 128}, {"S", OIDState, 128},
	{"O", OIDOrganization, 64}, {"organizationName", OIDOrganization, 64},
	{"OU", OIDOrganizationalUnit, 64}, {"organizationalUnitName", OIDOrganizationalUnit, 64},
	{"C", OIDCountry, 2}, {"countryName", OIDCountry, 2},
	{"STREET", OIDStreet, 128}, {"streetAddress", OIDStreet, 128},
	{"DC", OIDDomainComponent, 63}, {"domainComponent", OIDDomainComponent, 63},
	{"UID", OIDUserID, 256}, {"userId", OIDUserID, 256},
	{"emailAddress", OIDEmailAddress, 255}, {"EMAIL", OIDEmailAddress, 255}, {"E", OIDEmailAddress, 255},
	{"SN", OIDSurname, 40}, {"surname", OIDSurname, 40},
	{"givenName", OIDGivenName, 16}, {"GN", OIDGivenName, 16},
	{"serialNumber", OIDSerialNumber, 64}, {"title", OIDTitle, 64}, {"description", OIDDescription, 1024},
	{"businessCategory", OIDBusinessCategory, 128}, {"postalCode", OIDPostalCode, 40},
	{"initials", OIDInitials, 5}, {"generationQualifier", OIDGenerationQualifier, 3},
	{"dnQualifier", OIDDNQualifier, 0}, {"pseudonym", OIDPseudonym, 128},
}

func attributeName(oid asn1.ObjectIdentifier) string {
	if name, ok := descriptor(oid); ok {
		return name
	}
	return oid.String()
}

func descriptor(oid asn1.ObjectIdentifier) (string, bool) {
	for _, t := range attributeTypes {
		if t.oid.Equal(oid) {
			return t.name, true
		}
	}
	return "", false
}

// attributeBound returns the most characters that a value of the type may have, 0 for no bound.
func attributeBound(oid asn1.ObjectIdentifier) int {
	for _, t := range attributeTypes {
		if t.oid.Equal(oid) {
			return t.bound
		}
	}
	return 0
}

// ParseAttributeType reads a descriptor such as CN, without regard to case, or a dotted identifier with or without the
// prefix "OID.".
func ParseAttributeType(text string) (asn1.ObjectIdentifier, error) {
	for _, t := range attributeTypes {
		if strings.EqualFold(t.name, text) {
			return t.oid, nil
		}
	}
	dotted := text
	if len(text) > 4 && strings.EqualFold(text[:4], "OID.") {
		dotted = text[4:]
	}
	oid, err := ParseOID(dotted)
	if err != nil {
		return nil, fault.New(fault.Invalid, "attribute type %q is not known: use CN, O, OU, C, ST, L, STREET, DC, UID, "+
			"emailAddress, serialNumber … or a dotted object identifier", text)
	}
	return oid, nil
}

// String writes the name as RFC 4514 does, most specific first. Types without a descriptor and values that are no
// strings are written as a dotted identifier and a hexadecimal DER value.
func (n Name) String() string {
	var b strings.Builder
	for i, rdn := range slices.Backward(n) {
		if i != len(n)-1 {
			b.WriteByte(',')
		}
		for j, a := range rdn {
			if j > 0 {
				b.WriteByte('+')
			}
			b.WriteString(a.String())
		}
	}
	return b.String()
}

// String writes type=value as RFC 4514 2.3 and 2.4 do.
func (a Attribute) String() string {
	name, known := descriptor(a.Type)
	if known && (a.Tag == 0 || isStringTag(a.Tag)) {
		return name + "=" + escapeValue(a.Value)
	}
	if !known {
		name = a.Type.String()
	}
	value, err := a.valueDER()
	if err != nil { // not encodable, so shown as the text that it is
		return name + "=" + escapeValue(a.Value)
	}
	return name + "=#" + hex.EncodeToString(value)
}

func escapeValue(value string) string {
	var b strings.Builder
	for i := 0; i < len(value); {
		r, size := utf8.DecodeRuneInString(value[i:])
		c := value[i]
		switch {
		case r == utf8.RuneError && size == 1, r < 0x20, r == 0x7f:
			b.WriteByte('\\')
			b.WriteString(hex.EncodeToString([]byte{c}))
		case strings.IndexByte(`",+;<>\`, c) >= 0,
			c == ' ' && (i == 0 || i == len(value)-1), c == '#' && i == 0:
			b.WriteByte('\\')
			b.WriteByte(c)
		default:
			b.WriteString(value[i : i+size])
		}
		i += size
	}
	return b.String()
}

// nameParser reads RFC 4514 text; pos is the octet to be read next.
type nameParser struct {
	text string
	pos  int
}

// ParseName reads RFC 4514 text, most specific RDN first, into encoded order. Blanks around separators are accepted, as
// operators write them; an unescaped separator or a stray escape is refused with its position. The empty text is the
// empty name.
func ParseName(text string) (Name, error) {
	p := &nameParser{text: text}
	name := Name{}
	p.blanks()
	if p.done() {
		return name, nil
	}
	for {
		var rdn RDN
		for {
			a, err := p.attribute()
			if err != nil {
				return nil, err
			}
			rdn = append(rdn, a)
			if p.done() || p.text[p.pos] != '+' {
				break
			}
			p.pos++
		}
		name = append(name, rdn)
		if p.done() {
			break
		}
		p.pos++ // the comma: attribute stops nowhere else
	}
	slices.Reverse(name)
	if _, err := name.DER(); err != nil {
		return nil, fault.New(fault.Invalid, "name %q: %w", text, err)
	}
	return name, nil
}

func (p *nameParser) done() bool { return p.pos >= len(p.text) }

func (p *nameParser) blanks() {
	for !p.done() && p.text[p.pos] == ' ' {
		p.pos++
	}
}

func (p *nameParser) refuse(format string, args ...any) error {
	return fault.New(fault.Invalid, "name %q, character %d: "+format, append([]any{p.text, p.pos + 1}, args...)...)
}

func (p *nameParser) attribute() (Attribute, error) {
	p.blanks()
	equals := strings.IndexByte(p.text[p.pos:], '=')
	if equals < 0 {
		return Attribute{}, p.refuse("expected type=value, as in CN=host1,O=Example")
	}
	oid, err := ParseAttributeType(strings.TrimSpace(p.text[p.pos : p.pos+equals]))
	if err != nil {
		return Attribute{}, p.refuse("%w", err)
	}
	p.pos += equals + 1
	p.blanks()
	if !p.done() && p.text[p.pos] == '#' {
		return p.hexValue(oid)
	}
	value, err := p.value()
	if err != nil {
		return Attribute{}, err
	}
	if !utf8.ValidString(value) {
		return Attribute{}, p.refuse("the value of %s is not UTF-8", attributeName(oid))
	}
	return Attribute{Type: oid, Value: value}, nil
}

// hexValue reads the form #hexpairs, which is the DER of the value.
func (p *nameParser) hexValue(oid asn1.ObjectIdentifier) (Attribute, error) {
	end := p.pos + 1
	for end < len(p.text) && strings.IndexByte(",+", p.text[end]) < 0 {
		end++
	}
	der, err := hex.DecodeString(strings.TrimRight(p.text[p.pos+1:end], " "))
	if err != nil {
		return Attribute{}, p.refuse("a value that begins with # is pairs of hexadecimal digits; escape it as \\# otherwise")
	}
	a := Attribute{Type: oid}
	input := cryptobyte.String(der)
	var content cryptobyte.String
	if !input.ReadAnyASN1(&content, &a.Tag) || !input.Empty() || a.Tag == 0 {
		return Attribute{}, p.refuse("the hexadecimal value is not one DER element")
	}
	if a.Value, err = decodeString(a.Tag, content); err != nil {
		return Attribute{}, p.refuse("%w", err)
	}
	p.pos = end
	return a, nil
}

// value reads a string up to an unescaped comma or plus, and drops blanks at its end that are not escaped.
func (p *nameParser) value() (string, error) {
	var b strings.Builder
	keep := 0 // length up to the last character that is not an unescaped blank
	for !p.done() {
		c := p.text[p.pos]
		switch {
		case c == ',' || c == '+':
			return b.String()[:keep], nil
		case strings.IndexByte("\";<>\x00", c) >= 0:
			return "", p.refuse("%q must be escaped as \\%02x in a value", c, c)
		case c == '\\':
			unescaped, err := p.escape()
			if err != nil {
				return "", err
			}
			b.WriteByte(unescaped)
			keep = b.Len()
		default:
			b.WriteByte(c)
			p.pos++
			if c != ' ' {
				keep = b.Len()
			}
		}
	}
	return b.String()[:keep], nil
}

func (p *nameParser) escape() (byte, error) {
	rest := p.text[p.pos+1:]
	if rest == "" {
		return 0, p.refuse("the text ends in a lone backslash")
	}
	if strings.IndexByte(" \"#+,;<=>\\", rest[0]) >= 0 {
		p.pos += 2
		return rest[0], nil
	}
	if len(rest) >= 2 {
		if v, err := hex.DecodeString(rest[:2]); err == nil {
			p.pos += 3
			return v[0], nil
		}
	}
	return 0, p.refuse("a backslash is followed by one of \" # + , ; < = > \\, a blank, or two hexadecimal digits")
}
