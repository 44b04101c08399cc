package proof

import (
	"context"
	"fmt"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// Show returns a proof with what is known by now.
func (s *Service) Show(ctx context.Context, by access.Principal, id string) (*client.ProofResult, error) {
	return s.show(ctx, by, `p.id = $1`, id)
}

// Last returns the newest proof of a certificate's revocation.
func (s *Service) Last(ctx context.Context, by access.Principal, of ca.Ref) (*client.ProofResult, error) {
	if err := by.May(access.ReadHosts); err != nil {
		return nil, err
	}
	found, err := s.CA.Find(ctx, by, of)
	if err != nil {
		return nil, err
	}
	result, err := s.show(ctx, by, `p.certificate = $1 ORDER BY p.created_at DESC, p.id DESC LIMIT 1`, found.ID)
	if fault.Is(err, fault.NotFound) {
		serial := cert.FormatSerial(found.Serial)
		return nil, fault.New(fault.NotFound, "no proof of certificate %s was begun, or it is pruned", serial).WithHint("chancery cert prove-revoked %s", serial)
	}
	return result, err
}

func (s *Service) show(ctx context.Context, by access.Principal, where string, arg any) (*client.ProofResult, error) {
	if err := by.May(access.ReadHosts); err != nil {
		return nil, err
	}
	now := time.Now()
	var out *client.ProofResult
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		p, err := readProof(ctx, tx, where, arg)
		if err != nil {
			return err
		}
		hosts, err := readAllAsked(ctx, tx, p.id)
		if err != nil {
			return err
		}
		out = p.result()
		var quiet []string
		for _, h := range hosts {
			if h.reported.IsZero() && now.Sub(p.created) > answerWithin {
				quiet = append(quiet, h.host)
			}
		}
		seen, err := host.SeenAt(ctx, tx, quiet)
		for _, h := range hosts {
			out.Trials = append(out.Trials, h.known(p, seen[h.host], now)...)
			if h.noTwin == "" {
				out.Twins = append(out.Twins, h.name)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("show a proof: %w", err)
	}
	return out, nil
}

func (p *proof) result() *client.ProofResult {
	out := &client.ProofResult{
		ID: p.id, Serial: p.serial, Issuer: p.issuerName, Subject: p.subject, State: string(ca.Revoked), StartedBy: p.actor, StartedAt: p.created, Ends: p.ends,
		Trials: []client.ProofTrial{},
	}
	if p.held {
		out.State = string(ca.Held)
		out.Message = "the certificate is on hold: who refuses it now takes it again once the hold is released"
	}
	return out
}

// known are a host's trials, and what is to be thought of a host that has said nothing; seen is when its agent last called.
func (a *asked) known(p *proof, seen, now time.Time) []client.ProofTrial {
	ended := !now.Before(p.ends)
	silence := ""
	if a.reported.IsZero() && (ended || now.Sub(p.created) > answerWithin) {
		silence = "its agent has not said anything"
		if !seen.IsZero() {
			silence += "; it last called at " + seen.UTC().Format(time.RFC3339) + ", within a minute"
		}
	}
	var out []client.ProofTrial
	for _, t := range a.trials {
		t.Host = a.name
		if t.Untried == client.UntriedNoTwin && a.pool != p.pool {
			t.Untried = client.UntriedOtherPool
		}
		switch {
		case t.Result != client.ProofWaiting:
		case silence != "":
			t.Result, t.Detail = client.ProofSilent, silence
		case ended:
			t.Result, t.Detail = client.ProofSilent, "the proof ended before it was tried: "+t.Detail
		case t.Detail == "":
			t.Detail = "its agent has not said anything yet"
		}
		out = append(out, t)
	}
	return out
}
