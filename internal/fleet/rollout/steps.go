package rollout

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/crl"
	"chancery/internal/store/db"
)

// move marks the hosts that have fulfilled the stage, and tells others what is wanted of them, in one transaction.
func (s *Service) move(ctx context.Context, d *drive, r *row, reached, tell []member, now time.Time) error {
	err := s.within(ctx, d, r, func(tx *db.Tx, r *row) error {
		for _, m := range reached {
			if m.message != "" {
				if err := eachMember(ctx, tx, r, []string{m.id}, `message = $2`, m.message); err != nil {
					return err
				}
			}
		}
		if err := eachMember(ctx, tx, r, idsOf(reached), `done_at = $2, failing = 0`, db.Micros(now)); err != nil {
			return err
		}
		return s.tell(ctx, tx, r, tell, now)
	})
	if err == nil && r.spec.Compromised && len(tell) > 0 {
		s.CA.Announce()
	}
	return err
}

func idsOf(all []member) []string {
	ids := make([]string, len(all))
	for i, m := range all {
		ids[i] = m.id
	}
	return ids
}

// tell tells hosts what the present stage wants of them.
func (s *Service) tell(ctx context.Context, tx *db.Tx, r *row, all []member, now time.Time) error {
	if len(all) == 0 {
		return nil
	}
	ids := idsOf(all)
	if err := eachMember(ctx, tx, r, ids, `moved_at = $2`, db.Micros(now)); err != nil {
		return err
	}
	if err := markFailing(ctx, tx, r, ids); err != nil {
		return err
	}
	if r.kind == client.RolloutReissue && r.spec.Compromised {
		if err := s.revoke(ctx, tx, r, idsOf(waited(all)), now); err != nil {
			return err
		}
	}
	if r.kind == client.RolloutAlgorithm {
		for _, m := range all {
			var c change
			if err := json.Unmarshal([]byte(m.before), &c); err != nil {
				return fmt.Errorf("read what changes at host %s: %w", m.name, err)
			}
			changes := c.After
			if r.backwards {
				changes = c.Before
			}
			if err := host.Parametrize(ctx, tx, m.id, changes, r.plan.Reissue); err != nil {
				return err
			}
		}
	}
	if movesTrust(r.kind) && r.backwards && r.stage == client.StageRekey {
		if err := r.holdRest(ctx, tx, ids); err != nil {
			return err
		}
	}
	return s.Hosts.Move(ctx, tx, r.move(), ids)
}

// markFailing notes which of the hosts have placements that fail already: that they do is no sign of what they are told now.
func markFailing(ctx context.Context, tx *db.Tx, r *row, ids []string) error {
	const some = 10_000
	failures, err := host.Failures(ctx, tx, r.pool, some)
	if err != nil || len(failures) == 0 {
		return err
	}
	told := make(map[string]bool, len(ids))
	for _, id := range ids {
		told[id] = true
	}
	failing := map[string]bool{}
	for _, f := range failures {
		if told[f.ID] {
			failing[f.ID] = true
		}
	}
	return eachMember(ctx, tx, r, sorted(failing), `failing = $2`, int64(1))
}

// revokedAtOnce is how many certificates of one host are looked for at once.
const revokedAtOnce = 100

// revoke revokes what hosts hold, since their keys are said to be compromised.
func (s *Service) revoke(ctx context.Context, tx *db.Tx, r *row, ids []string, now time.Time) error {
	machines, err := host.Machines(ctx, tx, ids)
	if err != nil {
		return err
	}
	for _, id := range ids {
		for n := revokedAtOnce; n == revokedAtOnce && machines[id] != ""; {
			if n, err = s.CA.RevokeAll(ctx, tx, machines[id], crl.KeyCompromise, revokedAtOnce, driver.Actor(), now); err != nil {
				return err
			}
		}
	}
	return nil
}

