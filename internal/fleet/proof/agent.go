package proof

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// Pending are the proofs that a host is to try now, as its desired state has them.
func Pending(ctx context.Context, tx *db.Tx, host string, now time.Time) ([]client.Proof, error) {
	rows, err := tx.Query(ctx, `SELECT `+proofColumns+`, h.no_twin FROM proof_host h JOIN proof p ON p.id = h.proof WHERE h.host = $1 AND p.ends > $2
		ORDER BY p.id`, host, db.Micros(now))
	if err != nil {
		return nil, fmt.Errorf("read what a host has to prove: %w", err)
	}
	defer rows.Close()
	var all []client.Proof
	for rows.Next() {
		var noTwin string
		p, err := scanProof(func(to ...any) error { return rows.Scan(append(to, &noTwin)...) })
		if err != nil {
			return nil, fmt.Errorf("read what a host has to prove: %w", err)
		}
		all = append(all, client.Proof{
			ID: p.id, Serial: p.serial, Issuer: p.issuerName, IssuedBy: p.fingerprint, Algorithm: p.algorithm, Controls: p.controls,
			NoTwin: noTwin, Ends: p.ends,
		})
	}
	return all, rows.Err()
}

// caller finds the calling host and its part in a proof, and refuses whoever has none. That a proof exists is told to nobody
// else.
func caller(ctx context.Context, tx *db.Tx, by access.Principal, id string, now time.Time) (*proof, *host.Prover, *asked, error) {
	h, err := host.ProverOf(ctx, tx, by)
	if err != nil {
		return nil, nil, nil, err
	}
	a, err := readAsked(ctx, tx, id, h.ID)
	if err != nil {
		return nil, nil, nil, err
	}
	if a == nil {
		return nil, nil, nil, fault.New(fault.NotFound, "there is no proof %.40q of host %s", id, h.Name)
	}
	p, err := readProof(ctx, tx, `p.id = $1`, id)
	if err != nil {
		return nil, nil, nil, err
	}
	if !now.Before(p.ends) {
		return nil, nil, nil, fault.New(fault.Conflict, "the proof ended at %s", p.ends.UTC().Format(time.RFC3339))
	}
	return p, h, a, nil
}

// issue is what a host may be issued for a proof: a twin, or a control.
type issue struct {
	what, column string
	serial       func(*asked) string
	key          func(*asked) []byte
}

func issueOf(control bool) issue {
	if control {
		return issue{"control", "control", func(a *asked) string { return a.control }, func(a *asked) []byte { return a.controlKey }}
	}
	return issue{"twin", "twin", func(a *asked) string { return a.twin }, func(a *asked) []byte { return a.twinKey }}
}

// Issue issues a host the twin of what it is to try, or the control to hold a refusal against: one of each for a proof. The
// same key gets the same certificate, however often it asks.
func (s *Service) Issue(ctx context.Context, by access.Principal, id string, in client.ProofKeyRequest) (*client.ProofCertificate, error) {
	now := time.Now()
	if err := by.May(access.ActAsHost); err != nil {
		return nil, err
	}
	request, err := cert.CSRLimits{}.ParsePEM([]byte(in.CSR))
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(request.SPKI)
	kind := issueOf(in.Control)
	var p *proof
	var earlier string
	err = s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		p, earlier, err = mayIssue(ctx, tx, by, id, kind, key[:], now)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("issue the %s of a proof: %w", kind.what, err)
	}
	if earlier != "" {
		return s.issued(ctx, by, p, earlier)
	}
	within := func(ctx context.Context, tx *db.Tx, issued *ca.Certificate) error {
		p, earlier, err := mayIssue(ctx, tx, by, id, kind, key[:], now)
		if err != nil {
			return err
		}
		if earlier != "" {
			return fault.New(fault.Conflict, "the same call is answered already; ask again")
		}
		if !in.Control { // which is tried once a complete list has it, however seldom these are signed otherwise
			if err := revocation.Ask(ctx, tx, issued.Issuer, now); err != nil {
				return err
			}
		}
		return note(ctx, tx, p.id, by, kind, cert.FormatSerial(issued.Serial), key[:])
	}
	var issued *ca.Certificate
	if in.Control {
		issued, err = s.CA.IssueControl(ctx, by, p.issuer, []byte(in.CSR), within)
	} else {
		serial, wrong := cert.ParseSerial(p.serial)
		if wrong != nil {
			return nil, wrong
		}
		issued, err = s.CA.IssueTwin(ctx, by, ca.Ref{Issuer: p.issuer, Serial: serial}, []byte(in.CSR), within)
	}
	if err != nil {
		return nil, err
	}
	return wire(issued), nil
}

// mayIssue says whether a host may have a certificate for a key, and which it has got for that one.
func mayIssue(ctx context.Context, tx *db.Tx, by access.Principal, id string, kind issue, key []byte, now time.Time) (*proof, string, error) {
	p, h, a, err := caller(ctx, tx, by, id, now)
	if err != nil {
		return nil, "", err
	}
	if had := kind.key(a); len(had) > 0 {
		if !bytes.Equal(had, key) {
			return nil, "", fault.New(fault.Conflict, "%s has the %s of this proof for another key, and gets no second one", h.Name, kind.what)
		}
		return p, kind.serial(a), nil
	}
	if kind.column == "twin" && a.noTwin != "" {
		return nil, "", fault.New(fault.Denied, "%s gets no twin: %s", h.Name, a.noTwin)
	}
	if kind.column == "control" && !p.controls {
		return nil, "", fault.New(fault.Denied, "the proof was begun without controls")
	}
	return p, "", h.CheckPoolOf("issuer "+p.issuerName, p.pool)
}

