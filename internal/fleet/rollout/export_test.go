package rollout

import (
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
