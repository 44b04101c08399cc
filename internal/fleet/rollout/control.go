package rollout

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// pauseFor pauses a rollout because of what was seen.
func (s *Service) pauseFor(ctx context.Context, d *drive, r *row, why string, now time.Time) error {
	err := s.within(ctx, d, r, func(tx *db.Tx, r *row) error {
		r.state, r.message = client.RolloutPaused, why
		if err := r.update(ctx, tx, now); err != nil {
			return err
		}
		return s.record(ctx, tx, driver.Actor(), "rollout.pause", r, map[string]any{"because": why, "stage": r.stage, "wave": r.wave}, now)
	})
	if err == nil {
		s.Logger.WarnContext(ctx, "a rollout is paused", "rollout", r.id, "pool", r.pool, "stage", r.stage, "because", why)
	}
	return err
}

// act changes a rollout in one transaction. A repeated call is answered with the rollout as it is.
func (s *Service) act(ctx context.Context, by access.Principal, id, verb string, call once.Call, may func(r *row) error,
	fn func(tx *db.Tx, r *row, now time.Time) error) (*client.Rollout, error) {
	now := time.Now()
	if err := s.DB.CheckClock(now); err != nil {
		return nil, err
	}
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		r, err := one(ctx, tx, id)
		if err != nil {
			return err
		}
		id = r.id
		if err := may(r); err != nil {
			return err
		}
		_, err = once.Act(ctx, tx, call, now, func() (once.Done, error) {
			if r.over() {
				return once.Done{}, fault.New(fault.Conflict, "rollout %s is %s since %s", r.id, r.state, r.ended.UTC().Format(time.RFC3339)).
					WithHint("chancery rollout start begins another")
			}
			return once.Done{}, fn(tx, r, now)
		})
		return err
	})
	s.CA.Forget()
	s.CA.Announce()
	if err != nil {
		return nil, fmt.Errorf("%s rollout %s: %w", verb, id, err)
	}
	s.rouse()
	return s.Show(ctx, by, id)
}

// mayDrive is for what changes the pace, and mayDecide for what changes the outcome.
func mayDrive(by access.Principal) func(*row) error {
	return func(*row) error { return by.May(access.ManageHosts) }
}

func mayDecide(by access.Principal) func(*row) error {
	return func(r *row) error {
		if movesTrust(r.kind) {
			return by.May(access.ManagePools)
		}
		return by.May(access.ManageHosts)
	}
}

// Pause stops a rollout where it is. Hosts that were told go on with what they do.
func (s *Service) Pause(ctx context.Context, by access.Principal, id string, call once.Call) (*client.Rollout, error) {
	return s.act(ctx, by, id, "pause", call, mayDrive(by), func(tx *db.Tx, r *row, now time.Time) error {
		if r.state == client.RolloutPaused {
			return nil
		}
		r.state, r.message = client.RolloutPaused, "by "+by.Actor()
		if err := r.update(ctx, tx, now); err != nil {
			return err
		}
		return s.record(ctx, tx, by.Actor(), "rollout.pause", r, map[string]any{"stage": r.stage, "wave": r.wave}, now)
	})
}

