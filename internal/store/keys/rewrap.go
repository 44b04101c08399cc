package keys

import (
	"context"
	"fmt"
	"slices"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// pageOfKeys is how many keys are read, and rewrapped, in one transaction.
const pageOfKeys = 100

// Rewrap gives a recipient the wraps that it is entitled to and lacks, as far as this node can open the keys. It returns
// how many it made. A node may do this at any time, and again.
func (s *Store) Rewrap(ctx context.Context, recipient, actor string) (int, error) {
	if _, err := s.Recipients(ctx); err != nil { // which remembers the newest list
		return 0, err
	}
	return s.rewrap(ctx, opener{recipient: s.self, identity: s.node.identity}, recipient, actor, true)
}

// RecoverAll gives this node, whose recipient must be stored already, a fresh wrap of every key that it is entitled to,
// opened with the recovery key. A wrap that is there but wrong is replaced. It returns how many it made.
func (s *Store) RecoverAll(ctx context.Context, recovery *Recovery, actor string) (int, error) {
	by, err := s.recoveryRecipient(ctx, recovery)
	if err != nil {
		return 0, err
	}
	self, err := s.ownRecipient(ctx)
	if err != nil {
		return 0, err
	}
	// Who has the recovery key need not be asked whether its public half is the right one.
	err = s.db.Tx(ctx, func(tx *db.Tx) error { return s.Endorse(ctx, tx, by, recovery.Public(), actor, time.Now()) })
	if err != nil {
		return 0, err
	}
	n, err := s.rewrap(ctx, opener{recipient: by, identity: recovery.identity, recovery: true}, self.ID, actor, false)
	s.Forget()
	return n, err
}

// ownRecipient returns this node's recipient, if it is stored with this node's key.
func (s *Store) ownRecipient(ctx context.Context) (Recipient, error) {
	all, err := s.Recipients(ctx)
	if err != nil {
		return Recipient{}, err
	}
	at := slices.IndexFunc(all, func(r Recipient) bool { return r.ID == s.self })
	switch {
	case at < 0:
		return Recipient{}, fault.New(fault.NotFound, "node %s is not a key recipient", s.self)
	case all[at].PublicKey != s.node.Public():
		return Recipient{}, fault.New(fault.Conflict, "node %s is stored with the public key %s, but its key file has %s", s.self,
			all[at].PublicKey, s.node.Public())
	}
	return all[at], nil
}

// recoveryRecipient returns the id under which the recovery key is stored.
func (s *Store) recoveryRecipient(ctx context.Context, recovery *Recovery) (string, error) {
	all, err := s.Recipients(ctx)
	if err != nil {
		return "", err
	}
	for _, r := range all {
		if r.Kind == KindRecovery && r.PublicKey == recovery.Public() {
			return r.ID, nil
		}
	}
	return "", fault.New(fault.Invalid, "the recovery key %s is not one of this authority", recovery.Public()).
		WithHint("use the recovery key of this authority, which init wrote into offline/")
}

// rewrap goes through all keys in pages. Opening and wrapping happen outside of transactions; the transaction that stores
// the wraps makes sure that the recipient is still the one they were made for.
func (s *Store) rewrap(ctx context.Context, by opener, recipientID, actor string, onlyMissing bool) (int, error) {
	made := 0
	for after := ""; ; {
		var to Recipient
		var page []keyWraps
		seen := s.mark()
		err := s.db.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
			if to, err = s.recipientBy(ctx, tx, recipientID, seen); err != nil {
				return err
			}
			if !by.mayWrapTo(to) {
				return unendorsed(to)
			}
			page, err = readPage(ctx, tx, after, pageOfKeys)
			return err
		})
		if err != nil {
			return made, fmt.Errorf("rewrap keys to %s: %w", recipientID, err)
		}
		if len(page) == 0 {
			return made, nil
		}
		after = page[len(page)-1].id
		wraps := map[string][]byte{}
		for i := range page {
			k := &page[i]
			if !to.Entitled(k.purpose, k.owner) || onlyMissing && k.wraps[to.ID] != nil || k.wraps[by.recipient] == nil {
				continue
			}
			if wraps[k.id], err = k.rewrap(by, to); err != nil {
				return made, fmt.Errorf("rewrap key %s from %s to %s: %w", k.id, by.recipient, to.ID, err)
			}
		}
		n, err := s.storeWraps(ctx, by, to, wraps, actor)
		if err != nil {
			return made, fmt.Errorf("rewrap keys to %s: %w", to.ID, err)
		}
		made += n
	}
}

