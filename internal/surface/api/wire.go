package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// wireCertificate is a certificate as lists show it.
func (s *Server) wireCertificate(ctx context.Context, c *ca.Certificate) client.Certificate {
	out := client.Certificate{
		Serial: cert.FormatSerial(c.Serial), Subject: c.Subject, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		State: string(c.State), Profile: c.Profile, Version: int64(c.ProfileVersion), Requester: s.names.of(ctx, c.Requester),
		IssuedAt: c.IssuedAt(), Issuer: c.Issuer.Name,
	}
	if r := c.Revocation; r != nil {
		out.Revocation = &client.Revocation{At: r.RevokedAt, Reason: r.Reason.String()}
		if !r.InvalidityDate.IsZero() {
			out.Revocation.InvalidSince = &r.InvalidityDate
		}
	}
	for _, n := range c.Names() {
		out.SAN = append(out.SAN, n.String())
	}
	if len(c.DER) > 0 {
		sum := sha256.Sum256(c.DER)
		out.Fingerprint = hex.EncodeToString(sum[:])
	}
	return out
}

// wholeCertificate is one certificate as it is shown alone: with its PEM form and the issuers above it.
func (s *Server) wholeCertificate(ctx context.Context, c *ca.Certificate) client.Certificate {
	out := s.wireCertificate(ctx, c)
	if len(c.DER) > 0 {
		out.PEM = string(encodePEM("CERTIFICATE", c.DER))
	}
	out.Chain = string(chainPEM(c.Issuer, false))
	return out
}

// chainPEM is an issuer's certificate and those above it, nearest first; with or without the root.
func chainPEM(i *ca.Issuer, root bool) []byte {
	var out bytes.Buffer
	path := i.Chain
	if i.Certificate != nil {
		path = append([]*x509.Certificate{i.Certificate}, path...)
	}
	for _, c := range path {
		if root || !bytes.Equal(c.RawIssuer, c.RawSubject) {
			out.Write(encodePEM("CERTIFICATE", c.Raw))
		}
	}
	return out.Bytes()
}

// encodePEM writes the textual encoding of RFC 7468. Every answer with a certificate passes here, and pem.Encode, which
// writes octet by octet through two writers, costs several times as much.
func encodePEM(label string, der []byte) []byte {
	const line = 48 // octets, which are the 64 characters of a line
	out := make([]byte, 0, len(der)*4/3+len(der)/line+2*len(label)+40)
	out = append(append(append(out, "-----BEGIN "...), label...), "-----\n"...)
	for len(der) > 0 {
		n := min(len(der), line)
		out = append(base64.StdEncoding.AppendEncode(out, der[:n]), '\n')
		der = der[n:]
	}
	return append(append(append(out, "-----END "...), label...), "-----\n"...)
}

// wireIssuer is an issuer as lists show it. The issuer above it goes by its name.
func (s *Server) wireIssuer(ctx context.Context, i *ca.Issuer) client.Issuer {
	out := client.Issuer{
		ID: i.ID, Name: i.Name, Pool: i.Pool, Default: i.Default, State: string(i.State), Root: i.Root(),
		KeyOnline: i.KeyID != "", CreatedAt: i.CreatedAt,
		CRLMode: client.CRLMode{
			Validity: duration(i.CRL.Validity), Refresh: duration(i.CRL.Refresh), Partitions: i.CRL.Partitions, Delta: i.CRL.Delta,
			OnRevocation: new(!i.CRL.Scheduled),
		},
	}
	if i.Parent != "" {
		out.Parent = i.Parent
		if above, err := s.CA.Issuer(ctx, i.Parent); err == nil {
			out.Parent = above.Name
		}
	}
	if c := i.Certificate; c != nil {
		sum := sha256.Sum256(c.Raw)
		out.Fingerprint = hex.EncodeToString(sum[:])
		out.KeyID = hex.EncodeToString(c.SubjectKeyId)
		out.Algorithm = cert.KeyAlgorithm(c.PublicKey)
		out.Serial, out.NotBefore, out.NotAfter = cert.FormatSerial(c.SerialNumber), c.NotBefore, c.NotAfter
		if name, err := cert.ParseNameDER(c.RawSubject); err == nil {
			out.Subject = name.String()
		}
	}
	return out
}

