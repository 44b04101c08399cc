package status

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fleet/host"
	"chancery/internal/store/access"
	"chancery/internal/upkeep/setup"
)

// Kind is what of the authority's work ends by itself where nobody renews it.
type Kind string

// Kinds, each of which has at most one End.
const (
	EndPlaced    Kind = "placed certificate"
	EndPlacedCRL Kind = "placed CRL"
	EndCRL       Kind = "published CRL"
	EndDelta     Kind = "published delta CRL"
	EndResponder Kind = "OCSP responder"
	EndAgent     Kind = "agent's identity"
	EndNode      Kind = "node's certificate"
	EndOperator  Kind = "operator's identity"
	EndIssuer    Kind = "issuer"
)

// End is the first end of a kind.
type End struct {
	Kind Kind
	What string // "the certificate of placement nginx of host web1"
	At   time.Time
}

// Budget is for how long the authority could be down, all of it, before something that it renews ends. It is computed from what
// is stored and from what agents reported; that a silent host may hold less is not known.
//
// Certificates whose holders renew them themselves are not in it: their ends are told as such (Status.Expiring).
type Budget struct {
	Ended []End // what has ended already and should not have: the first of each kind, the oldest first
	Ends  []End // what is to end: the first of each kind, soonest first
	// Caches is until when a cache may hand out an OCSP answer that it gets now; zero where certificates name no responder.
	// It is no End: answers are signed when they are asked for, so a question that no cache answers fails at once, and most
	// caches hold older answers or none.
	Caches time.Time
}

// Left is for how long, from now, and until what; false where nothing ends.
func (b *Budget) Left(now time.Time) (time.Duration, End, bool) {
	if len(b.Ends) == 0 {
		return 0, End{}, false
	}
	return b.Ends[0].At.Sub(now), b.Ends[0], true
}

// BudgetOf looks at an authority.
func BudgetOf(ctx context.Context, s *setup.Services, now time.Time) (*Budget, error) {
	b := &budget{now: now, first: map[Kind]End{}, ended: map[Kind]End{}}
	ends, err := s.Hosts.Ends(ctx, now)
	if err != nil {
		return nil, err
	}
	b.hosts(ends)
	if err := b.issuers(ctx, s); err != nil {
		return nil, err
	}
	name, at, err := s.Identity.FirstNodeEnd(ctx, now)
	if err != nil {
		return nil, err
	}
	b.add(EndNode, at, "the TLS certificate of node %s", name)
	if name, at, err = s.Access.FirstEnd(ctx, access.KindOperator, now); err != nil {
		return nil, err
	}
	b.add(EndOperator, at, "the identity of operator %s", name)
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	all := &Budget{Ended: sorted(b.ended), Ends: sorted(b.first)}
	if set.PublicURL != "" {
		all.Caches = now.Add(set.OCSP.Validity.Std()).UTC()
	}
	return all, nil
}

type budget struct {
	now   time.Time
	first map[Kind]End // ahead
	ended map[Kind]End
}

// add keeps an end if it is the first of its kind, of those ahead or of those that are over; the zero time is none.
func (b *budget) add(kind Kind, at time.Time, format string, args ...any) {
	ends := b.first
	if !at.After(b.now) {
		ends = b.ended
	}
	if known, ok := ends[kind]; at.IsZero() || ok && !at.Before(known.At) {
		return
	}
	ends[kind] = End{Kind: kind, What: fmt.Sprintf(format, args...), At: at.UTC()}
}

func (b *budget) hosts(ends host.Ends) {
	for _, e := range []host.End{ends.Certificate, ends.EndedCertificate} {
		b.add(EndPlaced, e.At, "the certificate of placement %s of host %s", e.Placement, e.Host)
	}
	for _, e := range []host.End{ends.CRL, ends.EndedCRL} {
		b.add(EndPlacedCRL, e.At, "a CRL of placement %s of host %s", e.Placement, e.Host)
	}
	b.add(EndAgent, ends.Identity.At, "the identity of the agent of host %s, %d days after its end,", ends.Identity.Host, int(ca.IdentityGrace/(24*time.Hour)))
}

// issuers adds what is below issuers that have not ended: the CRL of one that has, nobody asks for.
func (b *budget) issuers(ctx context.Context, s *setup.Services) error {
	all, err := s.CA.Issuers(ctx)
	if err != nil {
		return err
	}
	names, deltas := map[string]string{}, map[string]bool{}
	for _, i := range all {
		if i.Certificate == nil || !i.Certificate.NotAfter.After(b.now) {
			continue
		}
		names[i.ID], deltas[i.ID] = i.Name, i.CRL.Delta
		if i.State == ca.IssuerActive {
			b.add(EndIssuer, i.Certificate.NotAfter, "issuer %s", i.Name)
		}
	}
	ends, err := s.Revocation.Ends(ctx)
	if err != nil {
		return err
	}
	for _, e := range ends {
		if name, ok := names[e.Issuer]; ok {
			b.add(EndCRL, e.CRL, "the CRL of issuer %s", name)
			if deltas[e.Issuer] { // one that is made no more, nobody waits for
				b.add(EndDelta, e.Delta, "the delta CRL of issuer %s", name)
			}
			b.add(EndResponder, e.Responder, "the certificate of the OCSP responder of issuer %s", name)
		}
	}
	return nil
}

func sorted(ends map[Kind]End) []End {
	all := slices.Collect(maps.Values(ends))
	slices.SortFunc(all, func(x, y End) int { return cmp.Or(x.At.Compare(y.At), cmp.Compare(x.Kind, y.Kind)) })
	return all
}
