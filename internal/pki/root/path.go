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

// CheckPath says why relying parties would not go up a path: an issuer's new certificate, those above it, and the one at which the path
// ends, which they trust. was is the path of the certificate before. It looks at what they look at (RFC 5280 6.1), and holds the
// issuer's certificate to the lints that nothing turns off and the certificate before it passes. What stood above the one before is no
// reason to refuse: they take it or do not, whatever is renewed below it. It is told of as a warning.
func CheckPath(path, was []*x509.Certificate, now time.Time) (warnings []string, err error) {
	stood := func(c *x509.Certificate) bool { return len(was) > 0 && slices.ContainsFunc(was[1:], c.Equal) }
	told := func(err error, stood bool) error {
		if err == nil || !stood {
			return err
		}
		warnings = append(warnings, "this stood above the certificate before, and stays: "+err.Error())
		return nil
	}
	for i, c := range path {
		if err := told(checkOne(c, now), stood(c)); err != nil {
			return nil, err
		}
		if i+1 == len(path) {
			break
		}
		if err := told(checkAuthorityKey(c, path[i+1]), stood(c) && stood(path[i+1])); err != nil {
			return nil, err
		}
	}
	if err := verify(path, stood, now); err != nil {
		refusal := fault.New(fault.Invalid, "who trusts %q does not take the certificate of %q: %w", path[len(path)-1].Subject, path[0].Subject, err)
		old := len(was) > 0 && !slices.ContainsFunc(path[1:], func(c *x509.Certificate) bool { return !stood(c) })
		always := func(c *x509.Certificate) bool { return stood(c) || c.Equal(was[0]) }
		if !old || verify(append(was[:1:1], path[1:]...), always, now) == nil {
			return nil, refusal
		}
		warnings = append(warnings, refusal.Error()+"; nor do they take the one before")
	}
	if len(path) == 1 || len(was) == 0 {
		return warnings, nil
	}
	return warnings, cert.LintRenewed(path[0], was[0], &cert.Issuer{Certificate: path[1], Above: path[2:]})
}

// checkOne says why nobody takes a certificate, whatever is above it.
func checkOne(c *x509.Certificate, now time.Time) error {
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
	return nil
}

// verify goes up a path as crypto/x509 does. What checkOne says of those that stood there before is passed over.
func verify(path []*x509.Certificate, stood func(*x509.Certificate) bool, now time.Time) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	seen := make([]*x509.Certificate, len(path))
	for i, c := range path {
		known := *c
		known.UnhandledCriticalExtensions = nil // what crypto/x509 does not know and others do
		if stood(c) {
			known.NotBefore, known.NotAfter = now, now
		}
		seen[i] = &known
		if i+1 == len(path) {
			roots.AddCert(&known)
		} else {
			between.AddCert(&known)
		}
	}
	_, err := seen[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
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
