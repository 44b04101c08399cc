package api

import (
	"context"
	"log/slog"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/once"
	"chancery/internal/surface/problem"
)

func (s *Server) cloneRoutes() {
	register(s, op(post, "/clones/invitations", "clone-invite", access.ManageNodes,
		"Make a one-time token with which a new node may ask to join; it is shown once").creates(), s.inviteClone)
	register(s, op(get, "/clones/invitations", "clone-invitations", access.ManageNodes,
		"List invitations of nodes"), s.listInvitations)
	register(s, op(del, "/clones/invitations/{id}", "clone-withdraw", access.ManageNodes,
		"End an invitation that was not used"), s.withdrawInvitation)
	register(s, op(post, "/clones/join", "clone-join", stranger,
		"Ask to join as a node, and ask again how far that has come"), s.joinClone)
	register(s, op(post, "/clones/identity", "clone-identity", anyone,
		"Renew the calling node's certificates, up to 30 days after their end").creates().late(), s.renewCloneIdentity)
	register(s, op(get, "/clones", "clone-list", access.ReadStatus,
		"List nodes"), s.listClones)
	register(s, op(get, "/clones/{name}", "clone-show", access.ReadStatus,
		"Show a node"), s.showClone)
	register(s, op(post, "/clones/{name}/approve", "clone-approve", access.ManageNodes,
		"Approve a node that waits, by the fingerprint of its keys; again, to finish what was cut short"), s.approveClone)
	register(s, op(post, "/clones/{name}/leave", "clone-leave", anyone,
		"Have a node give back what it holds and end; a node may ask for itself"), s.leaveClone)
	register(s, op(post, "/clones/{name}/promote", "clone-promote", access.ManageNodes,
		"Give a node the work that only one node does, at once; pinned, no other takes it"), s.promoteClone)
	register(s, op(post, "/clones/{name}/demote", "clone-demote", access.ManageNodes,
		"Give that work to another node"), s.demoteClone)
	register(s, op(del, "/clones/{name}", "clone-remove", access.ManageNodes,
		"Remove a node that is dead, or refuse one that waits"), s.removeClone)
}

func (s *Server) inviteClone(ctx context.Context, in *in[client.CloneInvitation]) (*out[client.CloneInvited], error) {
	made, err := s.Clones.Invite(ctx, access.From(ctx), in.Body, in.given())
	if err != nil {
		return nil, err
	}
	return answer(*made), nil
}

func (s *Server) listInvitations(ctx context.Context, in *Paged) (*out[client.Page[client.CloneInvited]], error) {
	found, next, err := s.Clones.Invitations(ctx, access.From(ctx), in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	return page(found, next, func(i client.CloneInvited) client.CloneInvited { return i }), nil
}

func (s *Server) withdrawInvitation(ctx context.Context, in *struct {
	Keyed
	ID string `path:"id" maxLength:"64"`
}) (*outNone, error) {
	_, err := act(ctx, s, in, func(call once.Call) (done once.Done, err error) {
		return done, s.Clones.Withdraw(ctx, access.From(ctx), in.ID, call)
	})
	return nil, err
}

func (s *Server) joinClone(ctx context.Context, in *in[client.CloneJoin]) (*out[client.CloneJoined], error) {
	c := callOf(ctx)
	joined, err := s.Clones.Join(ctx, in.Body)
	if fault.Is(err, fault.Denied) {
		from, _ := problem.Address(c.r.RemoteAddr)
		if limited := s.strangers.Take(from, time.Now()); limited != nil {
			return nil, limited
		}
	}
	if err != nil {
		return nil, err
	}
	c.event.Add(slog.String("clone", in.Body.Name))
	return answer(*joined), nil
}

func (s *Server) renewCloneIdentity(ctx context.Context, in *in[client.CloneIdentity]) (*out[client.CloneJoined], error) {
	renewed, err := s.Clones.RenewIdentity(ctx, access.From(ctx), in.Body, in.given())
	if err != nil {
		return nil, err
	}
	return answer(*renewed), nil
}

func (s *Server) listClones(ctx context.Context, in *Paged) (*out[client.Page[client.Clone]], error) {
	found, next, err := s.Clones.List(ctx, access.From(ctx), in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	return page(found, next, func(c client.Clone) client.Clone { return c }), nil
}

func (s *Server) showClone(ctx context.Context, in *named) (*out[client.Clone], error) {
	found, err := s.Clones.Show(ctx, access.From(ctx), in.Name)
	if err != nil {
		return nil, err
	}
	return answer(*found), nil
}

// approveClone needs no memory of calls: what was done is seen, and done no second time.
func (s *Server) approveClone(ctx context.Context, in *namedIn[client.CloneApproval]) (*out[client.Clone], error) {
	approved, err := s.Clones.Approve(ctx, access.From(ctx), in.Name, in.Body)
	if err != nil {
		return nil, err
	}
	return answer(*approved), nil
}

func (s *Server) leaveClone(ctx context.Context, in *namedAct) (*out[client.Clone], error) {
	call := once.Call{}
	if in.given() != "" {
		var err error
		if call, err = repeatable(ctx, in); err != nil {
			return nil, err
		}
	}
	left, err := s.Clones.Leave(ctx, access.From(ctx), in.Name, call)
	if err != nil {
		return nil, err
	}
	return answer(*left), nil
}

func (s *Server) promoteClone(ctx context.Context, in *namedIn[client.CloneTurn]) (*out[client.Clone], error) {
	return s.turnClone(ctx, in, s.Clones.Promote)
}

func (s *Server) demoteClone(ctx context.Context, in *namedIn[client.CloneTurn]) (*out[client.Clone], error) {
	return s.turnClone(ctx, in, s.Clones.Demote)
}

func (s *Server) turnClone(ctx context.Context, in *namedIn[client.CloneTurn],
	turn func(context.Context, access.Principal, string, client.CloneTurn, once.Call) (*client.Clone, error)) (*out[client.Clone], error) {
	call, err := repeatable(ctx, in)
	if err != nil {
		return nil, err
	}
	turned, err := turn(ctx, access.From(ctx), in.Name, in.Body, call)
	if err != nil {
		return nil, err
	}
	return answer(*turned), nil
}

func (s *Server) removeClone(ctx context.Context, in *struct {
	Keyed
	Name        string `path:"name" maxLength:"255"`
	Force       bool   `query:"force" doc:"also one that was seen just now"`
	Compromised bool   `query:"compromised" doc:"it fell into wrong hands: its identity is revoked as compromised, whether or not it was seen just now"`
}) (*outNone, error) {
	_, err := act(ctx, s, in, func(call once.Call) (done once.Done, err error) {
		return done, s.Clones.Remove(ctx, access.From(ctx), in.Name, clone.Removal{Force: in.Force, Compromised: in.Compromised}, call)
	})
	return nil, err
}
