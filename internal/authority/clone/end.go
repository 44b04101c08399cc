package clone

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// AliveFor is how long after its last report a node is taken for alive.
const AliveFor = 30 * time.Second

// ErrLeaving is within what a node hears that was told to leave: it ends in peace.
var ErrLeaving = errors.New("the node is leaving")

// goneError is what a node hears that is no longer one.
func goneError(r *row) error {
	switch r.state {
	case client.CloneGone:
		return fault.New(fault.Denied, "node %s left or was removed at %s; its keys, identity and leases are gone", r.name, r.gone.UTC().Format(time.RFC3339)).
			WithHint("a machine comes back by chancery clone invite and join, with a new name")
	case client.CloneLeaving:
		leaving := fault.New(fault.Denied, "node %s is leaving", r.name)
		leaving.Err = ErrLeaving
		return leaving
	}
	return fault.New(fault.Denied, "node %s is %s: an administrator has not approved it yet", r.name, r.state).
		WithHint("chancery clone approve %s FINGERPRINT", r.name)
}

var errNone = errors.New("this process is no node any more")

// Guard is Registered for db.DB.Guard: that this node is none any more is not a refusal of its caller, whom another node serves.
func (s *Service) Guard(ctx context.Context) error {
	err := s.Registered(ctx)
	refused, ok := errors.AsType[*fault.Error](err)
	if !ok || !Ended(err) {
		return err
	}
	return &fault.Error{Kind: fault.Unavailable, Message: refused.Message, Hint: refused.Hint, Err: errors.Join(errNone, err)}
}

// Leave has a node give back its leases and end; a node may ask so for itself. What it held is revoked and deleted when it has
// stopped, or has not been seen for a while.
func (s *Service) Leave(ctx context.Context, by access.Principal, name string, call once.Call) (*client.Clone, error) {
	now := time.Now()
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		r, err := find(ctx, tx, `name = $1`, name)
		if err != nil {
			return err
		}
		own := r != nil && by.Kind == access.KindNode && by.ID != "" && by.ID == r.principal
		if !own {
			if err := by.May(access.ManageNodes); err != nil {
				return err
			}
		}
		if r == nil {
			return noNode(name)
		}
		_, err = once.Act(ctx, tx, call, now, func() (done once.Done, err error) {
			switch r.state {
			case client.CloneWaiting:
				return done, fault.New(fault.Conflict, "node %s waits and has nothing to give back", name).WithHint("chancery clone remove %s refuses it", name)
			case client.CloneLeaving, client.CloneGone:
				return done, nil
			}
			if err := s.lastCA(ctx, tx, r); err != nil {
				return done, err
			}
			if _, err := tx.Exec(ctx, `UPDATE node SET state = 'leaving' WHERE name = $1`, r.name); err != nil {
				return done, err
			}
			if err := db.Dismiss(ctx, tx, r.name); err != nil {
				return done, err
			}
			return done, s.audit(ctx, tx, by.Actor(), "clone.leave", r.name, nil, now)
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("have node %.80q leave: %w", access.Redact(name), err)
	}
	p, err := s.picture(ctx)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(p.all, func(r *row) bool { return r.name == name })
	if at < 0 {
		return nil, noNode(name)
	}
	p.leases = nil
	return s.wire(p.all[at], &p, now), nil
}

// lastCA refuses to let the last node go that can issue, or the last that is alive; this one is.
func (s *Service) lastCA(ctx context.Context, tx *db.Tx, r *row) error {
	if !r.runs(keys.SubsystemCA) {
		return nil
	}
	now, err := tx.Clock(ctx)
	if err != nil {
		return err
	}
	all, err := nodes(ctx, tx, "", MaxNodes)
	if err != nil {
		return err
	}
	others := 0
	for _, o := range all {
		if o.name == r.name || o.state != client.CloneActive || !o.runs(keys.SubsystemCA) {
			continue
		}
		if others++; o.name == s.node || now.Sub(o.seen) < AliveFor {
			return nil
		}
	}
	if others == 0 {
		return fault.New(fault.Conflict, "node %s is the last that runs ca: without it nothing could be issued, and nobody could open the keys but by the recovery key", r.name).
			WithHint("chancery clone invite makes the token of another node; take that in first")
	}
	return fault.New(fault.Conflict, "no other node that runs ca was seen in the last %s, so node %s stays", AliveFor, r.name).
		WithHint("start another node, then try again; chancery clone list shows them")
}

// Removal says how a node is removed.
type Removal struct {
	Force       bool // also one that was seen just now
	Compromised bool // it fell into wrong hands: its identity is revoked as compromised, whether or not it runs
}

func (r Removal) reason() crl.Reason {
	if r.Compromised {
		return crl.KeyCompromise
	}
	return crl.CessationOfOperation
}

// Remove takes a node out that is dead, and refuses one that waits. One that was seen just now is removed by force only: it should
// leave by itself. Its identity is revoked, its wraps are deleted, its leases released, its login ended, and the next list of key
// recipients does not name it. What it has opened it may have kept: if it is not trusted, the keys must be replaced.
func (s *Service) Remove(ctx context.Context, by access.Principal, name string, how Removal, call once.Call) error {
	if err := by.May(access.ManageNodes); err != nil {
		return err
	}
	now := time.Now()
	var r *row
	var seen time.Duration // ago
	err := s.DB.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		if r, err = named(ctx, tx, name); err != nil {
			return err
		}
		at, err := tx.Clock(ctx)
		seen = at.Sub(r.seen)
		return err
	})
	switch {
	case err != nil:
		return err
	case r.state == client.CloneWaiting:
		err = s.refuse(ctx, by, r, call, now)
	case r.state == client.CloneGone:
		err = s.removeRest(ctx, by, r, call, now)
	case r.name == s.node:
		return fault.New(fault.Conflict, "node %s was asked to remove itself", r.name).WithHint("chancery clone leave %s, or ask another node", r.name)
	case !how.Force && !how.Compromised && seen < AliveFor:
		return fault.New(fault.Conflict, "node %s was seen %s ago, and a node that runs leaves by itself", r.name, max(seen, 0).Round(time.Second)).
			WithHint("chancery clone leave %s; or remove it all the same, by chancery clone remove %s --yes, where it is not to be trusted", r.name, r.name)
	default:
		if err = s.needsCA(ctx); err == nil {
			err = s.end(ctx, by, r, "clone.remove", how.reason(), call, now)
		}
	}
	if err != nil {
		return fmt.Errorf("remove node %s: %w", r.name, err)
	}
	return nil
}

