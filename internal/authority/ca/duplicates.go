package ca

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// guard keeps a host in a loop from filling the store. What it got for the same key, names and profile within the window is
// returned again; so many certificates for the same names with new keys each time are refused.
func (c *CA) guard(ctx context.Context, tx *db.Tx, by access.Principal, s *signed, now time.Time) (*Certificate, error) {
	if !by.Has(access.Host) || isSystem(by) {
		return nil, nil
	}
	got, err := duplicates(ctx, tx, by, s.certificate, s.limits.Duplicates, now.Add(-s.limits.DuplicateWindow.Std()))
	if err != nil {
		return nil, err
	}
	for _, r := range got {
		if r.State == Valid && s.certificate.Replaces == 0 && string(r.PublicKey()) == string(s.certificate.PublicKey()) {
			return c.complete(ctx, tx, r, now)
		}
	}
	return nil, tooMany(by, s.certificate, got, s.limits.Duplicates, s.limits.DuplicateWindow.Std(), "limits.duplicates")
}

// guardCaller bounds other callers, and the identities of each principal, before anything is signed. It does not wait for the
// writes that are under way, so callers at once may get a few more; a loop is found all the same. The store is read only for
// names that were asked for often, since reading it for each certificate took a tenth of the time of issuance.
func (c *CA) guardCaller(ctx context.Context, by access.Principal, p *plan, now time.Time) error {
	if isSystem(by) {
		if by.ID != access.System(callersIdentities).ID {
			return nil
		}
	} else if by.Has(access.Host) {
		return nil // guard is stricter
	}
	set, err := c.settings.Get(ctx)
	if err != nil {
		return err
	}
	wished := &Certificate{Profile: p.profile}
	wished.take(p.facts)
	limit, window := set.Limits.OperatorDuplicates, set.Limits.DuplicateWindow.Std()
	if seldom*c.asked.add(by.ID, wished.searchNames()[0], window, now) < limit {
		return nil
	}
	var got []*record
	err = c.db.Read(ctx, func(tx *db.Tx) (err error) {
		got, err = duplicates(ctx, tx, by, wished, limit, now.Add(-window))
		return err
	})
	if err != nil {
		return err
	}
	return tooMany(by, wished, got, limit, window, "limits.operator_duplicates")
}

// duplicates are the certificates that a caller got for the same names and profile since a time.
func duplicates(ctx context.Context, tx *db.Tx, by access.Principal, wished *Certificate, limit int64, since time.Time) ([]*record, error) {
	rows, err := tx.Query(ctx, `SELECT `+certificateColumns+certificateFrom+` WHERE c.name = $1 AND c.id >= $2 ORDER BY c.name, c.id DESC LIMIT $3`,
		[]byte(wished.searchNames()[0]), firstID(since), 4*limit)
	if err != nil {
		return nil, fmt.Errorf("look for duplicates: %w", err)
	}
	found, err := collect(rows)
	if err != nil {
		return nil, fmt.Errorf("look for duplicates: %w", err)
	}
	var got []*record
	for _, r := range found {
		if r.Requester == by.ID && r.sameWish(wished) {
			got = append(got, r)
		}
	}
	return got, nil
}

func tooMany(by access.Principal, wished *Certificate, got []*record, limit int64, window time.Duration, bound string) error {
	if int64(len(got)) < limit {
		return nil
	}
	return fault.New(fault.RateLimited, "%s got %d certificates for %s within %s; at most %d are issued", by.Name, len(got),
		wished.searchNames()[0], window, limit).
		WithHint("use the newest of them; %s and limits.duplicate_window are the bounds", bound)
}