// note keeps what was issued to a host.
func note(ctx context.Context, tx *db.Tx, id string, by access.Principal, kind issue, serial string, key []byte) error {
	h, err := host.ProverOf(ctx, tx, by)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE proof_host SET `+kind.column+` = $1, `+kind.column+`_key = $2 WHERE proof = $3 AND host = $4`, serial, key, id, h.ID)
	if err != nil {
		return fmt.Errorf("note the %s of host %s: %w", kind.what, h.Name, err)
	}
	return nil
}

// issued is what a host got before.
func (s *Service) issued(ctx context.Context, by access.Principal, p *proof, serial string) (*client.ProofCertificate, error) {
	number, err := cert.ParseSerial(serial)
	if err != nil {
		return nil, err
	}
	found, err := s.CA.Find(ctx, by, ca.Ref{Issuer: p.issuer, Serial: number})
	if err != nil {
		return nil, err
	}
	return wire(found), nil
}

func wire(c *ca.Certificate) *client.ProofCertificate {
	out := &client.ProofCertificate{Serial: cert.FormatSerial(c.Serial), PEM: encode(c.DER)}
	if !c.Issuer.Root() {
		out.Chain = encode(c.Issuer.Certificate.Raw)
	}
	for i, above := range c.Issuer.Chain {
		if i < len(c.Issuer.Chain)-1 { // the root is the last
			out.Chain += encode(above.Raw)
		}
	}
	return out
}

func encode(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// Report takes what a host saw. A placement that the proof does not name is left out, and one that is left out stays as it was.
func (s *Service) Report(ctx context.Context, by access.Principal, id string, in client.ProofReport) error {
	now := time.Now()
	if err := by.May(access.ActAsHost); err != nil {
		return err
	}
	said := map[string]client.ProofTrial{}
	for _, t := range in.Trials {
		if err := checkTrial(t); err != nil {
			return err
		}
		t.Host, t.At = "", now.UTC().Truncate(time.Second)
		said[t.Placement] = t
	}
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		p, h, a, err := caller(ctx, tx, by, id, now)
		if err != nil {
			return err
		}
		var changed []client.ProofTrial
		for i, before := range a.trials {
			t, ok := said[before.Placement]
			if !ok {
				continue
			}
			if t.With != "" && t.With != p.serial && t.With != a.twin {
				return fault.New(fault.Invalid, "placement %q was tried with %.64q, which is neither certificate %s nor the twin that was issued to %s", t.Placement,
					t.With, p.serial, h.Name)
			}
			t.Twin = t.With != "" && t.With == a.twin
			if same(before, t) {
				continue
			}
			a.trials[i] = t
			changed = append(changed, t)
		}
		if len(changed) == 0 && !a.reported.IsZero() {
			return nil
		}
		return s.keepReport(ctx, tx, by, p, h, a, changed, now)
	})
	if err != nil {
		return fmt.Errorf("take what host %s saw of a proof: %w", by.Name, err)
	}
	return nil
}

func (s *Service) keepReport(ctx context.Context, tx *db.Tx, by access.Principal, p *proof, h *host.Prover, a *asked, changed []client.ProofTrial,
	now time.Time) error {
	text, err := json.Marshal(a.trials)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE proof_host SET trials = $1, reported_at = $2 WHERE proof = $3 AND host = $4`, string(text), db.Micros(now), p.id, h.ID)
	if err != nil {
		return fmt.Errorf("write the trials of host %s: %w", h.Name, err)
	}
	seen := map[string]string{} // by placement
	for _, t := range changed {
		if t.Result != client.ProofWaiting {
			seen[t.Placement] = t.Result
		}
	}
	if len(seen) == 0 {
		return nil
	}
	return s.Audit.Append(ctx, tx, audit.Event{Time: now, Actor: by.Actor(), Action: "proof.report", Object: p.serial, Detail: map[string]any{
		"proof": p.id, "host": h.Name, "results": seen,
	}})
}

func same(a, b client.ProofTrial) bool {
	a.At, b.At = time.Time{}, time.Time{}
	return a == b
}

// untried are the reasons for which nothing is shown; an agent may give none.
func untried() []string {
	return []string{"", client.UntriedNoPort, client.UntriedDown, client.UntriedNoCRL, client.UntriedNoTwin, client.UntriedOtherPool}
}

func checkTrial(t client.ProofTrial) error {
	switch t.Result {
	case client.ProofWaiting, client.ProofOpen, client.ProofUnclear:
	case client.ProofNotTried:
		if !slices.Contains(untried(), t.Untried) {
			return fault.New(fault.Invalid, "untried %.40q is not one of %s", t.Untried, strings.Join(untried()[1:], ", ")).At("/trials")
		}
	case client.ProofRefused, client.ProofAccepted:
		if t.With == "" {
			return fault.New(fault.Invalid, "placement %.64q is %s, and what it was tried with is not said", t.Placement, t.Result).At("/trials")
		}
	default:
		return fault.New(fault.Invalid, "result %.40q is not one of waiting, refused, accepted, open, unclear, not tried", t.Result).At("/trials")
	}
	if t.Result != client.ProofNotTried && t.Untried != "" {
		return fault.New(fault.Invalid, "placement %.64q is %s, and yet it was not tried: %.40q", t.Placement, t.Result, t.Untried).At("/trials")
	}
	if t.CRL == "" {
		return nil
	}
	if _, ok := new(big.Int).SetString(t.CRL, 10); !ok {
		return fault.New(fault.Invalid, "%.64q is no CRLNumber", t.CRL).At("/trials")
	}
	return nil
}
