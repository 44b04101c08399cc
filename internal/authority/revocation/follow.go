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

// followRecent is how many of an issuer's changes are known one by one where all answers are dropped.
const followRecent = 1_000

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
	if s.answers.begin(s.db.History()) {
		clear(applied)
	}
	now := time.Now() // before looking
	asOf := now.Add(-s.db.Age(now))
	var seen *changes
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		seen, err = s.changes(ctx, tx, applied)
		return err
	})
	if err != nil {
		return err
	}
	s.apply(seen, applied)
	switch {
	case !seen.lacks:
		s.answers.looked(now)
		s.ca.ForgetChanges(now)
	case !seen.ended: // what this node alone has changed is not in it
		s.answers.looked(asOf)
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

// changes are what one state of the database shows of what changed.
type changes struct {
	last    map[string]int64           // by issuer: the newest
	of      map[string][]changedSerial // by issuer: those after what was applied; of issuers that are not in it they are too many, or not known
	recent  map[string][]changedSerial // by issuer that is not in of: the newest, where they are seen elsewhere than at the server beside the node
	lacks   bool                       // it lacks something that this node was told is done
	ended   bool                       // it may be of a history that has ended, whose numbers mean something else
	standby bool                       // it is that of the server beside the node
}

// changedSerial is a certificate whose status changed, with the number of that.
type changedSerial struct {
	serial *big.Int
	change int64
}

// changes reads them all from one state, so that nothing is between the numbers and what they are of.
func (s *Service) changes(ctx context.Context, tx *db.Tx, applied map[string]int64) (*changes, error) {
	c := &changes{of: make(map[string][]changedSerial), recent: make(map[string][]changedSerial), lacks: tx.Lacks(), ended: tx.MayHaveEnded(), standby: tx.AtStandby()}
	if c.ended {
		return c, nil
	}
	var err error
	if c.last, err = ca.LastChanges(ctx, tx); err != nil {
		return nil, err
	}
	followed := s.answers.hasLooked()
	for id, change := range c.last {
		known, ok := applied[id]
		switch {
		case ok && known >= change:
		case (ok || followed) && change-known <= followAtOnce: // nothing had changed under an issuer that was not there
			c.of[id], err = changedSince(ctx, tx, id, known)
		case s.elsewhere(c):
			c.recent[id], err = changedSince(ctx, tx, id, change-followRecent)
		}
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

// elsewhere says that there is a server beside the node, and that these changes were not seen there.
func (s *Service) elsewhere(c *changes) bool { return s.db.ReadsStandby() && !c.standby }

func changedSince(ctx context.Context, tx *db.Tx, id string, after int64) (all []changedSerial, err error) {
	issuer, err := ca.IssuerIn(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	for changed, err := range ca.EachChange(ctx, tx, issuer, ca.Changes{Partition: -1, After: after}) {
		if err != nil {
			return nil, err
		}
		e, err := crl.ParseEntry(changed.Entry)
		if err != nil {
			return nil, fmt.Errorf("read the stored entry of change %d: %w", changed.Change, err)
		}
		all = append(all, changedSerial{e.Serial, changed.Change})
	}
	return all, nil
}

// apply drops the answers about what has changed. What was seen elsewhere than at the server beside the node is noted, for when nothing but
// that can be read.
func (s *Service) apply(seen *changes, applied map[string]int64) {
	elsewhere := s.elsewhere(seen)
	for id, change := range seen.last {
		if known, ok := applied[id]; ok && known >= change {
			continue
		}
		if all, ok := seen.of[id]; ok {
			s.answers.drop(id, all, change, elsewhere)
		} else { // what is cached of before is older than the change, or as new
			s.answers.dropAll(id, seen.recent[id], change, elsewhere)
		}
		applied[id] = change
	}
	if seen.standby {
		s.answers.shown(seen.last)
	}
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
