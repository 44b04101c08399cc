package cert

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// The string types of DirectoryString (X.520) that cryptobyte has no name for.
const (
	tagBMPString       = cbasn1.Tag(30)
	tagUniversalString = cbasn1.Tag(28)
	tagVisibleString   = cbasn1.Tag(26)
	tagNumericString   = cbasn1.Tag(18)
)

// Attribute is one AttributeTypeAndValue of a name (RFC 5280 4.1.2.4).
type Attribute struct {
	Type asn1.ObjectIdentifier

	// Value is the text in UTF-8. Where Tag is no string type, it holds the content octets of the value as they are.
	Value string

	// Tag is the ASN.1 type of the value. 0 leaves the choice to the standards: IA5String for domainComponent and
	// emailAddress, PrintableString for those that demand it and wherever the text permits, otherwise UTF8String.
	Tag cbasn1.Tag
}

// RDN is a RelativeDistinguishedName: usually one attribute.
type RDN []Attribute

// Name is an RDNSequence in encoded order: the country usually first, the common name last. As text (RFC 4514) the order
// is reversed.
type Name []RDN

// CommonName returns a Name of one commonName, for the callers that need no more.
func CommonName(value string) Name {
	return Name{{{Type: OIDCommonName, Value: value}}}
}

// Attributes returns the values of the given type in encoded order.
func (n Name) Attributes(oid asn1.ObjectIdentifier) []string {
	var values []string
	for _, rdn := range n {
		for _, a := range rdn {
			if a.Type.Equal(oid) {
				values = append(values, a.Value)
			}
		}
	}
	return values
}

// ParseNameDER reads a DER RDNSequence. It refuses trailing octets, empty RDNs and text that is not of its string type.
func ParseNameDER(der []byte) (Name, error) {
	input := cryptobyte.String(der)
	var seq cryptobyte.String
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, errors.New("the name is not one DER SEQUENCE")
	}
	name := Name{}
	for !seq.Empty() {
		var set cryptobyte.String
		if !seq.ReadASN1(&set, cbasn1.SET) || set.Empty() {
			return nil, errors.New("a relative distinguished name is not a filled DER SET")
		}
		rdn, err := parseRDN(set)
		if err != nil {
			return nil, err
		}
		name = append(name, rdn)
	}
	return name, nil
}

func parseRDN(set cryptobyte.String) (RDN, error) {
	var rdn RDN
	var last []byte
	for !set.Empty() {
		var element, value cryptobyte.String
		if !set.ReadASN1Element(&element, cbasn1.SEQUENCE) {
			return nil, errors.New("an attribute of the name is not a DER SEQUENCE")
		}
		if last != nil && bytes.Compare(last, element) >= 0 {
			return nil, errors.New("the attributes of a relative distinguished name are not in DER order, or repeated")
		}
		last = element
		var a Attribute
		var body cryptobyte.String
		if !element.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1ObjectIdentifier(&a.Type) ||
			!body.ReadAnyASN1(&value, &a.Tag) || !body.Empty() {
			return nil, errors.New("an attribute of the name is not a type and a value")
		}
		if a.Tag == 0 {
			return nil, fmt.Errorf("attribute %s of the name has a value without a type", attributeName(a.Type))
		}
		text, err := decodeString(a.Tag, value)
		if err != nil {
			return nil, fmt.Errorf("attribute %s of the name: %w", attributeName(a.Type), err)
		}
		a.Value = text
		rdn = append(rdn, a)
	}
	return rdn, nil
}

func isStringTag(tag cbasn1.Tag) bool {
	switch tag {
	case cbasn1.UTF8String, cbasn1.PrintableString, cbasn1.IA5String, cbasn1.T61String, tagBMPString, tagUniversalString,
		tagVisibleString, tagNumericString:
		return true
	}
	return false
}

// decodeString turns content octets into UTF-8. T61String is read as Latin-1, as every other implementation does.
func decodeString(tag cbasn1.Tag, content []byte) (string, error) {
	switch tag {
	case cbasn1.UTF8String:
		if !utf8.Valid(content) {
			return "", errors.New("a UTF8String that is not UTF-8")
		}
	case cbasn1.PrintableString, cbasn1.IA5String, tagVisibleString, tagNumericString:
		for _, c := range content {
			if c >= utf8.RuneSelf {
				return "", errors.New("a PrintableString or IA5String with an octet above 127")
			}
		}
	case cbasn1.T61String:
		runes := make([]rune, len(content))
		for i, c := range content {
			runes[i] = rune(c)
		}
		return string(runes), nil
	case tagBMPString:
		return decodeUTF16(content)
	case tagUniversalString:
		return decodeUTF32(content)
	}
	return string(content), nil
}

func decodeUTF16(content []byte) (string, error) {
	if len(content)%2 != 0 {
		return "", errors.New("a BMPString with an odd number of octets")
	}
	var b strings.Builder
	for i := 0; i < len(content); i += 2 {
		r := rune(content[i])<<8 | rune(content[i+1])
		if utf16.IsSurrogate(r) {
			return "", errors.New("a BMPString with a surrogate")
		}
		b.WriteRune(r)
	}
	return b.String(), nil
}

func decodeUTF32(content []byte) (string, error) {
	if len(content)%4 != 0 {
		return "", errors.New("a UniversalString whose length is no multiple of four")
	}
	var b strings.Builder
	for i := 0; i < len(content); i += 4 {
		v := uint32(content[i])<<24 | uint32(content[i+1])<<16 | uint32(content[i+2])<<8 | uint32(content[i+3])
		if v > utf8.MaxRune || !utf8.ValidRune(rune(v)) {
			return "", errors.New("a UniversalString with a value that is no character")
		}
		b.WriteRune(rune(v))
	}
	return b.String(), nil
}

