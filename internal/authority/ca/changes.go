package ca

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"strings"
	"time"

	"chancery/internal/pki/crl"
	"chancery/internal/store/db"
)

// This file is what CRLs and OCSP answers are made from. Its functions read in the caller's transaction, so that a list and
// the number of the last change in it are of one state.

// Changed is a certificate whose status changed.
type Changed struct {
	Change   int64  // orders what happened under one issuer
	Entry    []byte // as it stands in a CRL; for a released hold, as it stands in a delta CRL
	State    State  // Valid for a released hold
	NotAfter time.Time
}

// Changes selects from the certificates of one issuer whose status ever changed, each once, with its newest change.
type Changes struct {
	Partition int       // of Issuer.CRL.Partitions; negative for all
	After     int64     // only those whose newest change is greater
	UpTo      int64     // and not greater than this; 0 for all
	States    []State   // only those now in these states; empty for all
	NotBefore time.Time // only those whose certificate ends at this time or later; zero for all
	Limit     int       // so many at most, the first ones; 0 for all. ChangesSize takes no notice of it
}

func (c Changes) where(issuer *Issuer) (string, []any) {
	conditions := []string{"issuer = $1", "change > $2"}
	args := []any{issuer.number, c.After}
	add := func(condition string, arg any) {
		args = append(args, arg)
		conditions = append(conditions, fmt.Sprintf(condition, len(args)))
	}
	if c.Partition >= 0 {
		add("crl_partition = $%d", c.Partition)
	}
	if c.UpTo > 0 {
		add("change <= $%d", c.UpTo)
	}
	if !c.NotBefore.IsZero() {
		add("not_after >= $%d", db.Micros(c.NotBefore))
	}
	if len(c.States) > 0 {
		// Literals, because a partial index serves only a condition that is written as its own.
		var states []string
		for _, s := range c.States {
			states = append(states, "state = '"+string(s)+"'")
		}
		conditions = append(conditions, "("+strings.Join(states, " OR ")+")")
	}
	return strings.Join(conditions, " AND "), args
}

// ChangesSize counts what EachChange would yield, and the octets of its entries.
func ChangesSize(ctx context.Context, tx *db.Tx, issuer *Issuer, c Changes) (count, octets int64, err error) {
	where, args := c.where(issuer)
	row := tx.QueryRow(ctx, "SELECT COUNT(*), CAST(COALESCE(SUM(LENGTH(entry)), 0) AS BIGINT) FROM revocation WHERE "+where, args...)
	if err := row.Scan(&count, &octets); err != nil {
		return 0, 0, fmt.Errorf("count changes of issuer %s: %w", issuer.Name, err)
	}
	return count, octets, nil
}

