package loop

import (
	"bytes"
	"crypto/x509"
	"slices"
	"time"
)

// This file is for issuers that were renewed with their key: until the certificate before ends, there are two of one name and key.

// renewed is a path with the certificates of issuers that were renewed with their key in the place of those before: what they
// issued is the same under either, and lasts no longer, but the one before may be revoked, since another took its place.
func (t *trust) renewed(path []*x509.Certificate, now time.Time) []*x509.Certificate {
	for n := 1; n < len(path); n++ {
		for _, i := range t.issuers {
			c := i.certificate
			if sameIssuer(c, path[n]) && bytes.Equal(c.RawIssuer, path[n].RawIssuer) && c.NotAfter.After(path[n].NotAfter) && !now.Before(c.NotBefore) {
				path = slices.Clone(path)
				path[n] = c
			}
		}
	}
	return path
}

// sameIssuer reports whether two certificates are for one name and one key.
func sameIssuer(a, b *x509.Certificate) bool {
	return bytes.Equal(a.RawSubject, b.RawSubject) && bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo)
}

// twin is the one before of the same name and key; nil where there is none.
func (t *trust) twin(n int) *trustIssuer {
	for i := range t.issuers[:n] {
		if sameIssuer(t.issuers[i].certificate, t.issuers[n].certificate) {
			return &t.issuers[i]
		}
	}
	return nil
}
