package api_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/identity"
	"chancery/internal/authoritytest"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/checkpoint"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
	"chancery/internal/surface/api"
	"chancery/internal/upkeep/setup"
	"github.com/prometheus/client_golang/prometheus"
)

// authority is a whole authority behind a real TLS listener.
type authority struct {
	*setup.Services
	t      testing.TB
	api    *api.Server
	server *httptest.Server
	log    *lockedBuffer
	header time.Duration // how long a header may take
	people map[access.Role]*person
}

// person is an operator with one role, a token and a key with an identity.
type person struct {
	access.Principal
	token    string
	identity tls.Certificate
}

// lockedBuffer is a log that a test reads while the server writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newAuthority makes an authority that is served, and whose CRLs are signed.
func newAuthority(t testing.TB, d *db.DB) *authority {
	t.Helper()
	a := makeAuthority(t, d)
	a.serve()
	return a
}

// makeAuthority makes an authority with the pools identity and default, their roots online, on a migrated database, and one
// operator for each role.
func makeAuthority(t testing.TB, d *db.DB) *authority {
	t.Helper()
	first := authoritytest.Settings()
	first.PublicURL, first.Address = "http://pki.test", "https://localhost:8443"
	_, nodeKey := authoritytest.New(t, d, first, pool.Identity, pool.Default)
	a := &authority{t: t, log: &lockedBuffer{}, people: map[access.Role]*person{}}
	var err error
	a.Services, err = setup.Assemble(d, "n1", nodeKey, slog.New(slog.NewJSONHandler(a.log, nil)))
	must(t, err)
	for _, role := range []access.Role{access.Admin, access.Officer, access.Operator, access.Auditor, access.Host} {
		a.addPerson("the-"+string(role), role)
	}
	a.wait(0, 0)
	return a
}

// wait makes the API of an authority that is not served yet anew, with how long it waits for a header and a body: 0 is what nodes do.
func (a *authority) wait(header, body time.Duration) {
	a.t.Helper()
	var err error
	a.header = header
	a.api, err = api.New(a.Services, api.Options{
		Logger: slog.New(slog.NewJSONHandler(a.log, nil)), Registry: prometheus.NewRegistry(), Version: "test", Expensive: 2, BodyTimeout: body,
		Checkpoints: signer{a.Services},
		Proxies:     []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32")},
	})
	must(a.t, err)
}

// serve starts the loops and the listener.
func (a *authority) serve() {
	a.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Revocation.Run(ctx) }()
	a.t.Cleanup(func() { stop(); <-ended })
	a.server = httptest.NewUnstartedServer(a.api)
	a.server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	a.server.Config.ErrorLog = slog.NewLogLogger(slog.NewJSONHandler(io.Discard, nil), slog.LevelDebug)
	a.server.Config.ReadHeaderTimeout, a.server.Config.ReadTimeout = a.header, a.header
	a.server.StartTLS()
	a.t.Cleanup(a.server.Close)
}

// signer signs checkpoints as the node's loop does.
type signer struct{ *setup.Services }

func (s signer) Sign(ctx context.Context, call once.Call) (*checkpoint.Signed, error) {
	lease, _, err := s.DB.Acquire(ctx, audit.Lease, s.Audit.Node(), time.Minute)
	if err != nil {
		return nil, err
	}
	found, err := s.Keys.Find(ctx, keys.Audit, "")
	if err != nil {
		return nil, err
	}
	key, err := s.Keys.Signer(ctx, found[0].ID)
	if err != nil {
		return nil, err
	}
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	return s.Audit.Checkpoint(ctx, lease, set.Authority, time.Now(), call, key)
}

// addPerson makes a caller with a token, where it may have one, and an identity; the first of each role is the role's.
func (a *authority) addPerson(name string, role access.Role) *person {
	a.t.Helper()
	ctx, system := a.t.Context(), access.System("test")
	kind := access.KindOperator
	if role == access.Host {
		kind = access.KindHost
	}
	p := &person{}
	var err error
	p.Principal, err = a.Access.CreatePrincipal(ctx, system, access.Principal{Name: name, Kind: kind, Roles: []access.Role{role}}, once.Call{})
	must(a.t, err)
	_, p.token, err = a.Access.CreateToken(ctx, system, access.TokenOrder{Principal: p.ID, Label: "test", Life: time.Hour})
	must(a.t, err)
	key, csr := newCSR(a.t, "ignored")
	issued, err := a.Identity.Enrol(ctx, system, p.Principal, csr, "")
	must(a.t, err)
	p.identity = tls.Certificate{Certificate: identity.Path(issued), PrivateKey: key}
	if _, ok := a.people[role]; !ok {
		a.people[role] = p
	}
	return p
}

// newCSR makes a key and a request for a common name and DNS names.
func newCSR(t testing.TB, commonName string, dns ...string) (crypto.Signer, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: commonName}, DNSNames: dns}, key)
	must(t, err)
	return key, der
}

func csrPEM(t testing.TB, commonName string, dns ...string) string {
	t.Helper()
	_, der := newCSR(t, commonName, dns...)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// unlimited lets hosts call as often as they like.
func (a *authority) unlimited() {
	a.t.Helper()
	set, err := a.Settings.Get(a.t.Context())
	must(a.t, err)
	next := *set
	next.Limits.HostRate = settings.Rate{PerSecond: 1000, Burst: 1000}
	_, err = a.Settings.Set(a.t.Context(), "test", next, once.Call{})
	must(a.t, err)
}

func (a *authority) roots() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(a.server.Certificate())
	return roots
}

// as is a client of the operator who has one role, known by his certificate.
func (a *authority) as(role access.Role) *client.Client {
	a.t.Helper()
	p := a.people[role]
	c, err := client.New(client.Options{
		Address: a.server.URL, Roots: a.roots(), NoRetry: true,
		Certificate: func() (*tls.Certificate, error) { return &p.identity, nil },
	})
	must(a.t, err)
	a.t.Cleanup(c.Close)
	return c
}

// bearer is a client with a token.
func (a *authority) bearer(token string) *client.Client {
	a.t.Helper()
	c, err := client.New(client.Options{Address: a.server.URL, Roots: a.roots(), Token: token, NoRetry: true})
	must(a.t, err)
	a.t.Cleanup(c.Close)
	return c
}

// request makes one raw call and returns its status, header and body.
func (a *authority) request(method, path, token, body string, header ...string) (int, http.Header, []byte) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, a.server.URL+path, strings.NewReader(body))
	must(a.t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := a.server.Client().Do(req)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(a.t, err)
	return resp.StatusCode, resp.Header, text
}

// problemOf decodes an answer that must be a problem.
func problemOf(t *testing.T, header http.Header, body []byte) client.Problem {
	t.Helper()
	var p client.Problem
	if header.Get("Content-Type") != "application/problem+json" || json.Unmarshal(body, &p) != nil || p.RequestID == "" {
		t.Fatalf("no problem: %s: %s", header.Get("Content-Type"), body)
	}
	return p
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
