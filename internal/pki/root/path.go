package root

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// CheckPath says why relying parties would not go up a path: an issuer's certificate, those above it, and the one at which the path
// ends, which they trust. It looks at what they look at (RFC 5280 6.1), and holds the issuer's certificate to the lints that nothing
// turns off and the certificate before it passes.
func CheckPath(path []*x509.Certificate, before *x509.Certificate, now time.Time) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	seen := make([]*x509.Certificate, len(path)) // without what crypto/x509 does not know and others do
	for i, c := range path {
		for _, id := range c.UnhandledCriticalExtensions {
			if !id.Equal(cert.OIDNameConstraints) {
				return fault.New(fault.Invalid, "the certificate of %q (serial %s) has the critical extension %s, which relying parties do not know and must refuse "+
					"(RFC 5280 4.2)", c.Subject, cert.FormatSerial(c.SerialNumber), id)
			}
		}
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			return fault.New(fault.Invalid, "the certificate of %q (serial %s) is valid from %s to %s, and not now", c.Subject, cert.FormatSerial(c.SerialNumber),
				stamp(c.NotBefore), stamp(c.NotAfter))
		}
		if i+1 < len(path) {
			if err := checkAuthorityKey(c, path[i+1]); err != nil {
				return err
			}
		}
		known := *c
		known.UnhandledCriticalExtensions = nil
		seen[i] = &known
		if i+1 == len(path) {
			roots.AddCert(&known)
		} else {
			between.AddCert(&known)
		}
	}
	_, err := seen[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fault.New(fault.Invalid, "who trusts %q does not take the certificate of %q: %w", path[len(path)-1].Subject, path[0].Subject, err)
	}
	if len(path) == 1 {
		return nil
	}
	return cert.LintRenewed(path[0], before, &cert.Issuer{Certificate: path[1], Above: path[2:]})
}

// checkAuthorityKey holds what a certificate says of the one above it (RFC 5280 4.2.1.1) against that: OpenSSL looks for one that
// fits, and finds none where it differs.
func checkAuthorityKey(c, above *x509.Certificate) error {
	key, err := ReadAuthorityKey(c)
	switch {
	case err != nil:
		return fault.New(fault.Invalid, "the authorityKeyIdentifier of %q: %w", c.Subject, err)
	case len(key.ID) > 0 && len(above.SubjectKeyId) > 0 && !bytes.Equal(key.ID, above.SubjectKeyId):
		return fault.New(fault.Invalid, "the certificate of %q says that the key above it is %x, and that of %q is %x; relying parties look for the one that it names",
			c.Subject, key.ID, above.Subject, above.SubjectKeyId)
	case key.Serial != nil && key.Serial.Cmp(above.SerialNumber) != 0:
		return fault.New(fault.Invalid, "the certificate of %q names the serial %s of the certificate above it, and that of %q has %s; relying parties look for the "+
			"one that it names", c.Subject, cert.FormatSerial(key.Serial), above.Subject, cert.FormatSerial(above.SerialNumber))
	case key.Issuer != nil && !bytes.Equal(key.Issuer, above.RawIssuer):
		return fault.New(fault.Invalid, "the certificate of %q names another issuer of the certificate above it than that of %q has", c.Subject, above.Subject)
	}
	return nil
}

// AuthorityKey is what a certificate's authorityKeyIdentifier says (RFC 5280 4.2.1.1).
type AuthorityKey struct {
	ID     []byte
	Issuer []byte   // DER of the first directoryName, nil where there is none
	Serial *big.Int // nil where there is none
}

// ReadAuthorityKey reads the authorityKeyIdentifier of a certificate; the zero value is that of one without.
func ReadAuthorityKey(c *x509.Certificate) (AuthorityKey, error) {
	n := slices.IndexFunc(c.Extensions, isExtension(cert.OIDAuthorityKeyID))
	if n < 0 {
		return AuthorityKey{}, nil
	}
	return ParseAuthorityKey(c.Extensions[n].Value)
}

// ParseAuthorityKey reads the value of an authorityKeyIdentifier.
func ParseAuthorityKey(der []byte) (key AuthorityKey, err error) {
	wrong := fault.New(fault.Invalid, "it is not encoded as RFC 5280 4.2.1.1 says")
	var body, id, names, serial cryptobyte.String
	var hasID, hasNames, hasSerial bool
	in := cryptobyte.String(der)
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) || !in.Empty() ||
		!body.ReadOptionalASN1(&id, &hasID, cbasn1.Tag(0).ContextSpecific()) ||
		!body.ReadOptionalASN1(&names, &hasNames, cbasn1.Tag(1).ContextSpecific().Constructed()) ||
		!body.ReadOptionalASN1(&serial, &hasSerial, cbasn1.Tag(2).ContextSpecific()) || !body.Empty() {
		return key, wrong
	}
	if hasID {
		key.ID = id
	}
	for !names.Empty() {
		var one, directory cryptobyte.String
		var tag cbasn1.Tag
		if !names.ReadAnyASN1(&one, &tag) {
			return key, wrong
		}
		if tag == cbasn1.Tag(4).ContextSpecific().Constructed() && key.Issuer == nil {
			if !one.ReadASN1Element(&directory, cbasn1.SEQUENCE) {
				return key, wrong
			}
			key.Issuer = directory
		}
	}
	if hasSerial {
		key.Serial = new(big.Int).SetBytes(serial)
	}
	return key, nil
}

// NamesCertificate reports whether it names one certificate above it, and not the key alone: another certificate of that key does
// not fit it.
func (k AuthorityKey) NamesCertificate() bool { return k.Serial != nil }

func isExtension(id asn1.ObjectIdentifier) func(e pkix.Extension) bool {
	return func(e pkix.Extension) bool { return e.Id.Equal(id) }
}
