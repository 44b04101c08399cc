package trust

import (
	"context"
	"fmt"

	"chancery/internal/store/db"
)

// Trusting are the pools in whose trust, for whatever purpose, a certificate is at the version that is the pool's or at a newer
// one, which some of its hosts may have. The certificate is named by its fingerprint.
func Trusting(ctx context.Context, tx *db.Tx, fingerprint string) ([]string, error) {
	rows, err := tx.Query(ctx, `SELECT DISTINCT e.pool FROM trust_entry e JOIN trust_pool p ON p.pool = e.pool
		WHERE e.fingerprint = $1 AND (e.to_version = 0 OR e.to_version > p.version) ORDER BY e.pool`, fingerprint)
	if err != nil {
		return nil, fmt.Errorf("find the pools that trust %.16s…: %w", fingerprint, err)
	}
	defer rows.Close()
	var pools []string
	for rows.Next() {
		var pool string
		if err := rows.Scan(&pool); err != nil {
			return nil, fmt.Errorf("find the pools that trust %.16s…: %w", fingerprint, err)
		}
		pools = append(pools, pool)
	}
	return pools, rows.Err()
}
