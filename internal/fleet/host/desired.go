package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// MaxWait is how long a call for the desired state may wait for a change.
const MaxWait = 5 * time.Minute

// maxRevoked bounds the serials of a host's revoked certificates that it is told of.
const maxRevoked = 100

// Desired returns what a host shall hold. Where that is still what has the etag, it waits for a change, and returns nil when
// there was none for so long, or when the node ends. Where it is not to wait for changes, it waits a moment for CRLs that are
// being signed; see settle.
func (s *Service) Desired(ctx context.Context, by access.Principal, etag string, wait time.Duration) (*client.Desired, error) {
	if err := by.May(access.ActAsHost); err != nil {
		return nil, err
	}
	if wait < 0 || wait > MaxWait {
		return nil, fault.New(fault.Invalid, "a wait of %v was asked for; up to %v can be had", wait, MaxWait).At("query wait")
	}
	if wait == 0 {
		if err := s.settle(ctx, by); err != nil {
			return nil, err
		}
	}
	var timer *time.Timer
	var w *waiter
	round := s.waiting.round() // before looking
	for {
		now := time.Now()
		desired, host, err := s.desired(ctx, by, now)
		if err != nil {
			return nil, err
		}
		if w == nil {
			s.noteSeen(host.id, now)
			if err := s.witness(ctx, by, host, 0, now); err != nil {
				return nil, err
			}
		}
		if desired.ETag != etag {
			return desired, s.addCheckpoint(ctx, desired, now)
		}
		if wait == 0 {
			return nil, nil
		}
		if w == nil {
			w = &waiter{host: host.id, principal: by.ID, pool: desired.Pool, woken: make(chan struct{}, 1)}
			entered, ok := s.waiting.enter(w)
			if !ok {
				return nil, nil // the node ends
			}
			defer s.waiting.leave(w)
			timer = time.NewTimer(wait)
			defer timer.Stop()
			if entered != round {
				continue // it may have been this caller that would have been woken, had it waited already
			}
		}
		desired = nil // thousands wait here, and should hold nothing meanwhile
		select {
		case <-w.woken:
		case <-timer.C:
			return nil, nil
		case <-s.waiting.ended:
			return nil, nil
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "the caller left while it waited")
		}
	}
}

// desired is what a host shall hold now, without the checkpoint.
func (s *Service) desired(ctx context.Context, by access.Principal, now time.Time) (*client.Desired, *row, error) {
	d := &client.Desired{}
	var host *row
	var held []string // by placement
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		*d, held = client.Desired{}, nil
		r, err := ofPrincipal(ctx, tx, by.ID)
		if err != nil {
			return err
		}
		if r == nil || !r.removed.IsZero() {
			return noHost(by)
		}
		host, d.Host, d.Pool, d.IdentityAfter = r, r.name, r.pool, r.identityAfter
		if d.DNS, d.IP, err = namesOf(ctx, tx, r.id); err != nil {
			return err
		}
		serials, err := ca.RevokedOf(ctx, tx, by.ID, now, maxRevoked)
		if err != nil {
			return err
		}
		var revoked []string
		for _, serial := range serials {
			revoked = append(revoked, cert.FormatSerial(serial))
		}
		all, err := readPlacements(ctx, tx, `host = $1`, r.id)
		if err != nil {
			return err
		}
		if s.Proofs != nil {
			if d.Proofs, err = s.Proofs(ctx, tx, r.id, now); err != nil {
				return err
			}
		}
		var released map[string][]string
		if slices.ContainsFunc(all, func(p placed) bool { _, may := s.announces(p.PlacementOrder); return may }) {
			if released, err = trust.Released(ctx, tx, r.id); err != nil {
				return err
			}
		}
		for _, p := range all {
			held = append(held, p.held)
			d.Placements = append(d.Placements, client.DesiredPlacement{
				PlacementOrder: p.PlacementOrder, Revoked: revoked, Issuer: r.issuer, Reissue: p.reissue, Released: released[p.Name],
			})
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	sets, err := s.Trust.Of(ctx, d.Pool, host.trust, now)
	if err != nil {
		return nil, nil, err
	}
	under := host.issuer
	if under == "" {
		if under, err = s.stay(ctx, d, held); err != nil {
			return nil, nil, err
		}
	}
	if d.Trust.Authority, err = s.Trust.Authority(ctx, d.Pool, under); err != nil {
		return nil, nil, err
	}
	// The trust sets are large and the same for most of a pool, so their hash stands for them.
	text, err := json.Marshal(d)
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(append(text, sets.Hash[:]...))
	d.ETag = hex.EncodeToString(sum[:16])
	authority := d.Trust.Authority
	d.Trust, d.TrustSets = sets.General, sets.Others
	d.Trust.Authority = authority
	return d, host, nil
}

// stay names the issuers under which placements are held, if these issue, and returns the first of them.
func (s *Service) stay(ctx context.Context, d *client.Desired, held []string) (first string, err error) {
	if !slices.ContainsFunc(held, func(print string) bool { return print != "" }) {
		return "", nil
	}
	issuers, err := s.Trust.IssuersOf(ctx, d.Pool)
	if err != nil {
		return "", err
	}
	names := map[string]string{}
	for _, i := range issuers {
		if i.State == ca.IssuerActive {
			names[trust.Fingerprint(i.Certificate)] = i.Name
		}
	}
	for n, print := range held {
		d.Placements[n].Issuer = names[print]
		if first == "" {
			first = names[print]
		}
	}
	return first, nil
}

// checkpointAge is how old the checkpoint that is handed out may be, beside its own age.
const checkpointAge = 10 * time.Second

// addCheckpoint adds the newest checkpoint of the audit. It is no part of the ETag: it changes every few minutes, and nothing
// is to be done about it.
func (s *Service) addCheckpoint(ctx context.Context, d *client.Desired, now time.Time) error {
	s.mu.Lock()
	text, age := s.checkpoint, now.Sub(s.checked)
	s.mu.Unlock()
	if age < 0 || age >= checkpointAge {
		signed, err := s.Audit.Newest(ctx)
		switch {
		case fault.Is(err, fault.NotFound):
			text = "" // none was signed yet
		case err != nil:
			return fmt.Errorf("read the newest checkpoint: %w", err)
		default:
			text = string(signed.Raw)
		}
		s.mu.Lock()
		s.checkpoint, s.checked = text, now
		s.mu.Unlock()
	}
	d.Checkpoint = text
	return nil
}
