package rollout

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/crl"
	"chancery/internal/store/db"
)

// dropNow takes the old trust away from all hosts at once, since it is compromised, and has all of them re-keyed. The certificates
// of the old issuers are revoked as far as there is somebody who can.
func (s *Service) dropNow(ctx context.Context, tx *db.Tx, r *row, issuers []*ca.Issuer, drop []string, now time.Time) error {
	target, err := r.target(issuers)
	if err != nil {
		return err
	}
	before, err := trust.StateOf(ctx, tx, r.pool)
	if err != nil {
		return err
	}
	r.plan.Before, r.plan.ToPrint = before.Version, trust.Fingerprint(target.Certificate)
	if r.plan.After, err = s.Trust.Stage(ctx, tx, r.pool, lineage(target, issuers), drop); err != nil {
		return err
	}
	if err := s.Trust.Adopt(ctx, tx, r.pool, r.plan.After); err != nil {
		return err
	}
	if err := s.CA.Succeed(ctx, tx, r.plan.To, driver.Actor(), now); err != nil {
		return err
	}
	for _, i := range issuers {
		if !slices.Contains(r.plan.Retires, i.ID) {
			continue
		}
		revoked, err := s.CA.RevokeIssuer(ctx, tx, i, crl.CACompromise, driver.Actor(), now)
		if err != nil {
			return err
		}
		r.tellRevoked(i, revoked, issuers)
		for _, c := range slices.Concat([]*x509.Certificate{i.Certificate}, i.Chain) { // a root's, and one whose root is elsewhere, nobody here revokes
			if !slices.Contains(r.plan.Leaves, trust.Fingerprint(c)) {
				continue
			}
			if err := ca.BlockKey(ctx, tx, c, now); err != nil {
				return err
			}
		}
	}
	if _, err := s.retire(ctx, tx, r.plan.Retires, now); err != nil {
		return err
	}
	if err := s.moved(ctx, tx, r, "rollout.stage", now); err != nil {
		return err
	}
	r.stage = client.StageRekey // what a host that breaks needs is its new certificate: nobody is waited for
	return s.begin(ctx, tx, r, now)
}

// tellRevoked notes what is still to be done by hand so that outsiders hear of a compromised issuer.
func (r *row) tellRevoked(i *ca.Issuer, revoked bool, issuers []*ca.Issuer) {
	note := ""
	switch above := slices.IndexFunc(issuers, func(above *ca.Issuer) bool { return above.ID == i.Parent }); {
	case i.Root():
		note = fmt.Sprintf("no CRL can revoke the root %s: whoever else trusts it has to be told", i.Name)
	case !revoked:
		note = fmt.Sprintf("issuer %s is under a root elsewhere, which has to revoke it", i.Name)
	case above >= 0 && issuers[above].KeyID == "":
		note = fmt.Sprintf("issuer %s is revoked as soon as its root says so: chancery crl issue --issuer %s --key-file F", i.Name, issuers[above].Name)
	default:
		note = fmt.Sprintf("issuer %s is revoked, with the reason cACompromise", i.Name)
	}
	r.plan.Said.Notes = append(r.plan.Said.Notes, note)
}