// advance goes on to the next wave, or the next stage, if all hosts are seen to have fulfilled what they were told. That is looked
// at anew in the transaction that goes on, and for a stage at all hosts of the pool, those that came meanwhile too.
func (s *Service) advance(ctx context.Context, d *drive, r *row, now time.Time) error {
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return err
	}
	drop, err := s.present(ctx, r)
	if err != nil {
		return err
	}
	err = s.within(ctx, d, r, func(tx *db.Tx, r *row) error {
		if err := s.sync(ctx, tx, r, now); err != nil {
			return err
		}
		open, err := stillOpen(ctx, tx, r)
		if err != nil || open {
			return err
		}
		if !r.last() {
			return s.nextWave(ctx, tx, r, now)
		}
		present, err := r.issuersIn(ctx, tx, issuers)
		if err != nil {
			return err
		}
		return s.nextStage(ctx, tx, r, present, drop, now)
	})
	s.CA.Forget() // also after an error: the outcome may be unknown
	s.CA.Announce()
	return err
}

// stillOpen reports whether a host of the waves up to the present one is waited for. At the end of a stage those count that
// fulfilled it once, too: one that was set back does not any more.
func stillOpen(ctx context.Context, tx *db.Tx, r *row) (bool, error) {
	where, args := ` AND wave <= $2 AND because = '' AND done_at = 0`, []any{r.wave}
	if r.last() {
		where, args = ` AND because = ''`, nil
	}
	waited, err := members(ctx, tx, r, where, args...)
	if err != nil {
		return false, err
	}
	standings, err := host.Standings(ctx, tx, r.goal(), idsOf(waited))
	if err != nil {
		return false, err
	}
	open := false
	var setBack []string
	for _, m := range waited {
		if standing, there := standings[m.id]; there && standing == host.Short || there && standing == host.Reached && !m.done {
			open = true
			if m.done {
				setBack = append(setBack, m.id)
			}
		}
	}
	return open, eachMember(ctx, tx, r, setBack, `done_at = $2`, int64(0))
}

// nextWave goes on to the next wave that has hosts.
func (s *Service) nextWave(ctx context.Context, tx *db.Tx, r *row, now time.Time) error {
	if err := s.toWave(ctx, tx, r, r.wave+1); err != nil {
		return err
	}
	return s.moved(ctx, tx, r, "rollout.wave", now)
}

// toWave sets the wave to the first from n on that has hosts, or else to the last.
func (s *Service) toWave(ctx context.Context, tx *db.Tx, r *row, n int64) error {
	err := tx.QueryRow(ctx, `SELECT COALESCE(MIN(wave), 0) FROM rollout_host WHERE rollout = $1 AND wave >= $2`, r.id, n).Scan(&r.wave)
	if err != nil {
		return fmt.Errorf("find the next wave of rollout %s: %w", r.id, err)
	}
	if r.wave == 0 {
		r.wave = int64(len(r.plan.Waves))
	}
	return nil
}

// moved writes the rollout as it is now, with its event.
func (s *Service) moved(ctx context.Context, tx *db.Tx, r *row, action string, now time.Time) error {
	r.moved, r.message = now, ""
	if err := r.update(ctx, tx, now); err != nil {
		return err
	}
	detail := map[string]any{"stage": r.stage, "wave": r.wave, "pool": r.pool}
	if r.wave > 0 {
		detail["hosts"] = r.plan.Waves[r.wave-1]
	}
	if r.backwards {
		detail["backwards"] = true
	}
	return s.record(ctx, tx, driver.Actor(), action, r, detail, now)
}

