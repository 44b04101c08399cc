package host

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/store/db"
)

// End is what ends on a host. Placement is empty where it is the agent's identity.
type End struct {
	Host, Placement string
	At              time.Time
}

// Ends are the first of their kind on hosts that have joined; zero where there is none.
type Ends struct {
	Certificate End // of a placement, as its agent reported it
	CRL         End // placed beside one
	Identity    End // of an agent, with the days in which one that has ended still renews itself

	EndedCertificate, EndedCRL End // what has ended already, and is placed still
}

// Ends finds what ends first on hosts.
func (s *Service) Ends(ctx context.Context, now time.Time) (all Ends, err error) {
	const joined = ` host_placement JOIN host ON host.id = host_placement.host WHERE host.removed_at = 0 AND host.joined_at > 0 AND `
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		all = Ends{}
		for _, look := range []struct {
			end   *End
			query string
			from  time.Time
			grace time.Duration
		}{
			{&all.Certificate, `SELECT host.name, host_placement.name, not_after FROM` + joined + `not_after > $1 ORDER BY not_after, host.name LIMIT 1`, now, 0},
			{&all.CRL, `SELECT host.name, host_placement.name, crl_ends FROM` + joined + `crl_ends > $1 ORDER BY crl_ends, host.name LIMIT 1`, now, 0},
			{&all.EndedCertificate, `SELECT host.name, host_placement.name, not_after FROM` + joined + `not_after > 0 AND not_after <= $1 ORDER BY not_after, host.name LIMIT 1`, now, 0},
			{&all.EndedCRL, `SELECT host.name, host_placement.name, crl_ends FROM` + joined + `crl_ends > 0 AND crl_ends <= $1 ORDER BY crl_ends, host.name LIMIT 1`, now, 0},
			{&all.Identity, `SELECT name, '', identity_ends FROM host WHERE removed_at = 0 AND joined_at > 0 AND identity_ends > $1 ORDER BY identity_ends, name LIMIT 1`,
				now.Add(-ca.IdentityGrace), ca.IdentityGrace},
		} {
			var at int64
			err := tx.QueryRow(ctx, look.query, db.Micros(look.from)).Scan(&look.end.Host, &look.end.Placement, &at)
			if errors.Is(err, sql.ErrNoRows) {
				continue
			}
			if err != nil {
				return err
			}
			look.end.At = db.FromMicros(at).Add(look.grace)
		}
		return nil
	})
	if err != nil {
		return Ends{}, fmt.Errorf("find what ends first on hosts: %w", err)
	}
	return all, nil
}
