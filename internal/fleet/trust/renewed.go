package trust

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/store/db"
)

// This file is for issuers that are renewed with their key (RFC 3647 4.6): their old certificate and the new one are both trusted
// until the old one ends.

// Renewed puts an issuer's new certificate beside the old one wherever a pool trusts that, for all hosts at once, in the
// transaction that renews it. While a rollout works on the pool that is refused: it goes by the certificates that there were when
// it began.
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

// besides are the entries that stand beside those of an issuer's certificate: of its new one, and of what is above that and was not
// above the one before, an outside root's new intermediate.
func besides(all []*entry, st State, before, after *ca.Issuer, now time.Time) (add []*entry) {
	for _, e := range all { // one that has ended was trusted until then, unless it was dropped
		if e.from > st.Version || e.to != 0 && st.Version >= e.to || e.kind != client.TrustIntermediate || !e.certificate.Equal(before.Certificate) {
			continue
		}
		add = append(add, newEntry(e.pool, e.purpose, e.kind, before.ID, after.Certificate, e.comment, now))
		for _, c := range after.Chain {
			one := newEntry(e.pool, e.purpose, client.TrustIntermediate, "", c, "above "+before.Name, now)
			known := func(other *entry) bool {
				return other.in(st.Version) && other.fingerprint == one.fingerprint && other.purpose == one.purpose
			}
			if !selfIssued(c) && !slices.ContainsFunc(before.Chain, c.Equal) && !slices.ContainsFunc(all, known) {
				add = append(add, one)
			}
		}
	}
	return add
}

// presentable orders the entries of a version, and leaves out what would have relying parties refuse what is good. Of several
// certificates of one name and key, many take the first: the one that began last stands first. And whoever looks at CRLs refuses what
// is below one that is revoked or on hold, though another of the same key is good: it is left out where there is such a one.
func presentable(ctx context.Context, tx *db.Tx, entries []*entry) ([]*entry, error) {
	var certificates []*x509.Certificate
	for _, e := range entries {
		certificates = append(certificates, e.certificate)
	}
	refused, err := ca.Refused(ctx, tx, certificates)
	if err != nil {
		return nil, err
	}
	fit := map[*entry]bool{}
	for i, e := range entries {
		fit[e] = !refused[i] && e.kind == client.TrustIntermediate
	}
	var good []*entry
	place := map[string]int{} // where the first of a name and key stands in a purpose's set
	of := func(e *entry) string {
		return e.purpose + "\x00" + string(e.certificate.RawSubject) + string(e.certificate.RawSubjectPublicKeyInfo)
	}
	for i, e := range entries {
		if refused[i] && e.kind == client.TrustIntermediate && slices.ContainsFunc(entries, func(other *entry) bool {
			return fit[other] && other.purpose == e.purpose && sameIssuer(other.certificate, e.certificate)
		}) {
			continue
		}
		if _, ok := place[of(e)]; !ok {
			place[of(e)] = i
		}
		good = append(good, e)
	}
	slices.SortStableFunc(good, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(place[of(a)], place[of(b)]), b.certificate.NotBefore.Compare(a.certificate.NotBefore),
			b.certificate.NotAfter.Compare(a.certificate.NotAfter))
	})
	return good, nil
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

// sameIssuer reports whether two certificates are of one issuer: for one name and one key.
func sameIssuer(a, b *x509.Certificate) bool {
	return bytes.Equal(a.RawSubject, b.RawSubject) && bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo)
}
