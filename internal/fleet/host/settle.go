package host

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

const (
	settleFor   = 3 * time.Second
	settleEvery = 50 * time.Millisecond
)

// settle waits until the CRLs of the host's pool show what was revoked before the call, so that an operator who revokes and
// then has an agent converge once finds the revocation placed. Where a list takes longer, because it is long, signed offline
// or its signer is away, the host is told what there is: a later list wakes it.
func (s *Service) settle(ctx context.Context, by access.Principal) error {
	var wanted map[string]int64
	var pool string
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		r, err := ofPrincipal(ctx, tx, by.ID)
		if r != nil {
			pool = r.pool
		}
		if err == nil {
			wanted, err = ca.LastChanges(ctx, tx)
		}
		return err
	})
	if err != nil || pool == "" {
		return err
	}
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(settleFor); ; {
		issuers, err := s.Trust.IssuersOf(ctx, pool)
		if err != nil {
			return err
		}
		var numbers map[string]revocation.Numbered
		var state trust.State
		err = s.DB.Read(ctx, func(tx *db.Tx) (err error) {
			if state, err = trust.StateOf(ctx, tx, pool); err != nil {
				return err
			}
			numbers, err = revocation.CurrentNumbers(ctx, tx)
			return err
		})
		if err != nil {
			return fmt.Errorf("see whether the CRLs of pool %s are signed: %w", pool, err)
		}
		if !awaited(issuers, numbers, wanted, set.CRL.WholeUpTo) || time.Now().After(deadline) {
			s.Trust.Forget(pool, issuers, state, numbers)
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.waiting.ended:
			return nil
		case <-time.After(settleEvery):
		}
	}
}

// awaited reports whether a list is about to be signed that shows one of the changes.
func awaited(issuers []*ca.Issuer, numbers map[string]revocation.Numbered, changes map[string]int64, wholeUpTo int64) bool {
	for _, i := range issuers {
		n, listed := numbers[i.ID]
		if listed && i.KeyID != "" && n.Change < changes[i.ID] && n.Entries < wholeUpTo {
			return true
		}
	}
	return false
}
