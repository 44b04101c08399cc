package clone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

const (
	// takeUp is how long a new holder may take to take a lease up, and to publish what was asked for since it last renewed the lease, while the
	// database answers.
	takeUp = 10 * time.Second
	// takeUpAtMost is how long whoever promotes waits where it does not answer, or a holder renews and does not publish: a list of a million
	// entries takes some ten seconds. backWithin is how long he tries to give the lease back. Both together are less than a caller waits for an
	// answer.
	takeUpAtMost = 45 * time.Second
	backWithin   = 30 * time.Second
	// unansweredFor is how long a pinned lease may be unanswered, by what one process saw, before Finish gives it back: who handed it over is gone.
	unansweredFor = 30 * time.Second
)

var errNotTakenUp = errors.New("the lease was not taken up")

// takenUp waits until a lease stands as it was given. A holder that has taken it up has as long again for the first lists, from each time that
// it renews the lease: it works, and a long list takes its time. While the database does not answer, as in a failover, it could do neither,
// and its time begins anew.
func (s *Service) takenUp(ctx context.Context, given *turned) error {
	begun := time.Now()
	var had time.Time // until when the holder has the lease by its last word
	defer func() { given.waited = time.Since(begun) }()
	last := begun.Add(takeUpAtMost)
	for end := begun.Add(s.takeUp); ; {
		var l db.Lease
		var stands bool
		within, cancel := context.WithTimeout(ctx, takeUp)
		err := s.DB.ReadSnapshot(within, func(tx *db.Tx) (err error) {
			l, stands, err = given.stands(within, tx)
			return err
		})
		cancel()
		if err == nil && stands || fault.Is(err, fault.Conflict) {
			return err
		}
		now := time.Now()
		word := err == nil && given.answered(&l) && !l.Expires.Equal(had)
		if word {
			had = l.Expires
		}
		if err != nil || word {
			end = now.Add(s.takeUp)
		}
		if now.After(end) || now.After(last) {
			return errNotTakenUp
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// stands reports whether a lease is as it was given: the holder itself has taken it up, or renewed it since somebody gave it to it last, and
// of the lists that were asked for one at least of each place is in force. Only who has the lease publishes any. A Conflict says that it
// was given otherwise meanwhile.
func (given *turned) stands(ctx context.Context, tx *db.Tx) (l db.Lease, stands bool, err error) {
	if l, err = db.LeaseOf(ctx, tx, given.Name); err != nil {
		return l, false, err
	}
	if l.Holder != given.Holder {
		return l, false, given.otherwise(&l)
	}
	if !given.answered(&l) {
		return l, false, nil
	}
	if len(given.Lists) > 0 {
		numbers, err := revocation.CurrentNumbers(ctx, tx)
		if err != nil {
			return l, false, err
		}
		for _, of := range given.Lists {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(of)), func(issuer string) bool { return numbers[issuer].Number != of[issuer] }) {
				return l, false, nil
			}
		}
	}
	if l.Pinned != given.Pinned {
		return l, false, given.otherwise(&l)
	}
	return l, true, nil
}

// answered reports whether the holder has said anything since. Another process of its node begins another epoch when it takes the lease.
func (given *turned) answered(l *db.Lease) bool {
	return l.Released.IsZero() && (l.Epoch > given.Epoch || l.Epoch == given.Epoch && !l.Unanswered())
}

// otherwise says how a lease stands that is not as it was given.
func (given *turned) otherwise(l *db.Lease) error {
	pin := "not pinned"
	if l.Pinned != "" {
		pin = "pinned to " + l.Pinned
	}
	said := fmt.Sprintf("node %s has the lease %q (%s): it was given on", l.Holder, l.Name, pin)
	if l.Holder != given.Holder {
		said += fmt.Sprintf(", or node %s did not take it up", given.Holder)
	}
	return fault.New(fault.Conflict, "%s", said).WithHint("chancery clone status %s, then try again", given.Holder)
}

// takeBack undoes a hand-over after which the lease does not stand as it was given, and says how it stands now. While the database does not
// answer it tries again: where nobody takes it back, a lease that is pinned to a node that died is nobody's work.
func (s *Service) takeBack(ctx context.Context, by access.Principal, given *turned, action string) error {
	for end := time.Now().Add(backWithin); ; {
		said, err := s.tryBack(ctx, by, given, action)
		switch {
		case fault.Is(err, fault.Conflict), err == nil && said == nil:
			return err
		case err == nil:
			return said
		case time.Now().After(end):
			pin, then := "", "another node may take it when it has ended"
			if given.Pinned != "" {
				pin, then = ", pinned", "a node that runs ca gives it back when the database answers"
			}
			return (&fault.Error{Kind: fault.Unavailable, Err: err, Message: fmt.Sprintf(
				"node %s did not take the lease %q up, and the database did not answer to give it back: as far as is known node %s has it%s; %s",
				given.Holder, given.Name, given.Holder, pin, then)}).WithHint("chancery clone list shows who has it; then try again")
		}
		time.Sleep(250 * time.Millisecond)
	}
}

// tryBack returns what to say of a lease that was given back, and nil where it stands as it was given after all.
func (s *Service) tryBack(ctx context.Context, by access.Principal, given *turned, action string) (said, err error) {
	ctx, cancel := context.WithTimeout(ctx, takeUp)
	defer cancel()
	now := time.Now()
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		said = nil
		l, stands, err := given.stands(ctx, tx)
		if err != nil || stands {
			return err
		}
		all, clock, err := crowd(ctx, tx)
		if err != nil {
			return err
		}
		to, pinned := given.From, given.WasPinned
		if to != l.Holder && !slices.ContainsFunc(all, func(r *row) bool { return r.name == to && mayHold(r, all, clock) == nil }) {
			to, pinned = "", ""
		}
		if err := db.GiveBack(ctx, tx, l, to, pinned, turnFor, now); err != nil {
			return err
		}
		said = s.gaveBack(given, &l, to, pinned)
		return s.audit(ctx, tx, by.Actor(), action, given.Holder, map[string]any{"lease": given.Name, "not_taken_up": true, "back_to": to, "pinned": pinned != ""}, now)
	})
	return said, err
}

