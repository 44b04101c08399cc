package probe

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/path"
)

// serverAuth is id-kp-serverAuth, RFC 5280 section 4.2.1.12.
var serverAuth = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}

// Judge refuses a path that a peer would refuse which holds nothing but the roots: its order, its times, the rules of RFC
// 5280 section 6, and the usage serverAuth. A root that the server sent along is passed over.
func (s *Seen) Judge(roots []*x509.Certificate, now time.Time) error {
	sent := s.Path
	if last := sent[len(sent)-1]; len(sent) > 1 && slices.ContainsFunc(roots, last.Equal) {
		sent = sent[:len(sent)-1]
	}
	return judgePath(sent, roots, []asn1.ObjectIdentifier{serverAuth}, now)
}

// judgePath checks a path as it was sent, leaf first and without its root, against the roots.
func judgePath(sent, roots []*x509.Certificate, usages []asn1.ObjectIdentifier, now time.Time) error {
	for i, c := range sent[:len(sent)-1] {
		if err := issuedBy(c, sent[i+1]); err != nil {
			return fault.New(fault.Invalid, "the path is not in order: certificate %d (%s) is not issued by certificate %d (%s), "+
				"and each must be followed by its issuer", i+1, c.Subject, i+2, sent[i+1].Subject)
		}
	}
	top := sent[len(sent)-1]
	candidates := rootsOf(top, roots)
	if len(candidates) == 0 {
		return fault.New(fault.Invalid, "a peer that holds only the roots finds no path: the issuer of %s is %s, which is no root of the trust set; "+
			"an intermediate is missing, or the certificate comes from another authority", top.Subject, top.Issuer)
	}
	var refused error
	for _, root := range candidates {
		full := sent
		if !root.Equal(top) {
			full = append(slices.Clone(sent), root)
		}
		_, err := path.Verify(full, path.Options{Time: now, ExtKeyUsages: usages})
		if err == nil {
			return nil
		}
		if refused == nil {
			refused = err
		}
	}
	return refused
}

// rootsOf returns the root that c is, or else all that issued it: a root that was renewed with its key stands beside the
// one that it replaces.
func rootsOf(c *x509.Certificate, roots []*x509.Certificate) []*x509.Certificate {
	var found []*x509.Certificate
	for _, r := range roots {
		switch {
		case r.Equal(c):
			return []*x509.Certificate{r}
		case issuedBy(c, r) == nil:
			found = append(found, r)
		}
	}
	return found
}

// issuedBy checks name and signature; what an issuer may is path.Verify's to say.
func issuedBy(c, issuer *x509.Certificate) error {
	if string(c.RawIssuer) != string(issuer.RawSubject) {
		return fmt.Errorf("its issuer is %s", c.Issuer)
	}
	return issuer.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature)
}

// namesOf are the names of a certificate by which peers look for its holder.
func namesOf(c *x509.Certificate, commonName bool) []string {
	var names []string
	for _, n := range c.DNSNames {
		names = append(names, "dns:"+n)
	}
	for _, a := range c.IPAddresses {
		names = append(names, "ip:"+a.String())
	}
	if len(names) == 0 && commonName && c.Subject.CommonName != "" {
		names = append(names, c.Subject.CommonName)
	}
	return names
}

// matches refuses a certificate that a peer which asked for name would refuse. A name is dns:NAME, ip:ADDRESS, or either
// without its prefix. CommonName accepts the only common name of a certificate that has neither DNS nor IP names.
func matches(c *x509.Certificate, name string, commonName bool) error {
	plain := strings.TrimPrefix(strings.TrimPrefix(name, "dns:"), "ip:")
	plain = strings.TrimSuffix(plain, ".")
	address, notAddress := netip.ParseAddr(plain)
	switch {
	case len(c.DNSNames) == 0 && len(c.IPAddresses) == 0 && commonName:
		if names := commonNames(c); len(names) == 1 && strings.EqualFold(names[0], plain) {
			return nil
		}
	case notAddress == nil:
		for _, a := range c.IPAddresses {
			if b, ok := netip.AddrFromSlice(a); ok && b.Unmap() == address.Unmap() {
				return nil
			}
		}
	case strings.HasPrefix(plain, "*."):
		if slices.ContainsFunc(c.DNSNames, func(n string) bool { return strings.EqualFold(n, plain) }) {
			return nil
		}
	default:
		if c.VerifyHostname(plain) == nil {
			return nil
		}
	}
	return fault.New(fault.Invalid, "the certificate is not for %s: a peer that asks for it would refuse; its names are %s", name, listNames(c))
}

func commonNames(c *x509.Certificate) []string {
	var names []string
	for _, a := range c.Subject.Names {
		if text, ok := a.Value.(string); ok && a.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 3}) {
			names = append(names, text)
		}
	}
	return names
}

func listNames(c *x509.Certificate) string {
	const most = 10
	names := namesOf(c, false)
	switch {
	case len(names) == 0:
		return fmt.Sprintf("none but the common name %q", c.Subject.CommonName)
	case len(names) > most:
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}
