package host

import (
	"context"
	"slices"
	"strings"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// Entitlements are the values of the variables that profiles may use: the names and addresses of a host, its pool, and the
// common names of its pool's roots. A suspect host is refused. Others than hosts are entitled to their own name.
func (s *Service) Entitlements(ctx context.Context, by access.Principal) (map[string][]string, error) {
	if by.Kind != access.KindHost {
		return map[string][]string{"host.names": {by.Name}}, nil
	}
	var r *row
	var dns, addresses []string
	var may allowance
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		if r, err = ofPrincipal(ctx, tx, by.ID); err != nil || r == nil {
			return err
		}
		if dns, addresses, err = namesOf(ctx, tx, r.id); err != nil {
			return err
		}
		may, err = s.allowed(ctx, tx, r)
		return err
	})
	if err != nil {
		return nil, err
	}
	of := pool.Default
	if r == nil {
		dns = []string{by.Name} // a principal of this kind that was made by hand
	} else {
		of = r.pool
	}
	if r != nil && r.state == client.HostSuspect {
		return nil, suspect(r)
	}
	authorities, err := s.Trust.Authorities(ctx, of)
	if err != nil {
		return nil, err
	}
	entitled := map[string][]string{"host.names": dns, "host.addresses": addresses, "host.pool": {of}, "host.authorities": authorities}
	if r != nil {
		entitled[ca.HostProfiles], entitled[ca.HostPlacements] = may.profiles, may.placements
	}
	return entitled, nil
}

// allowance is which profiles a host may have certificates of, and for what.
type allowance struct {
	profiles   []string
	placements []string // "nginx (server)", for refusals
}

// allowed are the profiles of a host's placements, and those that an operator listed for it: a recipe that is a file of the
// host must not say itself what the host may have.
func (s *Service) allowed(ctx context.Context, tx *db.Tx, r *row) (a allowance, err error) {
	placements, err := readPlacements(ctx, tx, `host = $1`, r.id)
	if err != nil {
		return a, err
	}
	for _, p := range placements {
		var profiles []string
		if known, ok := s.Recipe(p.Recipe); ok {
			profiles = known.Profiles(p.Parameters)
		}
		a.profiles = append(a.profiles, profiles...)
		text := "placement " + p.Name
		if len(profiles) > 0 {
			text += " (" + strings.Join(profiles, ", ") + ")"
		} else {
			text += " (of the host's own recipe, which allows nothing by itself)"
		}
		a.placements = append(a.placements, text)
	}
	if len(r.profiles) > 0 {
		a.profiles = append(a.profiles, r.profiles...)
		a.placements = append(a.placements, "and is allowed "+strings.Join(r.profiles, ", "))
	}
	return a, nil
}

// AdmitHost refuses, in the transaction that would record what a host gets of a profile, a host that was removed, replaced or
// found suspect since its order was judged, or on which nothing is of that profile any more.
func (s *Service) AdmitHost(ctx context.Context, tx *db.Tx, by access.Principal, profile string) error {
	r, err := ofPrincipal(ctx, tx, by.ID)
	switch {
	case err != nil:
		return err
	case r == nil:
		if _, err := access.Lookup(ctx, tx, by.ID); err != nil {
			return noHost(by)
		}
		return nil
	case !r.removed.IsZero():
		return noHost(by)
	case r.state == client.HostSuspect:
		return suspect(r)
	}
	may, err := s.allowed(ctx, tx, r)
	if err != nil {
		return err
	}
	return ca.AdmitProfile(r.name, profile, may.profiles, may.placements)
}

// PoolAndNames are the pool of a host and its names and addresses, in the caller's transaction. A machine that is no host's any more has none.
func (s *Service) PoolAndNames(ctx context.Context, tx *db.Tx, by access.Principal) (of string, names []string, err error) {
	r, err := ofPrincipal(ctx, tx, by.ID)
	if err != nil || r == nil || !r.removed.IsZero() {
		return "", nil, err
	}
	dns, addresses, err := namesOf(ctx, tx, r.id)
	return r.pool, slices.Concat(dns, addresses), err
}

// mayKeep refuses all but administrators what decides who may have certificates of a pool of the authority's own database: its hosts, their
// names and what is placed on them, and the tokens by which machines become those hosts.
func mayKeep(by access.Principal, name, of string) error {
	if !ca.OfDatabase(of) || by.Has(access.Admin) {
		return nil
	}
	return fault.New(fault.Denied, "host %s is of pool %q, whose certificates let their holders in at the authority's own database; an administrator adds its "+
		"hosts, changes what they may have and makes their join tokens, and %s is none", name, of, by.Actor())
}

// CheckNoHost refuses a principal that is a machine of a host: it ends with its host, and what it holds with it.
func (s *Service) CheckNoHost(ctx context.Context, p access.Principal) error {
	if p.Kind != access.KindHost {
		return nil
	}
	return s.DB.ReadSnapshot(ctx, func(tx *db.Tx) error {
		r, err := ofPrincipal(ctx, tx, p.ID)
		if err != nil || r == nil {
			return err
		}
		return fault.New(fault.Conflict, "%s is a host, and is removed as one", p.Name).WithHint("chancery host remove %s", p.Name)
	})
}
