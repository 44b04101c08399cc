package probe

import (
	"bytes"
	"crypto/x509"
	"slices"
	"time"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
)

// trusted are the certificates that the plan's trust file gets.
func trusted(m *Material, trust recipe.Trust) []*x509.Certificate {
	list := slices.Clone(m.Anchors)
	if trust.Intermediates {
		for _, c := range m.Issuers {
			if !slices.ContainsFunc(list, c.Equal) {
				list = append(list, c)
			}
		}
	}
	return list
}

// checkTrust looks at the trust file of a consumer that is to show leaf.
func checkTrust(m *Material, plan *recipe.Plan, leaf *x509.Certificate, now time.Time) []error {
	broken := checkAnchors(m, plan, now)
	// libvirtd looks for the issuer of its certificate in this file only, whatever the certificate's own file has.
	if plan.Trust.Intermediates && len(m.PathRoots) == 0 && len(rootsOf(leaf, trusted(m, plan.Trust))) == 0 {
		broken = append(broken, fault.New(fault.Invalid, "the issuer of the certificate, %s, is not in the trust file, where this consumer looks for it",
			leaf.Issuer))
	}
	return broken
}

// checkAnchors looks at every certificate of the trust file: one of them that is expired, not valid yet, or no CA stops
// libvirtd and QEMU.
func checkAnchors(m *Material, plan *recipe.Plan, now time.Time) []error {
	var broken []error
	list := trusted(m, plan.Trust)
	if len(list) == 0 {
		return []error{fault.New(fault.Invalid, "the trust set is empty: nobody would be believed")}
	}
	for _, c := range list {
		broken = append(broken, checkTimes(c, now), checkStrength(c), checkCA(c))
	}
	return append(broken, checkSize(list, plan.Trust, "the trust file"))
}

// checkStrength refuses a certificate whose key is weak, and names it.
func checkStrength(c *x509.Certificate) error {
	if err := cert.CheckPublicKey(c.PublicKey); err != nil {
		return fault.New(fault.Invalid, "the key of %s: %s", c.Subject, message(err))
	}
	return nil
}

func checkCA(c *x509.Certificate) error {
	if !c.BasicConstraintsValid || !c.IsCA {
		return fault.New(fault.Invalid, "%s is in the trust set and is no CA: its basicConstraints do not say CA:TRUE", c.Subject)
	}
	if hasExtension(c, oidKeyUsage) && c.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fault.New(fault.Invalid, "%s is in the trust set and may not sign certificates: its keyUsage lacks keyCertSign", c.Subject)
	}
	return nil
}

// checkSize holds a file of certificates against what the consumer reads of one.
func checkSize(list []*x509.Certificate, trust recipe.Trust, what string) error {
	if most := trust.MaxCertificates; most > 0 && len(list) > most {
		return fault.New(fault.Invalid, "%s has %d certificates, and this consumer reads %d", what, len(list), most)
	}
	if size := len(keyfile.EncodeCertificates(list...)); trust.MaxBytes > 0 && size > trust.MaxBytes {
		return fault.New(fault.Invalid, "%s has %d octets, and this consumer reads %d", what, size, trust.MaxBytes)
	}
	return nil
}

// checkCRLs refuses a CRL that is empty, of no issuer known, not signed by it, or not in force; wants one of every issuer
// of the path where the recipe asks for CRLs; and refuses a path of which a certificate is revoked.
func checkCRLs(m *Material, plan *recipe.Plan, root *x509.Certificate, now time.Time) []error {
	var broken []error
	above := m.Path[min(1, len(m.Path)):]
	issuers := slices.Concat(above, m.Issuers, m.Anchors)
	covered := map[string]bool{} // by the issuer's key
	full := m.Path
	if root != nil && !root.Equal(full[len(full)-1]) {
		full = append(slices.Clone(full), root)
	}
	for i, der := range m.CRLs {
		list, issuer, err := CheckCRL(der, issuers, now)
		if err != nil && list != nil && now.After(list.NextUpdate) && !slices.ContainsFunc(full, issuer.Equal) {
			continue // no worse than none of it, and its issuer may have ended; the path does not need it
		}
		if err != nil {
			broken = append(broken, fault.New(fault.Invalid, "CRL %d of %d: %s", i+1, len(m.CRLs), message(err)))
			continue
		}
		covered[string(issuer.RawSubjectPublicKeyInfo)] = true
		for _, c := range full {
			if issuedBy(c, issuer) != nil {
				continue
			}
			if e, ok := list.Lookup(c.SerialNumber); ok {
				broken = append(broken, fault.New(fault.Invalid, "certificate %s (%s) is revoked: the CRL of %s says %s",
					cert.FormatSerial(c.SerialNumber), c.Subject, issuer.Subject, e.Reason))
			}
		}
	}
	if !plan.Trust.CRLs || !places(plan, "crls") || root == nil || len(m.PathRoots) > 0 {
		return broken // what it trusts for a purpose of its own is not what its own path ends in
	}
	for _, issuer := range append(slices.Clone(above), root) {
		if !covered[string(issuer.RawSubjectPublicKeyInfo)] {
			broken = append(broken, fault.New(fault.Invalid, "there is no CRL in force of %s, and this consumer needs one of every issuer of the path",
				issuer.Subject))
		}
	}
	return broken
}

// CheckCRL reads a CRL, finds its issuer among issuers, and refuses one that a consumer must not be given: empty, not DER,
// of another CA, not signed by it, not in force at now, a delta CRL or one of limited scope, which leaves out what a
// consumer would then take for good. The list is returned with the error where only its time is wrong.
func CheckCRL(der []byte, issuers []*x509.Certificate, now time.Time) (*crl.List, *x509.Certificate, error) {
	if len(der) == 0 {
		return nil, nil, fault.New(fault.Invalid, "it is empty")
	}
	list, err := crl.Parse(der)
	if err != nil {
		return nil, nil, err
	}
	err = fault.New(fault.Invalid, "it is of an issuer that is not in the trust set")
	for _, issuer := range issuers {
		if !bytes.Equal(issuer.RawSubject, list.RawIssuer) {
			continue
		}
		if err = list.CheckIssuer(issuer); err != nil {
			continue // another key of the same name may have signed it
		}
		switch {
		case list.BaseNumber != nil:
			return nil, nil, fault.New(fault.Invalid, "the CRL of %s is a delta CRL; a complete one is needed", issuer.Subject)
		case list.IDP != nil:
			return nil, nil, fault.New(fault.Invalid, "the CRL of %s covers only part of what it issued (issuingDistributionPoint); a complete one is needed",
				issuer.Subject)
		}
		return list, issuer, list.CheckTimes(now)
	}
	return nil, nil, err
}
