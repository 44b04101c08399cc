package api

import (
	"context"
	"log/slog"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/surface/problem"
	"github.com/danielgtaylor/huma/v2"
)

// admitStranger counts a call of somebody who need not say who he is. Those who guessed too often wait as others do who did
// not prove who they are.
func (s *Server) admitStranger(c *call, now time.Time) error {
	from, _ := problem.Address(c.r.RemoteAddr)
	c.event.Add(slog.String("auth", "none"))
	if s.strangers.Spent(from, now) {
		return s.strangers.Take(from, now)
	}
	return s.joins.Take(from, now)
}

func (s *Server) joinRoots(ctx context.Context, _ *none) (*outStream, error) {
	roots, err := s.Hosts.Roots(ctx)
	if err != nil {
		return nil, err
	}
	return &outStream{func(hc huma.Context) { callOf(ctx).send(mediaPEM, []byte(roots))(hc) }}, nil
}

func (s *Server) join(ctx context.Context, in *in[client.JoinRequest]) (*out[client.Joined], error) {
	c := callOf(ctx)
	joined, err := s.Hosts.Join(ctx, in.Body)
	if fault.Is(err, fault.Unauthenticated) || fault.Is(err, fault.Denied) {
		from, _ := problem.Address(c.r.RemoteAddr)
		if limited := s.strangers.Take(from, time.Now()); limited != nil {
			return nil, limited
		}
	}
	if err != nil {
		return nil, err
	}
	c.event.Add(slog.String("host", joined.Host))
	return answer(*joined), nil
}
