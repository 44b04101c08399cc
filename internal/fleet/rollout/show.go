package rollout

import (
	"context"
	"encoding/pem"
	"fmt"
	"slices"
	"strconv"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// Show returns a rollout with how far it is and who holds it; an empty ID means the one that runs, or else the newest.
func (s *Service) Show(ctx context.Context, by access.Principal, id string) (*client.Rollout, error) {
	if err := by.May(access.ReadHosts); err != nil {
		return nil, err
	}
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	var out *client.Rollout
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		r, err := one(ctx, tx, id)
		if err != nil {
			return err
		}
		out = r.wire()
		if err := addWaves(ctx, tx, r, out); err != nil {
			return err
		}
		if err := addExcepted(ctx, tx, r, out); err != nil {
			return err
		}
		r.addRequest(issuers, out)
		if r.over() || r.stage == client.StagePrepare {
			return nil
		}
		out.Holding, err = s.holding(ctx, tx, r, issuers, now)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("show rollout %s: %w", id, err)
	}
	return out, nil
}

// List lists rollouts, the newest first, of all pools or of one; after is the key that the page before gave as next.
func (s *Service) List(ctx context.Context, by access.Principal, pool, after string, limit int) (found []client.Rollout, next string, err error) {
	if err := by.May(access.ReadHosts); err != nil {
		return nil, "", err
	}
	if limit < 1 || limit > 1000 {
		return nil, "", fault.New(fault.Invalid, "a page of %d rollouts was asked for; from 1 to 1000 can be had", limit)
	}
	before := int64(1) << 62
	if after != "" {
		if before, err = strconv.ParseInt(after, 10, 64); err != nil {
			return nil, "", fault.New(fault.Invalid, "page key %.40q is not one that this list returned", after).At("query after")
		}
	}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		found, next = nil, ""
		page, err := read(ctx, tx, `WHERE number < $1 AND ($2 = '' OR pool = $2) ORDER BY number DESC LIMIT $3`, before, pool, int64(limit+1))
		if err != nil {
			return err
		}
		if len(page) > limit {
			page = page[:limit]
			next = page[limit-1].id
		}
		for _, r := range page {
			out := r.wire()
			if err := addWaves(ctx, tx, r, out); err != nil {
				return err
			}
			found = append(found, *out)
		}
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("list rollouts: %w", err)
	}
	return found, next, nil
}

func (r *row) wire() *client.Rollout {
	return &client.Rollout{
		ID: r.id, Kind: r.kind, Pool: r.pool, State: r.state, Backwards: r.backwards, Compromised: r.spec.Compromised, Stage: r.stage, Wave: int(r.wave),
		Message: r.message, Plan: r.plan.Said, Actor: r.actor, CreatedAt: r.created, ChangedAt: r.changed, EndedAt: r.ended,
	}
}

// addWaves counts the hosts that are waited for.
func addWaves(ctx context.Context, tx *db.Tx, r *row, out *client.Rollout) error {
	for _, text := range r.plan.Waves {
		out.Waves = append(out.Waves, client.RolloutWave{Text: text})
	}
	rows, err := tx.Query(ctx, `SELECT wave, COUNT(*), SUM(CASE WHEN done_at > 0 THEN 1 ELSE 0 END) FROM rollout_host
		WHERE rollout = $1 AND because = '' GROUP BY wave`, r.id)
	if err != nil {
		return fmt.Errorf("count the hosts of rollout %s: %w", r.id, err)
	}
	defer rows.Close()
	for rows.Next() {
		var wave, hosts, done int64
		if err := rows.Scan(&wave, &hosts, &done); err != nil {
			return fmt.Errorf("count the hosts of rollout %s: %w", r.id, err)
		}
		if wave > 0 && int(wave) <= len(out.Waves) {
			out.Waves[wave-1].Hosts, out.Waves[wave-1].Done = int(hosts), int(done)
		}
	}
	return rows.Err()
}

// addExcepted names what is not waited for.
func addExcepted(ctx context.Context, tx *db.Tx, r *row, out *client.Rollout) error {
	left, err := members(ctx, tx, r, ` AND because <> '' ORDER BY name LIMIT $2`, int64(maxNamed))
	if err != nil {
		return err
	}
	for _, m := range left {
		out.Excepted = append(out.Excepted, client.RolloutHost{Host: m.name, Message: m.because})
	}
	serials := map[string]bool{}
	for serial := range r.plan.Serials {
		serials[serial] = true
	}
	for _, serial := range sorted(serials) {
		out.Excepted = append(out.Excepted, client.RolloutHost{Serial: serial, Message: r.plan.Serials[serial]})
	}
	return nil
}

// addRequest shows the request that waits for a root elsewhere.
func (r *row) addRequest(issuers []*ca.Issuer, out *client.Rollout) {
	if r.plan.Next == nil || !r.plan.Next.Outside || r.stage != client.StagePrepare || r.over() {
		return
	}
	out.Root, out.RootSubject = r.plan.Next.Parent, r.plan.Next.RootSubject
	i := slices.IndexFunc(issuers, func(i *ca.Issuer) bool { return i.Name == r.plan.Next.Issuer })
	if i >= 0 && issuers[i].State == ca.IssuerPending {
		out.CSR = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: issuers[i].CSR}))
	} else if i >= 0 && out.State == client.RolloutWaiting {
		out.State, out.Message = client.RolloutRunning, "" // it was signed, and the driver is about to see that
	}
}

// holding says who holds the present wave: hosts that were told and have not done it, or, where all have, who presents what the
// next stage takes away.
func (s *Service) holding(ctx context.Context, tx *db.Tx, r *row, issuers []*ca.Issuer, now time.Time) ([]client.RolloutHost, error) {
	held, waits, err := s.lacking(ctx, tx, r, `moved_at > 0`, now)
	if err == nil && !waits { // who was not told yet holds nothing, and is not read while somebody does
		_, waits, err = s.lacking(ctx, tx, r, `moved_at = 0`, now)
	}
	if err != nil {
		return nil, err
	}
	if !waits && r.last() && (r.next() == client.StageLeave || r.stage == client.StageLeave) && !r.spec.Compromised {
		return s.gate(ctx, tx, r, r.leaving(issuers), now)
	}
	return held, nil
}

// lacking names the hosts of the waves up to the present one that have not done what the stage wants; which of them is a condition
// upon rollout_host. waits is whether there are any.
func (s *Service) lacking(ctx context.Context, tx *db.Tx, r *row, which string, now time.Time) (held []client.RolloutHost, waits bool, err error) {
	open, err := members(ctx, tx, r, ` AND wave <= $2 AND done_at = 0 AND because = '' AND `+which+` ORDER BY wave, name`, r.wave)
	if err != nil {
		return nil, false, err
	}
	for part := range slices.Chunk(open, host.Moved) {
		found, err := s.Hosts.Lacks(ctx, tx, r.goal(), idsOf(part))
		if err != nil {
			return nil, false, err
		}
		for _, k := range found {
			if k.State == client.HostPending {
				continue // it has nothing, and gets all of it when it joins
			}
			waits = true
			if len(held) == maxNamed {
				return held, waits, nil
			}
			h := holds(k, r.goal(), now)
			others, err := s.Trust.Waits(ctx, tx, k.ID)
			if err != nil {
				return nil, false, err
			}
			if text := others[k.Placement]; text != "" {
				h.Message += "; " + text + "; chancery host set NAME --absent --because TEXT leaves one out"
			}
			held = append(held, h)
		}
	}
	return held, waits, nil
}
