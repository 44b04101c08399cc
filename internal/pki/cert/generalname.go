package cert

import (
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"chancery/internal/fault"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/net/idna"
)

// GeneralNameKind is the choice of a GeneralName; its values are the context tags of RFC 5280 4.2.1.6.
type GeneralNameKind uint8

// The kinds of GeneralName.
const (
	OtherName GeneralNameKind = iota
	Email
	DNS
	X400Address
	DirectoryName
	EDIPartyName
	URI
	IPAddress
	RegisteredID
)

var generalNameKinds = [...]string{"othername", "email", "dns", "x400", "dirname", "ediparty", "uri", "ip", "rid"}

// String is the prefix of the kind in the textual form.
func (k GeneralNameKind) String() string {
	if int(k) < len(generalNameKinds) {
		return generalNameKinds[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// GeneralName is one name of a subjectAltName, a name constraint or a pointer.
type GeneralName struct {
	Kind GeneralNameKind

	// Value is the DNS name, mailbox, URI, registered identifier or address; in name constraints an address has a
	// prefix length, and a DNS name or mailbox may be a suffix. For directoryName it is the RFC 4514 text.
	Value string

	// DER is the encoded name of a directoryName, the encoded value of an otherName (inside its explicit tag), and
	// the content octets of x400Address and ediPartyName.
	DER []byte

	// OtherName is the type-id of an otherName.
	OtherName asn1.ObjectIdentifier
}

// DNSName, IPName, EmailName and URIName spare the common cases a literal.
func DNSName(name string) GeneralName { return GeneralName{Kind: DNS, Value: name} }

// IPName is the iPAddress name of a; an IPv4 address in IPv6 form becomes IPv4.
func IPName(a netip.Addr) GeneralName {
	return GeneralName{Kind: IPAddress, Value: a.Unmap().WithZone("").String()}
}

// EmailName is the rfc822Name of a mailbox.
func EmailName(mailbox string) GeneralName { return GeneralName{Kind: Email, Value: mailbox} }

// URIName is the uniformResourceIdentifier name.
func URIName(uri string) GeneralName { return GeneralName{Kind: URI, Value: uri} }

// DirName is the directoryName of n.
func DirName(n Name) (GeneralName, error) {
	der, err := n.DER()
	return GeneralName{Kind: DirectoryName, Value: n.String(), DER: der}, err
}

// HostName writes a host as ParseGeneralName reads it: ip:ADDRESS, or dns:NAME for all that is no address.
func HostName(host string) string {
	if _, err := netip.ParseAddr(host); err == nil {
		return "ip:" + host
	}
	return "dns:" + host
}

// ParseGeneralName reads "dns:NAME", "ip:ADDRESS" (or ADDRESS/BITS for a constraint), "email:MAILBOX", "uri:URI",
// "dirname:RFC-4514", "rid:OID" and "othername:OID;utf8:TEXT" or "othername:OID;HEX", where HEX is the DER of the value.
// Internationalised DNS names, and the domains of mailboxes, become A-labels. "x400:HEX" and "ediparty:HEX" carry
// content octets. The kind may be left out where the text is an address, a mailbox, a URI or a DNS name.
func ParseGeneralName(text string) (GeneralName, error) {
	kind, value, found := strings.Cut(text, ":")
	if !found || !isKind(kind) {
		kind, value = guessKind(text), text
	}
	switch strings.ToLower(kind) {
	case "dns":
		return parseDNS(value)
	case "ip":
		return parseIP(value)
	case "email":
		return parseEmail(value)
	case "uri":
		if value == "" || !isASCII(value) {
			return GeneralName{}, fault.New(fault.Invalid, "URI %q must be ASCII and not empty; percent-encode the rest", value)
		}
		return URIName(value), nil
	case "dirname":
		n, err := ParseName(value)
		if err != nil {
			return GeneralName{}, err
		}
		return DirName(n)
	case "rid":
		oid, err := ParseOID(value)
		if err != nil {
			return GeneralName{}, fault.New(fault.Invalid, "registered identifier: %w", err)
		}
		return GeneralName{Kind: RegisteredID, Value: oid.String()}, nil
	case "othername":
		return parseOtherName(value)
	}
	raw, err := hex.DecodeString(value)
	if err != nil {
		return GeneralName{}, fault.New(fault.Invalid, "%s %q is not hexadecimal", kind, value)
	}
	if strings.EqualFold(kind, "x400") {
		return GeneralName{Kind: X400Address, DER: raw}, nil
	}
	return GeneralName{Kind: EDIPartyName, DER: raw}, nil
}

func isKind(prefix string) bool {
	for _, k := range generalNameKinds {
		if strings.EqualFold(k, prefix) {
			return true
		}
	}
	return false
}

func guessKind(text string) string {
	if _, err := netip.ParseAddr(text); err == nil {
		return "ip"
	}
	if _, err := netip.ParsePrefix(text); err == nil {
		return "ip"
	}
	switch {
	case strings.Contains(text, "://"):
		return "uri"
	case strings.Contains(text, "@"):
		return "email"
	}
	return "dns"
}

func parseDNS(value string) (GeneralName, error) {
	name, err := ToASCII(value)
	if err != nil {
		return GeneralName{}, err
	}
	return DNSName(name), nil
}

// ToASCII turns a DNS name into A-labels (RFC 5891), keeping a leading "*." or "." as it is. An ASCII name is returned
// unchanged but for its letters' case.
func ToASCII(name string) (string, error) {
	if isASCII(name) {
		if name == "" {
			return "", fault.New(fault.Invalid, "a DNS name is empty; write a host name such as host1.example.com")
		}
		return strings.ToLower(name), nil
	}
	prefix := ""
	for _, p := range []string{"*.", "."} {
		if strings.HasPrefix(name, p) {
			prefix, name = p, name[len(p):]
			break
		}
	}
	ascii, err := idna.Lookup.ToASCII(name)
	if err != nil || CheckDNSName(ascii, false) != nil {
		return "", fault.New(fault.Invalid, "DNS name %q is no internationalised domain name (RFC 5891): write its A-labels "+
			"(xn--…)", name)
	}
	return prefix + ascii, nil
}

func parseIP(value string) (GeneralName, error) {
	if a, err := netip.ParseAddr(value); err == nil && a.Zone() == "" {
		return IPName(a), nil
	}
	p, err := netip.ParsePrefix(value)
	if err != nil {
		return GeneralName{}, fault.New(fault.Invalid, "address %q is neither IPv4 nor IPv6 (192.0.2.1, 2001:db8::1), nor "+
			"a range such as 192.0.2.0/24", value)
	}
	return GeneralName{Kind: IPAddress, Value: p.Masked().String()}, nil
}

func parseEmail(value string) (GeneralName, error) {
	at := strings.LastIndexByte(value, '@')
	local, domain := value[:at+1], value[at+1:]
	if !isASCII(local) || domain == "" {
		return GeneralName{}, fault.New(fault.Invalid, "mailbox %q must be local@domain with an ASCII local part (others "+
			"need an otherName, RFC 9598)", value)
	}
	ascii, err := ToASCII(domain)
	if err != nil {
		return GeneralName{}, err
	}
	if isASCII(domain) {
		ascii = domain // the case of an ASCII mailbox is the holder's business
	}
	return EmailName(local + ascii), nil
}

func parseOtherName(value string) (GeneralName, error) {
	id, rest, found := strings.Cut(value, ";")
	oid, err := ParseOID(id)
	if err != nil || !found {
		return GeneralName{}, fault.New(fault.Invalid, "otherName %q is not OID;utf8:TEXT or OID;HEX", value)
	}
	name := GeneralName{Kind: OtherName, OtherName: oid}
	if text, ok := strings.CutPrefix(rest, "utf8:"); ok {
		if !utf8.ValidString(text) {
			return GeneralName{}, fault.New(fault.Invalid, "otherName %q is not UTF-8", value)
		}
		name.DER = element(cbasn1.UTF8String, []byte(text))
		return name, nil
	}
	if name.DER, err = hex.DecodeString(rest); err != nil || !isElement(name.DER) {
		return GeneralName{}, fault.New(fault.Invalid, "otherName %q: the value is not one DER element in hexadecimal", value)
	}
	return name, nil
}

// element encodes one TLV.
func element(tag cbasn1.Tag, content []byte) []byte {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(content)+6))
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(content) })
	return b.BytesOrPanic() // content of less than 4 GiB cannot fail
}

