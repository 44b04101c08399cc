// Package pool keeps pools: hosts that must trust each other. Each pool has a root and an issuer of its own, because many
// consumers authorise whoever chains to their root: a root that two pools share would let the hosts of one into the other.
//
// The root of identities is in a pool of its own, Identity, which no host ever joins and no consumer is ever given.
//
// A root's key is made by its owner, in the owner's process, and stays out of the authority unless Online says otherwise.
// So a pool comes to be in two steps: Add makes the issuer's key and request, and Complete brings in what the root signed.
package pool

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"math/big"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/path"
	"chancery/internal/pki/root"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
)

// The pools that init makes.
const (
	Identity = ca.IdentityPool // identities of agents, nodes and operators
	Default  = ca.DefaultPool  // the one that is meant where none is named
)

// RootName is the name of a pool's root among the issuers. Its issuer has the pool's own name.
func RootName(pool string) string { return pool + "-root" }

// Pool is hosts that must trust each other.
type Pool struct {
	Name         string
	Organization string
	CreatedAt    time.Time
	Root         *ca.Issuer // nil while it is not known, and where the root is an outside one
	Issuer       *ca.Issuer // nil between the two steps of Add, when the first was cut short
}

// Pending reports whether the pool waits for its root to sign.
func (p *Pool) Pending() bool { return p.Issuer == nil || p.Issuer.State == ca.IssuerPending }

// Service keeps pools.
type Service struct {
	db         *db.DB
	ca         *ca.CA
	revocation *revocation.Service
	settings   *settings.Store
	audit      *audit.Log
}

// Options are what a Service works with; all are required.
type Options struct {
	DB         *db.DB
	CA         *ca.CA
	Revocation *revocation.Service
	Settings   *settings.Store
	Audit      *audit.Log
}

// New returns a service.
func New(o Options) *Service {
	return &Service{db: o.DB, ca: o.CA, revocation: o.Revocation, settings: o.Settings, audit: o.Audit}
}

// Spec says what pool to add.
type Spec struct {
	Name         string
	Organization string // in the names of its root and issuer; empty means the authority's
	Algorithm    keyfile.Algorithm
	Validity     time.Duration // of the root; 0 means root.Validity
	PathLen      *int          // of the root; nil means that one issuer may stand between it and a leaf
	Constraints  []string      // on names below the root, as root.ParseConstraints reads them
	Token        string        // PKCS #11 URI of the issuer's key, where it lies in a token; Algorithm is the root's alone then

	// Online makes and keeps the root in the authority. Otherwise Add leaves the issuer waiting for a root elsewhere.
	Online bool
}

func (s *Spec) subject(commonName string) string {
	name := cert.CommonName(commonName)
	if s.Organization != "" {
		name = append(cert.Name{{{Type: cert.OIDOrganization, Value: s.Organization}}}, name...)
	}
	return name.String()
}

// Add adds a pool. With Online it is complete; otherwise its issuer's request waits for the root.
func (s *Service) Add(ctx context.Context, by access.Principal, idempotencyKey string, spec Spec) (*Pool, error) {
	if err := s.insert(ctx, by, idempotencyKey, &spec); err != nil {
		return nil, fmt.Errorf("add pool %s: %w", spec.Name, err)
	}
	if err := s.issuers(ctx, by, idempotencyKey, spec); err != nil {
		return nil, fmt.Errorf("add pool %s: %w", spec.Name, err)
	}
	return s.Pool(ctx, spec.Name)
}

// issuers makes the root, where it is online, and the issuer.
func (s *Service) issuers(ctx context.Context, by access.Principal, idempotencyKey string, spec Spec) error {
	key := func(what string) string {
		if idempotencyKey == "" {
			return ""
		}
		return idempotencyKey + "/" + what
	}
	issuer := ca.IssuerSpec{
		IdempotencyKey: key("issuer"), Name: spec.Name, Pool: spec.Name, Default: true, Algorithm: spec.issuerAlgorithm(),
		Token: spec.Token, Subject: spec.subject(spec.Name + " issuer"), Outside: !spec.Online,
	}
	if spec.Online {
		if _, _, err := s.ca.CreateIssuer(ctx, by, spec.root(key("root"))); err != nil {
			return err
		}
		issuer.Parent = RootName(spec.Name)
	}
	_, _, err := s.ca.CreateIssuer(ctx, by, issuer)
	return err
}

// issuerAlgorithm is empty where the issuer's key is there already, in its token.
func (s *Spec) issuerAlgorithm() keyfile.Algorithm {
	if s.Token != "" {
		return ""
	}
	return s.Algorithm
}

func (s *Spec) root(idempotencyKey string) ca.IssuerSpec {
	pathLen := s.PathLen
	if pathLen == nil {
		pathLen = new(1)
	}
	return ca.IssuerSpec{
		IdempotencyKey: idempotencyKey, Name: RootName(s.Name), Pool: s.Name, Algorithm: s.Algorithm, Subject: s.subject(s.Name + " root"),
		Validity: s.Validity, PathLen: pathLen, Constraints: s.Constraints,
	}
}

