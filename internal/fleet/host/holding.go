package host

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"chancery/client"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// announces reports whether a placement has certificates that peers pin, and for what purpose. What a host's own recipe announces
// is the host's word, and pinning lets in whoever is pinned: so the operator's order says it, as it does of the built-in recipes,
// by the parameters pinned and purpose.
func (s *Service) announces(p client.PlacementOrder) (purpose string, may bool) {
	known, ok := s.Recipe(p.Recipe)
	if !ok {
		return cmp.Or(p.Parameters["purpose"], client.TrustGeneral), p.Parameters["pinned"] == "true"
	}
	if purposes := known.Announces(p.Parameters); len(purposes) > 0 {
		return purposes[0], true
	}
	return "", false
}

// pins is the purpose of the pinned certificates that a placement holds, empty where it holds none; known is false of a host's
// own recipe.
func (s *Service) pins(name, parameters string) (purpose string, known bool, err error) {
	r, ok := s.Recipe(name)
	if !ok {
		return "", false, nil
	}
	var values map[string]string
	if err := json.Unmarshal([]byte(parameters), &values); err != nil {
		return "", true, fmt.Errorf("read the parameters of a placement of %s: %w", name, err)
	}
	return r.Pins(values), true, nil
}

// Presenting finds the placements of a pool's hosts that were seen with certificates of these issuers, by the hexadecimal
// SHA-256 of theirs, up to limit.
func (s *Service) Presenting(ctx context.Context, tx *db.Tx, pool string, issuers []string, limit int) ([]trust.Presented, error) {
	if len(issuers) == 0 {
		return nil, nil
	}
	args := []any{pool}
	var places []string
	for _, one := range db.Padded(issuers) {
		args = append(args, one)
		places = append(places, fmt.Sprintf("$%d", len(args)))
	}
	args = append(args, int64(limit))
	var found []trust.Presented
	err := each(ctx, tx, `SELECT host.name, host_placement.name FROM host_placement JOIN host ON host.id = host_placement.host
		WHERE host.pool = $1 AND host.removed_at = 0 AND host_placement.issuer IN (`+strings.Join(places, ", ")+`)
		ORDER BY host.name, host_placement.position LIMIT $`+fmt.Sprint(len(args)), args, func(scan func(...any) error) error {
		var p trust.Presented
		err := scan(&p.Host, &p.Placement)
		found = append(found, p)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find who presents certificates in pool %s: %w", pool, err)
	}
	return found, nil
}

// Lacking finds, of each certificate, the placements of joined hosts that pin its purpose and were not seen to hold it, up to
// limit. Which pin it is known of the built-in recipes and their parameters; a placement of a host's own recipe does where it
// holds another of the purpose. One on which nothing is placed yet refuses nobody, and begins with all that is pinned by then:
// two hosts that are new do not wait for each other. Nor is one waited for whose agent has said since its certificate ended that
// this is what is placed: it serves nobody, and may itself wait for others. Nor are those that an operator said are absent, and
// those that a rollout at work on the pool does not wait for.
func (s *Service) Lacking(ctx context.Context, tx *db.Tx, p trust.Pinning, limit int) (map[string][]trust.Presented, error) {
	kinds, err := s.pinning(ctx, tx, p)
	if err != nil || len(kinds) == 0 {
		return nil, err
	}
	var excepted map[string]bool
	if s.Excepted != nil {
		if excepted, err = s.Excepted(ctx, tx, p.Pool); err != nil {
			return nil, err
		}
	}
	args := []any{p.Pool}
	var places []string
	for _, kind := range db.Padded(kinds) {
		args = append(args, kind.recipe, kind.parameters)
		places = append(places, fmt.Sprintf("($%d, $%d)", len(args)-1, len(args)))
	}
	rows, err := tx.Query(ctx, `SELECT host.id, host.name, host_placement.name, host_placement.recipe, host_placement.observed FROM host_placement
		JOIN host ON host.id = host_placement.host
		WHERE host.pool = $1 AND host.state = 'joined' AND host.removed_at = 0 AND host.absent = ''
		AND NOT (host_placement.not_after > 0 AND host_placement.not_after <= host_placement.observed_at) AND (host_placement.recipe, host_placement.parameters) IN
		(VALUES `+strings.Join(places, ", ")+`) ORDER BY host.name, host_placement.position`, args...)
	if err != nil {
		return nil, fmt.Errorf("find who lacks a pinned certificate: %w", err)
	}
	defer rows.Close()
	found, left := map[string][]trust.Presented{}, len(p.Fingerprints)
	for left > 0 && rows.Next() {
		var at trust.Presented
		var id, name, observed string
		if err := rows.Scan(&id, &at.Host, &at.Placement, &name, &observed); err != nil {
			return nil, fmt.Errorf("find who lacks a pinned certificate: %w", err)
		}
		if excepted[id] {
			continue
		}
		var seen struct {
			Pinned []string          `json:"pinned"`
			Files  []json.RawMessage `json:"files"` // what is placed, whatever it is
		}
		if observed != "" {
			if err := json.Unmarshal([]byte(observed), &seen); err != nil {
				return nil, fmt.Errorf("read what was observed of %s at %s: %w", at.Placement, at.Host, err)
			}
		}
		if len(seen.Files) == 0 {
			continue
		}
		_, known := s.Recipe(name)
		pins := known || slices.ContainsFunc(seen.Pinned, func(one string) bool { return slices.Contains(p.Others, one) })
		if !pins {
			continue
		}
		held := make(map[string]bool, len(seen.Pinned))
		for _, one := range seen.Pinned {
			held[one] = true
		}
		for _, one := range p.Fingerprints {
			if held[one] || len(found[one]) == limit || p.Own[one] == (trust.Own{Host: id, Placement: at.Placement}) {
				continue
			}
			if found[one] = append(found[one], at); len(found[one]) == limit {
				left--
			}
		}
	}
	return found, rows.Err()
}

// Touched is another number whenever a host of a pool reported something new, or what hosts shall hold changed.
func (s *Service) Touched(ctx context.Context, tx *db.Tx, pool string) (int64, error) {
	var reported, changed int64
	err := tx.QueryRow(ctx, `SELECT CAST(COALESCE(SUM(host_placement.observed_at % 1000000000000), 0) AS BIGINT), COALESCE(MAX(host.change), 0)
		FROM host LEFT JOIN host_placement ON host_placement.host = host.id WHERE host.pool = $1`, pool).Scan(&reported, &changed)
	if err != nil {
		return 0, fmt.Errorf("see whether anything changed in pool %s: %w", pool, err)
	}
	return reported + changed, nil
}

// kind is how placements look alike.
type kind struct{ recipe, parameters string }

// pinning are the kinds of placements in a pool that pin a purpose, and those of hosts' own recipes, of which it is not known.
func (s *Service) pinning(ctx context.Context, tx *db.Tx, p trust.Pinning) (kinds []kind, err error) {
	err = each(ctx, tx, `SELECT DISTINCT host_placement.recipe, host_placement.parameters FROM host_placement JOIN host ON host.id = host_placement.host
		WHERE host.pool = $1 AND host.state = 'joined' AND host.removed_at = 0`, []any{p.Pool}, func(scan func(...any) error) error {
		var k kind
		if err := scan(&k.recipe, &k.parameters); err != nil {
			return err
		}
		purpose, known, err := s.pins(k.recipe, k.parameters)
		if !known || purpose == p.Purpose {
			kinds = append(kinds, k)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find what pins certificates in pool %s: %w", p.Pool, err)
	}
	return kinds, nil
}

// NameOf is a host's name by its ID; the ID itself where it is gone.
func (s *Service) NameOf(ctx context.Context, tx *db.Tx, id string) (string, error) {
	r, err := find(ctx, tx, `host.id = $1`, id)
	if err != nil || r == nil {
		return id, err
	}
	return r.name, nil
}

// TrustCRL is the newest CRL of a foreign trust anchor of the calling host's pool, in DER.
func (s *Service) TrustCRL(ctx context.Context, by access.Principal, entry string) ([]byte, error) {
	if err := by.May(access.ActAsHost); err != nil {
		return nil, err
	}
	var r *row
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		r, err = ofPrincipal(ctx, tx, by.ID)
		return err
	})
	if err != nil {
		return nil, err
	}
	if r == nil || !r.removed.IsZero() {
		return nil, noHost(by)
	}
	return s.Trust.CRL(ctx, r.pool, entry)
}

// addWaits says of placements whose new certificate waits for others who pin it which ones those are.
func (s *Service) addWaits(ctx context.Context, tx *db.Tx, r *row, found *client.Host) error {
	waits, err := s.Trust.Waits(ctx, tx, r.id)
	if err != nil {
		return err
	}
	for i := range found.Placements {
		p := &found.Placements[i]
		text := waits[p.Name]
		if text == "" && len(p.Observed.Announced) > 0 {
			if text, err = s.stays(ctx, tx, r.pool, p.PlacementOrder); err != nil {
				return err
			}
		}
		if text != "" {
			p.Observed.Message = strings.TrimPrefix(p.Observed.Message+"; "+text, "; ")
		}
	}
	return nil
}
