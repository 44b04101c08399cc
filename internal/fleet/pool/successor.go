package pool

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/path"
	"chancery/internal/pki/root"
	"chancery/internal/store/access"
	"chancery/internal/store/once"
)

// Successor is what takes the place of a pool's issuer, or of its root and issuer. Each has a subject of its own: many consumers
// look an issuer up by its name, and take the first of two with equal names.
type Successor struct {
	Root          string `json:"root,omitempty"` // name; empty where the issuer's root stays
	RootSubject   string `json:"rootSubject,omitempty"`
	Issuer        string `json:"issuer"`
	IssuerSubject string `json:"issuerSubject"`
	Parent        string `json:"parent,omitempty"`  // name of the root above, the new one or the old; empty where it is an outside one
	Outside       bool   `json:"outside,omitempty"` // the root's key is not here: its owner signs the issuer's request
}

// PlanSuccessor chooses the names of the next issuer of a pool, and of its root where that is to be another one too.
func (s *Service) PlanSuccessor(ctx context.Context, pool string, withRoot, online bool) (*Successor, error) {
	p, err := s.Pool(ctx, pool)
	if err != nil {
		return nil, err
	}
	if p.Pending() {
		return nil, fault.New(fault.Conflict, "pool %q waits for its root to sign, and has nothing to be succeeded yet", pool).
			WithHint("chancery pool show %s", pool)
	}
	all, err := s.ca.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	spec := Spec{Name: pool, Organization: p.Organization}
	for n := 2; ; n++ {
		next := &Successor{Issuer: numbered(pool, "", n), IssuerSubject: spec.subject(called(pool, "issuer", n))}
		if withRoot {
			next.Root, next.RootSubject = numbered(pool, "-root", n), spec.subject(called(pool, "root", n))
		}
		if taken(all, next) {
			continue
		}
		if withRoot {
			next.Parent, next.Outside = next.Root, !online
			return next, nil
		}
		above := parentOf(all, p.Issuer)
		if above == nil && p.Issuer.Root() {
			return nil, fault.New(fault.Conflict, "issuer %q of pool %q is a root, and no other can be made below the same one", p.Issuer.Name, pool).
				WithHint("chancery rollout start rotate-root --pool %s, or rotate-away --from %s", pool, p.Issuer.Name)
		}
		if next.Outside = above == nil || above.KeyID == ""; above != nil {
			next.Parent = above.Name
		}
		return next, nil
	}
}

// numbered is the name of the nth issuer of a pool, cut to what a name may have.
func numbered(pool, what string, n int) string {
	tail := fmt.Sprintf("%s-%d", what, n)
	return pool[:min(len(pool), 63-len(tail))] + tail
}

// called is its common name, which has 64 characters at most (RFC 5280, ub-common-name).
func called(pool, what string, n int) string {
	tail := fmt.Sprintf(" %s %d", what, n)
	return pool[:min(len(pool), 64-len(tail))] + tail
}

// taken reports whether an issuer has a name or a subject of the successor.
func taken(all []*ca.Issuer, next *Successor) bool {
	var subjects [][]byte
	for _, text := range []string{next.RootSubject, next.IssuerSubject} {
		name, err := cert.ParseName(text)
		if text == "" || err != nil {
			continue
		}
		if der, err := name.DER(); err == nil {
			subjects = append(subjects, der)
		}
	}
	return slices.ContainsFunc(all, func(i *ca.Issuer) bool {
		if i.Name == next.Issuer || i.Name == next.Root {
			return true
		}
		if i.Certificate != nil {
			return slices.ContainsFunc(subjects, func(der []byte) bool { return bytes.Equal(der, i.Certificate.RawSubject) })
		}
		csr, err := cert.ParseCSR(i.CSR)
		return err == nil && slices.ContainsFunc(subjects, func(der []byte) bool { return bytes.Equal(der, csr.RawSubject) })
	})
}

func parentOf(all []*ca.Issuer, i *ca.Issuer) *ca.Issuer {
	for _, above := range all {
		if above.ID == i.Parent {
			return above
		}
	}
	return nil
}

// SuccessorSpec says how a successor is made.
type SuccessorSpec struct {
	Key       string            // of idempotency: what a repeated call made is not made again
	Algorithm keyfile.Algorithm // empty: that of the issuer before
	Token     string            // PKCS #11 URI of the issuer's key, where it lies in a token; Algorithm is the root's alone then
	Validity  time.Duration     // of a new root
}

