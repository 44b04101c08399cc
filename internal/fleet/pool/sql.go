package pool

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// poolName leaves room for "-root" in a URL's label.
var poolName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,54}[a-z0-9])?$`)

// insert records the pool. A pool that is there and has no issuer yet was cut short when it was added: adding it again
// goes on from there, and so does a call that is repeated with its idempotency key.
func (s *Service) insert(ctx context.Context, by access.Principal, idempotencyKey string, spec *Spec) error {
	if err := by.May(access.ManagePools); err != nil {
		return err
	}
	if err := checkName(spec.Name); err != nil {
		return err
	}
	if spec.Organization == "" {
		set, err := s.settings.Get(ctx)
		if err != nil {
			return err
		}
		spec.Organization = set.Organization
	}
	request, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	now := time.Now()
	return s.db.Tx(ctx, func(tx *db.Tx) error {
		if idempotencyKey != "" {
			hash := once.Hash([]byte("pool.add"), request)
			_, again, err := once.Lookup(ctx, tx, by.ID, idempotencyKey, hash)
			if err != nil || again {
				return err
			}
			if err := once.Remember(ctx, tx, by.ID, idempotencyKey, hash, []byte(spec.Name), now); err != nil {
				return err
			}
		}
		if added, err := s.insertIn(ctx, tx, by, spec, now); err != nil || added {
			return err
		}
		return s.unfinished(ctx, tx, spec.Name)
	})
}

// unfinished refuses a name that is taken by a pool that has its issuer.
func (s *Service) unfinished(ctx context.Context, tx *db.Tx, name string) error {
	var issuers int64
	if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM issuer WHERE pool = $1`, name).Scan(&issuers); err != nil {
		return err
	}
	if issuers > 0 {
		return fault.New(fault.Conflict, "there is a pool %q already", name).WithHint("chancery pool show %s", name)
	}
	return nil
}

// Pool returns one pool.
func (s *Service) Pool(ctx context.Context, name string) (*Pool, error) {
	var pools []*Pool
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		pools, err = read(ctx, tx, ` WHERE name = $1`, name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("load pool %s: %w", name, err)
	}
	if len(pools) == 0 {
		return nil, fault.New(fault.NotFound, "there is no pool %q", name).WithHint("chancery pool list")
	}
	return pools[0], s.fill(ctx, pools)
}

// Pools lists the pools by name, at most limit, those after the given name.
func (s *Service) Pools(ctx context.Context, by access.Principal, after string, limit int) (pools []*Pool, next string, err error) {
	if err := by.May(access.ReadPools); err != nil {
		return nil, "", err
	}
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		pools, err = read(ctx, tx, ` WHERE name > $1 ORDER BY name LIMIT $2`, after, int64(limit)+1)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("list pools: %w", err)
	}
	if len(pools) > limit {
		pools = pools[:limit]
		next = pools[limit-1].Name
	}
	return pools, next, s.fill(ctx, pools)
}

func read(ctx context.Context, tx *db.Tx, where string, args ...any) ([]*Pool, error) {
	rows, err := tx.Query(ctx, `SELECT name, organization, created_at FROM pool`+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var pools []*Pool
	for rows.Next() {
		var p Pool
		var created int64
		if err := rows.Scan(&p.Name, &p.Organization, &created); err != nil {
			return nil, err
		}
		p.CreatedAt = db.FromMicros(created)
		pools = append(pools, &p)
	}
	return pools, rows.Err()
}

// fill adds the roots and issuers: the default issuer, or the one that waits, and the root above it; before there is one,
// the newest root that is not retired.
func (s *Service) fill(ctx context.Context, pools []*Pool) error {
	issuers, err := s.ca.Issuers(ctx)
	if err != nil {
		return err
	}
	byID := make(map[string]*ca.Issuer, len(issuers))
	for _, i := range issuers {
		byID[i.ID] = i
	}
	for _, p := range pools {
		for _, i := range issuers {
			if i.Pool != p.Name || i.State == ca.IssuerRetired {
				continue
			}
			switch {
			case i.Default:
				p.Issuer = i
			case i.Root() && (p.Root == nil || i.CreatedAt.After(p.Root.CreatedAt)):
				p.Root = i
			case i.State == ca.IssuerPending && p.Issuer == nil:
				p.Issuer = i
			}
		}
		if above := rootAbove(byID, p.Issuer); above != nil {
			p.Root = above
		}
		// An imported CA may be root and issuer in one.
		if p.Root == nil && p.Issuer != nil && p.Issuer.Root() {
			p.Root = p.Issuer
		}
	}
	return nil
}

// rootAbove climbs from an issuer to its root; nil where that is an outside one.
func rootAbove(byID map[string]*ca.Issuer, i *ca.Issuer) *ca.Issuer {
	for steps := 0; i != nil && steps < 20; steps++ {
		if i.State == ca.IssuerActive && i.Root() {
			return i
		}
		i = byID[i.Parent]
	}
	return nil
}

// RecordIn adds a pool, if there is none of the name, in the transaction that brings its issuer in: where that is refused, no
// empty pool stays.
func (s *Service) RecordIn(ctx context.Context, tx *db.Tx, by access.Principal, name, organization string, now time.Time) error {
	if err := by.May(access.ManagePools); err != nil {
		return err
	}
	if err := checkName(name); err != nil {
		return err
	}
	_, err := s.insertIn(ctx, tx, by, &Spec{Name: name, Organization: organization}, now)
	return err
}

// insertIn writes the row of a pool with its event; false where there is one of the name.
func (s *Service) insertIn(ctx context.Context, tx *db.Tx, by access.Principal, spec *Spec, now time.Time) (bool, error) {
	n, err := tx.Exec(ctx, `INSERT INTO pool (name, organization, created_at) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING`,
		spec.Name, spec.Organization, db.Micros(now))
	if err != nil || n == 0 {
		return false, err
	}
	return true, s.audit.Append(ctx, tx, audit.Event{
		Time: now, Actor: by.Actor(), Action: "pool.add", Object: spec.Name, Detail: map[string]any{"organization": spec.Organization, "online": spec.Online},
	})
}

func checkName(name string) error {
	if !poolName.MatchString(name) {
		return fault.New(fault.Invalid, "pool name %q is not 1 to 56 lower-case letters, digits and inner hyphens", name)
	}
	return nil
}

// Record adds a pool whose issuer is made or imported apart: an outside root's, or a CA that existed already.
func (s *Service) Record(ctx context.Context, by access.Principal, name, organization string) error {
	if err := s.insert(ctx, by, "", &Spec{Name: name, Organization: organization}); err != nil {
		return fmt.Errorf("add pool %s: %w", name, err)
	}
	return nil
}
