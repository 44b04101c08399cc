package rollout

import (
	"context"
	"slices"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/db"
)

// An issuer may be renewed with its key (RFC 3647 4.6) between the moment when a rollout is planned, from what its node remembers of the
// issuers, and the one in which it claims the pool's trust, after which none of the pool's is. Hosts are known by the new certificate
// since, so a plan that named the old one would wait for what nobody reports, in either direction. The plan therefore remembers whose
// certificates it names, and is made anew in the transactions that go on with it.

// remember notes whose certificate a fingerprint of the plan is.
func (p *plan) remember(issuers ...*ca.Issuer) {
	if p.Issuers == nil {
		p.Issuers = map[string]string{}
	}
	for _, i := range issuers {
		p.Issuers[trust.Fingerprint(i.Certificate)] = i.ID
	}
}

// anew has the plan name the certificates that its issuers have now, and the hosts that it holds with it. What leaves is named by both
// certificates. It reports whether anything was another.
func (s *Service) anew(ctx context.Context, tx *db.Tx, r *row) (changed bool, err error) {
	if !movesTrust(r.kind) {
		return false, nil
	}
	prints := append([]string{r.plan.FromPrint, r.plan.ToPrint}, r.plan.Comes...)
	now := make(map[string]string, len(prints)+len(r.plan.Leaves))
	for _, print := range append(prints, r.plan.Leaves...) {
		if now[print], err = r.presentOf(ctx, tx, print); err != nil {
			return false, err
		}
	}
	for _, print := range prints {
		if now[print] == print {
			continue
		}
		changed = true
		if err := host.Renewed(ctx, tx, print, now[print]); err != nil {
			return false, err
		}
	}
	r.plan.FromPrint, r.plan.ToPrint = now[r.plan.FromPrint], now[r.plan.ToPrint]
	for i, print := range r.plan.Comes {
		r.plan.Comes[i] = now[print]
	}
	for _, print := range r.plan.Leaves {
		if !slices.Contains(r.plan.Leaves, now[print]) {
			changed = true
			r.plan.Leaves = append(r.plan.Leaves, now[print])
		}
	}
	for print, id := range r.plan.Issuers {
		if other := now[print]; other != "" && other != print {
			r.plan.Issuers[other] = id
		}
	}
	return changed, nil
}

// presentOf is the fingerprint of the certificate that the issuer has now whose certificate the plan names. A plan of an earlier release
// does not say whose that is; then what the pool has trusted does.
func (r *row) presentOf(ctx context.Context, tx *db.Tx, print string) (string, error) {
	id := r.plan.Issuers[print]
	if id == "" || print == "" {
		return trust.Present(ctx, tx, r.pool, print)
	}
	i, err := ca.IssuerIn(ctx, tx, id)
	switch {
	case fault.Is(err, fault.NotFound) || err == nil && i.Certificate == nil:
		return print, nil
	case err != nil:
		return "", err
	}
	return trust.Fingerprint(i.Certificate), nil
}

// keepAnew is anew for a rollout that has its row: what changes is written.
func (s *Service) keepAnew(ctx context.Context, tx *db.Tx, r *row, now time.Time) error {
	changed, err := s.anew(ctx, tx, r)
	if err != nil || !changed {
		return err
	}
	return r.update(ctx, tx, now)
}

// issuersIn are the issuers with those of the pool as they are in the transaction, whatever this node remembers of them.
func (r *row) issuersIn(ctx context.Context, tx *db.Tx, issuers []*ca.Issuer) ([]*ca.Issuer, error) {
	all := slices.Clone(issuers)
	for n, i := range all {
		if i.Pool != r.pool {
			continue
		}
		fresh, err := ca.IssuerIn(ctx, tx, i.ID)
		switch {
		case fault.Is(err, fault.NotFound):
			continue // what follows says so
		case err != nil:
			return nil, err
		}
		all[n] = fresh
	}
	return all, nil
}
