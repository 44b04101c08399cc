package trust

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/db"
)

// Claim makes a rollout the one that works on a pool's trust, in the caller's transaction. Until Unclaim, nobody else changes
// it. Another rollout is a Conflict that names it.
func (s *Service) Claim(ctx context.Context, tx *db.Tx, pool, rollout string) error {
	n, err := tx.Exec(ctx, `UPDATE trust_pool SET rollout = $1, change = change + 1 WHERE pool = $2 AND (rollout = '' OR rollout = $3)`, rollout, pool, rollout)
	if err != nil {
		return fmt.Errorf("claim the trust of pool %s: %w", pool, err)
	}
	if n > 0 {
		return nil
	}
	st, found, err := readState(ctx, tx, pool)
	switch {
	case err != nil:
		return err
	case !found:
		return fault.New(fault.Unavailable, "what pool %q trusts was not read yet; again in a moment", pool)
	}
	return claimed(pool, st)
}

// claimed is the refusal of a change beside a rollout.
func claimed(pool string, st State) error {
	return fault.New(fault.Conflict, "rollout %s works on the trust of pool %q, and nobody else changes it until it has ended", st.Rollout, pool).
		WithHint("chancery rollout status %s", st.Rollout)
}

// Unclaim ends a rollout's work on a pool's trust.
func (s *Service) Unclaim(ctx context.Context, tx *db.Tx, pool, rollout string) error {
	_, err := tx.Exec(ctx, `UPDATE trust_pool SET rollout = '', change = change + 1 WHERE pool = $1 AND rollout = $2`, pool, rollout)
	if err != nil {
		return fmt.Errorf("leave the trust of pool %s: %w", pool, err)
	}
	return nil
}

// Stage makes a new version: the one that hosts have by default, with the issuers and what is above them, and without what is
// dropped, which is named by ID or fingerprint; of an issuer of ours, every certificate that it had. No host has it yet.
func (s *Service) Stage(ctx context.Context, tx *db.Tx, pool string, add []*ca.Issuer, drop []string) (version int64, err error) {
	now := time.Now()
	st, found, err := readState(ctx, tx, pool)
	if err != nil {
		return 0, err
	}
	if !found {
		return 0, fault.New(fault.Unavailable, "what pool %q trusts was not read yet; again in a moment", pool)
	}
	names := map[string]bool{}
	for _, name := range drop {
		names[plainFingerprint(name)] = true
	}
	missing := map[string]bool{}
	for name := range names {
		missing[name] = true
	}
	all, err := readEntries(ctx, tx, `pool = $1 AND pruned_at = 0`, pool)
	if err != nil {
		return 0, err
	}
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return 0, err
	}
	for _, e := range all {
		delete(missing, e.id)
		delete(missing, e.fingerprint)
	}
	for name := range missing {
		return 0, fault.New(fault.NotFound, "pool %q has no trust entry %.80q", pool, name).WithHint("chancery pool trust list %s", pool)
	}
	gone := map[string]bool{} // issuers of ours: one that was renewed leaves with all certificates of its key
	for _, e := range all {
		if e.issuer != "" && (names[e.id] || names[e.fingerprint]) {
			gone[e.issuer] = true
		}
	}
	return stage(ctx, tx, pool, st, all, forPurposes(ofIssuers(pool, add, now), all, st, pathsOf(pool, issuers)), func(e *entry) bool { return gone[e.issuer] || names[e.id] || names[e.fingerprint] }, now)
}

// pathsOf are the fingerprints of a pool's issuers and of all above them, an outside root among them.
func pathsOf(pool string, issuers []*ca.Issuer) map[string]bool {
	paths := map[string]bool{}
	for _, i := range issuers {
		if i.Pool != pool {
			continue
		}
		for _, c := range above(i) {
			paths[Fingerprint(c)] = true
		}
	}
	return paths
}

// forPurposes adds what is added to the general set to those for other purposes, too, in which one of the paths of the pool's own
// issuers is: their consumers meet its hosts, and are to take what these have next.
func forPurposes(add, all []*entry, st State, paths map[string]bool) []*entry {
	var purposes []string
	for _, e := range all {
		if (e.issuer != "" || paths[e.fingerprint]) && e.purpose != client.TrustGeneral && e.in(st.Version) && !slices.Contains(purposes, e.purpose) {
			purposes = append(purposes, e.purpose)
		}
	}
	more := slices.Clone(add)
	for _, purpose := range purposes {
		for _, e := range add {
			again := *e
			again.id, again.purpose = db.NewID(), purpose
			more = append(more, &again)
		}
	}
	return more
}

// stage makes a new version of all entries of a pool: the pool's present one with others, and without some.
func stage(ctx context.Context, tx *db.Tx, pool string, st State, all, add []*entry, drop func(*entry) bool, now time.Time) (int64, error) {
	// It follows the clock, so that it is none that hosts were given in the time that a restored backup does not know of.
	next := max(st.Newest+1, now.UnixMilli())
	var members, fresh, ended []*entry
	for _, e := range all {
		if e.pruned {
			continue
		}
		open := e.to == 0
		switch in := e.in(st.Version) && !drop(e); {
		case in && slices.ContainsFunc(members, e.same):
			continue
		case in && !open: // it had left in a version that was come back from
			members, fresh = append(members, e), append(fresh, e.anew())
		case in:
			members = append(members, e)
		case open:
			ended = append(ended, e)
		}
	}
	for _, e := range add {
		if !slices.ContainsFunc(members, e.same) && !slices.ContainsFunc(fresh, e.same) {
			fresh = append(fresh, e)
		}
	}
	fresh, moved := newestFirst(members, fresh)
	for _, e := range append(ended, moved...) {
		if _, err := tx.Exec(ctx, `UPDATE trust_entry SET to_version = $1 WHERE id = $2`, next, e.id); err != nil {
			return 0, fmt.Errorf("end trust entry %s: %w", e.id, err)
		}
	}
	order(fresh)
	for _, e := range fresh {
		e.from = next
		if err := e.insert(ctx, tx); err != nil {
			return 0, err
		}
	}
	_, err := tx.Exec(ctx, `INSERT INTO trust_pool (pool, version, newest, rollout, change, changed_at) VALUES ($1, $2, $3, '', 1, $4)
		ON CONFLICT (pool) DO UPDATE SET newest = excluded.newest, change = trust_pool.change + 1, changed_at = excluded.changed_at`,
		pool, st.Version, next, db.Micros(now))
	if err != nil {
		return 0, fmt.Errorf("number the version of trust of pool %s: %w", pool, err)
	}
	return next, nil
}

