package host

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/db"
	"chancery/internal/store/settings"
)

const (
	tokenLife    = 24 * time.Hour
	maxTokenLife = 30 * 24 * time.Hour
	secretSize   = 32 // octets: 256 random bits, so a plain hash is enough
)

// secretOf is the hash by which a token is stored.
func secretOf(text string) ([]byte, error) {
	t, err := client.ParseJoinToken(strings.TrimSpace(text))
	if err != nil {
		return nil, fault.New(fault.Unauthenticated, "%w", err).At("/token").WithHint("chancery host token NAME makes another")
	}
	return hashSecret(t.Secret), nil
}

func hashSecret(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// newTokenText makes a token for this authority.
func (s *Service) newTokenText(ctx context.Context) (*client.JoinToken, error) {
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	if set.Address == "" {
		return nil, fault.New(fault.Conflict, "address is not set, so a join token could not say where the authority is").
			WithHint("chancery settings set address=https://HOST:PORT")
	}
	roots, err := s.Identity.RootCertificates(ctx)
	if err != nil {
		return nil, err
	}
	if len(roots) == 0 {
		return nil, fault.New(fault.Unavailable, "the authority has no root of identities")
	}
	// Of two, while the root is replaced, the newer one is there longer.
	newest := roots[0]
	for _, r := range roots[1:] {
		if r.NotBefore.After(newest.NotBefore) {
			newest = r
		}
	}
	var secret [secretSize]byte
	rand.Read(secret[:])
	return &client.JoinToken{
		Address: set.Address, Fingerprint: client.Fingerprint(newest.Raw), Secret: base64.RawURLEncoding.EncodeToString(secret[:]),
	}, nil
}

func lifeOf(text string) (time.Duration, error) {
	if text == "" {
		return tokenLife, nil
	}
	life, err := settings.ParseDuration(text)
	if err != nil {
		return 0, fault.New(fault.Invalid, "%w", err).At("/token_life")
	}
	if d := life.Std(); d >= time.Minute && d <= maxTokenLife {
		return d, nil
	}
	return 0, fault.New(fault.Invalid, "a join token that is valid for %s was asked for; from 1m to 30d can be had", text).At("/token_life")
}

// noMachine is the reason in a token of a host that has had no machine.
const noMachine = -1

// token is a row of host_token.
type token struct {
	id, host   string
	reason     int64 // why the machine before is ended, or noMachine
	created    time.Time
	expires    time.Time
	spki       []byte // SHA-256 of the key that redeemed it; empty before
	issuer     string // of the identity it was redeemed for
	serial     string
	redeemedAt time.Time
	refused    int64
}

func (t *token) redeemed() bool { return len(t.spki) > 0 }

// findToken returns nil where there is none.
func findToken(ctx context.Context, tx *db.Tx, where string, arg any) (*token, error) {
	var t token
	var created, expires, redeemed int64
	err := tx.QueryRow(ctx, `SELECT id, host, reason, created_at, expires, spki, issuer, serial, redeemed_at, refused FROM host_token WHERE `+where, arg).
		Scan(&t.id, &t.host, &t.reason, &created, &expires, &t.spki, &t.issuer, &t.serial, &redeemed, &t.refused)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read a join token: %w", err)
	}
	t.created, t.expires = db.FromMicros(created), db.FromMicros(expires)
	if redeemed != 0 {
		t.redeemedAt = db.FromMicros(redeemed)
	}
	return &t, nil
}

// putToken gives a host its one token. One that it had is no longer good.
func putToken(ctx context.Context, tx *db.Tx, host string, reason int64, text *client.JoinToken, life time.Duration, now time.Time) (*token, error) {
	if _, err := tx.Exec(ctx, `DELETE FROM host_token WHERE host = $1`, host); err != nil {
		return nil, err
	}
	t := &token{id: db.NewID(), host: host, reason: reason, created: now, expires: now.Add(life)}
	_, err := tx.Exec(ctx, `INSERT INTO host_token (id, host, hash, reason, created_at, expires, spki, issuer, serial, redeemed_at, refused)
		VALUES ($1, $2, $3, $4, $5, $6, $7, '', '', 0, 0)`, t.id, host, hashSecret(text.Secret), reason, db.Micros(now), db.Micros(t.expires), []byte{})
	if err != nil {
		return nil, fmt.Errorf("write a join token: %w", err)
	}
	return t, nil
}