// Resume goes on with a rollout that is paused. Placements that fail now no longer pause it, but hold it until they are mended, or
// left out.
func (s *Service) Resume(ctx context.Context, by access.Principal, id string, in client.ResumeRolloutRequest, call once.Call) (*client.Rollout, error) {
	if len(in.Except) > 0 && in.Because == "" {
		return nil, fault.New(fault.Invalid, "leaving hosts or certificates out needs a reason that stays in the audit").At("/because")
	}
	if in.NoNodeProbe && in.Because == "" {
		return nil, fault.New(fault.Invalid, "to take the agents' word for what hosts serve needs a reason that stays in the audit").At("/because")
	}
	decides := len(in.Except) > 0 || in.NoNodeProbe
	if !decides && in.Because != "" {
		return nil, fault.New(fault.Invalid, "nothing is left out that needs a reason").At("/because")
	}
	may := mayDrive(by)
	if decides {
		may = mayDecide(by)
	}
	left, err := s.leftOut(ctx, id, in)
	if err != nil {
		return nil, fmt.Errorf("resume rollout %s: %w", id, err)
	}
	return s.act(ctx, by, id, "resume", call, may, func(tx *db.Tx, r *row, now time.Time) error {
		if r.state != client.RolloutPaused && !decides {
			return fault.New(fault.Conflict, "rollout %s is not paused: it is %s", r.id, r.state).WithHint("chancery rollout status %s", r.id)
		}
		if r.state == client.RolloutPaused {
			r.state, r.message = client.RolloutRunning, ""
		}
		for serial, because := range left.plan.Serials {
			if r.plan.Serials == nil {
				r.plan.Serials = map[string]string{}
			}
			r.plan.Serials[serial] = because
		}
		if err := s.leaveOut(ctx, tx, r, left.hosts, in.Because, now); err != nil {
			return err
		}
		if err := holdFailing(ctx, tx, r); err != nil {
			return err
		}
		r.spec.NoNodeProbe = r.spec.NoNodeProbe || in.NoNodeProbe
		if err := r.update(ctx, tx, now); err != nil {
			return err
		}
		if decides {
			err := s.record(ctx, tx, by.Actor(), "rollout.except", r, map[string]any{"except": in.Except, "because": in.Because, "noNodeProbe": in.NoNodeProbe}, now)
			if err != nil {
				return err
			}
		}
		return s.record(ctx, tx, by.Actor(), "rollout.resume", r, map[string]any{"stage": r.stage, "wave": r.wave}, now)
	})
}

// leftOut is what is not waited for any more.
type leftOut struct {
	*row
	hosts map[string]string // by name: why
}

func (s *Service) leftOut(ctx context.Context, id string, in client.ResumeRolloutRequest) (*leftOut, error) {
	out := &leftOut{hosts: map[string]string{}}
	var hosts []host.Member
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		if out.row, err = one(ctx, tx, id); err != nil {
			return err
		}
		hosts, err = allMembers(ctx, tx, out.pool)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, s.except(ctx, out.row, hosts, in.Except, in.Because, out.hosts)
}

func (s *Service) leaveOut(ctx context.Context, tx *db.Tx, r *row, hosts map[string]string, because string, now time.Time) error {
	if len(hosts) == 0 {
		return nil
	}
	if err := s.sync(ctx, tx, r, now); err != nil {
		return err
	}
	all, err := members(ctx, tx, r, ``)
	if err != nil {
		return err
	}
	for _, m := range all {
		if _, out := hosts[m.name]; out {
			if err := eachMember(ctx, tx, r, []string{m.id}, `because = $2`, because); err != nil {
				return err
			}
		}
	}
	return nil
}

// holdFailing has hosts whose placements fail now hold the wave, instead of pausing the rollout again at once.
func holdFailing(ctx context.Context, tx *db.Tx, r *row) error {
	told, err := members(ctx, tx, r, ` AND moved_at > 0`)
	if err != nil {
		return err
	}
	ids := idsOf(told)
	if err := markFailing(ctx, tx, r, ids); err != nil {
		return err
	}
	failing, err := members(ctx, tx, r, ` AND failing = 1`)
	if err != nil {
		return err
	}
	return eachMember(ctx, tx, r, idsOf(failing), `done_at = $2`, int64(0))
}

