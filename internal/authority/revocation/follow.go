package revocation

import (
	"context"
	"fmt"
	"math/big"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/pki/crl"
	"chancery/internal/store/db"
)

// followEvery is how often a node looks for changes that concern the answers it keeps. A revocation anywhere is seen in
// every node's answers after that, and what the database needs to replicate it.
const followEvery = 200 * time.Millisecond

// followAtOnce is up to how many changes of an issuer answers are dropped one by one; after more, all of them are.
const followAtOnce = 10_000

// Follow keeps the cached answers of this node true: it drops those about certificates whose status changed, on whichever
// node that was. While the database is away it waits; then nothing can be revoked either. It returns when ctx ends.
func (s *Service) Follow(ctx context.Context) error {
	applied := make(map[string]int64)
	ticker := time.NewTicker(followEvery)
	defer ticker.Stop()
	for failing := false; ; {
		changed := s.ca.Changed() // before looking, so that nothing is missed
		err := s.follow(ctx, applied)
		if err != nil && ctx.Err() == nil {
			if !failing {
				s.logger.WarnContext(ctx, "changes of status cannot be followed", "error", err)
			}
			if err := sleep(ctx, time.Second); err != nil {
				return err
			}
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		case <-changed:
		}
	}
}

func (s *Service) follow(ctx context.Context, applied map[string]int64) error {
	var last map[string]int64
	if s.answers.begin(s.db.History()) {
		clear(applied)
	}
	now := time.Now() // before looking
	whole := false
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		whole = !tx.Lacks() // what lacks a write may be of a history that has ended
		last, err = ca.LastChanges(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}
	if whole {
		if err := s.apply(ctx, last, applied); err != nil {
			return err
		}
		s.answers.looked(now)
		s.ca.ForgetChanges(now)
	}
	s.prepare(ctx, now)
	if err := s.stock(ctx, now); err != nil && !s.bare {
		s.bare = true
		s.logger.WarnContext(ctx, "CRLs are not kept for when the database is away", "error", err)
	} else if err == nil {
		s.bare = false
	}
	return nil
}

// apply drops the answers about what has changed up to the last changes.
func (s *Service) apply(ctx context.Context, last, applied map[string]int64) error {
	for id, change := range last {
		known, ok := applied[id]
		if ok && known >= change {
			continue
		}
		switch {
		case !ok: // the first look: what was cached before it is older than the change, or as new
			s.answers.drop(id, nil, change)
			s.answers.clear()
		default:
			if err := s.dropChanged(ctx, id, known, change); err != nil {
				return err
			}
		}
		applied[id] = change
	}
	return nil
}

// prepare loads the responders before they are asked for: when they are, the database may be away.
func (s *Service) prepare(ctx context.Context, now time.Time) {
	if age := now.Sub(s.prepared); age >= 0 && age < responderLook {
		return
	}
	issuers, err := s.ca.Issuers(ctx)
	for _, issuer := range issuers {
		if err == nil && signs(issuer, now) {
			_, err = s.respondersOf(ctx, issuer, now)
		}
	}
	if err != nil {
		s.logger.WarnContext(ctx, "OCSP responders are not prepared, and are tried again", "error", err)
		return
	}
	s.prepared = now
}

func (s *Service) dropChanged(ctx context.Context, id string, after, change int64) error {
	issuer, err := s.issuerByID(ctx, id)
	if err != nil {
		return err
	}
	if change-after > followAtOnce {
		s.answers.drop(id, nil, change)
		s.answers.clear()
		return nil
	}
	var serials []*big.Int
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		serials = serials[:0]
		for changed, err := range ca.EachChange(ctx, tx, issuer, ca.Changes{Partition: -1, After: after}) {
			if err != nil {
				return err
			}
			e, err := crl.ParseEntry(changed.Entry)
			if err != nil {
				return fmt.Errorf("read the stored entry of change %d: %w", changed.Change, err)
			}
			serials = append(serials, e.Serial)
		}
		return nil
	})
	if err == nil {
		s.answers.drop(id, serials, change)
	}
	return err
}
