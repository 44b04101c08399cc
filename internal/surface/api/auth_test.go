package api_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/identity"
	"chancery/internal/pki/cert"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// TestRolesAndOperations asks every operation as every role, and as nobody. Whoever may not is refused before anything is
// read of his input; whoever may gets past that.
func TestRolesAndOperations(t *testing.T) {
	t.Parallel()
	a := newSQLite(t)
	a.unlimited()
	all, asked := operations(t, a.api), 0
	strangers := 0
	for _, o := range all {
		if o.Secured == o.Stranger {
			t.Errorf("%s: the document says it is secured: %t", o.ID, o.Secured)
		}
		if o.Stranger {
			strangers++
			w := httptest.NewRecorder()
			a.api.ServeHTTP(w, httptest.NewRequest(o.Method, "http://node"+o.fill("zzz"), nil))
			if w.Code == http.StatusUnauthorized || w.Code >= 500 {
				t.Errorf("%s as nobody: %d", o.ID, w.Code)
			}
			continue
		}
		if len(o.Roles) == 0 {
			t.Errorf("%s: nobody may", o.ID)
		}
		r := httptest.NewRequest(o.Method, "http://node"+o.fill("zzz"), strings.NewReader("{garbage"))
		w := httptest.NewRecorder()
		a.api.ServeHTTP(w, r)
		if w.Code != http.StatusUnauthorized {
			t.Errorf("%s as nobody: %d", o.ID, w.Code)
		}
		for role, p := range a.people {
			// With his own name in the path, since tokens are everyone's own.
			r := httptest.NewRequest(o.Method, "http://node"+o.fill(p.Name), strings.NewReader("{garbage"))
			r.Header.Set("Authorization", "Bearer "+p.token)
			r.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			if o.ID == "backup" {
				continue // it has no input to be refused; walked through elsewhere
			}
			a.api.ServeHTTP(w, r)
			asked++
			may := slices.Contains(o.Roles, string(role))
			if denied := w.Code == http.StatusForbidden && strings.Contains(w.Body.String(), "needs one of"); denied == may {
				t.Errorf("%s as %s: %d %s", o.ID, role, w.Code, w.Body)
			}
			if w.Code >= 500 {
				t.Errorf("%s as %s: %d %s", o.ID, role, w.Code, w.Body)
			}
		}
	}
	if asked < 300 || strangers != 3 {
		t.Fatalf("%d questions were asked, and %d operations are for strangers; they prove little", asked, strangers)
	}
}

// TestMutatingOperationsTakeAnIdempotencyKey holds the document to law 1.
func TestMutatingOperationsTakeAnIdempotencyKey(t *testing.T) {
	t.Parallel()
	a := newSQLite(t)
	document := string(a.api.Document())
	n := strings.Count(document, `"Idempotency-Key"`)
	mutating := 0
	for _, o := range operations(t, a.api) {
		if o.Method != http.MethodGet {
			mutating++
		}
	}
	if n != mutating || mutating < 30 {
		t.Fatalf("%d of %d mutating operations take a key", n, mutating)
	}
}

// show asks who the caller is, with a certificate, and returns the status and the answer.
func (a *authority) show(t *testing.T, c tls.Certificate) (int, string) {
	t.Helper()
	api, err := client.New(client.Options{Address: a.server.URL, Roots: a.roots(), NoRetry: true,
		Certificate: func() (*tls.Certificate, error) { return &c, nil }})
	must(t, err)
	defer api.Close()
	who, err := api.Caller(t.Context())
	if p, ok := err.(*client.Problem); ok {
		return p.Status, p.Detail
	}
	must(t, err)
	return http.StatusOK, who.Name
}

