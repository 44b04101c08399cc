package revocation

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"chancery/internal/store/db"
)

// Responder is a delegated OCSP responder of an issuer.
type Responder struct {
	Issuer      string // its ID
	KeyID       string
	Certificate *x509.Certificate
}

// Responders are those in force, in the order of the issuers' ids and of each the newest first: for a while after there is a new one, the one
// before it signs still.
func (s *Service) Responders(ctx context.Context, now time.Time) ([]Responder, error) {
	var found []Responder
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		found = nil
		rows, err := tx.Query(ctx, `SELECT issuer, key_id, certificate FROM ocsp_responder WHERE not_before <= $1 AND not_after > $1
			ORDER BY issuer, not_after DESC, id DESC`, db.Micros(now))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var r Responder
			var der []byte
			if err := rows.Scan(&r.Issuer, &r.KeyID, &der); err != nil {
				return err
			}
			if r.Certificate, err = x509.ParseCertificate(der); err != nil {
				return fmt.Errorf("the certificate of issuer %s's responder: %w", r.Issuer, err)
			}
			found = append(found, r)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list the OCSP responders: %w", err)
	}
	return found, nil
}
