package api

import (
	"context"
	"fmt"
	"net/http"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/once"
)

type (
	// requestID names a request.
	requestID struct {
		ID string `path:"id" maxLength:"64"`
	}
	requestIn[T any] struct {
		Keyed
		ID   string `path:"id" maxLength:"64"`
		Body T
	}
	requestAct struct {
		Keyed
		ID   string `path:"id" maxLength:"64"`
		Body *client.Nothing
	}
)

func (s *Server) listRequests(ctx context.Context, in *struct {
	Paged
	State     string `query:"state" enum:"pending,issued,rejected,cancelled"`
	Requester string `query:"requester" maxLength:"255" doc:"a principal's name"`
	Assignee  string `query:"assignee" maxLength:"255" doc:"an officer's name"`
}) (*out[client.Page[client.Request]], error) {
	requester, err := s.names.id(ctx, in.Requester)
	if err != nil {
		return nil, err
	}
	assignee, err := s.names.id(ctx, in.Assignee)
	if err != nil {
		return nil, err
	}
	f := ca.RequestFilter{State: ca.RequestState(in.State), Requester: requester, AssignedTo: assignee}
	found, next, err := s.CA.Requests(ctx, access.From(ctx), f, in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	return page(found, next, func(r *ca.Request) client.Request { return s.wireRequest(ctx, r) }), nil
}

func (s *Server) showRequest(ctx context.Context, in *requestID) (*out[client.Request], error) {
	r, issued, err := s.CA.Retrieve(ctx, access.From(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return answer(s.decided(ctx, r, issued)), nil
}

// decided is a request with the certificate that came of it.
func (s *Server) decided(ctx context.Context, r *ca.Request, issued *ca.Certificate) client.Request {
	w := s.wholeRequest(ctx, r)
	if issued != nil {
		w.Serial = s.wireCertificate(ctx, issued).Serial
	}
	return w
}

func (s *Server) retrieve(ctx context.Context, in *requestID) (*out[client.Certificate], error) {
	r, issued, err := s.CA.Retrieve(ctx, access.From(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	if issued == nil {
		because := ""
		if r.Reason != "" {
			because = fmt.Sprintf(" (%q)", r.Reason)
		}
		return nil, fault.New(fault.Conflict, "request %s is %s%s; only an issued one has a certificate", r.ID, r.State, because)
	}
	return answer(s.wholeCertificate(ctx, issued)), nil
}

func (s *Server) assignRequest(ctx context.Context, in *requestIn[client.AssignRequest]) (*out[client.Request], error) {
	r, err := act(ctx, s, in, func(call once.Call) (*ca.Request, error) {
		officer, err := s.names.id(ctx, in.Body.Assignee)
		if err != nil {
			return nil, err
		}
		return s.CA.Assign(ctx, access.From(ctx), in.ID, officer, call)
	})
	if err != nil {
		return nil, err
	}
	return answer(s.wholeRequest(ctx, r)), nil
}

func (s *Server) approveRequest(ctx context.Context, in *requestAct) (*outStatus[client.IssueResult], error) {
	r, issued, err := s.CA.Approve(ctx, access.From(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	result := s.issued(ctx, issued)
	w := s.decided(ctx, r, issued)
	result.Status, result.Body.Request = http.StatusOK, &w
	return result, nil
}

func (s *Server) rejectRequest(ctx context.Context, in *requestIn[client.RejectRequest]) (*out[client.Request], error) {
	r, err := act(ctx, s, in, func(call once.Call) (*ca.Request, error) {
		return s.CA.Reject(ctx, access.From(ctx), in.ID, in.Body.Reason, call)
	})
	if err != nil {
		return nil, err
	}
	return answer(s.wholeRequest(ctx, r)), nil
}

func (s *Server) cancelRequest(ctx context.Context, in *requestAct) (*out[client.Request], error) {
	r, err := act(ctx, s, in, func(call once.Call) (*ca.Request, error) {
		return s.CA.Cancel(ctx, access.From(ctx), in.ID, call)
	})
	if err != nil {
		return nil, err
	}
	return answer(s.wholeRequest(ctx, r)), nil
}