func TestCertificatesThatProveNothing(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx, system := t.Context(), access.System("test")
		good := a.people[access.Officer].identity
		if status, who := a.show(t, good); status != 200 || who != "the-officer" {
			t.Fatalf("a good identity: %d %s", status, who)
		}

		key, csr := newCSR(t, "the-admin", "web.test")
		issued, err := a.as(access.Operator).Issue(ctx, client.IssueRequest{Profile: "client", CSR: pemOf("CERTIFICATE REQUEST", csr)})
		must(t, err)
		fromDefault := tls.Certificate{Certificate: [][]byte{decode(t, issued.Certificate.PEM), decode(t, issued.Certificate.Chain)}, PrivateKey: key}
		if status, says := a.show(t, fromDefault); status != 401 {
			t.Errorf("a client certificate of another pool: %d %s", status, says)
		}

		// An identity comes by enrolment only, whatever name is in it.
		_, csr = newCSR(t, "the-operator")
		for _, role := range []access.Role{access.Admin, access.Operator} {
			_, err := a.as(role).Issue(ctx, client.IssueRequest{Pool: "identity", Profile: "identity", CSR: pemOf("CERTIFICATE REQUEST", csr)})
			if !client.IsKind(err, "denied") {
				t.Errorf("an identity that %s ordered without enrolment: %v", role, err)
			}
		}
		if _, err := a.as(access.Admin).Issue(ctx, client.IssueRequest{Pool: "identity", Profile: "server", CSR: csrPEM(t, "", "node.test")}); !client.IsKind(err, "denied") {
			t.Errorf("a server certificate under the issuer of identities: %v", err)
		}

		if status, says := a.show(t, selfSigned(t, "the-admin")); status != 401 {
			t.Errorf("a self-signed certificate: %d %s", status, says)
		}

		p := a.addPerson("leaver", access.Operator)
		if status, _ := a.show(t, p.identity); status != 200 {
			t.Fatalf("before it was revoked: %d", status)
		}
		leaf, err := x509.ParseCertificate(p.identity.Certificate[0])
		must(t, err)
		_, err = a.as(access.Officer).Revoke(ctx, "identity", cert.FormatSerial(leaf.SerialNumber), client.RevokeRequest{Reason: "keyCompromise"})
		must(t, err)
		eventually(t, func() bool { status, _ := a.show(t, p.identity); return status == 401 }, "a revoked identity is still believed")

		q := a.addPerson("fired", access.Operator)
		disabled := true
		_, err = a.Access.UpdatePrincipal(ctx, system, q.ID, access.Change{Disabled: &disabled}, once.Call{})
		must(t, err)
		if status, says := a.show(t, q.identity); status != 401 {
			t.Errorf("a disabled operator: %d %s", status, says)
		}
		if _, err := a.bearer(q.token).Caller(ctx); !client.IsKind(err, "unauthenticated") {
			t.Errorf("a disabled operator's token: %v", err)
		}
	})
}

// eventually asks until it is so; what is remembered of an identity is believed for a second.
func eventually(t *testing.T, so func() bool, otherwise string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if so() {
			return
		}
	}
	t.Error(otherwise)
}

func pemOf(label string, der []byte) string {
	return "-----BEGIN " + label + "-----\n" + base64.StdEncoding.EncodeToString(der) + "\n-----END " + label + "-----\n"
}

func selfSigned(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestClientCertOfAProxy holds to RFC 9440: the header counts from the proxies that are named, and from nobody else.
func TestClientCertOfAProxy(t *testing.T) {
	t.Parallel()
	a := newSQLite(t)
	path := a.people[access.Officer].identity.Certificate
	field := func(der []byte) string { return ":" + base64.StdEncoding.EncodeToString(der) + ":" }
	ask := func(remote string, header http.Header) *httptest.ResponseRecorder {
		r := httptest.NewRequest("GET", client.Prefix+"/caller", nil)
		r.RemoteAddr = remote
		r.Header = header
		w := httptest.NewRecorder()
		a.api.ServeHTTP(w, r)
		return w
	}
	good := http.Header{"Client-Cert": {field(path[0])}, "Client-Cert-Chain": {field(path[1])}}
	if w := ask("127.0.0.9:1234", good); w.Code != 200 || !strings.Contains(w.Body.String(), "the-officer") {
		t.Fatalf("from the proxy: %d %s", w.Code, w.Body)
	}
	for name, c := range map[string]struct {
		remote string
		header http.Header
		status int
	}{
		"from elsewhere":    {"127.0.0.8:1234", good, 403},
		"two headers":       {"127.0.0.9:1", http.Header{"Client-Cert": {field(path[0]), field(path[0])}}, 422},
		"no byte sequence":  {"127.0.0.9:1", http.Header{"Client-Cert": {"abc"}}, 422},
		"no certificate":    {"127.0.0.9:1", http.Header{"Client-Cert": {":AAAA:"}}, 422},
		"without its chain": {"127.0.0.9:1", http.Header{"Client-Cert": {field(a.people[access.Auditor].identity.Certificate[0])}}, 401},
		"nobody":            {"127.0.0.9:1", http.Header{}, 401},
	} {
		if w := ask(c.remote, c.header); w.Code != c.status {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}

// TestIdentityPathEndsBelowTheRoot keeps the root out of handshakes.
func TestIdentityPathEndsBelowTheRoot(t *testing.T) {
	t.Parallel()
	a := newSQLite(t)
	_, csr := newCSR(t, "x")
	issued, err := a.Identity.Enrol(t.Context(), access.System("test"), a.people[access.Admin].Principal, csr, "")
	must(t, err)
	path := identity.Path(issued)
	if len(path) != 2 {
		t.Fatalf("the path has %d certificates", len(path))
	}
	issuer, err := x509.ParseCertificate(path[1])
	must(t, err)
	if issuer.Subject.String() == issuer.Issuer.String() {
		t.Fatal("the root is in the path")
	}
}