// AddOffline adds a pool whose root is made here and now, and hands the root's key back: the caller is the only one who has
// it. Its first CRL, for the time that the settings give offline roots, is signed before the key is handed over.
func (s *Service) AddOffline(ctx context.Context, by access.Principal, spec Spec) (*Pool, crypto.Signer, error) {
	spec.Online = false
	if err := s.insert(ctx, by, "", &spec); err != nil {
		return nil, nil, fmt.Errorf("add pool %s: %w", spec.Name, err)
	}
	rootSpec := spec.root("")
	rootSpec.Offline = true
	above, key, err := s.ca.CreateIssuer(ctx, by, rootSpec)
	if err != nil {
		return nil, nil, fmt.Errorf("add pool %s: %w", spec.Name, err)
	}
	_, _, err = s.ca.CreateIssuer(ctx, by, ca.IssuerSpec{
		Name: spec.Name, Pool: spec.Name, Default: true, Algorithm: spec.issuerAlgorithm(), Token: spec.Token,
		Subject: spec.subject(spec.Name + " issuer"), Parent: above.ID, ParentKey: key,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("add pool %s: %w", spec.Name, err)
	}
	if err := s.signFirstCRL(ctx, by, above, key); err != nil {
		return nil, nil, fmt.Errorf("add pool %s: %w", spec.Name, err)
	}
	p, err := s.Pool(ctx, spec.Name)
	return p, key, err
}

func (s *Service) signFirstCRL(ctx context.Context, by access.Principal, above *ca.Issuer, key crypto.Signer) error {
	set, err := s.settings.Get(ctx)
	if err != nil {
		return err
	}
	now := time.Now().UTC().Truncate(time.Second)
	r := root.Root{Certificate: above.Certificate, Signer: key}
	der, err := r.SignCRL(big.NewInt(now.UnixMilli()), nil, now, set.CRL.OfflineValidity.Std())
	if err != nil {
		return err
	}
	_, err = s.revocation.Upload(ctx, by, above.ID, der, once.Call{})
	return err
}

// Complete brings in what the root of a pending pool signed: its own certificate, its issuer's and its first CRL. A
// repeated call with the same certificates finishes one that was cut short; the answer to a repeated call is kept in the last
// of the three transactions, the one that makes the issuer active.
func (s *Service) Complete(ctx context.Context, by access.Principal, name string, above, issuer *x509.Certificate, list []byte, call once.Call) (*Pool, error) {
	if err := by.May(access.ManagePools); err != nil {
		return nil, err
	}
	p, err := s.Pool(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := s.checkRoot(ctx, p, above, issuer); err != nil {
		return nil, fmt.Errorf("complete pool %s: %w", name, err)
	}
	if p.Root == nil {
		if _, err := s.ca.ImportIssuer(ctx, by, ca.ImportSpec{Name: RootName(name), Pool: name, Certificate: above}); err != nil {
			return nil, fmt.Errorf("complete pool %s: %w", name, err)
		}
	}
	if _, err := s.revocation.Upload(ctx, by, RootName(name), list, once.Call{}); err != nil && !fault.Is(err, fault.Conflict) {
		return nil, fmt.Errorf("complete pool %s: %w", name, err)
	}
	// The issuer comes last: until it is active, nothing is issued under a root that publishes no CRL yet.
	if _, err := s.ca.ImportAnswer(ctx, by, p.Issuer.ID, []*x509.Certificate{issuer, above}, call); err != nil {
		return nil, fmt.Errorf("complete pool %s: %w", name, err)
	}
	return s.Pool(ctx, name)
}

// checkRoot refuses a root that another pool has: a consumer that authorises by root would let that pool's hosts in.
func (s *Service) checkRoot(ctx context.Context, p *Pool, above, issuer *x509.Certificate) error {
	if p.Issuer == nil || p.Issuer.State != ca.IssuerPending {
		return fault.New(fault.Conflict, "pool %q is complete; its root is rotated, not replaced", p.Name)
	}
	if p.Root != nil && !p.Root.Certificate.Equal(above) {
		return fault.New(fault.Conflict, "pool %q has another root already, %q", p.Name, p.Root.Certificate.Subject)
	}
	if _, err := path.Verify([]*x509.Certificate{issuer, above}, path.Options{Time: time.Now()}); err != nil {
		return err
	}
	if !bytes.Equal(above.RawSubject, above.RawIssuer) {
		return fault.New(fault.Invalid, "%q is no root: it was issued by %q", above.Subject, above.Issuer)
	}
	all, err := s.ca.Issuers(ctx)
	if err != nil {
		return err
	}
	for _, other := range all {
		if other.Certificate == nil || other.Pool == p.Name {
			continue
		}
		sameKey := bytes.Equal(other.Certificate.RawSubjectPublicKeyInfo, above.RawSubjectPublicKeyInfo)
		if sameKey || bytes.Equal(other.Certificate.RawSubject, above.RawSubject) {
			return fault.New(fault.Conflict, "the root %q has the name or the key of issuer %q of pool %q; each pool has a root of its own, because "+
				"consumers let in whoever chains to their root", above.Subject, other.Name, other.Pool)
		}
	}
	return nil
}
