package host

import (
	"context"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/cert"
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
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		if r, err = ofPrincipal(ctx, tx, by.ID); err != nil || r == nil {
			return err
		}
		dns, addresses, err = namesOf(ctx, tx, r.id)
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
	authorities, err := s.authorities(ctx, of)
	if err != nil {
		return nil, err
	}
	return map[string][]string{"host.names": dns, "host.addresses": addresses, "host.pool": {of}, "host.authorities": authorities}, nil
}

// AdmitHost refuses, in the transaction that would record what a host gets, a host that was removed, replaced or found
// suspect since its order was judged.
func (s *Service) AdmitHost(ctx context.Context, tx *db.Tx, by access.Principal) error {
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
	return nil
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

// authorities are the common names of a pool's roots.
func (s *Service) authorities(ctx context.Context, of string) ([]string, error) {
	issuers, err := s.issuersOf(ctx, of)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, root := range anchors(issuers) {
		if name, err := cert.ParseNameDER(root.RawSubject); err == nil {
			names = append(names, name.Attributes(cert.OIDCommonName)...)
		}
	}
	return names, nil
}
