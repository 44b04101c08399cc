package host

import (
	"context"
	"fmt"
	"math/big"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// Finding is something that the rows of hosts say and other rows do not.
type Finding struct {
	Host    string
	Message string
}

// Checked says how much Check looked at.
type Checked struct{ Hosts, Identities, Removed int64 }

// checkPage is how many hosts are read at once.
const checkPage = 500

// Check holds hosts against principals, identities and certificates: each host's machine is known and is a host, its identity
// is in the record and is its own, and a host that was removed holds nothing that is good.
func (s *Service) Check(ctx context.Context, tell func(Finding) bool) (seen Checked, err error) {
	for after := ""; ; {
		var page []*row
		err := s.DB.Read(ctx, func(tx *db.Tx) error {
			rows, err := tx.Query(ctx, `SELECT `+hostColumns+` FROM host WHERE host.id > $1 ORDER BY host.id LIMIT $2`, after, int64(checkPage))
			if err != nil {
				return err
			}
			page, err = scanRows(rows)
			return err
		})
		if err != nil {
			return seen, fmt.Errorf("read hosts: %w", err)
		}
		for _, r := range page {
			after = r.id
			message, err := s.checkOne(ctx, r, &seen)
			if err != nil {
				return seen, fmt.Errorf("check host %s: %w", r.name, err)
			}
			if message != "" && !tell(Finding{r.name, message}) {
				return seen, nil
			}
		}
		if len(page) < checkPage {
			return seen, nil
		}
	}
}

// checkOne returns what is wrong with a host; empty where nothing is.
func (s *Service) checkOne(ctx context.Context, r *row, seen *Checked) (string, error) {
	machine, err := s.Access.Principal(ctx, r.principal)
	known := !fault.Is(err, fault.NotFound)
	if err != nil && known {
		return "", err
	}
	if !r.removed.IsZero() {
		seen.Removed++
		if known {
			return "it was removed, and its principal is there", nil
		}
		return s.checkRemoved(ctx, r)
	}
	seen.Hosts++
	switch {
	case !known:
		return "its principal is not there", nil
	case machine.Kind != access.KindHost || machine.Name != r.name:
		return fmt.Sprintf("its principal is %s", machine.Actor()), nil
	case r.state == client.HostPending:
		return "", nil
	}
	seen.Identities++
	serial, ok := new(big.Int).SetString(r.identitySerial, 16)
	if !ok {
		return fmt.Sprintf("the serial of its identity, %q, is not hexadecimal", r.identitySerial), nil
	}
	issued, err := s.CA.Find(ctx, access.System(issuedBy), ca.Ref{Issuer: r.identityIssuer, Serial: serial})
	switch {
	case fault.Is(err, fault.NotFound):
		if s.DB.Latest(r.identityEnds).After(r.identityEnds.Add(ca.IdentityGrace)) {
			return "", nil // it ended long ago and was pruned
		}
		return fmt.Sprintf("its identity %s is not in the record", cert.FormatSerial(serial)), nil
	case err != nil:
		return "", err
	case issued.Profile != ca.IdentityProfile || issued.Requester != access.System(issuedBy).ID:
		return fmt.Sprintf("its identity %s was not issued as one", cert.FormatSerial(serial)), nil
	}
	return "", nil
}

// checkRemoved looks for what a removed host holds that is good, and that nobody is about to revoke.
func (s *Service) checkRemoved(ctx context.Context, r *row) (string, error) {
	left, _, err := s.CA.Search(ctx, access.System(issuedBy), ca.Filter{Requester: r.principal, State: ca.Valid}, "", 1)
	if err != nil || len(left) == 0 {
		return "", err
	}
	ending := false
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		var n int64
		err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM host_ending WHERE principal = $1`, r.principal).Scan(&n)
		ending = n > 0
		return err
	})
	if err != nil || ending {
		return "", err
	}
	return fmt.Sprintf("it was removed, and its certificate %s is good", cert.FormatSerial(left[0].Serial)), nil
}