// refuse ends a node that was never approved.
func (s *Service) refuse(ctx context.Context, by access.Principal, r *row, call once.Call, now time.Time) error {
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := once.Act(ctx, tx, call, now, func() (done once.Done, err error) {
			n, err := tx.Exec(ctx, `UPDATE node SET state = 'gone', gone_at = $1 WHERE name = $2 AND state = 'waiting'`, db.Micros(now), r.name)
			if err == nil && n == 0 {
				err = fault.New(fault.Conflict, "node %s was approved meanwhile", r.name)
			}
			if err != nil {
				return done, err
			}
			return done, s.audit(ctx, tx, by.Actor(), "clone.refuse", r.name, map[string]any{"fingerprint": r.fingerprint}, now)
		})
		return err
	})
}

// errEnded says that another node ended it first.
var errEnded = errors.New("the node is gone already")

// endWithin bounds an end that was begun, whoever asked for it: longer than a fence is waited for twice, and a login once.
const endWithin = 90 * time.Second

// end takes all from a node that a node had, in the transaction that raises its fence: what it committed before is ended with it, and there
// is nothing after. The fence is suspended before, since that transaction would begin anew with each of the node's, as long as it is busy,
// and goes on if the end fails. The login is removed last; that of a compromised node is taken away first, and one is shut whose own session
// holds on to what its end needs. What was begun goes on where who asked for it is gone; where this process ends before, Finish of any node does
// the rest, or gives the node back what it had.
func (s *Service) end(ctx context.Context, by access.Principal, r *row, action string, reason crl.Reason, call once.Call, now time.Time) error {
	issuers, err := s.Identity.Issuers(ctx)
	if err != nil {
		return err
	}
	err = s.DB.ReadSnapshot(ctx, func(tx *db.Tx) error { return s.lastCA(ctx, tx, r) }) // it is refused before anything stands still
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
	defer cancel()
	login := s.endingLogin(ctx, r.name, reason == crl.KeyCompromise)
	login.takeAway(ctx)
	err = s.DB.SuspendFence(ctx, r.name)
	if login.holds(err) && login.shut(ctx) {
		err = s.DB.SuspendFence(ctx, r.name)
	}
	quiet := err == nil
	if quiet || errors.Is(err, db.ErrStanding) { // who holds the row, and is no node's login, is waited for by Finish
		gone := func() error { return s.gone(ctx, by, r, action, reason, issuers, quiet, call, now) }
		if err = gone(); login.holds(err) && login.shut(ctx) {
			err = gone()
		}
	}
	if err != nil && !errors.Is(err, errEnded) {
		if quiet {
			s.resume(ctx, r.name)
		}
		return login.left(ctx, saysWho(err))
	}
	s.CA.Announce()
	s.Access.Forget()
	if err = s.finishEnd(ctx, by, r.name, issuers, call, now); err != nil {
		s.Logger.ErrorContext(ctx, "a node that is gone may write still; a node with the ca subsystem tries again", "node", r.name, "error", err)
	}
	return err
}

