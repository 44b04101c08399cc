package api

import (
	"context"
	"fmt"
	"io"
	"math/big"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/pki/certtool"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/once"
)

func wireCRL(i *ca.Issuer, l *revocation.List) client.CRL {
	out := client.CRL{
		Issuer: i.Name, Number: l.Number.String(), Scope: string(l.Scope), Current: l.Current, ThisUpdate: l.ThisUpdate,
		NextUpdate: l.NextUpdate, Entries: l.Entries, Size: l.Size,
	}
	if l.Base != nil {
		out.Base = l.Base.String()
	}
	return out
}

// currentList is an issuer's complete CRL in force.
func (s *Server) currentList(ctx context.Context, i *ca.Issuer) (*revocation.List, error) {
	return s.Revocation.Current(ctx, i.ID, revocation.Complete)
}

func scopeOf(text string) (revocation.Scope, error) {
	if text == "" {
		return revocation.Complete, nil
	}
	return revocation.ParseScope(text)
}

func (s *Server) listCRLs(ctx context.Context, in *struct {
	Paged
	Issuer string `path:"issuer" maxLength:"255"`
	Scope  string `query:"scope" maxLength:"16" doc:"complete, delta or the number of a partition; complete where absent"`
}) (*out[client.Page[client.CRL]], error) {
	i, err := s.CA.Issuer(ctx, in.Issuer)
	if err != nil {
		return nil, err
	}
	scope, err := scopeOf(in.Scope)
	if err != nil {
		return nil, err
	}
	lists, err := s.Revocation.Lists(ctx, i.ID, scope, in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	next := ""
	if len(lists) == in.Limit {
		next = lists[len(lists)-1].ID
	}
	return page(lists, next, func(l *revocation.List) client.CRL { return wireCRL(i, l) }), nil
}

func (s *Server) showCRL(ctx context.Context, in *struct {
	Issuer string `path:"issuer" maxLength:"255"`
	Number string `path:"number" maxLength:"64" doc:"the CRLNumber, decimal, or current"`
	Scope  string `query:"scope" maxLength:"16" doc:"with current: complete, delta or the number of a partition"`
}) (*outStream, error) {
	c := callOf(ctx)
	media, err := negotiate(c.r.Header.Get("Accept"), mediaJSON, mediaCRL, mediaPEM)
	if err != nil {
		return nil, err
	}
	i, err := s.CA.Issuer(ctx, in.Issuer)
	if err != nil {
		return nil, err
	}
	l, err := s.findList(ctx, i, in.Number, in.Scope)
	if err != nil {
		return nil, err
	}
	if l.Pruned() && media != mediaJSON {
		return nil, fault.New(fault.NotFound, "the octets of CRL %v were pruned; only its record is left", l.Number)
	}
	switch media {
	case mediaCRL:
		return &outStream{c.streamSized(media, l.Size, func(w io.Writer) error { return s.Revocation.WriteTo(ctx, w, l) })}, nil
	case mediaPEM:
		return &outStream{c.streamSized(media, crl.PEMSize(l.Size), func(w io.Writer) error {
			p := crl.NewPEMWriter(w)
			if err := s.Revocation.WriteTo(ctx, p, l); err != nil {
				return err
			}
			return p.Close()
		})}, nil
	}
	body, err := c.sendJSON(wireCRL(i, l))
	return &outStream{body}, err
}

func (s *Server) findList(ctx context.Context, i *ca.Issuer, number, scope string) (*revocation.List, error) {
	if number == "current" {
		scope, err := scopeOf(scope)
		if err != nil {
			return nil, err
		}
		return s.Revocation.Current(ctx, i.ID, scope)
	}
	n, ok := new(big.Int).SetString(number, 10)
	if !ok || n.Sign() < 0 {
		return nil, fault.New(fault.Invalid, "%q is neither a CRLNumber nor current", number).At("path number")
	}
	return s.Revocation.Find(ctx, i.ID, n)
}

func (s *Server) issueCRL(ctx context.Context, in *issuerIn[client.IssueCRLRequest]) (*out[client.CRL], error) {
	i, err := s.CA.Issuer(ctx, in.Issuer)
	if err != nil {
		return nil, err
	}
	wish, warnings, err := crlWish(&in.Body, time.Now())
	if err != nil {
		return nil, err
	}
	call, err := repeatable(ctx, in)
	if err != nil {
		return nil, err
	}
	l, err := s.Revocation.IssueCRL(ctx, access.From(ctx), i.ID, wish, call)
	if err != nil {
		return nil, err
	}
	w := wireCRL(i, l)
	w.Warnings = warnings
	return answer(w), nil
}

// crlWish is what a certtool template's options for CRLs ask for.
func crlWish(in *client.IssueCRLRequest, now time.Time) (wish revocation.Wish, warnings []string, err error) {
	if in.Template == "" {
		return wish, nil, nil
	}
	mode := certtool.Strict
	if in.CerttoolCompat {
		mode = certtool.Compat
	}
	t, found, err := certtool.Parse([]byte(in.Template), mode)
	if err != nil {
		return wish, nil, fmt.Errorf("template: %w", err)
	}
	asked, err := t.CRL(now)
	if err != nil {
		return wish, nil, fmt.Errorf("template: %w", err)
	}
	for _, w := range found {
		warnings = append(warnings, w.String())
	}
	return revocation.Wish{Number: asked.Number, ThisUpdate: asked.ThisUpdate, NextUpdate: asked.NextUpdate}, warnings, nil
}

func (s *Server) draftCRL(ctx context.Context, in *issuerName) (*out[client.CRLDraft], error) {
	d, err := s.Revocation.Draft(ctx, access.From(ctx), in.Issuer)
	if err != nil {
		return nil, err
	}
	return answer(client.CRLDraft{Number: d.Number.String(), ThisUpdate: d.ThisUpdate, NextUpdate: d.NextUpdate, Entries: d.Entries}), nil
}

func (s *Server) uploadCRL(ctx context.Context, in *issuerIn[client.UploadCRLRequest]) (*out[client.CRL], error) {
	i, err := s.CA.Issuer(ctx, in.Issuer)
	if err != nil {
		return nil, err
	}
	text, err := act(ctx, s, in, func(call once.Call) (string, error) {
		l, err := s.Revocation.Upload(ctx, access.From(ctx), i.ID, []byte(in.Body.CRL), call)
		if err != nil {
			return "", err
		}
		return l.Number.String(), nil
	})
	if err != nil {
		return nil, err
	}
	l, err := s.findList(ctx, i, text, "")
	if err != nil {
		return nil, err
	}
	return answer(wireCRL(i, l)), nil
}
