package revocation

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"chancery/internal/store/db"
)

// The CRLs that a node keeps in memory, so that it can still give them out when no database answers. A longer list, or one more
// than the shelf holds, is given out from the database only.
const (
	shelfMost    = 64 << 20 // octets in all
	shelfLongest = 8 << 20  // octets of one list: some 170,000 entries
	shelfEvery   = time.Second
)

// shelf is what is kept of lists in force.
type shelf struct {
	mu     sync.Mutex
	lists  map[place]*shelved // guarded by mu
	size   int64              // guarded by mu
	looked time.Time          // used by Follow alone
}

type place struct {
	issuer string // ID
	scope  Scope
}

type shelved struct {
	list   *List
	octets []byte
}

func (s *shelf) at(p place) *shelved {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lists[p]
}

// replace puts a list in the place of the one before it, or takes that away; a list that does not fit is left out.
func (s *shelf) replace(p place, next *shelved) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.lists[p]; old != nil {
		s.size -= old.list.Size
		delete(s.lists, p)
	}
	if next == nil || s.size+next.list.Size > shelfMost {
		return
	}
	if s.lists == nil {
		s.lists = map[place]*shelved{}
	}
	s.lists[p] = next
	s.size += next.list.Size
}

// stock brings the shelf up to what is in force. SQLite is never away.
func (s *Service) stock(ctx context.Context, now time.Time) error {
	if age := now.Sub(s.shelf.looked); s.db.Dialect() == db.SQLite || age >= 0 && age < shelfEvery {
		return nil
	}
	inForce, err := s.inForce(ctx)
	if err != nil {
		return fmt.Errorf("read which CRLs are in force: %w", err)
	}
	s.shelf.mu.Lock()
	var gone []place
	for p := range s.shelf.lists {
		if inForce[p] == "" {
			gone = append(gone, p)
		}
	}
	s.shelf.mu.Unlock()
	for _, p := range gone {
		s.shelf.replace(p, nil)
	}
	for p, id := range inForce {
		if kept := s.shelf.at(p); kept != nil && kept.list.ID == id {
			continue
		}
		var l *List
		err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
			l, err = currentList(ctx, tx, p.issuer, p.scope)
			return err
		})
		if err != nil {
			return fmt.Errorf("keep CRL %s: %w", id, err)
		}
		if l == nil || l.Size > shelfLongest {
			continue // it changed meanwhile
		}
		var octets bytes.Buffer
		octets.Grow(int(l.Size))
		if err := s.WriteTo(ctx, &octets, l); err != nil {
			return fmt.Errorf("keep CRL %s: %w", l.ID, err)
		}
		s.shelf.replace(p, &shelved{l, octets.Bytes()})
	}
	s.shelf.looked = now
	return nil
}

// inForce are the IDs of the lists in force that are short enough to be kept.
func (s *Service) inForce(ctx context.Context) (map[place]string, error) {
	ids := map[place]string{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		clear(ids)
		rows, err := tx.Query(ctx, `SELECT id, issuer, scope FROM crl WHERE state = 'current' AND size <= $1`, int64(shelfLongest))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id string
			var p place
			if err := rows.Scan(&id, &p.issuer, &p.scope); err != nil {
				return err
			}
			ids[p] = id
		}
		return rows.Err()
	})
	return ids, err
}
