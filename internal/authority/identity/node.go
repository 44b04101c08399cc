package identity

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// NodePrincipal is the name of the principal that a node is. Hosts often have the name of the machine that a node runs on, so the
// node's is kept apart.
func NodePrincipal(node string) string { return "node/" + node }

// NodeOrder asks for a node's certificate.
type NodeOrder struct {
	Principal string // its ID
	Node      string
	SPKI      []byte
	Names     []string // dns:… and ip:…
	Key       string   // of idempotency; empty where the call is its own
}

func (s *Service) nodeOrder(ctx context.Context, o NodeOrder) (ca.Order, error) {
	issuer, err := s.issuer(ctx)
	if err != nil {
		return ca.Order{}, err
	}
	return ca.Order{
		IdempotencyKey: o.Key, Issuer: issuer.ID, PublicKey: o.SPKI, Subject: cert.CommonName(o.Node).String(), Names: o.Names, Validity: NodeLife,
	}, nil
}

// CheckNode says why a node would not get this certificate.
func (s *Service) CheckNode(ctx context.Context, o NodeOrder) error {
	order, err := s.nodeOrder(ctx, o)
	if err != nil {
		return err
	}
	bound, err := s.access.Identity(ctx, order.Issuer, o.SPKI)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if err := errors.Join(bound.FreeFor(o.Principal), s.unspoilt(ctx, order.Issuer, bound, o.SPKI)); err != nil {
		return err
	}
	return s.ca.CheckIdentity(ctx, Enroller, order)
}

// IssueNode gives a node the certificate of its API, which proves it as a caller too. Everything is of one transaction: within runs
// first, and may make the principal. by is whose rate it counts against.
func (s *Service) IssueNode(ctx context.Context, by access.Principal, o NodeOrder, within ca.Within) (*ca.Certificate, error) {
	order, err := s.nodeOrder(ctx, o)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	issued, err := s.ca.IssueIdentity(ctx, by, Enroller, order, func(ctx context.Context, tx *db.Tx, issued *ca.Certificate) error {
		if within != nil {
			if err := within(ctx, tx, issued); err != nil {
				return err
			}
		}
		return s.access.AddIdentity(ctx, tx, access.Identity{
			Principal: o.Principal, Issuer: issued.Issuer.ID, SPKI: issued.PublicKey(), Serial: issued.Serial, NotAfter: issued.NotAfter,
		}, by.Actor(), now)
	})
	if err != nil {
		return nil, fmt.Errorf("issue the certificate of node %s: %w", o.Node, err)
	}
	return issued, nil
}

// Serve gives a node the TLS certificate of its API for the names by which clients reach it. It proves the node as a caller too,
// unless the node is not registered yet, as one that is just being made or was made by an older release.
func (s *Service) Serve(ctx context.Context, node string, key crypto.PublicKey, names []string) (*ca.Certificate, error) {
	spki, err := cert.MarshalPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the key of node %s: %w", node, err)
	}
	p, err := s.access.PrincipalNamed(ctx, NodePrincipal(node))
	if err == nil && p.Kind == access.KindNode {
		return s.IssueNode(ctx, access.System(node), NodeOrder{Principal: p.ID, Node: node, SPKI: spki, Names: names}, nil)
	}
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	order, err := s.nodeOrder(ctx, NodeOrder{Node: node, SPKI: spki, Names: names})
	if err != nil {
		return nil, err
	}
	issued, err := s.ca.IssueIdentity(ctx, access.System(node), node, order, nil)
	if err != nil {
		return nil, fmt.Errorf("issue the TLS certificate of node %s: %w", node, err)
	}
	return issued, nil
}

// EndNode revokes, in the caller's transaction, what proves a node or serves its API, and removes its principal. The caller calls
// Announce of the CA and Forget of access when it has committed.
func (s *Service) EndNode(ctx context.Context, tx *db.Tx, by access.Principal, principal, node string, issuers []string, revoke Revoke, now time.Time) error {
	if principal != "" {
		held, err := access.HeldBy(ctx, tx, principal)
		if err != nil {
			return err
		}
		for _, h := range held {
			if err := revoke(ca.Ref{Issuer: h.Issuer, Serial: h.Serial}); err != nil {
				return err
			}
		}
		if err := s.access.RemovePrincipal(ctx, tx, by, principal, now); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	// What it issued to itself before it was registered.
	served, err := ca.CarriersOf(ctx, tx, access.System(node).ID, now, maxServed)
	if err != nil {
		return err
	}
	for _, c := range served {
		if len(c.Names) == 0 {
			continue // what serves has names; the roots, issuers and first operator that init made as this node have none
		}
		for _, id := range issuers {
			if c.Ref.Issuer != id {
				continue
			}
			if err := revoke(c.Ref); err != nil {
				return err
			}
		}
	}
	return nil
}

// Revoke revokes a certificate in a transaction that it knows.
type Revoke func(ca.Ref) error

// maxServed bounds the certificates that are looked at; a node gets one each twenty days.
const maxServed = 1000

// Issuers are the IDs of the issuers of identities.
func (s *Service) Issuers(ctx context.Context) ([]string, error) {
	all, err := s.ca.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, i := range all {
		if i.Pool == ca.IdentityPool {
			ids = append(ids, i.ID)
		}
	}
	return ids, nil
}
