package ca

import (
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// This file is what hosts are held to, and what their keeper, which is not this package, needs of the records. Its exported
// functions work in the caller's transaction.

// hostPool is the entitlement that names the pool whose issuers a host may have. Without it there is no bound.
const hostPool = "host.pool"

// HostProfiles and HostPlacements are the entitlements that name the profiles whose certificates a host may have, and say what
// is placed on it. Without the first there is no bound but the profiles' own rules.
const (
	HostProfiles   = "host.profiles"
	HostPlacements = "host.placements"
)

// AdmitProfile refuses a host a profile that nothing placed on it needs. A profile's own rule says what any host may ask for;
// a host that was broken into is to get no more than it had: a web server no certificate for the client of a database.
func AdmitProfile(host, profile string, allowed, placements []string) error {
	if slices.Contains(allowed, profile) {
		return nil
	}
	has := "nothing is placed on it"
	if len(placements) > 0 {
		has = "it has " + strings.Join(placements, ", ")
	}
	return fault.New(fault.Denied, "host %s gets no certificate of profile %q, since no placement of it is of that profile: %s", host, profile, has).
		WithHint("chancery host set %s --profile %s allows it beside its placements; or place a recipe that needs it", host, profile)
}

func isHost(by access.Principal) bool { return by.Kind == access.KindHost && !isSystem(by) }

// hostOrder gives the order of a host that is kept as one its pool, where it names none, and refuses a template: what a host
// holds is said by recipes and profiles. The order itself is not changed, since repeated calls are told by it.
func (w *wish) hostOrder(by access.Principal, order *Order) error {
	pools := w.caller.Entitlements[hostPool]
	if !isHost(by) || len(pools) == 0 {
		return nil
	}
	if order.Template != "" {
		return fault.New(fault.Denied, "%s is a host, and a host orders by profile and not by template", by.Name).WithHint("chancery profile list")
	}
	if allowed, bound := w.caller.Entitlements[HostProfiles]; bound {
		if err := AdmitProfile(by.Name, order.Profile, allowed, w.caller.Entitlements[HostPlacements]); err != nil {
			return err
		}
	}
	if order.Pool == "" && order.Issuer == "" && order.replaces == nil {
		w.pool = pools[0]
	}
	return nil
}

// withinPool refuses a host what an issuer of another pool would sign: whoever authorises by that pool's root would let it in.
func (w *wish) withinPool(by access.Principal, issuer *Issuer) error {
	pools := w.caller.Entitlements[hostPool]
	if !isHost(by) || len(pools) == 0 || slices.Contains(pools, issuer.Pool) {
		return nil
	}
	return fault.New(fault.Denied, "%s is a host of pool %q, and issuer %q is of pool %q; a host gets certificates of its own pool only", by.Name,
		strings.Join(pools, ", "), issuer.Name, issuer.Pool)
}

// HasProfile refuses a name that no profile has now.
func (c *CA) HasProfile(ctx context.Context, name string) error {
	_, err := c.profiles.Current(ctx, name)
	return err
}

// RevokeAll revokes up to limit certificates that a principal requested and that are neither revoked nor expired, and says
// how many it revoked: fewer than limit means that there are no more. The caller calls Announce when it has committed.
func (c *CA) RevokeAll(ctx context.Context, tx *db.Tx, requester string, reason crl.Reason, limit int, actor string, now time.Time) (int, error) {
	rows, err := tx.Query(ctx, `SELECT `+certificateColumns+certificateFrom+`
		WHERE c.requester = $1 AND c.state <> 'revoked' AND c.not_after >= $2 ORDER BY c.id LIMIT $3`, requester, db.Micros(now), int64(limit))
	if err != nil {
		return 0, fmt.Errorf("find what %s holds: %w", requester, err)
	}
	held, err := collect(rows)
	if err != nil {
		return 0, fmt.Errorf("find what %s holds: %w", requester, err)
	}
	for _, r := range held {
		if err := c.revokeIn(ctx, tx, r, reason, actor, now); err != nil {
			return 0, err
		}
	}
	return len(held), nil
}

// RevokeSerial revokes one certificate in the caller's transaction, as RevokeAll does; one that is revoked or pruned already
// is left as it is.
func (c *CA) RevokeSerial(ctx context.Context, tx *db.Tx, ref Ref, reason crl.Reason, actor string, now time.Time) error {
	r, err := c.recordByRef(ctx, tx, ref)
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	case r.State == Revoked:
		return nil
	}
	return c.revokeIn(ctx, tx, r, reason, actor, now)
}

func (c *CA) revokeIn(ctx context.Context, tx *db.Tx, r *record, reason crl.Reason, actor string, now time.Time) error {
	if err := c.db.CheckClock(now); err != nil {
		return err
	}
	if err := c.revoke(ctx, tx, r, RevokeOrder{Reason: reason}, now); err != nil {
		return err
	}
	return c.audit.Append(ctx, tx, audit.Event{
		Time: now, Actor: actor, Action: "certificate.revoke", Object: cert.FormatSerial(r.Serial), Detail: auditRevocation(r),
	})
}

// Announce tells this node that something was revoked by RevokeAll or RevokeSerial, so that nobody waits for the next look.
func (c *CA) Announce() { c.announce() }

