package host

import (
	"context"
	"fmt"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// NewToken makes another join token for a host whose machine has not joined yet; the one before is no longer good.
func (s *Service) NewToken(ctx context.Context, by access.Principal, name string, in client.HostTokenRequest, key string) (*client.HostToken, error) {
	if err := by.May(access.ManageHosts); err != nil {
		return nil, err
	}
	asked, err := call(by, key, "host.token", name, in)
	if err != nil {
		return nil, err
	}
	life, err := lifeOf(in.TokenLife)
	if err != nil {
		return nil, err
	}
	made, err := s.withToken(ctx, by, asked, life, time.Now(), func(tx *db.Tx) (*row, int64, error) {
		r, err := named(ctx, tx, name)
		if err != nil {
			return nil, 0, err
		}
		t, err := findToken(ctx, tx, `host = $1`, r.id)
		if err != nil {
			return nil, 0, err
		}
		switch {
		case t != nil && !t.redeemed():
			return r, t.reason, nil
		case r.state == client.HostPending:
			return r, noMachine, nil
		}
		return nil, 0, fault.New(fault.Conflict, "host %s is %s; a join token is for a machine that has not joined", r.name, r.state).
			WithHint("chancery host replace %s gives its name and placements to another machine, or to this one made anew", r.name)
	})
	if err != nil {
		return nil, fmt.Errorf("make a join token for host %s: %w", quoted(name), err)
	}
	return made, nil
}

// Replace gives a host's name and placements to another machine, which joins with the token. Then what the old machine held
// is revoked; for keyCompromise it is revoked at once.
func (s *Service) Replace(ctx context.Context, by access.Principal, name string, in client.ReplaceHostRequest, key string) (*client.HostToken, error) {
	if err := by.May(access.ManageHosts); err != nil {
		return nil, err
	}
	asked, err := call(by, key, "host.replace", name, in)
	if err != nil {
		return nil, err
	}
	life, err := lifeOf(in.TokenLife)
	if err != nil {
		return nil, err
	}
	why, err := reasonOf(in.Reason, crl.Superseded)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	ended := ""
	made, err := s.withToken(ctx, by, asked, life, now, func(tx *db.Tx) (*row, int64, error) {
		ended = ""
		r, err := named(ctx, tx, name)
		if err != nil {
			return nil, 0, err
		}
		if r.state == client.HostPending {
			return nil, 0, fault.New(fault.Conflict, "no machine has joined as host %s yet, so there is none to replace", r.name).
				WithHint("chancery host token %s", r.name)
		}
		reason := int64(why)
		if why == crl.KeyCompromise {
			if err := s.changeMachine(ctx, tx, by, r, why, db.NewID(), now); err != nil {
				return nil, 0, err
			}
			r.state, r.message, r.identitySerial, r.identityIssuer, r.identitySPKI, r.identityEnds = client.HostPending, "", "", "", []byte{}, time.Time{}
			if err := r.judge(ctx, tx); err != nil {
				return nil, 0, err
			}
			if err := r.update(ctx, tx); err != nil {
				return nil, 0, err
			}
			reason, ended = noMachine, r.id
		}
		return r, reason, s.audit(ctx, tx, by.Actor(), "host.replace", r.name, map[string]any{"reason": why.String()}, now)
	})
	s.Access.Forget()
	if err != nil {
		return nil, fmt.Errorf("replace host %s: %w", quoted(name), err)
	}
	if ended != "" {
		s.machineEnded(ended)
		if err := s.finish(ctx); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// changeMachine ends the machine that a host has had, and makes its next one a principal of its own. What was observed was
// observed of the old one.
func (s *Service) changeMachine(ctx context.Context, tx *db.Tx, by access.Principal, r *row, reason crl.Reason, principal string, now time.Time) error {
	if err := s.endMachine(ctx, tx, by, r.principal, reason, now); err != nil {
		return err
	}
	r.principal = principal
	if err := s.Access.InsertPrincipal(ctx, tx, r.asPrincipal(now), by.Actor()); err != nil {
		return err
	}
	if err := s.Trust.Withdraw(ctx, tx, r.id, nil, now); err != nil { // its peers trust no certificate of the old machine any more
		return err
	}
	_, err := tx.Exec(ctx, `UPDATE host_placement SET state = 'pending', not_after = 0, observed = '', observed_at = 0, trust = 0, issuer = '', serial = '',
		reissued = 0, crl_ends = 0 WHERE host = $1`, r.id)
	return err
}
