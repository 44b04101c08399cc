package ca

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"chancery/internal/store/db"
)

// FirstIdentityEnd returns who is the first of those that asked for certificates of the profile identity whose newest ends, and
// when; nobody where no end is ahead. Certificates that one requester, except, asked for are left out.
func (c *CA) FirstIdentityEnd(ctx context.Context, except string, now time.Time) (requester string, at time.Time, err error) {
	var ends int64
	err = c.db.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT requester, MAX(not_after) AS ends FROM certificate
			WHERE profile = 'identity' AND state = 'valid' AND replaced_by = 0 AND not_after > $1 AND requester <> $2
			GROUP BY requester ORDER BY ends, requester LIMIT 1`, db.Micros(now), except).Scan(&requester, &ends)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return "", time.Time{}, nil
	}
	if err != nil {
		return "", time.Time{}, fmt.Errorf("find whose identity ends first: %w", err)
	}
	return requester, db.FromMicros(ends), nil
}
