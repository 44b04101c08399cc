package root

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// RenewIssuer certifies the key of an issuer again: all as in the certificate before, but the serial number, the dates, and where
// the root publishes, as far as links say that. It lasts as long as the one before unless validity says otherwise, and never
// beyond the root. One that would not last longer than the one before is refused.
func (r *Root) RenewIssuer(before *x509.Certificate, validity time.Duration, links cert.Issuer, now time.Time) (*x509.Certificate, error) {
	template, err := again(before, links)
	if err != nil {
		return nil, fmt.Errorf("renew %q: %w", before.Subject, err)
	}
	now = now.UTC().Truncate(time.Second)
	template.NotBefore, template.NotAfter = now.Add(-Backdate), now.Add(validity)
	if validity == 0 {
		template.NotAfter = now.Add(before.NotAfter.Sub(before.NotBefore))
		if end := r.Certificate.NotAfter; template.NotAfter.After(end) {
			template.NotAfter = end
		}
	}
	if err := CheckRenewedEnd(before, template.NotAfter, r.Certificate); err != nil {
		return nil, err
	}
	serial, err := cert.NewSerial()
	if err != nil {
		return nil, err
	}
	links.Certificate = r.Certificate
	linted, err := lintAgain(template, before.RawSubjectPublicKeyInfo, serial, &links)
	if err != nil {
		return nil, fmt.Errorf("renew %q: %w", before.Subject, err)
	}
	return sign(linted, r.Signer)
}

// lintAgain holds a certificate that is made once more to the lints that nothing may turn off. The others were passed, or turned
// off, when it was made first.
func lintAgain(t *cert.Template, spki []byte, serial *big.Int, issuer *cert.Issuer) (*cert.Linted, error) {
	tbs, err := cert.Build(t, spki, serial, issuer)
	if err != nil {
		return nil, err
	}
	names, fixed := cert.LintNames()
	return tbs.Lint(cert.Lints{Off: slices.DeleteFunc(names, func(name string) bool { return fixed[name] })})
}

// again is the template of a certificate like another one, without dates. What the links say takes the place of what the
// certificate before says of its issuer.
func again(before *x509.Certificate, links cert.Issuer) (*cert.Template, error) {
	subject, err := cert.ParseNameDER(before.RawSubject)
	if err != nil {
		return nil, err
	}
	if der, err := subject.DER(); err != nil || !bytes.Equal(der, before.RawSubject) {
		return nil, fault.New(fault.Invalid, "its subject is not encoded as it would be again, and what it issued names it octet for octet")
	}
	t := &cert.Template{
		Subject: subject, SubjectKeyIDValue: before.SubjectKeyId,
		CRLDistributionPoints: links.CRLDistributionPoints, FreshestCRL: links.FreshestCRL, OCSPServers: links.OCSPServers, CAIssuers: links.CAIssuers,
	}
	replaced := []asn1.ObjectIdentifier{cert.OIDSubjectKeyID, cert.OIDAuthorityKeyID}
	if len(t.CRLDistributionPoints) > 0 {
		replaced = append(replaced, cert.OIDCRLDistributionPoints, cert.OIDFreshestCRL)
	}
	if len(t.OCSPServers)+len(t.CAIssuers) > 0 {
		replaced = append(replaced, cert.OIDAuthorityInfoAccess)
	}
	for _, e := range before.Extensions {
		if !slices.ContainsFunc(replaced, e.Id.Equal) {
			t.Extra = append(t.Extra, cert.Extension{ID: e.Id, Critical: e.Critical, Value: e.Value})
		}
	}
	return t, nil
}

// CheckRenewedEnd says why an issuer's certificate may not end at a time: it is to last longer than the one before, and not longer
// than the one that signs it.
func CheckRenewedEnd(before *x509.Certificate, end time.Time, above *x509.Certificate) error {
	switch {
	case end.After(above.NotAfter):
		return fault.New(fault.Invalid, "the new certificate of %q would end on %s, after that of %q, which signs it and ends on %s; an end up to that would pass",
			before.Subject, stamp(end), above.Subject, stamp(above.NotAfter))
	case !end.After(before.NotAfter) && !above.NotAfter.After(before.NotAfter):
		return fault.New(fault.Invalid, "the new certificate of %q would end on %s, no later than the one that it has, which ends on %s; %q above it ends on %s, "+
			"so nothing would be won", before.Subject, stamp(end), stamp(before.NotAfter), above.Subject, stamp(above.NotAfter)).
			WithHint("chancery rollout start rotate-root")
	case !end.After(before.NotAfter):
		return fault.New(fault.Invalid, "the new certificate of %q would end on %s, no later than the one that it has, which ends on %s; an end after that, up to %s, "+
			"would pass", before.Subject, stamp(end), stamp(before.NotAfter), stamp(above.NotAfter))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// kept are the extensions by which relying parties judge what is below an issuer.
var kept = []asn1.ObjectIdentifier{cert.OIDSubjectKeyID, cert.OIDBasicConstraints, cert.OIDKeyUsage, cert.OIDExtKeyUsage, cert.OIDNameConstraints,
	cert.OIDCertificatePolicies, cert.OIDPolicyMappings, cert.OIDPolicyConstraints, cert.OIDInhibitAnyPolicy}

// CheckRenewed says why a certificate that was made elsewhere is none of the same issuer, with the same powers, as the one before,
// signed by the same key. above signed it; was is the certificate that stood above the one before, nil where that is not known.
func CheckRenewed(before, after, above, was *x509.Certificate) error {
	same := was != nil && bytes.Equal(was.RawSubjectPublicKeyInfo, above.RawSubjectPublicKeyInfo) || was == nil && before.CheckSignatureFrom(above) == nil
	switch {
	case !bytes.Equal(after.RawSubjectPublicKeyInfo, before.RawSubjectPublicKeyInfo):
		return fault.New(fault.Invalid, "the certificate of %q is for another key than the one before; a new key makes another issuer", after.Subject).
			WithHint("chancery rollout start rotate-issuer")
	case !bytes.Equal(after.RawSubject, before.RawSubject):
		return fault.New(fault.Invalid, "the certificate is for the subject %q, and the one before for %q, octet for octet as what it issued names it",
			after.Subject, before.Subject)
	case !bytes.Equal(after.RawIssuer, before.RawIssuer) || !same:
		return fault.New(fault.Invalid, "the certificate is signed by %q, and the one before by the key of %q; whoever trusts that would not find the way up, "+
			"so it is to be signed by the same", above.Subject, before.Issuer).WithHint("chancery rollout start rotate-root")
	case after.SerialNumber.Cmp(before.SerialNumber) == 0:
		return fault.New(fault.Invalid, "the certificate has the serial %s of the one before; each certificate has its own", cert.FormatSerial(before.SerialNumber))
	}
	for _, id := range kept {
		if was, is := valueOf(before, id), valueOf(after, id); !bytes.Equal(was, is) {
			return fault.New(fault.Invalid, "the certificate has another %s (%x) than the one before (%x); the renewed certificate says the same of what its issuer may",
				cert.ExtensionName(id), is, was)
		}
	}
	return CheckRenewedEnd(before, after.NotAfter, above)
}

func valueOf(c *x509.Certificate, id asn1.ObjectIdentifier) []byte {
	for _, e := range c.Extensions {
		if e.Id.Equal(id) {
			return e.Value
		}
	}
	return nil
}
