package host

import (
	"context"
	"fmt"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// Add adds a host, and returns it with the text of the token by which its machine joins. The text is stored nowhere. So a
// call that is repeated with its key, because its answer was lost, ends the token of the first and gets another; it is a
// conflict once that token was redeemed, since then the answer arrived.
func (s *Service) Add(ctx context.Context, by access.Principal, in client.AddHostRequest, key string) (*client.HostToken, error) {
	if err := by.May(access.ManageHosts); err != nil {
		return nil, err
	}
	asked, err := call(by, key, "host.add", in)
	if err != nil {
		return nil, err
	}
	life, err := s.checkNew(ctx, &in)
	if err != nil {
		return nil, fmt.Errorf("add host %s: %w", quoted(in.Name), err)
	}
	now := time.Now()
	r := &row{id: db.NewID(), name: in.Name, pool: in.Pool, principal: db.NewID(), state: client.HostPending, created: now, profiles: in.Profiles,
		labels: in.Labels}
	made, err := s.withToken(ctx, by, asked, life, now, func(tx *db.Tx) (*row, int64, error) {
		there, err := find(ctx, tx, `host.name = $1 AND host.removed_at = 0`, r.name)
		if err != nil {
			return nil, 0, err
		}
		if there != nil {
			return nil, 0, fault.New(fault.Conflict, "there is a host %s already", r.name).At("/name").WithHint("chancery host show %s", r.name)
		}
		if err := s.Access.InsertPrincipal(ctx, tx, r.asPrincipal(now), by.Actor()); err != nil {
			return nil, 0, err
		}
		if err := r.insert(ctx, tx); err != nil {
			return nil, 0, err
		}
		if err := takeNames(ctx, tx, r.id, in.DNS, in.IP, now); err != nil {
			return nil, 0, err
		}
		if err := putPlacements(ctx, tx, r.id, in.Placements); err != nil {
			return nil, 0, err
		}
		if err := s.checkCrowd(ctx, tx, r.pool, in.Placements); err != nil {
			return nil, 0, err
		}
		return r, noMachine, s.audit(ctx, tx, by.Actor(), "host.add", r.name, map[string]any{
			"pool": r.pool, "dns": in.DNS, "ip": in.IP, "placements": in.Placements, "profiles": in.Profiles, "labels": in.Labels,
		}, now)
	})
	if err != nil {
		return nil, fmt.Errorf("add host %s: %w", in.Name, err)
	}
	return made, nil
}

// asPrincipal is the machine that has the host's name from now on.
func (r *row) asPrincipal(now time.Time) access.Principal {
	return access.Principal{ID: r.principal, Name: r.name, Kind: access.KindHost, Roles: []access.Role{access.Host}, Created: now}
}

// checkNew judges what is to be added, and writes it in the spelling that is stored.
func (s *Service) checkNew(ctx context.Context, in *client.AddHostRequest) (life time.Duration, err error) {
	if in.Name, err = checkName(in.Name); err != nil {
		return 0, err
	}
	if in.DNS, err = checkDNSNames(in.Name, in.DNS); err != nil {
		return 0, err
	}
	if in.IP, err = checkAddresses(in.IP); err != nil {
		return 0, err
	}
	if in.Placements, err = s.checkPlacements(in.Placements); err != nil {
		return 0, err
	}
	if in.Profiles, err = s.checkProfiles(ctx, in.Profiles); err != nil {
		return 0, err
	}
	if err := checkLabels(in.Labels, false); err != nil {
		return 0, err
	}
	if in.Pool == "" {
		in.Pool = pool.Default
	}
	if in.Pool == pool.Identity {
		return 0, fault.New(fault.Invalid, "the pool %q is of identities, and no host is in it", in.Pool).At("/pool").WithHint("chancery pool list")
	}
	p, err := s.Pools.Pool(ctx, in.Pool)
	if err != nil {
		return 0, at(err, "/pool")
	}
	if p.Pending() {
		return 0, fault.New(fault.Conflict, "pool %q waits for its root to sign, and issues nothing yet", in.Pool).At("/pool").
			WithHint("chancery pool show %s", in.Pool)
	}
	return lifeOf(in.TokenLife)
}

// withToken runs an act and makes the host's token in the same transaction. What is kept for a repetition is the host; the
// repetition makes another token in place of the first. act says why the machine before is ended, or noMachine.
func (s *Service) withToken(ctx context.Context, by access.Principal, asked once.Call, life time.Duration, now time.Time,
	act func(tx *db.Tx) (*row, int64, error)) (*client.HostToken, error) {
	if err := s.DB.CheckClock(now); err != nil {
		return nil, err
	}
	text, err := s.newTokenText(ctx)
	if err != nil {
		return nil, err
	}
	var made client.Host
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		first, found, err := once.Lookup(ctx, tx, asked.Caller, asked.Key, asked.Request)
		if err != nil {
			return err
		}
		var r *row
		reason := int64(noMachine)
		if found {
			r, reason, err = again(ctx, tx, string(first))
		} else {
			r, reason, err = act(tx)
		}
		if err != nil {
			return err
		}
		if err := mayKeep(by, r.name, r.pool); err != nil { // also of a call that is repeated, since it gets another token
			return err
		}
		t, err := putToken(ctx, tx, r.id, reason, text, life, now)
		if err != nil {
			return err
		}
		err = s.audit(ctx, tx, by.Actor(), "host.token", r.name, map[string]any{"token": t.id, "expires": t.expires.UTC().Format(time.RFC3339)}, now)
		if err != nil {
			return err
		}
		if made, err = s.view(ctx, tx, r); err != nil {
			return err
		}
		answer := []byte(r.id + " " + t.id)
		if found {
			return once.Replace(ctx, tx, asked.Caller, asked.Key, answer, now)
		}
		return once.Remember(ctx, tx, asked.Caller, asked.Key, asked.Request, answer, now)
	})
	if err != nil {
		return nil, err
	}
	return &client.HostToken{Host: made, Token: text.String()}, nil
}

