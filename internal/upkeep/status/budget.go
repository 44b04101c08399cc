package status

import (
	"cmp"
	"context"
	"fmt"
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
	EndAnswer    Kind = "OCSP answer"
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

// Budget is for how long the authority could be down, all of it, before something that it renews ends: its ends, the first of
// each kind, soonest first. What has ended already is not among them. It is computed from what is stored and from what
// agents reported; that a silent host may hold less is not known.
//
// Certificates whose holders renew them themselves are not in it: their ends are told as such (Status.Expiring).
type Budget []End

// Left is for how long, from now, and until what; false where nothing ends.
func (b Budget) Left(now time.Time) (time.Duration, End, bool) {
	if len(b) == 0 {
		return 0, End{}, false
	}
	return b[0].At.Sub(now), b[0], true
}

// BudgetOf looks at an authority.
func BudgetOf(ctx context.Context, s *setup.Services, now time.Time) (Budget, error) {
	b := &budget{now: now, first: map[Kind]End{}}
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
	if set.PublicURL != "" { // else no certificate names a responder
		b.add(EndAnswer, now.Add(set.OCSP.Validity.Std()), "an OCSP answer that is handed out now")
	}
	return b.sorted(), nil
}

type budget struct {
	now   time.Time
	first map[Kind]End
}

// add keeps an end if it is ahead and the first of its kind.
func (b *budget) add(kind Kind, at time.Time, format string, args ...any) {
	if known, ok := b.first[kind]; !at.After(b.now) || ok && !at.Before(known.At) {
		return
	}
	b.first[kind] = End{Kind: kind, What: fmt.Sprintf(format, args...), At: at.UTC()}
}

func (b *budget) hosts(ends host.Ends) {
	b.add(EndPlaced, ends.Certificate.At, "the certificate of placement %s of host %s", ends.Certificate.Placement, ends.Certificate.Host)
	b.add(EndPlacedCRL, ends.CRL.At, "a CRL of placement %s of host %s", ends.CRL.Placement, ends.CRL.Host)
	b.add(EndAgent, ends.Identity.At, "the identity of the agent of host %s, %d days after its end,", ends.Identity.Host, int(ca.IdentityGrace/(24*time.Hour)))
}

// issuers adds what is below issuers that have not ended: the CRL of one that has, nobody asks for.
func (b *budget) issuers(ctx context.Context, s *setup.Services) error {
	all, err := s.CA.Issuers(ctx)
	if err != nil {
		return err
	}
	names := map[string]string{}
	for _, i := range all {
		if i.Certificate == nil || !i.Certificate.NotAfter.After(b.now) {
			continue
		}
		names[i.ID] = i.Name
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
			b.add(EndResponder, e.Responder, "the certificate of the OCSP responder of issuer %s", name)
		}
	}
	return nil
}

func (b *budget) sorted() Budget {
	all := Budget{}
	for _, e := range b.first {
		all = append(all, e)
	}
	slices.SortFunc(all, func(x, y End) int { return cmp.Or(x.At.Compare(y.At), cmp.Compare(x.Kind, y.Kind)) })
	return all
}
