package trust

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/db"
)

// State is a pool's row of trust_pool.
type State struct {
	Version int64  // what hosts have that are at no other
	Newest  int64  // the greatest number given
	Rollout string // that works on the pool, or empty
	change  int64  // grows with whatever of the pool's trust changes
}

// next is the version that a rollout is about to give to all; the present one where none works on the pool, since what an
// earlier one staged and did not adopt is nobody's.
func (st State) next() int64 {
	if st.Rollout == "" {
		return st.Version
	}
	return st.Newest
}

// has reports whether an entry is what hosts have, or are about to.
func (st State) has(e *entry) bool { return e.in(st.Version) || e.in(st.next()) }

// ReadStates returns the state of each pool that has one, by the pool's name.
func ReadStates(ctx context.Context, tx *db.Tx) (map[string]State, error) {
	rows, err := tx.Query(ctx, `SELECT pool, version, newest, rollout, change FROM trust_pool`)
	if err != nil {
		return nil, fmt.Errorf("read the versions of trust: %w", err)
	}
	defer rows.Close()
	all := map[string]State{}
	for rows.Next() {
		var name string
		var st State
		if err := rows.Scan(&name, &st.Version, &st.Newest, &st.Rollout, &st.change); err != nil {
			return nil, fmt.Errorf("read the versions of trust: %w", err)
		}
		all[name] = st
	}
	return all, rows.Err()
}

// readState returns the state of a pool; found is false where it has none yet.
func readState(ctx context.Context, tx *db.Tx, pool string) (st State, found bool, err error) {
	err = tx.QueryRow(ctx, `SELECT version, newest, rollout, change FROM trust_pool WHERE pool = $1`, pool).
		Scan(&st.Version, &st.Newest, &st.Rollout, &st.change)
	if errors.Is(err, sql.ErrNoRows) {
		return State{}, false, nil
	}
	if err != nil {
		return State{}, false, fmt.Errorf("read the version of trust of pool %s: %w", pool, err)
	}
	return st, true, nil
}

// StateOf reads the state of one pool in the caller's transaction. The zero State is that of a pool whose trust was not read yet.
func StateOf(ctx context.Context, tx *db.Tx, pool string) (State, error) {
	st, _, err := readState(ctx, tx, pool)
	return st, err
}

// touch says that something of a pool's trust has changed.
func touch(ctx context.Context, tx *db.Tx, pool string, now time.Time) error {
	_, err := tx.Exec(ctx, `UPDATE trust_pool SET change = change + 1, changed_at = $1 WHERE pool = $2`, db.Micros(now), pool)
	if err != nil {
		return fmt.Errorf("note the change of trust of pool %s: %w", pool, err)
	}
	return nil
}

// entry is a row of trust_entry.
type entry struct {
	id, pool, purpose, kind string
	issuer                  string // ID, empty where it is none of ours
	fingerprint             string
	certificate             *x509.Certificate
	notAfter                time.Time
	from, to                int64
	pruned                  bool
	comment                 string
	created                 time.Time
	was                     string // ID of the one that it is made anew of, before it is written
}

// in reports whether the entry is in a version.
func (e *entry) in(version int64) bool {
	return !e.pruned && e.from <= version && (e.to == 0 || version < e.to)
}

// same reports whether two entries say the same.
func (e *entry) same(other *entry) bool {
	return e.fingerprint == other.fingerprint && e.purpose == other.purpose && e.kind == other.kind
}

// Fingerprint is the SHA-256 of a certificate, in hexadecimal.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

func newEntry(pool, purpose, kind, issuer string, c *x509.Certificate, comment string, now time.Time) *entry {
	return &entry{
		id: db.NewID(), pool: pool, purpose: purpose, kind: kind, issuer: issuer, fingerprint: Fingerprint(c), certificate: c,
		notAfter: c.NotAfter, comment: comment, created: now,
	}
}

const entryColumns = `id, pool, purpose, kind, issuer, fingerprint, certificate, not_after, from_version, to_version, pruned_at, comment, created_at`

// readEntries reads entries in the order in which they came to be.
func readEntries(ctx context.Context, tx *db.Tx, where string, args ...any) ([]*entry, error) {
	rows, err := tx.Query(ctx, `SELECT `+entryColumns+` FROM trust_entry WHERE `+where+` ORDER BY id`, args...)
	if err != nil {
		return nil, fmt.Errorf("read trust entries: %w", err)
	}
	defer rows.Close()
	var all []*entry
	for rows.Next() {
		var e entry
		var der []byte
		var notAfter, pruned, created int64
		err := rows.Scan(&e.id, &e.pool, &e.purpose, &e.kind, &e.issuer, &e.fingerprint, &der, &notAfter, &e.from, &e.to, &pruned, &e.comment, &created)
		if err != nil {
			return nil, fmt.Errorf("read trust entries: %w", err)
		}
		if e.certificate, err = x509.ParseCertificate(slices.Clone(der)); err != nil {
			return nil, fmt.Errorf("read the certificate of trust entry %s: %w", e.id, err)
		}
		e.notAfter, e.created, e.pruned = db.FromMicros(notAfter), db.FromMicros(created), pruned != 0
		all = append(all, &e)
	}
	return all, rows.Err()
}

