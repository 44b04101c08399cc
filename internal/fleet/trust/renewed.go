package trust

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/db"
)

// This file is for issuers that are renewed with their key (RFC 3647 4.6): their old certificate and the new one are both trusted
// until the old one ends.

// Renewed puts an issuer's new certificate beside the old one wherever a pool trusts that, for all hosts at once, in the
// transaction that renews it. While a rollout works on the pool that is refused: it goes by the certificates that there were when
// it began. So is an issuer that is active again after it was retired, if hosts trust it no longer: they would refuse what it issues.
func (s *Service) Renewed(ctx context.Context, tx *db.Tx, before, after *ca.Issuer) error {
	if before.Pool == ca.IdentityPool {
		return nil
	}
	now := s.DB.Latest(time.Now())
	st, found, err := readState(ctx, tx, before.Pool)
	switch {
	case err != nil:
		return err
	case !found: // the first version takes what the issuer has by then
		return nil
	case st.Rollout != "":
		return claimed(before.Pool, st)
	}
	all, err := readEntries(ctx, tx, `pool = $1`, before.Pool)
	if err != nil {
		return err
	}
	if before.State == ca.IssuerRetired && taken(all, st, before) {
		return fault.New(fault.Conflict, "hosts of pool %q trust issuer %q no longer, since a rollout left it or it was dropped, and would refuse what it issues; brought back into "+
			"their trust, with what is above it, it would pass", before.Pool, before.Name).WithHint("chancery issuer show %s --pem, and chancery pool trust add %s F", before.Name, before.Pool)
	}
	if before.Certificate.Equal(after.Certificate) {
		return nil
	}
	add := besides(all, st, before, after, now)
	if len(add) == 0 {
		return nil
	}
	version, err := stage(ctx, tx, before.Pool, st, all, add, func(*entry) bool { return false }, now)
	if err != nil {
		return err
	}
	return s.Adopt(ctx, tx, before.Pool, version)
}

// stands reports whether an entry is in the pool's present version, or was until its certificate ended.
func (e *entry) stands(st State) bool {
	return e.from <= st.Version && (e.to == 0 || st.Version < e.to)
}

// taken reports whether an issuer was trusted and is no longer. One that no entry was made for yet comes in by itself.
func taken(all []*entry, st State, i *ca.Issuer) bool {
	known, trusted := false, false
	for _, e := range all {
		if e.issuer == i.ID {
			known, trusted = true, trusted || e.stands(st)
		}
	}
	return known && !trusted
}

// besides are the entries that stand beside those of an issuer's certificate: of its new one, and of what is above that and was not
// above the one before, an outside root's new intermediate.
func besides(all []*entry, st State, before, after *ca.Issuer, now time.Time) (add []*entry) {
	for _, e := range all {
		// One that has ended was trusted until then, unless it was dropped. One that is revoked may have left before those that the issuer
		// had before it.
		if e.kind != client.TrustIntermediate || !(e.stands(st) && e.certificate.Equal(before.Certificate)) && !(e.in(st.Version) && e.issuer == before.ID) {
			continue
		}
		add = append(add, newEntry(e.pool, e.purpose, e.kind, before.ID, after.Certificate, e.comment, now))
		for _, c := range after.Chain {
			one := newEntry(e.pool, e.purpose, client.TrustIntermediate, "", c, "above "+before.Name, now)
			known := func(other *entry) bool {
				return other.in(st.Version) && other.fingerprint == one.fingerprint && other.purpose == one.purpose
			}
			if !cert.SelfIssued(c) && !slices.ContainsFunc(before.Chain, c.Equal) && !slices.ContainsFunc(all, known) {
				add = append(add, one)
			}
		}
	}
	return add
}

// newestFirst orders the entries that a version adds. Of several certificates of one name and key, many relying parties take the first:
// the one that began last stands first. Those that are there already and began before one of them are made anew, after it: the order of
// a version is that in which its entries came to be, and is so whichever program reads it.
func newestFirst(members, add []*entry) (ordered, moved []*entry) {
	for _, m := range members {
		if m.to == 0 && m.kind != client.TrustPinned && slices.ContainsFunc(add, func(e *entry) bool { return e.sameKey(m) && e.began(m) < 0 }) {
			moved, add = append(moved, m), append(add, m.anew())
		}
	}
	return byKey(add), moved
}

// byKey puts entries of one name and key where the first of them stands, the one that began last before the others.
func byKey(entries []*entry) []*entry {
	place := map[*entry]int{} // of the first of its name and key
	for _, e := range entries {
		place[e] = slices.IndexFunc(entries, e.sameKey)
	}
	slices.SortStableFunc(entries, func(a, b *entry) int { return cmp.Or(cmp.Compare(place[a], place[b]), a.began(b)) })
	return entries
}

// sameKey reports whether two entries are of one name and key, for one purpose.
func (e *entry) sameKey(other *entry) bool {
	return e.purpose == other.purpose && e.kind == other.kind && cert.SameCA(e.certificate, other.certificate)
}

// began compares what began, and ends, later with what did earlier: that comes after it.
func (e *entry) began(other *entry) int {
	return cmp.Or(other.certificate.NotBefore.Compare(e.certificate.NotBefore), other.certificate.NotAfter.Compare(e.certificate.NotAfter))
}

// Present is the fingerprint of the certificate that an issuer has now, if the one given is of one that it had before, and the one
// given if it is not. So whoever is under an issuer is known by one fingerprint, whichever certificate he was given with his own.
func Present(ctx context.Context, tx *db.Tx, pool, fingerprint string) (string, error) {
	if fingerprint == "" {
		return "", nil
	}
	var id string
	err := tx.QueryRow(ctx, `SELECT issuer FROM trust_entry WHERE fingerprint = $1 AND pool = $2 AND issuer <> '' LIMIT 1`, fingerprint, pool).Scan(&id)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fingerprint, nil
	case err != nil:
		return "", fmt.Errorf("find the issuer whose certificate was %.16s…: %w", fingerprint, err)
	}
	i, err := ca.IssuerIn(ctx, tx, id)
	switch {
	case fault.Is(err, fault.NotFound) || err == nil && i.Certificate == nil:
		return fingerprint, nil
	case err != nil:
		return "", err
	}
	return Fingerprint(i.Certificate), nil
}
