package api

import (
	"context"

	"chancery/client"
	"chancery/internal/store/access"
)

// HostList is what a list of hosts may be narrowed by.
type HostList struct {
	Paged
	Pool  string `query:"pool" maxLength:"56" doc:"only those of one pool"`
	State string `query:"state" enum:"pending,joined,suspect,removed" doc:"only those in one state; removed ones are listed by this alone"`
}

func (s *Server) listHosts(ctx context.Context, in *HostList) (*out[client.Page[client.Host]], error) {
	found, next, err := s.Hosts.List(ctx, access.From(ctx), client.HostFilter{Pool: in.Pool, State: in.State}, in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	return page(found, next, func(h client.Host) client.Host { return h }), nil
}

func (s *Server) showHost(ctx context.Context, in *named) (*out[client.Host], error) {
	h, err := s.Hosts.Show(ctx, access.From(ctx), in.Name)
	if err != nil {
		return nil, err
	}
	return answer(*h), nil
}

func (s *Server) addHost(ctx context.Context, in *in[client.AddHostRequest]) (*out[client.HostToken], error) {
	made, err := s.Hosts.Add(ctx, access.From(ctx), in.Body, in.key())
	if err != nil {
		return nil, err
	}
	return answer(*made), nil
}

func (s *Server) setHost(ctx context.Context, in *namedIn[client.ChangeHostRequest]) (*out[client.Host], error) {
	h, err := s.Hosts.Set(ctx, access.From(ctx), in.Name, in.Body, in.key())
	if err != nil {
		return nil, err
	}
	return answer(*h), nil
}

func (s *Server) removeHost(ctx context.Context, in *struct {
	Keyed
	Name   string `path:"name" maxLength:"255"`
	Reason string `query:"reason" maxLength:"32" doc:"why what it holds is revoked; cessationOfOperation where absent"`
}) (*outNone, error) {
	return nil, s.Hosts.Remove(ctx, access.From(ctx), in.Name, in.Reason, in.key())
}

func (s *Server) replaceHost(ctx context.Context, in *namedIn[client.ReplaceHostRequest]) (*out[client.HostToken], error) {
	made, err := s.Hosts.Replace(ctx, access.From(ctx), in.Name, in.Body, in.key())
	if err != nil {
		return nil, err
	}
	return answer(*made), nil
}

func (s *Server) newHostToken(ctx context.Context, in *namedIn[client.HostTokenRequest]) (*out[client.HostToken], error) {
	made, err := s.Hosts.NewToken(ctx, access.From(ctx), in.Name, in.Body, in.key())
	if err != nil {
		return nil, err
	}
	return answer(*made), nil
}
