package access

import (
	"context"
	"fmt"
	"math/big"
	"slices"
	"time"

	"chancery/internal/store/db"
)

// This file is for who keeps machines that are principals, in transactions of his own. He calls Forget after the commit.

// RemovePrincipal is DeletePrincipal in the caller's transaction, who decided whether by may.
func (s *Store) RemovePrincipal(ctx context.Context, tx *db.Tx, by Principal, id string, now time.Time) error {
	return s.remove(ctx, tx, by, id, now)
}

// Forget drops what this node remembers of callers; other nodes do so within a second.
func (s *Store) Forget() { s.invalidate() }

// Held is a certificate that proves a principal.
type Held struct {
	Issuer string // its ID
	SPKI   []byte // the SHA-256 of its SubjectPublicKeyInfo
	Serial *big.Int
}

// HeldBy lists the certificates that prove a principal.
func HeldBy(ctx context.Context, tx *db.Tx, principalID string) ([]Held, error) {
	rows, err := tx.Query(ctx, `SELECT issuer, spki, serial, previous FROM access_identity WHERE principal_id = $1 ORDER BY issuer, spki`, principalID)
	if err != nil {
		return nil, fmt.Errorf("list the identities of a principal: %w", err)
	}
	defer rows.Close()
	var held []Held
	for rows.Next() {
		var issuer string
		var spki []byte
		var serials [2]string
		if err := rows.Scan(&issuer, &spki, &serials[0], &serials[1]); err != nil {
			return nil, fmt.Errorf("list the identities of a principal: %w", err)
		}
		for _, text := range serials {
			if text == "" {
				continue
			}
			serial, ok := new(big.Int).SetString(text, 16)
			if !ok {
				return nil, fmt.Errorf("list the identities of a principal: serial %q is not hexadecimal", text)
			}
			held = append(held, Held{issuer, spki, serial})
		}
	}
	return held, rows.Err()
}

// KeepKeys ends all identities of a principal but those of the keys whose SHA-256 is given.
func KeepKeys(ctx context.Context, tx *db.Tx, principalID string, keep ...[]byte) error {
	held, err := HeldBy(ctx, tx, principalID)
	if err != nil {
		return err
	}
	for _, h := range held {
		if slices.ContainsFunc(keep, func(k []byte) bool { return string(k) == string(h.SPKI) }) {
			continue
		}
		if _, err := tx.Exec(ctx, `DELETE FROM access_identity WHERE issuer = $1 AND spki = $2`, h.Issuer, h.SPKI); err != nil {
			return fmt.Errorf("end an identity of a principal: %w", err)
		}
	}
	return nil
}
