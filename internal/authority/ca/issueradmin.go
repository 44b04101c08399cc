package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// ImportAnswer gives a pending issuer the certificate that an outside or offline root made of its request, and the
// certificates above it as far as they are given. If the root is an issuer here, the certificate enters its inventory. The
// issuer becomes the default of its pool if there is none yet.
func (c *CA) ImportAnswer(ctx context.Context, by access.Principal, nameOrID string, certificates []*x509.Certificate, call once.Call) (*Issuer, error) {
	now := time.Now()
	if err := by.May(access.ManageIssuers); err != nil {
		return nil, err
	}
	set, err := c.issuersAnew(ctx)
	if err != nil {
		return nil, err
	}
	pending := set.find(nameOrID)
	if pending == nil {
		return nil, fault.New(fault.NotFound, "there is no issuer %q", nameOrID).WithHint("chancery issuer list")
	}
	answered, record, err := set.checkAnswer(pending, certificates, now)
	if err != nil {
		return nil, fmt.Errorf("import the answer for issuer %s: %w", pending.Name, err)
	}
	return c.changeIssuer(ctx, by, "issuer.answer", pending.ID, call, func(ctx context.Context, tx *db.Tx, i *Issuer, now time.Time) error {
		if i.Certificate != nil && bytes.Equal(i.Certificate.Raw, answered.Certificate.Raw) {
			return errUnchanged
		}
		if i.State != IssuerPending {
			return fault.New(fault.Conflict, "issuer %q is %s; only a pending one takes an answer", i.Name, i.State)
		}
		answered.ID, answered.Pool = i.ID, i.Pool
		if err := answered.underPresent(ctx, tx); err != nil {
			return err
		}
		if err := ownRoot(ctx, tx, answered); err != nil {
			return err
		}
		certificate, chain, notAfter := answered.stored()
		_, err := tx.Exec(ctx, `UPDATE issuer SET state = 'active', certificate = $1, chain = $2, not_after = $3, parent = $4, subject = $5 WHERE id = $6`,
			certificate, chain, notAfter, answered.Parent, answered.Certificate.RawSubject, i.ID)
		if err != nil {
			return err
		}
		i.State, i.Certificate, i.Chain, i.Parent = IssuerActive, answered.Certificate, answered.Chain, answered.Parent
		if err := firstIsDefault(ctx, tx, i); err != nil {
			return err
		}
		return c.insertAnswer(ctx, tx, by, record, now)
	})
}