// isElement reports whether der is one DER element and nothing else.
func isElement(der []byte) bool {
	input := cryptobyte.String(der)
	var content cryptobyte.String
	var tag cbasn1.Tag
	return input.ReadAnyASN1(&content, &tag) && input.Empty()
}

// String is the form that ParseGeneralName reads.
func (g GeneralName) String() string {
	value := g.Value
	switch g.Kind {
	case OtherName:
		value = g.OtherName.String() + ";" + hex.EncodeToString(g.DER)
		input := cryptobyte.String(g.DER)
		var content cryptobyte.String
		if input.ReadASN1(&content, cbasn1.UTF8String) && input.Empty() && utf8.Valid(content) {
			value = g.OtherName.String() + ";utf8:" + string(content)
		}
	case X400Address, EDIPartyName:
		value = hex.EncodeToString(g.DER)
	}
	return g.Kind.String() + ":" + value
}

// add encodes the name as an element of GeneralNames; inConstraint lets an address carry its mask.
func (g GeneralName) add(b *cryptobyte.Builder, inConstraint bool) error {
	tag := cbasn1.Tag(g.Kind).ContextSpecific()
	content := []byte(g.Value)
	switch g.Kind {
	case DNS, Email, URI:
		if !isASCII(g.Value) {
			return fault.New(fault.Invalid, "%s name %q must be ASCII; write internationalised domains as A-labels (xn--…)",
				g.Kind, g.Value)
		}
	case IPAddress:
		var err error
		if content, err = addressOctets(g.Value, inConstraint); err != nil {
			return err
		}
	case RegisteredID:
		oid, err := ParseOID(g.Value)
		if err != nil {
			return fault.New(fault.Invalid, "registered identifier: %w", err)
		}
		var inner cryptobyte.Builder
		inner.AddASN1ObjectIdentifier(oid)
		whole := cryptobyte.String(inner.BytesOrPanic())
		var octets cryptobyte.String
		whole.ReadASN1(&octets, cbasn1.OBJECT_IDENTIFIER)
		content = octets
	case DirectoryName:
		if _, err := ParseNameDER(g.DER); err != nil {
			return fault.New(fault.Invalid, "directory name %q: %w", g.Value, err)
		}
		b.AddASN1(tag.Constructed(), func(b *cryptobyte.Builder) { b.AddBytes(g.DER) })
		return nil
	case OtherName:
		if !validOID(g.OtherName) || !isElement(g.DER) {
			return fault.New(fault.Invalid, "otherName %s: its value is not one DER element", g)
		}
		b.AddASN1(tag.Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(g.OtherName)
			b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddBytes(g.DER) })
		})
		return nil
	case X400Address, EDIPartyName:
		tag, content = tag.Constructed(), g.DER
	default:
		return fault.New(fault.Invalid, "there is no GeneralName of %s", g.Kind)
	}
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(content) })
	return nil
}

