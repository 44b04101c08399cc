package api

import (
	"context"
	"net/http"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/store/access"
	"chancery/internal/surface/problem"
)

func (s *Server) renewAgentIdentity(ctx context.Context, in *in[client.RenewIdentityRequest]) (*out[client.Joined], error) {
	joined, err := s.Hosts.RenewIdentity(ctx, access.From(ctx), in.Body, in.key())
	if err != nil {
		return nil, err
	}
	return answer(*joined), nil
}

// desiredIn asks for the desired state.
type desiredIn struct {
	Wait        int    `query:"wait" minimum:"0" maximum:"300" doc:"how many seconds to wait for a change"`
	IfNoneMatch string `header:"If-None-Match" maxLength:"256" doc:"the ETag of what the host knows"`
}

// desiredOut is the desired state, or 304 where it is what the caller knows.
type desiredOut struct {
	Status int
	ETag   string `header:"ETag"`
	Body   *client.Desired
}

func (s *Server) showDesired(ctx context.Context, in *desiredIn) (*desiredOut, error) {
	known := strings.Trim(strings.TrimPrefix(strings.TrimSpace(in.IfNoneMatch), "W/"), `"`)
	desired, err := s.Hosts.Desired(ctx, access.From(ctx), known, time.Duration(in.Wait)*time.Second)
	// The wait is over; a caller that does not take the answer is cut off.
	callOf(ctx).control.SetWriteDeadline(time.Now().Add(writeStall))
	if err != nil {
		return nil, err
	}
	if desired == nil {
		return &desiredOut{Status: http.StatusNotModified, ETag: problem.ETag(known)}, nil
	}
	return &desiredOut{Status: http.StatusOK, ETag: problem.ETag(desired.ETag), Body: desired}, nil
}

func (s *Server) report(ctx context.Context, in *in[client.Report]) (*outNone, error) {
	return nil, s.Hosts.Report(ctx, access.From(ctx), in.Body)
}
