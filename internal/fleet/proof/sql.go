package proof

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/db"
)

// proof is a row of proof.
type proof struct {
	id                         string
	certificate                int64
	issuer, issuerName, pool   string // the pool is the issuer's
	fingerprint                string
	serial, subject, algorithm string
	held, controls             bool
	actor                      string
	created, ends              time.Time
}

const proofColumns = `p.id, p.certificate, p.issuer, p.issuer_name, p.issuer_pool, p.fingerprint, p.serial, p.subject, p.algorithm, p.held, p.controls, p.actor,
	p.created_at, p.ends`

func scanProof(scan func(...any) error) (*proof, error) {
	var p proof
	var held, controls, created, ends int64
	err := scan(&p.id, &p.certificate, &p.issuer, &p.issuerName, &p.pool, &p.fingerprint, &p.serial, &p.subject, &p.algorithm, &held, &controls, &p.actor,
		&created, &ends)
	if err != nil {
		return nil, err
	}
	p.held, p.controls, p.created, p.ends = held != 0, controls != 0, db.FromMicros(created), db.FromMicros(ends)
	return &p, nil
}

func (p *proof) insert(ctx context.Context, tx *db.Tx) error {
	_, err := tx.Exec(ctx, `INSERT INTO proof (id, certificate, issuer, issuer_name, issuer_pool, fingerprint, serial, subject, algorithm, held, controls, actor,
		created_at, ends) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`, p.id, p.certificate, p.issuer, p.issuerName, p.pool, p.fingerprint,
		p.serial, p.subject, p.algorithm, db.Bit(p.held), db.Bit(p.controls), p.actor, db.Micros(p.created), db.Micros(p.ends))
	if err != nil {
		return fmt.Errorf("write the proof: %w", err)
	}
	return nil
}

// someHosts is how many hosts one statement writes.
const someHosts = 100

func insertHosts(ctx context.Context, tx *db.Tx, id string, hosts []prover) error {
	for some := range slices.Chunk(hosts, someHosts) {
		var rows []string
		var args []any
		for _, h := range some {
			trials, err := json.Marshal(h.trials())
			if err != nil {
				return err
			}
			n := len(args)
			rows = append(rows, fmt.Sprintf("($%d, $%d, $%d, $%d, $%d, '', $%d, '', $%d, $%d, 0)", n+1, n+2, n+3, n+4, n+5, n+6, n+7, n+8))
			args = append(args, id, h.ID, h.Name, h.Pool, h.noTwin, []byte{}, []byte{}, string(trials))
		}
		_, err := tx.Exec(ctx, `INSERT INTO proof_host (proof, host, name, pool, no_twin, twin, twin_key, control, control_key, trials, reported_at) VALUES `+
			strings.Join(rows, ", "), args...)
		if err != nil {
			return fmt.Errorf("write the hosts of the proof: %w", err)
		}
	}
	return nil
}

// endEarlier ends the proofs of a certificate that run.
func endEarlier(ctx context.Context, tx *db.Tx, certificate int64, now time.Time) error {
	_, err := tx.Exec(ctx, `UPDATE proof SET ends = $1 WHERE certificate = $2 AND ends > $3`, db.Micros(now), certificate, db.Micros(now))
	if err != nil {
		return fmt.Errorf("end the proof before: %w", err)
	}
	return nil
}

func readProof(ctx context.Context, tx *db.Tx, where string, args ...any) (*proof, error) {
	p, err := scanProof(tx.QueryRow(ctx, `SELECT `+proofColumns+` FROM proof p WHERE `+where, args...).Scan)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, fault.New(fault.NotFound, "there is no such proof")
	case err != nil:
		return nil, fmt.Errorf("read a proof: %w", err)
	}
	return p, nil
}

// asked is a row of proof_host.
type asked struct {
	host, name, pool    string
	noTwin              string // why it may have none
	twin, control       string // serial numbers
	twinKey, controlKey []byte // SHA-256
	trials              []client.ProofTrial
	reported            time.Time // zero before
}

const askedColumns = `host, name, pool, no_twin, twin, twin_key, control, control_key, trials, reported_at`

func scanAsked(scan func(...any) error) (*asked, error) {
	var a asked
	var trials string
	var reported int64
	if err := scan(&a.host, &a.name, &a.pool, &a.noTwin, &a.twin, &a.twinKey, &a.control, &a.controlKey, &trials, &reported); err != nil {
		return nil, err
	}
	if reported != 0 {
		a.reported = db.FromMicros(reported)
	}
	if err := json.Unmarshal([]byte(trials), &a.trials); err != nil {
		return nil, fmt.Errorf("read the trials of host %s: %w", a.name, err)
	}
	return &a, nil
}

// readAsked returns nil where the proof does not name the host.
func readAsked(ctx context.Context, tx *db.Tx, proof, host string) (*asked, error) {
	a, err := scanAsked(tx.QueryRow(ctx, `SELECT `+askedColumns+` FROM proof_host WHERE proof = $1 AND host = $2`, proof, host).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what host %s has to try: %w", host, err)
	}
	return a, nil
}

func readAllAsked(ctx context.Context, tx *db.Tx, proof string) ([]*asked, error) {
	rows, err := tx.Query(ctx, `SELECT `+askedColumns+` FROM proof_host WHERE proof = $1 ORDER BY name, host`, proof)
	if err != nil {
		return nil, fmt.Errorf("read the hosts of a proof: %w", err)
	}
	defer rows.Close()
	var all []*asked
	for rows.Next() {
		a, err := scanAsked(rows.Scan)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, rows.Err()
}
