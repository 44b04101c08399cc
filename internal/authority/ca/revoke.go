package ca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// RevokeOrder says why a certificate is revoked.
type RevokeOrder struct {
	IdempotencyKey string `json:"-"`
	Reason         crl.Reason
	InvalidityDate time.Time // when the key was first suspect (RFC 5280 5.3.2); zero when that is not known
}

// Revoke revokes a certificate for good, or for the time being with reason certificateHold. A held certificate may be
// revoked for good; one that is revoked stays so, since the same date, but its reason may become keyCompromise. Then the
// Warnings of the answer name other certificates of the key. Officers revoke any certificate, others what they requested themselves.
// When it returns, the revocation is committed; CRLs and OCSP show it as soon as they read the change.
func (c *CA) Revoke(ctx context.Context, by access.Principal, ref Ref, order RevokeOrder) (*Certificate, error) {
	now := time.Now()
	if err := by.May(access.RevokeCertificate); err != nil {
		return nil, err
	}
	if err := checkReason(order, now); err != nil {
		return nil, err
	}
	action := "certificate.revoke"
	if order.Reason == crl.CertificateHold {
		action = "certificate.hold"
	}
	return c.change(ctx, by, ref, order.IdempotencyKey, order, action, now, func(ctx context.Context, tx *db.Tx, r *record) error {
		return c.revoke(ctx, tx, r, order, now)
	})
}

// Hold revokes a certificate until it is released or revoked for good.
func (c *CA) Hold(ctx context.Context, by access.Principal, ref Ref, idempotencyKey string) (*Certificate, error) {
	return c.Revoke(ctx, by, ref, RevokeOrder{IdempotencyKey: idempotencyKey, Reason: crl.CertificateHold})
}

// Release ends a hold. Only officers may.
func (c *CA) Release(ctx context.Context, by access.Principal, ref Ref, idempotencyKey string) (*Certificate, error) {
	if err := by.Require(access.Officer, access.Admin); err != nil {
		return nil, err
	}
	now := time.Now()
	return c.change(ctx, by, ref, idempotencyKey, nil, "certificate.release", now, func(ctx context.Context, tx *db.Tx, r *record) error {
		if r.State != Held {
			return fault.New(fault.Conflict, "certificate %s is %s; only one that is held can be released", cert.FormatSerial(r.Serial), r.State)
		}
		row := revocationRow{record: r, state: Valid, reason: crl.RemoveFromCRL, at: r.Revocation.RevokedAt, now: now}
		r.State, r.Revocation = Valid, nil
		issuer, err := c.issuerByNumber(ctx, tx, r.issuer)
		if err != nil {
			return err
		}
		return c.writeRevocation(ctx, tx, row, issuer)
	})
}

func checkReason(order RevokeOrder, now time.Time) error {
	switch order.Reason {
	case crl.RemoveFromCRL:
		return fault.New(fault.Invalid, "removeFromCRL is no reason to revoke; it ends a hold").WithHint("chancery cert release SERIAL")
	case 7:
		return fault.New(fault.Invalid, "revocation reason 7 is not used (RFC 5280 5.3.1); one of %v would pass", crl.Reasons())
	}
	if !order.Reason.Valid() {
		return fault.New(fault.Invalid, "revocation reason %d is not one of %v", int(order.Reason), crl.Reasons())
	}
	if order.InvalidityDate.After(now) {
		return fault.New(fault.Invalid, "invalidity date %s is in the future; it says since when the key is suspect",
			order.InvalidityDate.UTC().Format(time.RFC3339))
	}
	if order.InvalidityDate.Before(time.Unix(0, 0)) && !order.InvalidityDate.IsZero() {
		return fault.New(fault.Invalid, "invalidity date %s is before 1970", order.InvalidityDate.UTC().Format(time.RFC3339))
	}
	return nil
}

