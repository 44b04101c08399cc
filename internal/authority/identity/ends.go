package identity

import (
	"context"
	"strings"
	"time"

	"chancery/internal/store/access"
)

// FirstNodeEnd returns the node whose newest TLS certificate is the first to end, and when; an empty name where none is ahead.
// A node that is no more counts until its last one has ended: nothing tells it from one that is down.
func (s *Service) FirstNodeEnd(ctx context.Context, now time.Time) (node string, at time.Time, err error) {
	requester, at, err := s.ca.FirstIdentityEnd(ctx, access.System(Enroller).ID, now)
	return strings.TrimPrefix(requester, access.System("").ID), at, err
}
