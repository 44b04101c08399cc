package api

import (
	"context"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
)

// issuerName names an issuer.
type issuerName struct {
	Issuer string `path:"issuer" maxLength:"255" doc:"its name or ID"`
}

type issuerIn[T any] struct {
	Keyed
	Issuer string `path:"issuer" maxLength:"255" doc:"its name or ID"`
	Body   T
}

type issuerAct struct {
	Keyed
	Issuer string `path:"issuer" maxLength:"255" doc:"its name or ID"`
	Body   *client.Nothing
}

func (s *Server) listIssuers(ctx context.Context, _ *none) (*out[client.Page[client.Issuer]], error) {
	all, err := s.CA.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	return page(all, "", func(i *ca.Issuer) client.Issuer { return s.wireIssuer(ctx, i) }), nil
}

func (s *Server) showIssuer(ctx context.Context, in *issuerName) (*out[client.Issuer], error) {
	i, err := s.CA.Issuer(ctx, in.Issuer)
	if err != nil {
		return nil, err
	}
	return s.issuer(ctx, i)
}

// issuer is an issuer with the CRL that is in force.
func (s *Server) issuer(ctx context.Context, i *ca.Issuer) (*out[client.Issuer], error) {
	w := s.wholeIssuer(ctx, i)
	w.Warnings = i.Warnings
	var err error
	if w.Former, err = s.former(ctx, i, time.Now()); err != nil {
		return nil, err
	}
	if i.State == ca.IssuerPending {
		return answer(w), nil
	}
	list, err := s.currentList(ctx, i)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	if err == nil {
		c := wireCRL(i, list)
		w.CRL = &c
	}
	return answer(w), nil
}

// former are the certificates that an issuer had and that stand, with who presents them.
func (s *Server) former(ctx context.Context, i *ca.Issuer, now time.Time) (all []client.FormerCertificate, err error) {
	for _, c := range i.Standing(now) {
		f := client.FormerCertificate{Serial: cert.FormatSerial(c.SerialNumber), Fingerprint: trust.Fingerprint(c), NotAfter: c.NotAfter,
			PEM: string(encodePEM("CERTIFICATE", c.Raw))}
		p, err := s.Hosts.PresentingFormer(ctx, trust.Fingerprint(i.Certificate), f.Fingerprint)
		if err != nil {
			return nil, err
		}
		f.Placements, f.Hosts = p.Placements, p.Hosts
		if i.Parent != "" {
			state, err := s.CA.StateOf(ctx, ca.Ref{Issuer: i.Parent, Serial: c.SerialNumber})
			if err != nil {
				return nil, err
			}
			f.State = string(state)
		}
		all = append(all, f)
	}
	return all, nil
}

func (s *Server) createIssuer(ctx context.Context, in *in[client.CreateIssuerRequest]) (*out[client.Issuer], error) {
	spec, err := issuerSpec(&in.Body, in.key())
	if err != nil {
		return nil, err
	}
	i, _, err := s.CA.CreateIssuer(ctx, access.From(ctx), spec)
	if err != nil {
		return nil, err
	}
	return s.issuer(ctx, i)
}

func issuerSpec(in *client.CreateIssuerRequest, key string) (spec ca.IssuerSpec, err error) {
	spec = ca.IssuerSpec{
		IdempotencyKey: key, Name: in.Name, Pool: in.Pool, Default: in.Default, Parent: in.Parent, Subject: in.Subject, PathLen: in.PathLen,
		Constraints: in.NameConstraints, Template: in.Template, Compat: in.CerttoolCompat, Outside: in.Kind == client.IssuerExternal,
		Token: in.Key,
	}
	switch {
	case in.Kind == client.IssuerIntermediate && in.Parent == "":
		return spec, fault.New(fault.Invalid, "an intermediate needs the issuer that signs it").At("/parent")
	case in.Kind != client.IssuerIntermediate && in.Parent != "":
		return spec, fault.New(fault.Invalid, "only an intermediate has a parent here; the kind is %q", in.Kind).At("/parent")
	}
	if in.Algorithm != "" {
		if spec.Algorithm, err = keyfile.ParseAlgorithm(in.Algorithm); err != nil {
			return spec, err
		}
	}
	if spec.Validity, err = length(in.Validity); err != nil {
		return spec, err
	}
	if in.CRL != nil {
		spec.CRL, err = crlMode(in.CRL)
	}
	return spec, err
}

func crlMode(in *client.CRLMode) (mode ca.CRLMode, err error) {
	mode = ca.CRLMode{Partitions: in.Partitions, Delta: in.Delta, Scheduled: in.OnRevocation != nil && !*in.OnRevocation}
	if mode.Validity, err = length(in.Validity); err != nil {
		return mode, err
	}
	mode.Refresh, err = length(in.Refresh)
	return mode, err
}