// change runs one act upon one certificate: idempotency key, act, audit event, in one transaction.
func (c *CA) change(ctx context.Context, by access.Principal, ref Ref, key string, detail any, action string, now time.Time,
	act func(context.Context, *db.Tx, *record) error) (*Certificate, error) {
	if ref.Serial == nil {
		return nil, noSerialGiven()
	}
	if err := c.db.CheckClock(now); err != nil {
		return nil, err
	}
	if key == "" {
		key = "once:" + db.NewID() // so that an unknown outcome can be resolved
	}
	var done *Certificate
	err := c.commit(ctx, func(tx *db.Tx, _ bool) error {
		r, err := c.recordByRef(ctx, tx, ref)
		if err != nil {
			return err
		}
		if !mayEnd(by) && r.Requester != by.ID {
			return noSerial(ref.Serial) // whether it exists is not the caller's to know
		}
		issuer, err := c.issuerByNumber(ctx, tx, r.issuer)
		if err != nil {
			return err
		}
		if err := mayEndThis(ctx, tx, by, r, issuer); err != nil {
			return err
		}
		asked, err := newCall(by, key, action, struct {
			ID     int64
			Detail any
		}{r.ID, detail})
		if err != nil {
			return err
		}
		earlier, err := asked.earlier(ctx, tx)
		if err != nil {
			return err
		}
		switch {
		case earlier != "":
			if err = touch(ctx, tx, r.ID); err == nil && r.State == Revoked && r.Revocation.Reason == crl.KeyCompromise {
				r.Warnings, err = c.sameKey(ctx, tx, r, now)
			}
		default:
			if err = act(ctx, tx, r); err != nil {
				return err
			}
			if err = asked.remember(ctx, tx, "done", now); err != nil {
				return err
			}
			err = c.audit.Append(ctx, tx, audit.Event{
				Time: now, Actor: by.Actor(), Action: action, Object: cert.FormatSerial(r.Serial), Detail: auditRevocation(r),
			})
		}
		if err != nil {
			return err
		}
		done, err = c.complete(ctx, tx, r, now)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", action, cert.FormatSerial(ref.Serial), err)
	}
	if done.Profile == issuerProfile || done.Profile == importedProfile {
		c.forget() // it may have been an issuer's
	}
	c.announce()
	return done, nil
}

func auditRevocation(r *record) any {
	if r.Revocation == nil {
		return map[string]any{"certificate": r.ID}
	}
	d := map[string]any{"certificate": r.ID, "reason": r.Revocation.Reason.String()}
	if !r.Revocation.InvalidityDate.IsZero() {
		d["invalidityDate"] = r.Revocation.InvalidityDate.UTC().Format(time.RFC3339)
	}
	return d
}

// revoke writes a revocation or hold, after it has checked that the certificate's state allows it.
func (c *CA) revoke(ctx context.Context, tx *db.Tx, r *record, order RevokeOrder, now time.Time) error {
	row := revocationRow{record: r, state: Revoked, reason: order.Reason, at: now, invalidity: order.InvalidityDate.UTC().Truncate(time.Second), now: now}
	if order.Reason == crl.CertificateHold {
		row.state = Held
	}
	upgrade := r.upgradable(order)
	switch {
	case r.State == Revoked && !upgrade, r.State == Held && order.Reason == crl.CertificateHold:
		return fault.New(fault.Conflict, "certificate %s is %s already, since %s, for %s", cert.FormatSerial(r.Serial), r.State,
			r.Revocation.RevokedAt.Format(time.RFC3339), r.Revocation.Reason)
	case upgrade, r.State == Held:
		row.at = r.Revocation.RevokedAt // it has not been good since then
		if row.invalidity.IsZero() {
			row.invalidity = r.Revocation.InvalidityDate
		}
	}
	if upgrade {
		if err := keepEntry(ctx, tx, r); err != nil {
			return err
		}
	}
	row.at = row.at.Truncate(time.Second)
	r.State, r.Revocation = row.state, &Revocation{Reason: row.reason, RevokedAt: row.at, InvalidityDate: row.invalidity}
	if err := c.endIssuer(ctx, tx, r); err != nil {
		return err
	}
	if order.Reason == crl.KeyCompromise && len(r.DER) > 0 {
		if err := blockKey(ctx, tx, &r.Certificate, now); err != nil {
			return err
		}
		var err error
		if r.Warnings, err = c.sameKey(ctx, tx, r, now); err != nil {
			return err
		}
	}
	issuer, err := c.issuerByNumber(ctx, tx, r.issuer)
	if err != nil {
		return err
	}
	return c.writeRevocation(ctx, tx, row, issuer)
}

// endIssuer retires the issuer whose certificate is revoked for good: what it would sign nobody would accept. One that it had
// before it was renewed ends it only where the key is compromised; then every issuer of that key ends, under whatever certificate.
// A root cannot revoke itself: no one would believe it, and everyone who does would reject the CRL that says so.
func (c *CA) endIssuer(ctx context.Context, tx *db.Tx, r *record) error {
	if r.Profile != issuerProfile && r.Profile != importedProfile || len(r.DER) == 0 {
		return nil
	}
	query, of := `SELECT number FROM issuer WHERE certificate = $1 ORDER BY number`, r.DER
	if r.Revocation.Reason == crl.KeyCompromise || r.Revocation.Reason == crl.CACompromise {
		query, of = `SELECT number FROM issuer WHERE public_key = $1 ORDER BY number`, r.PublicKey()
	}
	numbers, err := numbersOf(ctx, tx, query, of)
	switch {
	case err != nil:
		return fmt.Errorf("look for the issuers of that certificate: %w", err)
	case slices.Contains(numbers, r.issuer):
		return fault.New(fault.Conflict, "%s is a root's own certificate, which no CRL of its own can revoke", cert.FormatSerial(r.Serial)).
			WithHint("take the root out of the trust sets")
	case r.State != Revoked:
		return nil
	}
	for _, number := range numbers {
		if _, err := tx.Exec(ctx, `UPDATE issuer SET state = 'retired', is_default = 0 WHERE number = $1`, number); err != nil {
			return fmt.Errorf("retire the issuer: %w", err)
		}
	}
	return nil
}

func numbersOf(ctx context.Context, tx *db.Tx, query string, arg any) (numbers []int64, err error) {
	rows, err := tx.Query(ctx, query, arg)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var number int64
		if err := rows.Scan(&number); err != nil {
			return nil, err
		}
		numbers = append(numbers, number)
	}
	return numbers, rows.Err()
}

