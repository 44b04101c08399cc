package access

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// proof is what a caller showed: the hash of a token, or the issuer and the hash of the key of a certificate.
type proof struct {
	issuer string // empty for a token
	hash   [sha256.Size]byte
}

// known is what a proof was found to prove.
type known struct {
	principal Principal
	token     string    // its id
	expires   time.Time // of the token; zero for a certificate, whose own end TLS has checked
	unused    bool      // of the token: the store knows of no use yet
	read      time.Time
}

const (
	// remember is how long an answer of the database is believed.
	remember = time.Second
	// maxKnown bounds the answers kept. When it is reached all are dropped, which costs each caller one query.
	maxKnown = 1 << 16
	// flushEvery is how often the times of last use are written, and so how coarse they are.
	flushEvery = 5 * time.Minute
)

// refused is the one answer to whatever is wrong with a token or a certificate, so that guessing teaches nothing.
func refused() error {
	return fault.New(fault.Unauthenticated, "the credential is not valid").
		WithHint("it may have expired or been deleted, or its owner disabled; ask an administrator")
}

// Authenticate returns the principal whose token this is.
func (s *Store) Authenticate(ctx context.Context, token string) (Principal, error) {
	hash, ok := hashToken(token)
	if !ok {
		return Principal{}, refused()
	}
	now := time.Now()
	k, err := s.prove(ctx, proof{hash: hash}, now, s.loadToken)
	if err != nil {
		return Principal{}, err
	}
	if !now.Before(k.expires) {
		return Principal{}, refused()
	}
	s.noteUse(k.token, now, k.unused)
	return k.principal, nil
}

// AuthenticateCertificate returns the principal to which a client certificate's key was given. spki is its
// SubjectPublicKeyInfo and issuer the id of its issuer. The caller has checked the certification path, the validity and
// the revocation of the certificate before.
func (s *Store) AuthenticateCertificate(ctx context.Context, issuer string, spki []byte) (Principal, error) {
	if issuer == "" || len(spki) == 0 {
		return Principal{}, refused()
	}
	k, err := s.prove(ctx, proof{issuer, sha256.Sum256(spki)}, time.Now(), s.loadIdentity)
	if err != nil {
		return Principal{}, err
	}
	return k.principal.Showing(spki), nil
}

// prove answers from memory if it can. Only good answers are kept: a bad one must not hide a credential that is made in
// the next instant, and guesses must not fill the memory.
func (s *Store) prove(ctx context.Context, shown proof, now time.Time, load func(context.Context, *db.Tx, proof) (known, error)) (known, error) {
	s.mu.RLock()
	k, ok := s.known[shown]
	epoch := s.epoch
	s.mu.RUnlock()
	// A clock that was set back must not prolong what is believed.
	if age := now.Sub(k.read); ok && age >= 0 && age < remember {
		return k, nil
	}
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		k, err = load(ctx, tx, shown)
		return err
	})
	if errors.Is(err, sql.ErrNoRows) || err == nil && k.principal.Disabled {
		return known{}, refused()
	}
	if err != nil {
		return known{}, fmt.Errorf("authenticate: %w", err)
	}
	k.read = now
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == epoch {
		if len(s.known) >= maxKnown {
			clear(s.known)
		}
		s.known[shown] = k
	}
	return k, nil
}

// loadToken finds a token by its hash, and compares the hash again in constant time: an index may be probed by timing,
// which for the hash of 256 random bits teaches nothing, but the comparison costs nothing either.
func (s *Store) loadToken(ctx context.Context, tx *db.Tx, shown proof) (known, error) {
	var k known
	var owner string
	var hash []byte
	var expires, used int64
	err := tx.QueryRow(ctx, `SELECT id, principal_id, hash, expires, last_used FROM access_token WHERE hash = $1`, shown.hash[:]).
		Scan(&k.token, &owner, &hash, &expires, &used)
	if err != nil {
		return known{}, err
	}
	if subtle.ConstantTimeCompare(hash, shown.hash[:]) != 1 {
		return known{}, sql.ErrNoRows
	}
	k.expires, k.unused = db.FromMicros(expires), used == 0
	k.principal, err = scanPrincipal(tx.QueryRow(ctx, `SELECT `+principalColumns+` FROM principal WHERE id = $1`, owner))
	k.principal.tokenEnds = k.expires
	return k, err
}

