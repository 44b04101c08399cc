// Package identity issues the certificates by which operators, nodes and agents are known to the authority, and says of
// one that is shown whether it is good.
//
// An identity is a certificate of the pool ca.IdentityPool, whose root is in no trust set. What it proves is not in it: the
// key is mapped to a principal in the store, so a renewed certificate for a mapped key is the same caller, and one whose
// mapping is gone is nobody, whatever it says. The mapping is written before the certificate is issued: a mapping without a
// certificate proves nothing, and a certificate without a mapping would be a caller that nobody knows.
package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"math/big"
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
)

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
	for _, i := range all {
		if i.Pool != ca.IdentityPool || i.Certificate == nil {
			continue
		}
		for _, c := range append([]*x509.Certificate{i.Certificate}, i.Chain...) {
			if bytes.Equal(c.RawIssuer, c.RawSubject) {
				roots.AddCert(c)
			}
		}
	}
	return roots, nil
}

// Good refuses a certificate of the issuer that is revoked, on hold, or not in the record.
func (s *Service) Good(ctx context.Context, issuerID string, serial *big.Int) error {
	found, err := s.ca.Find(ctx, access.System("identity"), ca.Ref{Issuer: issuerID, Serial: serial})
	if err != nil {
		return err
	}
	if found.State == ca.Revoked || found.State == ca.Held {
		return fault.New(fault.Conflict, "identity %s is %s", cert.FormatSerial(serial), found.State)
	}
	return nil
}

// Enrol gives a principal an identity for the key that signed the request; of the request nothing but its key is used.
// Everyone enrols himself, administrators others too.
func (s *Service) Enrol(ctx context.Context, by, principal access.Principal, csr []byte, idempotencyKey string) (*ca.Certificate, error) {
	if by.ID == "" || by.ID != principal.ID {
		if err := by.May(access.ManagePrincipals); err != nil {
			return nil, err
		}
	}
	if principal.Disabled {
		return nil, fault.New(fault.Conflict, "%s is disabled", principal.Actor())
	}
	request, err := cert.ParseCSR(csr)
	if err != nil {
		return nil, err
	}
	issuer, err := s.issuer(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		return s.access.AddIdentity(ctx, tx, principal.ID, issuer.ID, request.SPKI, by.Actor(), now)
	})
	if err != nil {
		return nil, fmt.Errorf("enrol %s: %w", principal.Name, err)
	}
	issued, err := s.ca.Issue(ctx, access.System("identity"), ca.Order{
		IdempotencyKey: scoped(idempotencyKey, principal.ID), Issuer: issuer.ID, Pool: ca.IdentityPool, Profile: ca.IdentityProfile,
		PublicKey: request.SPKI, Subject: cert.CommonName(principal.Name).String(), Validity: OperatorLife,
	})
	if err != nil {
		return nil, fmt.Errorf("enrol %s: %w", principal.Name, err)
	}
	return issued, nil
}

// scoped keeps callers' keys apart, who all enrol in the authority's own name.
func scoped(key, principal string) string {
	if key == "" {
		return ""
	}
	return principal + " " + key
}

// Serve gives a node the TLS certificate of its API for the names by which clients reach it.
func (s *Service) Serve(ctx context.Context, node string, key crypto.PublicKey, names []string) (*ca.Certificate, error) {
	issuer, err := s.issuer(ctx)
	if err != nil {
		return nil, err
	}
	spki, err := cert.MarshalPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the key of node %s: %w", node, err)
	}
	issued, err := s.ca.Issue(ctx, access.System(node), ca.Order{
		Issuer: issuer.ID, Pool: ca.IdentityPool, Profile: ca.IdentityProfile, PublicKey: spki,
		Subject: cert.CommonName(node).String(), Names: names, Validity: NodeLife,
	})
	if err != nil {
		return nil, fmt.Errorf("issue the TLS certificate of node %s: %w", node, err)
	}
	return issued, nil
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
