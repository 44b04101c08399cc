package host

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"chancery/client"
	"chancery/internal/agent/recipe"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// announces reports whether a recipe has certificates that peers pin; of a host's own recipe it is not known, so it may.
func (s *Service) announces(name string) bool {
	known, ok := s.Recipe(name)
	return !ok || slices.ContainsFunc(known.Certificates, func(c recipe.Certificate) bool { return c.Announce != "" })
}

// announcedFor is the purpose under which peers pin a placement's certificate: recipe and parameters say it. A host's own
// recipe says it to the host alone, and its certificates are pinned for general purposes.
func (s *Service) announcedFor(order client.PlacementOrder) string {
	if known, ok := s.Recipe(order.Recipe); ok {
		if purposes := known.Announces(order.Parameters); len(purposes) > 0 {
			return purposes[0]
		}
	}
	return client.TrustGeneral
}

// mayPin reports whether a recipe has files of pinned certificates, for whatever purpose; known is false of a host's own.
func (s *Service) mayPin(name string) (may, known bool) {
	r, known := s.Recipe(name)
	if !known {
		return false, false
	}
	return slices.ContainsFunc(r.Files, func(f recipe.File) bool { return slices.Contains(f.Content, "pinned") }), true
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

// Lacking finds the placements of joined hosts that pin a purpose and were not seen to hold a certificate, up to limit. Which
// pin it is known of the built-in recipes and their parameters; a placement of a host's own recipe does where it holds another
// of the purpose. One on which nothing is placed yet refuses nobody, and begins with all that is pinned by then: two hosts that
// are new do not wait for each other.
func (s *Service) Lacking(ctx context.Context, tx *db.Tx, p trust.Pinning, limit int) ([]trust.Presented, error) {
	recipes, own, err := s.pinning(ctx, tx, p.Pool)
	if err != nil || len(recipes)+len(own) == 0 {
		return nil, err
	}
	args := []any{p.Pool}
	var places []string
	for _, one := range db.Padded(append(recipes, own...)) {
		args = append(args, one)
		places = append(places, fmt.Sprintf("$%d", len(args)))
	}
	rows, err := tx.Query(ctx, `SELECT host.name, host_placement.name, host_placement.recipe, host_placement.parameters, host_placement.observed
		FROM host_placement JOIN host ON host.id = host_placement.host
		WHERE host.pool = $1 AND host.state = 'joined' AND host.removed_at = 0 AND host_placement.recipe IN (`+strings.Join(places, ", ")+`)
		ORDER BY host.name, host_placement.position`, args...)
	if err != nil {
		return nil, fmt.Errorf("find who lacks a pinned certificate: %w", err)
	}
	defer rows.Close()
	var found []trust.Presented
	for rows.Next() && len(found) < limit {
		var at trust.Presented
		var name, parameters, observed string
		if err := rows.Scan(&at.Host, &at.Placement, &name, &parameters, &observed); err != nil {
			return nil, fmt.Errorf("find who lacks a pinned certificate: %w", err)
		}
		var given map[string]string
		if err := json.Unmarshal([]byte(parameters), &given); err != nil {
			return nil, fmt.Errorf("read the parameters of %s at %s: %w", at.Placement, at.Host, err)
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
		holds := slices.Contains(seen.Pinned, p.Fingerprint)
		known, ours := s.Recipe(name)
		pins := ours && known.Pins(given) == p.Purpose || !ours && slices.ContainsFunc(seen.Pinned, func(one string) bool { return slices.Contains(p.Others, one) })
		if pins && !holds {
			found = append(found, at)
		}
	}
	return found, rows.Err()
}

// pinning are the recipes in use in a pool that may pin certificates, and those of hosts of which it is not known.
func (s *Service) pinning(ctx context.Context, tx *db.Tx, pool string) (recipes, own []string, err error) {
	err = each(ctx, tx, `SELECT DISTINCT host_placement.recipe FROM host_placement JOIN host ON host.id = host_placement.host
		WHERE host.pool = $1 AND host.state = 'joined' AND host.removed_at = 0 ORDER BY host_placement.recipe`, []any{pool}, func(scan func(...any) error) error {
		var name string
		if err := scan(&name); err != nil {
			return err
		}
		switch may, known := s.mayPin(name); {
		case may:
			recipes = append(recipes, name)
		case !known:
			own = append(own, name)
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("find what pins certificates in pool %s: %w", pool, err)
	}
	return recipes, own, nil
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
		if text := waits[p.Name]; text != "" {
			p.Observed.Message = strings.TrimPrefix(p.Observed.Message+"; "+text, "; ")
		}
	}
	return nil
}