// addressOctets is the content of an iPAddress: 4 or 16 octets, and as many of mask in a constraint.
func addressOctets(value string, inConstraint bool) ([]byte, error) {
	if !inConstraint {
		a, err := netip.ParseAddr(value)
		if err != nil || a.Zone() != "" {
			return nil, fault.New(fault.Invalid, "address %q is neither IPv4 nor IPv6, such as 192.0.2.1 or 2001:db8::1", value)
		}
		return a.AsSlice(), nil
	}
	p, err := netip.ParsePrefix(value)
	if err != nil {
		a, err := netip.ParseAddr(value)
		if err != nil || a.Zone() != "" {
			return nil, fault.New(fault.Invalid, "a constraint on addresses is a range such as 192.0.2.0/24, not %q", value)
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	p = p.Masked()
	mask := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(p.Addr().AsSlice(), mask...), nil
}

// readGeneralName reads the next GeneralName of in; inConstraint says that an address carries a mask.
func readGeneralName(in *cryptobyte.String, inConstraint bool) (GeneralName, error) {
	var content cryptobyte.String
	var tag cbasn1.Tag
	if !in.ReadAnyASN1(&content, &tag) || tag&0xc0 != 0x80 || int(tag&0x1f) >= len(generalNameKinds) {
		return GeneralName{}, errors.New("a GeneralName is not one of the nine choices of RFC 5280 4.2.1.6")
	}
	g := GeneralName{Kind: GeneralNameKind(tag & 0x1f)}
	constructed := g.Kind == OtherName || g.Kind == X400Address || g.Kind == DirectoryName || g.Kind == EDIPartyName
	if constructed != (tag&0x20 != 0) {
		return g, fmt.Errorf("a GeneralName of kind %s is not in DER form", g.Kind)
	}
	switch g.Kind {
	case DNS, Email, URI:
		g.Value = string(content)
		if !isASCII(g.Value) {
			return g, fmt.Errorf("the %s name %q is not ASCII", g.Kind, g.Value)
		}
	case IPAddress:
		var err error
		g.Value, err = addressText(content, inConstraint)
		return g, err
	case RegisteredID:
		oid, err := oidOfContent(content)
		if err != nil {
			return g, err
		}
		g.Value = oid.String()
	case DirectoryName:
		n, err := ParseNameDER(content)
		if err != nil {
			return g, fmt.Errorf("directoryName: %w", err)
		}
		g.DER, g.Value = content, n.String()
	case OtherName:
		var value cryptobyte.String
		if !content.ReadASN1ObjectIdentifier(&g.OtherName) ||
			!content.ReadASN1(&value, cbasn1.Tag(0).ContextSpecific().Constructed()) || !content.Empty() || !isElement(value) {
			return g, errors.New("an otherName is not a type-id and a value")
		}
		g.DER = value
	default:
		g.DER = content
	}
	return g, nil
}

func oidOfContent(content []byte) (asn1.ObjectIdentifier, error) {
	whole := cryptobyte.String(element(cbasn1.OBJECT_IDENTIFIER, content))
	var oid asn1.ObjectIdentifier
	if !whole.ReadASN1ObjectIdentifier(&oid) {
		return nil, errors.New("a registeredID is not an object identifier")
	}
	return oid, nil
}

func addressText(content []byte, inConstraint bool) (string, error) {
	size := len(content)
	if inConstraint {
		size /= 2
	}
	if (size != 4 && size != 16) || (inConstraint && len(content)%2 != 0) {
		return "", fmt.Errorf("an iPAddress of %d octets", len(content))
	}
	a, _ := netip.AddrFromSlice(content[:size])
	if !inConstraint {
		return a.String(), nil
	}
	bits := 0
	for bits < size*8 && content[size+bits/8]&(0x80>>(bits%8)) != 0 {
		bits++
	}
	for i := bits; i < size*8; i++ {
		if content[size+i/8]&(0x80>>(i%8)) != 0 {
			return "", fmt.Errorf("the mask %x of an iPAddress constraint is not contiguous", content[size:])
		}
	}
	return netip.PrefixFrom(a, bits).Masked().String(), nil
}

// ParseGeneralNames reads the value of a subjectAltName or issuerAltName extension.
func ParseGeneralNames(der []byte) ([]GeneralName, error) {
	input := cryptobyte.String(der)
	var seq cryptobyte.String
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, errors.New("GeneralNames is not one DER SEQUENCE")
	}
	if seq.Empty() {
		return nil, errors.New("GeneralNames is empty")
	}
	var names []GeneralName
	for !seq.Empty() {
		g, err := readGeneralName(&seq, false)
		if err != nil {
			return nil, err
		}
		names = append(names, g)
	}
	return names, nil
}

// MarshalGeneralNames is the value of a subjectAltName extension.
func MarshalGeneralNames(names []GeneralName) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 64))
	err := addGeneralNames(b, cbasn1.SEQUENCE, names)
	if err != nil {
		return nil, err
	}
	return b.Bytes()
}

func addGeneralNames(b *cryptobyte.Builder, tag cbasn1.Tag, names []GeneralName) (failed error) {
	b.AddASN1(tag, func(b *cryptobyte.Builder) {
		for _, g := range names {
			if err := g.add(b, false); err != nil && failed == nil {
				failed = err
			}
		}
	})
	return failed
}
