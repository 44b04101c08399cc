package api

import (
	"context"

	"chancery/client"
	"chancery/internal/store/access"
	"chancery/internal/store/once"
)

// proofIn names a proof.
type proofIn struct {
	ID string `path:"id" maxLength:"64"`
}

type proofCall[T any] struct {
	Keyed
	ID   string `path:"id" maxLength:"64"`
	Body T
}

func (s *Server) proveRevoked(ctx context.Context, in *serialIn[client.ProveRequest]) (*out[client.ProofResult], error) {
	ref, err := in.ref()
	if err != nil {
		return nil, err
	}
	by := access.From(ctx)
	if in.Body.DryRun {
		preview, err := s.Proofs.Preview(ctx, by, ref, in.Body)
		if err != nil {
			return nil, err
		}
		return answer(*preview), nil
	}
	id, err := act(ctx, s, in, func(call once.Call) (string, error) { return s.Proofs.Start(ctx, by, ref, in.Body, call) })
	if err != nil {
		return nil, err
	}
	return s.showProof(ctx, &proofIn{ID: id})
}

func (s *Server) lastProof(ctx context.Context, in *SerialOf) (*out[client.ProofResult], error) {
	ref, err := in.ref()
	if err != nil {
		return nil, err
	}
	found, err := s.Proofs.Last(ctx, access.From(ctx), ref)
	if err != nil {
		return nil, err
	}
	return answer(*found), nil
}

func (s *Server) showProof(ctx context.Context, in *proofIn) (*out[client.ProofResult], error) {
	found, err := s.Proofs.Show(ctx, access.From(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return answer(*found), nil
}

func (s *Server) issueForProof(ctx context.Context, in *proofCall[client.ProofKeyRequest]) (*out[client.ProofCertificate], error) {
	issued, err := s.Proofs.Issue(ctx, access.From(ctx), in.ID, in.Body)
	if err != nil {
		return nil, err
	}
	return answer(*issued), nil
}

func (s *Server) reportProof(ctx context.Context, in *proofCall[client.ProofReport]) (*outNone, error) {
	return nil, s.Proofs.Report(ctx, access.From(ctx), in.ID, in.Body)
}
