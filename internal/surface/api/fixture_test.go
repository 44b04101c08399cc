package api_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/settings"
	"chancery/internal/surface/api"
	"github.com/prometheus/client_golang/prometheus"
)

// authority is a whole authority behind a real TLS listener.
type authority struct {
	t        testing.TB
	db       *db.DB
	services api.Services
	api      *api.Server
	server   *httptest.Server
	log      *lockedBuffer
	tokens   map[access.Role]string
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

func newAuthority(t testing.TB, d *db.DB) *authority {
	t.Helper()
	a := &authority{t: t, db: d, log: &lockedBuffer{}, tokens: map[access.Role]string{}}
	log, err := audit.New(d, "n1")
	must(t, err)
	a.services = api.Services{Audit: log, Access: access.New(d, log), Settings: settings.New(d, log)}
	a.populate()
	a.api, err = api.New(a.services, api.Options{
		Logger: slog.New(slog.NewJSONHandler(a.log, nil)), Registry: prometheus.NewRegistry(), Version: "test", Expensive: 2,
	})
	must(t, err)
	a.server = httptest.NewUnstartedServer(a.api)
	a.server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	a.server.Config.ErrorLog = slog.NewLogLogger(slog.NewJSONHandler(io.Discard, nil), slog.LevelDebug)
	a.server.Config.ReadHeaderTimeout = 300 * time.Millisecond
	a.server.Config.ReadTimeout = 600 * time.Millisecond
	a.server.StartTLS()
	t.Cleanup(a.server.Close)
	return a
}

// populate makes the settings, and one operator with a token for each role.
func (a *authority) populate() {
	a.t.Helper()
	ctx, now := a.t.Context(), time.Now()
	first := settings.Defaults()
	first.Authority, first.Organization, first.PublicURL = db.NewID(), "Test", "http://pki.test"
	first.Address = "https://localhost:8443"
	must(a.t, a.db.Tx(ctx, func(tx *db.Tx) error { return a.services.Settings.Create(ctx, tx, first, "test", now) }))
	for _, role := range []access.Role{access.Admin, access.Officer, access.Operator, access.Auditor} {
		a.addOperator("the-"+string(role), role)
	}
}

func (a *authority) addOperator(name string, role access.Role) access.Principal {
	a.t.Helper()
	system := access.System("test")
	p, err := a.services.Access.CreatePrincipal(a.t.Context(), system, access.Principal{Name: name, Kind: access.KindOperator, Roles: []access.Role{role}})
	must(a.t, err)
	_, secret, err := a.services.Access.CreateToken(a.t.Context(), system, p.ID, "test", time.Hour)
	must(a.t, err)
	if _, ok := a.tokens[role]; !ok {
		a.tokens[role] = secret
	}
	return p
}

func (a *authority) roots() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(a.server.Certificate())
	return roots
}

// as is a client with the token of an operator who has one role.
func (a *authority) as(role access.Role) *client.Client {
	a.t.Helper()
	c, err := client.New(client.Options{Address: a.server.URL, Roots: a.roots(), Token: a.tokens[role], NoRetry: true})
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