// again finds the host of a call that is repeated, and refuses where its first answer arrived: the token was redeemed, or
// another was made since.
func again(ctx context.Context, tx *db.Tx, first string) (*row, int64, error) {
	host, id, _ := strings.Cut(first, " ")
	r, err := find(ctx, tx, `host.id = $1`, host)
	if err != nil {
		return nil, 0, err
	}
	t, err := findToken(ctx, tx, `id = $1`, id)
	if err != nil {
		return nil, 0, err
	}
	if r == nil || !r.removed.IsZero() || t == nil || t.redeemed() {
		return nil, 0, fault.New(fault.Conflict, "the join token that was made with this idempotency key was redeemed, or has ended").
			WithHint("its text was shown once; make another token with a fresh key")
	}
	return r, t.reason, nil
}

// maxAbsent bounds the words for why a host is absent.
const maxAbsent = 500

// Set changes a host's names, addresses, placements, profiles or labels, or says that it is absent; what is nil stays, and so do labels that are not given.
func (s *Service) Set(ctx context.Context, by access.Principal, name string, in client.ChangeHostRequest, key string) (*client.Host, error) {
	if err := by.May(access.ManageHosts); err != nil {
		return nil, err
	}
	asked, err := call(by, key, "host.set", name, in)
	if err != nil {
		return nil, err
	}
	var orders []client.PlacementOrder
	if in.Placements != nil {
		if orders, err = s.checkPlacements(*in.Placements); err != nil {
			return nil, fmt.Errorf("change host %s: %w", quoted(name), err)
		}
	}
	var profiles []string
	if in.Profiles != nil {
		if profiles, err = s.checkProfiles(ctx, *in.Profiles); err != nil {
			return nil, fmt.Errorf("change host %s: %w", quoted(name), err)
		}
	}
	if in.Labels != nil {
		if err := checkLabels(*in.Labels, true); err != nil {
			return nil, fmt.Errorf("change host %s: %w", quoted(name), err)
		}
	}
	if in.Absent != nil && len(*in.Absent) > maxAbsent {
		return nil, fault.New(fault.Invalid, "why a host is absent has %d octets; at most %d pass", len(*in.Absent), maxAbsent).At("/absent")
	}
	now := time.Now()
	err = s.done(ctx, asked, now, func(tx *db.Tx) error {
		r, err := named(ctx, tx, name)
		if err != nil {
			return err
		}
		if in.DNS != nil || in.IP != nil || in.Placements != nil || in.Profiles != nil {
			if err := mayKeep(by, r.name, r.pool); err != nil {
				return err
			}
		}
		detail := map[string]any{}
		if in.Absent != nil {
			r.absent, detail["absent"] = *in.Absent, *in.Absent
		}
		if in.DNS != nil || in.IP != nil {
			if err := changeNames(ctx, tx, r, in, detail, now); err != nil {
				return err
			}
		}
		if in.Placements != nil {
			if err := putPlacements(ctx, tx, r.id, orders); err != nil {
				return err
			}
			if err := s.checkCrowd(ctx, tx, r.pool, orders); err != nil {
				return err
			}
			if err := s.Trust.Withdraw(ctx, tx, r.id, placementNames(orders), now); err != nil {
				return err
			}
			detail["placements"] = orders
		}
		if in.Labels != nil {
			if err := r.relabel(*in.Labels); err != nil {
				return err
			}
			detail["labels"] = *in.Labels
		}
		if in.Profiles != nil {
			r.profiles, detail["profiles"] = profiles, profiles
		}
		if in.RevokeNow {
			if err := s.revokeFormer(ctx, tx, by, r, now); err != nil {
				return err
			}
			detail["revokeNow"] = true
		}
		if err := r.judge(ctx, tx); err != nil {
			return err
		}
		if err := r.update(ctx, tx); err != nil {
			return err
		}
		return s.audit(ctx, tx, by.Actor(), "host.set", r.name, detail, now)
	})
	if err != nil {
		return nil, fmt.Errorf("change host %s: %w", quoted(name), err)
	}
	if in.RevokeNow {
		s.CA.Announce()
	}
	return s.Show(ctx, by, name)
}

