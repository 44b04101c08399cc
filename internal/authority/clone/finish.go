package clone

import (
	"context"
	"errors"
	"fmt"
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
// those that have left, and ends the logins of those that are gone. Only a node with the ca subsystem can.
func (s *Service) Finish(ctx context.Context, now time.Time) error {
	var all []*row
	err := s.DB.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		all, err = nodes(ctx, tx, "", MaxNodes)
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
	var errs []error
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
		if err != nil {
			errs = append(errs, fmt.Errorf("finish node %s: %w", r.name, err))
		}
	}
	return errors.Join(errs...)
}
