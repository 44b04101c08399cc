package access

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// Identity is a certificate by which a principal is known.
type Identity struct {
	Principal string // its ID
	Issuer    string // its ID
	SPKI      []byte
	Serial    *big.Int
	NotAfter  time.Time
}

// Bound is what the store says of a key: whose it is, and by which certificates.
type Bound struct {
	Principal string
	Serials   []*big.Int // the newest first; none for a key that was bound before serials were kept
}

// Has reports whether a certificate is one of those that prove the principal.
func (b Bound) Has(serial *big.Int) bool {
	for _, s := range b.Serials {
		if s.Cmp(serial) == 0 {
			return true
		}
	}
	return len(b.Serials) == 0
}

// AddIdentity makes a certificate prove a principal. For a key that proves the principal already it is the newest; the one
// before it goes on proving him, so that an answer that was lost locks nobody out, and those before that no longer do.
func (s *Store) AddIdentity(ctx context.Context, tx *db.Tx, id Identity, actor string, now time.Time) error {
	p, err := principal(ctx, tx, id.Principal)
	if err != nil {
		return err
	}
	hash, serial := sha256.Sum256(id.SPKI), id.Serial.Text(16)
	bound, err := bound(ctx, tx, id.Issuer, hash)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		_, err = tx.Exec(ctx, `INSERT INTO access_identity (issuer, spki, principal_id, created, serial, previous, not_after)
			VALUES ($1, $2, $3, $4, $5, '', $6)`, id.Issuer, hash[:], p.ID, db.Micros(now), serial, db.Micros(id.NotAfter))
	case err != nil:
	case bound.Principal != p.ID:
		return otherOwner()
	case len(bound.Serials) > 0 && bound.Serials[0].Cmp(id.Serial) == 0:
		return nil // a call that is repeated
	default:
		_, err = tx.Exec(ctx, `UPDATE access_identity SET previous = serial, serial = $1, not_after = $2 WHERE issuer = $3 AND spki = $4`,
			serial, db.Micros(id.NotAfter), id.Issuer, hash[:])
	}
	if err != nil {
		return fmt.Errorf("add identity of %s: %w", p.Name, err)
	}
	return s.log.Append(ctx, tx, audit.Event{
		Time: now, Actor: actor, Action: "identity.add", Object: p.ID,
		Detail: map[string]any{"name": p.Name, "issuer": id.Issuer, "spki_sha256": fmt.Sprintf("%x", hash), "serial": serial},
	})
}

// Identity returns whose a key is under an issuer. A key that is nobody's is a refusal that is NotFound.
func (s *Store) Identity(ctx context.Context, issuer string, spki []byte) (b Bound, err error) {
	hash := sha256.Sum256(spki)
	err = s.db.ReadFound(ctx, func(tx *db.Tx) error {
		b, err = bound(ctx, tx, issuer, hash)
		return err
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return Bound{}, fault.New(fault.NotFound, "the key is nobody's identity")
	case err != nil:
		return Bound{}, fmt.Errorf("find the owner of a key: %w", err)
	}
	return b, nil
}

// IdentityOwner reads in the caller's transaction who a key proves.
func IdentityOwner(ctx context.Context, tx *db.Tx, issuer string, spki []byte) (Principal, error) {
	b, err := bound(ctx, tx, issuer, sha256.Sum256(spki))
	if err != nil {
		return Principal{}, notFound(err, "identity", issuer)
	}
	return principal(ctx, tx, b.Principal)
}

// FreeFor refuses a key that is the identity of another principal than the one given.
func (b Bound) FreeFor(principalID string) error {
	if b.Principal != "" && b.Principal != principalID {
		return otherOwner()
	}
	return nil
}

func otherOwner() error {
	return fault.New(fault.Conflict, "this key is the identity of another principal already; a key proves one only").
		WithHint("make a new key for this one: a host does so by itself when it joins with a new token, which chancery host replace prints")
}

func bound(ctx context.Context, tx *db.Tx, issuer string, hash [sha256.Size]byte) (Bound, error) {
	var b Bound
	var serials [2]string
	err := tx.QueryRow(ctx, `SELECT principal_id, serial, previous FROM access_identity WHERE issuer = $1 AND spki = $2`, issuer, hash[:]).
		Scan(&b.Principal, &serials[0], &serials[1])
	if err != nil {
		return Bound{}, err
	}
	for _, text := range serials {
		if text == "" {
			continue
		}
		serial, ok := new(big.Int).SetString(text, 16)
		if !ok {
			return Bound{}, fmt.Errorf("read an identity: serial %q is not hexadecimal", text)
		}
		b.Serials = append(b.Serials, serial)
	}
	return b, nil
}

// PruneIdentities forgets up to limit keys whose newest certificate ended before the time given, and says how many.
func (s *Store) PruneIdentities(ctx context.Context, ended time.Time, limit int) (n int64, err error) {
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		n, err = tx.Exec(ctx, `DELETE FROM access_identity WHERE (issuer, spki) IN (SELECT issuer, spki FROM access_identity
			WHERE not_after > 0 AND not_after < $1 ORDER BY issuer, spki LIMIT $2)`, db.Micros(ended), limit)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("prune identities: %w", err)
	}
	return n, nil
}
