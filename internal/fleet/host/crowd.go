package host

import (
	"context"
	"encoding/json"
	"fmt"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/db"
)

// checkCrowd refuses placements that have more certificates pinned for a purpose than a report can hold: what is not reported as
// held is never released.
func (s *Service) checkCrowd(ctx context.Context, tx *db.Tx, pool string, orders []client.PlacementOrder) error {
	for _, order := range orders {
		purpose, may := s.announces(order)
		if !may {
			continue
		}
		var crowd int64
		err := each(ctx, tx, `SELECT host_placement.recipe, host_placement.parameters, COUNT(*) FROM host_placement JOIN host ON host.id = host_placement.host
			WHERE host.pool = $1 AND host.removed_at = 0 GROUP BY host_placement.recipe, host_placement.parameters`, []any{pool}, func(scan func(...any) error) error {
			var other client.PlacementOrder
			var parameters string
			var n int64
			if err := scan(&other.Recipe, &parameters, &n); err != nil {
				return err
			}
			if err := json.Unmarshal([]byte(parameters), &other.Parameters); err != nil {
				return err
			}
			if of, too := s.announces(other); too && of == purpose {
				crowd += n
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("count who announces in pool %s: %w", pool, err)
		}
		if crowd > trust.MostAnnouncing {
			return fault.New(fault.TooLarge, "with this one, peers in pool %q would pin the certificates of %d placements for purpose %s; at most %d pass",
				pool, crowd, purpose, trust.MostAnnouncing).At("/placements").WithHint("give some another purpose, or do without pinning: CRLs scale further")
		}
	}
	return nil
}

// stays says why what a placement announces is not passed on to those who pin; empty where that is not known.
func (s *Service) stays(ctx context.Context, tx *db.Tx, pool string, order client.PlacementOrder) (string, error) {
	purpose, may := s.announces(order)
	if !may {
		return fmt.Sprintf("it announces a certificate, and its order does not say that peers pin it: recipe %s is the host's own, and needs the "+
			"parameters pinned=true and purpose=NAME for that", order.Recipe), nil
	}
	full, err := trust.Full(ctx, tx, pool, purpose)
	if err != nil || !full {
		return "", err
	}
	return fmt.Sprintf("it announces a certificate, which is not passed on: %d are pinned in pool %s for %s, and that is the most", trust.MostPinned, pool, purpose), nil
}