func unendorsed(r Recipient) error {
	return fault.New(fault.Conflict, "this node does not vouch for key recipient %s (%s, public key %s): %s", r.ID, r.Kind, r.PublicKey, r.why).
		WithHint("compare the public key with the one its owner shows; a node joins by chancery clone invite, join and approve")
}

func (k *keyWraps) rewrap(by opener, to Recipient) ([]byte, error) {
	// The key is decrypted, not just its wrap, so that a wrong wrap is not spread.
	_, dataKey, err := k.open(k.wraps[by.recipient], by.identity)
	if err != nil {
		return nil, err
	}
	defer clear(dataKey)
	return wrap(k.id, dataKey, to.PublicKey)
}

func (s *Store) storeWraps(ctx context.Context, by opener, to Recipient, wraps map[string][]byte, actor string) (int, error) {
	if len(wraps) == 0 {
		return 0, nil
	}
	now, seen := time.Now(), s.mark()
	var stored []string
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		stored = nil
		current, err := s.recipientBy(ctx, tx, to.ID, seen)
		if err != nil {
			return err
		}
		if current.PublicKey != to.PublicKey || !by.mayWrapTo(current) {
			return unendorsed(current)
		}
		for id, blob := range wraps {
			r, _, err := loadKey(ctx, tx, id, to.ID)
			if fault.Is(err, fault.NotFound) {
				continue // deleted meanwhile
			}
			if err != nil && !fault.Is(err, fault.Denied) {
				return err
			}
			if !current.Entitled(r.purpose, r.owner) {
				continue
			}
			if err := putWrap(ctx, tx, id, to.ID, blob, now); err != nil {
				return err
			}
			stored = append(stored, id)
		}
		if len(stored) == 0 {
			return nil
		}
		slices.Sort(stored)
		return s.log.Append(ctx, tx, audit.Event{
			Time: now, Actor: actor, Action: "key.rewrap", Object: to.ID, Detail: map[string]any{"keys": stored},
		})
	})
	return len(stored), err
}

// keyWraps is a key with all its wraps, by recipient.
type keyWraps struct {
	record
	wraps map[string][]byte
}

// readPage reads keys in the order of their ids. Two statements, so that a key without any wrap is seen too.
func readPage(ctx context.Context, tx *db.Tx, after string, limit int) ([]keyWraps, error) {
	rows, err := tx.Query(ctx, `SELECT id, purpose, owner, spki, ciphertext FROM sealed_key WHERE id > $1 ORDER BY id LIMIT $2`,
		after, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var page []keyWraps
	index := map[string]int{}
	for rows.Next() {
		k := keyWraps{wraps: map[string][]byte{}}
		if err := rows.Scan(&k.id, &k.purpose, &k.owner, &k.spki, &k.ciphertext); err != nil {
			return nil, err
		}
		index[k.id] = len(page)
		page = append(page, k)
	}
	if err := rows.Err(); err != nil || len(page) == 0 {
		return page, err
	}
	rows.Close()
	wraps, err := tx.Query(ctx, `SELECT key_id, recipient_id, wrap FROM key_wrap WHERE key_id IN
		(SELECT id FROM sealed_key WHERE id > $1 ORDER BY id LIMIT $2)`, after, limit)
	if err != nil {
		return nil, err
	}
	defer wraps.Close()
	for wraps.Next() {
		var key, recipient string
		var blob []byte
		if err := wraps.Scan(&key, &recipient, &blob); err != nil {
			return nil, err
		}
		if blob == nil {
			blob = []byte{} // an empty wrap is a wrong one, not a missing one
		}
		if i, ok := index[key]; ok {
			page[i].wraps[recipient] = blob
		}
	}
	return page, wraps.Err()
}
