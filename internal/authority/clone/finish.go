package clone

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
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
// those that have left, and ends the logins of those that are gone, also those that nobody came to remember, and their right to write.
// Only a node with the ca subsystem can.
func (s *Service) Finish(ctx context.Context, now time.Time) error {
	var all []*row
	var writing map[string]bool // none that is gone should be
	err := s.DB.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		if all, err = nodes(ctx, tx, "", MaxNodes); err == nil {
			writing, err = db.Writing(ctx, tx)
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
	errs := []error{s.findLogins(ctx, all)}
	for _, r := range all {
		var err error
		switch {
		case r.state == client.CloneActive && (lacking[r.name] || r.joinedBy != "" && r.answer.State != client.CloneActive):
			err = s.complete(ctx, by, r)
		case r.state == client.CloneLeaving && r.name != s.node && (r.report.Stopped || s.silent(r, now) > stoppedAfter):
			err = s.end(ctx, by, r, "clone.left", crl.CessationOfOperation, once.Call{}, now)
		case r.state == client.CloneGone && r.databaseRole != "":
			err = s.closeLogin(ctx, r.name)
		}
		if r.state == client.CloneGone && writing[r.name] { // after its login
			err = errors.Join(err, s.DB.RaiseFence(ctx, r.name))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("finish node %s: %w", r.name, err))
		}
	}
	return errors.Join(errs...)
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
			_, err := tx.Exec(ctx, `UPDATE node SET database_role = $1 WHERE name = $2 AND state = 'gone' AND database_role = ''`, role, node)
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
