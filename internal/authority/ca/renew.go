package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// RenewOrder says how a certificate is renewed or re-keyed. Its subject, names and profile stay.
type RenewOrder struct {
	IdempotencyKey string
	NotAfter       time.Time     // zero: the profile's
	Validity       time.Duration // instead of NotAfter
}

// Find returns a certificate by its serial. Callers with no role that reads everything find what they requested.
func (c *CA) Find(ctx context.Context, by access.Principal, ref Ref) (*Certificate, error) {
	now := time.Now()
	var found *Certificate
	err := c.db.Read(ctx, func(tx *db.Tx) error {
		r, err := c.recordByRef(ctx, tx, ref)
		if err != nil {
			return err
		}
		if !readsAll(by) && r.Requester != by.ID {
			return noSerial(ref.Serial)
		}
		found, err = c.complete(ctx, tx, r, now)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find certificate: %w", err)
	}
	return found, nil
}

// ByID returns a certificate by its ID, as Find does by its serial.
func (c *CA) ByID(ctx context.Context, by access.Principal, id int64) (*Certificate, error) {
	now := time.Now()
	var found *Certificate
	err := c.db.Read(ctx, func(tx *db.Tx) error {
		r, err := recordByID(ctx, tx, id)
		if err != nil {
			return err
		}
		if !readsAll(by) && r.Requester != by.ID {
			return fault.New(fault.NotFound, "there is no certificate %d", id)
		}
		found, err = c.complete(ctx, tx, r, now)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find certificate: %w", err)
	}
	return found, nil
}

// Renew issues a certificate for the same key, names and profile (RFC 3647 4.6), judged by what the profile and the caller
// are now. The old one stays valid until it ends or is revoked.
func (c *CA) Renew(ctx context.Context, by access.Principal, ref Ref, renew RenewOrder) (*Certificate, error) {
	return c.replace(ctx, by, ref, renew, func(old *Certificate, order *Order) error {
		order.PublicKey = old.PublicKey()
		return nil
	})
}

// Rekey issues a certificate for a new key and the same names and profile (RFC 3647 4.7). The key comes in a request, whose
// names are none or the old ones, or as a SubjectPublicKeyInfo.
func (c *CA) Rekey(ctx context.Context, by access.Principal, ref Ref, csr, publicKey []byte, renew RenewOrder) (*Certificate, error) {
	return c.replace(ctx, by, ref, renew, func(old *Certificate, order *Order) error {
		order.PublicKey = publicKey
		if len(csr) == 0 {
			if err := provesKey(by, csr); err != nil {
				return err
			}
			return differentKey(old, publicKey)
		}
		if len(publicKey) > 0 {
			return fault.New(fault.Invalid, "give either a certification request or a public key")
		}
		request, err := cert.CSRLimits{}.ParsePEM(csr)
		if err != nil {
			return err
		}
		if len(request.SAN) > 0 && !sameNames(request.SAN, old.Names()) {
			return fault.New(fault.Invalid, "the request asks for %v; a re-key keeps the names %v", request.SAN, old.Names()).
				WithHint("issue a new certificate for other names")
		}
		order.PublicKey = request.SPKI
		return differentKey(old, request.SPKI)
	})
}

func differentKey(old *Certificate, spki []byte) error {
	if bytes.Equal(old.PublicKey(), spki) {
		return fault.New(fault.Invalid, "the key is the old one; a re-key brings a new key, and a renewal keeps the old")
	}
	return nil
}

func sameNames(a, b []cert.GeneralName) bool {
	text := func(names []cert.GeneralName) []string {
		var all []string
		for _, n := range names {
			all = append(all, searchName(n.String()))
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	return slices.Equal(text(a), text(b))
}

func (c *CA) replace(ctx context.Context, by access.Principal, ref Ref, renew RenewOrder,
	key func(*Certificate, *Order) error) (*Certificate, error) {
	now := time.Now()
	if err := c.admit(ctx, by, access.IssueCertificate, now); err != nil {
		return nil, err
	}
	old, err := c.Find(ctx, by, ref)
	if err != nil {
		return nil, err
	}
	order := Order{
		IdempotencyKey: renew.IdempotencyKey, Issuer: old.Issuer.ID, Profile: old.Profile, NotAfter: renew.NotAfter,
		Validity: renew.Validity, replaces: old,
	}
	if err := key(old, &order); err != nil {
		return nil, err
	}
	if err := errors.Join(replaceable(old, by), copyable(old, by, renew, now)); err != nil {
		return c.replay(ctx, by, &order, now, err)
	}
	if c.successor != nil && old.Issuer.State == IssuerActive {
		if order.successor, err = c.successor(ctx, by, old); err != nil {
			return nil, err
		}
	}
	return c.planAndIssue(ctx, by, &order, now)
}

// replaceable says why a certificate cannot be renewed or re-keyed by the caller.
func replaceable(old *Certificate, by access.Principal) error {
	switch {
	case !by.Has(access.Admin, access.Officer, access.Operator) && old.Requester != by.ID:
		return fault.New(fault.Denied, "%s did not request certificate %s and may not renew it", by.Name, cert.FormatSerial(old.Serial))
	case old.State == Revoked || old.State == Held:
		return fault.New(fault.Conflict, "certificate %s is %s; only a valid or expired one is renewed", cert.FormatSerial(old.Serial), old.State)
	case len(old.DER) == 0:
		_, err := old.Parsed()
		return err
	case old.read().isCA:
		return fault.New(fault.Conflict, "certificate %s is an issuer's, which is renewed as such", cert.FormatSerial(old.Serial)).
			WithHint("chancery issuer renew NAME")
	}
	return nil
}

// copyable bounds the renewal of what no stored profile describes, a template's or an imported certificate: nothing but the
// old one says what it may be. It lasts no longer than the old one did. Only an administrator could ask for it in the first
// place, so only one renews it, or who asked for the old one himself; and none but an administrator has it sign OCSP answers.
func copyable(old *Certificate, by access.Principal, renew RenewOrder, now time.Time) error {
	if old.Profile != templateProfile && old.Profile != importedProfile || len(old.DER) == 0 {
		return nil
	}
	parsed, err := old.Parsed()
	if err != nil {
		return err
	}
	serial := cert.FormatSerial(old.Serial)
	if !by.Has(access.Admin) {
		switch {
		case slices.Contains(parsed.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
			return fault.New(fault.Denied, "certificate %s belongs to no profile and signs OCSP answers; an administrator renews it", serial)
		case old.Requester != by.ID:
			return fault.New(fault.Denied, "certificate %s belongs to no profile; an administrator renews it, or who requested it", serial).
				WithHint("chancery cert issue --profile P gets a new certificate of a profile")
		}
	}
	end := renew.NotAfter
	if end.IsZero() && renew.Validity > 0 {
		end = now.Add(renew.Validity)
	}
	life := old.NotAfter.Sub(old.NotBefore)
	if longest := now.Add(life); end.After(longest) {
		return fault.New(fault.Denied, "certificate %s belongs to no profile and was valid for %s; a renewal that ends at %s would last longer", serial,
			life, end.UTC().Format(time.RFC3339)).WithHint("an end of %s would pass", longest.UTC().Format(time.RFC3339))
	}
	return nil
}
