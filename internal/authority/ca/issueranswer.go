package ca

import (
	"bytes"
	"crypto/x509"
	"slices"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/root"
)

// This file judges what an outside root, or an offline key, answered to the renewal of an issuer.

// parent is the issuer here that is above another, nil where it is outside. One that came in after it is found by its signature.
func (s *issuerSet) parent(i *Issuer) *Issuer {
	if i.Parent != "" {
		return s.find(i.Parent)
	}
	for _, other := range s.all {
		if other.Certificate != nil && other.ID != i.ID && bytes.Equal(other.Certificate.RawSubject, i.Certificate.RawIssuer) &&
			i.Certificate.CheckSignatureFrom(other.Certificate) == nil {
			return other
		}
	}
	return nil
}

// takeRenewed finds the issuer's new certificate among those given, orders what is above it, and judges it.
func (s *issuerSet) takeRenewed(before, after *Issuer, given []*x509.Certificate, now time.Time) error {
	own, err := before.newest(given)
	if err != nil || own.Equal(before.Certificate) {
		return err // it has it
	}
	if err := checkIssuerCertificate(own, now); err != nil {
		return err
	}
	if own.NotBefore.After(now) {
		return fault.New(fault.Invalid, "the certificate of %q begins on %s; bring it in then", own.Subject, utc(own.NotBefore))
	}
	among := s.above(before, given)
	was := before.top()
	var chain []*x509.Certificate
	if parent := s.parent(before); parent != nil && own.CheckSignatureFrom(parent.Certificate) == nil && (!cert.SelfIssued(was) || parent.top().Equal(was)) {
		chain = parent.path() // as it is here: what is above it has commands of its own
	} else if cert.SelfIssued(was) { // a cross certificate among those given leads elsewhere
		chain = wayTo(own, was, among)
	}
	if chain == nil {
		chain = chainAbove(own, among)
	}
	if len(chain) == 0 {
		return fault.New(fault.Invalid, "the certificate of issuer %q, which signed the new one, is neither here nor among those given, or did not sign it", own.Issuer)
	}
	var directly *x509.Certificate
	if len(before.Chain) > 0 {
		directly = before.Chain[0]
	}
	if err := root.CheckRenewed(before.Certificate, own, chain[0], directly); err != nil {
		return err
	}
	if is := chain[len(chain)-1]; cert.SelfIssued(was) && !is.Equal(was) {
		return fault.New(fault.Conflict, "the way up from the certificate ends at a certificate of %q by %q (%s), and not at the root %q that hosts trust (%s); a root is "+
			"brought to everyone before anything is under it", is.Subject, is.Issuer, digestOf(is), was.Subject, digestOf(was)).
			WithHint("chancery rollout start rotate-root --pool %s", before.Pool)
	}
	after.Certificate, after.Chain = own, chain
	return nil
}

// newest is the certificate for the issuer's key among those given that ends last. Bundles have what it has now beside the new one,
// in any order.
func (i *Issuer) newest(given []*x509.Certificate) (own *x509.Certificate, err error) {
	for _, c := range given {
		if !bytes.Equal(c.RawSubjectPublicKeyInfo, i.PublicKey) {
			continue
		}
		if own == nil || c.NotAfter.After(own.NotAfter) || own.Equal(i.Certificate) && c.NotAfter.Equal(own.NotAfter) {
			own = c
		}
	}
	switch {
	case own == nil:
		return nil, fault.New(fault.Invalid, "none of the %d certificates is for the key of issuer %q; a new key makes another issuer", len(given), i.Name).
			WithHint("chancery rollout start rotate-issuer --pool %s", i.Pool)
	case own.Equal(i.Certificate) && slices.ContainsFunc(given, func(c *x509.Certificate) bool {
		return bytes.Equal(c.RawSubjectPublicKeyInfo, i.PublicKey) && !c.Equal(own)
	}):
		return nil, fault.New(fault.Conflict, "of the certificates for the key of issuer %q the one that ends last, on %s, is the one that it has", i.Name, utc(own.NotAfter))
	}
	return own, nil
}

// above are the certificates in which the way up from a renewed one is looked for: those of issuers here as they are now, what stood
// above the certificate before, and what is given.
func (s *issuerSet) above(before *Issuer, given []*x509.Certificate) []*x509.Certificate {
	var all []*x509.Certificate
	if parent := s.parent(before); parent != nil {
		all = parent.path()
	}
	return append(append(all, before.Chain...), given...)
}

// top is the last certificate of the path.
func (i *Issuer) top() *x509.Certificate {
	path := i.path()
	return path[len(path)-1]
}