// insert writes the entry, with the CRL of the one that it was made anew of.
func (e *entry) insert(ctx context.Context, tx *db.Tx) error {
	_, err := tx.Exec(ctx, `INSERT INTO trust_entry (`+entryColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 0, $11, $12)`,
		e.id, e.pool, e.purpose, e.kind, e.issuer, e.fingerprint, e.certificate.Raw, db.Micros(e.notAfter), e.from, e.to, e.comment, db.Micros(e.created))
	if err != nil {
		return fmt.Errorf("write trust entry %s: %w", e.id, err)
	}
	if e.was == "" {
		return nil
	}
	_, err = tx.Exec(ctx, `INSERT INTO trust_crl (entry, number, next_update, der, created_at)
		SELECT $1, number, next_update, der, created_at FROM trust_crl WHERE entry = $2`, e.id, e.was)
	if err != nil {
		return fmt.Errorf("keep the CRL of trust entry %s: %w", e.was, err)
	}
	return nil
}

// anew is the entry once more, for a version to come.
func (e *entry) anew() *entry {
	again := *e
	again.id, again.was, again.to = db.NewID(), e.id, 0
	return &again
}

// renewedIn are the pools that trust several certificates of an issuer of ours for one purpose.
func renewedIn(ctx context.Context, tx *db.Tx) (pools []string, err error) {
	pools, err = db.TextColumn(ctx, tx, `SELECT DISTINCT pool FROM trust_entry WHERE issuer <> '' AND to_version = 0 AND pruned_at = 0
		GROUP BY pool, purpose, issuer HAVING COUNT(*) > 1 ORDER BY pool`)
	if err != nil {
		return nil, fmt.Errorf("look for renewed issuers in what pools trust: %w", err)
	}
	return pools, nil
}

// numbered is what tells one CRL of a foreign anchor from the next.
type numbered struct {
	number     string
	nextUpdate time.Time
}

// readNumbers returns the CRLs of a pool's entries, by the entry's ID.
func readNumbers(ctx context.Context, tx *db.Tx, pool string) (map[string]numbered, error) {
	rows, err := tx.Query(ctx, `SELECT entry, number, next_update FROM trust_crl WHERE entry IN (SELECT id FROM trust_entry WHERE pool = $1)`, pool)
	if err != nil {
		return nil, fmt.Errorf("read the CRLs of trust entries: %w", err)
	}
	defer rows.Close()
	all := map[string]numbered{}
	for rows.Next() {
		var id string
		var n numbered
		var next int64
		if err := rows.Scan(&id, &n.number, &next); err != nil {
			return nil, fmt.Errorf("read the CRLs of trust entries: %w", err)
		}
		n.nextUpdate = db.FromMicros(next)
		all[id] = n
	}
	return all, rows.Err()
}

// shortest is how much of a fingerprint names an entry.
const shortest = 12

// find finds an entry of a pool by its ID or fingerprint, or by the beginning of that: one that is in the pool's version before
// one of another.
func find(ctx context.Context, tx *db.Tx, st State, pool, name string) (*entry, error) {
	plain := plainFingerprint(name)
	where, args := `pool = $1 AND (id = $2 OR fingerprint = $3) AND pruned_at = 0`, []any{pool, name, plain}
	if len(plain) >= shortest && len(plain) < 64 && strings.Trim(plain, "0123456789abcdef") == "" {
		where, args = `pool = $1 AND fingerprint >= $2 AND fingerprint < $3 AND pruned_at = 0`, []any{pool, plain, plain + "g"}
	}
	found, err := readEntries(ctx, tx, where, args...)
	if err != nil {
		return nil, err
	}
	for _, e := range found {
		if e.fingerprint != found[0].fingerprint {
			return nil, fault.New(fault.Conflict, "several certificates that pool %q trusts have a SHA-256 that begins with %s; give more of it", pool, plain)
		}
	}
	if purposes := purposesOf(found, st); len(purposes) > 1 {
		return nil, fault.New(fault.Conflict, "the certificate is trusted for several purposes, %s; name the entry by its ID", strings.Join(purposes, ", ")).
			WithHint("chancery pool trust list %s -o json", pool)
	}
	for _, version := range []int64{st.Version, st.next()} {
		if i := slices.IndexFunc(found, func(e *entry) bool { return e.in(version) }); i >= 0 {
			return found[i], nil
		}
	}
	if len(found) > 0 {
		return found[len(found)-1], nil
	}
	return nil, fault.New(fault.NotFound, "pool %q has no trust entry %.80q", pool, name).WithHint("chancery pool trust list %s", pool)
}

// purposesOf are the purposes that entries of a version, present or staged, have.
func purposesOf(entries []*entry, st State) (purposes []string) {
	for _, e := range entries {
		if st.has(e) && !slices.Contains(purposes, e.purpose) {
			purposes = append(purposes, e.purpose)
		}
	}
	return purposes
}

// wire is the entry as it is shown; name is that of the issuer of ours.
func (e *entry) wire(st State, name string, crl numbered) client.TrustEntry {
	out := client.TrustEntry{
		ID: e.id, Pool: e.pool, Purpose: e.purpose, Kind: e.kind, Subject: e.certificate.Subject.String(), Fingerprint: e.fingerprint, Issuer: name,
		State: "trusted", NotAfter: e.notAfter, CRLNumber: crl.number, NextUpdate: crl.nextUpdate, Comment: e.comment,
		PEM: encode(e.certificate.Raw), CreatedAt: e.created,
	}
	switch in, later := e.in(st.Version), e.in(st.next()); {
	case !in && later:
		out.State = "staged"
	case in && !later:
		out.State = "leaving"
	}
	return out
}
