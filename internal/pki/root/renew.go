package root

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// RenewIssuer certifies the key of an issuer again: all as in the certificate before, but the serial number, the dates, and where
// the root publishes, as far as links say that. It lasts as long as the one before unless validity says otherwise, and never
// beyond the root. One that would not last longer than the one before is refused, and, unless validity asks for it, one by which
// little would be won.
func (r *Root) RenewIssuer(before *x509.Certificate, validity time.Duration, links cert.Issuer, now time.Time) (*x509.Certificate, error) {
	template, err := again(before, links)
	if err != nil {
		return nil, fmt.Errorf("renew %q: %w", before.Subject, err)
	}
	now = now.UTC().Truncate(time.Second)
	template.NotBefore, template.NotAfter = now.Add(-Backdate), now.Add(validity)
	bounded := validity != 0
	if validity == 0 {
		template.NotAfter = template.NotBefore.Add(before.NotAfter.Sub(before.NotBefore))
		if end := r.Certificate.NotAfter; template.NotAfter.After(end) {
			template.NotAfter, bounded = end, true
		}
	}
	if now.After(r.Certificate.NotAfter) {
		return nil, fault.New(fault.Conflict, "the certificate of %q, which would sign, ended on %s", r.Certificate.Subject, stamp(r.Certificate.NotAfter)).
			WithHint("chancery rollout start rotate-root")
	}
	if err := CheckRenewedEnd(before, template.NotAfter, r.Certificate); err != nil && bounded {
		return nil, err
	}
	if err := checkGain(before, template.NotAfter, validity != 0, now); err != nil {
		return nil, err
	}
	serial, err := cert.NewSerial()
	if err != nil {
		return nil, err
	}
	links.Certificate = r.Certificate
	tbs, err := cert.Build(template, before.RawSubjectPublicKeyInfo, serial, &links)
	if err != nil {
		return nil, fmt.Errorf("renew %q: %w", before.Subject, err)
	}
	linted, err := tbs.LintAgain(before)
	if err != nil {
		return nil, fmt.Errorf("renew %q: %w", before.Subject, err)
	}
	return sign(linted, r.Signer)
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

const (
	// leastGain is what is to be won by a renewal whose length nobody named: every certificate that an issuer had stays in all trust
	// stores until its end, so they are to be few.
	leastGain = 30 * 24 * time.Hour
	// leastAsked is what is to be won where the length was named: a call that is typed again makes no second certificate.
	leastAsked = 24 * time.Hour
)

// checkGain refuses a renewal by which little would be won: too little for its length, or in the first third of the life of the
// certificate before.
func checkGain(before *x509.Certificate, end time.Time, asked bool, now time.Time) error {
	life, gain := before.NotAfter.Sub(before.NotBefore), end.Sub(before.NotAfter)
	switch {
	case asked && gain < min(leastAsked, life/3):
		return fault.New(fault.Conflict, "the new certificate of %q would end on %s, only %s after the one that it has; hosts trust each certificate of an issuer until "+
			"its end, so they are to be few", before.Subject, stamp(end), gain.Truncate(time.Second))
	case !asked && (now.Sub(before.NotBefore) < life/3 || gain < min(leastGain, life/3)):
		return fault.New(fault.Conflict, "the certificate of %q is of %s and ends on %s, and the new one would end on %s; hosts trust each certificate of an issuer "+
			"until its end, so there is another one when a third of its life is over and %d days are won, or where its length is named",
			before.Subject, stamp(before.NotBefore), stamp(before.NotAfter), stamp(end), leastGain/(24*time.Hour)).
			WithHint("chancery issuer renew NAME --validity V")
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
		was, is := extension(before, id), extension(after, id)
		switch {
		case was == nil && is == nil || was != nil && is != nil && was.Critical == is.Critical && bytes.Equal(was.Value, is.Value):
		case was == nil:
			return fault.New(fault.Invalid, "the certificate has an extension %s, and the one before has none; the renewed certificate says the same of what its "+
				"issuer may, so it is to be left out", cert.ExtensionName(id))
		default:
			return fault.New(fault.Invalid, "the certificate has another %s than the one before, or none, or is critical in it where it was not, or the other way round; the "+
				"renewed certificate says the same of what its issuer may: with openssl, by this line of -extfile: %s", cert.ExtensionName(id), opensslLine(was))
		}
	}
	return CheckRenewedEnd(before, after.NotAfter, above)
}

// opensslLine is an extension as openssl's -extfile takes it, octet for octet.
func opensslLine(e *pkix.Extension) string {
	critical := ""
	if e.Critical {
		critical = "critical,"
	}
	return fmt.Sprintf("%s=%sDER:%x", e.Id, critical, e.Value)
}

// Kept are the extensions of an issuer's certificate by which relying parties judge what is below it: a renewed one has the same.
func Kept(c *x509.Certificate) (all []cert.Extension) {
	for _, id := range kept {
		if e := extension(c, id); e != nil {
			all = append(all, cert.Extension{ID: e.Id, Critical: e.Critical, Value: e.Value})
		}
	}
	return all
}

func extension(c *x509.Certificate, id asn1.ObjectIdentifier) *pkix.Extension {
	if n := slices.IndexFunc(c.Extensions, isExtension(id)); n >= 0 {
		return &c.Extensions[n]
	}
	return nil
}
