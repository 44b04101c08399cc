package clone

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
)

// turns are the leases that may be given to a node by hand.
var turns = []string{revocation.Lease, audit.Lease, "rollout"} // never changed

const (
	// turnFor is how long a lease is its new holder's before that one has taken it up; then others may have it, unless it is pinned.
	turnFor = 15 * time.Second
	// takeUp is how long Promote waits for the new holder.
	takeUp = 10 * time.Second
)

// turned is a lease that was handed over, and who had it before.
type turned struct {
	db.Lease
	From, WasPinned string
}

// Promote gives a node a lease: in one transaction it is the new holder's, and what the old one still does under it is refused. So
// there is no moment at which both or neither could, and nothing to take back when the caller is cut off. With a CRL's lease every
// issuer's list is asked for anew, so that the first list of the new holder shows that it signs. It waits until the holder has taken
// the lease up; from one that does not, since it died a moment ago for example, the lease goes back, and the answer is a Conflict. A call
// that was not answered may be repeated.
func (s *Service) Promote(ctx context.Context, by access.Principal, name string, in client.CloneTurn, call once.Call) (*client.Clone, error) {
	return s.turn(ctx, by, in, call, "clone.promote", func(ctx context.Context, tx *db.Tx, _ db.Lease) (string, error) {
		r, err := named(ctx, tx, name)
		if err != nil {
			return "", err
		}
		now, err := tx.Clock(ctx)
		if err != nil {
			return "", err
		}
		return r.name, mayHold(r, now)
	}, name)
}

// Demote gives a lease that a node has to another: the one that was seen last. It is no longer pinned then. A node that does not have
// it is left as it is.
func (s *Service) Demote(ctx context.Context, by access.Principal, name string, in client.CloneTurn, call once.Call) (*client.Clone, error) {
	if in.Pin {
		return nil, fault.New(fault.Invalid, "a lease is pinned to the node that gets it").At("/pin").WithHint("chancery clone promote NODE --pin")
	}
	return s.turn(ctx, by, in, call, "clone.demote", func(ctx context.Context, tx *db.Tx, l db.Lease) (string, error) {
		if _, err := named(ctx, tx, name); err != nil {
			return "", err
		}
		if l.Holder != name && l.Pinned != name {
			return "", nil
		}
		now, err := tx.Clock(ctx)
		if err != nil {
			return "", err
		}
		all, err := nodes(ctx, tx, "", MaxNodes)
		if err != nil {
			return "", err
		}
		all = slices.DeleteFunc(all, func(r *row) bool { return r.name == name || mayHold(r, now) != nil })
		if len(all) == 0 {
			return "", fault.New(fault.Conflict, "no other node that runs ca was seen in the last %s, so node %s keeps the lease %q", aliveFor, name, l.Name).
				WithHint("start another node, then try again; chancery clone list shows them")
		}
		return slices.MaxFunc(all, func(a, b *row) int { return a.seen.Compare(b.seen) }).name, nil
	}, name)
}

// mayHold refuses a node that could not do what only one node does; now is the database's.
func mayHold(r *row, now time.Time) error {
	switch {
	case r.state != client.CloneActive:
		return goneError(r)
	case !r.runs(keys.SubsystemCA):
		return fault.New(fault.Conflict, "node %s runs %v and has no issuer's key; only a node that runs ca can hold a lease", r.name, r.subsystems)
	case now.Sub(r.seen) >= aliveFor:
		return fault.New(fault.Conflict, "node %s was last seen at %s, and would leave the work undone; one that was seen in the last %s passes", r.name,
			r.seen.UTC().Format(time.RFC3339), aliveFor)
	}
	return nil
}

