package trust

import (
	"context"
	"errors"
	"fmt"
	"time"

	"chancery/client"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

const (
	// releaseEvery is how often a node looks for announced certificates that all hold who pin them.
	releaseEvery = time.Second
	// pruneEvery is how often it looks for what has ended. Who asks for a set meanwhile is not given it: this wakes those who wait.
	pruneEvery = 10 * time.Second
)

// Run takes out what has ended or is revoked, and releases announced certificates, until ctx ends. Every node does so: what one did, another
// finds done.
func (s *Service) Run(ctx context.Context) error {
	ticker := time.NewTicker(releaseEvery)
	defer ticker.Stop()
	failing := false
	var pruned time.Time
	for {
		now, err := time.Now(), error(nil)
		if age := now.Sub(pruned); age < 0 || age >= pruneEvery {
			err, pruned = s.Prune(ctx, now), now
		}
		err = errors.Join(err, s.Release(ctx, now))
		if err != nil && ctx.Err() == nil && !failing {
			s.Logger.WarnContext(ctx, "the pools' trust is not tended, and is tried again", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Prune takes certificates out that have ended: out of every version, since one ended CA keeps some consumers from starting.
// Where no rollout works on the pool, a new version says so; and there what is revoked of renewed issuers leaves too.
func (s *Service) Prune(ctx context.Context, now time.Time) error {
	if err := s.DB.JudgeClock(ctx, now); err != nil {
		return err
	}
	return errors.Join(s.pruneEnded(ctx, now), s.leaveRevoked(ctx, now))
}

func (s *Service) pruneEnded(ctx context.Context, now time.Time) error {
	ended := func(tx *db.Tx) ([]*entry, []*pinned, error) {
		entries, err := readEntries(ctx, tx, `pruned_at = 0 AND not_after <= $1`, db.Micros(now))
		if err != nil {
			return nil, nil, err
		}
		leaves, err := readPinned(ctx, tx, `not_after <= $1`, db.Micros(now))
		return entries, leaves, err
	}
	some := false
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		entries, leaves, err := ended(tx)
		some = len(entries)+len(leaves) > 0
		return err
	})
	if err != nil || !some {
		return err
	}
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		entries, leaves, err := ended(tx)
		if err != nil {
			return err
		}
		pools := map[string]bool{}
		for _, e := range entries {
			pools[e.pool] = true
			if err := s.pruneEntry(ctx, tx, e, now); err != nil {
				return err
			}
		}
		for _, p := range leaves {
			pools[p.pool] = true
			if err := p.remove(ctx, tx); err != nil {
				return err
			}
		}
		for name := range pools {
			if err := s.renumber(ctx, tx, name, now); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Service) pruneEntry(ctx context.Context, tx *db.Tx, e *entry, now time.Time) error {
	if _, err := tx.Exec(ctx, `UPDATE trust_entry SET pruned_at = $1 WHERE id = $2`, db.Micros(now), e.id); err != nil {
		return fmt.Errorf("prune trust entry %s: %w", e.id, err)
	}
	if _, err := tx.Exec(ctx, `DELETE FROM trust_crl WHERE entry = $1`, e.id); err != nil {
		return fmt.Errorf("prune the CRL of trust entry %s: %w", e.id, err)
	}
	st, err := StateOf(ctx, tx, e.pool)
	if err != nil || !st.has(e) {
		return err // it had left long before
	}
	return s.auditPrune(ctx, tx, e, "ended", now)
}

// auditPrune records that an entry leaves by itself, and why.
func (s *Service) auditPrune(ctx context.Context, tx *db.Tx, e *entry, because string, now time.Time) error {
	detail := map[string]any{"pool": e.pool, "purpose": e.purpose, "kind": e.kind, "subject": e.certificate.Subject.String(), "fingerprint": e.fingerprint}
	switch because {
	case "ended":
		detail["ended"] = stamp(e.notAfter)
	default:
		detail["because"] = because
	}
	return s.Audit.Append(ctx, tx, audit.Event{Time: now, Actor: s.actor(), Action: "trust.prune", Object: e.id, Detail: detail})
}

// renumber makes a new version of what is left, unless a rollout works on the pool: it has its own versions, in which what has
// ended is no longer either.
func (s *Service) renumber(ctx context.Context, tx *db.Tx, pool string, now time.Time) error {
	st, found, err := readState(ctx, tx, pool)
	if err != nil || !found {
		return err
	}
	if st.Rollout != "" {
		return touch(ctx, tx, pool, now)
	}
	all, err := readEntries(ctx, tx, `pool = $1`, pool)
	if err != nil {
		return err
	}
	version, err := stage(ctx, tx, pool, st, all, nil, func(*entry) bool { return false }, now)
	if err != nil {
		return err
	}
	return s.Adopt(ctx, tx, pool, version)
}

// actor is in whose name this node acts of itself.
func (s *Service) actor() string { return "system:" + s.Audit.Node() }

// announcements are the certificates of placements that their peers pin, as entries.
func (s *Service) announcements(ctx context.Context, tx *db.Tx, pool string) ([]client.TrustEntry, error) {
	all, err := readPinned(ctx, tx, `pool = $1`, pool)
	if err != nil {
		return nil, err
	}
	var waiting []*pinned
	for _, p := range all {
		if p.state == announced {
			waiting = append(waiting, p)
		}
	}
	lacking, err := s.lacking(ctx, tx, waiting, maxNamed+1)
	if err != nil {
		return nil, err
	}
	var out []client.TrustEntry
	for _, p := range all {
		e := client.TrustEntry{
			ID: p.host + "/" + p.placement + "/" + p.serial, Pool: p.pool, Purpose: p.purpose, Kind: client.TrustPinned,
			Subject: p.certificate.Subject.String(), Fingerprint: p.fingerprint, State: "trusted", NotAfter: p.notAfter,
			PEM: encode(p.certificate.Raw), CreatedAt: p.created, Comment: "of placement " + p.placement,
		}
		if p.state == announced {
			e.State, e.Comment = "announced", e.Comment+", waits for "+naming(lacking[p])
		}
		if e.Host, err = s.HostName(ctx, tx, p.host); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}
