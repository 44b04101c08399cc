package schema

import (
	"context"

	"chancery/internal/store/db"
)

// Range is what programs can run on d as it is: those that know every migration up to one of from to have. A newer one would
// change it first.
func Range(ctx context.Context, d *db.DB) (have, from int64, err error) {
	err = d.ReadSnapshot(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, "SELECT COALESCE(MAX(version), 0), COALESCE(MAX(readers_from), 0) FROM schema_version").Scan(&have, &from)
	})
	return have, from, err
}
