package ca

import (
	"fmt"
	"strings"
)

// URLs is where relying parties find what concerns an issuer: the plain http addresses in the certificates that it signs
// (RFC 5280 §4.2.1.13, §4.2.2.1), and the paths that nodes serve. They stand in certificates for years, so their shape
// never changes.
type URLs struct {
	base string
	name string
}

// URLs returns the issuer's addresses under publicURL, or their paths where it is empty.
func (i *Issuer) URLs(publicURL string) URLs { return URLs{strings.TrimSuffix(publicURL, "/"), i.Name} }

// CRL is the complete CRL.
func (u URLs) CRL() string { return u.base + "/crl/" + u.name + ".crl" }

// Delta is the delta CRL, which the freshestCRL extension names.
func (u URLs) Delta() string { return u.base + "/crl/" + u.name + "/delta.crl" }

// Partition is the CRL of one partition; crl.Partition says which one covers a serial.
func (u URLs) Partition(n int) string { return fmt.Sprintf("%s/crl/%s/%d.crl", u.base, u.name, n) }

// Certificate is the issuer's certificate, for caIssuers.
func (u URLs) Certificate() string { return u.base + "/ca/" + u.name + ".cer" }

// OCSP is the responder, the same for all issuers: a request names its issuer by hashes.
func (u URLs) OCSP() string { return u.base + "/ocsp" }