// MakeSuccessor makes the root, where it is a new one that is kept here, and the issuer; where the root's key is elsewhere, the
// issuer waits for its answer. Neither becomes a default. A repeated call finds what an earlier one made.
func (s *Service) MakeSuccessor(ctx context.Context, by access.Principal, pool string, next *Successor, spec SuccessorSpec) error {
	if err := by.May(access.ManagePools); err != nil {
		return err
	}
	p, err := s.Pool(ctx, pool)
	if err != nil {
		return err
	}
	before := p.Issuer
	if before == nil || before.Certificate == nil {
		return fault.New(fault.Conflict, "pool %q has no issuer to be succeeded", pool)
	}
	algorithm := spec.Algorithm
	if algorithm == "" {
		algorithm = keyfile.AlgorithmOf(before.Certificate.PublicKey)
	}
	if next.Root != "" && !next.Outside {
		above := ca.IssuerSpec{
			IdempotencyKey: spec.Key + "/root", Name: next.Root, Pool: pool, Algorithm: algorithm, Subject: next.RootSubject, Validity: spec.Validity,
			PathLen: new(1),
		}
		if p.Root != nil && p.Root.Certificate != nil {
			if above.Constraints, err = root.ConstraintsOf(p.Root.Certificate); err != nil {
				return err
			}
		}
		if _, _, err := s.ca.CreateIssuer(ctx, by, above); err != nil {
			return err
		}
	}
	issuer := ca.IssuerSpec{
		IdempotencyKey: spec.Key + "/issuer", Name: next.Issuer, Pool: pool, Algorithm: algorithm, Subject: next.IssuerSubject, CRL: before.CRL,
		Outside: next.Outside,
	}
	if spec.Token != "" {
		issuer.Token, issuer.Algorithm = spec.Token, ""
	}
	if !next.Outside {
		issuer.Parent = next.Parent
	}
	_, _, err = s.ca.CreateIssuer(ctx, by, issuer)
	return err
}

// CompleteSuccessor brings in what a root elsewhere signed: its own certificate and first CRL where it is a new one, and the
// issuer's. A repeated call with the same certificates finishes one that was cut short.
func (s *Service) CompleteSuccessor(ctx context.Context, by access.Principal, pool string, next *Successor, above, issuer *x509.Certificate, list []byte,
	call once.Call) error {
	if err := by.May(access.ManagePools); err != nil {
		return err
	}
	p, err := s.Pool(ctx, pool)
	if err != nil {
		return err
	}
	given := []*x509.Certificate{issuer}
	if above != nil {
		given = append(given, above)
	}
	if next.Root != "" {
		if above == nil {
			return fault.New(fault.Invalid, "the certificate of the new root is wanted beside that of issuer %q", next.Issuer).At("/root")
		}
		if err := s.checkNewRoot(ctx, p, next, above, issuer); err != nil {
			return err
		}
		if _, err := s.ca.Issuer(ctx, next.Root); fault.Is(err, fault.NotFound) {
			if _, err := s.ca.ImportIssuer(ctx, by, ca.ImportSpec{Name: next.Root, Pool: pool, Certificate: above}); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		if _, err := s.revocation.Upload(ctx, by, next.Root, list, once.Call{}); err != nil && !fault.Is(err, fault.Conflict) {
			return err
		}
	}
	_, err = s.ca.ImportAnswer(ctx, by, next.Issuer, given, call)
	return err
}

// checkNewRoot refuses a root that is not a new one.
func (s *Service) checkNewRoot(ctx context.Context, p *Pool, next *Successor, above, issuer *x509.Certificate) error {
	if _, err := path.Verify([]*x509.Certificate{issuer, above}, path.Options{Time: time.Now()}); err != nil {
		return err
	}
	if !bytes.Equal(above.RawSubject, above.RawIssuer) {
		return fault.New(fault.Invalid, "%q is no root: it was issued by %q", above.Subject, above.Issuer).At("/root")
	}
	all, err := s.ca.Issuers(ctx)
	if err != nil {
		return err
	}
	for _, other := range all {
		if other.Certificate == nil || other.Name == next.Root && other.Certificate.Equal(above) {
			continue
		}
		if bytes.Equal(other.Certificate.RawSubjectPublicKeyInfo, above.RawSubjectPublicKeyInfo) || bytes.Equal(other.Certificate.RawSubject, above.RawSubject) {
			return fault.New(fault.Conflict, "the root %q has the name or the key of issuer %q of pool %q; a new root of pool %q has a name and a key of its own",
				above.Subject, other.Name, other.Pool, p.Name).At("/root")
		}
	}
	return nil
}