func (s *Store) loadIdentity(ctx context.Context, tx *db.Tx, shown proof) (known, error) {
	var owner string
	err := tx.QueryRow(ctx, `SELECT principal_id FROM access_identity WHERE issuer = $1 AND spki = $2`, shown.issuer, shown.hash[:]).
		Scan(&owner)
	if err != nil {
		return known{}, err
	}
	p, err := scanPrincipal(tx.QueryRow(ctx, `SELECT `+principalColumns+` FROM principal WHERE id = $1`, owner))
	return known{principal: p}, err
}

// invalidate drops what was remembered, after a change.
func (s *Store) invalidate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	clear(s.known)
}

// RemoveIdentity ends what AddIdentity began; it takes effect on this node with the return of the call.
func (s *Store) RemoveIdentity(ctx context.Context, by Principal, issuer string, spki []byte) error {
	if err := by.May(ManagePrincipals); err != nil {
		return err
	}
	now := time.Now()
	hash := sha256.Sum256(spki)
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		n, err := tx.Exec(ctx, `DELETE FROM access_identity WHERE issuer = $1 AND spki = $2`, issuer, hash[:])
		if err != nil {
			return err
		}
		if n == 0 {
			return notFound(nil, "identity", fmt.Sprintf("%x", hash))
		}
		return s.log.Append(ctx, tx, audit.Event{
			Time: now, Actor: by.Actor(), Action: "identity.remove", Object: fmt.Sprintf("%x", hash), Detail: map[string]any{"issuer": issuer},
		})
	})
	s.invalidate()
	if err != nil {
		return fmt.Errorf("remove identity: %w", err)
	}
	return nil
}

// notFound turns a missing row into a refusal; other errors pass.
func notFound(err error, what, id string) error {
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	return fault.New(fault.NotFound, "there is no %s %.80q", what, id)
}

// noteUse remembers that a token was used. It never waits for the database, so that a node that cannot write still knows
// its callers.
func (s *Store) noteUse(token string, now time.Time, first bool) {
	s.mu.RLock()
	last, ok := s.used[token]
	s.mu.RUnlock()
	if ok && now.Sub(last) < time.Minute {
		return
	}
	s.mu.Lock()
	if len(s.used) < maxKnown {
		s.used[token] = now
	}
	s.mu.Unlock()
	if first && !ok {
		select {
		case s.first <- struct{}{}:
		default: // the writer has been told, and has not begun
		}
	}
}

// Run writes the times of last use now and then, and the first use of a token at once, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.first:
			if err := s.FlushUse(ctx); err != nil && ctx.Err() == nil {
				continue
			}
		case <-tick.C:
			if err := s.FlushUse(ctx); err != nil && ctx.Err() == nil {
				continue // the node is read-only or the database away; what is pending stays so
			}
		}
	}
}

// FlushUse writes the times of last use that are pending.
func (s *Store) FlushUse(ctx context.Context) error {
	s.mu.Lock()
	pending := s.used
	s.used = map[string]time.Time{}
	s.mu.Unlock()
	if len(pending) == 0 {
		return nil
	}
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		for token, at := range pending {
			// Another node may have written a later time.
			if _, err := tx.Exec(ctx, `UPDATE access_token SET last_used = $1 WHERE id = $2 AND last_used < $1`, db.Micros(at), token); err != nil {
				return err
			}
		}
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		for shown, k := range s.known {
			if _, written := pending[k.token]; written && k.unused {
				k.unused = false
				s.known[shown] = k
			}
		}
		return nil
	}
	for token, at := range pending {
		if s.used[token].Before(at) {
			s.used[token] = at
		}
	}
	return fmt.Errorf("write the last use of tokens: %w", err)
}