// nextStage ends the present stage and begins the next, unless somebody holds it: then it says who, and is called again.
func (s *Service) nextStage(ctx context.Context, tx *db.Tx, r *row, issuers []*ca.Issuer, drop []string, now time.Time) error {
	next := r.next()
	if (next == client.StageLeave || r.stage == client.StageLeave) && !r.spec.Compromised { // again at the end: another node may have issued meanwhile
		held, err := s.gate(ctx, tx, r, r.leaving(issuers), now)
		if err != nil || len(held) > 0 {
			return err
		}
	}
	if r.stage == client.StageTrust && !r.backwards { // all have it: it becomes what hosts have that come from now on
		if err := s.Trust.Adopt(ctx, tx, r.pool, r.plan.Both); err != nil {
			return err
		}
		if err := host.Hold(ctx, tx, r.pool, r.issuing(issuers)); err != nil {
			return err
		}
	}
	if next == "" {
		return s.finish(ctx, tx, r, issuers, now)
	}
	return s.enter(ctx, tx, r, next, issuers, drop, now)
}

// enter begins a stage.
func (s *Service) enter(ctx context.Context, tx *db.Tx, r *row, stage string, issuers []*ca.Issuer, drop []string, now time.Time) error {
	var err error
	if movesTrust(r.kind) {
		if err := r.targetLasts(stage, issuers, now); err != nil {
			return err
		}
	}
	r.stage = stage
	switch {
	case !movesTrust(r.kind):
	case stage == client.StageLeave && r.spec.Compromised:
		return s.dropNow(ctx, tx, r, issuers, drop, now)
	case stage == client.StageTrust && !r.backwards:
		err = s.enterTrust(ctx, tx, r, issuers)
	case stage == client.StageRekey && !r.backwards:
		err = s.CA.Succeed(ctx, tx, r.plan.To, driver.Actor(), now)
	case stage == client.StageRekey:
		err = s.CA.Succeed(ctx, tx, r.plan.From, driver.Actor(), now)
	case stage == client.StageLeave:
		err = s.enterLeave(ctx, tx, r, drop, now)
	}
	if err != nil {
		return err
	}
	return s.begin(ctx, tx, r, now)
}

// begin begins the first wave of a stage that was entered.
func (s *Service) begin(ctx context.Context, tx *db.Tx, r *row, now time.Time) error {
	if err := setOut(ctx, tx, r); err != nil {
		return err
	}
	if err := s.toWave(ctx, tx, r, 1); err != nil {
		return err
	}
	return s.moved(ctx, tx, r, "rollout.stage", now)
}

// enterTrust makes the version of the pool's trust that has the old and the new.
func (s *Service) enterTrust(ctx context.Context, tx *db.Tx, r *row, issuers []*ca.Issuer) error {
	target, err := r.target(issuers)
	if err != nil {
		return err
	}
	before, err := trust.StateOf(ctx, tx, r.pool)
	if err != nil {
		return err
	}
	r.plan.Before, r.plan.ToPrint = before.Version, trust.Fingerprint(target.Certificate)
	r.plan.Both, err = s.Trust.Stage(ctx, tx, r.pool, lineage(target, issuers), nil)
	return err
}

// enterLeave makes the version without what leaves. One that is undone before the new trust was everybody's goes back to the
// version that is everybody's still. What leaves issues no more from here on: a certificate that somebody gets now would be
// refused by all in a moment.
func (s *Service) enterLeave(ctx context.Context, tx *db.Tx, r *row, drop []string, now time.Time) error {
	leaves := r.plan.Retires
	if r.backwards {
		leaves = r.made()
	}
	var err error
	if r.plan.Closed, err = s.retire(ctx, tx, leaves, now); err != nil {
		return err
	}
	at, err := trust.StateOf(ctx, tx, r.pool)
	if err != nil {
		return err
	}
	if r.backwards && at.Version == r.plan.Before {
		r.plan.After = r.plan.Before
		return nil
	}
	r.plan.After, err = s.Trust.Stage(ctx, tx, r.pool, nil, drop)
	return err
}

