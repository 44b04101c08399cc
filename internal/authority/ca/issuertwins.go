package ca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"

	"chancery/internal/pki/cert"
	"chancery/internal/store/db"
)

// Twin is two issuers here that have one subject, or one key, or both. None is made any more (checkOthers) but by bringing in a certificate
// without its key; others came in before that was refused.
type Twin struct {
	One, Other    *Issuer // by name; the one that is active first, where the other is not
	Subject, Key  bool    // which they share
	Compromised   bool    // the key that they share was revoked as compromised
	BothSignLists bool    // they share both, and the keys of both are here
}

// Twins finds the issuers that others of the authority can be taken for.
func (c *CA) Twins(ctx context.Context) (twins []Twin, err error) {
	all, err := c.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	for n, one := range all {
		for _, other := range all[n+1:] {
			if one.Certificate == nil || other.Certificate == nil {
				continue
			}
			t := Twin{One: one, Other: other, Subject: sameSubject(one, other), Key: bytes.Equal(one.PublicKey, other.PublicKey)}
			if !t.Subject && !t.Key {
				continue
			}
			if other.State == IssuerActive && one.State != IssuerActive {
				t.One, t.Other = other, one
			}
			t.BothSignLists = t.Subject && t.Key && one.KeyID != "" && other.KeyID != ""
			if t.Key {
				if t.Compromised, err = c.keyCompromised(ctx, one.PublicKey); err != nil {
					return nil, fmt.Errorf("look at the key of issuers %s and %s: %w", one.Name, other.Name, err)
				}
			}
			twins = append(twins, t)
		}
	}
	return twins, nil
}

// sameSubject compares as RFC 5280 7.1 says, as relying parties may.
func sameSubject(one, other *Issuer) bool {
	a, err := cert.ParseNameDER(one.Certificate.RawSubject)
	if err != nil {
		return bytes.Equal(one.Certificate.RawSubject, other.Certificate.RawSubject)
	}
	b, err := cert.ParseNameDER(other.Certificate.RawSubject)
	return err == nil && a.Equal(b)
}

func (c *CA) keyCompromised(ctx context.Context, spki []byte) (is bool, err error) {
	sum := sha256.Sum256(spki)
	err = c.db.Read(ctx, func(tx *db.Tx) error {
		found, err := compromised(ctx, tx, [][sha256.Size]byte{sum})
		_, is = found[sum]
		return err
	})
	return is, err
}
