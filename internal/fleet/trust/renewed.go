package trust

import (
	"bytes"
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
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
	var add []*entry
	for _, e := range all { // one that has ended was trusted until then, unless it was dropped
		if e.from <= st.Version && (e.to == 0 || st.Version < e.to) && e.kind == client.TrustIntermediate && e.certificate.Equal(before.Certificate) {
			add = append(add, newEntry(e.pool, e.purpose, e.kind, before.ID, after.Certificate, e.comment, now))
		}
	}
	if len(add) == 0 {
		return nil
	}
	version, err := stage(ctx, tx, before.Pool, st, all, add, func(*entry) bool { return false }, now)
	if err != nil {
		return err
	}
	return s.Adopt(ctx, tx, before.Pool, version)
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
