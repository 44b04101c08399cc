// Package verify checks the whole store as an outsider would: it trusts no row, and holds each against what signed it or
// what it must agree with. Each service checks its own rows; this package calls them in order and says what they found.
//
// What it cannot know by itself it is shown: checkpoints that were kept elsewhere, and the public key of the audit as
// somebody other than the database remembers it.
package verify

import (
	"context"
	"crypto"
	"errors"
	"fmt"

	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/fleet/rollout"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/checkpoint"
	"chancery/internal/store/audit"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/doctor"
	"chancery/internal/upkeep/finding"
	"chancery/internal/upkeep/setup"
)

// Shown is what an outsider brings along.
type Shown struct {
	Checkpoints []string           // texts of checkpoints that were kept elsewhere
	AuditKeys   []crypto.PublicKey // of the audit, as known elsewhere; without them the store's own key is believed
}

// The checks, in their order.
const (
	checkAudit   = "audit"
	checkWraps   = "keys.wraps"
	checkIssuers = "issuers.keys"
	checkCerts   = "certificates"
	checkHistory = "certificates.audit"
	checkCRLs    = "crls"
	checkHosts   = "hosts"
	checkTrust   = "trust"
	checkMoves   = "rollouts"
)

// Store checks the store of s.
func Store(ctx context.Context, s *setup.Services, shown Shown) (finding.Seq, error) {
	var kept []*checkpoint.Signed
	for i, text := range shown.Checkpoints {
		signed, err := checkpoint.Parse([]byte(text))
		if err != nil {
			return nil, fault.New(fault.Invalid, "checkpoint %d: %w", i+1, err)
		}
		kept = append(kept, signed)
	}
	return finding.Run(map[string]finding.Look{
		checkAudit:   func(tell func(finding.Finding)) error { return lookAtAudit(ctx, s, shown.AuditKeys, kept, tell) },
		checkWraps:   func(tell func(finding.Finding)) error { return doctor.Wraps(ctx, s.Keys, nil, tell) },
		checkIssuers: func(tell func(finding.Finding)) error { return lookAtIssuers(ctx, s, tell) },
		checkCerts:   func(tell func(finding.Finding)) error { return lookAtCertificates(ctx, s, tell) },
		checkHistory: func(tell func(finding.Finding)) error { return lookAtHistory(ctx, s, tell) },
		checkCRLs:    func(tell func(finding.Finding)) error { return lookAtCRLs(ctx, s, tell) },
		checkHosts:   func(tell func(finding.Finding)) error { return lookAtHosts(ctx, s, tell) },
		checkTrust:   func(tell func(finding.Finding)) error { return lookAtTrust(ctx, s, tell) },
		checkMoves:   func(tell func(finding.Finding)) error { return lookAtRollouts(ctx, s, tell) },
	}, checkAudit, checkWraps, checkIssuers, checkCerts, checkHistory, checkCRLs, checkHosts, checkTrust, checkMoves), nil
}

// lookAtAudit holds the chains against themselves, the checkpoints and what was shown.
func lookAtAudit(ctx context.Context, s *setup.Services, known []crypto.PublicKey, kept []*checkpoint.Signed, tell func(finding.Finding)) error {
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return err
	}
	evidence := audit.Evidence{Authority: set.Authority, Keys: known, Shown: kept}
	if len(evidence.Keys) == 0 {
		stored, err := s.Keys.Find(ctx, keys.Audit, "")
		if err != nil {
			return err
		}
		for _, k := range stored {
			public, err := cert.ParsePublicKey(k.SPKI)
			if err != nil {
				return fmt.Errorf("read the audit's public key: %w", err)
			}
			evidence.Keys = append(evidence.Keys, public)
		}
	}
	wrong, seen, err := s.Audit.Verify(ctx, evidence)
	if err != nil {
		return err
	}
	for _, f := range wrong {
		object := fmt.Sprintf("%s/%d", f.Node, f.Seq)
		if f.Node == "" {
			object = fmt.Sprintf("checkpoint %d", f.Seq)
		}
		tell(finding.Finding{Level: finding.Error, Object: object, Message: string(f.Rule) + ": " + f.Message})
	}
	if seen.Events == 0 {
		return fmt.Errorf("the audit holds no event")
	}
	if len(wrong) == 0 {
		tell(finding.Finding{
			Level: finding.OK, Message: fmt.Sprintf("%d chains, %d events, %d checkpoints; %d events since the newest; %d checkpoints shown", seen.Chains,
				seen.Events, seen.Checkpoints, seen.Unsealed, len(kept)),
		})
	}
	return nil
}

