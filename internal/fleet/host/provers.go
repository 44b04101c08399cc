package host

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// Prover is a host that can be asked to try something upon its own consumers. The functions about provers are for the keeper
// of proofs, and work in his transaction.
type Prover struct {
	ID, Name, Pool string
	Suspect        bool
	Placements     []ProverPlacement // in their order
}

// ProverPlacement is what a prover's agent said last of one of its placements.
type ProverPlacement struct {
	Name string
	Port bool // it knows where the consumer listens
	CRLs bool // CRLs are placed for it
}

// Provers are the hosts of a pool that a machine is, or was, and on which something is placed, by name. A suspect one is one
// of them: its consumers listen on.
func Provers(ctx context.Context, tx *db.Tx, pool string) ([]Prover, error) {
	rows, err := tx.Query(ctx, `SELECT h.id, h.name, h.state, p.name, p.crl_ends, p.observed FROM host h JOIN host_placement p ON p.host = h.id
		WHERE h.pool = $1 AND h.removed_at = 0 AND h.state IN ($2, $3) ORDER BY h.name, h.id, p.position`, pool, client.HostJoined, client.HostSuspect)
	if err != nil {
		return nil, fmt.Errorf("find the hosts of pool %s: %w", pool, err)
	}
	defer rows.Close()
	var all []Prover
	for rows.Next() {
		var id, name, state, observed string
		var ends int64
		var placement ProverPlacement
		if err := rows.Scan(&id, &name, &state, &placement.Name, &ends, &observed); err != nil {
			return nil, fmt.Errorf("find the hosts of pool %s: %w", pool, err)
		}
		var seen client.Observation
		if observed != "" {
			if err := json.Unmarshal([]byte(observed), &seen); err != nil {
				return nil, fmt.Errorf("read what was observed of %s at %s: %w", placement.Name, name, err)
			}
		}
		placement.Port, placement.CRLs = seen.Address != "", ends > 0
		if n := len(all); n == 0 || all[n-1].ID != id {
			all = append(all, Prover{ID: id, Name: name, Pool: pool, Suspect: state == client.HostSuspect})
		}
		last := &all[len(all)-1]
		last.Placements = append(last.Placements, placement)
	}
	return all, rows.Err()
}

// ProverOf is the host that a caller is the machine of. One that was removed or is suspect is refused.
func ProverOf(ctx context.Context, tx *db.Tx, by access.Principal) (*Prover, error) {
	r, err := ofPrincipal(ctx, tx, by.ID)
	switch {
	case err != nil:
		return nil, err
	case r == nil || !r.removed.IsZero():
		return nil, noHost(by)
	case r.state == client.HostSuspect:
		return nil, suspect(r)
	}
	return &Prover{ID: r.id, Name: r.name, Pool: r.pool}, nil
}

// someHosts is how many hosts one statement names.
const someHosts = 200

// Stir numbers a change of hosts, so that whoever of them waits for news is woken, on whichever node that is.
func Stir(ctx context.Context, tx *db.Tx, hosts []string) error {
	if len(hosts) == 0 {
		return nil
	}
	change, err := nextChange(ctx, tx)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(hosts, someHosts) {
		list, args := listed(some, change)
		if _, err := tx.Exec(ctx, `UPDATE host SET change = $1 WHERE id IN `+list, args...); err != nil {
			return fmt.Errorf("number the change of hosts: %w", err)
		}
	}
	return nil
}

// SeenAt are the times at which the agents of hosts last called, within a minute; who never did is not in it.
func SeenAt(ctx context.Context, tx *db.Tx, hosts []string) (map[string]time.Time, error) {
	seen := map[string]time.Time{}
	for some := range slices.Chunk(hosts, someHosts) {
		if err := seenAt(ctx, tx, some, seen); err != nil {
			return nil, fmt.Errorf("read when hosts were seen: %w", err)
		}
	}
	return seen, nil
}

func seenAt(ctx context.Context, tx *db.Tx, hosts []string, seen map[string]time.Time) error {
	list, args := listed(hosts)
	rows, err := tx.Query(ctx, `SELECT host, seen_at FROM host_seen WHERE host IN `+list, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var at int64
		if err := rows.Scan(&id, &at); err != nil {
			return err
		}
		seen[id] = db.FromMicros(at)
	}
	return rows.Err()
}

// listed are placeholders for hosts, which come after other arguments.
func listed(hosts []string, before ...any) (string, []any) {
	places := make([]string, 0, len(hosts))
	for _, id := range hosts {
		before = append(before, id)
		places = append(places, fmt.Sprintf("$%d", len(before)))
	}
	return "(" + strings.Join(places, ", ") + ")", before
}

// CheckPoolOf refuses a host what is of another pool.
func (p *Prover) CheckPoolOf(what, pool string) error {
	if p.Pool == pool {
		return nil
	}
	return fault.New(fault.Denied, "%s is a host of pool %q, and %s is of pool %q", p.Name, p.Pool, what, pool)
}
