package api

import (
	"context"
	"io"
	"log/slog"
	"net/http"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
)

// issue issues at once, or refuses.
func (s *Server) issue(ctx context.Context, in *in[client.IssueRequest]) (*outStatus[client.IssueResult], error) {
	order, err := order(&in.Body, in.key())
	if err != nil {
		return nil, err
	}
	if in.Body.DryRun {
		return s.preview(ctx, order)
	}
	issued, err := s.CA.Issue(ctx, access.From(ctx), order)
	if err != nil {
		return nil, err
	}
	return s.issued(ctx, issued), nil
}

// submit issues where the profile wants no approval of the caller, and queues a request for an officer otherwise.
func (s *Server) submit(ctx context.Context, in *in[client.IssueRequest]) (*outStatus[client.IssueResult], error) {
	order, err := order(&in.Body, in.key())
	if err != nil {
		return nil, err
	}
	if in.Body.DryRun {
		return s.preview(ctx, order)
	}
	request, issued, err := s.CA.Submit(ctx, access.From(ctx), order)
	if err != nil {
		return nil, err
	}
	if issued != nil {
		return s.issued(ctx, issued), nil
	}
	w := s.wholeRequest(ctx, request)
	return &outStatus[client.IssueResult]{Status: http.StatusAccepted, Body: client.IssueResult{Request: &w}}, nil
}

func (s *Server) preview(ctx context.Context, order ca.Order) (*outStatus[client.IssueResult], error) {
	p, err := s.CA.DryRun(ctx, access.From(ctx), order)
	if err != nil {
		return nil, err
	}
	c := client.Certificate{
		Issuer: p.Issuer.Name, Subject: p.Subject, SAN: p.Names, NotBefore: p.NotBefore, NotAfter: p.NotAfter, State: client.StateValid,
		Profile: p.Profile, Version: int64(p.ProfileVersion), PEM: string(encodePEM("CERTIFICATE", p.Unsigned)),
	}
	return &outStatus[client.IssueResult]{
		Status: http.StatusOK,
		Body:   client.IssueResult{Certificate: &c, Warnings: p.Warnings, DryRun: true, Pending: !p.AtOnce},
	}, nil
}

// issued is the answer with a certificate that was just issued. The event says which, and no more than a CRL would.
func (s *Server) issued(ctx context.Context, c *ca.Certificate) *outStatus[client.IssueResult] {
	s.note(ctx, c)
	w := s.wholeCertificate(ctx, c)
	return &outStatus[client.IssueResult]{Status: http.StatusCreated, Body: client.IssueResult{Certificate: &w, Warnings: c.Warnings}}
}

func (s *Server) note(ctx context.Context, c *ca.Certificate) {
	callOf(ctx).event.Add(slog.String("serial", cert.FormatSerial(c.Serial)), slog.String("issuer", c.Issuer.Name), slog.String("profile", c.Profile))
}

// certificateFilter selects certificates.
type CertificateFilter struct {
	Issuer        string `query:"issuer" maxLength:"255" doc:"the issuer's name or ID"`
	Profile       string `query:"profile" maxLength:"255"`
	Serial        string `query:"serial" maxLength:"128" doc:"hexadecimal"`
	Name          string `query:"name" maxLength:"1024" doc:"an alternative name or common name, whole, or its beginning followed by *"`
	Requester     string `query:"requester" maxLength:"255" doc:"a principal's name"`
	State         string `query:"state" enum:"valid,held,revoked,expired"`
	ExpiresAfter  string `query:"expires_after" maxLength:"40" doc:"RFC 3339"`
	ExpiresBefore string `query:"expires_before" maxLength:"40" doc:"RFC 3339"`
	Unreplaced    bool   `query:"unreplaced" doc:"leave out what was renewed or re-keyed"`
}

func (s *Server) filter(ctx context.Context, in *CertificateFilter) (f ca.Filter, err error) {
	f = ca.Filter{Name: in.Name, Issuer: in.Issuer, Profile: in.Profile, State: ca.State(in.State), Unreplaced: in.Unreplaced}
	if in.Serial != "" {
		if f.Serial, err = cert.ParseSerial(in.Serial); err != nil {
			return f, err
		}
	}
	if f.Requester, err = s.names.id(ctx, in.Requester); err != nil {
		return f, err
	}
	if f.ExpiresAfter, err = moment(in.ExpiresAfter, "expires_after"); err != nil {
		return f, err
	}
	f.ExpiresBefore, err = moment(in.ExpiresBefore, "expires_before")
	return f, err
}

