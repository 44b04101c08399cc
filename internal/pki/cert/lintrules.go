package cert

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

func lintSerialNumber(v *tbsView, _ *Issuer) error {
	if v.serial.Sign() <= 0 {
		return fmt.Errorf("serial number %s is not positive", v.serial)
	}
	if v.serialOctets > 20 {
		return fmt.Errorf("serial number of %d octets: 20 at most", v.serialOctets)
	}
	return nil
}

func lintValidityEncoding(v *tbsView, _ *Issuer) error { return v.timeErr }

func lintValidityOrder(v *tbsView, _ *Issuer) error {
	if v.timeErr == nil && v.notAfter.Before(v.notBefore) {
		return fmt.Errorf("notAfter %s is before notBefore %s", stamp(v.notAfter), stamp(v.notBefore))
	}
	return nil
}

func lintValidityWithinIssuer(v *tbsView, issuer *Issuer) error {
	if issuer != nil && v.timeErr == nil && v.notAfter.After(issuer.Certificate.NotAfter) {
		return fmt.Errorf("notAfter %s is beyond the issuer's %s", stamp(v.notAfter), stamp(issuer.Certificate.NotAfter))
	}
	return nil
}

func lintSubjectPresent(v *tbsView, issuer *Issuer) error {
	if len(v.subjectName) > 0 {
		return nil
	}
	if issuer == nil || v.isCA() {
		return errors.New("a CA needs a subject")
	}
	san := v.extension(OIDSubjectAltName)
	if san == nil || !san.Critical {
		return errors.New("an empty subject needs a critical subjectAltName")
	}
	return nil
}

func lintUniqueIDs(v *tbsView, _ *Issuer) error {
	if v.uniqueIDs {
		return errors.New("unique identifiers are not to be made by a CA")
	}
	return nil
}

func lintPublicKey(v *tbsView, _ *Issuer) error {
	_, err := ParsePublicKey(v.spki)
	return err
}

func lintExtensionUnique(v *tbsView, _ *Issuer) error {
	for i, e := range v.extensions {
		for _, earlier := range v.extensions[:i] {
			if earlier.ID.Equal(e.ID) {
				return fmt.Errorf("extension %s appears twice", ExtensionName(e.ID))
			}
		}
	}
	return nil
}

// lintExtensionCritical holds the MUSTs on criticality; what RFC 5280 leaves open is the template's choice.
func lintExtensionCritical(v *tbsView, _ *Issuer) error {
	for _, e := range v.extensions {
		var must bool
		switch {
		case e.ID.Equal(OIDNameConstraints), e.ID.Equal(OIDPolicyConstraints), e.ID.Equal(OIDInhibitAnyPolicy),
			e.ID.Equal(OIDProxyCertInfo), e.ID.Equal(OIDBasicConstraints) && v.isCA():
			must = true
		case e.ID.Equal(OIDSubjectKeyID), e.ID.Equal(OIDAuthorityKeyID), e.ID.Equal(OIDAuthorityInfoAccess),
			e.ID.Equal(OIDFreshestCRL), e.ID.Equal(OIDOCSPNoCheck):
		default:
			continue
		}
		if e.Critical != must {
			return fmt.Errorf("extension %s: critical must be %t", ExtensionName(e.ID), must)
		}
	}
	return nil
}

func lintAuthorityKeyID(v *tbsView, issuer *Issuer) error {
	if issuer == nil { // a self-signed certificate may leave it out
		if v.authorityKeyID != nil && v.subjectKeyID != nil && !bytes.Equal(v.authorityKeyID, v.subjectKeyID) {
			return errors.New("the identifier of a self-signed certificate differs from its subjectKeyIdentifier")
		}
		return nil
	}
	id := issuer.Certificate.SubjectKeyId
	switch {
	case len(id) == 0:
		return nil // an imported issuer without an identifier of its own
	case v.authorityKeyID == nil:
		return errors.New("authorityKeyIdentifier is missing")
	case !bytes.Equal(v.authorityKeyID, id):
		return fmt.Errorf("authorityKeyIdentifier %x is not the issuer's %x", v.authorityKeyID, id)
	}
	return nil
}

