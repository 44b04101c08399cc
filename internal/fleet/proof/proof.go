// Package proof keeps proofs of revocation: hosts show a revoked certificate to their own consumers, and say who still takes
// it.
//
// An authority can promise that a certificate is revoked; whether it is refused is for each consumer to say. So the hosts that
// could be shown it try it upon what they run. Who has the certificate's key shows it itself. Everybody else is given a twin,
// with the same subject and names for a key of his own, which is revoked in the transaction that issues it and lives an hour;
// what refuses the twin for the list that it stands in refuses the certificate for the same list. A refusal is held against a
// control, a good certificate of the same issuer, since what refuses everybody proves nothing.
//
// RFC 5280 §5.3.1 names no reason for a certificate that was never meant to be good; a twin's is cessationOfOperation.
//
// What a proof hands out is bound: to the hosts that it names while it runs, one key for each; a twin to the certificate that
// the officer named; a control to the host's own pool, names and addresses. A control is a client's certificate, which the host
// may have none of otherwise, so a proof may be begun without.
//
// What agents say is what they say: a host that was broken into can call a refusal what was none. Its consumers are then its
// own anyway.
//
// A Service may be used by many goroutines, and starts none.
package proof

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

const (
	// Life is for how long hosts try, and as long as a twin lives.
	Life = time.Hour
	// Keep is how long a proof is shown after its end.
	Keep = 90 * 24 * time.Hour
	// answerWithin is how long a host may take to say that it has heard of a proof, before it is called silent.
	answerWithin = 30 * time.Second
)

// Options are what a Service works with; all are required.
type Options struct {
	DB    *db.DB
	CA    *ca.CA
	Audit *audit.Log
}

// Service keeps proofs.
type Service struct {
	Options
}

// New returns a service.
func New(o Options) *Service { return &Service{o} }

// Start begins a proof of a certificate's revocation, and returns its ID. The hosts are those of all pools that trust its
// issuer. A proof of the same certificate that runs is ended: the newer one takes its place.
func (s *Service) Start(ctx context.Context, by access.Principal, of ca.Ref, in client.ProveRequest, call once.Call) (string, error) {
	now := time.Now()
	if err := by.May(access.ProveRevocation); err != nil {
		return "", err
	}
	if err := s.DB.CheckClock(now); err != nil {
		return "", err
	}
	revoked, err := s.CA.Find(ctx, by, of)
	if err == nil {
		err = revoked.Provable(now)
	}
	if err != nil {
		return "", fmt.Errorf("prove a revocation: %w", err)
	}
	p, err := newProof(by, revoked, in, now)
	if err != nil {
		return "", err
	}
	var id string
	err = s.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		id, err = once.Act(ctx, tx, call, now, func() (string, error) { return p.id, s.start(ctx, tx, by, p, revoked, in.Hosts, now) })
		return err
	})
	if err != nil {
		return "", fmt.Errorf("prove that %s is refused: %w", p.serial, err)
	}
	return id, nil
}

func newProof(by access.Principal, revoked *ca.Certificate, in client.ProveRequest, now time.Time) (*proof, error) {
	parsed, err := revoked.Parsed()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(revoked.Issuer.Certificate.Raw)
	p := &proof{
		id: db.NewID(), certificate: revoked.ID, issuer: revoked.Issuer.ID, issuerName: revoked.Issuer.Name, pool: revoked.Issuer.Pool, fingerprint: hex.EncodeToString(sum[:]),
		serial: cert.FormatSerial(revoked.Serial), subject: revoked.Subject, algorithm: cert.KeyAlgorithm(parsed.PublicKey),
		held: revoked.State == ca.Held, controls: !in.NoControls, actor: by.Actor(), created: now, ends: now.Add(Life),
	}
	if revoked.NotAfter.Before(p.ends) {
		p.ends = revoked.NotAfter // from then on it is refused for that
	}
	return p, nil
}

func (s *Service) start(ctx context.Context, tx *db.Tx, by access.Principal, p *proof, revoked *ca.Certificate, only []string, now time.Time) error {
	pools, err := poolsOf(ctx, tx, revoked.Issuer)
	if err != nil {
		return err
	}
	hosts, err := proversOf(ctx, tx, pools, only)
	if err != nil {
		return err
	}
	if len(hosts) == 0 {
		return fault.New(fault.Conflict, "nobody could be shown it: no host of the pools that trust issuer %q (%v) has joined and has a placement",
			revoked.Issuer.Name, pools).WithHint("chancery host list --pool %s", revoked.Issuer.Pool)
	}
	if err := endEarlier(ctx, tx, p.certificate, now); err != nil {
		return err
	}
	if err := p.insert(ctx, tx); err != nil {
		return err
	}
	if err := insertHosts(ctx, tx, p.id, hosts); err != nil {
		return err
	}
	var ids []string
	for _, h := range hosts {
		ids = append(ids, h.ID)
	}
	if err := host.Stir(ctx, tx, ids); err != nil {
		return err
	}
	return s.Audit.Append(ctx, tx, audit.Event{Time: now, Actor: by.Actor(), Action: "proof.start", Object: p.serial, Detail: map[string]any{
		"proof": p.id, "issuer": p.issuerName, "hosts": len(hosts), "controls": p.controls, "ends": p.ends.UTC().Format(time.RFC3339),
	}})
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

// proversOf are the hosts of pools that can try something: all, or those named, each of which must be one.
func proversOf(ctx context.Context, tx *db.Tx, pools, only []string) ([]host.Prover, error) {
	var hosts []host.Prover
	for _, pool := range pools {
		found, err := host.Provers(ctx, tx, pool)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, found...)
	}
	if len(only) == 0 {
		return hosts, nil
	}
	named := map[string]bool{}
	for _, name := range only {
		named[strings.ToLower(name)] = true
	}
	hosts = slices.DeleteFunc(hosts, func(h host.Prover) bool { return !named[h.Name] })
	for _, h := range hosts {
		delete(named, h.Name)
	}
	for name := range named {
		return nil, fault.New(fault.NotFound, "there is no host %.80q that has joined, has a placement and could be shown it: it must be of one of the pools %v",
			access.Redact(name), pools).At("/hosts").WithHint("chancery host show %s", access.Redact(name))
	}
	return hosts, nil
}

// waitingTrials are those of a host that has not said anything yet, as they are stored.
func waitingTrials(h host.Prover) (string, error) {
	var trials []client.ProofTrial
	for _, placement := range h.Placements {
		trials = append(trials, client.ProofTrial{Placement: placement, Result: client.ProofWaiting})
	}
	text, err := json.Marshal(trials)
	return string(text), err
}

// Prune removes up to limit proofs that ended long ago, and says how many it removed.
func (s *Service) Prune(ctx context.Context, now time.Time, limit int) (n int64, err error) {
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM proof_host WHERE proof IN (SELECT id FROM proof WHERE ends < $1 ORDER BY ends, id LIMIT $2)`,
			db.Micros(now.Add(-Keep)), int64(limit))
		if err != nil {
			return err
		}
		n, err = tx.Exec(ctx, `DELETE FROM proof WHERE id IN (SELECT id FROM proof WHERE ends < $1 ORDER BY ends, id LIMIT $2)`,
			db.Micros(now.Add(-Keep)), int64(limit))
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("prune proofs: %w", err)
	}
	return n, nil
}
