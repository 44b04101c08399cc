package ca

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// This file gives an issuer that is here without its key that key, where it is imported with it. It stays the one issuer of its name and
// key, with its number, its inventory and the CRLNumber that it reached: a second one would sign CRLs that contradict what was signed for
// the first with the key where that was.

// keyless is the issuer here that an import with a key gives that key to; nil where there is none, or one that has it.
func (s *issuerSet) keyless(spec *ImportSpec) (*Issuer, error) {
	if spec.Key == nil && spec.Token == "" {
		return nil, nil
	}
	own, err := cert.ParseNameDER(spec.Certificate.RawSubject)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the subject of issuer %q: %w", spec.Name, err)
	}
	var found *Issuer
	for _, i := range s.all {
		if i.Certificate == nil || !bytes.Equal(i.PublicKey, spec.Certificate.RawSubjectPublicKeyInfo) {
			continue
		}
		if subject, err := cert.ParseNameDER(i.Certificate.RawSubject); err != nil || !subject.Equal(own) {
			continue
		}
		if i.KeyID != "" {
			return nil, nil // checkOthers has the words for that
		}
		if found == nil || i.Name == spec.Name {
			found = i
		}
	}
	if found == nil {
		return nil, nil
	}
	return found, spec.fits(found)
}

// fits says why an import gives an issuer that is here no key.
func (s *ImportSpec) fits(i *Issuer) error {
	refusal := keyOf(i.Name)
	switch {
	case !i.Certificate.Equal(s.Certificate):
		refusal.Message += fmt.Sprintf(", with the certificate that it has (serial %s)", cert.FormatSerial(i.Certificate.SerialNumber))
		if i.Root() {
			return refusal.WithHint("chancery issuer show %s --pem has that", i.Name)
		}
		return refusal.WithHint("chancery issuer show %s --pem has that; then chancery issuer renew %s --certificate F brings in another one", i.Name, i.Name)
	case s.Name != i.Name || s.Pool != "" && s.Pool != i.Pool:
		return refusal.WithHint("import it with --name %s --pool %s", i.Name, i.Pool)
	}
	return nil
}

// giveKey stores that an issuer which was here before has its key, and what the import knows beside of what it issued and revoked.
func (c *CA) giveKey(ctx context.Context, tx *db.Tx, by access.Principal, n *newIssuer, now time.Time) error {
	i, err := oneIssuer(ctx, tx, `issuer "`+n.issuer.Name+`" is gone`, ` WHERE id = $1`, n.issuer.ID)
	if err != nil {
		return err
	}
	if i.KeyID != "" || i.Certificate == nil || !i.Certificate.Equal(n.issuer.Certificate) {
		return fault.New(fault.Conflict, "issuer %q was changed in this moment", i.Name).WithHint("chancery issuer show %s, and again", i.Name)
	}
	i.KeyID = n.issuer.KeyID
	if err := checkOthers(ctx, tx, i, n.subject, false); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `UPDATE issuer SET key_id = $1 WHERE id = $2`, i.KeyID, i.ID); err != nil {
		return fmt.Errorf("give issuer %s its key: %w", i.Name, err)
	}
	if n.byDefault && !i.Default && i.State == IssuerActive {
		if err := clearDefault(ctx, tx, i.Pool); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE issuer SET is_default = 1 WHERE id = $1`, i.ID); err != nil {
			return fmt.Errorf("make issuer %s the default: %w", i.Name, err)
		}
		i.Default = true
	}
	*n.issuer = *i
	return c.mergeHistory(ctx, tx, by, n, now)
}

// mergeHistory adds what an import knows of an issuer's certificates to what is known of them here. Nothing that is revoked here becomes
// good by it.
func (c *CA) mergeHistory(ctx context.Context, tx *db.Tx, by access.Principal, n *newIssuer, now time.Time) error {
	var fresh []imported
	for _, row := range n.history {
		known, err := c.recordByRef(ctx, tx, Ref{Issuer: n.issuer.ID, Serial: row.certificate.Serial})
		switch {
		case fault.Is(err, fault.NotFound):
			fresh = append(fresh, row)
			continue
		case err != nil:
			return err
		case len(known.DER) > 0 && len(row.certificate.DER) > 0 && !bytes.Equal(known.DER, row.certificate.DER):
			return fault.New(fault.Conflict, "the inventory of issuer %q has another certificate with the serial %s", n.issuer.Name, cert.FormatSerial(known.Serial))
		case row.revocation == nil:
			continue
		}
		e := crl.Entry{Serial: known.Serial, RevokedAt: row.revocation.RevokedAt, Reason: row.revocation.Reason, Invalidity: row.revocation.InvalidityDate}
		if e.RevokedAt.IsZero() {
			e.RevokedAt = now
		}
		if err := c.mergeEntry(ctx, tx, by, n.issuer, e, now, new(Merged)); err != nil {
			return err
		}
	}
	return c.storeHistory(ctx, tx, by, fresh, now)
}