// target is the issuer that hosts go to. What is made for the rollout, and was not trusted before, is what leaves when it is
// undone.
func (r *row) target(issuers []*ca.Issuer) (*ca.Issuer, error) {
	i := slices.IndexFunc(issuers, func(i *ca.Issuer) bool { return i.Name == r.plan.To && i.Certificate != nil })
	if i < 0 {
		return nil, fault.New(fault.Conflict, "issuer %q, which the hosts are to go to, is not there", r.plan.To)
	}
	target := issuers[i]
	r.plan.remember(target)
	r.plan.Comes = nil
	if n := r.plan.Next; n != nil {
		r.plan.Comes = []string{trust.Fingerprint(target.Certificate)}
		if n.Root != "" {
			r.plan.Comes = append(r.plan.Comes, trust.Fingerprint(highest(target)))
		}
	}
	return target, nil
}

// lineage is an issuer with those above it that are ours: their CRLs are ours too, and are to be had by whoever trusts them.
func lineage(target *ca.Issuer, issuers []*ca.Issuer) []*ca.Issuer {
	all := []*ca.Issuer{target}
	for _, i := range issuers {
		if i.Certificate != nil && slices.ContainsFunc(target.Chain, i.Certificate.Equal) {
			all = append(all, i)
		}
	}
	return all
}

// retire has issuers issue no more, and returns those that did until now.
func (s *Service) retire(ctx context.Context, tx *db.Tx, ids []string, now time.Time) (closed []string, err error) {
	for _, id := range ids {
		ended, err := s.CA.EndIssuing(ctx, tx, id, driver.Actor(), now)
		if err != nil {
			return nil, err
		}
		if ended {
			closed = append(closed, id)
		}
	}
	return closed, nil
}

// made are the issuers that were made for the rollout, by name.
func (r *row) made() []string {
	if r.plan.Next == nil {
		return nil
	}
	if r.plan.Next.Root == "" {
		return []string{r.plan.Next.Issuer}
	}
	return []string{r.plan.Next.Issuer, r.plan.Next.Root}
}

// finish ends a rollout whose stages are all gone through.
func (s *Service) finish(ctx context.Context, tx *db.Tx, r *row, issuers []*ca.Issuer, now time.Time) error {
	state := client.RolloutDone
	if r.backwards {
		state = client.RolloutUndone
	}
	if movesTrust(r.kind) {
		if r.plan.After != 0 {
			if err := s.Trust.Adopt(ctx, tx, r.pool, r.plan.After); err != nil {
				return err
			}
		}
		retires := r.plan.Retires
		if r.backwards {
			retires = r.made()
		}
		if _, err := s.retire(ctx, tx, retires, now); err != nil {
			return err
		}
		if err := s.letGo(ctx, tx, r, issuers); err != nil {
			return err
		}
	}
	return s.end(ctx, tx, r, state, "", now)
}

// end writes that a rollout has ended.
func (s *Service) end(ctx context.Context, tx *db.Tx, r *row, state, message string, now time.Time) error {
	r.state, r.message, r.ended = state, message, now
	if movesTrust(r.kind) {
		if err := s.Trust.Unclaim(ctx, tx, r.pool, r.id); err != nil {
			return err
		}
	}
	if err := r.update(ctx, tx, now); err != nil {
		return err
	}
	return s.record(ctx, tx, driver.Actor(), "rollout.done", r, map[string]any{"state": state, "pool": r.pool, "kind": r.kind}, now)
}

// present are the fingerprints, of those that leave in the stage that comes next, that the pool has entries of: one whose
// certificate has ended may have left by itself.
func (s *Service) present(ctx context.Context, r *row) ([]string, error) {
	prints := r.plan.Leaves
	if r.backwards {
		prints = r.plan.Comes
	}
	if len(prints) == 0 || !movesTrust(r.kind) {
		return nil, nil
	}
	entries, err := s.Trust.Entries(ctx, driver, r.pool)
	if err != nil {
		return nil, err
	}
	var there []string
	for _, print := range prints {
		if slices.ContainsFunc(entries, func(e client.TrustEntry) bool { return e.Fingerprint == print }) {
			there = append(there, print)
		}
	}
	return there, nil
}