// wholeIssuer is one issuer as it is shown alone.
func (s *Server) wholeIssuer(ctx context.Context, i *ca.Issuer) client.Issuer {
	out := s.wireIssuer(ctx, i)
	if i.Certificate != nil {
		out.PEM = string(encodePEM("CERTIFICATE", i.Certificate.Raw))
	}
	if len(i.CSR) > 0 {
		out.CSR = string(encodePEM("CERTIFICATE REQUEST", i.CSR))
	}
	return out
}

// wireRequest is an enrolment as lists show it.
func (s *Server) wireRequest(ctx context.Context, r *ca.Request) client.Request {
	names := make([]string, len(r.Order.Names))
	for i, text := range r.Order.Names { // as they were asked for: the kind may have been left out
		names[i] = text
		if name, err := cert.ParseGeneralName(text); err == nil {
			names[i] = name.String()
		}
	}
	return client.Request{
		ID: r.ID, State: string(r.State), Issuer: r.Issuer, Profile: r.Profile, Subject: r.Subject, SAN: names,
		Requester: s.names.of(ctx, r.Requester), TwoPerson: r.TwoPerson, Assignee: s.names.of(ctx, r.AssignedTo),
		DecidedBy: s.names.of(ctx, r.DecidedBy), SubmittedAt: r.SubmittedAt, DecidedAt: r.DecidedAt, Reason: r.Reason,
	}
}

func (s *Server) wholeRequest(ctx context.Context, r *ca.Request) client.Request {
	out := s.wireRequest(ctx, r)
	if len(r.Order.CSR) > 0 {
		out.CSR = string(encodePEM("CERTIFICATE REQUEST", r.Order.CSR))
	}
	return out
}

// order reads what a caller asks for.
func order(in *client.IssueRequest, key string) (ca.Order, error) {
	o := ca.Order{
		IdempotencyKey: key, Issuer: in.Issuer, Pool: in.Pool, Profile: in.Profile, Template: in.Template, Compat: in.CerttoolCompat,
	}
	if in.Names != nil {
		o.Subject, o.Names = in.Names.Subject, in.Names.SAN
	}
	if in.NotBefore != nil {
		o.NotBefore = *in.NotBefore
	}
	if in.NotAfter != nil {
		o.NotAfter = *in.NotAfter
	}
	var err error
	if o.Validity, err = length(in.Validity); err != nil {
		return o, err
	}
	if o.CSR, err = decodeCSR(in.CSR); err != nil {
		return o, err
	}
	o.PublicKey, err = decodePEM(in.PublicKey, "/public_key", "PUBLIC KEY")
	return o, err
}

// length reads a length of time such as 90d or 10y; an empty text is none.
func length(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := cert.ParseDuration(text)
	if err != nil {
		return 0, fault.New(fault.Invalid, "%w", err).At("/validity")
	}
	if d == 0 {
		return 0, fault.New(fault.Invalid, "the validity %s is no time at all", text).At("/validity")
	}
	return time.Duration(d), nil
}

func decodeCSR(text string) ([]byte, error) {
	return decodePEM(text, "/csr", "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")
}

// decodePEM reads exactly one PEM block with one of the labels; an empty text is none. Text around the block is allowed,
// as openssl req -text writes it.
func decodePEM(text, pointer string, labels ...string) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil {
		if err, ok := errors.AsType[*fault.Error](cert.CheckPEMEnd([]byte(text))); ok {
			return nil, err.At(pointer)
		}
		return nil, fault.New(fault.Invalid, "there is no PEM block in it; one that begins -----BEGIN %s----- is wanted", labels[0]).At(pointer)
	}
	known := false
	for _, label := range labels {
		known = known || block.Type == label
	}
	if !known {
		return nil, fault.New(fault.Invalid, "it holds a %q; a %q is wanted", block.Type, labels[0]).At(pointer)
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, fault.New(fault.Invalid, "it holds more than one PEM block").At(pointer)
	}
	return block.Bytes, nil
}

// decodeCertificates reads one or more certificates.
func decodeCertificates(text, pointer string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fault.New(fault.Invalid, "it holds a %q among its certificates", block.Type).At(pointer)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fault.New(fault.Invalid, "certificate %d of it: %w", len(out)+1, err).At(pointer)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, fault.New(fault.Invalid, "it holds no certificate; PEM is wanted").At(pointer)
	}
	return out, nil
}
