package api

import (
	"context"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/access"
	"chancery/internal/store/once"
	"github.com/danielgtaylor/huma/v2"
)

// trustBody bounds a call that adds certificates: a megabyte of PEM, as JSON writes it.
const trustBody = 2 << 20

func (s *Server) trustRoutes() {
	register(s, op(get, "/pools/{name}/trust", "trust-list", access.ReadPools,
		"List what the hosts of a pool trust"), s.listTrust)
	register(s, op(post, "/pools/{name}/trust", "trust-add", access.ManagePools,
		"Add certificates to what the hosts of a pool trust").creates().upTo(trustBody), s.addTrust)
	register(s, op(post, "/pools/{name}/trust/{entry}/drop", "trust-drop", access.ManagePools,
		"Take a certificate out of what the hosts of a pool trust"), s.dropTrust)
	register(s, op(post, "/pools/{name}/trust/{entry}/crl", "trust-crl", access.ManagePools,
		"Bring in a CRL of a trust anchor that is none of the authority's").upTo(uploadBody), s.addTrustCRL)
	register(s, op(get, "/agent/trust/{entry}/crl", "agent-trust-crl", access.ActAsHost,
		"The newest CRL of a trust anchor of the calling host's pool that is none of the authority's").answers(mediaCRL).long(), s.showTrustCRL)
}

// TrustList is what a list of trust entries may be narrowed by.
type TrustList struct {
	Paged
	Name    string `path:"name" maxLength:"255"`
	Purpose string `query:"purpose" maxLength:"32" doc:"only those for one purpose"`
}

func (s *Server) listTrust(ctx context.Context, in *TrustList) (*out[client.Page[client.TrustEntry]], error) {
	all, err := s.Trust.Entries(ctx, access.From(ctx), in.Name)
	if err != nil {
		return nil, err
	}
	if in.Purpose != "" {
		all = slices.DeleteFunc(all, func(e client.TrustEntry) bool { return e.Purpose != in.Purpose })
	}
	if in.After != "" {
		i := slices.IndexFunc(all, func(e client.TrustEntry) bool { return e.ID == in.After })
		if i < 0 {
			return nil, fault.New(fault.Invalid, "page key %.40q is not one that this list returned, or its entry has left since", in.After).At("query after")
		}
		all = all[i+1:]
	}
	next := ""
	if len(all) > in.Limit {
		all = all[:in.Limit]
		next = all[in.Limit-1].ID
	}
	return page(all, next, func(e client.TrustEntry) client.TrustEntry { return e }), nil
}

func (s *Server) addTrust(ctx context.Context, in *namedIn[client.AddTrustRequest]) (*out[[]client.TrustEntry], error) {
	// What is kept for a repeated call are the IDs: the entries may be large.
	ids, err := act(ctx, s, in, func(call once.Call) (ids []string, err error) {
		added, err := s.Trust.Add(ctx, access.From(ctx), in.Name, in.Body, call)
		for _, e := range added {
			ids = append(ids, e.ID)
		}
		return ids, err
	})
	if err != nil {
		return nil, err
	}
	added, err := s.Trust.Named(ctx, in.Name, ids)
	if err != nil {
		return nil, err
	}
	return answer(added), nil
}

// entryIn is a call on an entry of a pool.
type entryIn[T any] struct {
	Keyed
	Name  string `path:"name" maxLength:"255"`
	Entry string `path:"entry" maxLength:"95" doc:"its ID, or the SHA-256 of the certificate in hexadecimal"`
	Body  T
}

func (s *Server) dropTrust(ctx context.Context, in *entryIn[client.DropTrustRequest]) (*outNone, error) {
	_, err := act(ctx, s, in, func(call once.Call) (done once.Done, err error) {
		return done, s.Trust.Drop(ctx, access.From(ctx), in.Name, in.Entry, in.Body, call)
	})
	return nil, err
}

func (s *Server) addTrustCRL(ctx context.Context, in *entryIn[client.UploadCRLRequest]) (*out[client.TrustEntry], error) {
	_, err := act(ctx, s, in, func(call once.Call) (done once.Done, err error) {
		return done, s.Trust.AddCRL(ctx, access.From(ctx), in.Name, in.Entry, []byte(in.Body.CRL), call)
	})
	if err != nil {
		return nil, err
	}
	e, err := s.Trust.Find(ctx, in.Name, in.Entry)
	if err != nil {
		return nil, err
	}
	return answer(e), nil
}

func (s *Server) showTrustCRL(ctx context.Context, in *struct {
	Entry string `path:"entry" maxLength:"95"`
}) (*outStream, error) {
	der, err := s.Hosts.TrustCRL(ctx, access.From(ctx), in.Entry)
	if err != nil {
		return nil, err
	}
	if len(der) == 0 {
		return nil, fault.New(fault.NotFound, "trust entry %.80q has no CRL", in.Entry)
	}
	return &outStream{func(hc huma.Context) { callOf(ctx).send(mediaCRL, der)(hc) }}, nil
}

// endingTrust is what doctor tells of what pools trust.
func (s *Server) endingTrust(ctx context.Context, before time.Time) ([]trust.Ending, error) {
	return s.Trust.Ending(ctx, before, 100)
}