// Undo goes back: through the same stages, with the old and the new in each other's place. Where keys were replaced and nothing
// else, there is nothing to go back to: it stops, and says what stays.
func (s *Service) Undo(ctx context.Context, by access.Principal, id string, call once.Call) (*client.Rollout, error) {
	return s.act(ctx, by, id, "undo", call, mayDecide(by), func(tx *db.Tx, r *row, now time.Time) error {
		switch {
		case r.backwards:
			return fault.New(fault.Conflict, "rollout %s is being undone already", r.id).WithHint("chancery rollout status %s", r.id)
		case r.spec.Compromised && r.stage != client.StagePrepare:
			return fault.New(fault.Conflict, "rollout %s cannot be undone: %q is compromised, and what it certified is not to be trusted again", r.id, r.plan.Said.Old).
				WithHint("chancery rollout abort %s stops it where it is", r.id)
		}
		if _, err := s.anew(ctx, tx, r); err != nil {
			return err
		}
		if err := s.record(ctx, tx, by.Actor(), "rollout.undo", r, map[string]any{"stage": r.stage, "wave": r.wave}, now); err != nil {
			return err
		}
		switch {
		case r.stage == client.StagePrepare:
			if err := s.unmake(ctx, tx, r, now); err != nil {
				return err
			}
			return s.end(ctx, tx, r, client.RolloutUndone, "nothing had been changed yet", now)
		case r.kind == client.RolloutReissue || r.kind == client.RolloutIdentities:
			return s.stopReplacing(ctx, tx, r, client.RolloutUndone, now)
		}
		steps := map[string][]string{
			client.StageTrust: {client.StageLeave},
			client.StageRekey: {client.StageRekey, client.StageLeave},
			client.StageLeave: {client.StageTrust, client.StageRekey, client.StageLeave},
		}[r.stage]
		if !movesTrust(r.kind) {
			var err error
			if r.plan.Reissue, err = host.NextReissue(ctx, tx, now); err != nil {
				return err
			}
			steps = []string{client.StageRekey}
			if err := forgetUntold(ctx, tx, r); err != nil {
				return err
			}
		}
		for _, issuer := range r.plan.Closed {
			if err := s.CA.Reopen(ctx, tx, issuer, by.Actor(), now); err != nil {
				return err
			}
		}
		r.backwards, r.state, r.plan.Steps, r.plan.Closed = true, client.RolloutRunning, steps, nil
		return s.enter(ctx, tx, r, steps[0], nil, r.plan.Comes, now)
	})
}

// forgetUntold leaves the hosts that were told, and have something to go back from.
func forgetUntold(ctx context.Context, tx *db.Tx, r *row) error {
	if _, err := tx.Exec(ctx, `DELETE FROM rollout_host WHERE rollout = $1 AND moved_at = 0`, r.id); err != nil {
		return fmt.Errorf("write the hosts of rollout %s: %w", r.id, err)
	}
	return nil
}

// unmake retires what was made for a rollout that ends before anybody was told.
func (s *Service) unmake(ctx context.Context, tx *db.Tx, r *row, now time.Time) error {
	_, err := s.retire(ctx, tx, r.made(), now)
	return err
}

// stopReplacing ends a rollout that replaces keys. Hosts that have not begun are no longer asked to.
func (s *Service) stopReplacing(ctx context.Context, tx *db.Tx, r *row, state string, now time.Time) error {
	all, err := members(ctx, tx, r, ``)
	if err != nil {
		return err
	}
	standings, err := host.Standings(ctx, tx, r.goal(), idsOf(all))
	if err != nil {
		return err
	}
	var back []string
	kept, untouched := 0, 0
	for _, m := range all {
		switch {
		case m.moved && standings[m.id] == host.Reached:
			kept++
		case m.moved:
			back = append(back, m.id)
			untouched++
		default:
			untouched++
		}
	}
	what := map[string]string{
		client.RolloutReissue: "new keys", client.RolloutIdentities: "new identities", client.RolloutAlgorithm: "keys of the new algorithm",
	}[r.kind]
	message := fmt.Sprintf("with %s, which they keep, since what was there before is gone: %s; ", what, count(kept, "host"))
	if r.kind == client.RolloutAlgorithm { // they are told what their placements are to be, and that stays
		message += fmt.Sprintf("told to get them: %s; as before: %s", count(len(back), "host"), count(untouched-len(back), "host"))
		return s.end(ctx, tx, r, state, message, now)
	}
	if err := s.Hosts.Recall(ctx, tx, back); err != nil {
		return err
	}
	return s.end(ctx, tx, r, state, message+"as before: "+count(untouched, "host"), now)
}

