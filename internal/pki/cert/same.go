package cert

import (
	"bytes"
	"crypto/x509"
)

// SelfIssued reports whether a certificate's issuer is its subject (RFC 5280 3.2), as a root's is.
func SelfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawIssuer, c.RawSubject) }

// SameCA reports whether two certificates are for one name and one key, whoever signed them: what is below one verifies under the other.
func SameCA(a, b *x509.Certificate) bool {
	return bytes.Equal(a.RawSubject, b.RawSubject) && bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo)
}
