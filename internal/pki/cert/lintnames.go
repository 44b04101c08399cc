package cert

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// lintSubjectStrings holds the string types and bounds of X.520.
func lintSubjectStrings(v *tbsView, _ *Issuer) error {
	for _, rdn := range v.subjectName {
		for _, a := range rdn {
			name := attributeName(a.Type)
			if !isStringTag(a.Tag) {
				return fmt.Errorf("%s is no string", name)
			}
			if _, known := descriptor(a.Type); !known {
				continue
			}
			if err := stringType(a); err != nil {
				return fmt.Errorf("%s %q: %w", name, a.Value, err)
			}
			length := utf8.RuneCountInString(a.Value)
			if length == 0 {
				return fmt.Errorf("%s is empty", name)
			}
			if bound := attributeBound(a.Type); bound > 0 && length > bound {
				return fmt.Errorf("%s of %d characters: %d at most", name, length, bound)
			}
			if a.Type.Equal(OIDCountry) && !isCountry(a.Value) {
				return fmt.Errorf("%s %q must be the two capital letters of ISO 3166", name, a.Value)
			}
		}
	}
	return nil
}

func isCountry(c string) bool {
	return len(c) == 2 && 'A' <= c[0] && c[0] <= 'Z' && 'A' <= c[1] && c[1] <= 'Z'
}

func stringType(a Attribute) error {
	ia5 := a.Type.Equal(OIDDomainComponent) || a.Type.Equal(OIDEmailAddress)
	printable := a.Type.Equal(OIDCountry) || a.Type.Equal(OIDSerialNumber) || a.Type.Equal(OIDDNQualifier)
	switch {
	case ia5 && a.Tag != cbasn1.IA5String:
		return errors.New("must be an IA5String")
	case printable && a.Tag != cbasn1.PrintableString:
		return errors.New("must be a PrintableString")
	case !ia5 && a.Tag != cbasn1.PrintableString && a.Tag != cbasn1.UTF8String:
		return errors.New("must be a PrintableString or a UTF8String")
	case a.Tag == cbasn1.PrintableString && !isPrintable(a.Value):
		return errors.New("has characters that are not in PrintableString; use UTF8String")
	}
	return nil
}

// lintSubjectCharacters refuses what makes two readers see two names: NUL, controls, and marks that turn the direction.
func lintSubjectCharacters(v *tbsView, _ *Issuer) error {
	for _, rdn := range v.subjectName {
		for _, a := range rdn {
			if !isStringTag(a.Tag) {
				continue
			}
			for _, r := range a.Value {
				if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == utf8.RuneError ||
					r == '\u2028' || r == '\u2029' {
					return fmt.Errorf("%s %q has the control character %U", attributeName(a.Type), a.Value, r)
				}
			}
		}
	}
	return nil
}

func lintSubjectBlanks(v *tbsView, _ *Issuer) error {
	for _, rdn := range v.subjectName {
		for _, a := range rdn {
			if isStringTag(a.Tag) && strings.TrimSpace(a.Value) != a.Value {
				return fmt.Errorf("%s %q has a blank at an end", attributeName(a.Type), a.Value)
			}
		}
	}
	return nil
}

func lintSANContent(v *tbsView, _ *Issuer) error {
	for _, g := range v.san {
		if err := CheckGeneralName(g); err != nil {
			return err
		}
	}
	return nil
}

// CheckGeneralName judges the content of a subjectAltName (RFC 5280 4.2.1.6); it says what is wrong and what would pass.
func CheckGeneralName(g GeneralName) error {
	switch g.Kind {
	case DNS:
		return CheckDNSName(g.Value, true)
	case Email:
		return checkMailbox(g.Value)
	case URI:
		return checkURI(g.Value)
	case IPAddress:
		if _, err := netip.ParseAddr(g.Value); err != nil {
			return fmt.Errorf("%q is no address", g.Value)
		}
	case DirectoryName:
		n, err := ParseNameDER(g.DER)
		if err != nil {
			return err
		}
		if len(n) == 0 {
			return errors.New("a directoryName is empty")
		}
	case X400Address, EDIPartyName:
		return fmt.Errorf("names of kind %s are not issued", g.Kind)
	}
	return nil
}

// CheckDNSName holds a DNS name to the preferred syntax: labels of letters, digits, hyphens and (our divergence)
// underscores, 63 octets a label and 253 in all, internationalised labels as A-labels. A wildcard, where one is allowed,
// is the whole leftmost label.
func CheckDNSName(name string, wildcard bool) error {
	rest := name
	if strings.HasPrefix(name, "*.") {
		if !wildcard {
			return fmt.Errorf("DNS name %q: no wildcard is allowed here", name)
		}
		rest = name[2:]
	}
	if rest == "" {
		return fmt.Errorf("DNS name %q is empty", name)
	}
	if len(name) > 253 {
		return fmt.Errorf("DNS name %.40q… has %d octets: 253 at most", name, len(name))
	}
	last := ""
	for label := range strings.SplitSeq(rest, ".") {
		if err := checkLabel(label); err != nil {
			return fmt.Errorf("DNS name %q: %w", name, err)
		}
		last = label
	}
	if strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("DNS name %q ends in a number, as an address does: write an address as ip:%s", name, name)
	}
	return nil
}

