package clone

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
)

// heard is when this node last saw another one's report change.
type heard struct{ seen, at time.Time }

// silent is for how long, by this node's clock alone, another node has not reported: the two clocks may be apart.
func (s *Service) silent(r *row, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.heard == nil {
		s.heard = map[string]heard{}
	}
	last, ok := s.heard[r.name]
	if !ok || !last.seen.Equal(r.seen) {
		last = heard{seen: r.seen, at: now}
		s.heard[r.name] = last
	}
	return now.Sub(last.at)
}

// stoppedAfter is how long a node that leaves may take to say that it has stopped, before it is taken for dead.
const stoppedAfter = time.Minute

// Finish does what was cut short, by whichever node: it completes approvals, gives nodes the wraps that they lack, takes all from
// those that have left, ends the logins of those that are gone, also those that nobody came to remember, and their right to write, and gives
// leases back that were handed to a node that did not take them up, and logins that were shut for a removal that came to nothing.
// Only a node with the ca subsystem can.
func (s *Service) Finish(ctx context.Context, now time.Time) error {
	var all []*row
	var writing, suspended map[string]bool // none that is gone should write, and none that is not be suspended for long
	var leases []db.Lease
	err := s.DB.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		if all, err = nodes(ctx, tx, "", MaxNodes); err == nil {
			writing, err = db.Writing(ctx, tx)
		}
		if err == nil {
			suspended, err = db.Suspended(ctx, tx)
		}
		if err == nil {
			leases, err = db.LeasesIn(ctx, tx)
		}
		return err
	})
	if err != nil {
		return err
	}
	able := false
	for _, r := range all {
		able = able || r.name == s.node && r.state == client.CloneActive && r.runs(keys.SubsystemCA)
	}
	if !able {
		return nil
	}
	lacking, err := s.Keys.Lacking(ctx)
	if err != nil {
		return err
	}
	by := access.System(s.node)
	errs := []error{s.findLogins(ctx, all), s.reopenLogins(ctx, all, now), s.limitReaders(ctx, all, now), s.finishTurns(ctx, by, leases, now)}
	for _, r := range all {
		var err error
		switch {
		case r.state == client.CloneActive && (lacking[r.name] || r.joinedBy != "" && r.answer.State != client.CloneActive):
			err = s.complete(ctx, by, r)
		case r.state == client.CloneLeaving && r.name != s.node && (r.report.Stopped || s.silent(r, now) > stoppedAfter):
			err = s.end(ctx, by, r, "clone.left", crl.CessationOfOperation, once.Call{}, now)
		case r.state == client.CloneGone && (r.databaseRole != "" || writing[r.name]):
			err = s.finishEnd(ctx, by, r.name, nil, once.Call{}, now)
		case r.state == client.CloneActive || r.state == client.CloneLeaving:
			over, is := suspended[r.name]
			if s.abandoned("suspended "+r.name, is, now) || over {
				s.resume(ctx, r.name)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("finish node %s: %w", r.name, err))
		}
	}
	return errors.Join(errs...)
}

// finishEnd does what is left of a node's end when it is gone, and is no error only when the node can write no more.
func (s *Service) finishEnd(ctx context.Context, by access.Principal, name string, issuers []string, call once.Call, now time.Time) error {
	err := errors.Join(s.closeLogin(ctx, name), s.raiseRest(ctx, by, name, issuers, now)) // with its login end the connections that may have the fence's row
	if err == nil && call.Key != "" {
		err = s.DB.Tx(ctx, func(tx *db.Tx) error {
			_, err := once.Act(ctx, tx, call, now, func() (done once.Done, err error) { return done, nil })
			return err
		})
	}
	if err == nil {
		return nil
	}
	hint := "chancery clone remove " + name + " tries again at once, and each node that runs ca does by itself"
	if why, ok := errors.AsType[*fault.Error](err); ok && why.Hint != "" {
		hint += "; " + why.Hint
	}
	return &fault.Error{Kind: fault.Unavailable, Err: err, Hint: hint,
		Message: "it is removed, and may write still: " + strings.ReplaceAll(err.Error(), "\n", "; ")}
}

