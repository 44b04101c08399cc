// Package identity issues the certificates by which operators, nodes and agents are known to the authority, and says of
// one that is shown whether it is good.
//
// An identity is a certificate of the pool ca.IdentityPool, whose root is in no trust set. What it proves is not in it: its
// key and its serial are mapped to a principal in the store, so one whose mapping is gone is nobody, whatever it says. The
// mapping is written after the certificate was issued: one without it is nobody's, and the repeated call maps it.
package identity

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// Service issues and checks identities. It may be used by many goroutines, and starts none.
type Service struct {
	db     *db.DB
	ca     *ca.CA
	access *access.Store
}

// New returns the service of identities.
func New(d *db.DB, c *ca.CA, a *access.Store) *Service { return &Service{db: d, ca: c, access: a} }

// Lifetimes. A person's identity ends soon, because it lies on a laptop and is renewed by a command; a node renews its own.
const (
	OperatorLife = 30 * 24 * time.Hour
	NodeLife     = 30 * 24 * time.Hour
	AgentLife    = 30 * 24 * time.Hour
)

// Grace is ca.IdentityGrace.
const Grace = ca.IdentityGrace

// IssuerOf is the ID of the issuer of identities whose certificate this is.
func (s *Service) IssuerOf(ctx context.Context, certificate *x509.Certificate) (string, error) {
	all, err := s.ca.Issuers(ctx)
	if err != nil {
		return "", err
	}
	for _, i := range all {
		if i.Pool == ca.IdentityPool && i.Certificate != nil && bytes.Equal(i.Certificate.Raw, certificate.Raw) {
			return i.ID, nil
		}
	}
	return "", fault.New(fault.NotFound, "%q is no issuer of identities here", certificate.Subject)
}

// Roots are the roots of identities, and no others. There is more than one while the root is being replaced.
func (s *Service) Roots(ctx context.Context) (*x509.CertPool, error) {
	all, err := s.ca.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	for _, c := range rootsOf(all) {
		roots.AddCert(c)
	}
	return roots, nil
}

// RootCertificates are the roots of identities, for those who pin them.
func (s *Service) RootCertificates(ctx context.Context) ([]*x509.Certificate, error) {
	all, err := s.ca.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	return rootsOf(all), nil
}

func rootsOf(issuers []*ca.Issuer) []*x509.Certificate {
	var roots []*x509.Certificate
	for _, i := range issuers {
		if i.Pool != ca.IdentityPool || i.Certificate == nil {
			continue
		}
		for _, c := range append([]*x509.Certificate{i.Certificate}, i.Chain...) {
			if bytes.Equal(c.RawIssuer, c.RawSubject) && !slices.ContainsFunc(roots, c.Equal) {
				roots = append(roots, c)
			}
		}
	}
	return roots
}

// Enroller is the name in which the authority issues identities to callers. What another requested is no identity,
// whichever issuer signed it.
const Enroller = "identity"

// Good refuses a certificate of the issuer that proves nobody: one that is revoked or on hold, or not in the record; one
// that this package did not issue to a caller; one that a later one for its key has replaced. Whatever ended one of the
// certificates of a key ended the key: the other one does not prove its owner any more either.
func (s *Service) Good(ctx context.Context, issuerID string, serial *big.Int) error {
	found, err := s.find(ctx, issuerID, serial)
	if err != nil {
		return err
	}
	if err := live(found); err != nil {
		return err
	}
	if found.Requester != access.System(Enroller).ID {
		return fault.New(fault.Denied, "certificate %s was not issued as a caller's identity", cert.FormatSerial(serial))
	}
	bound, err := s.access.Identity(ctx, issuerID, found.PublicKey())
	if err != nil {
		return err
	}
	if !bound.Has(serial) {
		return fault.New(fault.Conflict, "identity %s was replaced by a later one for its key", cert.FormatSerial(serial))
	}
	return s.unspoilt(ctx, issuerID, bound, found.PublicKey())
}

