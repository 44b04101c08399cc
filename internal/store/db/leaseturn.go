package db

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// HandOver gives the lease to another holder, who has it for ttl from now without having asked, and takes it from the one who has it:
// its epoch grows, so what that one still writes under it is refused. With pin nobody else may take it from then on; without, one that
// was pinned is free again. A holder that has it keeps its epoch. Until the holder takes or renews it, the lease is Unanswered.
func HandOver(ctx context.Context, tx *Tx, name, to string, pin bool, ttl time.Duration, now time.Time) (Lease, error) {
	l := Lease{Name: name, Holder: to, Epoch: 1, Expires: FromMicros(Micros(now.Add(ttl)))}
	l.Given = l.Expires
	if pin {
		l.Pinned = to
	}
	have, err := leaseOf(ctx, tx, name)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		_, err = tx.Exec(ctx, "INSERT INTO leases (name, holder, epoch, expires_at, pinned, given) VALUES ($1, $2, $3, $4, $5, $4)",
			name, to, l.Epoch, Micros(l.Expires), l.Pinned)
		return l, err
	case err != nil:
		return Lease{}, err
	case have.Holder == to && have.Expires.After(now):
		l.Epoch = have.Epoch
	default:
		l.Epoch = have.Epoch + 1
	}
	if l.GivenFrom, l.GivenPinned = have.Holder, have.Pinned; have.Unanswered() {
		l.GivenFrom, l.GivenPinned = have.GivenFrom, have.GivenPinned
	}
	_, err = tx.Exec(ctx, `UPDATE leases SET holder = $2, epoch = $3, expires_at = $4, pinned = $5, given = $4, given_from = $6, given_pinned = $7
		WHERE name = $1`, name, to, l.Epoch, Micros(l.Expires), l.Pinned, l.GivenFrom, l.GivenPinned)
	return l, err
}

// GiveBack undoes a hand-over to the lease's holder, who did not answer it or does not do the work: it is from's again for ttl, pinned if it
// was; where from is empty it is anybody's, pinned to nobody. What the holder still does under it is refused. One that had it before as well
// keeps it, pinned as it was.
func GiveBack(ctx context.Context, tx *Tx, l Lease, from, pinned string, ttl time.Duration, now time.Time) error {
	if from == l.Holder {
		_, err := tx.Exec(ctx, "UPDATE leases SET pinned = $2, given = 0 WHERE name = $1", l.Name, pinned)
		return err
	}
	expires := Micros(now.Add(ttl))
	if from == "" {
		clock, err := tx.Clock(ctx)
		if err != nil {
			return err
		}
		from, pinned, expires = l.Holder, "", -Micros(clock)
	}
	_, err := tx.Exec(ctx, `UPDATE leases SET holder = $2, epoch = epoch + 1, expires_at = $3, pinned = $4, given = $3, given_from = $2, given_pinned = $4
		WHERE name = $1`, l.Name, from, expires, pinned)
	return err
}
