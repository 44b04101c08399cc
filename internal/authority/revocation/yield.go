package revocation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

// An issuer's key may lie in a token that the holder of the lease does not reach, and that another node does. So the holder gives the
// lease up then; the others look for it every quarter of a second. Where nobody takes it, or nobody else reaches the token either,
// this node takes it again for the sake of the other issuers, and keeps it for a while.
const (
	yieldLook  = 3 * time.Second  // how often the holder has its tokens sign
	yieldPause = 3 * time.Second  // how long it leaves the lease to others
	yieldAgain = 60 * time.Second // it does so no more often
)

// errYield ends a turn at the lease.
var errYield = errors.New("a token with an issuer's key is not reached from here, and another node may reach it")

// yield returns errYield when this node had better leave the lease to another one. last is when it did so before.
func (s *Service) yield(ctx context.Context, lease db.Lease, last time.Time) error {
	for {
		if err := sleep(ctx, max(yieldLook, time.Until(last.Add(yieldAgain)))); err != nil {
			return err
		}
		away, err := s.away(ctx, lease)
		if err != nil && ctx.Err() == nil {
			s.logger.WarnContext(ctx, "it cannot be seen whether tokens are reached", "error", err)
		}
		if away != nil {
			return fmt.Errorf("%w: %w", errYield, away)
		}
	}
}

// away says why a token is not reached, where somebody else could take the lease.
func (s *Service) away(ctx context.Context, lease db.Lease) (why, err error) {
	inTokens, err := s.keys.InTokens(ctx)
	if err != nil || len(inTokens) == 0 {
		return nil, err
	}
	if now, held, err := s.db.Held(ctx, lease); err != nil || !held || now.Pinned != "" { // it may have been pinned since
		return nil, err
	}
	all, err := s.keys.Recipients(ctx)
	if err != nil {
		return nil, err
	}
	others := slices.ContainsFunc(all, func(r keys.Recipient) bool {
		return r.ID != s.keys.Self() && r.Kind == keys.KindNode && r.Entitled(keys.Issuer, "")
	})
	if !others {
		return nil, nil
	}
	issuers, err := s.ca.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range inTokens {
		if !slices.ContainsFunc(issuers, func(i *ca.Issuer) bool { return i.KeyID == k.ID && signs(i, time.Now()) }) {
			continue
		}
		if _, err := s.keys.Reach(ctx, k); err != nil {
			return err, nil
		}
	}
	return nil, nil
}
