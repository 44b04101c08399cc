package host

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/identity"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

// issuedBy is in whose name the authority issues identities of agents; it is the one of all callers' identities.
const issuedBy = identity.Enroller

// errRedeemed says that another call redeemed the token, or renewed the identity, between the look and the transaction.
var errRedeemed = errors.New("the state changed meanwhile")

// Join redeems a join token: the machine that has the key of the CSR is the host from now on, and gets its identity. It is
// the secret in the token that proves who asks. The same key redeems it as often as it likes and gets the same identity;
// another key is refused, and shown at the host, since two hands have the token.
//
// Certificate, mapping, token, host and audit event are of one transaction. If the host had a machine before, that one's
// principal ends in it and what it held is revoked.
func (s *Service) Join(ctx context.Context, in client.JoinRequest) (*client.Joined, error) {
	now := time.Now()
	hash, err := secretOf(in.Token)
	if err != nil {
		return nil, err
	}
	request, err := cert.CSRLimits{}.ParsePEM([]byte(in.CSR))
	if err != nil {
		return nil, at(err, "/csr")
	}
	spki := sha256.Sum256(request.SPKI)
	for range 3 {
		r, t, err := s.invited(ctx, hash)
		if err != nil {
			return nil, err
		}
		if t.redeemed() {
			return s.joinedBefore(ctx, r, t, spki[:], now)
		}
		if now.After(t.expires) {
			return nil, fault.New(fault.Denied, "this join token ended at %s", t.expires.UTC().Format(time.RFC3339)).
				WithHint("chancery host token %s makes another", r.name)
		}
		joined, err := s.join(ctx, r, t, request.SPKI, in.Agent, now)
		if !errors.Is(err, errRedeemed) {
			return joined, err
		}
	}
	return nil, fault.New(fault.Unavailable, "the host changes at the same time; try again")
}

// invited finds the token and its host.
func (s *Service) invited(ctx context.Context, hash []byte) (r *row, t *token, err error) {
	err = s.DB.ReadSnapshot(ctx, func(tx *db.Tx) error {
		if t, err = findToken(ctx, tx, `hash = $1`, hash); err != nil || t == nil {
			return err
		}
		r, err = find(ctx, tx, `host.id = $1 AND host.removed_at = 0`, t.host)
		return err
	})
	if err == nil && (t == nil || r == nil) {
		err = fault.New(fault.Unauthenticated, "this join token is not known: it was replaced by a later one, its host was removed, or it was never made here").
			WithHint("chancery host token NAME makes another")
	}
	return r, t, err
}

// joinedBefore answers for a token that was redeemed.
func (s *Service) joinedBefore(ctx context.Context, r *row, t *token, spki []byte, now time.Time) (*client.Joined, error) {
	if !bytes.Equal(t.spki, spki) {
		return nil, s.refuseOther(ctx, r, t, spki, now)
	}
	if t.serial != r.identitySerial || t.issuer != r.identityIssuer {
		return nil, fault.New(fault.Conflict, "this join token was redeemed, and the identity that it gave has been renewed since").
			WithHint("chancery host replace %s, if the machine has lost its identity", r.name)
	}
	// What is found to be done is acknowledged behind a commit of its own: the first one's outcome may be unknown.
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE host_token SET redeemed_at = redeemed_at WHERE id = $1`, t.id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("confirm the join of host %s: %w", r.name, err)
	}
	return s.joined(ctx, r)
}

// auditedRefusals bounds how often one token's misuse is recorded, so that nobody fills the audit with it.
const auditedRefusals = 10

// refuseOther refuses whoever comes with a redeemed token and another key, and leaves a trace of it.
func (s *Service) refuseOther(ctx context.Context, r *row, t *token, spki []byte, now time.Time) error {
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		n, err := tx.Exec(ctx, `UPDATE host_token SET refused = refused + 1 WHERE id = $1 AND refused < $2`, t.id, int64(auditedRefusals))
		if err != nil || n == 0 {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE host SET problem = 1 WHERE id = $1`, r.id); err != nil {
			return err
		}
		return s.audit(ctx, tx, "anonymous", "host.join-refused", r.name, map[string]any{
			"token": t.id, "spki_sha256": fmt.Sprintf("%x", spki), "redeemed_by": fmt.Sprintf("%x", t.spki),
		}, now)
	})
	return errors.Join(fault.New(fault.Denied, "this join token was redeemed by another key already").
		WithHint("if that was not this machine, somebody else has the token: chancery host replace %s", r.name), err)
}

