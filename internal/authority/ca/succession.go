package ca

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// This file is what one issuer's place being taken by another needs of the records. Its functions work in the caller's
// transaction.

// Succeed makes an issuer the default of its pool, as SetDefault does. The caller calls Forget when it has committed.
func (c *CA) Succeed(ctx context.Context, tx *db.Tx, issuer, actor string, now time.Time) error {
	i, err := oneIssuer(ctx, tx, `there is no issuer "`+issuer+`"`, ` WHERE name = $1 OR id = $1`, issuer)
	switch {
	case err != nil:
		return err
	case i.Default:
		return nil
	case i.State != IssuerActive:
		return fault.New(fault.Conflict, "issuer %q is %s; only an active one can be the default", i.Name, i.State)
	}
	if err := clearDefault(ctx, tx, i.Pool); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `UPDATE issuer SET is_default = 1 WHERE id = $1`, i.ID); err != nil {
		return fmt.Errorf("make issuer %s the default: %w", i.Name, err)
	}
	i.Default = true
	return c.auditIssuer(ctx, tx, i, "issuer.default", actor, now)
}

// EndIssuing retires an issuer, as Retire does, and says whether it had not been before. One that is not there is left so. The
// caller calls Forget when it has committed.
func (c *CA) EndIssuing(ctx context.Context, tx *db.Tx, issuer, actor string, now time.Time) (ended bool, err error) {
	i, err := oneIssuer(ctx, tx, `there is no issuer "`+issuer+`"`, ` WHERE name = $1 OR id = $1`, issuer)
	switch {
	case fault.Is(err, fault.NotFound):
		return false, nil
	case err != nil:
		return false, err
	case i.State == IssuerRetired:
		return false, nil
	}
	if _, err := tx.Exec(ctx, `UPDATE issuer SET state = 'retired', is_default = 0 WHERE id = $1`, i.ID); err != nil {
		return false, fmt.Errorf("retire issuer %s: %w", i.Name, err)
	}
	i.State, i.Default = IssuerRetired, false
	return true, c.auditIssuer(ctx, tx, i, "issuer.retire", actor, now)
}

// Reopen makes an issuer active again that was retired for a succession which is undone. The caller calls Forget when it has
// committed.
func (c *CA) Reopen(ctx context.Context, tx *db.Tx, issuer, actor string, now time.Time) error {
	i, err := oneIssuer(ctx, tx, `there is no issuer "`+issuer+`"`, ` WHERE name = $1 OR id = $1`, issuer)
	if err != nil || i.State != IssuerRetired {
		return err
	}
	if _, err := tx.Exec(ctx, `UPDATE issuer SET state = 'active' WHERE id = $1`, i.ID); err != nil {
		return fmt.Errorf("reopen issuer %s: %w", i.Name, err)
	}
	i.State = IssuerActive
	return c.auditIssuer(ctx, tx, i, "issuer.reopen", actor, now)
}

func (c *CA) auditIssuer(ctx context.Context, tx *db.Tx, i *Issuer, action, actor string, now time.Time) error {
	return c.audit.Append(ctx, tx, audit.Event{Time: now, Actor: actor, Action: action, Object: i.ID, Detail: map[string]any{
		"name": i.Name, "pool": i.Pool, "state": i.State, "default": i.Default, "crl": i.CRL,
	}})
}

// RevokeIssuer revokes the certificate of an issuer below another one whose inventory is here, which retires it, and those that it
// had before it was renewed, which are for the same key; it says whether it did. A root's own certificate nobody can revoke. The
// caller calls Forget and Announce when it has committed.
func (c *CA) RevokeIssuer(ctx context.Context, tx *db.Tx, i *Issuer, reason crl.Reason, actor string, now time.Time) (bool, error) {
	if i.Root() || i.Parent == "" || i.Certificate == nil {
		return false, nil
	}
	r, err := c.recordByRef(ctx, tx, Ref{Issuer: i.Parent, Serial: i.Certificate.SerialNumber})
	switch {
	case fault.Is(err, fault.NotFound):
		return false, nil
	case err != nil:
		return false, err
	}
	for present := true; ; present = false {
		before := r.Replaces
		if r.State != Revoked && (present || !now.After(r.NotAfter)) {
			if err := c.revokeIn(ctx, tx, r, reason, actor, now); err != nil {
				return false, err
			}
		}
		if before == 0 {
			return true, nil
		}
		if r, err = recordByID(ctx, tx, before); fault.Is(err, fault.NotFound) {
			return true, nil // it ended, and was pruned
		} else if err != nil {
			return false, err
		}
	}
}

