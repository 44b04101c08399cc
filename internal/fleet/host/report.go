package host

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

const (
	// maxObservation bounds what is kept of one placement, in octets of JSON, without the fingerprints of what it pins.
	maxObservation = 64 << 10
	// maxPinned bounds those.
	maxPinned       = trust.MostPinned
	fingerprintSize = 64 + len(`"",`)
)

// Report takes what an agent saw. Only what is another than before is written: an agent that finds all in place costs the
// store nothing. What concerns a placement that the host no longer has is left out.
func (s *Service) Report(ctx context.Context, by access.Principal, in client.Report) error {
	if err := by.May(access.ActAsHost); err != nil {
		return err
	}
	now := time.Now()
	seen, err := encodeObservations(in.Observations)
	if err != nil {
		return err
	}
	var r *row
	var news []observation
	err = s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		r, news, err = compare(ctx, tx, by, seen)
		return err
	})
	if err != nil {
		return err
	}
	s.noteSeen(r.id, now)
	if err := s.witness(ctx, by, r, in.Generation, now); err != nil {
		return err
	}
	if len(news) == 0 && r.absent == "" && r.agent == in.Agent && (r.message == in.Message || r.state == client.HostSuspect) {
		return nil
	}
	var revoked bool
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		revoked = false
		r, news, err := compare(ctx, tx, by, seen)
		if err != nil {
			return err
		}
		for _, o := range news {
			done, err := s.revokeReplaced(ctx, tx, by, r, o, now)
			if err != nil {
				return err
			}
			revoked = revoked || done
		}
		for _, o := range news {
			under := o.Issuer
			if under != o.under { // what is written is known by the present certificate of its issuer
				if under, err = trust.Present(ctx, tx, r.pool, under); err != nil {
					return err
				}
			}
			_, err = tx.Exec(ctx, `UPDATE host_placement SET state = $1, not_after = $2, observed = $3, observed_at = $4, trust = $5, issuer = $6,
				serial = $7, reissued = CASE WHEN $8 > reissue THEN reissue ELSE $8 END, crl_ends = $9 WHERE host = $10 AND name = $11`,
				o.State, db.MicrosOrZero(o.NotAfter), o.text, db.Micros(now), o.Trust, under, o.Serial, o.Reissued, db.MicrosOrZero(o.CRLEnds), r.id, o.Placement)
			if err != nil {
				return fmt.Errorf("write what was observed of placement %s: %w", o.Placement, err)
			}
			if err := s.announced(ctx, tx, by, r, o, now); err != nil {
				return err
			}
		}
		if r.state != client.HostSuspect { // why it is suspect is not the agent's to change
			r.message = in.Message
		}
		if err := r.judge(ctx, tx); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE host SET agent = $1, message = $2, problem = $3, absent = '' WHERE id = $4`, in.Agent, r.message, db.Bit(r.problem), r.id)
		if err != nil || r.absent == "" {
			return err
		}
		return s.audit(ctx, tx, by.Actor(), "host.back", r.name, map[string]any{"was_absent": r.absent}, now)
	})
	if err != nil {
		return fmt.Errorf("take the report of host %s: %w", by.Name, err)
	}
	if revoked {
		s.CA.Announce()
	}
	return nil
}

// announced takes what a report says of certificates that peers pin.
func (s *Service) announced(ctx context.Context, tx *db.Tx, by access.Principal, r *row, o observation, now time.Time) error {
	purpose, may := s.announces(o.order)
	if !may {
		return nil
	}
	at := trust.Placement{Host: r.id, Name: o.Placement, Pool: r.pool, Purpose: purpose}
	var good []*x509.Certificate
	for _, c := range o.leaves {
		switch err := s.CA.CheckGiven(ctx, tx, c, by.ID, now); {
		case err == nil:
			good = append(good, c)
		case fault.KindOf(err) == fault.Internal || fault.Is(err, fault.Unavailable):
			return err
		default: // its peers are not to trust it; what else the report says counts
			s.Logger.WarnContext(ctx, "an announced certificate is not passed on", "host", r.name, "placement", o.Placement, "error", err)
		}
	}
	// What is placed is announced no more, and is not to leave for that.
	if err := s.Trust.Placed(ctx, tx, at, o.Serial, now); err != nil {
		return err
	}
	return s.Trust.Announce(ctx, tx, at, good, now)
}

// observation is one of a report with its stored form.
type observation struct {
	client.Observation
	text   string                // JSON, without the time
	leaves []*x509.Certificate   // that are announced
	order  client.PlacementOrder // of the placement; known once it is compared
	before string                // the serial that was placed the last time; likewise
	under  string                // the fingerprint of the issuer that it was under the last time; likewise
}

func encodeObservations(reported []client.Observation) ([]observation, error) {
	if len(reported) > maxPlacements {
		return nil, fault.New(fault.TooLarge, "%d observations were reported; at most %d pass", len(reported), maxPlacements)
	}
	var seen []observation
	for _, o := range reported {
		switch o.State {
		case client.PlacementPending, client.PlacementServed, client.PlacementPlaced, client.PlacementDown, client.PlacementFailed:
		default:
			return nil, fault.New(fault.Invalid, "state %.40q of a placement is not one of pending, served, placed, down, failed", o.State).At("/observations")
		}
		leaves, err := trust.ParseAnnounced(o.Announced)
		if err != nil {
			return nil, err
		}
		if o.Issuer != "" && !isFingerprint(o.Issuer) {
			return nil, fault.New(fault.Invalid, "issuer %.80q of placement %.64q is no SHA-256 in lower-case hexadecimal", o.Issuer, o.Placement).At("/observations")
		}
		if i := slices.IndexFunc(o.Pinned, func(one string) bool { return !isFingerprint(one) }); i >= 0 {
			return nil, fault.New(fault.Invalid, "%.80q, pinned by placement %.64q, is no SHA-256 in lower-case hexadecimal", o.Pinned[i], o.Placement).At("/observations")
		}
		kept := o
		kept.At = time.Time{} // it differs each time, and the store has the time of the change
		text, err := json.Marshal(kept)
		if err != nil {
			return nil, err
		}
		if size := len(text) - fingerprintSize*len(o.Pinned); size > maxObservation || len(o.Pinned) > maxPinned {
			return nil, fault.New(fault.TooLarge, "what was observed of placement %.64q has %d octets and %d pinned certificates; at most %d and %d pass",
				o.Placement, size, len(o.Pinned), maxObservation, maxPinned).At("/observations")
		}
		if slices.ContainsFunc(seen, func(other observation) bool { return other.Placement == o.Placement }) {
			return nil, fault.New(fault.Invalid, "placement %.64q is reported twice", o.Placement).At("/observations")
		}
		seen = append(seen, observation{Observation: o, text: string(text), leaves: leaves})
	}
	return seen, nil
}

// compare finds the caller's host, and what of a report is new.
func compare(ctx context.Context, tx *db.Tx, by access.Principal, seen []observation) (*row, []observation, error) {
	r, err := ofPrincipal(ctx, tx, by.ID)
	if err != nil {
		return nil, nil, err
	}
	if r == nil || !r.removed.IsZero() {
		return nil, nil, noHost(by)
	}
	there, err := readPlacements(ctx, tx, `host = $1`, r.id)
	if err != nil {
		return nil, nil, err
	}
	var news []observation
	for _, o := range seen {
		i := slices.IndexFunc(there, func(p placed) bool { return p.Name == o.Placement })
		if i >= 0 && (there[i].observed != o.text || there[i].Observed.State != o.State) {
			o.order, o.before, o.under = there[i].PlacementOrder, there[i].Observed.Serial, there[i].Observed.Issuer
			news = append(news, o)
		}
	}
	return r, news, nil
}

// isFingerprint reports whether a text is a SHA-256 as agents and the store write it.
func isFingerprint(text string) bool {
	return len(text) == 64 && strings.Trim(text, "0123456789abcdef") == ""
}