// firstIsDefault makes an issuer the default of a pool that has none: while it was pending it could not be.
func firstIsDefault(ctx context.Context, tx *db.Tx, i *Issuer) error {
	var others int64
	if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM issuer WHERE pool = $1 AND is_default = 1`, i.Pool).Scan(&others); err != nil || others > 0 {
		return err
	}
	i.Default = true
	_, err := tx.Exec(ctx, `UPDATE issuer SET is_default = 1 WHERE id = $1`, i.ID)
	return err
}

// checkAnswer finds the certificate for the issuer's key among those given, orders what is above it, and checks all of it.
func (s *issuerSet) checkAnswer(pending *Issuer, certificates []*x509.Certificate, now time.Time) (*Issuer, *Certificate, error) {
	n := slices.IndexFunc(certificates, func(c *x509.Certificate) bool {
		return bytes.Equal(c.RawSubjectPublicKeyInfo, pending.PublicKey)
	})
	if n < 0 {
		return nil, nil, fault.New(fault.Invalid, "none of the %d certificates is for the key of issuer %q", len(certificates), pending.Name)
	}
	own := certificates[n]
	if csr, err := cert.ParseCSR(pending.CSR); err == nil && !bytes.Equal(csr.RawSubject, own.RawSubject) {
		return nil, nil, fault.New(fault.Invalid, "the answer is for the subject %q; the request asked for %q", own.Subject, csr.Subject)
	}
	if err := checkIssuerCertificate(own, now); err != nil {
		return nil, nil, err
	}
	answered := &Issuer{Name: pending.Name, Certificate: own}
	pool := slices.Clone(certificates)
	for _, i := range s.all {
		if i.Certificate != nil {
			pool = append(append(pool, i.Certificate), i.Chain...)
		}
	}
	answered.Chain = chainAbove(own, pool)
	if len(answered.Chain) == 0 && own.CheckSignatureFrom(own) != nil {
		return nil, nil, fault.New(fault.Invalid, "the certificate of issuer %q, which signed the answer, is not among those given", own.Issuer)
	}
	return answered, s.recordFor(answered), nil
}

// recordFor finds the issuer here that signed another's certificate, and returns the record for its inventory.
func (s *issuerSet) recordFor(below *Issuer) *Certificate {
	for _, i := range s.all {
		if i.Certificate != nil && below.Certificate.CheckSignatureFrom(i.Certificate) == nil {
			below.Parent = i.ID
			record := &Certificate{Issuer: i, State: Valid, DER: below.Certificate.Raw, Profile: issuerProfile}
			if record.fill() == nil {
				return record
			}
		}
	}
	return nil
}

// insertAnswer records an issuer's certificate, unless its parent's inventory has it already.
func (c *CA) insertAnswer(ctx context.Context, tx *db.Tx, by access.Principal, record *Certificate, now time.Time) error {
	if record == nil {
		return nil
	}
	var known int64
	err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM certificate WHERE serial = $1 AND issuer = $2`, serialKey(record.Serial),
		record.Issuer.number).Scan(&known)
	if err != nil || known > 0 {
		return err
	}
	fresh := *record
	fresh.ID, fresh.Requester = c.nextID(now), by.ID
	if err := c.insertCertificate(ctx, tx, &fresh); err != nil {
		return err
	}
	return c.audit.Append(ctx, tx, audit.Event{
		Time: now, Actor: by.Actor(), Action: "issuer.record", Object: record.Issuer.ID, Detail: fresh.entered(map[string]any{"name": record.Issuer.Name}),
	})
}

// chainAbove orders the certificates above one, up to a root or as far as they are there.
func chainAbove(below *x509.Certificate, pool []*x509.Certificate) []*x509.Certificate {
	var chain []*x509.Certificate
	for len(chain) < 10 && below.CheckSignatureFrom(below) != nil {
		n := slices.IndexFunc(pool, func(c *x509.Certificate) bool {
			return bytes.Equal(c.RawSubject, below.RawIssuer) && below.CheckSignatureFrom(c) == nil
		})
		if n < 0 {
			break
		}
		below = pool[n]
		chain = append(chain, below)
	}
	return chain
}

// checkIssuerCertificate says why a certificate cannot be an issuer's.
func checkIssuerCertificate(c *x509.Certificate, now time.Time) error {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return fault.New(fault.Invalid, "the certificate of %q is no CA's: it lacks basicConstraints with CA:TRUE", c.Subject)
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fault.New(fault.Invalid, "the certificate of %q may not sign certificates: its keyUsage lacks keyCertSign", c.Subject)
	case now.After(c.NotAfter):
		return fault.New(fault.Invalid, "the certificate of %q ended at %s", c.Subject, c.NotAfter.UTC().Format(time.RFC3339))
	case len(c.SubjectKeyId) == 0 && !bytes.Equal(c.RawSubject, c.RawIssuer):
		return fault.New(fault.Invalid, "the certificate of %q has no subjectKeyIdentifier (RFC 5280 4.2.1.2)", c.Subject)
	}
	return cert.CheckIssuerKey(c)
}

// Retire ends an issuer's issuing. It goes on revoking, answering and signing CRLs for what it issued. Other nodes see it
// within a second.
func (c *CA) Retire(ctx context.Context, by access.Principal, nameOrID string, call once.Call) (*Issuer, error) {
	return c.changeIssuer(ctx, by, "issuer.retire", nameOrID, call, func(ctx context.Context, tx *db.Tx, i *Issuer, _ time.Time) error {
		if i.State == IssuerRetired {
			return errUnchanged
		}
		i.State, i.Default = IssuerRetired, false
		_, err := tx.Exec(ctx, `UPDATE issuer SET state = 'retired', is_default = 0 WHERE id = $1`, i.ID)
		return err
	})
}

