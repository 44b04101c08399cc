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
	Name     string
	Holder   string
	Epoch    int64
	Expires  time.Time // when others may take it, if it is not renewed before; by the holder's clock
	Pinned   string    // the only one who may take it, even while he is away; empty for whoever comes first
	Released time.Time // when its holder let go of it, or was dismissed, by the database's clock; zero while neither is so

	// Of the last hand-over: what it wrote into Expires, and who had the lease before, and to whom it was pinned then; where one came after
	// another that was not answered, before the first of them.
	Given                  time.Time
	GivenFrom, GivenPinned string
}

// Unanswered reports whether the lease stands as it was handed over: its holder has neither taken nor renewed it since.
func (l *Lease) Unanswered() bool {
	return !l.Given.IsZero() && l.Released.IsZero() && l.Given.Equal(l.Expires)
}

const leaseColumns = "holder, epoch, expires_at, pinned, given, given_from, given_pinned"

// scan reads leaseColumns, after what comes before them.
func (l *Lease) scan(row interface{ Scan(...any) error }, before ...any) error {
	var expires, given int64
	err := row.Scan(append(before, &l.Holder, &l.Epoch, &expires, &l.Pinned, &given, &l.GivenFrom, &l.GivenPinned)...)
	if l.dated(expires); given != 0 {
		l.Given = FromMicros(given)
	}
	return err
}

// dated reads the column expires_at: above 0 it is when the lease expires; below, as a negative number, when it was let go of. 0 is let go
// of as well, at a time that nobody noted.
func (l *Lease) dated(at int64) {
	if at < 0 {
		l.Released, at = FromMicros(-at), 0
	}
	l.Expires = FromMicros(at)
}

// Acquire takes the lease, or renews it where this process has it already as holder; one that another process of that name had, or that
// was handed over, gets a new epoch. ok is false while another holder's has not expired, while it is pinned to another, or while this node's
// clock is ahead; the lease returned is then as it stands.
func (d *DB) Acquire(ctx context.Context, name, holder string, ttl time.Duration) (l Lease, ok bool, err error) {
	return d.acquireAt(ctx, name, holder, ttl, time.Now())
}

func (d *DB) acquireAt(ctx context.Context, name, holder string, ttl time.Duration, now time.Time) (l Lease, ok bool, err error) {
	if name == "" || holder == "" || ttl <= 0 {
		return Lease{}, false, fault.New(fault.Invalid, "a lease needs a name, a holder and a time to live; got %q, %q, %s", name, holder, ttl)
	}
	err = d.Tx(ctx, func(tx *Tx) error {
		l, ok = Lease{Name: name, Holder: holder, Epoch: 1, Expires: FromMicros(Micros(now.Add(ttl)))}, false
		have, err := leaseOf(ctx, tx, name)
		switch live := err == nil && d.leases.live(have, ttl, now); {
		case (err == nil || errors.Is(err, sql.ErrNoRows)) && d.ahead.Load() != nil:
			l = have
			return nil
		case errors.Is(err, sql.ErrNoRows):
			ok = true
			_, err = tx.Exec(ctx, "INSERT INTO leases (name, holder, epoch, expires_at) VALUES ($1, $2, $3, $4)",
				name, holder, l.Epoch, Micros(l.Expires))
			return err
		case err != nil:
			return err
		case have.Holder != holder && live, have.Pinned != "" && have.Pinned != holder:
			l = have
			return nil
		case have.Holder == holder && live && d.leases.own(have):
			l.Epoch = have.Epoch
		default: // also where it is another process's of the same name
			l.Epoch = have.Epoch + 1
		}
		ok, l.Pinned = true, have.Pinned
		_, err = tx.Exec(ctx, "UPDATE leases SET holder = $2, epoch = $3, expires_at = $4 WHERE name = $1",
			name, holder, l.Epoch, Micros(l.Expires))
		return err
	})
	if ok = ok && err == nil; ok {
		d.leases.began(l, now)
	}
	return l, ok, err
}

// Renew prolongs the lease by ttl from now. It is a Conflict when another holder has taken it since, and when this one has let go of it: what
// its holder still does must not keep it from others.
func (d *DB) Renew(ctx context.Context, l Lease, ttl time.Duration) (Lease, error) {
	l.Expires = FromMicros(Micros(time.Now().Add(ttl)))
	err := d.Tx(ctx, func(tx *Tx) error {
		n, err := tx.Exec(ctx, "UPDATE leases SET expires_at = $4 WHERE name = $1 AND holder = $2 AND epoch = $3 AND expires_at > 0",
			l.Name, l.Holder, l.Epoch, Micros(l.Expires))
		if err == nil && n == 0 {
			err = l.lost()
		}
		return err
	})
	return l, err
}