// judge sets whether the host is a problem.
func (r *row) judge(ctx context.Context, tx *db.Tx) error {
	var failed, refused int64
	err := tx.QueryRow(ctx, `SELECT (SELECT COUNT(*) FROM host_placement WHERE host = $1 AND state = 'failed'),
		(SELECT COUNT(*) FROM host_token WHERE host = $1 AND refused > 0)`, r.id).Scan(&failed, &refused)
	if err != nil {
		return fmt.Errorf("count what is wrong with %s: %w", r.name, err)
	}
	r.problem = r.state == client.HostSuspect || failed > 0 || refused > 0 || r.message != ""
	return nil
}

// Remove ends a host: its principal is gone, its identity and certificates are revoked, and its names are free. What it held
// is revoked in the same transaction, or, of many certificates, the rest in others that Run resumes.
func (s *Service) Remove(ctx context.Context, by access.Principal, name, reason, key string) error {
	if err := by.May(access.ManageHosts); err != nil {
		return err
	}
	why, err := reasonOf(reason, crl.CessationOfOperation)
	if err != nil {
		return err
	}
	asked, err := call(by, key, "host.remove", name, reason)
	if err != nil {
		return err
	}
	now := time.Now()
	if err := s.DB.CheckClock(now); err != nil {
		return err
	}
	var removed *row
	err = s.done(ctx, asked, now, func(tx *db.Tx) error {
		r, err := named(ctx, tx, name)
		if err != nil {
			return err
		}
		removed = r
		if err := s.endMachine(ctx, tx, by, r.principal, why, now); err != nil {
			return err
		}
		for _, statement := range []string{
			`DELETE FROM host_name WHERE host = $1`, `DELETE FROM host_placement WHERE host = $1`, `DELETE FROM host_token WHERE host = $1`,
			`DELETE FROM host_seen WHERE host = $1`, `DELETE FROM host_heard WHERE host = $1`,
		} {
			if _, err := tx.Exec(ctx, statement, r.id); err != nil {
				return err
			}
		}
		if err := s.Trust.Withdraw(ctx, tx, r.id, nil, now); err != nil {
			return err
		}
		r.state, r.removed, r.message, r.problem = client.HostRemoved, now, "", false
		if err := r.update(ctx, tx); err != nil {
			return err
		}
		return s.audit(ctx, tx, by.Actor(), "host.remove", r.name, map[string]any{"reason": why.String()}, now)
	})
	s.Access.Forget() // also after an error: the outcome may be unknown
	if err != nil {
		return fmt.Errorf("remove host %s: %w", quoted(name), err)
	}
	if removed != nil {
		s.machineEnded(removed.id)
	}
	return s.finish(ctx)
}

