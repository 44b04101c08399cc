package revocation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/store/db"
)

const (
	// maintainEvery is how often the holder looks after responders and segments.
	maintainEvery = 2 * time.Second
	// pruneEvery is how often it looks for lists that nobody needs any more.
	pruneEvery = 10 * time.Minute
	// lingering is how long the octets of a list stay after another one took its place, for those who are reading it.
	lingering = time.Hour
)

// maintain does what nobody waits for. left are the lists that nobody will publish.
func (s *Service) maintain(ctx context.Context, lease db.Lease, left []string) error {
	if err := s.sweep(ctx, lease, left); err != nil {
		return err
	}
	packed := make(map[string]int64)
	var (
		pruned, told time.Time
		last         string
	)
	for {
		now := time.Now()
		err := s.maintainOnce(ctx, lease, packed, now)
		if now.Sub(pruned) >= pruneEvery {
			err = errors.Join(err, s.prune(ctx, lease, now), s.dropResponders(ctx, lease, now))
			pruned = now
		}
		// What goes wrong goes wrong every time; once a minute is enough to know of it.
		if err != nil && ctx.Err() == nil && (err.Error() != last || now.Sub(told) > time.Minute) {
			s.logger.ErrorContext(ctx, "upkeep of CRLs and responders failed", "error", err)
			last, told = err.Error(), now
		}
		if err := sleep(ctx, maintainEvery); err != nil {
			return err
		}
	}
}

// maintainOnce keeps the responder of every issuer, and packs where enough was revoked since packed was noted. One issuer
// that fails holds up no other.
func (s *Service) maintainOnce(ctx context.Context, lease db.Lease, packed map[string]int64, now time.Time) error {
	issuers, err := s.ca.Issuers(ctx)
	if err != nil {
		return err
	}
	changes, _, err := s.pending(ctx)
	if err != nil {
		return err
	}
	var failed []error
	for _, issuer := range issuers {
		if !signs(issuer, now) {
			continue
		}
		if err := s.keepResponder(ctx, lease, issuer, now); err != nil {
			failed = append(failed, err)
		}
		// With many partitions each gets its share of the changes only.
		if changes[issuer.ID]-packed[issuer.ID] < int64(packFrom*max(1, partitions(issuer)/4)) {
			continue
		}
		if err := s.packAll(ctx, lease, issuer); err != nil {
			failed = append(failed, err)
			continue
		}
		packed[issuer.ID] = changes[issuer.ID]
	}
	return errors.Join(failed...)
}

func (s *Service) packAll(ctx context.Context, lease db.Lease, issuer *ca.Issuer) error {
	for partition := range partitions(issuer) {
		if err := s.pack(ctx, lease, issuer, partition); err != nil {
			return err
		}
	}
	return nil
}

// leftBehind are the lists that earlier holders were making. It is asked before this one makes any; the others' epochs are over by then, and each
// chunk is stored under its check, so there will be no more of theirs.
func (s *Service) leftBehind(ctx context.Context) (ids []string, err error) {
	err = s.db.ReadSnapshot(ctx, func(tx *db.Tx) error {
		ids = nil
		rows, err := tx.Query(ctx, `SELECT id FROM crl WHERE state = 'building' ORDER BY id`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("look for CRLs that were not finished: %w", err)
	}
	return ids, nil
}

// sweep removes what earlier holders left of lists that they did not publish, and nothing of what is made beside it.
func (s *Service) sweep(ctx context.Context, lease db.Lease, left []string) error {
	for some := range slices.Chunk(left, step) {
		args, where := make([]any, len(some)), make([]string, len(some))
		for i, id := range some {
			args[i], where[i] = id, fmt.Sprintf("$%d", i+1)
		}
		if _, err := s.removeLists(ctx, lease, `state = 'building' AND id IN (`+strings.Join(where, ", ")+`)`, args...); err != nil {
			return err
		}
	}
	return nil
}

// prune removes lists that are past. Of complete lists that were scheduled the octets stay as long as the settings say; of
// the others, which may be made at every revocation, the octets go soon and the rows stay.
func (s *Service) prune(ctx context.Context, lease db.Lease, now time.Time) error {
	set, err := s.settings.Get(ctx)
	if err != nil {
		return err
	}
	for {
		n, err := s.dropOctets(ctx, lease, now.Add(-lingering))
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
	}
	removals := map[string]time.Time{`state = 'past' AND scope <> 'complete' AND next_update < $1`: now.Add(-24 * time.Hour)}
	if keep := set.Retention.CRLs.Std(); keep > 0 {
		removals[`state = 'past' AND next_update < $1`] = now.Add(-keep)
	}
	for where, before := range removals {
		for {
			n, err := s.removeLists(ctx, lease, where, db.Micros(before))
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
		}
	}
	return nil
}

// step is how many lists one transaction removes.
const step = 16

// removeLists removes up to step lists with their octets.
func (s *Service) removeLists(ctx context.Context, lease db.Lease, where string, args ...any) (n int64, err error) {
	err = s.db.TxAlone(ctx, func(tx *db.Tx) error {
		if err := lease.Check(ctx, tx); err != nil {
			return err
		}
		some := fmt.Sprintf(`(SELECT id FROM crl WHERE %s ORDER BY id LIMIT %d)`, where, step)
		if _, err := tx.Exec(ctx, `DELETE FROM crl_chunk WHERE crl IN `+some, args...); err != nil {
			return fmt.Errorf("remove the octets of CRLs: %w", err)
		}
		if n, err = tx.Exec(ctx, `DELETE FROM crl WHERE id IN `+some, args...); err != nil {
			return fmt.Errorf("remove CRLs: %w", err)
		}
		return nil
	})
	return n, err
}

// dropOctets removes the octets of up to step lists that were replaced before a time and are no complete scheduled ones.
func (s *Service) dropOctets(ctx context.Context, lease db.Lease, before time.Time) (n int64, err error) {
	err = s.db.TxAlone(ctx, func(tx *db.Tx) error {
		if err := lease.Check(ctx, tx); err != nil {
			return err
		}
		some := fmt.Sprintf(`(SELECT id FROM crl WHERE state = 'past' AND size > 0 AND (scope <> 'complete' OR scheduled <> this_update)
			AND EXISTS (SELECT 1 FROM crl AS newer WHERE newer.issuer = crl.issuer AND newer.scope = crl.scope
				AND newer.state <> 'building' AND newer.this_update > crl.this_update AND newer.this_update < $1)
			ORDER BY id LIMIT %d)`, step)
		if _, err := tx.Exec(ctx, `DELETE FROM crl_chunk WHERE crl IN `+some, db.Micros(before)); err != nil {
			return fmt.Errorf("remove the octets of CRLs: %w", err)
		}
		n, err = tx.Exec(ctx, `UPDATE crl SET size = 0, head = $2, tail = $2 WHERE id IN `+some, db.Micros(before),
			[]byte{})
		if err != nil {
			return fmt.Errorf("mark CRLs as pruned: %w", err)
		}
		return nil
	})
	return n, err
}
