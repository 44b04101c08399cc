package rollout

import (
	"context"
	"slices"

	"chancery/internal/authority/ca"
	"chancery/internal/fleet/host"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/db"
)

// issuing are the fingerprints of the pool's issuers that issue, by name.
func (r *row) issuing(issuers []*ca.Issuer) map[string]string {
	prints := map[string]string{}
	for _, i := range issuers {
		if i.Pool == r.pool && i.State == ca.IssuerActive && i.Certificate != nil && !i.Root() {
			prints[i.Name] = trust.Fingerprint(i.Certificate)
		}
	}
	return prints
}

// holdRest has hosts that came since go to the issuer that was the pool's default. Where nothing was made that leaves, they may
// stay where they are.
func (r *row) holdRest(ctx context.Context, tx *db.Tx, ids []string) error {
	if r.plan.FromPrint == r.plan.ToPrint {
		return nil
	}
	left := r.plan.Comes
	if !slices.Contains(left, r.plan.ToPrint) {
		left = append(slices.Clone(left), r.plan.ToPrint)
	}
	return host.HoldRest(ctx, tx, r.plan.FromPrint, left, ids)
}

// waited are those of the members that are not left out: what is left out keeps what it has.
func waited(all []member) []member {
	return slices.DeleteFunc(slices.Clone(all), func(m member) bool { return m.because != "" })
}

// letGo has hosts follow their pool again. Those that were not waited for go on being told of the issuer, so that they get their
// certificates whenever they come back: of the one that they had before, if the rollout is undone.
func (s *Service) letGo(ctx context.Context, tx *db.Tx, r *row, issuers []*ca.Issuer) error {
	late, err := members(ctx, tx, r, ` AND because <> ''`)
	if err != nil {
		return err
	}
	under := map[string][]string{}
	if r.backwards {
		for part := range slices.Chunk(idsOf(late), host.Moved) {
			if err := r.holdRest(ctx, tx, part); err != nil {
				return err
			}
		}
		before, err := host.HeldAt(ctx, tx, idsOf(late))
		if err != nil {
			return err
		}
		names := map[string]string{}
		for name, print := range r.issuing(issuers) {
			names[print] = name
		}
		for _, id := range idsOf(late) {
			under[names[before[id]]] = append(under[names[before[id]]], id)
		}
	} else {
		under[r.plan.To] = idsOf(late)
	}
	if err := host.LetGo(ctx, tx, r.pool); err != nil {
		return err
	}
	for name, ids := range under {
		for part := range slices.Chunk(ids, host.Moved) {
			if err := s.Hosts.Move(ctx, tx, host.Move{Issuer: &name}, part); err != nil {
				return err
			}
		}
	}
	return nil
}