// SetDefault makes an issuer the one that requests for its pool get when they name none.
func (c *CA) SetDefault(ctx context.Context, by access.Principal, nameOrID string, call once.Call) (*Issuer, error) {
	return c.changeIssuer(ctx, by, "issuer.default", nameOrID, call, func(ctx context.Context, tx *db.Tx, i *Issuer, _ time.Time) error {
		if i.State != IssuerActive {
			return fault.New(fault.Conflict, "issuer %q is %s; only an active one can be the default", i.Name, i.State)
		}
		if err := clearDefault(ctx, tx, i.Pool); err != nil {
			return err
		}
		i.Default = true
		_, err := tx.Exec(ctx, `UPDATE issuer SET is_default = 1 WHERE id = $1`, i.ID)
		return err
	})
}

// SetCRLMode changes which CRLs an issuer signs. The number of partitions can be given to an issuer that has none, and
// then never changes: certificates name the partition that covers them.
func (c *CA) SetCRLMode(ctx context.Context, by access.Principal, nameOrID string, mode CRLMode, call once.Call) (*Issuer, error) {
	if err := mode.check(); err != nil {
		return nil, err
	}
	return c.changeIssuer(ctx, by, "issuer.crl-mode", nameOrID, call, func(ctx context.Context, tx *db.Tx, i *Issuer, _ time.Time) error {
		if i.CRL.Partitions != mode.Partitions {
			var issued int64
			err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM (SELECT id FROM certificate WHERE issuer = $1 AND profile <> $2 LIMIT 1) c`,
				i.number, issuerProfile).Scan(&issued)
			if err != nil {
				return err
			}
			if issued > 0 {
				return fault.New(fault.Conflict, "issuer %q has issued certificates that name the CRL which covers them; %d partitions stay", i.Name,
					i.CRL.Partitions).WithHint("make a new issuer with %d partitions", mode.Partitions)
			}
		}
		i.CRL = mode
		text, err := json.Marshal(mode)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE issuer SET crl = $1 WHERE id = $2`, string(text), i.ID)
		return err
	})
}

// errUnchanged is returned by an act upon an issuer that was done already: a repeated call gets the same answer.
var errUnchanged = errors.New("nothing to change")

// changeIssuer runs one act upon one issuer, in one transaction with its audit event and the issuer's ID, which is the answer
// that is kept for a repeated call.
func (c *CA) changeIssuer(ctx context.Context, by access.Principal, action, nameOrID string, call once.Call,
	act func(context.Context, *db.Tx, *Issuer, time.Time) error) (*Issuer, error) {
	now := time.Now()
	if err := by.May(access.ManageIssuers); err != nil {
		return nil, err
	}
	if err := c.db.CheckClock(now); err != nil {
		return nil, err
	}
	var changed *Issuer
	err := c.db.Tx(ctx, func(tx *db.Tx) error {
		i, err := oneIssuer(ctx, tx, `there is no issuer "`+nameOrID+`"`, ` WHERE name = $1 OR id = $1`, nameOrID)
		if err != nil {
			return err
		}
		changed = i
		_, err = once.Act(ctx, tx, call, now, func() (string, error) {
			if err := act(ctx, tx, i, now); errors.Is(err, errUnchanged) {
				return i.ID, nil
			} else if err != nil {
				return "", err
			}
			return i.ID, c.audit.Append(ctx, tx, audit.Event{Time: now, Actor: by.Actor(), Action: action, Object: i.ID, Detail: map[string]any{
				"name": i.Name, "pool": i.Pool, "state": i.State, "default": i.Default, "crl": i.CRL,
			}})
		})
		return err
	})
	c.forget() // after a failure too: the outcome of the commit may be unknown
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", action, nameOrID, err)
	}
	return changed, nil
}
