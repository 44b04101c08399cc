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
// the officer named; a control to the host's own names and addresses; both to hosts of the issuer's own pool. A control is a
// client's certificate, which the host may have none of otherwise, so a proof may be begun without.
//
// A twin passes for its certificate's subject before whoever reads no CRL. Where the key is compromised, a thief does so anyway;
// where it is not, a twin would be the first certificate of that name in a wrong hand. So twins are issued where the certificate
// was revoked for a compromise, or where the officer asks for them, and only to hosts that have a consumer with a port that is
// given CRLs. Whoever else could be shown the certificate is named, with the reason why nothing is shown to him.
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
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fleet/host"
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
// issuer; those that may have no twin are among them. A proof of the same certificate that runs is ended: the newer one takes its place.
func (s *Service) Start(ctx context.Context, by access.Principal, of ca.Ref, in client.ProveRequest, call once.Call) (string, error) {
	now := time.Now()
	if err := by.May(access.ProveRevocation); err != nil {
		return "", err
	}
	if err := s.DB.CheckClock(now); err != nil {
		return "", err
	}
	revoked, p, err := s.provable(ctx, by, of, in, now)
	if err != nil {
		return "", err
	}
	var id string
	err = s.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		id, err = once.Act(ctx, tx, call, now, func() (string, error) { return p.id, s.start(ctx, tx, by, p, revoked, in, now) })
		return err
	})
	if err != nil {
		return "", fmt.Errorf("prove that %s is refused: %w", p.serial, err)
	}
	return id, nil
}

// Preview says what Start would do: who would try it, and who could get a twin.
func (s *Service) Preview(ctx context.Context, by access.Principal, of ca.Ref, in client.ProveRequest) (*client.ProofResult, error) {
	now := time.Now()
	if err := by.May(access.ProveRevocation); err != nil {
		return nil, err
	}
	revoked, p, err := s.provable(ctx, by, of, in, now)
	if err != nil {
		return nil, err
	}
	var out *client.ProofResult
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		hosts, err := proversOf(ctx, tx, revoked, in)
		if err != nil {
			return err
		}
		out = p.result()
		out.ID = ""
		for _, h := range hosts {
			if h.noTwin == "" {
				out.Twins = append(out.Twins, h.Name)
			}
			for _, t := range h.trials() {
				t.Host, t.Detail = h.Name, h.noTwin
				out.Trials = append(out.Trials, t)
			}
		}
		slices.Sort(out.Twins)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look who would prove that %s is refused: %w", p.serial, err)
	}
	return out, nil
}

// provable is a certificate whose revocation can be proven, and the proof as it begins.
func (s *Service) provable(ctx context.Context, by access.Principal, of ca.Ref, in client.ProveRequest, now time.Time) (*ca.Certificate, *proof, error) {
	revoked, err := s.CA.Find(ctx, by, of)
	if err == nil {
		err = revoked.Provable(now)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("prove a revocation: %w", err)
	}
	p, err := newProof(by, revoked, in, now)
	return revoked, p, err
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

func (s *Service) start(ctx context.Context, tx *db.Tx, by access.Principal, p *proof, revoked *ca.Certificate, in client.ProveRequest, now time.Time) error {
	hosts, err := proversOf(ctx, tx, revoked, in)
	if err != nil {
		return err
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
	// The complete list is signed now, though a delta or partitions show the revocation already: it is what hosts place.
	if err := revocation.Ask(ctx, tx, revoked.Issuer, now); err != nil {
		return err
	}
	var ids []string
	twins := 0
	for _, h := range hosts {
		ids = append(ids, h.ID)
		if h.noTwin == "" {
			twins++
		}
	}
	if err := host.Stir(ctx, tx, ids); err != nil {
		return err
	}
	return s.Audit.Append(ctx, tx, audit.Event{Time: now, Actor: by.Actor(), Action: "proof.start", Object: p.serial, Detail: map[string]any{
		"proof": p.id, "issuer": p.issuerName, "hosts": len(hosts), "twins": twins, "controls": p.controls, "ends": p.ends.UTC().Format(time.RFC3339),
	}})
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
