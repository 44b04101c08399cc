package examine

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

// Demand is what a consumer asks of a certificate.
type Demand struct {
	Recipe     string
	Usages     []string // extKeyUsage, by name
	KeyUsages  []string // that it wants where there is a keyUsage
	Critical   bool     // it passes over an extKeyUsage that is not critical
	CommonName bool     // it takes a certificate without alternative names by its common name
	Most       int      // certificates that it reads of one file; 0 is any number
	MostBytes  int
	Labels     []string // SELinux labels of its files
	Server     bool     // it is reached by peers
}

// DemandOf is what a built-in recipe asks of a certificate with the key. What only the host decides is taken at its strictest:
// an RSA key of libvirt is held to what libvirt before 11.6.0 wants. Plan, where it is not nil, has it decided.
func DemandOf(name string, plan *recipe.Plan, key any) (*Demand, error) {
	r, ok := recipe.Builtin(name)
	if !ok {
		var names []string
		for _, b := range recipe.Builtins() {
			names = append(names, b.Name)
		}
		return nil, fault.New(fault.NotFound, "there is no built-in recipe %q; there are %s", name, strings.Join(names, ", "))
	}
	d := &Demand{
		Recipe: name, Critical: r.AllowList || strings.HasPrefix(name, "libvirt") || strings.HasPrefix(name, "qemu"), Server: r.Probe != nil,
		Most: r.Trust.MaxCertificates, MostBytes: r.Trust.MaxBytes,
	}
	if r.Probe != nil {
		d.CommonName = r.Probe.CommonName
	}
	for _, f := range r.Files {
		d.Labels = append(d.Labels, label(r, f.Label))
	}
	if plan != nil && len(plan.Certificates) > 0 {
		d.Usages, d.KeyUsages = plan.Certificates[0].Usages, plan.Certificates[0].KeyUsages
		return d, nil
	}
	if len(r.Certificates) == 0 {
		return d, nil
	}
	d.Usages = r.Certificates[0].Usages
	family, _, _ := strings.Cut(string(keyfile.AlgorithmOf(key)), "-")
	for _, rule := range r.Certificates[0].Key {
		if strings.HasPrefix(rule.Algorithm, family+"-") || rule.Algorithm == family || strings.Contains(rule.Algorithm, "${") {
			d.KeyUsages = rule.KeyUsages
			break
		}
	}
	return d, nil
}

// label is the label that a recipe wants where nothing else is asked for.
func label(r *recipe.Recipe, text string) string {
	for _, p := range r.Parameters {
		if text == "${param."+p.Name+"|}" || text == "${param."+p.Name+"}" {
			return p.Default
		}
	}
	if strings.Contains(text, "${") {
		return ""
	}
	return text
}

// lookAtNames holds the certificate against one name by which peers look for it. Given says that an operator named it.
func (r *report) lookAtNames(c *x509.Certificate, name string, given bool, d *Demand) {
	if name == "" {
		return
	}
	address, err := netip.ParseAddr(strings.Trim(name, "[]"))
	names := listNames(c)
	switch {
	case len(c.DNSNames)+len(c.IPAddresses)+len(c.URIs)+len(c.EmailAddresses) == 0:
		if d != nil && d.CommonName && strings.EqualFold(c.Subject.CommonName, name) {
			r.ok("names", "for %s, by its common name, which %s takes", name, d.Recipe)
			return
		}
		r.tell("names.commonname", fmt.Sprintf("CN=%s, no subjectAltName", c.Subject.CommonName), fmt.Sprintf("the certificate names nobody but by its common name %q", c.Subject.CommonName),
			reissue(name))
	case err == nil && hasAddress(c, address), err != nil && c.VerifyHostname(strings.TrimSuffix(name, ".")) == nil:
		r.ok("names", "for %s; it has %s", name, names)
	case err == nil && !given && len(c.IPAddresses) == 0:
		r.tell("names.address", names, fmt.Sprintf("it was reached as %s, and has no address in subjectAltName", name), "")
	default:
		r.tell("names.mismatch", names, fmt.Sprintf("the certificate is not for %s: a peer that asks for it refuses", name), reissue(name))
	}
}

func reissue(name string) string {
	kind := "dns:"
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		kind = "ip:"
	}
	return fmt.Sprintf("chancery cert issue --profile server --name %s --key K --out F", quoted(kind+name))
}

func hasAddress(c *x509.Certificate, address netip.Addr) bool {
	return slices.ContainsFunc(c.IPAddresses, func(ip net.IP) bool {
		a, ok := netip.AddrFromSlice(ip)
		return ok && a.Unmap() == address.Unmap()
	})
}

// listNames are the alternative names of a certificate, as far as a line has room.
func listNames(c *x509.Certificate) string {
	var names []string
	for _, n := range c.DNSNames {
		names = append(names, clean(n))
	}
	for _, a := range c.IPAddresses {
		names = append(names, a.String())
	}
	for _, n := range c.EmailAddresses {
		names = append(names, clean(n))
	}
	for _, u := range c.URIs {
		names = append(names, clean(u.String()))
	}
	const most = 6
	if len(names) > most {
		names = append(names[:most], fmt.Sprintf("%d more", len(names)-most))
	}
	if len(names) == 0 {
		return "no subjectAltName"
	}
	return shorten(strings.Join(names, ", "), 200)
}

// Soon is how long before its end a certificate is worth a warning: agents re-key at two thirds of its life, so when a fifth
// is left something was missed. It is 30 days at most, and 180 for a CA.
func Soon(c *x509.Certificate) time.Duration {
	most := 30 * 24 * time.Hour
	if c.IsCA {
		most = 180 * 24 * time.Hour
	}
	return min(most, c.NotAfter.Sub(c.NotBefore)/5)
}

