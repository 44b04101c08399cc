package importer

import (
	"context"
	"errors"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// Into says as what a CA goes on here.
type Into struct {
	IdempotencyKey string
	Name           string
	Pool           string // empty means the default pool
	Default        bool   // issues what names no issuer
	CRL            ca.CRLMode
	DryRun         bool // all that Import does, and then it is taken back

	// Also runs in the transaction that brings it in; it may be nil, and may run twice.
	Also func(ctx context.Context, tx *db.Tx) error
}

// Import stores the CA as an issuer with all that it issued and revoked, and with the CRLNumber that it reached: one
// transaction, so that no list is signed and no status answered that forgets a revocation or goes back. Of a dry run the issuer is returned
// that would have been.
func (c *CA) Import(ctx context.Context, authority *ca.CA, by access.Principal, into Into) (*ca.Issuer, error) {
	spec := ca.ImportSpec{
		IdempotencyKey: into.IdempotencyKey, Name: into.Name, Pool: into.Pool, Default: into.Default, CRL: into.CRL,
		Certificate: c.Certificate, Chain: c.Chain, Key: c.Key, Token: c.Token, Records: c.Issued,
	}
	var foreseen *ca.Issuer
	spec.Also = func(ctx context.Context, tx *db.Tx, issuer *ca.Issuer) error {
		if into.Also != nil {
			if err := into.Also(ctx, tx); err != nil {
				return err
			}
		}
		if number := c.CRLNumber; number != nil && number.Sign() > 0 {
			if err := revocation.StartFrom(ctx, tx, issuer, number); err != nil {
				return err
			}
		}
		if into.DryRun {
			foreseen = issuer
			return errDryRun
		}
		return nil
	}
	issuer, err := authority.ImportIssuer(ctx, by, spec)
	if errors.Is(err, errDryRun) {
		return foreseen, nil
	}
	return issuer, err
}

var errDryRun = errors.New("a dry run")
