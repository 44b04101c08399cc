package host

import (
	"context"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// maxCarriers bounds the certificates that are looked at for one name, or of one host.
const maxCarriers = 1000

// former are the certificates of a host's machine with names that the host no longer has.
func (r *row) former(ctx context.Context, tx *db.Tx, now time.Time) ([]ca.Carrier, error) {
	dns, addresses, err := namesOf(ctx, tx, r.id)
	if err != nil {
		return nil, err
	}
	held, err := ca.CarriersOf(ctx, tx, r.principal, now, maxCarriers)
	if err != nil {
		return nil, err
	}
	var former []ca.Carrier
	for _, c := range held {
		c.Names = slices.DeleteFunc(c.Names, func(name string) bool { return slices.Contains(dns, name) || slices.Contains(addresses, name) })
		if len(c.Names) > 0 {
			former = append(former, c)
		}
	}
	return former, nil
}

// revokeFormer revokes what a host's machine has of names that the host no longer has.
func (s *Service) revokeFormer(ctx context.Context, tx *db.Tx, by access.Principal, r *row, now time.Time) error {
	former, err := r.former(ctx, tx, now)
	if err != nil {
		return err
	}
	for _, c := range former {
		if err := s.CA.RevokeSerial(ctx, tx, c.Ref, crl.Superseded, by.Actor(), now); err != nil {
			return err
		}
	}
	return nil
}

// revokeReplaced revokes the certificate that a placement had, where the host was seen with another one in its place and the
// old one has names that the host no longer has: nothing presents it, and until it ended, whoever has its key could pose as
// whoever gets the names. A placement's further certificates, which are not reported, stay good until they end or are revoked.
func (s *Service) revokeReplaced(ctx context.Context, tx *db.Tx, by access.Principal, r *row, o observation, now time.Time) (bool, error) {
	inUse := o.State == client.PlacementServed || o.State == client.PlacementPlaced
	if !inUse || o.before == "" || o.Serial == "" || o.before == o.Serial || o.State == client.PlacementServed && o.Served == o.before {
		return false, nil
	}
	former, err := r.former(ctx, tx, now)
	if err != nil {
		return false, err
	}
	for _, c := range former {
		if cert.FormatSerial(c.Ref.Serial) == o.before {
			return true, s.CA.RevokeSerial(ctx, tx, c.Ref, crl.Superseded, by.Actor(), now)
		}
	}
	return false, nil
}

// uncertified refuses a name that another host's machine has a good certificate of: it could pose as the one that takes it.
func uncertified(ctx context.Context, tx *db.Tx, host, kind, name string, now time.Time) error {
	carriers, err := ca.Carriers(ctx, tx, name, now, maxCarriers)
	if err != nil {
		return err
	}
	for _, c := range carriers {
		other, err := ofPrincipal(ctx, tx, c.Requester)
		if err != nil {
			return err
		}
		if other == nil || other.id == host || !other.removed.IsZero() {
			continue // an operator's, which is no host's, or is being revoked
		}
		return fault.New(fault.Conflict, "%s was a name of host %s, and its certificate %s for it is good until %s; until then, or until that is revoked, "+
			"no other host can take the name", name, other.name, cert.FormatSerial(c.Ref.Serial), c.NotAfter.UTC().Format(time.RFC3339)).At("/"+kind).
			WithHint("once host %s serves another certificate: chancery host set %s --revoke-now", other.name, other.name)
	}
	return nil
}

// addRemaining says which certificates stay good although the host has not, or will not have, the names.
func (s *Service) addRemaining(ctx context.Context, tx *db.Tx, r *row, h *client.Host, now time.Time) error {
	if r.removed.IsZero() {
		former, err := r.former(ctx, tx, now)
		if err != nil {
			return err
		}
		for _, c := range former {
			h.FormerNames = append(h.FormerNames, remaining(c, r.name))
		}
	}
	seen := map[string]bool{}
	for _, name := range slices.Concat(h.DNS, h.IP) {
		carriers, err := ca.Carriers(ctx, tx, name, now, maxCarriers)
		if err != nil {
			return err
		}
		for _, c := range carriers {
			key := c.Ref.Issuer + " " + c.Ref.Serial.Text(16)
			if c.Requester == r.principal || seen[key] {
				continue
			}
			seen[key] = true
			by := c.Requester
			switch p, err := access.Lookup(ctx, tx, by); {
			case err == nil:
				by = p.Name
			case !fault.Is(err, fault.NotFound):
				return err
			}
			if h.OthersCertificates = append(h.OthersCertificates, remaining(c, by)); len(h.OthersCertificates) == maxRevoked {
				return nil
			}
		}
	}
	return nil
}

func remaining(c ca.Carrier, requester string) client.RemainingCertificate {
	return client.RemainingCertificate{Serial: cert.FormatSerial(c.Ref.Serial), Requester: requester, Names: c.Names, NotAfter: c.NotAfter}
}