// gaveBack says why a lease went back, and where.
func (s *Service) gaveBack(given *turned, l *db.Lease, to, pinned string) error {
	failed := "did not take the lease %q up in %s"
	if given.answered(l) {
		failed = "has taken the lease %q up, and published no CRL in %s"
	}
	stands := "any node that runs ca may take it"
	switch {
	case to == l.Holder && pinned != "":
		stands = "it has it still, and it is pinned to it as before"
	case to == l.Holder:
		stands = "it has it still, and it is not pinned"
	case to != "":
		stands = "node " + to + " has it again"
		if pinned != "" {
			stands += ", pinned as before"
		}
	case given.WasPinned != "":
		stands += ", and it is no longer pinned to " + given.WasPinned
	}
	return fault.New(fault.Conflict, "node %s "+failed+"; %s", given.Holder, given.Name, cmp.Or(given.waited, s.takeUp).Round(time.Second), stands).
		WithHint("chancery clone status %s, then try again", given.Holder)
}

// unanswered is a hand-over that nobody has answered, and since when this process has seen that.
type unanswered struct{ given, since time.Time }

// finishTurns gives back what was handed over, pinned, to a node that did not take it up, where whoever handed it over is gone: another node
// would never take it. A lease that is not pinned another takes by itself.
func (s *Service) finishTurns(ctx context.Context, by access.Principal, leases []db.Lease, now time.Time) error {
	var failed []error
	for _, l := range leases {
		if !s.abandonedTurn(&l, now) {
			continue
		}
		said, err := s.tryBack(ctx, by, &turned{Lease: l, From: l.GivenFrom, WasPinned: l.GivenPinned}, "clone.promote")
		switch {
		case err != nil && !fault.Is(err, fault.Conflict):
			failed = append(failed, fmt.Errorf("give the lease %q back: %w", l.Name, err))
		case said != nil:
			s.Logger.WarnContext(ctx, "a lease that was handed over and not taken up was given back", "lease", l.Name, "why", said)
		}
	}
	return errors.Join(failed...)
}

func (s *Service) abandonedTurn(l *db.Lease, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !l.Unanswered() || l.Pinned == "" || l.GivenFrom == l.Holder && l.GivenPinned == l.Pinned {
		delete(s.turns, l.Name)
		return false
	}
	if s.turns == nil {
		s.turns = map[string]unanswered{}
	}
	seen, ok := s.turns[l.Name]
	if !ok || !seen.given.Equal(l.Given) {
		s.turns[l.Name] = unanswered{l.Given, now}
		return false
	}
	return now.Sub(seen.since) > unansweredFor
}
