package db

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"chancery/internal/fault"
)

// Lease is the fenced right to do singleton work. Its epoch grows each time the lease changes hands, and Check compares it in the
// transaction of the work itself: a holder that was asleep or whose clock is wrong cannot write after its successor began.
type Lease struct {
	Name    string
	Holder  string
	Epoch   int64
	Expires time.Time // when others may take it, if it is not renewed before
}

// Acquire takes the lease, or renews it where holder has it already. ok is false while another holder's has not expired; the lease
// returned is then that holder's.
func (d *DB) Acquire(ctx context.Context, name, holder string, ttl time.Duration) (l Lease, ok bool, err error) {
	return d.acquireAt(ctx, name, holder, ttl, time.Now())
}

func (d *DB) acquireAt(ctx context.Context, name, holder string, ttl time.Duration, now time.Time) (l Lease, ok bool, err error) {
	if name == "" || holder == "" || ttl <= 0 {
		return Lease{}, false, fault.New(fault.Invalid, "a lease needs a name, a holder and a time to live; got %q, %q, %s", name, holder, ttl)
	}
	err = d.Tx(ctx, func(tx *Tx) error {
		l, ok = Lease{Name: name, Holder: holder, Epoch: 1, Expires: FromMicros(Micros(now.Add(ttl)))}, false
		var have Lease
		var expires int64
		err := tx.QueryRow(ctx, "SELECT holder, epoch, expires_at FROM leases WHERE name = $1", name).Scan(&have.Holder, &have.Epoch, &expires)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			ok = true
			_, err = tx.Exec(ctx, "INSERT INTO leases (name, holder, epoch, expires_at) VALUES ($1, $2, $3, $4)",
				name, holder, l.Epoch, Micros(l.Expires))
			return err
		case err != nil:
			return err
		case have.Holder != holder && expires > Micros(now):
			l = Lease{Name: name, Holder: have.Holder, Epoch: have.Epoch, Expires: FromMicros(expires)}
			return nil
		case have.Holder == holder && expires > Micros(now):
			l.Epoch = have.Epoch
		default:
			l.Epoch = have.Epoch + 1
		}
		ok = true
		_, err = tx.Exec(ctx, "UPDATE leases SET holder = $2, epoch = $3, expires_at = $4 WHERE name = $1",
			name, holder, l.Epoch, Micros(l.Expires))
		return err
	})
	return l, ok && err == nil, err
}

// Renew prolongs the lease by ttl from now. It is a Conflict when another holder has taken it since.
func (d *DB) Renew(ctx context.Context, l Lease, ttl time.Duration) (Lease, error) {
	l.Expires = FromMicros(Micros(time.Now().Add(ttl)))
	err := d.Tx(ctx, func(tx *Tx) error {
		n, err := tx.Exec(ctx, "UPDATE leases SET expires_at = $4 WHERE name = $1 AND holder = $2 AND epoch = $3",
			l.Name, l.Holder, l.Epoch, Micros(l.Expires))
		if err == nil && n == 0 {
			err = l.lost()
		}
		return err
	})
	return l, err
}

// Release lets others take the lease at once. Releasing a lease that was lost does nothing.
func (d *DB) Release(ctx context.Context, l Lease) error {
	return d.Tx(ctx, func(tx *Tx) error {
		_, err := tx.Exec(ctx, "UPDATE leases SET expires_at = 0 WHERE name = $1 AND holder = $2 AND epoch = $3", l.Name, l.Holder, l.Epoch)
		return err
	})
}

// Leases lists all leases, by name; one that has expired is nobody's, whoever held it last.
func (d *DB) Leases(ctx context.Context) ([]Lease, error) {
	var all []Lease
	err := d.Read(ctx, func(tx *Tx) error {
		all = nil
		rows, err := tx.Query(ctx, "SELECT name, holder, epoch, expires_at FROM leases ORDER BY name")
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var l Lease
			var expires int64
			if err := rows.Scan(&l.Name, &l.Holder, &l.Epoch, &expires); err != nil {
				return err
			}
			l.Expires = FromMicros(expires)
			all = append(all, l)
		}
		return rows.Err()
	})
	return all, err
}

// Check is a Conflict unless the lease is still its holder's, and keeps it so until the transaction ends. The row is written, not
// only read, so that engines which merely promise snapshot isolation see the conflict too. A lease that has expired and that
// nobody took still passes: the epoch is what fences.
func (l Lease) Check(ctx context.Context, tx *Tx) error {
	n, err := tx.Exec(ctx, "UPDATE leases SET epoch = epoch WHERE name = $1 AND holder = $2 AND epoch = $3", l.Name, l.Holder, l.Epoch)
	if err == nil && n == 0 {
		err = l.lost()
	}
	return err
}

func (l Lease) lost() error {
	return fault.New(fault.Conflict, "the lease %q (epoch %d) is no longer held by %s", l.Name, l.Epoch, l.Holder)
}