// lookAtIssuers opens each issuer's key and holds it against the issuer's certificate: a key that somebody planted in the
// store opens as well, but it is not the one that the certificate names.
func lookAtIssuers(ctx context.Context, s *setup.Services, tell func(finding.Finding)) error {
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return err
	}
	opened, wrong := 0, 0
	for _, i := range issuers {
		if i.Certificate == nil || i.KeyID == "" {
			continue
		}
		_, err := s.Keys.SignerFor(ctx, i.KeyID, i.Certificate)
		switch {
		case errors.Is(err, keys.ErrPair):
			wrong++
			tell(finding.Finding{Level: finding.Error, Object: i.Name, Message: "the stored key is not the one of its certificate: " + err.Error()})
		case err != nil:
			wrong++
			tell(finding.Finding{Level: finding.Error, Object: i.Name, Message: "its key does not open: " + err.Error()})
			continue
		}
		opened++
	}
	if wrong == 0 {
		tell(finding.Finding{Level: finding.OK, Message: fmt.Sprintf("%d issuers, %d with their key here, and it is theirs", len(issuers), opened)})
	}
	return nil
}

func lookAtCertificates(ctx context.Context, s *setup.Services, tell func(finding.Finding)) error {
	wrong, seen, err := s.CA.Check(ctx, 1)
	if err != nil {
		return err
	}
	for _, f := range wrong {
		tell(finding.Finding{Level: finding.Error, Object: f.Object, Message: f.Message})
	}
	return conclude(len(wrong), fmt.Sprintf("%d issuers, %d certificates, %d signatures, %d revocations", seen.Issuers, seen.Certificates, seen.Signatures, seen.Revocations), tell)
}

// lookAtHistory holds the certificates against what the audit says became of them: rows that were deleted or changed with
// some care agree with each other, but not with the chain.
func lookAtHistory(ctx context.Context, s *setup.Services, tell func(finding.Finding)) error {
	wrong, seen, err := s.CA.CheckAudit(ctx)
	if err != nil {
		return err
	}
	for _, f := range wrong {
		tell(finding.Finding{Level: finding.Error, Object: f.Object, Message: f.Message})
	}
	return conclude(len(wrong), fmt.Sprintf("%d certificates that the audit says were issued, %d that it says were revoked, held or released",
		seen.Issued, seen.Statuses), tell)
}

func lookAtCRLs(ctx context.Context, s *setup.Services, tell func(finding.Finding)) error {
	wrong := 0
	seen, err := s.Revocation.Check(ctx, func(f revocation.CheckFinding) bool {
		wrong++
		tell(finding.Finding{Level: finding.Error, Object: f.Issuer + " CRL " + f.Number, Message: string(f.Rule) + ": " + f.Message})
		return wrong < maxFindings
	})
	if err != nil {
		return err
	}
	return conclude(wrong, fmt.Sprintf("%d CRLs in force, %d entries", seen.Lists, seen.Entries), tell)
}

func lookAtHosts(ctx context.Context, s *setup.Services, tell func(finding.Finding)) error {
	wrong := 0
	seen, err := s.Hosts.Check(ctx, func(f host.Finding) bool {
		wrong++
		tell(finding.Finding{Level: finding.Error, Object: f.Host, Message: f.Message})
		return wrong < maxFindings
	})
	if err != nil {
		return err
	}
	return conclude(wrong, fmt.Sprintf("%d hosts, %d identities of theirs, %d hosts that were removed", seen.Hosts, seen.Identities, seen.Removed), tell)
}

func lookAtTrust(ctx context.Context, s *setup.Services, tell func(finding.Finding)) error {
	wrong := 0
	seen, err := s.Trust.Check(ctx, func(f trust.Finding) bool {
		wrong++
		tell(finding.Finding{Level: finding.Error, Object: f.Pool + " " + f.Object, Message: f.Message})
		return wrong < maxFindings
	})
	if err != nil {
		return err
	}
	return conclude(wrong, fmt.Sprintf("what %d pools trust: %d certificates, %d CRLs, %d certificates that placements announced", seen.Pools, seen.Entries,
		seen.CRLs, seen.Announced), tell)
}

func lookAtRollouts(ctx context.Context, s *setup.Services, tell func(finding.Finding)) error {
	wrong := 0
	seen, err := s.Rollouts.Check(ctx, func(f rollout.Finding) bool {
		wrong++
		tell(finding.Finding{Level: finding.Error, Object: f.Object, Message: f.Message})
		return wrong < maxFindings
	})
	if err != nil {
		return err
	}
	return conclude(wrong, fmt.Sprintf("%d rollouts, %d hosts in them, %d hosts that are told of a version or an issuer of their own", seen.Rollouts, seen.Members,
		seen.Hosts), tell)
}

// maxFindings bounds what one check tells: a store that was replaced would have a finding for each of its rows.
const maxFindings = 1000

func conclude(wrong int, seen string, tell func(finding.Finding)) error {
	switch {
	case wrong >= maxFindings:
		tell(finding.Finding{Level: finding.Error, Message: fmt.Sprintf("%d findings; the rest is not told", wrong)})
	case wrong == 0:
		tell(finding.Finding{Level: finding.OK, Message: seen})
	}
	return nil
}