// join issues the identity, and makes the machine the host in the same transaction.
func (s *Service) join(ctx context.Context, r *row, t *token, spki []byte, agent string, now time.Time) (*client.Joined, error) {
	machine := access.Principal{ID: r.principal, Name: r.name, Kind: access.KindHost, Roles: []access.Role{access.Host}}
	next := r.principal
	if t.reason != noMachine {
		next = db.NewID()
	}
	var after *row
	_, err := s.Identity.IssueAgent(ctx, machine, next, spki, "", func(ctx context.Context, tx *db.Tx, issued *ca.Certificate) error {
		token, err := findToken(ctx, tx, `id = $1`, t.id)
		if err != nil {
			return err
		}
		host, err := find(ctx, tx, `host.id = $1 AND host.removed_at = 0`, r.id)
		if err != nil {
			return err
		}
		if token == nil || host == nil || token.redeemed() || host.principal != r.principal {
			return errRedeemed
		}
		actor := access.Principal{ID: next, Name: r.name, Kind: access.KindHost}
		if token.reason != noMachine {
			if err := s.changeMachine(ctx, tx, actor, host, crl.Reason(token.reason), next, now); err != nil {
				return err
			}
		}
		host.state, host.message, host.joined, host.agent = client.HostJoined, "", now, agent
		if err := s.identify(ctx, tx, host, issued, actor.Actor(), now); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE host_token SET spki = $1, issuer = $2, serial = $3, redeemed_at = $4 WHERE id = $5`,
			host.identitySPKI, host.identityIssuer, host.identitySerial, db.Micros(now), token.id)
		if err != nil {
			return err
		}
		after = host
		return s.audit(ctx, tx, actor.Actor(), "host.join", host.name, map[string]any{
			"token": token.id, "serial": host.identitySerial, "generation": host.generation, "agent": agent,
		}, now)
	})
	s.Access.Forget()
	if err != nil {
		return nil, fmt.Errorf("join as host %s: %w", r.name, err)
	}
	if t.reason != noMachine {
		s.machineEnded(r.id)
		if err := s.finish(ctx); err != nil {
			s.Logger.ErrorContext(ctx, "what a replaced host held is not all revoked yet", "host", r.name, "error", err)
		}
	}
	s.noteSeen(r.id, now)
	return s.joined(ctx, after)
}

// identify makes a certificate the host's newest identity, and writes the host.
func (s *Service) identify(ctx context.Context, tx *db.Tx, r *row, issued *ca.Certificate, actor string, now time.Time) error {
	err := s.Access.AddIdentity(ctx, tx, access.Identity{
		Principal: r.principal, Issuer: issued.Issuer.ID, SPKI: issued.PublicKey(), Serial: issued.Serial, NotAfter: issued.NotAfter,
	}, actor, now)
	if err != nil {
		return err
	}
	sum, before := sha256.Sum256(issued.PublicKey()), r.identitySPKI
	r.generation++
	r.identityUsed = time.Time{}
	r.identityIssuer, r.identitySerial, r.identitySPKI, r.identityEnds = issued.Issuer.ID, issued.Serial.Text(16), sum[:], issued.NotAfter
	// The key before goes on proving the host until the next renewal, so that an answer that was lost locks nobody out.
	if err := access.KeepKeys(ctx, tx, r.principal, sum[:], before); err != nil {
		return err
	}
	if err := r.judge(ctx, tx); err != nil {
		return err
	}
	return r.update(ctx, tx)
}

// joined is the answer with the host's newest identity.
func (s *Service) joined(ctx context.Context, r *row) (*client.Joined, error) {
	serial, ok := new(big.Int).SetString(r.identitySerial, 16)
	if !ok {
		return nil, fmt.Errorf("read the identity of host %s: serial %q is not hexadecimal", r.name, r.identitySerial)
	}
	issued, err := s.CA.Find(ctx, access.System(issuedBy), ca.Ref{Issuer: r.identityIssuer, Serial: serial})
	if err != nil {
		return nil, fmt.Errorf("find the identity of host %s: %w", r.name, err)
	}
	roots, err := s.Roots(ctx)
	if err != nil {
		return nil, err
	}
	auditKey, err := s.auditKey(ctx)
	if err != nil {
		return nil, err
	}
	out := &client.Joined{Host: r.name, Roots: roots, Generation: r.generation, AuditKey: auditKey}
	for i, der := range identity.Path(issued) {
		text := encode("CERTIFICATE", der)
		if i == 0 {
			out.Certificate = text
		} else {
			out.Chain += text
		}
	}
	return out, nil
}

func encode(label string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}))
}

// Roots are the roots of identities, in PEM. They are no secret: whoever joins takes the one whose hash its token has.
func (s *Service) Roots(ctx context.Context) (string, error) {
	roots, err := s.Identity.RootCertificates(ctx)
	if err != nil {
		return "", err
	}
	text := ""
	for _, c := range roots {
		text += encode("CERTIFICATE", c.Raw)
	}
	return text, nil
}

// auditKey is the public key of audit checkpoints.
func (s *Service) auditKey(ctx context.Context) (string, error) {
	found, err := s.Keys.Find(ctx, keys.Audit, "")
	if err != nil {
		return "", err
	}
	text := ""
	for _, k := range found {
		text += encode("PUBLIC KEY", k.SPKI)
	}
	return text, nil
}

// errGeneration says that a renewal carried another generation than the host's, or showed another key than its newest.
var errGeneration = errors.New("the generation is not the host's")

// RenewIdentity gives a host its next identity, for the key of the CSR. The call carries the number of the identity that the
// agent has, and shows its key: a number may be guessed. A repeated call, with its idempotency key, gets the same answer; where
// a number was used already, or a key that is not the newest is shown, two machines have this host's identity, and the host
// becomes suspect.
func (s *Service) RenewIdentity(ctx context.Context, by access.Principal, in client.RenewIdentityRequest, key string) (*client.Joined, error) {
	if err := by.May(access.ActAsHost); err != nil {
		return nil, err
	}
	shown, ok := by.ShownKey()
	if !ok {
		return nil, fault.New(fault.Denied, "a host renews its identity by showing it, and %s showed none", by.Name)
	}
	now := time.Now()
	request, err := cert.CSRLimits{}.ParsePEM([]byte(in.CSR))
	if err != nil {
		return nil, at(err, "/csr")
	}
	if key != "" {
		key = fmt.Sprintf("%s agent %d %s", by.ID, in.Generation, key)
	}
	issued, err := s.Identity.IssueAgent(ctx, by, by.ID, request.SPKI, key, func(ctx context.Context, tx *db.Tx, issued *ca.Certificate) error {
		r, err := ofPrincipal(ctx, tx, by.ID)
		switch {
		case err != nil:
			return err
		case r == nil:
			return noHost(by)
		case r.state == client.HostSuspect:
			return suspect(r)
		case r.generation != in.Generation || !bytes.Equal(shown, r.identitySPKI):
			return errGeneration
		}
		if err := s.identify(ctx, tx, r, issued, by.Actor(), now); err != nil {
			return err
		}
		return s.audit(ctx, tx, by.Actor(), "host.renew", r.name, map[string]any{"serial": r.identitySerial, "generation": r.generation}, now)
	})
	if errors.Is(err, errGeneration) {
		return s.oldGeneration(ctx, by, request.SPKI, in.Generation, now)
	}
	if err != nil {
		return nil, fmt.Errorf("renew the identity of host %s: %w", by.Name, err)
	}
	var r *row
	err = s.DB.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		r, err = ofPrincipal(ctx, tx, by.ID)
		return err
	})
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, noHost(by)
	}
	s.noteSeen(r.id, now)
	// A repeated call is answered with what it got, although the host may have gone on since.
	r.identityIssuer, r.identitySerial, r.generation = issued.Issuer.ID, issued.Serial.Text(16), in.Generation+1
	return s.joined(ctx, r)
}

// oldGeneration decides on a renewal with a number or a key that is not the newest. One that brings the very key that the newest
// identity is for, made for that renewal, is the same renewal again, whose answer and whose idempotency key were both lost: no
// copy of the old identity has it. Everything else is a copy.
func (s *Service) oldGeneration(ctx context.Context, by access.Principal, spki []byte, generation int64, now time.Time) (*client.Joined, error) {
	sum := sha256.Sum256(spki)
	var r *row
	same := false
	err := s.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		same = false
		if r, err = ofPrincipal(ctx, tx, by.ID); err != nil || r == nil || r.state != client.HostJoined {
			return err
		}
		if r.generation == generation+1 && bytes.Equal(r.identitySPKI, sum[:]) {
			held, err := access.HeldBy(ctx, tx, by.ID)
			if err != nil {
				return err
			}
			for _, h := range held {
				same = same || !bytes.Equal(h.SPKI, sum[:]) // the identity before was for another key
			}
			if same {
				_, err := tx.Exec(ctx, `UPDATE host SET generation = generation WHERE id = $1`, r.id) // as joinedBefore
				return err
			}
		}
		what := fmt.Sprintf("would renew it with generation %d", generation)
		if shown, _ := by.ShownKey(); !bytes.Equal(shown, r.identitySPKI) {
			what += " and another key than the newest"
		}
		return s.suspect(ctx, tx, by, r, what, generation, now)
	})
	switch {
	case err != nil:
		return nil, err
	case r == nil:
		return nil, noHost(by)
	case same:
		return s.joined(ctx, r)
	}
	s.waiting.wakeHost(r.id)
	return nil, suspect(r)
}

// suspect makes a host suspect. Its message says that one of two machines is a copy, and not which: the copy may have been
// the faster.
func (s *Service) suspect(ctx context.Context, tx *db.Tx, by access.Principal, r *row, what string, generation int64, now time.Time) error {
	r.state, r.problem = client.HostSuspect, true
	r.message = fmt.Sprintf("two machines used one identity, and one of them is a copy; which one, this does not say: at %s one %s, and one has had "+
		"generation %d since %s", now.UTC().Format(time.RFC3339), what, r.generation, r.joinedOrRenewed())
	if err := r.update(ctx, tx); err != nil {
		return err
	}
	return s.audit(ctx, tx, by.Actor(), "host.suspect", r.name, map[string]any{"shown": generation, "generation": r.generation}, now)
}

// joinedOrRenewed is when the newest identity was issued, as far as its end tells.
func (r *row) joinedOrRenewed() string {
	return r.identityEnds.Add(-identity.AgentLife).UTC().Format(time.RFC3339)
}

func noHost(by access.Principal) error {
	return fault.New(fault.Denied, "%s is no host here: it was removed, or another machine has taken its place", by.Name).
		WithHint("chancery host add, or chancery host replace, makes a token by which a machine joins")
}

func suspect(r *row) error {
	return fault.New(fault.Denied, "host %s is suspect, and nothing is issued to it: %s", r.name, r.message).
		WithHint("find out which machine is the right one; then chancery host replace %s", r.name)
}
