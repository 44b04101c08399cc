package rollout

import (
	"chancery/client"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"context"
	"time"
)

// Drive is a driver whose looks a test times itself.
type Drive struct {
	s *Service
	d *drive
}

// NewDrive is a driver of a node, as Run is one.
func (s *Service) NewDrive() *Drive { return &Drive{s: s} }

// Look is one look of Run. Hosts that came or went are looked for at each.
func (v *Drive) Look(ctx context.Context) (err error) {
	if v.d != nil {
		for _, p := range v.d.rollout {
			*p = progress{}
		}
	}
	v.d, err = v.s.look(ctx, v.d, time.Now())
	return err
}

// Holds reports whether it has the lease.
func (v *Drive) Holds() bool { return v.d != nil }

// StartAfter begins a rollout as Start does, with something done between the plan and the claim on the pool's trust.
func (s *Service) StartAfter(ctx context.Context, by access.Principal, in client.StartRolloutRequest, between func()) (id string, err error) {
	now := time.Now()
	d, err := s.draft(ctx, by, in, now)
	if err != nil {
		return "", err
	}
	if _, err := s.Trust.Present(ctx, d.pool, now); err != nil {
		return "", err
	}
	between()
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		id, err = s.insert(ctx, tx, d, by, now)
		return err
	})
	return id, err
}