// machineEnded tells this node's loops that a machine is no longer its host.
func (s *Service) machineEnded(host string) {
	s.Access.Forget()
	s.CA.Announce()
	s.waiting.wakeHost(host)
}

// reasonOf reads a revocation reason by its RFC 5280 name. A hold is none: what is held might come back.
func reasonOf(text string, otherwise crl.Reason) (crl.Reason, error) {
	if text == "" {
		return otherwise, nil
	}
	reason, err := crl.ParseReason(text)
	if err != nil {
		return 0, at(err, "/reason")
	}
	if reason == crl.CertificateHold || reason == crl.RemoveFromCRL {
		return 0, fault.New(fault.Invalid, "what a host held is revoked for good, and %s is no reason for that", reason).At("/reason")
	}
	return reason, nil
}

// endingAtOnce is how many certificates are revoked in the transaction that ends a machine, and in each that goes on with it.
const endingAtOnce = 100

// endMachine ends a principal and revokes what it holds: its identities, and its certificates as far as one transaction goes.
// A row in host_ending stands for the rest.
func (s *Service) endMachine(ctx context.Context, tx *db.Tx, by access.Principal, principal string, reason crl.Reason, now time.Time) error {
	held, err := access.HeldBy(ctx, tx, principal)
	if err != nil {
		return err
	}
	for _, h := range held {
		if err := s.CA.RevokeSerial(ctx, tx, ca.Ref{Issuer: h.Issuer, Serial: h.Serial}, reason, by.Actor(), now); err != nil {
			return err
		}
	}
	n, err := s.CA.RevokeAll(ctx, tx, principal, reason, endingAtOnce, by.Actor(), now)
	if err != nil {
		return err
	}
	if n == endingAtOnce {
		_, err := tx.Exec(ctx, `INSERT INTO host_ending (principal, reason, actor, created_at) VALUES ($1, $2, $3, $4)
			ON CONFLICT (principal) DO NOTHING`, principal, int64(reason), by.Actor(), db.Micros(now))
		if err != nil {
			return err
		}
	}
	err = s.Access.RemovePrincipal(ctx, tx, by, principal, now)
	if fault.Is(err, fault.NotFound) {
		return nil // an administrator was faster
	}
	return err
}

// finish revokes what machines that were ended still hold.
func (s *Service) finish(ctx context.Context) error {
	for {
		left := false
		err := s.DB.Tx(ctx, func(tx *db.Tx) error {
			e, err := readEnding(ctx, tx)
			if left = e != nil; err != nil || !left {
				return err
			}
			n, err := s.CA.RevokeAll(ctx, tx, e.principal, e.reason, endingAtOnce, e.actor, time.Now())
			if err != nil || n == endingAtOnce {
				return err
			}
			_, err = tx.Exec(ctx, `DELETE FROM host_ending WHERE principal = $1`, e.principal)
			return err
		})
		if err != nil {
			return fmt.Errorf("revoke what hosts held that are gone: %w", err)
		}
		if !left {
			return nil
		}
		s.CA.Announce()
	}
}
