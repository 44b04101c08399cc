package certtool

import (
	"strings"

	"chancery/internal/pki/cert"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/net/idna"
)

// generalName writes one name; prefix stands before the kind, as in "Access Location URI".
func (p *printer) generalName(depth int, prefix string, n cert.GeneralName) {
	switch n.Kind {
	case cert.DNS:
		p.line(depth, "%sDNSname: %s%s", prefix, n.Value, inUnicode("", n.Value))
	case cert.Email:
		local, domain, found := cutLast(n.Value, "@")
		if !found {
			local, domain = "", ""
		}
		p.line(depth, "%sRFC822Name: %s%s", prefix, n.Value, inUnicode(local+"@", domain))
	case cert.URI:
		p.line(depth, "%sURI: %s", prefix, n.Value)
	case cert.IPAddress:
		p.line(depth, "%sIPAddress: %s", prefix, n.Value)
	case cert.RegisteredID:
		p.line(depth, "%sRegistered ID: %s", prefix, n.Value)
	case cert.DirectoryName:
		name, err := cert.ParseNameDER(n.DER)
		if err != nil {
			name = nil
		}
		p.line(depth, "%sdirectoryName: %s", prefix, distinguishedName(name))
	case cert.OtherName:
		p.otherName(depth, prefix, n)
	default:
		p.line(depth, "error: unknown name type")
	}
}

// inUnicode is the internationalised form of a domain, in parentheses and behind a blank, where there is one.
func inUnicode(local, domain string) string {
	if !strings.Contains(domain, "xn--") {
		return ""
	}
	text, err := idna.Display.ToUnicode(domain)
	if err != nil || text == domain {
		return ""
	}
	return " (" + local + text + ")"
}

var oidUserPrincipalName = arcs("1.3.6.1.4.1.311.20.2.3")

func (p *printer) otherName(depth int, prefix string, n cert.GeneralName) {
	value := cryptobyte.String(n.DER)
	var text cryptobyte.String
	switch {
	case n.OtherName.Equal(oidXMPP) && value.ReadASN1(&text, cbasn1.UTF8String):
		p.line(depth, "%sXMPP Address: %s", prefix, text)
		return
	case n.OtherName.Equal(oidUserPrincipalName) && value.ReadASN1(&text, cbasn1.UTF8String):
		p.line(depth, "%sUser Principal Name: %s", prefix, text)
		return
	case n.OtherName.Equal(oidKRB5):
		if name, ok := krb5Text(n.DER); ok {
			p.line(depth, "%sKRB5Principal: %s", prefix, name)
			return
		}
	}
	p.line(depth, "%sotherName OID: %s", prefix, n.OtherName)
	p.line(depth, "%sotherName DER: %x", prefix, n.DER)
	p.line(depth, "%sotherName ASCII: %s", prefix, asciiText(n.DER))
}

func krb5Text(der []byte) (string, bool) {
	input := cryptobyte.String(der)
	var seq, realmField, realm, nameField, name, stringsField, list cryptobyte.String
	if !input.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1(&realmField, explicit(0)) ||
		!realmField.ReadASN1(&realm, tagGeneral) ||
		!seq.ReadASN1(&nameField, explicit(1)) || !nameField.ReadASN1(&name, cbasn1.SEQUENCE) || !name.SkipASN1(explicit(0)) ||
		!name.ReadASN1(&stringsField, explicit(1)) || !stringsField.ReadASN1(&list, cbasn1.SEQUENCE) || len(realm) == 0 {
		return "", false
	}
	var components []string
	for !list.Empty() {
		var c cryptobyte.String
		if !list.ReadASN1(&c, tagGeneral) {
			return "", false
		}
		components = append(components, string(c))
	}
	return strings.Join(components, "/") + "@" + string(realm), true
}
