package ca

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// pruneBatch is how many rows one transaction of Prune deletes, so that issuance behind it waits for milliseconds.
const pruneBatch = 200

// Pruned says what Prune removed.
type Pruned struct {
	Certificates int64
	Requests     int64
}

// Prune removes certificates that ended, and requests that were decided, longer ago than the settings keep them; zero
// keeps them for ever. A certificate's revocation goes with it: RFC 5280 3.3 wants it on a CRL beyond the certificate's end
// once, and what is kept for a day at least was. Every node may call it: two that meet remove the same rows.
func (c *CA) Prune(ctx context.Context) (Pruned, error) {
	var done Pruned
	s, err := c.settings.Get(ctx)
	if err != nil {
		return done, err
	}
	now := time.Now()
	if kept := s.Retention.Certificates.Std(); kept > 0 {
		if err := c.pruneAll(ctx, &done.Certificates, func(tx *db.Tx) (int64, error) {
			if done.Certificates == 0 {
				if err := c.announcePrune(ctx, tx, now.Add(-kept), now); err != nil {
					return 0, err
				}
			}
			return pruneCertificates(ctx, tx, now.Add(-kept), now)
		}); err != nil {
			return done, fmt.Errorf("prune certificates: %w", err)
		}
	}
	if kept := s.Retention.Requests.Std(); kept > 0 {
		if err := c.pruneAll(ctx, &done.Requests, func(tx *db.Tx) (int64, error) {
			return tx.Exec(ctx, `DELETE FROM request WHERE id IN (SELECT id FROM request WHERE state <> 'pending' AND decided_at < $1 LIMIT $2)`,
				db.Micros(now.Add(-kept)), int64(pruneBatch))
		}); err != nil {
			return done, fmt.Errorf("prune requests: %w", err)
		}
	}
	return done, nil
}

// announcePrune records what is about to be removed, with the first of it: CheckAudit takes no other certificate for pruned.
func (c *CA) announcePrune(ctx context.Context, tx *db.Tx, before, now time.Time) error {
	var n int64
	err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM certificate WHERE not_after < $1`, db.Micros(before)).Scan(&n)
	if err != nil || n == 0 {
		return err
	}
	return c.audit.Append(ctx, tx, audit.Event{
		Time: now, Actor: "system:" + c.audit.Node(), Action: actionPrune, Detail: map[string]any{"endedBefore": before.UTC(), "certificates": n},
	})
}

// pruneAll runs batches until one is not full.
func (c *CA) pruneAll(ctx context.Context, total *int64, batch func(tx *db.Tx) (int64, error)) error {
	for {
		var n int64
		err := c.db.TxAlone(ctx, func(tx *db.Tx) (err error) {
			n, err = batch(tx)
			return err
		})
		if err != nil {
			return err
		}
		if *total += n; n < pruneBatch {
			return nil
		}
	}
}

// pruneCertificates leaves the identities that may still renew themselves.
func pruneCertificates(ctx context.Context, tx *db.Tx, before, now time.Time) (int64, error) {
	rows, err := tx.Query(ctx, `SELECT `+certificateColumns+certificateFrom+` WHERE c.not_after < $1 AND (c.profile <> $2 OR c.not_after < $3)
		ORDER BY c.not_after, c.id LIMIT $4`, db.Micros(before), IdentityProfile, db.Micros(now.Add(-IdentityGrace)), int64(pruneBatch))
	if err != nil {
		return 0, err
	}
	found, err := collect(rows)
	if err != nil {
		return 0, err
	}
	for _, r := range found {
		for _, name := range r.searchNames()[1:] {
			if _, err := tx.Exec(ctx, `DELETE FROM certificate_name WHERE name = $1 AND certificate = $2`, []byte(name), r.ID); err != nil {
				return 0, err
			}
		}
		if _, err := tx.Exec(ctx, `DELETE FROM revocation WHERE certificate = $1`, r.ID); err != nil {
			return 0, err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM revocation_upgrade WHERE certificate = $1`, r.ID); err != nil {
			return 0, err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM certificate WHERE id = $1`, r.ID); err != nil {
			return 0, err
		}
	}
	return int64(len(found)), nil
}
