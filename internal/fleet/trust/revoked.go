package trust

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/store/db"
)

// This file is for certificates of renewed issuers that are revoked. Whoever looks at CRLs refuses what is below a certificate that is
// revoked or on hold, though another one of the same key is good.

// needless are those of some entries, as indices, whose certificates are revoked or on hold, with their states, and beside which another one
// of the same key is good.
func needless(ctx context.Context, tx *db.Tx, entries []*entry) (map[int]ca.State, error) {
	var certificates []*x509.Certificate
	for _, e := range entries {
		certificates = append(certificates, e.certificate)
	}
	refused, err := ca.Refused(ctx, tx, certificates)
	if err != nil {
		return nil, err
	}
	out := map[int]ca.State{}
	for n, state := range refused {
		for m, other := range entries {
			if entries[n].kind == client.TrustIntermediate && refused[m] == "" && other.sameKey(entries[n]) {
				out[n] = state
			}
		}
	}
	return out, nil
}

// presentable leaves out what would have relying parties refuse what is good, from the moment on in which it does. That which is revoked
// for good leaves with the next version too, so that it is out whichever program reads that. A version that a release before made has an
// issuer's new certificate behind its former one: that release put it first when it read, and so does this.
func presentable(ctx context.Context, tx *db.Tx, entries []*entry) ([]*entry, error) {
	entries = byKey(slices.Clone(entries))
	out, err := needless(ctx, tx, entries)
	if err != nil || len(out) == 0 {
		return entries, err
	}
	var good []*entry
	for n, e := range entries {
		if out[n] == "" {
			good = append(good, e)
		}
	}
	return good, nil
}

// leaveRevoked takes certificates that renewed issuers of ours had out of what pools trust, where they are revoked for good. While a
// rollout works on a pool, its versions stay as they are.
func (s *Service) leaveRevoked(ctx context.Context, now time.Time) error {
	var pools []string
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		if pools, err = renewedIn(ctx, tx); err != nil {
			return err
		}
		some := pools[:0]
		for _, pool := range pools {
			gone, err := revokedIn(ctx, tx, pool)
			if err != nil {
				return err
			}
			if len(gone) > 0 {
				some = append(some, pool)
			}
		}
		pools = some
		return nil
	})
	if err != nil {
		return err
	}
	var failed []error
	for _, pool := range pools {
		failed = append(failed, s.DB.Tx(ctx, func(tx *db.Tx) error { return s.takeRevoked(ctx, tx, pool, now) }))
	}
	return errors.Join(failed...)
}

// takeRevoked makes a version of a pool without what is to leave it.
func (s *Service) takeRevoked(ctx context.Context, tx *db.Tx, pool string, now time.Time) error {
	gone, err := revokedIn(ctx, tx, pool)
	if err != nil || len(gone) == 0 {
		return err // another node did it
	}
	for _, e := range gone {
		if err := s.auditPrune(ctx, tx, e, "revoked", now); err != nil {
			return err
		}
	}
	st, _, err := readState(ctx, tx, pool)
	if err != nil {
		return err
	}
	all, err := readEntries(ctx, tx, `pool = $1`, pool)
	if err != nil {
		return err
	}
	leaves := func(e *entry) bool {
		return slices.ContainsFunc(gone, func(other *entry) bool { return other.id == e.id })
	}
	version, err := stage(ctx, tx, pool, st, all, nil, leaves, now)
	if err != nil {
		return err
	}
	return s.Adopt(ctx, tx, pool, version)
}

// revokedIn are the entries of issuers of ours that are to leave a pool's present version.
func revokedIn(ctx context.Context, tx *db.Tx, pool string) (gone []*entry, err error) {
	st, found, err := readState(ctx, tx, pool)
	if err != nil || !found || st.Rollout != "" {
		return nil, err
	}
	present, err := readEntries(ctx, tx, `pool = $1 AND issuer <> '' AND pruned_at = 0`, pool)
	if err != nil {
		return nil, err
	}
	present = slices.DeleteFunc(present, func(e *entry) bool { return !e.in(st.Version) })
	out, err := needless(ctx, tx, present)
	for n, e := range present {
		if out[n] == ca.Revoked {
			gone = append(gone, e)
		}
	}
	return gone, err
}