// EachChange yields the selected certificates in the order of their changes. It holds one row at a time.
func EachChange(ctx context.Context, tx *db.Tx, issuer *Issuer, c Changes) iter.Seq2[Changed, error] {
	return func(yield func(Changed, error) bool) {
		where, args := c.where(issuer)
		query := "SELECT change, entry, state, not_after FROM revocation WHERE " + where + " ORDER BY change"
		if c.Limit > 0 {
			query += fmt.Sprintf(" LIMIT %d", c.Limit)
		}
		rows, err := tx.Query(ctx, query, args...)
		if err != nil {
			yield(Changed{}, fmt.Errorf("read changes of issuer %s: %w", issuer.Name, err))
			return
		}
		defer rows.Close()
		for rows.Next() {
			var (
				changed  Changed
				notAfter int64
			)
			if err := rows.Scan(&changed.Change, &changed.Entry, &changed.State, &notAfter); err != nil {
				yield(Changed{}, fmt.Errorf("read changes of issuer %s: %w", issuer.Name, err))
				return
			}
			changed.NotAfter = db.FromMicros(notAfter)
			if !yield(changed, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(Changed{}, fmt.Errorf("read changes of issuer %s: %w", issuer.Name, err))
		}
	}
}

// LastChanges returns the number of the newest change under each issuer, by the issuer's ID. An issuer under which nothing
// was ever revoked is not in it.
func LastChanges(ctx context.Context, tx *db.Tx) (map[string]int64, error) {
	rows, err := tx.Query(ctx, `SELECT issuer.id, revocation_change.change FROM revocation_change
		JOIN issuer ON issuer.number = revocation_change.issuer`)
	if err != nil {
		return nil, fmt.Errorf("read the last changes: %w", err)
	}
	defer rows.Close()
	last := make(map[string]int64)
	for rows.Next() {
		var (
			id     string
			change int64
		)
		if err := rows.Scan(&id, &change); err != nil {
			return nil, fmt.Errorf("read the last changes: %w", err)
		}
		last[id] = change
	}
	return last, rows.Err()
}

// ChangedPartitions returns the partitions of an issuer in which something changed after a change, each with its newest.
func ChangedPartitions(ctx context.Context, tx *db.Tx, issuer *Issuer, after int64) (map[int]int64, error) {
	// The sum keeps SQLite from grouping by revocation_crl, which holds all that was ever revoked: few changes are newer,
	// and revocation_by_change finds those.
	rows, err := tx.Query(ctx, `SELECT n, MAX(change) FROM (SELECT crl_partition + 0 AS n, change FROM revocation
		WHERE issuer = $1 AND change > $2) AS newer GROUP BY n`, issuer.number, after)
	if err != nil {
		return nil, fmt.Errorf("read the changed partitions of issuer %s: %w", issuer.Name, err)
	}
	defer rows.Close()
	changed := make(map[int]int64)
	for rows.Next() {
		var (
			partition int
			newest    int64
		)
		if err := rows.Scan(&partition, &newest); err != nil {
			return nil, fmt.Errorf("read the changed partitions of issuer %s: %w", issuer.Name, err)
		}
		changed[partition] = newest
	}
	return changed, rows.Err()
}

// Status is what the records say of one serial.
type Status struct {
	Issued   bool // a certificate with this serial exists
	State    State
	NotAfter time.Time
	Revocation

	Change    int64     // the newest change under the issuer that this takes into account
	ChangedAt time.Time // when it was revoked, held or released the last time; zero where it never was, or that is not known
}

// StatusOf reads the status of one serial of an issuer.
func StatusOf(ctx context.Context, tx *db.Tx, issuer *Issuer, serial *big.Int) (Status, error) {
	var (
		s                               Status
		notAfter                        int64
		reason, revokedAt, invalidSince sql.NullInt64
		changedAt                       sql.NullInt64
	)
	err := tx.QueryRow(ctx, `SELECT certificate.state, certificate.not_after, revocation.reason, revocation.revoked_at, revocation.invalidity_date,
			revocation.changed_at, COALESCE((SELECT change FROM revocation_change WHERE issuer = $2), 0)
		FROM certificate LEFT JOIN revocation ON revocation.certificate = certificate.id
		WHERE certificate.serial = $1 AND certificate.issuer = $2`, serialKey(serial), issuer.number).
		Scan(&s.State, &notAfter, &reason, &revokedAt, &invalidSince, &changedAt, &s.Change)
	if errors.Is(err, sql.ErrNoRows) {
		return Status{}, nil
	}
	if err != nil {
		return Status{}, fmt.Errorf("read the status of serial %x: %w", serial, err)
	}
	s.Issued, s.NotAfter = true, db.FromMicros(notAfter)
	if changedAt.Int64 != 0 {
		s.ChangedAt = db.FromMicros(changedAt.Int64)
	}
	if s.State == Revoked || s.State == Held {
		s.Reason, s.RevokedAt = crl.Reason(reason.Int64), db.FromMicros(revokedAt.Int64)
		if invalidSince.Int64 != 0 {
			s.InvalidityDate = db.FromMicros(invalidSince.Int64)
		}
	}
	return s, nil
}
