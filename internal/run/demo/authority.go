package demo

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/crypto/ocsp"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

// template is the one that libvirt's page on server certificates gives for its first host, with the name that clients
// check today beside it, and where the certificate's status is told: a template says all that is in a certificate.
const template = `organization = libvirt.org
cn = host1
dns_name = host1
tls_www_server
encryption_key
signing_key
ocsp_uri = http://%[1]s/ocsp
crl_dist_points = http://%[1]s/crl/default.crl
`

// holder is a certificate with its key and the one above it.
type holder struct {
	issued *client.Certificate
	leaf   *x509.Certificate
	issuer *x509.Certificate
	pair   tls.Certificate
}

// issue makes a key and asks for its certificate.
func (s *story) issue(ctx context.Context, in client.IssueRequest) (*holder, error) {
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		return nil, err
	}
	csr, err := cert.CreateCSR(&cert.CSRTemplate{}, key)
	if err != nil {
		return nil, err
	}
	in.CSR = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
	result, err := s.api.Issue(ctx, in)
	if err != nil {
		return nil, fmt.Errorf("issue: %w", err)
	}
	if result.Certificate == nil {
		return nil, errors.New("issue: the node gave no certificate")
	}
	path, err := keyfile.ParseCertificates([]byte(result.Certificate.PEM + result.Certificate.Chain))
	if err != nil {
		return nil, err
	}
	if len(path) < 2 {
		return nil, fmt.Errorf("the certificate came with %d certificates above it", len(path)-1)
	}
	h := &holder{issued: result.Certificate, leaf: path[0], issuer: path[1], pair: tls.Certificate{PrivateKey: key, Leaf: path[0]}}
	for _, c := range path {
		h.pair.Certificate = append(h.pair.Certificate, c.Raw)
	}
	return h, h.leaf.CheckSignatureFrom(h.issuer)
}

// authority is the first chapter: a certificate, and how the world sees it before and after its revocation.
func (s *story) authority(ctx context.Context) error {
	s.line("A node serves the API at https://%s, and CRLs and OCSP at http://%s.", s.addresses.API, s.addresses.Public)
	h, err := s.issue(ctx, client.IssueRequest{Template: fmt.Sprintf(template, s.addresses.Public)})
	if err != nil {
		return err
	}
	s.line("A certtool template for host1 becomes certificate %s, good until %s.", short(h.issued.Serial), day(h.issued.NotAfter))
	status, err := until(ctx, "the node answers OCSP", h.ocsp)
	if err != nil {
		return err
	}
	if status.Status != ocsp.Good {
		return fmt.Errorf("OCSP says %d of a new certificate, not good", status.Status)
	}
	list, err := until(ctx, "the node publishes a CRL", h.crl)
	if err != nil {
		return err
	}
	if listed(list, h.leaf) {
		return errors.New("a new certificate is in the CRL")
	}
	s.line("OCSP says good; CRL %v does not list it.", list.Number)
	return s.revoke(ctx, h)
}

// revoke revokes a certificate and looks whether the world is told.
func (s *story) revoke(ctx context.Context, h *holder) error {
	if _, err := s.api.Revoke(ctx, h.issued.Issuer, h.issued.Serial, client.RevokeRequest{Reason: "keyCompromise"}); err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	began := time.Now()
	status, err := until(ctx, "OCSP says revoked", func(ctx context.Context) (*ocsp.Response, error) {
		status, err := h.ocsp(ctx)
		if err == nil && status.Status == ocsp.Good {
			err = errSoon
		}
		return status, err
	})
	if err != nil {
		return err
	}
	if status.Status != ocsp.Revoked || status.RevocationReason != ocsp.KeyCompromise {
		return fmt.Errorf("OCSP says %d, reason %d, of a revoked certificate", status.Status, status.RevocationReason)
	}
	list, err := until(ctx, "the CRL lists the revoked certificate", func(ctx context.Context) (*x509.RevocationList, error) {
		list, err := h.crl(ctx)
		if err == nil && !listed(list, h.leaf) {
			err = errSoon
		}
		return list, err
	})
	if err != nil {
		return err
	}
	s.line("It is revoked for keyCompromise. OCSP says revoked; CRL %v lists it after %s.", list.Number, since(began))
	return nil
}

func (h *holder) ocsp(ctx context.Context) (*ocsp.Response, error) {
	if len(h.leaf.OCSPServer) == 0 {
		return nil, errors.New("the certificate names no OCSP responder")
	}
	request, err := ocsp.CreateRequest(h.leaf, h.issuer, &ocsp.RequestOptions{Hash: crypto.SHA256})
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, h.leaf.OCSPServer[0], bytes.NewReader(request))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/ocsp-request")
	body, err := fetch(r)
	if err != nil {
		return nil, err
	}
	status, err := ocsp.ParseResponseForCert(body, h.leaf, h.issuer)
	if refused, ok := errors.AsType[ocsp.ResponseError](err); ok && refused.Status == ocsp.TryLater {
		return nil, fmt.Errorf("%w: the node still makes the responder's certificate", errSoon)
	}
	return status, err
}

func (h *holder) crl(ctx context.Context) (*x509.RevocationList, error) {
	if len(h.leaf.CRLDistributionPoints) == 0 {
		return nil, errors.New("the certificate names no CRL")
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, h.leaf.CRLDistributionPoints[0], nil)
	if err != nil {
		return nil, err
	}
	body, err := fetch(r)
	if err != nil {
		return nil, err
	}
	list, err := x509.ParseRevocationList(body)
	if err != nil {
		return nil, err
	}
	return list, list.CheckSignatureFrom(h.issuer)
}

func listed(list *x509.RevocationList, c *x509.Certificate) bool {
	for _, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
			return true
		}
	}
	return false
}

// errSoon says that something is not there yet.
var errSoon = errors.New("not yet")

// until looks again as long as look says errSoon, for two minutes at most: other programs may keep the machine busy.
func until[T any](ctx context.Context, what string, look func(context.Context) (T, error)) (T, error) {
	wait, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		seen, err := look(wait)
		if !errors.Is(err, errSoon) {
			return seen, err
		}
		select {
		case <-wait.Done():
			return seen, fmt.Errorf("wait until %s: %w: %w", what, wait.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func fetch(r *http.Request) ([]byte, error) {
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("%s %s: %s: %w", r.Method, r.URL, resp.Status, errSoon)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s: %s: %s", r.Method, r.URL, resp.Status, bytes.TrimSpace(body))
	}
	return body, nil
}

// short is enough of a serial number to tell it from others.
func short(serial string) string {
	if len(serial) > 8 {
		return serial[:8] + "…"
	}
	return serial
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

func since(t time.Time) time.Duration { return time.Since(t).Round(10 * time.Millisecond) }
