package host

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/store/db"
)

// This file is how many hosts are moved together: to a version of their pool's trust, under an issuer, to new keys. Its
// functions work in the caller's transaction, and go by columns: what was observed is parsed for a few hosts only.

// Moved bounds how many hosts one call of Move takes: its transaction stays short.
const Moved = 500

// Member is a host of a pool.
type Member struct {
	ID, Name, State string
	Generation      int64 // of its identity
	Labels          map[string]string
}

// Members returns hosts of a pool that are not removed, by ID from after on, up to limit.
func Members(ctx context.Context, tx *db.Tx, pool, after string, limit int) ([]Member, error) {
	var members []Member
	err := each(ctx, tx, `SELECT id, name, state, generation, labels FROM host WHERE pool = $1 AND removed_at = 0 AND id > $2 ORDER BY id LIMIT $3`,
		[]any{pool, after, int64(limit)}, func(scan func(...any) error) error {
			var m Member
			var labels string
			if err := scan(&m.ID, &m.Name, &m.State, &m.Generation, &labels); err != nil {
				return err
			}
			if err := json.Unmarshal([]byte(labels), &m.Labels); err != nil {
				return fmt.Errorf("read the labels of host %s: %w", m.Name, err)
			}
			members = append(members, m)
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("read the hosts of pool %s: %w", pool, err)
	}
	return members, nil
}

// Goal is what hosts are moved to. What is empty is not asked for.
type Goal struct {
	Trust    int64  // the version of the trust that each placement has in use
	Issuer   string // SHA-256, in hexadecimal, of the certificate of the issuer of what is placed
	Held     bool   // what is placed is under the issuer that the placement is held at, if it is
	Reissued bool   // what is placed was asked for under the placement's number
	Identity bool   // the host has the identity that it was asked to get
	// Ended leaves out a placement that fails and whose agent has said so since its certificate ended: it serves nobody, and what it
	// needs first is another certificate.
	Ended bool
}

// Standing is how a host stands to a goal.
type Standing int

// The standings. A host that has not joined yet is Absent: it has nothing, and gets all of it when it joins.
const (
	Short Standing = iota
	Reached
	Absent
)

// unmet is true of a placement p that has not reached the goal; what was placed there may have no certificate at all.
func (g Goal) unmet(l *arguments) string {
	conditions := []string{`p.state NOT IN ('served', 'placed', 'down')`}
	if g.Trust != 0 {
		conditions = append(conditions, `p.trust <> `+l.add(g.Trust))
	}
	if g.Issuer != "" {
		conditions = append(conditions, `p.serial <> '' AND p.issuer <> `+l.add(g.Issuer))
	}
	if g.Held {
		conditions = append(conditions, `p.serial <> '' AND p.held <> '' AND p.issuer <> p.held`)
	}
	if g.Reissued {
		conditions = append(conditions, `p.serial <> '' AND p.reissued < p.reissue`)
	}
	text := `(` + strings.Join(conditions, ` OR `) + `)`
	if g.Ended {
		text = `(` + text + ` AND NOT (p.state = 'failed' AND p.not_after > 0 AND p.not_after <= p.observed_at))`
	}
	return text
}

// short is true of a host h that has not reached the goal.
func (g Goal) short(l *arguments) string {
	text := `(h.state = 'suspect' OR EXISTS (SELECT 1 FROM host_placement p WHERE p.host = h.id AND ` + g.unmet(l) + `)`
	if g.Identity {
		text += ` OR h.generation <= h.identity_after`
	}
	return text + `)`
}

// arguments collects those of a statement.
type arguments struct{ values []any }

func (l *arguments) add(v any) string {
	l.values = append(l.values, v)
	return fmt.Sprintf("$%d", len(l.values))
}

func (l *arguments) all(ids []string) string {
	places := make([]string, len(ids))
	for i, id := range ids {
		places[i] = l.add(id)
	}
	return `(` + strings.Join(places, ", ") + `)`
}

// Standings says how hosts stand to a goal; those that were removed are left out.
func Standings(ctx context.Context, tx *db.Tx, goal Goal, ids []string) (map[string]Standing, error) {
	standings := make(map[string]Standing, len(ids))
	for part := range slices.Chunk(ids, Moved) {
		var l arguments
		query := `SELECT h.id, h.state, CASE WHEN ` + goal.short(&l) + ` THEN 1 ELSE 0 END FROM host h WHERE h.removed_at = 0 AND h.id IN ` + l.all(part)
		err := each(ctx, tx, query, l.values, func(scan func(...any) error) error {
			var id, state string
			var short int64
			if err := scan(&id, &state, &short); err != nil {
				return err
			}
			switch {
			case state == client.HostPending:
				standings[id] = Absent
			case short == 0:
				standings[id] = Reached
			default:
				standings[id] = Short
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("see how hosts stand: %w", err)
		}
	}
	return standings, nil
}

// Lack is what keeps a host from a goal.
type Lack struct {
	ID, Name, State, Message string // of the host
	Placement                string // empty where it is not a placement's
	PlacementState, Said     string
	Trust                    int64
	Issuer                   string
	SeenAt                   time.Time
}

// Lacks says of each of the hosts what keeps it from a goal, one thing for a host; those that reached it are left out. ids are at
// most Moved.
func (s *Service) Lacks(ctx context.Context, tx *db.Tx, goal Goal, ids []string) ([]Lack, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	var l arguments
	unmet := goal.unmet(&l)
	query := `SELECT h.id, h.name, h.state, h.message, COALESCE(p.name, ''), COALESCE(p.state, ''), COALESCE(p.observed, ''), COALESCE(p.trust, 0),
		COALESCE(p.issuer, ''), COALESCE(seen.seen_at, 0)
		FROM host h LEFT JOIN host_placement p ON p.host = h.id AND ` + unmet + ` LEFT JOIN host_seen seen ON seen.host = h.id
		WHERE h.removed_at = 0 AND h.id IN ` + l.all(ids) + ` AND ` + goal.short(&l) + ` ORDER BY h.name, CASE WHEN p.state = 'failed' THEN 0 ELSE 1 END, p.position`
	var lacks []Lack
	err := each(ctx, tx, query, l.values, func(scan func(...any) error) error {
		var k Lack
		var observed string
		var seen int64
		if err := scan(&k.ID, &k.Name, &k.State, &k.Message, &k.Placement, &k.PlacementState, &observed, &k.Trust, &k.Issuer, &seen); err != nil {
			return err
		}
		if len(lacks) > 0 && lacks[len(lacks)-1].ID == k.ID {
			return nil
		}
		var o client.Observation
		if observed != "" && json.Unmarshal([]byte(observed), &o) == nil {
			k.Said = o.Message
		}
		if seen != 0 {
			k.SeenAt = db.FromMicros(seen)
		}
		lacks = append(lacks, k)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("see what hosts lack: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range lacks {
		if at := s.seen[lacks[i].ID]; at.After(lacks[i].SeenAt) {
			lacks[i].SeenAt = at.UTC().Truncate(time.Microsecond)
		}
	}
	return lacks, nil
}

// Silents are those of the hosts, at most Moved, that have joined and whose agents have not called since an instant.
func (s *Service) Silents(ctx context.Context, tx *db.Tx, ids []string, since time.Time) ([]Lack, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	var l arguments
	var silent []Lack
	err := each(ctx, tx, `SELECT h.id, h.name, h.state, COALESCE(seen.seen_at, 0) FROM host h LEFT JOIN host_seen seen ON seen.host = h.id
		WHERE h.removed_at = 0 AND h.state = 'joined' AND h.joined_at < `+l.add(db.Micros(since))+` AND COALESCE(seen.seen_at, 0) < `+l.add(db.Micros(since))+
		` AND h.id IN `+l.all(ids)+` ORDER BY h.name`, l.values, func(scan func(...any) error) error {
		var k Lack
		var seen int64
		if err := scan(&k.ID, &k.Name, &k.State, &seen); err != nil {
			return err
		}
		if seen != 0 {
			k.SeenAt = db.FromMicros(seen)
		}
		silent = append(silent, k)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read which agents are silent: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(silent, func(k Lack) bool { return !s.seen[k.ID].Before(since) }), nil
}

// Failure is a placement that failed.
type Failure struct{ ID, Host, Placement, Message string }

// Failures are the placements of a pool that failed, up to limit, those that did last first.
func Failures(ctx context.Context, tx *db.Tx, pool string, limit int) ([]Failure, error) {
	return FailuresAmong(ctx, tx, pool, `SELECT id FROM host WHERE removed_at = 0`, limit)
}

// FailuresAmong are those of the hosts whose IDs a query with arguments, numbered from $3 on, selects.
func FailuresAmong(ctx context.Context, tx *db.Tx, pool, hosts string, limit int, args ...any) ([]Failure, error) {
	var failures []Failure
	err := each(ctx, tx, `SELECT h.id, h.name, p.name, p.observed FROM host_placement p JOIN host h ON h.id = p.host
		WHERE p.state = 'failed' AND h.pool = $1 AND h.removed_at = 0 AND h.id IN (`+hosts+`) ORDER BY p.observed_at DESC, h.name LIMIT $2`,
		append([]any{pool, int64(limit)}, args...),
		func(scan func(...any) error) error {
			var f Failure
			var observed string
			if err := scan(&f.ID, &f.Host, &f.Placement, &observed); err != nil {
				return err
			}
			var o client.Observation
			if observed != "" && json.Unmarshal([]byte(observed), &o) == nil {
				f.Message = o.Message
			}
			failures = append(failures, f)
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("read what failed in pool %s: %w", pool, err)
	}
	return failures, nil
}

// Move is what hosts are told. What is nil or 0 stays.
type Move struct {
	Trust    *int64
	Issuer   *string
	Reissue  int64
	Identity bool // to get another identity than they have
}

// Move tells hosts, at most Moved of them, under one number of a change, which wakes those who wait.
func (s *Service) Move(ctx context.Context, tx *db.Tx, m Move, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	change, err := nextChange(ctx, tx)
	if err != nil {
		return err
	}
	var l arguments
	set := []string{`change = ` + l.add(change)}
	if m.Trust != nil {
		set = append(set, `trust = `+l.add(*m.Trust))
	}
	if m.Issuer != nil {
		set = append(set, `issuer = `+l.add(*m.Issuer))
	}
	if m.Identity {
		set = append(set, `identity_after = generation`)
	}
	if _, err := tx.Exec(ctx, `UPDATE host SET `+strings.Join(set, ", ")+` WHERE id IN `+l.all(ids), l.values...); err != nil {
		return fmt.Errorf("move hosts: %w", err)
	}
	if m.Reissue == 0 {
		return nil
	}
	l = arguments{}
	number := l.add(m.Reissue)
	if _, err := tx.Exec(ctx, `UPDATE host_placement SET reissue = `+number+` WHERE reissue < `+number+` AND host IN `+l.all(ids), l.values...); err != nil {
		return fmt.Errorf("ask for new keys: %w", err)
	}
	return nil
}

// NextReissue is a number that no placement was asked to be re-keyed under before. It follows the clock, so that it is none that
// was given in the time that a restored backup does not know of.
func NextReissue(ctx context.Context, tx *db.Tx, now time.Time) (int64, error) {
	var last int64
	if err := tx.QueryRow(ctx, `SELECT COALESCE(MAX(reissue), 0) FROM host_placement`).Scan(&last); err != nil {
		return 0, fmt.Errorf("number what is asked for: %w", err)
	}
	return max(last+1, now.UnixMilli()), nil
}

// Recall takes back what hosts of a pool were asked for and have not done: new keys, and new identities.
func (s *Service) Recall(ctx context.Context, tx *db.Tx, ids []string) error {
	for part := range slices.Chunk(ids, Moved) {
		var l arguments
		in := l.all(part)
		if _, err := tx.Exec(ctx, `UPDATE host_placement SET reissue = reissued WHERE reissue > reissued AND host IN `+in, l.values...); err != nil {
			return fmt.Errorf("take back what was asked for: %w", err)
		}
		if _, err := tx.Exec(ctx, `UPDATE host SET identity_after = 0 WHERE identity_after >= generation AND id IN `+in, l.values...); err != nil {
			return fmt.Errorf("take back what was asked for: %w", err)
		}
		if err := s.Move(ctx, tx, Move{}, part); err != nil {
			return err
		}
	}
	return nil
}

// Presented are the names of hosts of a pool with a placement that is under one of the issuers, up to limit.
func Presented(ctx context.Context, tx *db.Tx, pool string, fingerprints []string, limit int) ([]Lack, error) {
	if len(fingerprints) == 0 {
		return nil, nil
	}
	var l arguments
	query := `SELECT h.id, h.name, h.state, p.name, p.issuer FROM host_placement p JOIN host h ON h.id = p.host
		WHERE p.issuer <> '' AND p.issuer IN ` + l.all(fingerprints) + ` AND h.removed_at = 0 AND h.pool = ` + l.add(pool) + ` ORDER BY h.name LIMIT ` + l.add(int64(limit))
	var found []Lack
	err := each(ctx, tx, query, l.values, func(scan func(...any) error) error {
		var k Lack
		if err := scan(&k.ID, &k.Name, &k.State, &k.Placement, &k.Issuer); err != nil {
			return err
		}
		found = append(found, k)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read who presents what in pool %s: %w", pool, err)
	}
	return found, nil
}

// Machines are the principals of the pool's hosts among those given.
func Machines(ctx context.Context, tx *db.Tx, ids []string) (map[string]string, error) {
	principals := make(map[string]string, len(ids))
	for part := range slices.Chunk(ids, Moved) {
		var l arguments
		err := each(ctx, tx, `SELECT id, principal FROM host WHERE id IN `+l.all(part), l.values, func(scan func(...any) error) error {
			var id, principal string
			if err := scan(&id, &principal); err != nil {
				return err
			}
			principals[id] = principal
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read the machines of hosts: %w", err)
		}
	}
	return principals, nil
}

// Held is a placement with its names, as one who looks at it from elsewhere needs it.
type Held struct {
	ID, Host  string
	Addresses []string // of the host; its name where it has none
	Placement client.Placement
}

// Holdings are the placements of hosts, at most Moved, with what was observed of them.
func Holdings(ctx context.Context, tx *db.Tx, ids []string) ([]Held, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	var l arguments
	in := l.all(ids)
	names, addresses := map[string]string{}, map[string][]string{}
	err := each(ctx, tx, `SELECT id, name FROM host WHERE removed_at = 0 AND id IN `+in, l.values, func(scan func(...any) error) error {
		var id, name string
		err := scan(&id, &name)
		names[id] = name
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read hosts: %w", err)
	}
	err = each(ctx, tx, `SELECT host, name FROM host_name WHERE kind = 'ip' AND host IN `+in+` ORDER BY host, position`, l.values, func(scan func(...any) error) error {
		var id, address string
		err := scan(&id, &address)
		addresses[id] = append(addresses[id], address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the addresses of hosts: %w", err)
	}
	placements, err := readPlacements(ctx, tx, `host IN `+in, l.values...)
	if err != nil {
		return nil, err
	}
	var held []Held
	for _, p := range placements {
		name, there := names[p.host]
		if !there {
			continue
		}
		h := Held{ID: p.host, Host: name, Addresses: addresses[p.host], Placement: p.Placement}
		if len(h.Addresses) == 0 {
			h.Addresses = []string{name}
		}
		held = append(held, h)
	}
	return held, nil
}

// Parametrize changes parameters of a host's placements, by the placement's name; an empty value takes the parameter away. What
// is placed there is asked for anew under the number, and the placement is pending until its agent has reported. Move tells the
// host.
func Parametrize(ctx context.Context, tx *db.Tx, id string, changes map[string]map[string]string, reissue int64) error {
	placements, err := readPlacements(ctx, tx, `host = $1`, id)
	if err != nil {
		return err
	}
	for _, p := range placements {
		change, ok := changes[p.Name]
		if !ok {
			continue
		}
		parameters := map[string]string{}
		for name, value := range p.Parameters {
			parameters[name] = value
		}
		for name, value := range change {
			if value == "" {
				delete(parameters, name)
			} else {
				parameters[name] = value
			}
		}
		text, err := json.Marshal(parameters)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE host_placement SET parameters = $1, state = 'pending', reissue = $2 WHERE host = $3 AND name = $4`,
			string(text), reissue, id, p.Name)
		if err != nil {
			return fmt.Errorf("change the parameters of placement %s: %w", p.Name, err)
		}
	}
	return nil
}

// MachinesOf are the principals of the hosts of a pool.
func MachinesOf(ctx context.Context, tx *db.Tx, pool string) (map[string]bool, error) {
	machines := map[string]bool{}
	err := each(ctx, tx, `SELECT principal FROM host WHERE pool = $1 AND removed_at = 0`, []any{pool}, func(scan func(...any) error) error {
		var principal string
		err := scan(&principal)
		machines[principal] = true
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the machines of pool %s: %w", pool, err)
	}
	return machines, nil
}