// turn hands a lease over to whom choose names; to nobody where that is empty. shown is the node that the answer is about.
func (s *Service) turn(ctx context.Context, by access.Principal, in client.CloneTurn, call once.Call, action string,
	choose func(context.Context, *db.Tx, db.Lease) (string, error), shown string) (*client.Clone, error) {
	if err := by.May(access.ManageNodes); err != nil {
		return nil, err
	}
	if in.Lease == "" {
		in.Lease = revocation.Lease
	}
	if !slices.Contains(turns, in.Lease) {
		return nil, fault.New(fault.Invalid, "there is no lease %.80q; %v would pass", in.Lease, turns).At("/lease")
	}
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if err := s.DB.CheckClock(now); err != nil {
		return nil, err
	}
	var given turned
	err = s.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		given, err = once.Act(ctx, tx, call, now, func() (turned, error) {
			return s.handOver(ctx, tx, by, in, action, choose, issuers, now)
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("give the lease %q away: %w", in.Lease, err)
	}
	if given.Holder != "" && in.Lease == revocation.Lease {
		held := context.WithoutCancel(ctx) // who asked may be cut off; the work is somebody's all the same
		err := s.takenUp(held, given.Lease)
		if errors.Is(err, errNotTakenUp) {
			err = s.takeBack(held, by, given, action)
		}
		if err != nil {
			return nil, err
		}
	}
	return s.Show(ctx, by, shown)
}

func (s *Service) handOver(ctx context.Context, tx *db.Tx, by access.Principal, in client.CloneTurn, action string,
	choose func(context.Context, *db.Tx, db.Lease) (string, error), issuers []*ca.Issuer, now time.Time) (turned, error) {
	had, err := db.LeaseOf(ctx, tx, in.Lease)
	if err != nil {
		return turned{}, err
	}
	to, err := choose(ctx, tx, had)
	if err != nil || to == "" {
		return turned{}, err
	}
	pinned := ""
	if in.Pin {
		pinned = to
	}
	if had.Holder == to && had.Pinned == pinned && had.Expires.After(now) {
		return turned{}, nil
	}
	given, err := db.HandOver(ctx, tx, in.Lease, to, in.Pin, turnFor, now)
	if err != nil {
		return turned{}, err
	}
	if in.Lease == revocation.Lease && had.Holder != to {
		for _, issuer := range issuers {
			if err := revocation.Ask(ctx, tx, issuer, now); err != nil {
				return turned{}, err
			}
		}
	}
	return turned{given, had.Holder, had.Pinned}, s.audit(ctx, tx, by.Actor(), action, to, map[string]any{
		"lease": in.Lease, "from": had.Holder, "epoch": given.Epoch, "pinned": in.Pin,
	}, now)
}

var errNotTakenUp = errors.New("the lease was not taken up")

// takenUp waits until the holder has renewed a lease that it was given: whoever does writes another end, which is of another clock than
// this node's and may be earlier.
func (s *Service) takenUp(ctx context.Context, given db.Lease) error {
	within, cancel := context.WithTimeout(ctx, takeUp)
	defer cancel()
	for {
		var l db.Lease
		err := s.DB.ReadSnapshot(within, func(tx *db.Tx) (err error) {
			l, err = db.LeaseOf(within, tx, given.Name)
			return err
		})
		switch {
		case err == nil && (l.Epoch > given.Epoch || !l.Expires.Equal(given.Expires)):
			return movedOn(l, given)
		case err != nil && within.Err() == nil:
			return err
		}
		select {
		case <-within.Done():
			return errNotTakenUp
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// movedOn is what to say of a lease that is not as it was given: nothing where the holder is the one who got it.
func movedOn(l, given db.Lease) error {
	if l.Holder == given.Holder {
		return nil
	}
	return fault.New(fault.Conflict, "node %s has the lease %q: it was given on, or node %s did not take it up", l.Holder, l.Name, given.Holder).
		WithHint("chancery clone status %s, then try again", given.Holder)
}

// takeBack gives a lease that was not taken up to who had it, or else to whoever comes first, and says so. What somebody did to it meanwhile
// stays, and is no error where it was the holder.
func (s *Service) takeBack(ctx context.Context, by access.Principal, given turned, action string) error {
	now, to, late := time.Now(), "", false
	ctx, cancel := context.WithTimeout(ctx, takeUp)
	defer cancel()
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		to, late = "", false
		l, err := db.LeaseOf(ctx, tx, given.Name)
		if err != nil {
			return err
		}
		if l.Epoch != given.Epoch || !l.Expires.Equal(given.Expires) {
			late = true
			return movedOn(l, given.Lease)
		}
		clock, err := tx.Clock(ctx)
		if err != nil {
			return err
		}
		r, err := named(ctx, tx, given.From)
		switch {
		case err == nil && r.name != given.Holder && mayHold(r, clock) == nil:
			to = r.name
			_, err = db.HandOver(ctx, tx, given.Name, to, given.WasPinned == to, turnFor, now)
		case err == nil || fault.Is(err, fault.NotFound):
			_, err = db.HandOver(ctx, tx, given.Name, given.Holder, false, 0, now)
		}
		if err != nil {
			return err
		}
		return s.audit(ctx, tx, by.Actor(), action, given.Holder, map[string]any{"lease": given.Name, "not_taken_up": true, "back_to": to}, now)
	})
	if err != nil || late {
		return err
	}
	back := "any node that runs ca may take it"
	if to != "" {
		back = "node " + to + " has it again"
	}
	return fault.New(fault.Conflict, "node %s did not take the lease %q up in %s; %s", given.Holder, given.Name, takeUp, back).
		WithHint("chancery clone status %s, then try again", given.Holder)
}
