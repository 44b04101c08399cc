package rollout

import (
	"context"
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/store/db"
)

// make makes the issuer that hosts go to, and its root where that is a new one. What is there is not made again.
func (s *Service) make(ctx context.Context, r *row) error {
	if r.plan.Next == nil {
		return nil
	}
	if _, err := s.CA.Issuer(ctx, r.plan.Next.Issuer); !fault.Is(err, fault.NotFound) {
		return err
	}
	return s.Pools.MakeSuccessor(ctx, driver, r.pool, r.plan.Next, pool.SuccessorSpec{
		Key: "rollout/" + r.id, Algorithm: r.plan.Algorithm, Token: r.plan.Token, Validity: r.plan.Validity,
	})
}

// prepare makes what a rollout needs, outside the driver: so the request that waits for an offline root is there at once.
func (s *Service) prepare(ctx context.Context, id string) error {
	var r *row
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		r, err = one(ctx, tx, id)
		return err
	})
	if err != nil || r.stage != client.StagePrepare || r.over() {
		return err
	}
	return s.make(ctx, r)
}

// stepPrepare makes what is needed, waits for what is signed elsewhere and for first CRLs, and begins the first stage. A root or
// issuer without a CRL is trusted by nobody yet: many consumers refuse a path that has none.
func (s *Service) stepPrepare(ctx context.Context, d *drive, r *row, now time.Time) error {
	if err := s.make(ctx, r); err != nil {
		if refusal(err) {
			return s.pauseFor(ctx, d, r, "what it needs cannot be made: "+err.Error(), now)
		}
		return err
	}
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return err
	}
	drop, err := s.present(ctx, r)
	if err != nil {
		return err
	}
	err = s.within(ctx, d, r, func(tx *db.Tx, r *row) error {
		lists, err := revocation.CurrentNumbers(ctx, tx)
		if err != nil {
			return err
		}
		state, message := r.ready(issuers, func(i *ca.Issuer) bool { _, ok := lists[i.ID]; return ok })
		if message != "" {
			if r.state == state && r.message == message {
				return nil
			}
			r.state, r.message = state, message
			for _, i := range issuers { // the signer would look for new issuers some seconds later
				if _, ok := lists[i.ID]; !ok && slices.Contains(r.made(), i.Name) {
					if err := revocation.Ask(ctx, tx, i, now); err != nil {
						return err
					}
				}
			}
			return r.update(ctx, tx, now)
		}
		r.state = state
		if err := s.sync(ctx, tx, r, now); err != nil {
			return err
		}
		present, err := r.issuersIn(ctx, tx, issuers)
		if err != nil {
			return err
		}
		return s.enter(ctx, tx, r, r.next(), present, drop, now)
	})
	s.CA.Forget()
	s.CA.Announce()
	return err
}

// ready says whether all is there that the first stage needs; if not, what is waited for.
func (r *row) ready(issuers []*ca.Issuer, listed func(*ca.Issuer) bool) (state, message string) {
	if r.plan.Next == nil {
		return client.RolloutRunning, ""
	}
	for _, name := range r.made() {
		i := slices.IndexFunc(issuers, func(i *ca.Issuer) bool { return i.Name == name })
		switch {
		case i < 0 && r.plan.Next.Outside, i >= 0 && issuers[i].State == ca.IssuerPending:
			who := r.plan.Next.Parent
			if who == "" {
				who = "the root above"
			}
			return client.RolloutWaiting, fmt.Sprintf("the key of %s is elsewhere, and it has to sign the request of issuer %s: chancery rollout complete %s",
				who, r.plan.Next.Issuer, r.id)
		case i < 0:
			return client.RolloutRunning, fmt.Sprintf("issuer %s is being made", name)
		case !listed(issuers[i]):
			return client.RolloutRunning, fmt.Sprintf("issuer %s has no CRL yet", name)
		}
	}
	return client.RolloutRunning, ""
}
