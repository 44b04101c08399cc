package probe

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strings"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

var (
	oidKeyUsage    = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidExtKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 37}
)

// checkUsages holds keyUsage and extKeyUsage against what the consumer does with the certificate. libvirtd and GnuTLS pass
// over an extension that is not critical with a warning; others do not, and the two sides of a connection may differ, so
// what an extension does not allow is refused either way.
func checkUsages(leaf *x509.Certificate, planned recipe.PlannedCertificate, wanted []asn1.ObjectIdentifier) error {
	if hasExtension(leaf, oidKeyUsage) {
		demand, err := cert.ParseKeyUsage(planned.KeyUsages)
		if err != nil {
			return err
		}
		if len(wanted) > 0 {
			demand |= x509.KeyUsageDigitalSignature // TLS 1.3, and every ephemeral key exchange before it
		}
		if lacks := demand &^ leaf.KeyUsage; lacks != 0 {
			return fault.New(fault.Invalid, "keyUsage is %s, and this consumer needs %s too; without the extension it would pass",
				listed(cert.KeyUsageNames(leaf.KeyUsage)), listed(cert.KeyUsageNames(lacks)))
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	purposes, err := extKeyUsages(leaf)
	if err != nil {
		return err
	}
	for _, want := range wanted {
		if !slices.ContainsFunc(purposes, want.Equal) {
			return fault.New(fault.Invalid, "extKeyUsage is %s, and this consumer needs %s by name (libvirtd does not take anyExtendedKeyUsage for it)",
				listedPurposes(purposes), cert.ExtKeyUsageName(want))
		}
	}
	return nil
}

func hasExtension(c *x509.Certificate, id asn1.ObjectIdentifier) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(id) })
}

// extKeyUsages reads the purposes of a certificate; none where it does not have the extension.
func extKeyUsages(c *x509.Certificate) ([]asn1.ObjectIdentifier, error) {
	for _, e := range c.Extensions {
		if e.Id.Equal(oidExtKeyUsage) {
			return cert.ParseKeyPurposes(e.Value)
		}
	}
	return nil, nil
}

// checkNames refuses a certificate that lacks a name by which the consumer's peers look for it.
func checkNames(leaf *x509.Certificate, plan *recipe.Plan, planned recipe.PlannedCertificate) error {
	names, commonName := planned.Names, false
	if p := plan.Probe; p != nil && len(plan.Certificates) > 0 && plan.Certificates[0].ID == planned.ID {
		commonName = p.CommonName
		names = append(slices.Clone(names), p.Names...)
	}
	var missing []string
	for _, name := range names {
		if matches(leaf, name, commonName) != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fault.New(fault.Invalid, "the certificate is not for %s, which its peers use; its names are %s", strings.Join(missing, ", "), listNames(leaf))
}

func listed(names []string) string {
	if len(names) == 0 {
		return "empty"
	}
	return strings.Join(names, ", ")
}

func listedPurposes(oids []asn1.ObjectIdentifier) string {
	if len(oids) == 0 {
		return "absent"
	}
	var names []string
	for _, oid := range oids {
		names = append(names, cert.ExtKeyUsageName(oid))
	}
	return strings.Join(names, ", ")
}