func lintSubjectKeyID(v *tbsView, _ *Issuer) error {
	if v.isCA() && len(v.subjectKeyID) == 0 {
		return errors.New("a CA needs a subjectKeyIdentifier")
	}
	return nil
}

func lintKeyUsage(v *tbsView, _ *Issuer) error {
	agreement := v.keyUsage&x509.KeyUsageKeyAgreement != 0
	switch {
	case v.hasKeyUsage && v.keyUsage == 0:
		return errors.New("keyUsage without a usage")
	case v.isCA() && v.keyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("a CA needs keyUsage with keyCertSign")
	case !v.isCA() && v.keyUsage&x509.KeyUsageCertSign != 0:
		return errors.New("keyCertSign without basicConstraints CA:TRUE")
	case v.keyUsage&(x509.KeyUsageEncipherOnly|x509.KeyUsageDecipherOnly) != 0 && !agreement:
		return errors.New("encipherOnly and decipherOnly have a meaning with keyAgreement only")
	}
	return nil
}

func lintKeyUsageOfKey(v *tbsView, _ *Issuer) error {
	algorithm, _, err := splitSPKI(v.spki)
	if err != nil {
		return nil // lintPublicKey says so
	}
	encipher := v.keyUsage & (x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment)
	agree := v.keyUsage & (x509.KeyUsageKeyAgreement | x509.KeyUsageEncipherOnly | x509.KeyUsageDecipherOnly)
	switch {
	case algorithm.oid.Equal(oidECKey) && encipher != 0:
		return errors.New("keyEncipherment and dataEncipherment are not for an EC key; an old consumer that insists on them " +
			"needs this lint off")
	case algorithm.oid.Equal(oidEd25519) && encipher|agree != 0:
		return errors.New("an Ed25519 key only signs: digitalSignature, nonRepudiation, keyCertSign and cRLSign")
	case algorithm.oid.Equal(oidRSA) && agree != 0:
		return errors.New("keyAgreement is not for an RSA key")
	}
	return nil
}

func lintBasicConstraints(v *tbsView, issuer *Issuer) error {
	if issuer == nil && v.extension(OIDBasicConstraints) == nil && v.keyUsage&x509.KeyUsageCertSign != 0 {
		return errors.New("a self-signed CA needs basicConstraints CA:TRUE")
	}
	if v.basicConstraints != nil && !v.basicConstraints.CA && v.basicConstraints.PathLen >= 0 {
		return errors.New("pathLenConstraint without CA:TRUE")
	}
	return nil
}

func lintPathLength(v *tbsView, issuer *Issuer) error {
	if issuer == nil || !v.isCA() {
		return nil
	}
	limit := PathLenOf(issuer.Certificate)
	switch own := v.basicConstraints.PathLen; {
	case limit < 0:
		return nil
	case limit == 0:
		return errors.New("the issuer's path length of 0 permits no CA below it")
	case own < 0 || own >= limit:
		return fmt.Errorf("the issuer's path length of %d permits a path length of 0 to %d here", limit, limit-1)
	}
	return nil
}

// PathLenOf is the pathLenConstraint of a certificate, -1 for none.
func PathLenOf(c *x509.Certificate) int {
	if c.MaxPathLen > 0 || c.MaxPathLenZero {
		return c.MaxPathLen
	}
	return -1
}

func lintIssuerUsage(_ *tbsView, issuer *Issuer) error {
	if issuer == nil {
		return nil
	}
	c := issuer.Certificate
	if c.Version == 3 && (!c.BasicConstraintsValid || !c.IsCA) {
		return fmt.Errorf("issuer %q is not a CA", c.Subject)
	}
	if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fmt.Errorf("issuer %q may not sign certificates: its keyUsage lacks keyCertSign", c.Subject)
	}
	return nil
}