func checkLabel(label string) error {
	switch {
	case label == "":
		return errors.New("an empty label: two dots, or a dot at an end")
	case len(label) > 63:
		return fmt.Errorf("a label of %d octets: 63 at most", len(label))
	case label[0] == '-' || label[len(label)-1] == '-':
		return fmt.Errorf("label %q begins or ends with a hyphen", label)
	}
	for i := range len(label) {
		switch c := label[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		case c == '*':
			return errors.New("a wildcard is the whole leftmost label, as in *.example.com")
		default:
			return fmt.Errorf("character %q: letters, digits, hyphens and underscores only, internationalised labels as "+
				"A-labels (xn--…)", c)
		}
	}
	if len(label) > 4 && strings.EqualFold(label[:4], "xn--") {
		unicode, err := idna.Lookup.ToUnicode(label)
		if err != nil || strings.EqualFold(unicode, label) {
			return fmt.Errorf("label %q is no A-label (RFC 5890 2.3.2.1)", label)
		}
	}
	return nil
}

func checkMailbox(mailbox string) error {
	local, domain, found := strings.Cut(mailbox, "@")
	if !found || local == "" || len(local) > 64 || strings.Contains(domain, "@") {
		return fmt.Errorf("mailbox %q is not local@domain with a local part of 1 to 64 octets", mailbox)
	}
	for i := range len(local) {
		c := local[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte("()<>[]:;,\\\"", c) >= 0 ||
			(c == '.' && (i == 0 || i == len(local)-1 || local[i-1] == '.')) {
			return fmt.Errorf("mailbox %q: its local part must be a dot-string (RFC 5321 4.1.2)", mailbox)
		}
	}
	if err := CheckDNSName(domain, false); err != nil {
		return fmt.Errorf("mailbox %q: %w", mailbox, err)
	}
	return nil
}

func checkURI(uri string) error {
	for i := range len(uri) {
		if c := uri[i]; c <= ' ' || c >= 0x7f || strings.IndexByte("<>\"\\^`{|}", c) >= 0 {
			return fmt.Errorf("URI %q has the character %q, which must be percent-encoded", uri, c)
		}
	}
	u, err := url.Parse(uri)
	if err != nil || !u.IsAbs() || (u.Opaque == "" && u.Host == "" && u.Path == "") {
		return fmt.Errorf("URI %q is not absolute, with a scheme and what belongs to it", uri)
	}
	for segment := range strings.SplitSeq(u.Path, "/") {
		if segment == "." || segment == ".." {
			return fmt.Errorf("URI %q has a dot segment, so that it says one thing and means another", uri)
		}
	}
	if u.Host == "" {
		return nil // RFC 5280 asks for a host only where there is an authority
	}
	host := u.Hostname()
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	if err := CheckDNSName(host, false); err != nil {
		return fmt.Errorf("URI %q: %w", uri, err)
	}
	return nil
}

func lintNameConstraints(v *tbsView, _ *Issuer) error {
	c := v.nameConstraints
	if c == nil {
		return nil
	}
	if !v.isCA() {
		return errors.New("nameConstraints belong into the certificate of a CA")
	}
	for _, names := range [][]GeneralName{c.Permitted, c.Excluded} {
		for _, g := range names {
			if err := checkConstraint(g); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkConstraint judges the form of a constraint, which differs from that of a name: see RFC 5280 4.2.1.10.
func checkConstraint(g GeneralName) error {
	switch g.Kind {
	case DNS:
		if g.Value == "" {
			return nil // covers every DNS name
		}
		return CheckDNSName(strings.TrimPrefix(g.Value, "."), false)
	case Email:
		if strings.Contains(g.Value, "@") {
			return checkMailbox(g.Value)
		}
		if g.Value == "" {
			return nil
		}
		return CheckDNSName(strings.TrimPrefix(g.Value, "."), false)
	case URI:
		if strings.Contains(g.Value, "/") || strings.Contains(g.Value, ":") {
			return fmt.Errorf("a constraint on URIs is a host or .domain, not %q", g.Value)
		}
		return CheckDNSName(strings.TrimPrefix(g.Value, "."), false)
	case IPAddress, DirectoryName:
		return nil // their form was read already
	}
	return fmt.Errorf("a constraint on names of kind %s is not understood by relying parties", g.Kind)
}

// lintIssuerConstraints holds the names against the constraints of the whole path above (RFC 5280 6.1.4 g): a relying party
// intersects them, whichever CA of the path they stand in.
func lintIssuerConstraints(v *tbsView, issuer *Issuer) error {
	if issuer == nil {
		return nil
	}
	constraints := issuer.Constraints
	if constraints == nil {
		var err error
		if constraints, err = ReadPathConstraints(append([]*x509.Certificate{issuer.Certificate}, issuer.Above...)); err != nil {
			return err
		}
	}
	return constraints.Check(v.subjectName, v.san)
}