func (s *Server) searchCertificates(ctx context.Context, in *struct {
	Paged
	CertificateFilter
}) (*out[client.Page[client.Certificate]], error) {
	f, err := s.filter(ctx, &in.CertificateFilter)
	if err != nil {
		return nil, err
	}
	found, next, err := s.CA.Search(ctx, access.From(ctx), f, in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	return page(found, next, func(c *ca.Certificate) client.Certificate { return s.wireCertificate(ctx, c) }), nil
}

func (s *Server) exportCertificates(ctx context.Context, in *struct {
	CertificateFilter
	Format string `query:"format" enum:"csv,json" default:"csv" doc:"csv has a header line; json is one object a line"`
}) (*outStream, error) {
	f, err := s.filter(ctx, &in.CertificateFilter)
	if err != nil {
		return nil, err
	}
	media := mediaCSV + "; charset=utf-8; header=present"
	if in.Format == string(ca.JSON) {
		media = mediaLines
	}
	return &outStream{callOf(ctx).stream(media, func(w io.Writer) error {
		return s.CA.Export(ctx, access.From(ctx), w, ca.Format(in.Format), f)
	})}, nil
}

// ref names a certificate.
func (in *SerialOf) ref() (ca.Ref, error) {
	serial, err := cert.ParseSerial(in.Serial)
	return ca.Ref{Issuer: in.Issuer, Serial: serial}, err
}

func (s *Server) showCertificate(ctx context.Context, in *SerialOf) (*outStream, error) {
	ref, err := in.ref()
	if err != nil {
		return nil, err
	}
	c := callOf(ctx)
	media, err := negotiate(c.r.Header.Get("Accept"), mediaJSON, mediaCert, mediaPEM, mediaChain)
	if err != nil {
		return nil, err
	}
	found, err := s.CA.Find(ctx, access.From(ctx), ref)
	if err != nil {
		return nil, err
	}
	if media != mediaJSON && len(found.DER) == 0 {
		return nil, fault.New(fault.NotFound, "certificate %s was imported as a record, without its octets", in.Serial)
	}
	switch media {
	case mediaCert:
		return &outStream{c.send(media, found.DER)}, nil
	case mediaPEM:
		return &outStream{c.send(media, encodePEM("CERTIFICATE", found.DER))}, nil
	case mediaChain:
		return &outStream{c.send(media, append(encodePEM("CERTIFICATE", found.DER), chainPEM(found.Issuer, false)...))}, nil
	}
	body, err := c.sendJSON(s.wholeCertificate(ctx, found))
	return &outStream{body}, err
}

func (s *Server) renewCertificate(ctx context.Context, in *serialIn[client.RenewRequest]) (*outStatus[client.IssueResult], error) {
	ref, err := in.ref()
	if err != nil {
		return nil, err
	}
	validity, err := length(in.Body.Validity)
	if err != nil {
		return nil, err
	}
	issued, err := s.CA.Renew(ctx, access.From(ctx), ref, ca.RenewOrder{IdempotencyKey: in.key(), Validity: validity})
	if err != nil {
		return nil, err
	}
	return s.issued(ctx, issued), nil
}

func (s *Server) rekeyCertificate(ctx context.Context, in *serialIn[client.RekeyRequest]) (*outStatus[client.IssueResult], error) {
	ref, err := in.ref()
	if err != nil {
		return nil, err
	}
	validity, err := length(in.Body.Validity)
	if err != nil {
		return nil, err
	}
	csr, err := decodeCSR(in.Body.CSR)
	if err != nil {
		return nil, err
	}
	key, err := decodePEM(in.Body.PublicKey, "/public_key", "PUBLIC KEY")
	if err != nil {
		return nil, err
	}
	if (csr == nil) == (key == nil) {
		return nil, fault.New(fault.Invalid, "give either a certification request or a public key").At("/csr")
	}
	issued, err := s.CA.Rekey(ctx, access.From(ctx), ref, csr, key, ca.RenewOrder{IdempotencyKey: in.key(), Validity: validity})
	if err != nil {
		return nil, err
	}
	return s.issued(ctx, issued), nil
}

func (s *Server) revokeCertificate(ctx context.Context, in *serialIn[client.RevokeRequest]) (*out[client.Certificate], error) {
	ref, err := in.ref()
	if err != nil {
		return nil, err
	}
	o := ca.RevokeOrder{IdempotencyKey: in.key()}
	if in.Body.Reason != "" {
		if o.Reason, err = crl.ParseReason(in.Body.Reason); err != nil {
			return nil, err
		}
	}
	if in.Body.InvalidSince != nil {
		o.InvalidityDate = *in.Body.InvalidSince
	}
	return s.changed(ctx)(s.CA.Revoke(ctx, access.From(ctx), ref, o))
}

func (s *Server) holdCertificate(ctx context.Context, in *serialAct) (*out[client.Certificate], error) {
	ref, err := in.ref()
	if err != nil {
		return nil, err
	}
	return s.changed(ctx)(s.CA.Hold(ctx, access.From(ctx), ref, in.key()))
}

func (s *Server) releaseCertificate(ctx context.Context, in *serialAct) (*out[client.Certificate], error) {
	ref, err := in.ref()
	if err != nil {
		return nil, err
	}
	return s.changed(ctx)(s.CA.Release(ctx, access.From(ctx), ref, in.key()))
}

func (s *Server) changed(ctx context.Context) func(*ca.Certificate, error) (*out[client.Certificate], error) {
	return func(c *ca.Certificate, err error) (*out[client.Certificate], error) {
		if err != nil {
			return nil, err
		}
		s.note(ctx, c)
		w := s.wholeCertificate(ctx, c)
		w.Warnings = c.Warnings
		return answer(w), nil
	}
}
