package host

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// row is a row of host.
type row struct {
	id, name, pool, principal, state, message string
	problem                                   bool
	generation                                int64
	identityIssuer, identitySerial            string // the serial in hexadecimal
	identitySPKI                              []byte // its SHA-256
	identityEnds                              time.Time
	agent                                     string
	profiles                                  []string  // beside those of its placements
	identityUsed                              time.Time // when the first call was made with the newest identity's key
	created, joined, removed                  time.Time

	labels        map[string]string
	trust         int64  // the version of the pool's trust that it shall have; 0 for the pool's own
	issuer        string // the name of the one under which it shall be; empty for the pool's default
	absent        string // why nobody who pins waits for it; empty where they do
	identityAfter int64  // a new identity is asked for while its generation is not above this
}

const hostColumns = `host.id, host.name, host.pool, host.principal, host.state, host.message, host.problem, host.generation,
	host.identity_issuer, host.identity_serial, host.identity_spki, host.identity_ends, host.agent, host.created_at, host.joined_at, host.removed_at,
	host.profiles, host.identity_used, host.labels, host.trust, host.issuer, host.identity_after, host.absent`

func scanRow(scan func(...any) error) (*row, error) {
	var r row
	var problem, ends, created, joined, removed, used int64
	var profiles, labels string
	err := scan(&r.id, &r.name, &r.pool, &r.principal, &r.state, &r.message, &problem, &r.generation, &r.identityIssuer,
		&r.identitySerial, &r.identitySPKI, &ends, &r.agent, &created, &joined, &removed, &profiles, &used, &labels,
		&r.trust, &r.issuer, &r.identityAfter, &r.absent)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(labels), &r.labels); err != nil {
		return nil, fmt.Errorf("read the labels of host %s: %w", r.name, err)
	}
	r.problem, r.created, r.profiles = problem != 0, db.FromMicros(created), strings.Fields(profiles)
	r.identitySPKI = append([]byte{}, r.identitySPKI...) // SQLite reads an empty one as NULL, which it does not take back
	for _, t := range []struct {
		to *time.Time
		us int64
	}{{&r.identityEnds, ends}, {&r.joined, joined}, {&r.removed, removed}, {&r.identityUsed, used}} {
		if t.us != 0 {
			*t.to = db.FromMicros(t.us)
		}
	}
	return &r, nil
}

// find returns nil where there is none.
func find(ctx context.Context, tx *db.Tx, where string, args ...any) (*row, error) {
	r, err := scanRow(tx.QueryRow(ctx, `SELECT `+hostColumns+` FROM host WHERE `+where, args...).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read a host: %w", err)
	}
	return r, nil
}

// named finds the host that has a name now.
func named(ctx context.Context, tx *db.Tx, name string) (*row, error) {
	if access.LooksLikeToken(name) {
		return nil, fault.New(fault.Invalid, "that is a token's secret, and a host's name is wanted").
			WithHint("somebody who watched may have the secret now; chancery host token NAME makes another, and ends this one")
	}
	r, err := find(ctx, tx, `host.name = $1 AND host.removed_at = 0`, strings.ToLower(name))
	if err == nil && r == nil {
		err = fault.New(fault.NotFound, "there is no host %q", name).WithHint("chancery host list")
	}
	return r, err
}

// quoted is a name as errors say it.
func quoted(name string) string { return fmt.Sprintf("%.80q", access.Redact(name)) }

func ofPrincipal(ctx context.Context, tx *db.Tx, principal string) (*row, error) {
	return find(ctx, tx, `host.principal = $1`, principal)
}

// insert writes a new row.
func (r *row) insert(ctx context.Context, tx *db.Tx) error {
	change, err := nextChange(ctx, tx)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO host (id, name, pool, principal, state, message, problem, generation, identity_issuer, identity_serial,
		identity_spki, identity_ends, agent, change, created_at, joined_at, removed_at, profiles, identity_used, labels)
		VALUES ($1, $2, $3, $4, $5, '', 0, 0, '', '', $6, 0, '', $7, $8, 0, 0, $9, 0, $10)`,
		r.id, r.name, r.pool, r.principal, r.state, []byte{}, change, db.Micros(r.created), strings.Join(r.profiles, "\n"), labelText(r.labels))
	return err
}

// update writes what changes in a host's life, and numbers the change so that all nodes see it.
func (r *row) update(ctx context.Context, tx *db.Tx) error {
	change, err := nextChange(ctx, tx)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE host SET principal = $1, state = $2, message = $3, problem = $4, generation = $5, identity_issuer = $6,
		identity_serial = $7, identity_spki = $8, identity_ends = $9, agent = $10, change = $11, joined_at = $12, removed_at = $13,
		profiles = $14, identity_used = $15, labels = $16, absent = $17 WHERE id = $18`,
		r.principal, r.state, r.message, db.Bit(r.problem), r.generation, r.identityIssuer, r.identitySerial, r.identitySPKI, db.MicrosOrZero(r.identityEnds),
		r.agent, change, db.MicrosOrZero(r.joined), db.MicrosOrZero(r.removed),
		strings.Join(r.profiles, "\n"), db.MicrosOrZero(r.identityUsed), labelText(r.labels), r.absent, r.id)
	if err != nil {
		return fmt.Errorf("write host %s: %w", r.name, err)
	}
	return nil
}

