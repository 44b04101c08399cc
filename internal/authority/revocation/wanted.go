package revocation

import (
	"context"
	"fmt"
	"math/big"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// Wish is what an operator may ask of a complete CRL. The zero value leaves all to the schedule.
type Wish struct {
	Number     *big.Int
	ThisUpdate time.Time
	NextUpdate time.Time

	since int64 // when it was asked for, in microseconds; 0 where nothing was
}

// maxAhead is how far thisUpdate may lie in the future: what clocks differ by.
const maxAhead = 5 * time.Minute

func (w Wish) check(validity time.Duration, now time.Time) error {
	this, next := w.times(now, validity)
	switch {
	case this.After(now.Add(maxAhead)):
		return fault.New(fault.Invalid, "thisUpdate %s is in the future; a CRL says what is revoked now",
			this.Format(time.RFC3339)).At("this_update")
	case !next.After(now) || !next.After(this):
		return fault.New(fault.Invalid, "nextUpdate %s is not after now and thisUpdate",
			next.Format(time.RFC3339)).At("next_update")
	case w.Number != nil && (w.Number.Sign() < 0 || w.Number.BitLen() > 159):
		return fault.New(fault.Invalid, "CRLNumber %v is not between 0 and 2^159 (RFC 5280 §5.2.3)", w.Number).At("number")
	}
	return nil
}

// times are thisUpdate and nextUpdate, to the second.
func (w Wish) times(now time.Time, validity time.Duration) (this, next time.Time) {
	this = now
	if !w.ThisUpdate.IsZero() {
		this = w.ThisUpdate
	}
	this = this.UTC().Truncate(time.Second)
	if next = w.NextUpdate.UTC().Truncate(time.Second); w.NextUpdate.IsZero() {
		next = this.Add(validity)
	}
	return this, next
}

// IssueCRL has the holder of the lease sign an issuer's complete CRL now, and its delta where it has one, and returns the
// complete one when it is published. The wish is kept for a repeated call, which waits for what the first one asked for and
// has nothing more signed: the list itself is made in the holder's transactions and not in this one's.
func (s *Service) IssueCRL(ctx context.Context, by access.Principal, nameOrID string, wish Wish, call once.Call) (*List, error) {
	now := time.Now()
	if err := by.May(access.IssueCRL); err != nil {
		return nil, err
	}
	issuer, err := s.ca.Issuer(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	if !signs(issuer, now) {
		return nil, offline(issuer)
	}
	set, err := s.settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	if err := wish.check(validity(set, issuer, Complete), now); err != nil {
		return nil, err
	}
	wish.since = db.Micros(now)
	var since int64
	err = s.db.Tx(ctx, func(tx *db.Tx) (err error) {
		since, err = once.Act(ctx, tx, call, now, func() (int64, error) { return wish.since, wish.insert(ctx, tx, issuer) })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask for a CRL of issuer %s: %w", issuer.Name, err)
	}
	for begun, looked := time.Now(), time.Now(); ; {
		l, err := s.granted(ctx, issuer, since)
		if err != nil {
			return nil, fmt.Errorf("wait for a CRL of issuer %s: %w", issuer.Name, err)
		}
		if l != nil {
			return l, nil
		}
		if err := sleep(ctx, tick/2); err != nil {
			return nil, s.unsigned(ctx, issuer, err)
		}
		if time.Since(begun) > forPinned && time.Since(looked) > time.Second {
			looked = time.Now()
			if l, gone, err := s.signer(ctx); err == nil && gone && l.Pinned != "" {
				return nil, s.unsigned(ctx, issuer, nil)
			}
		}
	}
}

// forPinned is how long a wish waits for a node that the work is pinned to, and that has not renewed its lease for the lease's whole time:
// nobody else will sign, and the caller should hear of it before his own patience ends.
const forPinned = 3 * time.Second

// signer is the lease of who signs, and whether he is gone.
func (s *Service) signer(ctx context.Context) (l db.Lease, gone bool, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		l, err = db.LeaseOf(ctx, tx, Lease)
		return err
	})
	return l, !l.Expires.After(time.Now()), err
}

// unsigned says that the wait is over before the list was signed, and who should have signed it.
func (s *Service) unsigned(ctx context.Context, issuer *ca.Issuer, over error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	said := "no node has signed the CRL of issuer " + issuer.Name + " yet"
	if l, gone, err := s.signer(ctx); err == nil {
		switch {
		case gone && l.Pinned != "":
			return (&fault.Error{Kind: fault.Unavailable, Err: over, Message: said + ": the work is pinned to node " + l.Pinned + ", which does not do it"}).
				WithHint("the wish is kept: start node %[1]s, or give the work to another: chancery clone demote %[1]s, or chancery clone promote NODE", l.Pinned)
		case gone:
			return (&fault.Error{Kind: fault.Unavailable, Err: over, Message: said + ": nobody has taken up the work"}).
				WithHint("the wish is kept: chancery clone status says which nodes are ready; one that runs ca takes it up")
		}
		said += ", node " + l.Holder + " has the work"
	}
	if over != nil {
		return fault.New(fault.Unavailable, "%s: %w", said, over)
	}
	return fault.New(fault.Unavailable, "%s", said)
}

func (w Wish) insert(ctx context.Context, tx *db.Tx, issuer *ca.Issuer) error {
	number := ""
	if w.Number != nil {
		last, err := lastNumber(ctx, tx, issuer.ID)
		if err != nil {
			return err
		}
		if w.Number.Cmp(last) <= 0 && last.Sign() > 0 {
			return fault.New(fault.Conflict, "CRLNumber %v is not greater than %v, the last one of issuer %s (RFC 5280 "+
				"§5.2.3)", w.Number, last, issuer.Name).At("number")
		}
		number = w.Number.String()
	}
	_, err := tx.Exec(ctx, `INSERT INTO crl_wanted (issuer, since, number, this_update, next_update) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (issuer) DO UPDATE SET since = excluded.since, number = excluded.number,
			this_update = excluded.this_update, next_update = excluded.next_update`,
		issuer.ID, w.since, number, db.MicrosOrZero(w.ThisUpdate), db.MicrosOrZero(w.NextUpdate))
	return err
}

func timeOrZero(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return db.FromMicros(micros)
}

// granted returns the list in force once the wish is no longer waiting, and nil before.
func (s *Service) granted(ctx context.Context, issuer *ca.Issuer, since int64) (l *List, err error) {
	err = s.db.ReadSnapshot(ctx, func(tx *db.Tx) error {
		var waiting int64
		err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM crl_wanted WHERE issuer = $1 AND since <= $2`, issuer.ID,
			since).Scan(&waiting)
		if err != nil || waiting > 0 {
			return err
		}
		l, err = currentList(ctx, tx, issuer.ID, Complete)
		return err
	})
	return l, err
}

// pending reads what is cheap to look at on every tick: the newest change of each issuer, and what operators wish.
func (s *Service) pending(ctx context.Context) (changes map[string]int64, wanted map[string]Wish, err error) {
	err = s.db.ReadSnapshot(ctx, func(tx *db.Tx) error {
		if changes, err = ca.LastChanges(ctx, tx); err != nil {
			return err
		}
		wanted, err = readWishes(ctx, tx)
		return err
	})
	return changes, wanted, err
}

func readWishes(ctx context.Context, tx *db.Tx) (map[string]Wish, error) {
	rows, err := tx.Query(ctx, `SELECT issuer, since, number, this_update, next_update FROM crl_wanted`)
	if err != nil {
		return nil, fmt.Errorf("read which CRLs are wanted: %w", err)
	}
	defer rows.Close()
	wanted := make(map[string]Wish)
	for rows.Next() {
		var (
			issuer, number string
			w              Wish
			this, next     int64
		)
		if err := rows.Scan(&issuer, &w.since, &number, &this, &next); err != nil {
			return nil, fmt.Errorf("read which CRLs are wanted: %w", err)
		}
		if number != "" {
			if w.Number, err = parseNumber(number); err != nil {
				return nil, err
			}
		}
		w.ThisUpdate, w.NextUpdate = timeOrZero(this), timeOrZero(next)
		wanted[issuer] = w
	}
	return wanted, rows.Err()
}

// fulfilled ends a wish. One that came meanwhile stays.
func (s *Service) fulfilled(ctx context.Context, issuer string, since int64) error {
	return s.db.Tx(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM crl_wanted WHERE issuer = $1 AND since <= $2`, issuer, since)
		return err
	})
}