// blockKey keeps a compromised key from being certified again.
func blockKey(ctx context.Context, tx *db.Tx, crt *Certificate, now time.Time) error {
	parsed, err := crt.Parsed()
	if err != nil {
		return err
	}
	return BlockKey(ctx, tx, parsed, now)
}

// BlockKey keeps the key of a certificate from being certified, trusted or issued with again. It is for one that nobody here can revoke.
func BlockKey(ctx context.Context, tx *db.Tx, crt *x509.Certificate, now time.Time) error {
	sum := sha256.Sum256(crt.RawSubjectPublicKeyInfo)
	_, err := tx.Exec(ctx, `INSERT INTO compromised_key (spki, since) VALUES ($1, $2) ON CONFLICT (spki) DO NOTHING`, sum[:], db.Micros(now))
	if err != nil {
		return fmt.Errorf("block the compromised key: %w", err)
	}
	return nil
}

// revocationRow is a row of revocation about to be written.
type revocationRow struct {
	*record
	state      State // Valid: a hold was released
	reason     crl.Reason
	at         time.Time
	invalidity time.Time
	now        time.Time // zero where it was done elsewhere, before it came here
}

func (c *CA) writeRevocation(ctx context.Context, tx *db.Tx, row revocationRow, issuer *Issuer) error {
	entry, err := crl.EncodeEntry(crl.Entry{Serial: row.Serial, RevokedAt: row.at, Reason: row.reason, Invalidity: row.invalidity})
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `UPDATE certificate SET state = $1 WHERE id = $2`, string(row.state), row.ID); err != nil {
		return fmt.Errorf("set the state of certificate %d: %w", row.ID, err)
	}
	change, err := nextChange(ctx, tx, row.issuer)
	if err != nil {
		return err
	}
	var invalidity, changed int64
	if !row.invalidity.IsZero() {
		invalidity = db.Micros(row.invalidity)
	}
	if !row.now.IsZero() {
		changed = db.Micros(row.now)
		c.here.note(issuer.ID, row.Serial, change, row.now)
	}
	_, err = tx.Exec(ctx, `INSERT INTO revocation
		(certificate, issuer, crl_partition, state, reason, revoked_at, invalidity_date, not_after, change, entry, changed_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
		ON CONFLICT (certificate) DO UPDATE SET state = excluded.state, reason = excluded.reason, revoked_at = excluded.revoked_at,
		invalidity_date = excluded.invalidity_date, change = excluded.change, entry = excluded.entry, changed_at = excluded.changed_at`,
		row.ID, row.issuer, int64(crl.Partition(row.Serial, issuer.CRL.Partitions)), string(row.state), int64(row.reason), db.Micros(row.at),
		invalidity, db.Micros(row.NotAfter), change, entry, changed)
	if err != nil {
		return fmt.Errorf("record the revocation of certificate %d: %w", row.ID, err)
	}
	return nil
}

// nextChange takes the next change number of an issuer. The row serialises the revocations under one issuer, so that a
// reader who saw change n has seen all before n.
func nextChange(ctx context.Context, tx *db.Tx, issuer int64) (int64, error) {
	var change int64
	err := tx.QueryRow(ctx, `INSERT INTO revocation_change (issuer, change) VALUES ($1, 1)
		ON CONFLICT (issuer) DO UPDATE SET change = revocation_change.change + 1 RETURNING change`, issuer).Scan(&change)
	if err != nil {
		return 0, fmt.Errorf("number the change: %w", err)
	}
	return change, nil
}

// Changed returns a channel that is closed when something on this node was next revoked, held or released. Other nodes'
// changes are seen by LastChanges.
func (c *CA) Changed() <-chan struct{} {
	c.changed.Lock()
	defer c.changed.Unlock()
	return c.changed.next
}

func (c *CA) announce() {
	c.changed.Lock()
	defer c.changed.Unlock()
	close(c.changed.next)
	c.changed.next = make(chan struct{})
}
