package rollout

import (
	"bytes"
	"context"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/keys"
)

// succession plans who takes whose place.
func (s *Service) succession(ctx context.Context, d *draft) error {
	p, err := s.Pools.Pool(ctx, d.pool)
	if err != nil {
		return err
	}
	if p.Pending() {
		return fault.New(fault.Conflict, "pool %q waits for its root to sign, and issues nothing yet", d.pool).WithHint("chancery pool show %s", d.pool)
	}
	all, err := s.CA.Issuers(ctx)
	if err != nil {
		return err
	}
	var ours []*ca.Issuer
	for _, i := range all {
		if i.Pool == d.pool && i.Certificate != nil {
			ours = append(ours, i)
		}
	}
	d.plan.From, d.plan.FromPrint = p.Issuer.Name, trust.Fingerprint(p.Issuer.Certificate)
	d.plan.remember(p.Issuer)
	d.plan.Said.Old = p.Issuer.Name
	var old []*ca.Issuer
	withRoot := d.kind == client.RolloutRoot
	switch d.kind {
	case client.RolloutIssuer:
		if root := highest(p.Issuer); time.Until(root.NotAfter) < leastAtStart {
			return fault.New(fault.Invalid, "the root %q ends on %s, and a new issuer under it would too; what hosts go to has to last %d days at the least",
				root.Subject, root.NotAfter.UTC().Format(time.DateOnly), leastAtStart/(24*time.Hour)).WithHint("chancery rollout start rotate-root")
		}
		old = []*ca.Issuer{p.Issuer}
	case client.RolloutRoot:
		above := highest(p.Issuer)
		old = below(ours, above)
		d.plan.Said.Old = above.Subject.CommonName
		if d.plan.Said.Old == "" {
			d.plan.Said.Old = above.Subject.String()
		}
		d.plan.Leaves = append(d.plan.Leaves, trust.Fingerprint(above))
	case client.RolloutRotateAway:
		var target *ca.Issuer
		if old, target, err = s.awayFrom(ctx, d, p, ours); err != nil {
			return err
		}
		if target != nil {
			if err := lasts(target, leastAtStart, time.Now()); err != nil {
				return err
			}
			d.plan.remember(target)
			d.plan.To, d.plan.ToPrint, d.plan.Said.New = target.Name, trust.Fingerprint(target.Certificate), target.Name
		}
		withRoot = target == nil
	}
	d.plan.remember(old...)
	for _, i := range old {
		d.plan.Retires = append(d.plan.Retires, i.ID)
		d.plan.Leaves = append(d.plan.Leaves, trust.Fingerprint(i.Certificate))
	}
	slices.Sort(d.plan.Leaves)
	d.plan.Leaves = slices.Compact(d.plan.Leaves)
	if d.plan.To != "" {
		if d.spec.Online || d.spec.Algorithm != "" || d.spec.Validity != "" || d.spec.Key != "" {
			return fault.New(fault.Invalid, "the hosts go to issuer %q, which is there; nothing is made that could be online, or of an algorithm", d.plan.To)
		}
		return nil
	}
	if err := s.newKey(ctx, d, p.Issuer); err != nil {
		return err
	}
	if d.plan.Next, err = s.Pools.PlanSuccessor(ctx, d.pool, withRoot, d.spec.Online); err != nil {
		return err
	}
	d.plan.To, d.plan.Said.New = d.plan.Next.Issuer, d.plan.Next.Issuer
	if withRoot {
		d.plan.Said.New = d.plan.Next.Root + " and " + d.plan.Next.Issuer
	}
	return nil
}

// softwareKey says that the new issuer's key is made and sealed in the authority.
const softwareKey = "software"

// newKey decides where the new issuer's key lies. Nobody comes from a token to a key in software without having said so.
func (s *Service) newKey(ctx context.Context, d *draft, before *ca.Issuer) error {
	switch d.spec.Key {
	case softwareKey:
		return nil
	case "":
		found, err := s.Keys.Find(ctx, keys.Issuer, before.ID)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(found, func(k keys.Key) bool { return k.ID == before.KeyID && k.Token != "" }) {
			return fault.New(fault.Invalid, "the key of issuer %q lies in a PKCS #11 token; say where its successor's lies: the URI of another key in a token, "+
				"or %s", before.Name, softwareKey).At("/key")
		}
		return nil
	}
	// Tried now, so that a rollout does not begin that cannot make its issuer.
	next, _, err := s.Keys.Adopt(ctx, d.spec.Key, keys.Issuer, before.ID)
	if err != nil {
		return err
	}
	if bytes.Equal(next.SPKI, before.PublicKey) {
		return fault.New(fault.Invalid, "the key %s is the one that issuer %q has; its successor needs another", next.URI, before.Name).At("/key")
	}
	d.plan.Token = d.spec.Key
	return nil
}

// awayFrom finds the issuers of ours that are left, if what is left is one of them or above them, and the issuer of ours that
// hosts go to, if there is one.
func (s *Service) awayFrom(ctx context.Context, d *draft, p *pool.Pool, ours []*ca.Issuer) (old []*ca.Issuer, target *ca.Issuer, err error) {
	i := slices.IndexFunc(ours, func(i *ca.Issuer) bool { return i.Name == d.spec.From })
	if i >= 0 {
		old = below(ours, ours[i].Certificate)
		d.plan.Said.Old = ours[i].Name
	} else {
		entry, err := s.Trust.Find(ctx, d.pool, d.spec.From)
		if err != nil {
			return nil, nil, err
		}
		d.plan.Said.Old = entry.Subject
		d.plan.Leaves = append(d.plan.Leaves, entry.Fingerprint)
		for _, o := range ours {
			for _, c := range append(slices.Clone(o.Chain), o.Certificate) {
				if trust.Fingerprint(c) == entry.Fingerprint {
					old = append(old, o)
					break
				}
			}
		}
	}
	if !slices.ContainsFunc(old, func(o *ca.Issuer) bool { return o.ID == p.Issuer.ID }) {
		return old, p.Issuer, nil // the default is none of them
	}
	for _, o := range ours {
		leaves := slices.ContainsFunc(old, func(other *ca.Issuer) bool { return other.ID == o.ID })
		if !leaves && !o.Root() && o.State == ca.IssuerActive && o.KeyID != "" && (target == nil || o.CreatedAt.After(target.CreatedAt)) {
			target = o
		}
	}
	return old, target, nil
}
