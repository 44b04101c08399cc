package keys

import (
	"context"
	"fmt"

	"chancery/internal/store/db"
)

// Openable says which keys a node is entitled to, and how many of them it can open.
type Openable struct {
	Entitled, Open int
	Why            []string // of those that it cannot open; the first few
	InTokens       []string // of Why, those of keys in tokens

	Closed map[string]string // the IDs of those that it cannot open, and what Why says of each; nothing of more than those
}

const (
	// maxWhy bounds how many keys it is said of why they do not open, and maxClosed how many are named.
	maxWhy    = 5
	maxClosed = 200
)

// lacks notes a key that this node cannot open.
func (o *Openable) lacks(id, why string) (said bool) {
	if said = len(o.Why) < maxWhy; said {
		o.Why = append(o.Why, why)
	} else {
		why = ""
	}
	if o.Closed == nil {
		o.Closed = map[string]string{}
	}
	if len(o.Closed) < maxClosed {
		o.Closed[id] = why
	}
	return said
}

// Openable opens every key that this node is entitled to. Those that are open already cost nothing, but those in tokens sign.
func (s *Store) Openable(ctx context.Context) (o Openable, err error) {
	var self Recipient
	var all []keyWraps
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		if self, err = s.row(ctx, tx, s.self); err != nil {
			return err
		}
		all, err = s.heads(ctx, tx)
		return err
	})
	if err != nil {
		return o, err
	}
	for i := range all {
		if !self.Entitled(all[i].purpose, all[i].owner) {
			continue
		}
		o.Entitled++
		if _, err := s.Signer(ctx, all[i].id); err == nil {
			o.Open++
		} else {
			o.lacks(all[i].id, fmt.Sprintf("the %s key of %s does not open: %v", all[i].purpose, all[i].owner, err))
		}
	}
	return o, s.reachable(ctx, &o)
}

// Lacking are the IDs of the recipients that this node vouches for, and that lack a wrap which they are entitled to and which this
// node could make.
func (s *Store) Lacking(ctx context.Context) (map[string]bool, error) {
	all, err := s.Recipients(ctx)
	if err != nil {
		return nil, err
	}
	lacking := map[string]bool{}
	err = s.db.ReadSnapshot(ctx, func(tx *db.Tx) error {
		clear(lacking)
		found, err := s.heads(ctx, tx)
		if err != nil {
			return err
		}
		for i := range found {
			for _, r := range endorsed(all) {
				_, has := found[i].wraps[r.ID]
				_, mine := found[i].wraps[s.self]
				if mine && !has && r.Entitled(found[i].purpose, found[i].owner) {
					lacking[r.ID] = true
				}
			}
		}
		return nil
	})
	return lacking, err
}

// heads are all keys, and who has a wrap of each, without what is in them.
func (s *Store) heads(ctx context.Context, tx *db.Tx) ([]keyWraps, error) {
	rows, err := tx.Query(ctx, `SELECT id, purpose, owner, COALESCE(recipient_id, '') FROM sealed_key
		LEFT JOIN key_wrap ON key_id = id ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("list keys and who has them: %w", err)
	}
	defer rows.Close()
	var all []keyWraps
	for rows.Next() {
		var k keyWraps
		var recipient string
		if err := rows.Scan(&k.id, &k.purpose, &k.owner, &recipient); err != nil {
			return nil, fmt.Errorf("list keys and who has them: %w", err)
		}
		if n := len(all); n == 0 || all[n-1].id != k.id {
			k.wraps = map[string][]byte{}
			all = append(all, k)
		}
		all[len(all)-1].wraps[recipient] = []byte{}
	}
	return all, rows.Err()
}