// Abort ends a rollout where it is. Both the old and the new stay trusted, and what is placed stays in place; before all trust
// the new, nobody does any more.
func (s *Service) Abort(ctx context.Context, by access.Principal, id string, call once.Call) (*client.Rollout, error) {
	return s.act(ctx, by, id, "abort", call, mayDecide(by), func(tx *db.Tx, r *row, now time.Time) error {
		if err := s.record(ctx, tx, by.Actor(), "rollout.abort", r, map[string]any{"stage": r.stage, "wave": r.wave}, now); err != nil {
			return err
		}
		switch {
		case r.stage == client.StagePrepare:
			if err := s.unmake(ctx, tx, r, now); err != nil {
				return err
			}
			return s.end(ctx, tx, r, client.RolloutAborted, "nothing had been changed yet", now)
		case !movesTrust(r.kind):
			return s.stopReplacing(ctx, tx, r, client.RolloutAborted, now)
		case r.spec.Compromised:
			if err := s.letGo(ctx, tx, r, nil); err != nil {
				return err
			}
			return s.end(ctx, tx, r, client.RolloutAborted, fmt.Sprintf("%s stays dropped, since it is compromised; hosts that have no certificate under %s yet "+
				"are refused by their peers", r.plan.Said.Old, r.plan.Said.New), now)
		}
		if st, err := trust.StateOf(ctx, tx, r.pool); err != nil {
			return err
		} else if st.Version == r.plan.Before {
			return s.takeBack(ctx, tx, r, now)
		}
		if err := s.Trust.Adopt(ctx, tx, r.pool, r.plan.Both); err != nil {
			return err
		}
		if err := host.LetGo(ctx, tx, r.pool); err != nil {
			return err
		}
		return s.end(ctx, tx, r, client.RolloutAborted, r.afterAbort(), now)
	})
}

// takeBack ends a rollout whose new trust is not everybody's yet: perhaps because it does harm. Nobody else is given it, and those
// that have it go back.
func (s *Service) takeBack(ctx context.Context, tx *db.Tx, r *row, now time.Time) error {
	told, err := members(ctx, tx, r, ``)
	if err != nil {
		return err
	}
	for part := range slices.Chunk(idsOf(told), host.Moved) {
		if err := s.Hosts.Move(ctx, tx, host.Move{Trust: new(int64)}, part); err != nil {
			return err
		}
	}
	if err := s.unmake(ctx, tx, r, now); err != nil {
		return err
	}
	return s.end(ctx, tx, r, client.RolloutAborted, fmt.Sprintf("not all hosts trusted %s yet: nobody does any more, and %s stays", r.plan.Said.New, r.plan.Said.Old), now)
}

// Complete brings in what a root elsewhere signed, and goes on. A repeated call finishes one that was cut short.
func (s *Service) Complete(ctx context.Context, by access.Principal, id string, above, issuer *x509.Certificate, list []byte, call once.Call) (*client.Rollout, error) {
	if err := by.May(access.ManagePools); err != nil {
		return nil, err
	}
	var r *row
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		r, err = one(ctx, tx, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	if r.plan.Next == nil || !r.plan.Next.Outside {
		return nil, fault.New(fault.Conflict, "rollout %s waits for no root: it is %s", r.id, r.state).WithHint("chancery rollout status %s", r.id)
	}
	if r.over() {
		return nil, fault.New(fault.Conflict, "rollout %s is %s", r.id, r.state).WithHint("chancery rollout start begins another")
	}
	if err := s.make(ctx, r); err != nil { // where its beginning was cut short
		return nil, fmt.Errorf("complete rollout %s: %w", r.id, err)
	}
	if err := s.Pools.CompleteSuccessor(ctx, by, r.pool, r.plan.Next, above, issuer, list, call); err != nil {
		return nil, fmt.Errorf("complete rollout %s: %w", r.id, err)
	}
	s.rouse()
	return s.Show(ctx, by, r.id)
}