// gone is the transaction by which a node is none any more; quiet says that its fence is suspended.
func (s *Service) gone(ctx context.Context, by access.Principal, r *row, action string, reason crl.Reason, issuers []string, quiet bool,
	call once.Call, now time.Time) error {
	return s.Keys.ChangeList(ctx, nil, []string{r.name}, by.Actor(), now, func(tx *db.Tx) error {
		current, err := named(ctx, tx, r.name)
		if err != nil {
			return err
		}
		if current.state == client.CloneGone {
			return errEnded
		}
		if err := s.lastCA(ctx, tx, current); err != nil {
			return err
		}
		if err := s.take(ctx, tx, by, current, action, reason, issuers, now); err != nil {
			return err
		}
		if quiet {
			if err := db.RaiseFence(ctx, tx, r.name); err != nil {
				return err
			}
		}
		_, err = once.Act(ctx, tx, begun(call), now, func() (done once.Done, err error) { return done, nil })
		return err
	})
}

// begun is what a removal is kept as whose last step may be left: only what is done whole is the answer of the call itself.
func begun(call once.Call) once.Call {
	call.Caller = "begun " + call.Caller
	return call
}

func (s *Service) take(ctx context.Context, tx *db.Tx, by access.Principal, r *row, action string, reason crl.Reason, issuers []string, now time.Time) error {
	revoke := func(ref ca.Ref) error {
		return s.CA.RevokeSerial(ctx, tx, ref, reason, by.Actor(), now)
	}
	if err := s.Identity.EndNode(ctx, tx, by, r.principal, r.name, issuers, revoke, now); err != nil {
		return err
	}
	if err := s.Keys.RemoveRecipient(ctx, tx, r.name, by.Actor(), now); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if err := db.Dismiss(ctx, tx, r.name); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `UPDATE node SET state = 'gone', gone_at = $1, principal = '' WHERE name = $2`, db.Micros(now), r.name)
	if err != nil {
		return err
	}
	return s.audit(ctx, tx, by.Actor(), action, r.name, map[string]any{"fingerprint": r.fingerprint, "subsystems": r.subsystems, "reason": reason.String()}, now)
}

// EndAll takes all from every node but the keys, in the transaction that makes another authority of a backup: its nodes are none of
// this one's, and what was about to join was about to join the other.
func (s *Service) EndAll(ctx context.Context, tx *db.Tx, by access.Principal, issuers []string, now time.Time) error {
	all, err := nodes(ctx, tx, "", MaxNodes)
	if err != nil {
		return err
	}
	for _, r := range all {
		if r.state == client.CloneGone {
			continue
		}
		revoke := func(ref ca.Ref) error {
			return s.CA.RevokeSerial(ctx, tx, ref, crl.CessationOfOperation, by.Actor(), now)
		}
		if err := s.Identity.EndNode(ctx, tx, by, r.principal, r.name, issuers, revoke, now); err != nil {
			return err
		}
		if err := db.Dismiss(ctx, tx, r.name); err != nil {
			return err
		}
		if err := db.RaiseFence(ctx, tx, r.name); err != nil {
			return err
		}
	}
	for _, statement := range []string{
		`UPDATE node SET state = 'gone', gone_at = $1, principal = '', database_role = '' WHERE state <> 'gone'`,
		`DELETE FROM node_invitation WHERE used_by = '' AND created_at <= $1`,
	} {
		if _, err := tx.Exec(ctx, statement, db.Micros(now)); err != nil {
			return fmt.Errorf("end the nodes of the backup: %w", err)
		}
	}
	return nil
}
