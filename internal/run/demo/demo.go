// Package demo plays a short story on a throw-away authority: a certificate from a template, its revocation, and how the
// world sees it. It runs a real node on loopback and speaks to it as any client does; what it claims it has looked at.
package demo

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ocsp"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/run/consumer"
	"chancery/internal/run/server"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
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

// Options say how to play.
type Options struct {
	Out     io.Writer
	Stay    bool   // go on serving until the context ends
	Version string // of the program
}

// story is what the acts hand on to each other.
type story struct {
	Options
	dir       string
	addresses server.Addresses
	api       *client.Client
	key       crypto.Signer
	issued    *client.Certificate
	leaf      *x509.Certificate
	issuer    *x509.Certificate
}

// Run plays the story. It returns an error unless all was as it was told.
func Run(ctx context.Context, o Options) error {
	dir, err := os.MkdirTemp("", "chancery-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &story{Options: o, dir: dir}
	nodeContext, stop := context.WithCancel(ctx)
	defer stop()
	ended, err := s.open(nodeContext)
	if err != nil {
		return err
	}
	played := make(chan error, 1)
	go func() { played <- s.play(ctx) }()
	select {
	case err = <-played:
	case err = <-ended:
		return fmt.Errorf("the node ended: %w", err)
	}
	if err == nil && o.Stay {
		s.lookNext()
		<-ctx.Done()
	}
	stop()
	return errors.Join(err, <-ended)
}

// open makes the authority and starts its node.
func (s *story) open(ctx context.Context) (ended <-chan error, err error) {
	s.tell("An authority is made in %s: a root for identities, a root and an issuer for the pool \"default\".", s.dir)
	public, err := consumer.FreeAddress()
	if err != nil {
		return nil, err
	}
	api, err := consumer.FreeAddress()
	if err != nil {
		return nil, err
	}
	dir := datadir.Dir(filepath.Join(s.dir, "authority"))
	if _, err := setup.Init(ctx, setup.Options{
		Dir: dir, Organization: "Demo", Address: "https://" + api, PublicURL: "http://" + public, PublicListen: public, Metrics: "127.0.0.1:0",
	}); err != nil {
		return nil, err
	}
	done, listening := make(chan error, 1), make(chan server.Addresses, 1)
	go func() {
		done <- server.Run(ctx, server.Options{
			Dir: dir, Version: s.Version, Logger: slog.New(slog.DiscardHandler), Listening: func(a server.Addresses) { listening <- a },
		})
	}()
	select {
	case err := <-done:
		return nil, fmt.Errorf("start the node: %w", err)
	case s.addresses = <-listening:
	}
	s.tell("A node serves the API at https://%s, and CRLs and OCSP at http://%s.", s.addresses.API, s.addresses.Public)
	roots, err := client.RootsFile(dir.IdentityRoot())
	if err != nil {
		return nil, err
	}
	s.api, err = client.New(client.Options{
		Address: "https://" + s.addresses.API, Roots: roots, Certificate: client.CertificateFiles(dir.AdminCert(), dir.AdminKey()), UserAgent: "chancery-demo",
	})
	return done, err
}

// play is the story, act by act.
func (s *story) play(ctx context.Context) error {
	defer s.api.Close()
	for _, act := range []func(context.Context) error{s.issue, s.good, s.revoke, s.seenRevoked, s.proven} {
		if err := act(ctx); err != nil {
			return err
		}
	}
	s.tell("\nAll was as told.")
	return nil
}

func (s *story) issue(ctx context.Context) error {
	text := fmt.Sprintf(template, s.addresses.Public)
	s.tell("\nThis template asks for a server certificate:\n\n%s\n", indent(text))
	var err error
	if s.key, err = keyfile.Generate(keyfile.ECDSAP256, 0); err != nil {
		return err
	}
	csr, err := cert.CreateCSR(&cert.CSRTemplate{}, s.key)
	if err != nil {
		return err
	}
	result, err := s.api.Issue(ctx, client.IssueRequest{
		Template: text, CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
	})
	if err != nil {
		return fmt.Errorf("issue: %w", err)
	}
	if result.Certificate == nil {
		return errors.New("issue: the node gave no certificate")
	}
	s.issued = result.Certificate
	chain, err := keyfile.ParseCertificates([]byte(s.issued.PEM + s.issued.Chain))
	if err != nil {
		return err
	}
	if len(chain) < 2 {
		return fmt.Errorf("the certificate came with %d certificates above it", len(chain)-1)
	}
	s.leaf, s.issuer = chain[0], chain[1]
	if err := s.leaf.CheckSignatureFrom(s.issuer); err != nil {
		return err
	}
	s.tell("It is issued: serial %s, to %s, by %s, until %s.", s.issued.Serial, s.leaf.Subject, s.issuer.Subject, s.issued.NotAfter.Format(time.DateOnly))
	return nil
}

func (s *story) good(ctx context.Context) error {
	status, err := soon(ctx, s.ocsp)
	if err != nil {
		return err
	}
	if status.Status != ocsp.Good {
		return fmt.Errorf("OCSP says %d of a new certificate, not good", status.Status)
	}
	s.tell("Its OCSP responder, %s, says: good.", s.leaf.OCSPServer[0])
	list, err := soon(ctx, s.crl)
	if err != nil {
		return err
	}
	if listed(list, s.leaf) {
		return errors.New("a new certificate is in the CRL")
	}
	s.tell("The CRL at %s, number %v, does not list it.", s.leaf.CRLDistributionPoints[0], list.Number)
	return nil
}

func (s *story) revoke(ctx context.Context) error {
	if _, err := s.api.Revoke(ctx, s.issued.Issuer, s.issued.Serial, client.RevokeRequest{Reason: "keyCompromise"}); err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	s.tell("\nIts key is stolen. It is revoked, for keyCompromise.")
	return nil
}

func (s *story) seenRevoked(ctx context.Context) error {
	start := time.Now()
	status, err := s.ocsp(ctx)
	if err != nil {
		return err
	}
	if status.Status != ocsp.Revoked || status.RevocationReason != ocsp.KeyCompromise {
		return fmt.Errorf("OCSP says %d, reason %d, of a revoked certificate", status.Status, status.RevocationReason)
	}
	s.tell("OCSP says: revoked, keyCompromise, since %s.", status.RevokedAt.UTC().Format(time.RFC3339))
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		list, err := s.crl(wait)
		if err != nil {
			return err
		}
		if listed(list, s.leaf) {
			s.tell("The CRL, now number %v, lists it, %s after the revocation.", list.Number, time.Since(start).Round(time.Millisecond))
			return nil
		}
		select {
		case <-wait.Done():
			return errors.New("the CRL does not list the revoked certificate after 10 seconds")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// proven has the node check its own store.
func (s *story) proven(ctx context.Context) error {
	checked := 0
	for f, err := range s.api.Verify(ctx, client.VerifyRequest{}) {
		if err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		if f.Level == "error" {
			return fmt.Errorf("verify: %s: %s", f.Check, f.Message)
		}
		checked++
		s.tell("verify: %s: %s", f.Check, f.Message)
	}
	if checked == 0 {
		return errors.New("verify looked at nothing")
	}
	return nil
}

func (s *story) ocsp(ctx context.Context) (*ocsp.Response, error) {
	if len(s.leaf.OCSPServer) == 0 {
		return nil, errors.New("the certificate names no OCSP responder")
	}
	request, err := ocsp.CreateRequest(s.leaf, s.issuer, &ocsp.RequestOptions{Hash: crypto.SHA256})
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.leaf.OCSPServer[0], bytes.NewReader(request))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/ocsp-request")
	body, err := fetch(r)
	if err != nil {
		return nil, err
	}
	return ocsp.ParseResponseForCert(body, s.leaf, s.issuer)
}

// errSoon says that a node that has just started is not there yet.
var errSoon = errors.New("not yet")

// soon looks again while the node still makes its responder's certificate and its first CRL.
func soon[T any](ctx context.Context, look func(context.Context) (T, error)) (T, error) {
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		seen, err := look(wait)
		refused, ok := errors.AsType[ocsp.ResponseError](err)
		if !(ok && refused.Status == ocsp.TryLater) && !errors.Is(err, errSoon) {
			return seen, err
		}
		select {
		case <-wait.Done():
			return seen, fmt.Errorf("%w: %w", wait.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *story) crl(ctx context.Context) (*x509.RevocationList, error) {
	if len(s.leaf.CRLDistributionPoints) == 0 {
		return nil, errors.New("the certificate names no CRL")
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.leaf.CRLDistributionPoints[0], nil)
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
	return list, list.CheckSignatureFrom(s.issuer)
}

func listed(list *x509.RevocationList, c *x509.Certificate) bool {
	for _, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
			return true
		}
	}
	return false
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

// lookNext says what else there is to see while the node serves.
func (s *story) lookNext() {
	dir := filepath.Join(s.dir, "authority")
	s.tell("\nThe node serves until you press Ctrl-C. In another terminal:\n")
	s.tell("  export CHANCERY_DIR=%s", dir)
	for _, command := range []string{
		"chancery status", "chancery cert list", "chancery cert show " + s.issued.Serial, "chancery audit list", "chancery verify",
		"curl -s http://" + s.addresses.Public + "/crl/" + s.issued.Issuer + ".crl | openssl crl -inform der -noout -text",
	} {
		s.tell("  %s", command)
	}
}

func (s *story) tell(format string, args ...any) { fmt.Fprintf(s.Out, format+"\n", args...) }

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ")
}
