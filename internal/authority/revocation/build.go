package revocation

import (
	"context"
	"crypto"
	"database/sql"
	"fmt"
	"iter"
	"maps"
	"math/big"
	"runtime/debug"
	"slices"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/store/db"
	"chancery/internal/store/settings"
)

// order is one list that is to be made.
type order struct {
	scope     Scope
	scheduled bool // and not only because something was revoked
	wish      Wish
	long      bool // the list may be long: it is read beside short ones, and alone of its kind
}

// build makes one list and publishes it.
func (s *Service) build(ctx context.Context, lease db.Lease, issuer *ca.Issuer, o order, now time.Time) (*List, error) {
	lists, err := s.buildTogether(ctx, lease, issuer, []order{o}, now)
	if err != nil {
		return nil, err
	}
	return lists[0], nil
}

// buildTogether makes the lists of one moment: one CRLNumber, one thisUpdate, one state of the records, and one transaction
// that publishes them. A complete CRL and a delta of one scope that are issued at one time must say the same under the same
// number (RFC 5280 §5.2.3). now is read before the statuses are, so a list says of nothing that it was good at a time when it
// was revoked already.
func (s *Service) buildTogether(ctx context.Context, lease db.Lease, issuer *ca.Issuer, orders []order, now time.Time) ([]*List, error) {
	// A list of a clock that was set back would say of what was revoked since that it was good.
	if err := s.db.CheckClock(now); err != nil {
		return nil, err
	}
	set, err := s.settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	signer, err := s.keys.SignerFor(ctx, issuer.KeyID, issuer.Certificate)
	if err != nil {
		return nil, fmt.Errorf("open the key of issuer %s: %w", issuer.Name, err)
	}
	return s.make(ctx, lease, issuer, orders, set, signer, now)
}

