package ca

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
)

// responderProfile is the profile of delegated OCSP responders.
const responderProfile = "ocsp-responder"

// IssueResponder issues the certificate of an issuer's delegated OCSP responder (RFC 6960 4.2.2.2), in the authority's own
// name. It ends at the time given, or as soon as the profile demands. A retired issuer gets one too: what it issued is
// asked about as long as it lasts. within writes what must be there exactly if the certificate is; it may be nil.
func (c *CA) IssueResponder(ctx context.Context, issuer *Issuer, spki []byte, notAfter time.Time, within Within) (*x509.Certificate, error) {
	now := time.Now()
	by := access.System(c.audit.Node())
	if err := c.db.CheckClock(now); err != nil {
		return nil, err
	}
	v, err := c.profiles.Current(ctx, responderProfile)
	if err != nil {
		return nil, err
	}
	longest := time.Duration(v.Validity.Max)
	if longest == 0 {
		longest = time.Duration(v.Validity.Default)
	}
	if last := now.Add(longest).Truncate(time.Second); notAfter.After(last) {
		notAfter = last
	}
	order := &Order{
		Issuer: issuer.ID, Profile: responderProfile, PublicKey: spki, NotAfter: notAfter,
		Subject: cert.CommonName("OCSP responder of " + issuer.Name).String(), responder: true,
		within: within,
	}
	issued, err := c.planAndIssue(ctx, by, order, now)
	if err != nil {
		return nil, fmt.Errorf("OCSP responder of issuer %s: %w", issuer.Name, err)
	}
	return issued.Parsed()
}
