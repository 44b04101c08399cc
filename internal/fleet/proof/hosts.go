package proof

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// prover is a host that is asked, and why it may have no twin; empty where it may.
type prover struct {
	host.Prover
	noTwin string
}

// trials are those of a host that has not said anything yet.
func (h *prover) trials() []client.ProofTrial {
	var trials []client.ProofTrial
	for _, placement := range h.Placements {
		trials = append(trials, client.ProofTrial{Placement: placement.Name, Result: client.ProofWaiting})
	}
	return trials
}

// poolsOf are the pools whose hosts trust what an issuer signs: its own, and those that trust it or what is above it.
func poolsOf(ctx context.Context, tx *db.Tx, issuer *ca.Issuer) ([]string, error) {
	pools := []string{issuer.Pool}
	fingerprint := func(der []byte) string { sum := sha256.Sum256(der); return hex.EncodeToString(sum[:]) }
	above := []string{fingerprint(issuer.Certificate.Raw)}
	for _, c := range issuer.Chain {
		above = append(above, fingerprint(c.Raw))
	}
	for _, f := range above {
		more, err := trust.Trusting(ctx, tx, f)
		if err != nil {
			return nil, err
		}
		pools = append(pools, more...)
	}
	slices.Sort(pools)
	return slices.Compact(pools), nil
}

// proversOf are the hosts that could be shown a certificate: all, or those that are named, each of which must be one.
func proversOf(ctx context.Context, tx *db.Tx, revoked *ca.Certificate, in client.ProveRequest) ([]prover, error) {
	pools, err := poolsOf(ctx, tx, revoked.Issuer)
	if err != nil {
		return nil, err
	}
	var hosts []prover
	for _, pool := range pools {
		found, err := host.Provers(ctx, tx, pool)
		if err != nil {
			return nil, err
		}
		for _, h := range found {
			hosts = append(hosts, prover{h, noTwin(revoked, in.Twins, h)})
		}
	}
	if len(in.Hosts) > 0 {
		return only(hosts, in.Hosts, pools)
	}
	if len(hosts) == 0 {
		return nil, fault.New(fault.Conflict, "nobody could be shown it: no host of the pools that trust issuer %q (%v) has joined and has a placement",
			revoked.Issuer.Name, pools).WithHint("chancery host list --pool %s", revoked.Issuer.Pool)
	}
	return hosts, nil
}

func only(hosts []prover, names, pools []string) ([]prover, error) {
	named := map[string]bool{}
	for _, name := range names {
		named[strings.ToLower(name)] = true
	}
	hosts = slices.DeleteFunc(hosts, func(h prover) bool { return !named[h.Name] })
	for _, h := range hosts {
		delete(named, h.Name)
	}
	for name := range named {
		return nil, fault.New(fault.NotFound, "there is no host %.80q that has joined, has a placement and could be shown it: it must be of one of the pools %v",
			access.Redact(name), pools).At("/hosts").WithHint("chancery host show %s", access.Redact(name))
	}
	return hosts, nil
}

// noTwin says why a host may have no twin of a certificate; empty where it may. What the host's consumers are is what its agent
// said last, before anybody asked.
func noTwin(revoked *ca.Certificate, asked bool, h host.Prover) string {
	if h.Pool != revoked.Issuer.Pool {
		return fmt.Sprintf("it is of pool %s, which trusts issuer %s of pool %s, and twins stay within the issuer's pool", h.Pool, revoked.Issuer.Name,
			revoked.Issuer.Pool)
	}
	if ca.OfDatabase(revoked.Issuer.Pool) {
		return fmt.Sprintf("who has a certificate of pool %s is let in at the authority's own database, which reads no CRL, so a twin would be", revoked.Issuer.Pool)
	}
	if h.Suspect {
		return "it is suspect: two machines have shown its identity"
	}
	if !asked && !compromised(revoked) {
		return "the certificate " + why(revoked) + " and not for a compromise, so nobody else may have its key; --twins has twins issued all the same"
	}
	if !slices.ContainsFunc(h.Placements, func(p host.ProverPlacement) bool { return p.Port && p.CRLs }) {
		return "nothing on it has a port and is given CRLs, as its agent last said"
	}
	return ""
}

// compromised reports whether a certificate was revoked because somebody may have its key (RFC 5280 section 5.3.1).
func compromised(revoked *ca.Certificate) bool {
	return revoked.State == ca.Revoked && revoked.Revocation != nil && slices.Contains([]crl.Reason{crl.KeyCompromise, crl.CACompromise, crl.AACompromise},
		revoked.Revocation.Reason)
}

func why(revoked *ca.Certificate) string {
	if revoked.State == ca.Held || revoked.Revocation == nil {
		return "is on hold"
	}
	return fmt.Sprintf("is revoked as %s", revoked.Revocation.Reason)
}