// order gives entries that come to be together IDs in their order, which is the one in which hosts are told of them: those that
// are made in one millisecond are in none.
func order(entries []*entry) {
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.id)
	}
	slices.Sort(ids)
	for i, e := range entries {
		e.id = ids[i]
	}
}

// Adopt makes a version what the hosts of a pool have that are at no other.
func (s *Service) Adopt(ctx context.Context, tx *db.Tx, pool string, version int64) error {
	n, err := tx.Exec(ctx, `UPDATE trust_pool SET version = $1, change = change + 1, changed_at = $2 WHERE pool = $3 AND newest >= $4`,
		version, db.Micros(time.Now()), pool, version)
	if err != nil {
		return fmt.Errorf("adopt %s of the trust of pool %s: %w", client.TrustVersion(version), pool, err)
	}
	if n == 0 || version < 1 {
		return fault.New(fault.Invalid, "the trust of pool %q has no %s", pool, client.TrustVersion(version))
	}
	return nil
}

// ofIssuers are the entries that issuers and what is above them are of.
func ofIssuers(pool string, issuers []*ca.Issuer, now time.Time) []*entry {
	ours := map[string]string{}
	for _, i := range issuers {
		if i.Certificate != nil {
			ours[Fingerprint(i.Certificate)] = i.ID
		}
	}
	var all []*entry
	take := func(c *x509.Certificate) {
		kind := client.TrustIntermediate
		if cert.SelfIssued(c) {
			kind = client.TrustAnchor
		}
		e := newEntry(pool, client.TrustGeneral, kind, ours[Fingerprint(c)], c, "", now)
		if !slices.ContainsFunc(all, e.same) {
			all = append(all, e)
		}
	}
	for _, i := range issuers { // roots first: what is trusted most is seen first
		for _, c := range above(i) {
			if cert.SelfIssued(c) {
				take(c)
			}
		}
	}
	for _, i := range issuers {
		for _, c := range above(i) {
			take(c)
		}
	}
	return all
}

// above are an issuer's certificate and those above it.
func above(i *ca.Issuer) []*x509.Certificate {
	if i.Certificate == nil {
		return nil
	}
	return append([]*x509.Certificate{i.Certificate}, i.Chain...)
}

// sync brings the issuers of a pool into its general set that came to be outside rollouts: those that were in no version yet.
// The first version has all there are, the retired ones too, since there are certificates under them.
func (s *Service) sync(ctx context.Context, pool string, issuers []*ca.Issuer, now time.Time) error {
	if len(issuers) == 0 || pool == ca.IdentityPool { // what is known by identities is in no trust set
		return nil
	}
	lacking := false
	look := func(tx *db.Tx) (st State, all, add []*entry, err error) {
		st, found, err := readState(ctx, tx, pool)
		if err != nil || st.Rollout != "" {
			return st, nil, nil, err
		}
		if all, err = readEntries(ctx, tx, `pool = $1`, pool); err != nil {
			return st, nil, nil, err
		}
		return st, all, unknown(pool, issuers, all, found, now), nil
	}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		_, _, add, err := look(tx)
		lacking = len(add) > 0
		return err
	})
	if err != nil || !lacking {
		return err
	}
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		st, all, add, err := look(tx)
		if err != nil || len(add) == 0 {
			return err
		}
		version, err := stage(ctx, tx, pool, st, all, add, func(*entry) bool { return false }, now)
		if err != nil {
			return err
		}
		return s.Adopt(ctx, tx, pool, version)
	})
}

// unknown are the entries of issuers that no entry was ever made for.
func unknown(pool string, issuers []*ca.Issuer, all []*entry, begun bool, now time.Time) []*entry {
	var fresh []*ca.Issuer
	for _, i := range issuers {
		known := slices.ContainsFunc(all, func(e *entry) bool { return e.issuer == i.ID })
		if !known && (!begun || i.State != ca.IssuerRetired) && now.Before(i.Certificate.NotAfter) {
			fresh = append(fresh, i)
		}
	}
	// What is above them is theirs in the same step, and of ours where it is.
	add := ofIssuers(pool, fresh, now)
	for _, e := range add {
		for _, i := range issuers {
			if e.issuer == "" && i.Certificate.Equal(e.certificate) {
				e.issuer = i.ID
			}
		}
	}
	return slices.DeleteFunc(add, func(e *entry) bool { return !now.Before(e.notAfter) })
}

// plainFingerprint writes a fingerprint as it is stored, and leaves other texts as they are.
func plainFingerprint(text string) string {
	plain := strings.ToLower(strings.ReplaceAll(strings.TrimSpace(text), ":", ""))
	if len(plain) == 64 && strings.Trim(plain, "0123456789abcdef") == "" {
		return plain
	}
	return text
}
