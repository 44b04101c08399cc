package keys

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/db"
)

// Replaced says what ReplaceRecovery did.
type Replaced struct {
	ID   string      // of the new recipient
	Keys int         // that are wrapped to it
	Old  []Recipient // the recovery recipients whose wraps are gone
}

// ReplaceRecovery makes a new recovery key the only one that opens everything: it is added, every key is wrapped to it and opened
// again by it, and only then the wraps of the recovery keys before it are removed. Cut short at any point it leaves at least one
// recovery key that opens everything, and may be run again with another new key.
//
// Copies that were made before stay what they are: an old backup opens with the old key only, and who has both has the keys.
func (s *Store) ReplaceRecovery(ctx context.Context, recovery *Recovery, actor string) (Replaced, error) {
	next := Recipient{ID: "recovery-" + db.NewID(), Kind: KindRecovery, Name: "recovery key", PublicKey: recovery.Public()}
	done := Replaced{ID: next.ID}
	if _, err := s.ownRecipient(ctx); err != nil {
		return done, fmt.Errorf("replace the recovery key: %w", err)
	}
	now := time.Now()
	err := s.ChangeList(ctx, []Recipient{next}, nil, actor, now, func(tx *db.Tx) error { return s.AddRecipient(ctx, tx, next, actor, now) })
	if err != nil {
		return done, fmt.Errorf("replace the recovery key: %w", err)
	}
	if _, err := s.Rewrap(ctx, next.ID, actor); err != nil {
		return done, fmt.Errorf("replace the recovery key: %w", err)
	}
	findings, _, err := s.Check(ctx, recovery)
	if err != nil {
		return done, fmt.Errorf("replace the recovery key: %w", err)
	}
	for _, f := range findings {
		if f.Recipient == next.ID {
			return done, fault.New(fault.Conflict, "the new recovery key would not open key %s: %s; the old one stays", f.Key, f.Message).
				WithHint("chancery doctor, then run this again")
		}
	}
	old, err := s.formerRecoveries(ctx, next.ID)
	if err != nil {
		return done, fmt.Errorf("replace the recovery key: %w", err)
	}
	err = s.ChangeList(ctx, nil, old, actor, now, func(tx *db.Tx) error {
		done.Old, done.Keys = nil, 0
		// A node that does not vouch for the new recipient may have made a key meanwhile.
		var lacking int64
		err := tx.QueryRow(ctx, `SELECT COUNT(*), (SELECT COUNT(*) FROM key_wrap WHERE recipient_id = $1) FROM sealed_key k
			WHERE NOT EXISTS (SELECT 1 FROM key_wrap w WHERE w.key_id = k.id AND w.recipient_id = $1)`, next.ID).Scan(&lacking, &done.Keys)
		if err != nil {
			return err
		}
		if lacking > 0 {
			return fault.New(fault.Conflict, "%d keys are not wrapped to the new recovery key, so the old one stays", lacking).
				WithHint("run this again; the nodes that made them vouch for the new recipient first")
		}
		all, err := s.rows(ctx, tx)
		if err != nil {
			return err
		}
		for _, r := range all {
			if r.Kind != KindRecovery || r.ID == next.ID {
				continue
			}
			if err := s.RemoveRecipient(ctx, tx, r.ID, actor, now); err != nil {
				return err
			}
			done.Old = append(done.Old, r)
		}
		return nil
	})
	if err != nil {
		return done, fmt.Errorf("replace the recovery key: %w", err)
	}
	return done, nil
}

// formerRecoveries are the IDs of the recovery recipients but the new one.
func (s *Store) formerRecoveries(ctx context.Context, next string) (ids []string, err error) {
	all, err := s.Recipients(ctx)
	for _, r := range all {
		if r.Kind == KindRecovery && r.ID != next {
			ids = append(ids, r.ID)
		}
	}
	return ids, err
}
