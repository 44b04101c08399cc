package db

import (
	"context"
	"database/sql"
	"errors"
)

type atPrimary struct{}

// AtPrimary has Read ask the primary, while that answers: for what was not found at a standby, or not as it should be, and may not
// have arrived there.
func AtPrimary(ctx context.Context) context.Context { return context.WithValue(ctx, atPrimary{}, true) }

// MayBeBehind reports whether Read goes to a standby, so that AtPrimary may show more.
func (d *DB) MayBeBehind() bool { return d.standby != nil && d.Away() == nil }

// ReadFound is Read for a row that must not be missed: where fn returns sql.ErrNoRows, it is run again at the primary, if that may
// show more.
func (d *DB) ReadFound(ctx context.Context, fn func(tx *Tx) error) error {
	err := d.Read(ctx, fn)
	if errors.Is(err, sql.ErrNoRows) && d.MayBeBehind() {
		return d.Read(AtPrimary(ctx), fn)
	}
	return err
}
