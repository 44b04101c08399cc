package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"slices"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/db"
)

// This file finds the way up from an issuer's new certificate, and judges whether what stands above an issuer is good now.

// maxWays bounds how many signatures are verified for one way up; what is given may hold any number of cross certificates.
const maxWays = 1000

// ways looks for the ways up among certificates.
type ways struct {
	among []*x509.Certificate
	end   *x509.Certificate // where they end
	tried int
	best  []*x509.Certificate
}

// wayTo is the way up from a certificate to another one: of several, the one that lasts longest. It is nil where there is none.
func wayTo(below, end *x509.Certificate, among []*x509.Certificate) []*x509.Certificate {
	w := &ways{among: among, end: end}
	w.climb(below, nil)
	return w.best
}

func (w *ways) climb(below *x509.Certificate, so []*x509.Certificate) {
	if below.Equal(w.end) {
		if w.best == nil || lasts(so).After(lasts(w.best)) {
			w.best = slices.Clone(so)
		}
		return
	}
	for _, c := range w.among {
		if len(so) >= 10 || w.tried >= maxWays {
			return
		}
		if !bytes.Equal(c.RawSubject, below.RawIssuer) || slices.ContainsFunc(so, c.Equal) {
			continue
		}
		w.tried++
		if below.CheckSignatureFrom(c) == nil {
			w.climb(c, append(slices.Clip(so), c))
		}
	}
}

// lasts is a way's first end.
func lasts(way []*x509.Certificate) (end time.Time) {
	for n, c := range way {
		if n == 0 || c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

// sameIssuer reports whether two certificates are of one issuer: for one name and one key, signed by one name.
func sameIssuer(a, b *x509.Certificate) bool {
	return cert.SameCA(a, b) && bytes.Equal(a.RawIssuer, b.RawIssuer)
}

// underPresent puts the path that the issuer above has now in the place of the one that it had when a new issuer was prepared: in
// between it may have been renewed, on any node.
func (i *Issuer) underPresent(ctx context.Context, tx *db.Tx) error {
	if i.Parent == "" || i.Parent == i.ID || len(i.Chain) == 0 {
		return nil
	}
	parent, err := oneIssuer(ctx, tx, `the issuer above "`+i.Name+`" is gone`, ` WHERE id = $1`, i.Parent)
	if err != nil {
		return err
	}
	if parent.Certificate != nil && sameIssuer(i.Chain[0], parent.Certificate) && !i.Chain[0].Equal(parent.Certificate) && !i.Chain[0].NotAfter.After(parent.Certificate.NotAfter) {
		i.Chain = parent.path()
	}
	return nil
}

// goodAbove refuses what an issuer would sign whose certificate, or one above it, is revoked or on hold in the inventories here, or
// whose key is compromised.
func (c *CA) goodAbove(ctx context.Context, tx *db.Tx, signer *Issuer) error {
	for depth := 0; signer.Parent != "" && !signer.Root() && depth < 10; depth++ {
		r, err := c.recordByRef(ctx, tx, Ref{Issuer: signer.Parent, Serial: signer.Certificate.SerialNumber})
		switch {
		case fault.Is(err, fault.NotFound):
		case err != nil:
			return err
		case r.State == Held || r.State == Revoked:
			return fault.New(fault.Conflict, "the certificate %s of issuer %q is %s, and so nobody would take what is below it", cert.FormatSerial(r.Serial), signer.Name, r.State)
		}
		if signer, err = oneIssuer(ctx, tx, `the issuer above "`+signer.Name+`" is gone`, ` WHERE id = $1`, signer.Parent); err != nil {
			return err
		}
	}
	return nil
}

// fitAbove holds a new issuer to what the one above it is in the transaction that stores it.
func (c *CA) fitAbove(ctx context.Context, tx *db.Tx, n *newIssuer) error {
	if err := n.issuer.underPresent(ctx, tx); err != nil {
		return err
	}
	if n.imported || n.record == nil || n.record.Issuer == n.issuer {
		return nil // what was signed elsewhere is not signed here now
	}
	return c.goodAbove(ctx, tx, n.record.Issuer)
}