// unspoilt refuses a key that was revoked as compromised anywhere, or one of whose certificates is revoked or on hold.
func (s *Service) unspoilt(ctx context.Context, issuerID string, bound access.Bound, spki []byte) error {
	if err := s.ca.CheckKey(ctx, spki); err != nil {
		return err
	}
	for _, serial := range bound.Serials {
		found, err := s.find(ctx, issuerID, serial)
		if fault.Is(err, fault.NotFound) {
			continue // it ended long ago and was pruned
		}
		if err == nil {
			err = live(found)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) find(ctx context.Context, issuerID string, serial *big.Int) (*ca.Certificate, error) {
	return s.ca.Find(ctx, access.System(Enroller), ca.Ref{Issuer: issuerID, Serial: serial})
}

func live(c *ca.Certificate) error {
	if c.State == ca.Revoked || c.State == ca.Held {
		return fault.New(fault.Conflict, "identity %s is %s, and its key proves nobody", cert.FormatSerial(c.Serial), c.State).
			WithHint("enrol with a new key")
	}
	return nil
}

// Enrol gives a principal an identity for the key that signed the request; of the request nothing but its key is used.
// Everyone who shows a certificate enrols himself, administrators others too. It counts against the rate of the caller.
func (s *Service) Enrol(ctx context.Context, by, principal access.Principal, csr []byte, idempotencyKey string) (*ca.Certificate, error) {
	if err := mayEnrol(by, principal); err != nil {
		return nil, err
	}
	request, err := cert.ParseCSR(csr)
	if err != nil {
		return nil, err
	}
	issuer, err := s.issuer(ctx)
	if err != nil {
		return nil, err
	}
	bound, err := s.access.Identity(ctx, issuer.ID, request.SPKI)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	if err := errors.Join(bound.FreeFor(principal.ID), s.unspoilt(ctx, issuer.ID, bound, request.SPKI)); err != nil {
		return nil, fmt.Errorf("enrol %s: %w", principal.Name, err)
	}
	issued, err := s.ca.IssueIdentity(ctx, by, Enroller, ca.Order{
		IdempotencyKey: scoped(idempotencyKey, principal.ID), Issuer: issuer.ID,
		PublicKey: request.SPKI, Subject: cert.CommonName(principal.Name).String(), Validity: OperatorLife,
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("enrol %s: %w", principal.Name, err)
	}
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		return s.access.AddIdentity(ctx, tx, access.Identity{
			Principal: principal.ID, Issuer: issuer.ID, SPKI: request.SPKI, Serial: issued.Serial, NotAfter: issued.NotAfter,
		}, by.Actor(), time.Now())
	})
	if err != nil {
		return nil, fmt.Errorf("enrol %s: %w", principal.Name, err)
	}
	return issued, nil
}

func mayEnrol(by, principal access.Principal) error {
	if principal.Kind == access.KindHost && !strings.HasPrefix(by.Actor(), "system:") {
		// Its identities are numbered, so that a copy shows; one from here would have no number.
		return fault.New(fault.Denied, "%s is a host, and its agent renews its identity itself", principal.Name).
			WithHint("chancery host replace %s lets its machine join anew", principal.Name)
	}
	if by.ID == "" || by.ID != principal.ID {
		if err := by.May(access.ManagePrincipals); err != nil {
			return err
		}
	}
	if _, ok := by.TokenEnds(); ok && by.May(access.ManagePrincipals) != nil {
		// An identity renews itself, so a stolen token would be a lasting one.
		return fault.New(fault.Denied, "a token gets no identity, but for an administrator's").
			WithHint("an administrator runs chancery operator enrol %s; later the identity renews itself", principal.Name)
	}
	if principal.Disabled {
		return fault.New(fault.Conflict, "%s is disabled", principal.Actor())
	}
	return nil
}

// IssueAgent gives the machine that is a host its identity, whose only name is the host's. next is the principal that it is
// for, which within maps it to; by is whose rate it counts against. within is run in the transaction that records it.
func (s *Service) IssueAgent(ctx context.Context, by access.Principal, next string, spki []byte, idempotencyKey string, within ca.Within) (*ca.Certificate, error) {
	issuer, err := s.issuer(ctx)
	if err != nil {
		return nil, err
	}
	bound, err := s.access.Identity(ctx, issuer.ID, spki)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	if err := errors.Join(bound.FreeFor(next), s.unspoilt(ctx, issuer.ID, bound, spki)); err != nil {
		return nil, err
	}
	return s.ca.IssueIdentity(ctx, by, Enroller, ca.Order{
		IdempotencyKey: idempotencyKey, Issuer: issuer.ID, PublicKey: spki, Subject: cert.CommonName(by.Name).String(), Validity: AgentLife,
	}, within)
}

// scoped keeps callers' keys apart, who all enrol in the authority's own name.
func scoped(key, principal string) string {
	if key == "" {
		return ""
	}
	return principal + " " + key
}

// issuer is the one that issues identities now.
func (s *Service) issuer(ctx context.Context) (*ca.Issuer, error) {
	all, err := s.ca.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.Pool == ca.IdentityPool && i.Default {
			return i, nil
		}
	}
	return nil, fault.New(fault.Unavailable, "the authority has no issuer of identities")
}

// Path is an identity and the issuers above it, the root left out, as TLS shows it.
func Path(c *ca.Certificate) [][]byte {
	path := [][]byte{c.DER}
	for _, issuer := range append([]*x509.Certificate{c.Issuer.Certificate}, c.Issuer.Chain...) {
		if !bytes.Equal(issuer.RawIssuer, issuer.RawSubject) {
			path = append(path, issuer.Raw)
		}
	}
	return path
}