// raiseRest raises the fence of a node that was gone before that could be done, and takes what the node has taken since.
func (s *Service) raiseRest(ctx context.Context, by access.Principal, name string, issuers []string, now time.Time) error {
	writes := false
	err := s.DB.ReadSnapshot(ctx, func(tx *db.Tx) error {
		writing, err := db.Writing(ctx, tx)
		writes = writing[name]
		return err
	})
	if err != nil || !writes {
		return err
	}
	if issuers == nil {
		if issuers, err = s.Identity.Issuers(ctx); err != nil {
			return err
		}
	}
	if err := s.DB.SuspendFence(ctx, name); err != nil {
		return err
	}
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		revoke := func(ref ca.Ref) error {
			return s.CA.RevokeSerial(ctx, tx, ref, crl.CessationOfOperation, by.Actor(), now)
		}
		if err := s.Identity.EndNode(ctx, tx, by, "", name, issuers, revoke, now); err != nil {
			return err
		}
		if err := db.Dismiss(ctx, tx, name); err != nil {
			return err
		}
		return db.RaiseFence(ctx, tx, name)
	})
	if err == nil {
		s.CA.Announce()
	}
	return err
}

// removeRest is the removal of a node that is gone: it does what is left of its end, and is refused where there is nothing.
func (s *Service) removeRest(ctx context.Context, by access.Principal, r *row, call once.Call, now time.Time) error {
	writes, known := false, false
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		writing, err := db.Writing(ctx, tx)
		if err == nil && call.Key != "" {
			_, known, err = once.Earlier[once.Done](ctx, tx, begun(call))
		}
		writes = writing[r.name]
		return err
	})
	if err != nil {
		return err
	}
	if (r.databaseRole == "" || s.CloseLogin == nil) && !writes && !known {
		return fault.New(fault.Conflict, "it has been gone since %s", r.gone.UTC().Format(time.RFC3339))
	}
	if err := s.needsCA(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
	defer cancel()
	return s.finishEnd(ctx, by, r.name, nil, call, now)
}

// resume has a node go on whose end has failed.
func (s *Service) resume(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), AliveFor)
	defer cancel()
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		r, err := find(ctx, tx, `name = $1 AND state <> 'gone'`, name)
		if err != nil || r == nil {
			return err
		}
		return db.ResumeFence(ctx, tx, name, micros(r.started)) // whoever registers takes the fence by that number
	})
	if err != nil {
		s.Logger.ErrorContext(ctx, "a node that was not removed after all cannot write; a node with the ca subsystem tries again", "node", name, "error", err)
	}
}

// abandoned reports whether what a removal does to a node that is none of the gone has been so for as long, as this process saw, that whoever
// removed it has ended meanwhile.
func (s *Service) abandoned(what string, is bool, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !is {
		delete(s.since, what)
		return false
	}
	if s.since == nil {
		s.since = map[string]time.Time{}
	}
	since, ok := s.since[what]
	if !ok {
		s.since[what] = now
	}
	return ok && now.Sub(since) > endWithin
}

// closeLogin ends a gone node's login, if it has one still.
func (s *Service) closeLogin(ctx context.Context, name string) error {
	r, err := s.read(ctx, name)
	if err != nil || r.databaseRole == "" || r.state != client.CloneGone || s.CloseLogin == nil {
		return err
	}
	if err := s.CloseLogin(ctx, r.databaseRole); err != nil {
		return err
	}
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE node SET database_role = '' WHERE name = $1 AND state = 'gone'`, name)
		return err
	})
}

// findLogins remembers the logins of nodes that are gone, so that they are ended: whoever gave one may have died before that was
// written, while the node was removed.
func (s *Service) findLogins(ctx context.Context, all []*row) error {
	if s.Logins == nil {
		return nil
	}
	var gone []string
	for _, r := range all {
		if r.state == client.CloneGone && r.databaseRole == "" && !r.approved.IsZero() && !slices.ContainsFunc(all, func(o *row) bool {
			return o.state != client.CloneGone && strings.EqualFold(o.name, r.name) // logins are of small letters: it is that node's
		}) {
			gone = append(gone, r.name)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	found, err := s.Logins(ctx, gone)
	if err != nil || len(found) == 0 {
		return err
	}
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		for node, role := range found {
			_, err := tx.Exec(ctx, `UPDATE node SET database_role = $1 WHERE name = $2 AND state = 'gone' AND database_role = ''
				AND NOT EXISTS (SELECT 1 FROM node o WHERE lower(o.name) = lower(node.name) AND o.state <> 'gone')`, role, node) // also one that came since
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remember the logins of nodes that are gone: %w", err)
	}
	for _, r := range all {
		if role, ok := found[r.name]; ok {
			r.databaseRole = role
		}
	}
	return nil
}