// usageForPurpose lists the key usages of which a purpose needs at least one (RFC 5280 4.2.1.12).
func usageForPurpose(oid asn1.ObjectIdentifier) (x509.KeyUsage, string) {
	const sign = x509.KeyUsageDigitalSignature
	const exchange = x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement
	switch {
	case oid.Equal(OIDServerAuth):
		return sign | exchange, "digitalSignature, keyEncipherment or keyAgreement"
	case oid.Equal(OIDClientAuth):
		return sign | x509.KeyUsageKeyAgreement, "digitalSignature or keyAgreement"
	case oid.Equal(OIDCodeSigning):
		return sign, "digitalSignature"
	case oid.Equal(OIDEmailProtection):
		return sign | exchange | x509.KeyUsageContentCommitment, "digitalSignature, nonRepudiation, keyEncipherment or " +
			"keyAgreement"
	case oid.Equal(OIDTimeStamping), oid.Equal(OIDOCSPSigning):
		return sign | x509.KeyUsageContentCommitment, "digitalSignature or nonRepudiation"
	}
	return 0, ""
}

func lintExtKeyUsage(v *tbsView, _ *Issuer) error {
	e := v.extension(OIDExtKeyUsage)
	for i, oid := range v.extKeyUsage {
		if containsOID(v.extKeyUsage[:i], oid) {
			return fmt.Errorf("extended key usage %s appears twice", oid)
		}
		if oid.Equal(OIDAnyExtKeyUsage) && e.Critical {
			return errors.New("anyExtendedKeyUsage in a critical extension")
		}
		needed, names := usageForPurpose(oid)
		if needed != 0 && v.hasKeyUsage && !v.isCA() && v.keyUsage&needed == 0 {
			return fmt.Errorf("extended key usage %s needs keyUsage %s", oid, names)
		}
	}
	return nil
}

func lintOCSPNoCheck(v *tbsView, _ *Issuer) error {
	if v.extension(OIDOCSPNoCheck) != nil && !v.hasUsage(OIDOCSPSigning) {
		return errors.New("ocsp-nocheck without the extended key usage OCSPSigning")
	}
	return nil
}

func lintPolicies(v *tbsView, _ *Issuer) error {
	e := v.extension(OIDCertificatePolicies)
	if e == nil {
		return nil
	}
	_, err := ParsePolicies(e.Value)
	return err
}

// lintPointers looks at every URI of the two pointer extensions.
func lintPointers(v *tbsView, _ *Issuer) error {
	for _, oid := range []asn1.ObjectIdentifier{OIDCRLDistributionPoints, OIDFreshestCRL, OIDAuthorityInfoAccess} {
		e := v.extension(oid)
		if e == nil {
			continue
		}
		for _, uri := range urisIn(e.Value) {
			u, err := url.Parse(uri)
			switch {
			case err != nil || !u.IsAbs():
				return fmt.Errorf("%s: %q is not an absolute URI", ExtensionName(oid), uri)
			case strings.EqualFold(u.Scheme, "https"):
				return fmt.Errorf("%s: %q must be plain http (RFC 5280 8: https would need the very check that it serves)",
					ExtensionName(oid), uri)
			case !strings.EqualFold(u.Scheme, "http") && !strings.EqualFold(u.Scheme, "ldap"):
				return fmt.Errorf("%s: %q must be an http or ldap URI", ExtensionName(oid), uri)
			case u.Host == "":
				return fmt.Errorf("%s: %q has no host", ExtensionName(oid), uri)
			}
		}
	}
	return nil
}

// urisIn returns the URIs of GeneralNames at any depth.
func urisIn(der []byte) []string {
	input := cryptobyte.String(der)
	var found []string
	for !input.Empty() {
		var content cryptobyte.String
		var tag cbasn1.Tag
		if !input.ReadAnyASN1(&content, &tag) {
			return found
		}
		switch {
		case tag&0x20 != 0:
			found = append(found, urisIn(content)...)
		case tag == contextTag(uint8(URI)):
			found = append(found, string(content))
		}
	}
	return found
}
