package ca

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"chancery/internal/store/db"
)

// Unreplaced are an issuer's certificates of subscribers that are good, not expired, and neither renewed nor re-keyed: the
// newest first, up to limit, and whether there are more. CA certificates, and those of OCSP responders, are none of them.
func Unreplaced(ctx context.Context, tx *db.Tx, issuer *Issuer, now time.Time, limit int) (found []*Certificate, more bool, err error) {
	rows, err := tx.Query(ctx, `SELECT `+certificateColumns+certificateFrom+` WHERE c.issuer = $1 AND c.state <> 'revoked' AND c.not_after > $2
		AND c.replaced_by = 0 ORDER BY c.id DESC`, issuer.number, db.Micros(now))
	if err != nil {
		return nil, false, fmt.Errorf("look for certificates of issuer %s that nothing replaced: %w", issuer.Name, err)
	}
	defer rows.Close()
	for rows.Next() {
		r, err := scanRecord(rows.Scan)
		if err != nil {
			return nil, false, fmt.Errorf("look for certificates of issuer %s that nothing replaced: %w", issuer.Name, err)
		}
		if ofAuthority(r.DER) {
			continue
		}
		if len(found) == limit {
			return found, true, nil
		}
		r.Issuer = issuer
		found = append(found, &r.Certificate)
	}
	return found, false, rows.Err()
}

// ofAuthority reports whether a certificate is one by which an authority works, and not a subscriber's.
func ofAuthority(der []byte) bool {
	c, err := x509.ParseCertificate(der)
	return err == nil && (c.IsCA || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning))
}
