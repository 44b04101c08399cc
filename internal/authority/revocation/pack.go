package revocation

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/store/db"
)

const (
	// packFrom is how many loose entries of a partition are worth a segment, and packTo how many a segment has at most:
	// some 400 KiB.
	packFrom = 1024
	packTo   = 8192
)

// segment is a run of entries in one row.
type segment struct {
	packed   []byte // the entries, one behind the other
	notAfter []byte // 8 octets for each, seconds since 1970: when its certificate ends
	earliest int64  // the least of them; meaningless in an empty segment
}

func (g *segment) entries() int { return len(g.notAfter) / 8 }

func (g *segment) add(entry []byte, notAfter int64) {
	if g.entries() == 0 || notAfter < g.earliest {
		g.earliest = notAfter
	}
	g.packed = append(g.packed, entry...)
	g.notAfter = binary.BigEndian.AppendUint64(g.notAfter, uint64(notAfter))
}

// addFrom takes over the entries of another segment whose certificates end at cutoff or later.
func (g *segment) addFrom(other *segment, cutoff int64) error {
	rest := other.packed
	for i := range other.entries() {
		size := entrySize(rest)
		if size == 0 {
			return errors.New("stored CRL segment is damaged: its entries are not whole")
		}
		if notAfter := int64(binary.BigEndian.Uint64(other.notAfter[8*i:])); notAfter >= cutoff {
			g.add(rest[:size], notAfter)
		}
		rest = rest[size:]
	}
	if len(rest) > 0 {
		return errors.New("stored CRL segment is damaged: it has more entries than dates")
	}
	return nil
}

// entrySize is the length of the DER SEQUENCE that begins b, 0 where there is none that is whole. No entry reaches 256
// octets: a serial has 32 at most.
func entrySize(b []byte) int {
	size := 0
	switch {
	case len(b) < 3 || b[0] != 0x30:
		return 0
	case b[1] < 0x80:
		size = 2 + int(b[1])
	case b[1] == 0x81:
		size = 3 + int(b[2])
	}
	if size > len(b) {
		return 0
	}
	return size
}

func (g *segment) insert(ctx context.Context, tx *db.Tx, issuer string, partition int) error {
	_, err := tx.Exec(ctx, `INSERT INTO crl_segment (id, issuer, crl_partition, entries, size, earliest, packed, not_after)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		db.NewID(), issuer, partition, g.entries(), len(g.packed), g.earliest*1e6, g.packed, g.notAfter)
	if err != nil {
		return fmt.Errorf("store a CRL segment of issuer %s: %w", issuer, err)
	}
	return nil
}

// packedUpTo is the change up to which the permanent revocations of a partition stand in segments.
func packedUpTo(ctx context.Context, tx *db.Tx, issuer string, partition int) (change int64, err error) {
	err = tx.QueryRow(ctx, `SELECT change FROM crl_packed WHERE issuer = $1 AND crl_partition = $2`, issuer,
		partition).Scan(&change)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read what is packed of issuer %s: %w", issuer, err)
	}
	return change, nil
}

// pack moves loose entries of a partition into segments, until few are left. Each segment is one transaction with the mark
// that says how far packing came, so a crash repeats nothing and loses nothing.
func (s *Service) pack(ctx context.Context, lease db.Lease, issuer *ca.Issuer, partition int) error {
	for {
		var (
			g    segment
			from int64
			upTo int64
		)
		err := s.db.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
			if from, err = packedUpTo(ctx, tx, issuer.ID, partition); err != nil {
				return err
			}
			g, upTo = segment{}, from
			loose := ca.Changes{Partition: partition, After: from, States: []ca.State{ca.Revoked}, Limit: packTo}
			for changed, err := range ca.EachChange(ctx, tx, issuer, loose) {
				if err != nil {
					return err
				}
				g.add(changed.Entry, changed.NotAfter.Unix())
				upTo = changed.Change
			}
			return nil
		})
		if err != nil || g.entries() < packFrom {
			return err
		}
		if err := s.storePacked(ctx, lease, issuer.ID, partition, &g, from, upTo); err != nil {
			return err
		}
	}
}

func (s *Service) storePacked(ctx context.Context, lease db.Lease, issuer string, partition int, g *segment, from,
	upTo int64) error {
	return s.db.TxAlone(ctx, func(tx *db.Tx) error {
		if err := lease.Check(ctx, tx); err != nil {
			return err
		}
		have, err := packedUpTo(ctx, tx, issuer, partition)
		if err != nil {
			return err
		}
		if have != from {
			return fmt.Errorf("segments of issuer %s came to change %d while %d was packed", issuer, have, from)
		}
		if err := g.insert(ctx, tx, issuer, partition); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO crl_packed (issuer, crl_partition, change) VALUES ($1, $2, $3)
			ON CONFLICT (issuer, crl_partition) DO UPDATE SET change = excluded.change`, issuer, partition, upTo)
		if err != nil {
			return fmt.Errorf("record what is packed of issuer %s: %w", issuer, err)
		}
		return nil
	})
}