// make is buildTogether with the settings and the key at hand. It signs outside of the snapshot: a key may lie in a token, and a token may
// hang, with any number of lists before it; the connections to the database are few, and nothing of the node is written without one.
func (s *Service) make(ctx context.Context, lease db.Lease, issuer *ca.Issuer, orders []order, set *settings.Settings, signer crypto.Signer,
	now time.Time) ([]*List, error) {
	var wish *big.Int
	for _, o := range orders {
		if o.scope == Complete && o.scheduled {
			if err := s.purgeExpired(ctx, lease, issuer); err != nil {
				return nil, err
			}
		}
		if o.wish.Number != nil {
			wish = o.wish.Number
		}
	}
	number, err := s.reserveNumber(ctx, lease, issuer.ID, wish)
	if err != nil {
		return nil, err
	}
	writers, lists, unsigned := make([]*chunkWriter, len(orders)), make([]*List, len(orders)), make([]*crl.Unsigned, len(orders))
	for i, o := range orders {
		thisUpdate, nextUpdate := o.wish.times(now, validity(set, issuer, o.scope))
		lists[i] = &List{
			ID: db.NewID(), Issuer: issuer.ID, Scope: o.scope, Current: true, Number: number, ThisUpdate: thisUpdate, NextUpdate: nextUpdate,
		}
		writers[i] = &chunkWriter{ctx: ctx, s: s, fence: lease.Check, list: lists[i]}
	}
	err = s.snapshot(ctx, orders[0].long, func(tx *db.Tx) (err error) {
		for i, o := range orders {
			if unsigned[i], err = lists[i].prepare(ctx, tx, writers[i], issuer, o, set, signer); err != nil {
				return fmt.Errorf("make the CRL %s of issuer %s: %w", o.scope, issuer.Name, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, l := range lists {
		frame, err := unsigned[i].Sign()
		if err != nil {
			return nil, fmt.Errorf("make the CRL %s of issuer %s: %w", l.Scope, issuer.Name, err)
		}
		l.head, l.tail, l.Size, l.Entries = frame.Head, frame.Tail, frame.Size(), frame.Entries
	}
	if err := s.publish(ctx, "system:"+lease.Holder, now, writers...); err != nil {
		return nil, fmt.Errorf("publish the CRL %s of issuer %s: %w", orders[0].scope, issuer.Name, err)
	}
	return lists, nil
}

// How many snapshots at most lists are read from at one time, whatever the leases and the loops. Each has a connection to the database for as
// long as that takes, and needs another one to store what it reads; the pool of them has eight.
const (
	shortAtOnce = 2
	longAtOnce  = 1 // also for the sake of memory
)

// snapshot is ReadSnapshot for who reads a list. Short lists do not wait for long ones.
func (s *Service) snapshot(ctx context.Context, long bool, fn func(tx *db.Tx) error) error {
	reading := s.readingShort
	if long {
		reading = s.readingLong
	}
	select {
	case reading <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-reading }()
	return s.db.ReadSnapshot(ctx, fn)
}

// validity is nextUpdate minus thisUpdate. What an issuer does not say for itself, the settings say for all.
func validity(set *settings.Settings, issuer *ca.Issuer, scope Scope) time.Duration {
	switch {
	case scope != Complete:
		return set.CRL.DeltaValidity.Std()
	case issuer.CRL.Validity > 0:
		return issuer.CRL.Validity
	default:
		return set.CRL.Validity.Std()
	}
}

// refresh is how long a list stays when nothing is revoked: never more than half of its validity, so that a fetch that
// fails can be tried again.
func refresh(set *settings.Settings, issuer *ca.Issuer, scope Scope) time.Duration {
	every := set.CRL.Refresh.Std()
	if issuer.CRL.Refresh > 0 {
		every = issuer.CRL.Refresh
	}
	return min(every, validity(set, issuer, scope)/2)
}

// Late is how long after RenewAt a list that was not made is worth a warning: a node that takes the work over needs less.
const Late = 10 * time.Minute

// RenewAt is when a list is made again although nothing was revoked. A list that an operator wanted shorter is renewed in
// the middle of its own life.
func (l *List) RenewAt(set *settings.Settings, issuer *ca.Issuer) time.Time {
	return l.ThisUpdate.Add(min(refresh(set, issuer, l.Scope), l.NextUpdate.Sub(l.ThisUpdate)/2))
}

// partitions is how many there are of an issuer: 1 where its list is not partitioned.
func partitions(issuer *ca.Issuer) int { return max(1, issuer.CRL.Partitions) }

// longList is from how many octets of entries on memory matters more than the milliseconds of a collection.
const longList = 8 << 20

// prepare reads the entries in one transaction, on their way to w.
func (l *List) prepare(ctx context.Context, tx *db.Tx, w *chunkWriter, issuer *ca.Issuer, o order, set *settings.Settings,
	signer crypto.Signer) (*crl.Unsigned, error) {
	changes, err := ca.LastChanges(ctx, tx)
	if err != nil {
		return nil, err
	}
	l.change = changes[issuer.ID]
	before, err := currentList(ctx, tx, issuer.ID, l.Scope)
	if err != nil {
		return nil, err
	}
	switch {
	case o.scheduled:
		l.scheduled = db.Micros(l.ThisUpdate)
	case before != nil:
		l.scheduled = before.scheduled
	}
	spec := &crl.Spec{Issuer: issuer.Certificate, ThisUpdate: l.ThisUpdate, NextUpdate: l.NextUpdate, Number: l.Number}
	urls := issuer.URLs(set.PublicURL)
	var src *source
	switch partition := l.Scope.partition(); {
	case l.Scope == Delta:
		if l.Base, src, err = deltaSource(ctx, tx, issuer, l.change, l.ThisUpdate); err != nil {
			return nil, err
		}
		spec.BaseNumber = l.Base
	case l.Scope == Complete:
		if issuer.CRL.Delta && set.PublicURL != "" {
			spec.Freshest = []string{urls.Delta()}
		}
		src, err = wholeSource(ctx, tx, issuer, allPartitions(issuer))
	case partition >= issuer.CRL.Partitions || set.PublicURL == "":
		// RFC 5280 §5.2.5: the distribution point in the list must be the one in the certificates.
		return nil, fault.New(fault.Conflict, "issuer %s has no partition %d, or the setting public_url is empty",
			issuer.Name, partition)
	default:
		spec.IDP = &crl.IssuingDistributionPoint{URIs: []string{urls.Partition(partition)}}
		src, err = wholeSource(ctx, tx, issuer, []int{partition})
	}
	if err != nil {
		return nil, err
	}
	if src.octets > longList {
		debug.FreeOSMemory() // what earlier load left is given back, so that a long list does not come on top of it
	}
	return crl.Prepare(w, spec, src.octets, src.entries(ctx, tx, issuer), signer)
}

func allPartitions(issuer *ca.Issuer) []int {
	all := make([]int, partitions(issuer))
	for i := range all {
		all[i] = i
	}
	return all
}

// source is where the entries of a list come from: segments, and loose rows by selection. octets is their length.
type source struct {
	octets   int64
	segments []int           // partitions whose segments are all taken
	replaced map[string]bool // entries in segments that are not taken
	loose    []ca.Changes
	room     []byte // of kept
}

// wholeSource selects all that is revoked in some partitions: the segments, what was revoked since they were packed, and
// the holds, which are never packed.
func wholeSource(ctx context.Context, tx *db.Tx, issuer *ca.Issuer, of []int) (*source, error) {
	cutoff, err := expiredSince(ctx, tx, issuer.ID)
	if err != nil {
		return nil, err
	}
	src := &source{segments: of}
	for _, partition := range of {
		var size int64
		err := tx.QueryRow(ctx, `SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM crl_segment WHERE issuer = $1 AND crl_partition = $2`,
			issuer.ID, partition).Scan(&size)
		if err != nil {
			return nil, fmt.Errorf("measure the CRL segments of issuer %s: %w", issuer.Name, err)
		}
		src.octets += size
		if err := src.leaveOut(ctx, tx, issuer, partition); err != nil {
			return nil, err
		}
		packed, err := packedUpTo(ctx, tx, issuer.ID, partition)
		if err != nil {
			return nil, err
		}
		err = src.add(ctx, tx, issuer,
			ca.Changes{Partition: partition, After: packed, States: []ca.State{ca.Revoked}, NotBefore: cutoff},
			ca.Changes{Partition: partition, States: []ca.State{ca.Held}, NotBefore: cutoff})
		if err != nil {
			return nil, err
		}
	}
	return src, nil
}

// leaveOut takes out of the segments of a partition what a newer entry of the same certificate has replaced.
func (src *source) leaveOut(ctx context.Context, tx *db.Tx, issuer *ca.Issuer, partition int) error {
	replaced, err := ca.UpgradedEntries(ctx, tx, issuer, partition)
	if err != nil || len(replaced) == 0 {
		return err
	}
	if src.replaced == nil {
		src.replaced = map[string]bool{}
	}
	maps.Copy(src.replaced, replaced)
	for packed, err := range eachSegment(ctx, tx, issuer.ID, partition) {
		if err != nil {
			return err
		}
		src.octets -= int64(len(packed) - len(src.kept(packed)))
	}
	return nil
}

// kept is what of packed entries is taken. It is good until the next call.
func (src *source) kept(packed []byte) []byte {
	if len(src.replaced) == 0 {
		return packed
	}
	kept := src.room[:0] // not in place: the entries are the driver's
	defer func() { src.room = kept }()
	for rest := packed; len(rest) > 0; {
		size := entrySize(rest)
		if size == 0 {
			kept = append(kept, rest...) // damaged, which the lengths will show
			break
		}
		if !src.replaced[string(rest[:size])] {
			kept = append(kept, rest[:size]...)
		}
		rest = rest[size:]
	}
	return kept
}

func (src *source) add(ctx context.Context, tx *db.Tx, issuer *ca.Issuer, all ...ca.Changes) error {
	for _, selection := range all {
		_, octets, err := ca.ChangesSize(ctx, tx, issuer, selection)
		if err != nil {
			return err
		}
		src.octets += octets
		src.loose = append(src.loose, selection)
	}
	return nil
}

// deltaReach is how many changes a delta CRL may look back, to start from a complete CRL that is older than the newest.
const deltaReach = 1000

// deltaSource chooses the base of a delta CRL, and selects what changed since.
func deltaSource(ctx context.Context, tx *db.Tx, issuer *ca.Issuer, change int64, now time.Time) (*big.Int, *source,
	error) {
	candidates, err := readLists(ctx, tx, `issuer = $1 AND scope = 'complete' AND state <> 'building' AND this_update <= $2 AND next_update > $2
		AND (state = 'current' OR change >= $3) ORDER BY this_update LIMIT 200`, issuer.ID, db.Micros(now), change-deltaReach)
	if err != nil {
		return nil, nil, err
	}
	if len(candidates) == 0 {
		return nil, nil, fault.New(fault.Conflict, "issuer %s has no complete CRL for a delta CRL to start from",
			issuer.Name)
	}
	base := slices.MinFunc(candidates, func(a, b *List) int { return a.Number.Cmp(b.Number) })
	src := &source{}
	return base.Number, src, src.add(ctx, tx, issuer, ca.Changes{Partition: -1, After: base.change})
}

// entries yields what was selected. What it yields is valid until the next one.
func (src *source) entries(ctx context.Context, tx *db.Tx, issuer *ca.Issuer) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, partition := range src.segments {
			for packed, err := range eachSegment(ctx, tx, issuer.ID, partition) {
				if !yield(src.kept(packed), err) || err != nil {
					return
				}
			}
		}
		for _, selection := range src.loose {
			for changed, err := range ca.EachChange(ctx, tx, issuer, selection) {
				if !yield(changed.Entry, err) || err != nil {
					return
				}
			}
		}
	}
}

func eachSegment(ctx context.Context, tx *db.Tx, issuer string, partition int) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		rows, err := tx.Query(ctx, `SELECT packed FROM crl_segment WHERE issuer = $1 AND crl_partition = $2 ORDER BY id`, issuer, partition)
		if err != nil {
			yield(nil, fmt.Errorf("read the CRL segments of issuer %s: %w", issuer, err))
			return
		}
		defer rows.Close()
		for rows.Next() {
			var packed sql.RawBytes // of the driver, until the next row: a list of a million entries has 120 of them
			if err := rows.Scan(&packed); err != nil {
				yield(nil, fmt.Errorf("read a CRL segment of issuer %s: %w", issuer, err))
				return
			}
			if !yield(packed, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(nil, fmt.Errorf("read the CRL segments of issuer %s: %w", issuer, err))
		}
	}
}

// expiredSince is the time from which on a certificate's end keeps its entry on the lists: the last scheduled thisUpdate
// of the scope that had it longest ago. An entry whose certificate ended before stood, beyond that end, on a scheduled
// list of every scope (RFC 5280 §3.3). Delta CRLs have no say: they are never the only place of an entry.
func expiredSince(ctx context.Context, tx *db.Tx, issuer string) (time.Time, error) {
	var least int64
	err := tx.QueryRow(ctx, `SELECT COALESCE(MIN(scheduled), 0) FROM crl
		WHERE issuer = $1 AND state = 'current' AND scope <> 'delta'`, issuer).Scan(&least)
	if err != nil {
		return time.Time{}, fmt.Errorf("read when the CRLs of issuer %s were scheduled: %w", issuer, err)
	}
	if least == 0 {
		return time.Time{}, nil
	}
	return db.FromMicros(least), nil
}
