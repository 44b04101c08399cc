package ca

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// ahead is what the record of a certificate reads first: whether the call was made before, and whether its key may be
// certified. Those who wait for one transaction have it read by two statements for all of them.
type ahead struct {
	call   once.Question
	spki   [sha256.Size]byte
	banned bool  // the key was revoked as compromised
	since  int64 // when that was
}

// aheadKey is the key of all of them.
type aheadKey struct{}

func (s *signed) reads() *ahead {
	return &ahead{
		call: once.Question{Caller: s.call.caller, Key: s.call.key, Request: s.call.hash}, spki: sha256.Sum256(s.certificate.PublicKey()),
	}
}

func readAhead(ctx context.Context, tx *db.Tx, items []any) error {
	calls, keys := make([]*once.Question, len(items)), make([][sha256.Size]byte, len(items))
	for i, item := range items {
		calls[i], keys[i] = &item.(*ahead).call, item.(*ahead).spki
	}
	if err := once.LookupAll(ctx, tx, calls); err != nil {
		return fmt.Errorf("look for earlier calls: %w", err)
	}
	since, err := compromised(ctx, tx, keys)
	if err != nil {
		return err
	}
	for i, item := range items {
		a := item.(*ahead)
		a.since, a.banned = since[keys[i]]
	}
	return nil
}

// compromised says which keys were revoked as compromised, and when.
func compromised(ctx context.Context, tx *db.Tx, keys [][sha256.Size]byte) (map[[sha256.Size]byte]int64, error) {
	var in strings.Builder
	var args []any
	for i, key := range db.Padded(keys) {
		in.WriteString(", $" + strconv.Itoa(i+1))
		args = append(args, key[:])
	}
	rows, err := tx.Query(ctx, `SELECT spki, since FROM compromised_key WHERE spki IN (`+in.String()[2:]+`)`, args...)
	if err != nil {
		return nil, fmt.Errorf("look for keys among compromised ones: %w", err)
	}
	defer rows.Close()
	var found map[[sha256.Size]byte]int64
	for rows.Next() {
		var spki []byte
		var since int64
		if err := rows.Scan(&spki, &since); err != nil {
			return nil, fmt.Errorf("look for keys among compromised ones: %w", err)
		}
		if found == nil {
			found = map[[sha256.Size]byte]int64{}
		}
		found[[sha256.Size]byte(spki)] = since
	}
	return found, rows.Err()
}

// earlier returns the answer to an earlier call with the same key, "" when there was none.
func (s *signed) earlier(ctx context.Context, tx *db.Tx) (string, error) {
	if s.ahead == nil {
		return s.call.earlier(ctx, tx)
	}
	answer, _, err := s.ahead.call.Answer(tx)
	return string(answer), err
}

// remember keeps the answer to the call. It is committed together with what it stands for.
func (s *signed) remember(ctx context.Context, tx *db.Tx, answer string, now time.Time) error {
	if s.ahead == nil {
		return s.call.remember(ctx, tx, answer, now)
	}
	s.ahead.call.RememberLast(tx, []byte(answer), now)
	return nil
}

// checkKey refuses a key that was revoked as compromised, under whatever issuer.
func (s *signed) checkKey(ctx context.Context, tx *db.Tx) error {
	if s.ahead == nil {
		return CheckKey(ctx, tx, s.certificate.PublicKey())
	}
	if s.ahead.banned {
		return banned(s.ahead.since)
	}
	return nil
}

// CheckKey refuses a key that was found to be compromised (BlockKey, or a revocation for that).
func CheckKey(ctx context.Context, tx *db.Tx, spki []byte) error {
	sum := sha256.Sum256(spki)
	var since int64
	err := tx.QueryRow(ctx, `SELECT since FROM compromised_key WHERE spki = $1`, sum[:]).Scan(&since)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("look for the key among compromised ones: %w", err)
	}
	return banned(since)
}

// checkIssuerKey is CheckKey for an issuer: its key is in what it signed, so another issuer has to take its place.
func checkIssuerKey(ctx context.Context, tx *db.Tx, i *Issuer) error {
	err := CheckKey(ctx, tx, i.PublicKey)
	if refusal, ok := errors.AsType[*fault.Error](err); ok {
		return refusal.WithHint("chancery rollout start rotate-issuer --pool %s", i.Pool)
	}
	return err
}

func banned(since int64) error {
	return fault.New(fault.Denied, "the key is known to be compromised (keyCompromise) since %s; make a new one", db.FromMicros(since).Format(time.RFC3339)).
		WithHint("chancery key generate")
}

func (c *CA) checkKey(ctx context.Context, spki []byte) error {
	return c.db.Read(ctx, func(tx *db.Tx) error { return CheckKey(ctx, tx, spki) })
}
