package cert

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"chancery/internal/fault"
)

// keyUsages are the names of RFC 5280 4.2.1.3 in bit order.
var keyUsages = [...]string{"digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment", "keyAgreement",
	"keyCertSign", "cRLSign", "encipherOnly", "decipherOnly"}

// KeyUsageNames lists the names of the bits set.
func KeyUsageNames(usage x509.KeyUsage) []string {
	var names []string
	for i, name := range keyUsages {
		if usage&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// ParseKeyUsage reads names of RFC 5280 4.2.1.3; contentCommitment is nonRepudiation.
func ParseKeyUsage(names []string) (x509.KeyUsage, error) {
	var usage x509.KeyUsage
	for _, name := range names {
		if strings.EqualFold(name, "contentCommitment") {
			name = "nonRepudiation"
		}
		i := slices.IndexFunc(keyUsages[:], func(known string) bool { return strings.EqualFold(known, name) })
		if i < 0 {
			return 0, fault.New(fault.Invalid, "key usage %q is not known; there are %s", name, strings.Join(keyUsages[:], ", "))
		}
		usage |= 1 << i
	}
	return usage, nil
}

var extKeyUsages = []struct {
	name string
	oid  asn1.ObjectIdentifier
}{
	{"serverAuth", OIDServerAuth}, {"clientAuth", OIDClientAuth}, {"codeSigning", OIDCodeSigning},
	{"emailProtection", OIDEmailProtection}, {"timeStamping", OIDTimeStamping}, {"OCSPSigning", OIDOCSPSigning},
	{"ipsecIKE", OIDIPsecIKE}, {"anyExtendedKeyUsage", OIDAnyExtKeyUsage},
}

// ExtKeyUsageName is the name of a purpose, or its dotted identifier.
func ExtKeyUsageName(oid asn1.ObjectIdentifier) string {
	for _, u := range extKeyUsages {
		if u.oid.Equal(oid) {
			return u.name
		}
	}
	return oid.String()
}

// ParseExtKeyUsage reads a name such as serverAuth, without regard to case, or a dotted identifier.
func ParseExtKeyUsage(name string) (asn1.ObjectIdentifier, error) {
	for _, u := range extKeyUsages {
		if strings.EqualFold(u.name, name) {
			return u.oid, nil
		}
	}
	oid, err := ParseOID(name)
	if err != nil {
		return nil, fault.New(fault.Invalid, "extended key usage %q is neither known, such as serverAuth or clientAuth, nor a "+
			"dotted identifier", name)
	}
	return oid, nil
}

// problems collects what is wrong, each with the path of its field.
type problems []string

func (p *problems) add(path, format string, args ...any) {
	*p = append(*p, path+": "+fmt.Sprintf(format, args...))
}

func (p *problems) err(path string, err error) {
	if err != nil {
		p.add(path, "%s", err)
	}
}

func (p *problems) oneOf(path, value string, allowed ...string) {
	if value != "" && !slices.Contains(allowed, value) {
		p.add(path, "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
}

// Validate reports every problem of the profile with the path of its field.
func (p *Profile) Validate() error {
	var found problems
	if p.Name == "" || strings.Trim(p.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || p.Name[0] == '-' ||
		len(p.Name) > 64 {
		found.add("name", "%q must be 1 to 64 small letters, digits and hyphens, and not begin with a hyphen", p.Name)
	}
	if p.Name == ReservedTwin || p.Name == ReservedControl {
		found.add("name", "%q is what the inventory names certificates of proofs of revocation by; another name would pass", p.Name)
	}
	p.Names.validate(&found)
	p.Key.validate(&found)
	p.validateUsage(&found)
	p.Validity.validate(&found)
	p.validateExtensions(&found)
	if p.CA != nil {
		p.CA.validate(&found)
	}
	found.err("lints.off", CheckLintsOff(p.Lints.Off))
	for i, name := range p.Lints.ZLintOff {
		if !strings.HasPrefix(name, "e_") || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			found.add(fmt.Sprintf("lints.zlint_off[%d]", i), "%q is no name of an error of zlint, which begins with e_", name)
		}
	}
	if len(found) > 0 {
		return fault.New(fault.Invalid, "profile %q: %s", p.Name, strings.Join(found, "; "))
	}
	return nil
}

func (n *NamePolicy) validate(found *problems) {
	found.oneOf("names.common_name", n.CommonName, "names", "caller", "subject", "none")
	if _, err := ParseName(n.Fixed); err != nil {
		found.err("names.fixed", err)
	}
	if n.Max < 0 || n.Max > 10000 {
		found.add("names.max", "%d is not from 0 to 10000", n.Max)
	}
	if len(n.Rules) == 0 {
		found.add("names.rules", "no rule, so that nobody may have any name; an empty rule {} allows every caller what it lists")
	}
	for i, rule := range n.Rules {
		rule.validate(fmt.Sprintf("names.rules[%d]", i), found)
	}
}

func (r *NameRule) validate(path string, found *problems) {
	check := func(field string, patterns []string, compile func(string) error) {
		for i, pattern := range patterns {
			at := fmt.Sprintf("%s.%s[%d]", path, field, i)
			sample, err := substitute(pattern, sampleValue)
			if err != nil {
				found.err(at, err)
				continue
			}
			for _, text := range sample {
				found.err(at, compile(text))
			}
		}
	}
	dns := func(pattern string) error { return checkDNSPattern(pattern) }
	check("dns", r.DNS, dns)
	check("wildcard", r.Wildcard, dns)
	check("ip", r.IP, func(pattern string) error {
		if pattern == sampleText { // a variable alone
			return nil
		}
		_, err := parsePrefix(pattern)
		return err
	})
	check("email", r.Email, func(pattern string) error {
		local, domain, ok := strings.Cut(pattern, "@")
		if pattern == sampleText {
			return nil
		}
		if !ok || local == "" {
			return fmt.Errorf("%q is not LOCAL@DOMAIN, such as *@example.com", pattern)
		}
		return checkDNSPattern(domain)
	})
	check("uri", r.URI, func(pattern string) error {
		if scheme, _, ok := strings.Cut(pattern, ":"); pattern != sampleText && pattern != "**" &&
			(!ok || strings.Contains(scheme, "*")) {
			return fmt.Errorf("%q must begin with its scheme, such as spiffe://example.com/*, or be **", pattern)
		}
		return nil
	})
	check("dirname", r.DirName, func(pattern string) error { _, err := ParseName(pattern); return err })
	for field, oids := range map[string][]string{"other_name": r.OtherName, "registered_id": r.RegisteredID} {
		for i, oid := range oids {
			_, err := ParseOID(oid)
			found.err(fmt.Sprintf("%s.%s[%d]", path, field, i), err)
		}
	}
	for _, attribute := range slices.Sorted(maps.Keys(r.Subject)) {
		_, err := ParseAttributeType(attribute)
		found.err(path+".subject."+attribute, err)
		check("subject."+attribute, r.Subject[attribute], func(string) error { return nil })
	}
}

func parsePrefix(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, fmt.Errorf("%q is neither an address nor a range such as 192.0.2.0/24", text)
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%q has bits below its mask; write %s", text, p.Masked())
	}
	return p, nil
}

func (k *KeyPolicy) validate(found *problems) {
	for i, a := range k.Algorithms {
		found.oneOf(fmt.Sprintf("key.algorithms[%d]", i), a, "rsa", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "ed25519")
	}
	for path, bits := range map[string]int{"key.rsa_min": k.RSAMin, "key.rsa_max": k.RSAMax} {
		if bits != 0 && (bits < minRSABits || bits > maxRSABits) {
			found.add(path, "%d is not from %d to %d", bits, minRSABits, maxRSABits)
		}
	}
	if k.RSAMin != 0 && k.RSAMax != 0 && k.RSAMin > k.RSAMax {
		found.add("key.rsa_max", "%d is less than rsa_min %d", k.RSAMax, k.RSAMin)
	}
}

func (p *Profile) validateUsage(found *problems) {
	usage, err := ParseKeyUsage(p.Usage.KeyUsage)
	found.err("usage.key_usage", err)
	switch signs := usage&x509.KeyUsageCertSign != 0; {
	case p.CA == nil && signs:
		found.add("usage.key_usage", "keyCertSign belongs to a CA: add ca:, or leave it out")
	case p.CA != nil && !signs && err == nil:
		found.add("usage.key_usage", "a CA needs keyCertSign")
	}
	for i, name := range p.Usage.Extended {
		_, err := ParseExtKeyUsage(name)
		found.err(fmt.Sprintf("usage.extended[%d]", i), err)
	}
	if p.Usage.KeepForEC && !slices.Contains(p.Lints.Off, "key-usage-of-key") {
		found.add("usage.keep_for_ec", "the lint key-usage-of-key would refuse it; list it in lints.off")
	}
}

func (v *ValidityPolicy) validate(found *problems) {
	if v.Default <= 0 {
		found.add("validity.default", "a duration such as 90d is needed")
	}
	if v.Max != 0 && v.Max < v.Default {
		found.add("validity.max", "%s is less than the default %s", v.Max, v.Default)
	}
	if v.Backdate != nil && time.Duration(*v.Backdate) > 48*time.Hour {
		found.add("validity.backdate", "%s is more than 2d", *v.Backdate)
	}
	found.oneOf("validity.beyond_issuer", v.BeyondIssuer, "shorten", "refuse")
}

func (p *Profile) validateExtensions(found *problems) {
	x := &p.Extensions
	for i, policy := range x.Policies {
		at := fmt.Sprintf("extensions.policies[%d]", i)
		_, err := ParseOID(policy.ID)
		found.err(at+".id", err)
		if len([]rune(policy.Notice)) > maxNotice {
			found.add(at+".notice", "at most %d characters", maxNotice)
		}
		if policy.CPS != "" {
			found.err(at+".cps", checkURI(policy.CPS))
		}
	}
	if x.InhibitAnyPolicy != nil && (*x.InhibitAnyPolicy < 0 || p.CA == nil) {
		found.add("extensions.inhibit_any_policy", "a number from 0, in a profile of CAs only")
	}
	found.oneOf("extensions.subject_key_id", x.SubjectKeyID, "rfc5280", "spki", "sha256", "none")
	for field, oids := range map[string][]string{"copy": x.Copy, "ignore": x.Ignore} {
		for i, text := range oids {
			at := fmt.Sprintf("extensions.%s[%d]", field, i)
			oid, err := ParseOID(text)
			found.err(at, err)
			if field == "copy" && err == nil && ownedExtension(oid) {
				found.add(at, "%s is decided by the profile and cannot be copied", ExtensionName(oid))
			}
		}
	}
	if x.OCSPNoCheck && !slices.ContainsFunc(p.Usage.Extended, func(u string) bool { return strings.EqualFold(u, "OCSPSigning") }) {
		found.add("extensions.ocsp_nocheck", "it belongs to the usage OCSPSigning")
	}
}

// ownedExtension reports whether the profile itself decides the extension, so that a request's must not be copied.
func ownedExtension(oid asn1.ObjectIdentifier) bool {
	return ExtensionName(oid) != oid.String()
}

func (c *CAPolicy) validate(found *problems) {
	if c.PathLength < -1 || c.PathLength > 100 {
		found.add("ca.path_length", "%d is not from -1 (no limit) to 100", c.PathLength)
	}
	_, err := c.constraints()
	found.err("ca", err)
}

func (c *CAPolicy) constraints() (*NameConstraints, error) {
	if len(c.Permitted)+len(c.Excluded) == 0 {
		return nil, nil
	}
	result := &NameConstraints{}
	var err error
	if result.Permitted, err = parseConstraints(c.Permitted); err != nil {
		return nil, err
	}
	result.Excluded, err = parseConstraints(c.Excluded)
	return result, err
}

func parseConstraints(texts []string) ([]GeneralName, error) {
	var names []GeneralName
	for _, text := range texts {
		g, err := ParseGeneralName(text)
		if err != nil {
			return nil, err
		}
		if err := checkConstraint(g); err != nil {
			return nil, fault.New(fault.Invalid, "constraint %q: %w", text, err)
		}
		names = append(names, g)
	}
	return names, nil
}
