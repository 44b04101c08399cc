package identity

import (
	"context"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/access"
)

// FirstNodeEnd returns the node whose newest TLS certificate is the first to end, and when; an empty name where none is ahead.
func (s *Service) FirstNodeEnd(ctx context.Context, now time.Time) (node string, at time.Time, err error) {
	name, at, err := s.access.FirstEnd(ctx, access.KindNode, now)
	if err != nil {
		return "", at, err
	}
	node = strings.TrimPrefix(name, NodePrincipal(""))
	// Of a node that is not registered, only the certificate tells.
	requester, served, err := s.ca.FirstIdentityEnd(ctx, access.System(Enroller).ID, now)
	other := strings.TrimPrefix(requester, access.System("").ID)
	if err != nil || other == "" || node != "" && !served.Before(at) {
		return node, at, err
	}
	_, err = s.access.PrincipalNamed(ctx, NodePrincipal(other))
	if fault.Is(err, fault.NotFound) {
		return other, served, nil
	}
	return node, at, err
}
