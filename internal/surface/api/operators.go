package api

import (
	"bytes"
	"context"
	"crypto/x509"
	"time"

	"chancery/client"
	"chancery/internal/authority/identity"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/once"
)

func (s *Server) showCaller(ctx context.Context, _ *none) (*out[client.Operator], error) {
	return answer(wireOperator(access.From(ctx))), nil
}

type operatorList struct {
	Paged
	Kind string `query:"kind" enum:"operator,node,host,agent" doc:"only those of one kind"`
}

func (s *Server) listOperators(ctx context.Context, in *operatorList) (*out[client.Page[client.Operator]], error) {
	found, next, err := s.Access.Principals(ctx, access.From(ctx), access.Kind(in.Kind), in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	return page(found, next, wireOperator), nil
}

func (s *Server) showOperator(ctx context.Context, in *named) (*out[client.Operator], error) {
	p, err := s.Access.PrincipalNamed(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	return answer(wireOperator(p)), nil
}

func (s *Server) createOperator(ctx context.Context, in *in[client.CreateOperatorRequest]) (*out[client.Operator], error) {
	p, err := act(ctx, s, in, func(call once.Call) (access.Principal, error) {
		return s.Access.CreatePrincipal(ctx, access.From(ctx), access.Principal{
			Name: in.Body.Name, Kind: access.KindOperator, Roles: storedRoles(in.Body.Roles),
		}, call)
	})
	if err != nil {
		return nil, err
	}
	return answer(wireOperator(p)), nil
}

func (s *Server) changeOperator(ctx context.Context, in *namedIn[client.ChangeOperatorRequest]) (*out[client.Operator], error) {
	change := access.Change{Disabled: in.Body.Disabled}
	if len(in.Body.Roles) > 0 {
		change.Roles = storedRoles(in.Body.Roles)
	}
	p, err := act(ctx, s, in, func(call once.Call) (access.Principal, error) {
		p, err := s.Access.PrincipalNamed(ctx, in.Name)
		if err != nil {
			return p, err
		}
		return s.Access.UpdatePrincipal(ctx, access.From(ctx), p.ID, change, call)
	})
	if err != nil {
		return nil, err
	}
	return answer(wireOperator(p)), nil
}

func (s *Server) removeOperator(ctx context.Context, in *namedAct) (*outNone, error) {
	_, err := act(ctx, s, in, func(call once.Call) (done once.Done, err error) {
		p, err := s.Access.PrincipalNamed(ctx, in.Name)
		if err != nil {
			return done, err
		}
		if err := s.Hosts.CheckNoHost(ctx, p); err != nil {
			return done, err
		}
		return done, s.Access.DeletePrincipal(ctx, access.From(ctx), p.ID, call)
	})
	return nil, err
}

// tokenOwner is the principal whose tokens are meant. Whoever may not read principals learns of no name but his own.
func (s *Server) tokenOwner(ctx context.Context, name string) (access.Principal, error) {
	caller := access.From(ctx)
	if caller.Name == name {
		return caller, nil
	}
	if err := caller.May(access.ReadPrincipals); err != nil {
		return access.Principal{}, err
	}
	return s.Access.PrincipalNamed(ctx, name)
}

func (s *Server) listTokens(ctx context.Context, in *namedList) (*out[client.Page[client.Token]], error) {
	owner, err := s.tokenOwner(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	found, next, err := s.Access.Tokens(ctx, access.From(ctx), owner.ID, in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	return page(found, next, func(t access.Token) client.Token { return wireToken(t, owner) }), nil
}

// defaultTokenLife is how long a token is valid whose maker does not say.
const defaultTokenLife = 90 * 24 * time.Hour

func (s *Server) createToken(ctx context.Context, in *namedIn[client.CreateTokenRequest]) (*out[client.Token], error) {
	owner, err := s.tokenOwner(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	if owner.Kind != access.KindOperator {
		return nil, fault.New(fault.Invalid, "%s is no operator; only operators have tokens", owner.Actor())
	}
	life, err := length(in.Body.Validity)
	if err != nil {
		return nil, err
	}
	if life == 0 {
		life = defaultTokenLife
	}
	t, secret, err := s.Access.CreateToken(ctx, access.From(ctx), access.TokenOrder{
		Principal: owner.ID, Label: in.Body.Label, Life: life, Key: in.given(),
	})
	if err != nil {
		return nil, err
	}
	w := wireToken(t, owner)
	w.Secret = secret
	return answer(w), nil
}

func (s *Server) revokeToken(ctx context.Context, in *struct {
	Keyed
	ID string `path:"id" maxLength:"64"`
}) (*outNone, error) {
	_, err := act(ctx, s, in, func(call once.Call) (done once.Done, err error) {
		return done, s.Access.DeleteToken(ctx, access.From(ctx), in.ID, call)
	})
	return nil, err
}

// enrol gives the operator so named an identity for the key of a CSR.
func (s *Server) enrol(ctx context.Context, in *namedIn[client.EnrolRequest]) (*out[client.Identity], error) {
	owner, err := s.Access.PrincipalNamed(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	return s.enrolFor(ctx, owner, in.Body.CSR, in.key())
}

// enrolCaller is enrol for the caller himself, as he does to renew.
func (s *Server) enrolCaller(ctx context.Context, in *in[client.EnrolRequest]) (*out[client.Identity], error) {
	return s.enrolFor(ctx, access.From(ctx), in.Body.CSR, in.key())
}

func (s *Server) enrolFor(ctx context.Context, owner access.Principal, text, key string) (*out[client.Identity], error) {
	csr, err := decodeCSR(text)
	if err != nil {
		return nil, err
	}
	issued, err := s.Identity.Enrol(ctx, access.From(ctx), owner, csr, key)
	if err != nil {
		return nil, err
	}
	s.note(ctx, issued)
	w := client.Identity{Operator: owner.Name, NotAfter: issued.NotAfter}
	for _, der := range identity.Path(issued) {
		w.PEM += string(encodePEM("CERTIFICATE", der))
	}
	if path := append([]*x509.Certificate{issued.Issuer.Certificate}, issued.Issuer.Chain...); bytes.Equal(path[len(path)-1].RawIssuer, path[len(path)-1].RawSubject) {
		w.Root = string(encodePEM("CERTIFICATE", path[len(path)-1].Raw))
	}
	return answer(w), nil
}

func wireToken(t access.Token, owner access.Principal) client.Token {
	return client.Token{
		ID: t.ID, Operator: owner.Name, Label: t.Label, CreatedAt: t.Created, ExpiresAt: t.Expires, LastUsed: t.LastUsed,
	}
}

func wireOperator(p access.Principal) client.Operator {
	out := client.Operator{
		ID: p.ID, Name: p.Name, Kind: string(p.Kind), Roles: make([]string, len(p.Roles)), Disabled: p.Disabled, CreatedAt: p.Created,
	}
	for i, r := range p.Roles {
		out.Roles[i] = string(r)
	}
	return out
}

func storedRoles(names []string) []access.Role {
	out := make([]access.Role, len(names))
	for i, n := range names {
		out[i] = access.Role(n)
	}
	return out
}