// lookAtTimes judges the certificate's validity.
func (r *report) lookAtTimes(c *x509.Certificate, now time.Time, mend string) {
	left := c.NotAfter.Sub(now)
	switch {
	case left < 0:
		r.tell("times.expired", "notAfter "+stamp(c.NotAfter), fmt.Sprintf("%s expired %s ago", named(c), span(left)), mend)
	case now.Before(c.NotBefore):
		text, command := fmt.Sprintf("%s is not valid for another %s", named(c), span(c.NotBefore.Sub(now))), ""
		if c.NotBefore.Sub(now) < 26*time.Hour {
			text += "; a clock may be wrong, or in another time zone"
			command = "timedatectl; chronyc tracking"
		}
		r.tell("times.future", fmt.Sprintf("notBefore %s, and it is %s here", stamp(c.NotBefore), stamp(now)), text, command)
	case left < Soon(c):
		r.tell("times.ends", "notAfter "+stamp(c.NotAfter), fmt.Sprintf("%s ends in %s, of %s that it was issued for", named(c), span(left), span(c.NotAfter.Sub(c.NotBefore))), mend)
	default:
		r.ok("times", "%s is valid for another %s, until %s", named(c), span(left), stamp(c.NotAfter))
	}
}

// lookAtUsages judges what the certificate may be used for: by a server, and by the consumer where it is known.
func (r *report) lookAtUsages(c *x509.Certificate, d *Demand, server bool) {
	if c.IsCA && r.where == "wire" && !selfIssued(c) {
		r.tell("usages.ca", "CA:TRUE", fmt.Sprintf("%s is a CA's certificate", named(c)), "")
	}
	before := len(r.found)
	wanted, keyUsages := []string{}, []string{}
	if server {
		wanted = []string{"serverAuth"}
	}
	by := "a server"
	if d != nil {
		wanted, keyUsages, by = d.Usages, d.KeyUsages, d.Recipe
	}
	purposes, critical, present := purposesOf(c)
	for _, name := range wanted {
		oid, err := cert.ParseExtKeyUsage(name)
		if err != nil || !present || slices.ContainsFunc(purposes, oid.Equal) || d == nil && slices.ContainsFunc(purposes, anyPurpose().Equal) {
			continue
		}
		r.tell("usages.server", "extKeyUsage "+purposeNames(purposes), fmt.Sprintf("%s may not be used for %s, which %s needs", named(c), name, by), "")
	}
	if d != nil && d.Critical && present && !critical {
		r.tell("usages.critical", "extKeyUsage "+purposeNames(purposes)+", not critical", fmt.Sprintf("%s passes over it: whoever holds %s passes for any role", by, named(c)), "")
	}
	r.lookAtKeyUsage(c, keyUsages, len(wanted) > 0, by)
	if len(r.found) == before && present {
		r.ok("usages", "%s", purposeNames(purposes))
	}
}

func (r *report) lookAtKeyUsage(c *x509.Certificate, names []string, tls bool, by string) {
	if c.KeyUsage == 0 {
		return
	}
	demand, err := cert.ParseKeyUsage(names)
	if err != nil {
		return
	}
	if tls && !c.IsCA {
		demand |= x509.KeyUsageDigitalSignature // TLS 1.3, and every ephemeral key exchange before it
	}
	if lacks := demand &^ c.KeyUsage; lacks != 0 {
		seen := "keyUsage " + strings.Join(cert.KeyUsageNames(c.KeyUsage), ", ")
		r.tell("usages.key", seen, fmt.Sprintf("%s wants %s too", by, strings.Join(cert.KeyUsageNames(lacks), ", ")), "")
	}
	switch c.PublicKey.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
		if c.KeyUsage&x509.KeyUsageKeyEncipherment != 0 && !slices.Contains(names, "keyEncipherment") {
			r.tell("usages.encipherment", "keyUsage "+strings.Join(cert.KeyUsageNames(c.KeyUsage), ", "), fmt.Sprintf("the key of %s is %s", named(c), cert.KeyAlgorithm(c.PublicKey)), "")
		}
	}
}

func anyPurpose() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 5, 29, 37, 0} }

func purposeNames(purposes []asn1.ObjectIdentifier) string {
	var names []string
	for _, p := range purposes {
		names = append(names, cert.ExtKeyUsageName(p))
	}
	return shorten(strings.Join(names, ", "), 120)
}

// lookAtStrength judges the key, and the signature upon it. A root's own signature proves nothing, and is not judged.
func (r *report) lookAtStrength(c *x509.Certificate) {
	if err := cert.CheckPublicKey(c.PublicKey); err != nil {
		r.tell("key.weak", cert.KeyAlgorithm(c.PublicKey), fmt.Sprintf("the key of %s: %s", named(c), sentence(err)), "chancery key generate --algorithm ecdsa-p256 --out K")
	}
	if selfIssued(c) {
		return
	}
	switch c.SignatureAlgorithm {
	case x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1, x509.MD5WithRSA, x509.MD2WithRSA, x509.DSAWithSHA256:
		r.tell("signature.weak", c.SignatureAlgorithm.String(), fmt.Sprintf("%s is signed with %s", named(c), c.SignatureAlgorithm), "")
	}
}

// sentence is what a refusal says, without the rest of its chain.
func sentence(err error) string {
	var f *fault.Error
	if errors.As(err, &f) {
		return f.Message
	}
	return err.Error()
}
