package ca

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/root"
	"chancery/internal/store/db"
)

// This file keeps the certificates that issuers had before they were renewed, and says who needs them still.

// keepFormer keeps the certificate that an issuer has in a moment no more.
func keepFormer(ctx context.Context, tx *db.Tx, i *Issuer, now time.Time) error {
	_, err := tx.Exec(ctx, `INSERT INTO issuer_former (issuer, fingerprint, certificate, not_after, replaced_at) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (issuer, fingerprint) DO UPDATE SET replaced_at = excluded.replaced_at`,
		i.ID, digestOf(i.Certificate), i.Certificate.Raw, db.Micros(i.Certificate.NotAfter), db.Micros(now))
	if err != nil {
		return fmt.Errorf("keep the certificate that issuer %s had: %w", i.Name, err)
	}
	return nil
}

// readFormer gives issuers the certificates that they had before, the newest first.
func readFormer(ctx context.Context, tx *db.Tx, issuers []*Issuer) error {
	rows, err := tx.Query(ctx, `SELECT issuer, certificate FROM issuer_former ORDER BY replaced_at DESC, fingerprint`)
	if err != nil {
		return fmt.Errorf("read what issuers had before: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var der []byte
		if err := rows.Scan(&id, &der); err != nil {
			return fmt.Errorf("read what issuers had before: %w", err)
		}
		n := slices.IndexFunc(issuers, func(i *Issuer) bool { return i.ID == id })
		if n < 0 {
			continue
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("read a certificate that issuer %s had: %w", issuers[n].Name, err)
		}
		if !c.Equal(issuers[n].Certificate) { // it may have come back to it
			issuers[n].Former = append(issuers[n].Former, c)
		}
	}
	return rows.Err()
}

// Standing are the certificates that an issuer had before and that have not ended: what it issued is good under each of them.
func (i *Issuer) Standing(now time.Time) (standing []*x509.Certificate) {
	for _, c := range i.Former {
		if !now.After(c.NotAfter) {
			standing = append(standing, c)
		}
	}
	return standing
}

// bound counts the certificates of an issuer that are good and say by which certificate they are to be verified: those whose
// authorityKeyIdentifier names its issuer and serial (RFC 5280 4.2.1.1). None of those made here does.
func (c *CA) bound(ctx context.Context, i *Issuer, now time.Time) (n int, err error) {
	for after, last := int64(0), false; !last; {
		var found []*record
		err := c.db.Read(ctx, func(tx *db.Tx) error {
			rows, err := tx.Query(ctx, `SELECT `+certificateColumns+certificateFrom+` WHERE c.issuer = $1 AND c.id > $2 AND c.profile = '`+importedProfile+`'
				AND c.state <> 'revoked' AND c.not_after >= $3 ORDER BY c.id LIMIT $4`, i.number, after, db.Micros(now), int64(maxPage))
			if err == nil {
				found, err = collect(rows)
			}
			return err
		})
		if err != nil {
			return n, fmt.Errorf("look at what issuer %s issued before it came here: %w", i.Name, err)
		}
		for _, r := range found {
			after = r.ID
			parsed, err := x509.ParseCertificate(r.DER)
			if err != nil {
				continue // of some, the record alone came in
			}
			if key, err := root.ReadAuthorityKey(parsed); err == nil && key.NamesCertificate() {
				n++
			}
		}
		last = len(found) < maxPage
	}
	return n, nil
}

// warnings is what who renews an issuer is told beside.
func (c *CA) warnings(ctx context.Context, r *renewal, now time.Time) ([]string, error) {
	if r.again() {
		return r.warnings, nil
	}
	n, err := c.bound(ctx, r.before, now)
	if err != nil || n == 0 {
		return r.warnings, err
	}
	return append(r.warnings, fmt.Sprintf("%d certificates that issuer %q issued before it came here name the certificate that it had by issuer and serial "+
		"(authorityKeyIdentifier, RFC 5280 4.2.1.1): OpenSSL verifies them under that one alone; hand it out beside the new one, and have them issued anew before it "+
		"ends on %s", n, r.before.Name, utc(r.before.Certificate.NotAfter))), nil
}

// StateOf is the state of a certificate in an inventory, empty where that does not have it.
func (c *CA) StateOf(ctx context.Context, ref Ref) (state State, err error) {
	err = c.db.Read(ctx, func(tx *db.Tx) error {
		r, err := c.recordByRef(ctx, tx, ref)
		if err == nil {
			state = r.State
		}
		return err
	})
	if fault.Is(err, fault.NotFound) {
		return "", nil
	}
	return state, err
}