// nextChange numbers a change of what a host shall hold. The row makes changes follow each other, so that who saw change n
// has seen all before it.
func nextChange(ctx context.Context, tx *db.Tx) (int64, error) {
	var change int64
	err := tx.QueryRow(ctx, `INSERT INTO host_change (id, change) VALUES (1, 1)
		ON CONFLICT (id) DO UPDATE SET change = host_change.change + 1 RETURNING change`).Scan(&change)
	if err != nil {
		return 0, fmt.Errorf("number the change: %w", err)
	}
	return change, nil
}

// namesOf returns the DNS names and the addresses of a host.
func namesOf(ctx context.Context, tx *db.Tx, id string) (dns, addresses []string, err error) {
	rows, err := tx.Query(ctx, `SELECT kind, name FROM host_name WHERE host = $1 ORDER BY position`, id)
	if err != nil {
		return nil, nil, fmt.Errorf("read the names of a host: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var kind, name string
		if err := rows.Scan(&kind, &name); err != nil {
			return nil, nil, fmt.Errorf("read the names of a host: %w", err)
		}
		if kind == "ip" {
			addresses = append(addresses, name)
		} else {
			dns = append(dns, name)
		}
	}
	return dns, addresses, rows.Err()
}

// placed is a placement as its row has it.
type placed struct {
	host string
	client.Placement
	observed string // JSON, without the time
	reissue  int64  // the number under which its certificates shall have been asked for, at least
	held     string // fingerprint of the issuer under which its certificates stay where the host is told of none
}

const placementColumns = `host, name, recipe, parameters, state, observed, observed_at, reissue, held, issuer`

func readPlacements(ctx context.Context, tx *db.Tx, where string, args ...any) ([]placed, error) {
	rows, err := tx.Query(ctx, `SELECT `+placementColumns+` FROM host_placement WHERE `+where+` ORDER BY host, position`, args...)
	if err != nil {
		return nil, fmt.Errorf("read placements: %w", err)
	}
	defer rows.Close()
	var all []placed
	for rows.Next() {
		var p placed
		var parameters, state, issuer string
		var at int64
		if err := rows.Scan(&p.host, &p.Name, &p.Recipe, &parameters, &state, &p.observed, &at, &p.reissue, &p.held, &issuer); err != nil {
			return nil, fmt.Errorf("read placements: %w", err)
		}
		if err := json.Unmarshal([]byte(parameters), &p.Parameters); err != nil {
			return nil, fmt.Errorf("read the parameters of placement %s: %w", p.Name, err)
		}
		if p.observed != "" {
			if err := json.Unmarshal([]byte(p.observed), &p.Observed); err != nil {
				return nil, fmt.Errorf("read what was observed of placement %s: %w", p.Name, err)
			}
		}
		p.Observed.Placement, p.Observed.State = p.Name, state
		p.Observed.Issuer = issuer // whatever certificate of it the agent named
		if at != 0 {
			p.Observed.At = db.FromMicros(at)
		}
		all = append(all, p)
	}
	return all, rows.Err()
}

// putPlacements makes a host's placements those given. What was observed of one stays; one whose order changed is pending
// until its agent has reported anew.
func putPlacements(ctx context.Context, tx *db.Tx, id string, orders []client.PlacementOrder) error {
	there, err := readPlacements(ctx, tx, `host = $1`, id)
	if err != nil {
		return err
	}
	before := map[string]placed{}
	for _, p := range there {
		before[p.Name] = p
	}
	if _, err := tx.Exec(ctx, `DELETE FROM host_placement WHERE host = $1`, id); err != nil {
		return err
	}
	for i, order := range orders {
		parameters, err := json.Marshal(order.Parameters)
		if err != nil {
			return err
		}
		next, old := placed{}, before[order.Name]
		next.Observed.State, next.reissue, next.held = client.PlacementPending, old.reissue, old.held
		if old.Recipe == order.Recipe {
			next.observed, next.Observed = old.observed, old.Observed
			if same, err := json.Marshal(old.Parameters); err != nil || string(same) != string(parameters) {
				// What it presents it still presents; whether its trust is in all its files is to be seen.
				next.Observed.State, next.Observed.Trust = client.PlacementPending, 0
			}
		}
		o := next.Observed
		_, err = tx.Exec(ctx, `INSERT INTO host_placement (host, name, recipe, parameters, position, state, not_after, observed, observed_at,
			reissue, trust, issuer, serial, reissued, crl_ends, held) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
			id, order.Name, order.Recipe, string(parameters), int64(i), o.State, db.MicrosOrZero(o.NotAfter), next.observed, db.MicrosOrZero(o.At),
			next.reissue, o.Trust, o.Issuer, o.Serial, o.Reissued, db.MicrosOrZero(o.CRLEnds), next.held)
		if err != nil {
			return fmt.Errorf("write placement %s: %w", order.Name, err)
		}
	}
	return nil
}
