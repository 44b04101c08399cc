package host

import (
	"context"
	"fmt"

	"chancery/internal/fleet/trust"
	"chancery/internal/store/db"
)

// Presenting is who presents a certificate of an issuer beside what is placed.
type Presenting struct {
	Placements, Hosts int64
}

// presentingFormer selects the placements that are seen with a certificate that an issuer had before.
const presentingFormer = ` FROM host_placement JOIN host ON host.id = host_placement.host
	WHERE host_placement.issuer = $1 AND host_placement.observed LIKE $2 AND host.removed_at = 0`

// WhoPresentsFormer names those that PresentingFormer counts, up to limit.
func (s *Service) WhoPresentsFormer(ctx context.Context, now, former string, limit int) (found []trust.Presented, err error) {
	if !isFingerprint(now) || !isFingerprint(former) {
		return nil, fmt.Errorf("find who presents %.80q: no fingerprint", former)
	}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		found = nil
		return each(ctx, tx, `SELECT host.name, host_placement.name`+presentingFormer+` ORDER BY host.name, host_placement.position LIMIT $3`,
			[]any{now, "%" + former + "%", int64(limit)}, func(scan func(...any) error) error {
				var p trust.Presented
				err := scan(&p.Host, &p.Placement)
				found = append(found, p)
				return err
			})
	})
	if err != nil {
		return nil, fmt.Errorf("find who presents a certificate that an issuer had: %w", err)
	}
	return found, nil
}

// PresentingFormer counts those whose agents last said that they present a certificate that an issuer had before it was renewed; now is
// the fingerprint of the one that it has, by which their placements are known. A host that is away counts by what it said last.
func (s *Service) PresentingFormer(ctx context.Context, now, former string) (p Presenting, err error) {
	if !isFingerprint(now) || !isFingerprint(former) {
		return p, fmt.Errorf("count who presents %.80q: no fingerprint", former)
	}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT COUNT(*), COUNT(DISTINCT host.id)`+presentingFormer, now, "%"+former+"%").Scan(&p.Placements, &p.Hosts)
	})
	if err != nil {
		return p, fmt.Errorf("count who presents a certificate that an issuer had: %w", err)
	}
	return p, nil
}