func (s *Server) importIssuerCertificate(ctx context.Context, in *issuerIn[client.IssuerCertificateRequest]) (*out[client.Issuer], error) {
	path, err := decodeCertificates(in.Body.Certificate, "/certificate")
	if err != nil {
		return nil, err
	}
	if in.Body.Chain != "" {
		above, err := decodeCertificates(in.Body.Chain, "/chain")
		if err != nil {
			return nil, err
		}
		path = append(path, above...)
	}
	return s.changeIssuer(ctx, in, func(call once.Call) (*ca.Issuer, error) {
		return s.CA.ImportAnswer(ctx, access.From(ctx), in.Issuer, path, call)
	})
}

func (s *Server) renewIssuer(ctx context.Context, in *issuerIn[client.RenewIssuerRequest]) (*out[client.Issuer], error) {
	spec := ca.RenewSpec{IdempotencyKey: in.key(), Issuer: in.Issuer}
	var err error
	if spec.Validity, err = length(in.Body.Validity); err != nil {
		return nil, err
	}
	if in.Body.Certificate == "" && in.Body.Chain != "" {
		return nil, fault.New(fault.Invalid, "a chain goes with the certificate that it is above").At("/chain")
	}
	for _, given := range []struct{ text, at string }{{in.Body.Certificate, "/certificate"}, {in.Body.Chain, "/chain"}} {
		if given.text == "" {
			continue
		}
		certificates, err := decodeCertificates(given.text, given.at)
		if err != nil {
			return nil, err
		}
		spec.Answer = append(spec.Answer, certificates...)
	}
	i, err := s.CA.RenewIssuer(ctx, access.From(ctx), spec)
	if err != nil {
		return nil, err
	}
	return s.issuer(ctx, i)
}

func (s *Server) showRenewalRequest(ctx context.Context, in *issuerName) (*outStream, error) {
	csr, err := s.CA.RenewalRequest(ctx, access.From(ctx), in.Issuer)
	if err != nil {
		return nil, err
	}
	return &outStream{callOf(ctx).send(mediaPEM, encodePEM("CERTIFICATE REQUEST", csr))}, nil
}

// changeIssuer answers an act upon an issuer with the issuer. Its ID is what is kept: a repeated call sees it as it is now.
func (s *Server) changeIssuer(ctx context.Context, in interface{ given() string }, do func(once.Call) (*ca.Issuer, error)) (*out[client.Issuer], error) {
	var changed *ca.Issuer
	id, err := act(ctx, s, in, func(call once.Call) (id string, err error) {
		if changed, err = do(call); err != nil {
			return "", err
		}
		return changed.ID, nil
	})
	if err == nil && changed == nil {
		changed, err = s.CA.Issuer(ctx, id)
	}
	if err != nil {
		return nil, err
	}
	return s.issuer(ctx, changed)
}

func (s *Server) retireIssuer(ctx context.Context, in *issuerAct) (*out[client.Issuer], error) {
	return s.changeIssuer(ctx, in, func(call once.Call) (*ca.Issuer, error) {
		return s.CA.Retire(ctx, access.From(ctx), in.Issuer, call)
	})
}

func (s *Server) setDefaultIssuer(ctx context.Context, in *issuerAct) (*out[client.Issuer], error) {
	return s.changeIssuer(ctx, in, func(call once.Call) (*ca.Issuer, error) {
		return s.CA.SetDefault(ctx, access.From(ctx), in.Issuer, call)
	})
}

func (s *Server) setCRLMode(ctx context.Context, in *issuerIn[client.CRLMode]) (*out[client.Issuer], error) {
	mode, err := crlMode(&in.Body)
	if err != nil {
		return nil, err
	}
	return s.changeIssuer(ctx, in, func(call once.Call) (*ca.Issuer, error) {
		return s.CA.SetCRLMode(ctx, access.From(ctx), in.Issuer, mode, call)
	})
}

func (s *Server) showChain(ctx context.Context, in *issuerName) (*outStream, error) {
	i, err := s.CA.Issuer(ctx, in.Issuer)
	if err != nil {
		return nil, err
	}
	if i.Certificate == nil {
		return nil, fault.New(fault.Conflict, "issuer %s waits for its certificate", i.Name)
	}
	return &outStream{callOf(ctx).send(mediaPEM, chainPEM(i, true))}, nil
}

func (s *Server) showCSR(ctx context.Context, in *issuerName) (*outStream, error) {
	i, err := s.CA.Issuer(ctx, in.Issuer)
	if err != nil {
		return nil, err
	}
	if len(i.CSR) == 0 {
		return nil, fault.New(fault.NotFound, "issuer %s waits for no certificate, so it has no request", i.Name)
	}
	return &outStream{callOf(ctx).send(mediaPEM, encodePEM("CERTIFICATE REQUEST", i.CSR))}, nil
}

func duration(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return settings.Duration(d).String()
}
