package host

import (
	"context"
	"fmt"

	"chancery/internal/store/db"
)

// Presenting is who presents a certificate of an issuer beside what is placed.
type Presenting struct {
	Placements, Hosts int64
}

// PresentingFormer counts those whose agents last said that they present a certificate that an issuer had before it was renewed; now is
// the fingerprint of the one that it has, by which their placements are known. A host that is away counts by what it said last.
func (s *Service) PresentingFormer(ctx context.Context, now, former string) (p Presenting, err error) {
	if !isFingerprint(now) || !isFingerprint(former) {
		return p, fmt.Errorf("count who presents %.80q: no fingerprint", former)
	}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT COUNT(*), COUNT(DISTINCT host) FROM host_placement WHERE issuer = $1 AND observed LIKE $2
			AND host IN (SELECT id FROM host WHERE removed_at = 0)`, now, "%"+former+"%").Scan(&p.Placements, &p.Hosts)
	})
	if err != nil {
		return p, fmt.Errorf("count who presents a certificate that an issuer had: %w", err)
	}
	return p, nil
}
