package cert

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// maxConstraintChecks bounds names × constraints of one certificate, so that a hostile one cannot buy hours.
const maxConstraintChecks = 250_000

// Check applies the constraints to the names of a certificate (RFC 5280 6.1.3 b and c): the subject as a directoryName,
// every subjectAltName, the emailAddress of the subject where no mailbox is in the subjectAltName, and (our addition, as
// OpenSSL does it) a common name that reads as a DNS name where no DNS name is there, since such consumers fall back to
// it.
func (c *NameConstraints) Check(subject Name, san []GeneralName) error {
	names := constrainedNames(subject, san)
	if constraints := len(c.Permitted) + len(c.Excluded); len(names)*constraints > maxConstraintChecks {
		return fmt.Errorf("%d names under %d constraints are too many to check", len(names), constraints)
	}
	for _, g := range names {
		if err := c.checkOne(g); err != nil {
			return err
		}
	}
	return nil
}

// PathConstraints are the name constraints of an issuer and of the certificates above it. They are never changed, so one
// value serves all certificates of an issuer.
type PathConstraints struct{ of []constraintsOf }

type constraintsOf struct {
	certificate *x509.Certificate
	constraints *NameConstraints
	above       bool // not of the issuer itself
}

// ReadPathConstraints reads the constraints of a path: the issuer, and those above it.
func ReadPathConstraints(path []*x509.Certificate) (*PathConstraints, error) {
	all := new(PathConstraints)
	for i, certificate := range path {
		for _, e := range certificate.Extensions {
			if !e.Id.Equal(OIDNameConstraints) {
				continue
			}
			c, err := ParseNameConstraints(e.Value)
			if err != nil {
				return nil, fmt.Errorf("the constraints of %q: %w", certificate.Subject, err)
			}
			all.of = append(all.of, constraintsOf{certificate, c, i > 0})
		}
	}
	return all, nil
}

// Check applies the constraints of every certificate of the path.
func (p *PathConstraints) Check(subject Name, san []GeneralName) error {
	for _, one := range p.of {
		err := one.constraints.Check(subject, san)
		if err != nil && one.above {
			return fmt.Errorf("%w (by %q, above the issuer)", err, one.certificate.Subject)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func constrainedNames(subject Name, san []GeneralName) []GeneralName {
	names := make([]GeneralName, 0, len(san)+1)
	hasDNS, hasEmail := false, false
	for _, g := range san {
		hasDNS = hasDNS || g.Kind == DNS
		hasEmail = hasEmail || g.Kind == Email
		names = append(names, g)
	}
	if len(subject) > 0 {
		if g, err := DirName(subject); err == nil {
			names = append(names, g)
		}
	}
	if !hasEmail {
		for _, mailbox := range subject.Attributes(OIDEmailAddress) {
			names = append(names, EmailName(mailbox))
		}
	}
	if !hasDNS {
		for _, cn := range subject.Attributes(OIDCommonName) {
			if strings.Contains(cn, ".") && CheckDNSName(cn, true) == nil {
				names = append(names, DNSName(cn))
			}
		}
	}
	return names
}

func (c *NameConstraints) checkOne(g GeneralName) error {
	for _, constraint := range c.Excluded {
		if constraint.Kind != g.Kind {
			continue
		}
		inside, err := g.within(constraint, true)
		if err != nil {
			return err
		}
		if inside {
			return fmt.Errorf("name %s is excluded by %s", g, constraint)
		}
	}
	var permitted []string
	for _, constraint := range c.Permitted {
		if constraint.Kind != g.Kind {
			continue
		}
		permitted = append(permitted, constraint.String())
		inside, err := g.within(constraint, false)
		if err != nil {
			return err
		}
		if inside {
			return nil
		}
	}
	if permitted != nil {
		return fmt.Errorf("name %s is not within the permitted names: %s", g, strings.Join(permitted, ", "))
	}
	return nil
}

// within reports whether g lies in the subtree of the constraint, which is of the same kind. A wildcard lies in a
// permitted subtree if all that it stands for does, and in an excluded one if any of it does. A name that cannot be
// judged is an error, whether the subtree is permitted or excluded.
func (g GeneralName) within(constraint GeneralName, excluded bool) (bool, error) {
	switch g.Kind {
	case DNS:
		return dnsWithin(g.Value, constraint.Value, excluded)
	case Email:
		return mailboxWithin(g.Value, constraint.Value)
	case URI:
		return uriWithin(g.Value, constraint.Value)
	case IPAddress:
		a, err := netip.ParseAddr(g.Value)
		if err != nil {
			return false, fmt.Errorf("address %q cannot be judged", g.Value)
		}
		p, err := netip.ParsePrefix(constraint.Value)
		if err != nil {
			return false, fmt.Errorf("constraint %q on addresses cannot be judged", constraint.Value)
		}
		return a.BitLen() == p.Addr().BitLen() && p.Contains(a), nil
	case DirectoryName:
		name, err := ParseNameDER(g.DER)
		if err != nil {
			return false, err
		}
		base, err := ParseNameDER(constraint.DER)
		if err != nil {
			return false, err
		}
		return name.HasPrefix(base), nil
	}
	return false, fmt.Errorf("constraints on names of kind %s are not supported, and the certificate has one", g.Kind)
}

func dnsWithin(name, base string, excluded bool) (bool, error) {
	name, base = strings.ToLower(strings.TrimSuffix(name, ".")), strings.ToLower(strings.TrimSuffix(base, "."))
	if err := CheckDNSName(name, true); err != nil {
		return false, fmt.Errorf("%w, so that it cannot be judged", err)
	}
	if base == "" {
		return true, nil
	}
	if excluded && strings.HasPrefix(name, "*.") {
		// *.example.com stands for host.example.com, so a subtree one label below it is touched.
		if _, parent, found := strings.Cut(strings.TrimPrefix(base, "."), "."); found && parent == name[2:] &&
			!strings.HasPrefix(base, ".") {
			return true, nil
		}
	}
	if strings.HasPrefix(base, ".") {
		return strings.HasSuffix(name, base), nil
	}
	return name == base || strings.HasSuffix(name, "."+base), nil
}

func mailboxWithin(mailbox, base string) (bool, error) {
	at := strings.LastIndexByte(mailbox, '@')
	if at <= 0 || at == len(mailbox)-1 {
		return false, fmt.Errorf("mailbox %q cannot be judged", mailbox)
	}
	local, host := mailbox[:at], strings.ToLower(mailbox[at+1:])
	if i := strings.LastIndexByte(base, '@'); i >= 0 {
		return local == base[:i] && host == strings.ToLower(base[i+1:]), nil
	}
	return hostWithin(host, base), nil
}

func uriWithin(uri, base string) (bool, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return false, fmt.Errorf("URI %q cannot be judged", uri)
	}
	host := strings.ToLower(u.Hostname())
	if _, err := netip.ParseAddr(host); host == "" || err == nil {
		return false, fmt.Errorf("URI %q has no host name, so a constraint on URIs refuses it (RFC 5280 4.2.1.10)", uri)
	}
	return hostWithin(strings.TrimSuffix(host, "."), base), nil
}

// hostWithin is the rule for mailboxes and URIs: a host stands for itself only, .domain for what is below it.
func hostWithin(host, base string) bool {
	base = strings.ToLower(base)
	if base == "" {
		return true
	}
	if strings.HasPrefix(base, ".") {
		return strings.HasSuffix(host, base) && len(host) > len(base)
	}
	return host == base
}