// admitInTx refuses, in the transaction that records it, what a host may not have of a profile now. Others pass.
func (c *CA) admitInTx(ctx context.Context, tx *db.Tx, who access.Principal, profile string, now time.Time) error {
	if !isHost(who) {
		return nil
	}
	if c.admitHost != nil {
		if err := c.admitHost(ctx, tx, who, profile); err != nil {
			return err
		}
	}
	return noneOnHold(ctx, tx, who, profile, now)
}

// onHold finds the newest certificate of a requester and a profile that is on hold. The profile is an expression, so that no index
// serves it: SQLite takes that of the profile for as good as that of the requester, and then reads all that hosts have of it. The
// state is no parameter: since certificate_live is of one state, SQLite would prepare the statement anew for each call.
const onHold = `SELECT serial FROM certificate WHERE requester = $1 AND profile || '' = $2 AND state = '` + string(Held) + `' AND not_after >= $3
	ORDER BY id DESC LIMIT 1`

// revokedOf finds the newest certificates of a requester that are revoked for good. Its state is no parameter either.
const revokedOf = `SELECT serial FROM certificate WHERE requester = $1 AND state = '` + string(Revoked) + `' AND not_after >= $2 ORDER BY id DESC LIMIT $3`

// noneOnHold refuses a host another certificate of a profile while one that it has is on hold: a hold suspends the host's
// service, and a new certificate would end it behind the back of who holds.
func noneOnHold(ctx context.Context, tx *db.Tx, by access.Principal, profile string, now time.Time) error {
	var serial []byte
	err := tx.QueryRow(ctx, onHold, by.ID, profile, db.Micros(now)).Scan(&serial)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("look for what of %s is on hold: %w", by.Name, err)
	}
	text := cert.FormatSerial(new(big.Int).SetBytes(serial))
	return fault.New(fault.Conflict, "certificate %s of %s is on hold, and until that is decided it gets no other of profile %q", text, by.Name, profile).
		WithHint("chancery cert release %s ends the hold; chancery cert revoke %s makes way for a new certificate", text, text)
}

// RevokedOf returns the serials of a principal's certificates that are revoked for good and not expired: the newest first, up
// to limit. What is on hold is none of them, since it may come back.
func RevokedOf(ctx context.Context, tx *db.Tx, requester string, now time.Time, limit int) ([]*big.Int, error) {
	rows, err := tx.Query(ctx, revokedOf, requester, db.Micros(now), int64(limit))
	if err != nil {
		return nil, fmt.Errorf("read what of %s is revoked: %w", requester, err)
	}
	defer rows.Close()
	var serials []*big.Int
	for rows.Next() {
		var serial []byte
		if err := rows.Scan(&serial); err != nil {
			return nil, fmt.Errorf("read what of %s is revoked: %w", requester, err)
		}
		serials = append(serials, new(big.Int).SetBytes(serial))
	}
	return serials, rows.Err()
}

// RevokedSubjects returns the subjects, in DER, of certificates of an issuer that are revoked or held and not expired: the
// newest change first, up to limit, each subject once.
func RevokedSubjects(ctx context.Context, tx *db.Tx, issuer *Issuer, now time.Time, limit int) ([][]byte, error) {
	rows, err := tx.Query(ctx, `SELECT c.der FROM revocation r JOIN certificate c ON c.id = r.certificate
		WHERE r.issuer = $1 AND r.state <> 'valid' AND r.not_after >= $2 ORDER BY r.change DESC LIMIT $3`,
		issuer.number, db.Micros(now), int64(limit))
	if err != nil {
		return nil, fmt.Errorf("read the revoked subjects of issuer %s: %w", issuer.Name, err)
	}
	defer rows.Close()
	var subjects [][]byte
	seen := map[string]bool{}
	for rows.Next() {
		var der []byte
		if err := rows.Scan(&der); err != nil {
			return nil, fmt.Errorf("read the revoked subjects of issuer %s: %w", issuer.Name, err)
		}
		parsed, err := x509.ParseCertificate(der)
		if err != nil || seen[string(parsed.RawSubject)] {
			continue // a record that was imported without its certificate has no octets to go by
		}
		seen[string(parsed.RawSubject)] = true
		subjects = append(subjects, parsed.RawSubject)
	}
	return subjects, rows.Err()
}

// ChangedRequesters returns whose certificates of an issuer were revoked, held or released after a change, and up to another.
func ChangedRequesters(ctx context.Context, tx *db.Tx, issuer *Issuer, after, upTo int64) ([]string, error) {
	rows, err := tx.Query(ctx, `SELECT DISTINCT c.requester FROM revocation r JOIN certificate c ON c.id = r.certificate
		WHERE r.issuer = $1 AND r.change > $2 AND r.change <= $3`, issuer.number, after, upTo)
	if err != nil {
		return nil, fmt.Errorf("read whose certificates of issuer %s changed: %w", issuer.Name, err)
	}
	defer rows.Close()
	var requesters []string
	for rows.Next() {
		var requester string
		if err := rows.Scan(&requester); err != nil {
			return nil, fmt.Errorf("read whose certificates of issuer %s changed: %w", issuer.Name, err)
		}
		requesters = append(requesters, requester)
	}
	return requesters, rows.Err()
}