// storedSegment is a segment with its row's id.
type storedSegment struct {
	id string
	segment
}

// purge rewrites the segments that hold entries of certificates which ended before cutoff, without those. What is left of
// several becomes one, so segments stay few.
func (s *Service) purge(ctx context.Context, lease db.Lease, issuer *ca.Issuer, partition int, cutoff time.Time) error {
	var (
		merged segment
		gone   []string
		after  string
	)
	store := func() error {
		if len(gone) == 0 {
			return nil
		}
		err := s.replaceSegments(ctx, lease, issuer.ID, partition, gone, &merged)
		merged, gone = segment{}, nil
		return err
	}
	for {
		next, err := s.nextExpiring(ctx, issuer.ID, partition, after, cutoff)
		if err != nil {
			return err
		}
		if next == nil {
			return store()
		}
		after = next.id
		if merged.entries()+next.entries() > 2*packTo {
			if err := store(); err != nil {
				return err
			}
		}
		if err := merged.addFrom(&next.segment, cutoff.Unix()); err != nil {
			return err
		}
		gone = append(gone, next.id)
		if merged.entries() >= packTo || len(gone) == 64 {
			if err := store(); err != nil {
				return err
			}
		}
	}
}

// purgeExpired takes out of the segments of an issuer what its lists need no more.
func (s *Service) purgeExpired(ctx context.Context, lease db.Lease, issuer *ca.Issuer) error {
	var cutoff time.Time
	err := s.db.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		cutoff, err = expiredSince(ctx, tx, issuer.ID)
		return err
	})
	if err != nil || cutoff.IsZero() {
		return err
	}
	for partition := range partitions(issuer) {
		if err := s.purge(ctx, lease, issuer, partition, cutoff); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) nextExpiring(ctx context.Context, issuer string, partition int, after string,
	cutoff time.Time) (*storedSegment, error) {
	var g storedSegment
	err := s.db.ReadSnapshot(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT id, packed, not_after FROM crl_segment
			WHERE issuer = $1 AND crl_partition = $2 AND id > $3 AND earliest < $4 ORDER BY id LIMIT 1`,
			issuer, partition, after, cutoff.Unix()*1e6).Scan(&g.id, &g.packed, &g.notAfter)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read a CRL segment of issuer %s: %w", issuer, err)
	}
	return &g, nil
}

func (s *Service) replaceSegments(ctx context.Context, lease db.Lease, issuer string, partition int, gone []string,
	by *segment) error {
	return s.db.TxAlone(ctx, func(tx *db.Tx) error {
		if err := lease.Check(ctx, tx); err != nil {
			return err
		}
		for _, id := range gone {
			if _, err := tx.Exec(ctx, `DELETE FROM crl_segment WHERE id = $1`, id); err != nil {
				return fmt.Errorf("remove CRL segment %s: %w", id, err)
			}
		}
		if by.entries() == 0 {
			return nil
		}
		return by.insert(ctx, tx, issuer, partition)
	})
}
