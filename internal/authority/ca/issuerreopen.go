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
	"chancery/internal/pki/crl"
	"chancery/internal/store/db"
)

// This file makes retired issuers active again: by a renewal, and with the certificate that they have where that is good. It is the
// issuer that it was, with its number, inventory and CRLs, so nothing that it signs contradicts what it has signed.

// renewable says why an issuer gets none of the certificates given, or none at all where none is given: it is made here then.
func (i *Issuer) renewable(answer []*x509.Certificate) error {
	own := slices.ContainsFunc(answer, func(c *x509.Certificate) bool { return i.Certificate != nil && c.Equal(i.Certificate) })
	switch {
	case i.State == IssuerPending:
		return fault.New(fault.Conflict, "issuer %q waits for its first certificate", i.Name).WithHint("chancery issuer import %s --certificate F", i.Name)
	case i.Certificate == nil:
		return fault.New(fault.Conflict, "issuer %q was retired before it had a certificate, and has signed nothing; another one, with a subject of its own, would pass", i.Name).
			WithHint("chancery issuer issue NAME --external --subject DN")
	case i.Root() && own && len(answer) == 1:
		return nil // it has that, or is active again with it
	case i.Root() && i.State == IssuerRetired:
		return fault.New(fault.Conflict, "issuer %q is a root, which everyone trusts by its certificate: it gets no other one, and may be active again with the one that it has",
			i.Name).WithHint("chancery issuer reopen %s", i.Name)
	case i.Root():
		return fault.New(fault.Conflict, "issuer %q is a root, which everyone trusts by its certificate: another one has to be in every store before the old one "+
			"ends, and is brought there in stages, with a new key; an issuer below it can be renewed with its key", i.Name).
			WithHint("chancery rollout start rotate-root --pool %s", i.Pool)
	}
	return nil
}

// orReopened names the other way to a retired issuer that is active again, where its renewal is refused.
func (i *Issuer) orReopened(err error) error {
	refusal, ok := errors.AsType[*fault.Error](err)
	if !ok || i.State != IssuerRetired {
		return err
	}
	hint := fmt.Sprintf("chancery issuer reopen %s, if the certificate that it has is good", i.Name)
	if refusal.Hint != "" {
		hint = refusal.Hint + "; or " + hint
	}
	return refusal.WithHint("%s", hint)
}

// unmoved refuses a renewal that was judged by another state than the issuer has now.
func (r *renewal) unmoved(i *Issuer) error {
	if i.State == r.before.State {
		return nil
	}
	return fault.New(fault.Conflict, "issuer %q was %s, and is %s since this moment", i.Name, r.before.State, i.State).WithHint("chancery issuer show %s, and again", i.Name)
}

// admitAgain refuses to make a retired issuer active again whose key nobody may rely on, or whose place another one has.
func (c *CA) admitAgain(ctx context.Context, tx *db.Tx, i *Issuer) error {
	if i.State != IssuerRetired {
		return nil
	}
	if err := c.keyGood(ctx, tx, i); err != nil {
		return err
	}
	return checkOthers(ctx, tx, i, i.Certificate.RawSubject, false)
}

// keyGood refuses an issuer's key that is compromised, by what the inventories here say of any certificate of it that an issuer here has.
func (c *CA) keyGood(ctx context.Context, tx *db.Tx, i *Issuer) error {
	if err := checkIssuerKey(ctx, tx, i); err != nil {
		return err
	}
	all, err := readIssuers(ctx, tx, ` WHERE public_key = $1`, i.PublicKey)
	if err != nil {
		return err
	}
	for _, of := range all {
		if of.Certificate == nil {
			continue
		}
		r, err := compromisedOf(ctx, tx, of)
		switch {
		case err != nil:
			return fmt.Errorf("look for what is revoked of issuer %s: %w", of.Name, err)
		case r != nil:
			return fault.New(fault.Conflict, "the certificate %s of the key of issuer %q was revoked for %s, so that is not relied on any more; an issuer with another key "+
				"and another subject would pass", cert.FormatSerial(r.Serial), i.Name, r.Revocation.Reason).WithHint("chancery issuer issue NAME --subject DN")
		}
	}
	return nil
}

// compromisedOf is a certificate of an issuer's name and key, in any inventory, that was revoked since the key is compromised; nil for none.
func compromisedOf(ctx context.Context, tx *db.Tx, i *Issuer) (*record, error) {
	own := Certificate{DER: i.Certificate.Raw}
	if err := own.fill(); err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, `SELECT `+certificateColumns+certificateFrom+` WHERE c.name = $1 AND c.state = 'revoked' AND c.profile || '' IN ('`+issuerProfile+
		`', '`+importedProfile+`')`, []byte(own.searchNames()[0]))
	if err != nil {
		return nil, err
	}
	found, err := collect(rows)
	if err != nil {
		return nil, err
	}
	for _, r := range found {
		if len(r.DER) > 0 && bytes.Equal(r.PublicKey(), i.PublicKey) && (r.Revocation.Reason == crl.KeyCompromise || r.Revocation.Reason == crl.CACompromise) {
			return r, nil
		}
	}
	return nil, nil
}

// outlived reports whether a certificate that was revoked for a reason says nothing against another one for the same name and key.
func outlived(reason crl.Reason) bool {
	return reason == crl.Unspecified || reason == crl.Superseded || reason == crl.CessationOfOperation
}

// reopenAsItIs makes an issuer active again with the certificate that it has.
func (c *CA) reopenAsItIs(ctx context.Context, tx *db.Tx, r *renewal, i *Issuer, actor string, now time.Time) error {
	if err := c.admitAgain(ctx, tx, i); err != nil {
		return err
	}
	if i.Parent != "" && !i.Root() {
		own, err := c.recordByRef(ctx, tx, Ref{Issuer: i.Parent, Serial: i.Certificate.SerialNumber})
		switch serial := cert.FormatSerial(i.Certificate.SerialNumber); {
		case fault.Is(err, fault.NotFound):
		case err != nil:
			return err
		case own.State == Held:
			return fault.New(fault.Conflict, "the certificate %s of issuer %q is on hold", serial, i.Name).WithHint("chancery cert release %s", serial)
		case own.State == Revoked:
			return fault.New(fault.Conflict, "the certificate %s of issuer %q is revoked (%s), and nobody would take what is below it; with another one it would be active again",
				serial, i.Name, own.Revocation.Reason).WithHint("chancery issuer renew %s --validity V, or with --certificate F", i.Name)
		}
	}
	if err := c.goodAbove(ctx, tx, i); err != nil {
		return err
	}
	if err := ownRoot(ctx, tx, i); err != nil {
		return err
	}
	if c.renewing != nil {
		if err := c.renewing(ctx, tx, i, r.after); err != nil {
			return err
		}
	}
	return c.reopened(ctx, tx, i, actor, now)
}

// reopened makes a retired issuer active, and the default of its pool where that has none.
func (c *CA) reopened(ctx context.Context, tx *db.Tx, i *Issuer, actor string, now time.Time) error {
	if i.State != IssuerRetired {
		return nil
	}
	if _, err := tx.Exec(ctx, `UPDATE issuer SET state = 'active' WHERE id = $1`, i.ID); err != nil {
		return fmt.Errorf("reopen issuer %s: %w", i.Name, err)
	}
	i.State = IssuerActive
	if i.KeyID != "" && !i.Root() {
		if err := firstIsDefault(ctx, tx, i); err != nil {
			return fmt.Errorf("make issuer %s the default: %w", i.Name, err)
		}
	}
	return c.auditIssuer(ctx, tx, i, "issuer.reopen", actor, now)
}
