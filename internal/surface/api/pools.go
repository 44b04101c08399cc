package api

import (
	"context"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/store/once"
)

func (s *Server) listPools(ctx context.Context, in *struct{ Paged }) (*out[client.Page[client.Pool]], error) {
	found, next, err := s.Pools.Pools(ctx, access.From(ctx), in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	return page(found, next, func(p *pool.Pool) client.Pool { return s.wirePool(ctx, p) }), nil
}

func (s *Server) showPool(ctx context.Context, in *named) (*out[client.Pool], error) {
	p, err := s.Pools.Pool(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	return answer(s.wirePool(ctx, p)), nil
}

func (s *Server) addPool(ctx context.Context, in *in[client.AddPoolRequest]) (*out[client.Pool], error) {
	spec := pool.Spec{
		Name: in.Body.Name, Organization: in.Body.Organization, Online: in.Body.Online, PathLen: in.Body.PathLen, Constraints: in.Body.NameConstraints,
	}
	var err error
	if in.Body.Algorithm != "" {
		if spec.Algorithm, err = keyfile.ParseAlgorithm(in.Body.Algorithm); err != nil {
			return nil, err
		}
	}
	if spec.Validity, err = length(in.Body.Validity); err != nil {
		return nil, err
	}
	p, err := s.Pools.Add(ctx, access.From(ctx), in.key(), spec)
	if err != nil {
		return nil, err
	}
	return answer(s.wirePool(ctx, p)), nil
}

func (s *Server) completePool(ctx context.Context, in *namedIn[client.CompletePoolRequest]) (*out[client.Pool], error) {
	above, err := decodeCertificates(in.Body.Root, "/root")
	if err != nil {
		return nil, err
	}
	issuer, err := decodeCertificates(in.Body.Issuer, "/issuer")
	if err != nil {
		return nil, err
	}
	if len(above) != 1 || len(issuer) != 1 {
		return nil, fault.New(fault.Invalid, "there are %d roots and %d issuers; one of each is wanted", len(above), len(issuer)).At("/root")
	}
	_, err = act(ctx, s, in, func(call once.Call) (id string, err error) {
		p, err := s.Pools.Complete(ctx, access.From(ctx), in.Name, above[0], issuer[0], []byte(in.Body.CRL), call)
		if err != nil {
			return "", err
		}
		return p.Issuer.ID, nil
	})
	if err != nil {
		return nil, err
	}
	p, err := s.Pools.Pool(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	return answer(s.wirePool(ctx, p)), nil
}

func (s *Server) wirePool(ctx context.Context, p *pool.Pool) client.Pool {
	out := client.Pool{Name: p.Name, Organization: p.Organization, State: "active", CreatedAt: p.CreatedAt}
	if p.Pending() {
		out.State = "pending"
	}
	if p.Root != nil {
		root := s.wholeIssuer(ctx, p.Root)
		out.Root = &root
	}
	if p.Issuer != nil {
		issuer := s.wholeIssuer(ctx, p.Issuer)
		out.Issuer = &issuer
	}
	return out
}