// Dismiss takes every lease from a holder that is no more, and frees those that were pinned to it.
func Dismiss(ctx context.Context, tx *Tx, holder string) error {
	now, err := tx.Clock(ctx)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "UPDATE leases SET expires_at = $2, epoch = epoch + 1 WHERE holder = $1 AND expires_at > 0", holder, -Micros(now))
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "UPDATE leases SET pinned = '' WHERE pinned = $1", holder)
	return err
}

// Vacant reports whether holder could take the lease, or has it, as far as what is read shows. It writes nothing, so a node may ask
// often whether Acquire is worth a transaction.
func (d *DB) Vacant(ctx context.Context, name, holder string, ttl time.Duration, now time.Time) (vacant bool, err error) {
	if d.ahead.Load() != nil {
		return false, nil
	}
	err = d.Read(ctx, func(tx *Tx) error {
		have, err := leaseOf(ctx, tx, name)
		if errors.Is(err, sql.ErrNoRows) {
			vacant = true
			return nil
		}
		vacant = have.Holder == holder || !d.leases.live(have, ttl, now) && (have.Pinned == "" || have.Pinned == holder)
		return err
	})
	return vacant, err
}

// Held reports whether the lease is still its holder's, as far as what is read shows, and as which it stands; it protects no write. A holder
// asks often, so that it lets go as soon as the lease was handed over, and answers where it was handed to it once more.
func (d *DB) Held(ctx context.Context, l Lease) (have Lease, held bool, err error) {
	err = d.Read(ctx, func(tx *Tx) (err error) {
		have, err = leaseOf(ctx, tx, l.Name)
		held = have.Epoch < l.Epoch || have.Epoch == l.Epoch && have.Holder == l.Holder // a standby may show what was before
		return err
	})
	return have, held, err
}

// Handed reports whether the lease was handed to holder, who has not answered yet, as far as what is read shows. It answers by Acquire.
func (d *DB) Handed(ctx context.Context, name, holder string) (handed bool, err error) {
	err = d.Read(ctx, func(tx *Tx) error {
		have, err := LeaseOf(ctx, tx, name)
		handed = have.Holder == holder && have.Unanswered()
		return err
	})
	return handed, err
}

// Release lets others take the lease at once. Releasing a lease that was lost does nothing.
func (d *DB) Release(ctx context.Context, l Lease) error {
	return d.Tx(ctx, func(tx *Tx) error {
		now, err := tx.Clock(ctx)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "UPDATE leases SET expires_at = $4 WHERE name = $1 AND holder = $2 AND epoch = $3 AND expires_at > 0",
			l.Name, l.Holder, l.Epoch, -Micros(now))
		return err
	})
}

// Leases lists all leases, by name; one that has expired is nobody's, whoever held it last.
func (d *DB) Leases(ctx context.Context) ([]Lease, error) {
	var all []Lease
	err := d.Read(ctx, func(tx *Tx) (err error) {
		all, err = LeasesIn(ctx, tx)
		return err
	})
	return all, err
}

// LeasesIn is Leases as tx sees them.
func LeasesIn(ctx context.Context, tx *Tx) ([]Lease, error) {
	rows, err := tx.Query(ctx, "SELECT name, "+leaseColumns+" FROM leases ORDER BY name")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []Lease
	for rows.Next() {
		var l Lease
		if err := l.scan(rows, &l.Name); err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, rows.Err()
}

// LeaseOf reads a lease; the zero value but for its name where nobody ever had it.
func LeaseOf(ctx context.Context, tx *Tx, name string) (Lease, error) {
	l, err := leaseOf(ctx, tx, name)
	if errors.Is(err, sql.ErrNoRows) {
		return Lease{Name: name}, nil
	}
	return l, err
}

func leaseOf(ctx context.Context, tx *Tx, name string) (l Lease, err error) {
	l.Name = name
	err = l.scan(tx.QueryRow(ctx, "SELECT "+leaseColumns+" FROM leases WHERE name = $1", name))
	return l, err
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
