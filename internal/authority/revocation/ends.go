package revocation

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/store/db"
)

// End is when what an issuer's verifiers need of the authority ends: the first of its current CRLs, complete or of a
// partition, its delta CRL, and the certificate of its newest delegated responder. Zero is none. Who has an old delta CRL may
// go by the complete one (RFC 5280 section 5.2.4), and some verifiers refuse instead.
type End struct {
	Issuer                string // its ID
	CRL, Delta, Responder time.Time
}

// Ends returns the ends of all issuers that have a CRL or a responder.
func (s *Service) Ends(ctx context.Context) (ends []End, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		ends = nil
		at := map[string]int{}
		end := func(issuer string) *End {
			i, ok := at[issuer]
			if !ok {
				i, at[issuer] = len(ends), len(ends)
				ends = append(ends, End{Issuer: issuer})
			}
			return &ends[i]
		}
		if err := eachEnd(ctx, tx, `SELECT issuer, MIN(next_update) FROM crl WHERE state = 'current' AND scope <> 'delta' GROUP BY issuer ORDER BY issuer`,
			func(issuer string, t time.Time) { end(issuer).CRL = t }); err != nil {
			return err
		}
		if err := eachEnd(ctx, tx, `SELECT issuer, next_update FROM crl WHERE state = 'current' AND scope = 'delta' ORDER BY issuer`,
			func(issuer string, t time.Time) { end(issuer).Delta = t }); err != nil {
			return err
		}
		return eachEnd(ctx, tx, `SELECT issuer, MAX(not_after) FROM ocsp_responder GROUP BY issuer ORDER BY issuer`,
			func(issuer string, t time.Time) { end(issuer).Responder = t })
	})
	if err != nil {
		return nil, fmt.Errorf("find when CRLs and responders end: %w", err)
	}
	return ends, nil
}

func eachEnd(ctx context.Context, tx *db.Tx, query string, fn func(issuer string, t time.Time)) error {
	rows, err := tx.Query(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var issuer string
		var at int64
		if err := rows.Scan(&issuer, &at); err != nil {
			return err
		}
		fn(issuer, db.FromMicros(at))
	}
	return rows.Err()
}
