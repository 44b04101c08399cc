package api

import (
	"context"
	"crypto/x509"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/once"
)

func (s *Server) rolloutRoutes() {
	register(s, op(get, "/rollouts", "rollout-list", access.ReadHosts,
		"List rollouts, the newest first"), s.listRollouts)
	register(s, op(post, "/rollouts", "rollout-start", access.ManageHosts,
		"Start a rollout, or say what it would do; one that changes whom hosts trust is for administrators").creates().upTo(csrBody).costly(), s.startRollout)
	register(s, op(get, "/rollouts/{name}", "rollout-show", access.ReadHosts,
		"Show how far a rollout is, and who holds it; current names the one that runs, or the last"), s.showRollout)
	register(s, op(post, "/rollouts/{name}/pause", "rollout-pause", access.ManageHosts,
		"Stop a rollout where it is"), s.pauseRollout)
	register(s, op(post, "/rollouts/{name}/resume", "rollout-resume", access.ManageHosts,
		"Go on, and leave out hosts or certificates that hold it"), s.resumeRollout)
	register(s, op(post, "/rollouts/{name}/undo", "rollout-undo", access.ManageHosts,
		"Go back through the stages of a rollout"), s.undoRollout)
	register(s, op(post, "/rollouts/{name}/abort", "rollout-abort", access.ManageHosts,
		"End a rollout where it is; the old and the new stay trusted"), s.abortRollout)
	register(s, op(post, "/rollouts/{name}/complete", "rollout-complete", access.ManagePools,
		"Bring in what an offline root signed for a rollout").upTo(uploadBody), s.completeRollout)
}

// RolloutList is what a list of rollouts may be narrowed by.
type RolloutList struct {
	Paged
	Pool string `query:"pool" maxLength:"56" doc:"only those of one pool"`
}

func (s *Server) listRollouts(ctx context.Context, in *RolloutList) (*out[client.Page[client.Rollout]], error) {
	found, next, err := s.Rollouts.List(ctx, access.From(ctx), in.Pool, in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	return page(found, next, func(r client.Rollout) client.Rollout { return r }), nil
}

func (s *Server) startRollout(ctx context.Context, in *in[client.StartRolloutRequest]) (*out[client.Rollout], error) {
	if in.Body.DryRun {
		r, err := s.Rollouts.Start(ctx, access.From(ctx), in.Body, once.Call{})
		if err != nil {
			return nil, err
		}
		return answer(*r), nil
	}
	id, err := act(ctx, s, in, func(call once.Call) (string, error) {
		r, err := s.Rollouts.Start(ctx, access.From(ctx), in.Body, call)
		if err != nil {
			return "", err
		}
		return r.ID, nil
	})
	if err != nil {
		return nil, err
	}
	return s.rollout(ctx, id)
}

// rolloutID is the ID of a path; current is the one that runs, or else the newest.
func rolloutID(name string) string {
	if name == "current" {
		return ""
	}
	return name
}

func (s *Server) rollout(ctx context.Context, id string) (*out[client.Rollout], error) {
	r, err := s.Rollouts.Show(ctx, access.From(ctx), id)
	if err != nil {
		return nil, err
	}
	return answer(*r), nil
}

func (s *Server) showRollout(ctx context.Context, in *named) (*out[client.Rollout], error) {
	return s.rollout(ctx, rolloutID(in.Name))
}

// driveRollout runs an act upon a rollout, and answers with the rollout as it is then.
func (s *Server) driveRollout(ctx context.Context, name string, in interface{ given() string },
	do func(by access.Principal, id string, call once.Call) (*client.Rollout, error)) (*out[client.Rollout], error) {
	var done *client.Rollout
	_, err := act(ctx, s, in, func(call once.Call) (once.Done, error) {
		r, err := do(access.From(ctx), rolloutID(name), call)
		done = r
		return once.Done{}, err
	})
	if err != nil {
		return nil, err
	}
	if done != nil {
		return answer(*done), nil
	}
	return s.rollout(ctx, rolloutID(name))
}

func (s *Server) pauseRollout(ctx context.Context, in *namedAct) (*out[client.Rollout], error) {
	return s.driveRollout(ctx, in.Name, in, func(by access.Principal, id string, call once.Call) (*client.Rollout, error) {
		return s.Rollouts.Pause(ctx, by, id, call)
	})
}

func (s *Server) resumeRollout(ctx context.Context, in *namedIn[client.ResumeRolloutRequest]) (*out[client.Rollout], error) {
	return s.driveRollout(ctx, in.Name, in, func(by access.Principal, id string, call once.Call) (*client.Rollout, error) {
		return s.Rollouts.Resume(ctx, by, id, in.Body, call)
	})
}

func (s *Server) undoRollout(ctx context.Context, in *namedAct) (*out[client.Rollout], error) {
	return s.driveRollout(ctx, in.Name, in, func(by access.Principal, id string, call once.Call) (*client.Rollout, error) {
		return s.Rollouts.Undo(ctx, by, id, call)
	})
}

func (s *Server) abortRollout(ctx context.Context, in *namedAct) (*out[client.Rollout], error) {
	return s.driveRollout(ctx, in.Name, in, func(by access.Principal, id string, call once.Call) (*client.Rollout, error) {
		return s.Rollouts.Abort(ctx, by, id, call)
	})
}

func (s *Server) completeRollout(ctx context.Context, in *namedIn[client.CompleteRolloutRequest]) (*out[client.Rollout], error) {
	single := func(text, pointer string) (*x509.Certificate, error) {
		if text == "" {
			return nil, nil
		}
		all, err := decodeCertificates(text, pointer)
		if err != nil {
			return nil, err
		}
		if len(all) != 1 {
			return nil, fault.New(fault.Invalid, "there are %d certificates; one is wanted", len(all)).At(pointer)
		}
		return all[0], nil
	}
	above, err := single(in.Body.Root, "/root")
	if err != nil {
		return nil, err
	}
	issuer, err := single(in.Body.Issuer, "/issuer")
	if err != nil {
		return nil, err
	}
	if issuer == nil {
		return nil, fault.New(fault.Invalid, "the certificate of the new issuer is wanted").At("/issuer")
	}
	_, err = act(ctx, s, in, func(call once.Call) (string, error) {
		_, err := s.Rollouts.Complete(ctx, access.From(ctx), rolloutID(in.Name), above, issuer, []byte(in.Body.CRL), call)
		return "", err
	})
	if err != nil {
		return nil, err
	}
	return s.rollout(ctx, rolloutID(in.Name))
}