// Forget makes the next look at the issuers go to the database.
func (c *CA) Forget() { c.forget() }

// Remaining is a certificate that is good and that nothing took the place of.
type Remaining struct {
	Serial    *big.Int
	Issuer    string // name
	Requester string
	Subject   string
	NotAfter  time.Time
}

// remaining is the query of RemainingUnder for the issuers whose numbers are listed; $1 is now. The profile is an expression for
// the reason that it is one in onHold: by the index of the profile all hosts of a pool would be read for each of them.
func remaining(issuers string) string {
	return `SELECT c.serial, c.issuer, c.requester, c.subject, c.not_after,
		CASE WHEN EXISTS (SELECT 1 FROM certificate n WHERE n.requester = c.requester AND n.id > c.id AND n.profile || '' = c.profile
			AND n.name = c.name AND n.issuer NOT IN (` + issuers + `)) THEN 1 ELSE 0 END
		FROM certificate c
		WHERE c.issuer IN (` + issuers + `) AND c.state <> 'revoked' AND c.replaced_by = 0 AND c.not_after >= $1
		AND c.profile NOT IN ('` + issuerProfile + `', 'ocsp-responder', '` + IdentityProfile + `')
		ORDER BY c.id`
}

// RemainingUnder finds the certificates of issuers that are good, or on hold, and that nothing took the place of: it was neither
// renewed nor re-keyed, nor, where its requester is an agent, did that get another for the same name by the same profile under
// another issuer since, as agents do where another issuer is wanted. Others may have got the same name for two machines.
// Certificates of CAs, and those that the authority renews by itself, are left out, and so are those whose requester is to be
// skipped. The oldest come first, up to limit.
func RemainingUnder(ctx context.Context, tx *db.Tx, issuers []*Issuer, now time.Time, limit int, agent, skip func(requester string) bool) ([]Remaining, error) {
	if len(issuers) == 0 {
		return nil, nil
	}
	args := []any{db.Micros(now)}
	var places []string
	names := map[int64]string{}
	for _, i := range issuers {
		args = append(args, i.number)
		places = append(places, fmt.Sprintf("$%d", len(args)))
		names[i.number] = i.Name
	}
	rows, err := tx.Query(ctx, remaining(strings.Join(places, ", ")), args...)
	if err != nil {
		return nil, fmt.Errorf("find what remains under issuers: %w", err)
	}
	defer rows.Close()
	var found []Remaining
	for len(found) < limit && rows.Next() {
		var r Remaining
		var serial []byte
		var issuer, notAfter, again int64
		if err := rows.Scan(&serial, &issuer, &r.Requester, &r.Subject, &notAfter, &again); err != nil {
			return nil, fmt.Errorf("find what remains under issuers: %w", err)
		}
		if again != 0 && agent(r.Requester) || skip != nil && skip(r.Requester) {
			continue
		}
		r.Serial, r.Issuer, r.NotAfter = new(big.Int).SetBytes(serial), names[issuer], db.FromMicros(notAfter)
		found = append(found, r)
	}
	return found, rows.Err()
}

// Exists reports whether a certificate with that serial is in the record.
func (c *CA) Exists(ctx context.Context, tx *db.Tx, text string) (bool, error) {
	serial, err := cert.ParseSerial(text)
	if err != nil {
		return false, nil
	}
	var n int64
	err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM certificate WHERE serial = $1`, serialKey(serial)).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return n > 0, err
}
