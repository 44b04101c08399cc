package ca

import (
	"context"
	"slices"
	"strings"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// This file is what the pools of the authority's own database are held to: its servers let in whoever chains to their root, as what his name
// says, be it the superuser, and whoever is that may write himself any role. Pools share no root, so the pool of the issuer decides, whatever
// profile, template or request is asked for and whichever way.

const (
	// DatabasePool is the pool whose certificates nodes log in with at PostgreSQL, and whose hosts are its servers. While it does not
	// exist, nodes have no logins of their own: what their URL says is all.
	DatabasePool = "database"
	// ControlPool is the pool of what etcd and Patroni show, in which no node is: whoever is let in there rules the database's machines. An
	// authority whose members were set up without it has them in DatabasePool.
	ControlPool = "database-control"
	// LoginPrefix begins the names of nodes' own logins, and no other name in those pools.
	LoginPrefix = "chancery_"
)

// OfDatabase reports whether a pool's certificates let their holders in at the authority's own database.
func OfDatabase(pool string) bool { return pool == DatabasePool || pool == ControlPool }

// IssueLogin issues the certificate by which a node logs in at PostgreSQL as role. It is the only way to one. Who may call is the caller's to
// decide; by needs to be no principal that is stored.
func (c *CA) IssueLogin(ctx context.Context, by access.Principal, role string, order Order) (*Certificate, error) {
	order.Pool, order.Subject, order.login = DatabasePool, cert.CommonName(role).String(), true
	return c.Issue(ctx, by, order)
}

// applicant is who a certificate is for, as these pools judge him.
type applicant struct {
	access.Principal
	pool, names []string // of a host
	login       bool     // of IssueLogin
}

func (w *wish) applicant(by access.Principal, order *Order) *applicant {
	e := w.caller.Entitlements
	return &applicant{by, e[hostPool], slices.Concat(e["host.names"], e["host.addresses"]), order.login}
}

// mayAsk refuses whoever is neither an administrator nor the authority nor a host of the issuer's pool.
func (a *applicant) mayAsk(issuer *Issuer) error {
	if !OfDatabase(issuer.Pool) || a.Has(access.Admin) || isHost(a.Principal) && slices.Contains(a.pool, issuer.Pool) {
		return nil
	}
	return fault.New(fault.Denied, "%s gets no certificate of issuer %q: its pool, %q, lets its holders in at the authority's own database, and issues to "+
		"administrators, and to its own hosts for their own names", a.Actor(), issuer.Name, issuer.Pool).
		WithHint("an administrator's order passes; certificates for other databases are of another pool")
}

// mayBear refuses names: a host any that are not its own, whatever the profile grants, and everybody the names of nodes' logins.
func (a *applicant) mayBear(issuer *Issuer, f *facts) error {
	if !OfDatabase(issuer.Pool) {
		return nil
	}
	for _, rdn := range f.subject {
		for _, part := range rdn {
			if !part.Type.Equal(cert.OIDCommonName) {
				continue
			}
			if isLogin := strings.HasPrefix(strings.ToLower(part.Value), LoginPrefix); isLogin && !a.login {
				return fault.New(fault.Denied, "the common name %q is that of a node's login at the database, which begins with %s, and only a node gets one, when "+
					"it joins or renews it; a name without that passes for an administrator", part.Value, LoginPrefix)
			}
			if err := a.owns(issuer, part.Value); err != nil {
				return err
			}
		}
	}
	for _, name := range f.names {
		value := name.String()
		if kind, rest, _ := strings.Cut(value, ":"); kind == "dns" || kind == "ip" {
			value = rest
		}
		if err := a.owns(issuer, value); err != nil {
			return err
		}
	}
	return nil
}

func (a *applicant) owns(issuer *Issuer, name string) error {
	if !isHost(a.Principal) || slices.Contains(a.names, strings.ToLower(name)) {
		return nil
	}
	return fault.New(fault.Denied, "%q is no name of host %s, and pool %q issues to its hosts for their own names only: %s would pass", name, a.Name,
		issuer.Pool, strings.Join(a.names, ", ")).WithHint("chancery host set %s --dns NAME, which an administrator does", a.Name)
}

// admitToDatabase judges again, in the transaction that records it, what an issuer of these pools signed: by the roles that a person has
// now, and the names of a host.
func (c *CA) admitToDatabase(ctx context.Context, tx *db.Tx, s *signed) error {
	issuer := s.certificate.Issuer
	if !OfDatabase(issuer.Pool) {
		return nil
	}
	a := &applicant{Principal: s.requester, login: s.login}
	switch {
	case isHost(s.requester):
		if c.hostNames == nil {
			break // then a host is of no pool
		}
		pool, names, err := c.hostNames(ctx, tx, s.requester)
		if err != nil {
			return err
		}
		a.pool, a.names = []string{pool}, names
	case !s.requester.Created.IsZero(): // others are no stored principals: a node in its own name
		now, err := access.Lookup(ctx, tx, s.requester.ID)
		if fault.Is(err, fault.NotFound) {
			return fault.New(fault.Denied, "%s, who ordered a certificate of pool %q, is no longer known", s.requester.Actor(), issuer.Pool)
		}
		if err != nil {
			return err
		}
		a.Principal = now
	}
	if err := a.mayAsk(issuer); err != nil {
		return err
	}
	return a.mayBear(issuer, s.certificate.read())
}

// noTwin refuses twins of these pools: PostgreSQL and etcd go by the name and read no CRL, so a twin would be let in as what it is one of.
func noTwin(issuer *Issuer) error {
	if !OfDatabase(issuer.Pool) {
		return nil
	}
	return fault.New(fault.Denied, "issuer %q is of pool %q, whose certificates let their holders in at the authority's own database, which reads no CRL: "+
		"a twin would be let in; of issuers of other pools twins can be had", issuer.Name, issuer.Pool)
}