// encodeString is the inverse of decodeString.
func encodeString(tag cbasn1.Tag, text string) ([]byte, error) {
	switch tag {
	case cbasn1.UTF8String:
		if !utf8.ValidString(text) {
			return nil, errors.New("the text is not UTF-8")
		}
	case cbasn1.PrintableString, cbasn1.IA5String, tagVisibleString, tagNumericString:
		if !isASCII(text) {
			return nil, fmt.Errorf("%q has characters outside ASCII, which its string type cannot carry", text)
		}
	case cbasn1.T61String, tagBMPString, tagUniversalString:
		return encodeWide(tag, text)
	}
	return []byte(text), nil
}

func encodeWide(tag cbasn1.Tag, text string) ([]byte, error) {
	var out []byte
	for _, r := range text {
		switch {
		case tag == tagUniversalString:
			out = append(out, byte(r>>24), byte(r>>16), byte(r>>8), byte(r))
		case tag == tagBMPString && r <= 0xffff:
			out = append(out, byte(r>>8), byte(r))
		case tag == cbasn1.T61String && r <= 0xff:
			out = append(out, byte(r))
		default:
			return nil, fmt.Errorf("%q has a character that its string type cannot carry", text)
		}
	}
	return out, nil
}

func isASCII(text string) bool {
	for i := range len(text) {
		if text[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// isPrintable reports whether text fits the PrintableString alphabet of X.680 (no *, @, & or underscore).
func isPrintable(text string) bool {
	for i := range len(text) {
		c := text[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte(" '()+,-./:=?", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// stringTag chooses the string type of an attribute that leaves it open.
func stringTag(a Attribute) (cbasn1.Tag, error) {
	switch {
	case a.Tag != 0:
		return a.Tag, nil
	case a.Type.Equal(OIDDomainComponent) || a.Type.Equal(OIDEmailAddress):
		if !isASCII(a.Value) {
			return 0, fmt.Errorf("%s %q must be ASCII; write an internationalised domain as A-labels (xn--…)",
				attributeName(a.Type), a.Value)
		}
		return cbasn1.IA5String, nil
	case isPrintable(a.Value):
		return cbasn1.PrintableString, nil
	case a.Type.Equal(OIDCountry) || a.Type.Equal(OIDSerialNumber) || a.Type.Equal(OIDDNQualifier):
		return 0, fmt.Errorf("%s %q must be a PrintableString: letters, digits and ' ( ) + , - . / : = ? only",
			attributeName(a.Type), a.Value)
	}
	return cbasn1.UTF8String, nil
}

// valueDER encodes the value of an attribute.
func (a Attribute) valueDER() ([]byte, error) {
	tag, err := stringTag(a)
	if err != nil {
		return nil, err
	}
	content, err := encodeString(tag, a.Value)
	if err != nil {
		return nil, fmt.Errorf("attribute %s: %w", attributeName(a.Type), err)
	}
	var b cryptobyte.Builder
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(content) })
	return b.Bytes()
}

func (a Attribute) der() ([]byte, error) {
	if !validOID(a.Type) {
		return nil, fmt.Errorf("attribute type %s cannot be encoded", a.Type)
	}
	value, err := a.valueDER()
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(a.Type)
		b.AddBytes(value)
	})
	return b.Bytes()
}

// DER encodes the name. Attributes of a multi-valued RDN are put into DER's order for a SET OF.
func (n Name) DER() ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 96))
	var failed error
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, rdn := range n {
			elements := make([][]byte, 0, 1)
			for _, a := range rdn {
				element, err := a.der()
				if err != nil {
					failed = err
					return
				}
				elements = append(elements, element)
			}
			if len(elements) == 0 {
				failed = errors.New("the name has a relative distinguished name without attributes")
				return
			}
			slices.SortFunc(elements, bytes.Compare)
			for i := 1; i < len(elements); i++ {
				if bytes.Equal(elements[i-1], elements[i]) {
					failed = fmt.Errorf("an attribute is repeated in the relative distinguished name %s", Name{rdn})
					return
				}
			}
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(bytes.Join(elements, nil)) })
		}
	})
	if failed != nil {
		return nil, failed
	}
	return b.Bytes()
}

// Equal compares as RFC 5280 7.1 does: attribute by attribute, without regard to string type, case, or runs of blanks.
func (n Name) Equal(other Name) bool {
	return len(n) == len(other) && other.HasPrefix(n)
}

// HasPrefix reports whether n lies in the subtree of base, as name constraints mean it: base's RDNs are n's first ones.
func (n Name) HasPrefix(base Name) bool {
	if len(base) > len(n) {
		return false
	}
	for i, rdn := range base {
		if !rdn.equal(n[i]) {
			return false
		}
	}
	return true
}

func (r RDN) equal(other RDN) bool {
	if len(r) != len(other) {
		return false
	}
	for _, a := range r {
		if !slices.ContainsFunc(other, a.equal) {
			return false
		}
	}
	return true
}

func (a Attribute) equal(other Attribute) bool {
	if !a.Type.Equal(other.Type) {
		return false
	}
	text := a.Tag == 0 || isStringTag(a.Tag)
	if text != (other.Tag == 0 || isStringTag(other.Tag)) {
		return false
	}
	if !text {
		return a.Tag == other.Tag && a.Value == other.Value
	}
	return a.Value == other.Value || prepare(a.Value) == prepare(other.Value)
}

// prepare is the string preparation of RFC 4518 as far as it decides equality: compatibility composition, case folding,
// and insignificant blanks.
func prepare(text string) string {
	return strings.Join(strings.Fields(cases.Fold().String(norm.NFKC.String(text))), " ")
}
