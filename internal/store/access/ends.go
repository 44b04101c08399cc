package access

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"chancery/internal/store/db"
)

// FirstEnd returns who of a kind is the first whose newest identity ends, and when; an empty name where nobody's end is ahead.
// Who is disabled does not count, nor an identity that has ended.
func (s *Store) FirstEnd(ctx context.Context, kind Kind, now time.Time) (name string, at time.Time, err error) {
	var ends int64
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT principal.name, MAX(access_identity.not_after) AS ends
			FROM principal JOIN access_identity ON access_identity.principal_id = principal.id
			WHERE principal.kind = $1 AND principal.disabled = 0 AND access_identity.not_after > $2
			GROUP BY principal.id, principal.name ORDER BY ends, principal.name LIMIT 1`, string(kind), db.Micros(now)).Scan(&name, &ends)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return "", time.Time{}, nil
	}
	if err != nil {
		return "", time.Time{}, fmt.Errorf("find whose identity ends first: %w", err)
	}
	return name, db.FromMicros(ends), nil
}
