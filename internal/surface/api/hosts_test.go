package api_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// machine is a machine as the authority meets it: a key, a request for it, and later an identity.
type machine struct {
	key    crypto.Signer
	csr    string
	joined *client.Joined
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	key, der := newCSR(t, "ignored")
	return &machine{key: key, csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}
}

// agent is a client that shows a machine's identity.
func (a *authority) agent(m *machine) *client.Client {
	a.t.Helper()
	c, err := client.New(client.Options{
		Address: a.server.URL, Roots: a.roots(), NoRetry: true,
		Certificate: func() (*tls.Certificate, error) {
			pair := tls.Certificate{PrivateKey: m.key}
			for block, rest := pem.Decode([]byte(m.joined.Certificate + m.joined.Chain)); block != nil; block, rest = pem.Decode(rest) {
				pair.Certificate = append(pair.Certificate, block.Bytes)
			}
			return &pair, nil
		},
	})
	must(a.t, err)
	a.t.Cleanup(c.Close)
	return c
}

// stranger is a client that shows nothing.
func (a *authority) stranger() *client.Client {
	a.t.Helper()
	c, err := client.New(client.Options{Address: a.server.URL, Roots: a.roots(), NoRetry: true})
	must(a.t, err)
	a.t.Cleanup(c.Close)
	return c
}

// join adds a host and has a machine join as it.
func (a *authority) join(in client.AddHostRequest) *machine {
	a.t.Helper()
	made, err := a.as(access.Operator).AddHost(a.t.Context(), in)
	must(a.t, err)
	m := newMachine(a.t)
	m.joined, err = a.stranger().Join(a.t.Context(), client.JoinRequest{Token: made.Token, CSR: m.csr, Agent: "test"})
	must(a.t, err)
	return m
}

// walkHosts goes the whole way of an agent: token, roots by their fingerprint, identity, desired state, a certificate for the
// host's own names, report, renewal, replacement, removal.
func walkHosts(t *testing.T, a *authority) {
	ctx, operator := t.Context(), a.as(access.Operator)
	made, err := operator.AddHost(ctx, client.AddHostRequest{
		Name: "Web1.Example.com", DNS: []string{"www.example.com"}, IP: []string{"192.0.2.7"},
		Placements: []client.PlacementOrder{{Recipe: "local/web"}}, Profiles: []string{"server"},
	})
	must(t, err)
	if made.Host.Name != "web1.example.com" || made.Host.State != client.HostPending || len(made.Host.DNS) != 2 {
		t.Fatalf("added %+v", made.Host)
	}
	token, err := client.ParseJoinToken(made.Token)
	must(t, err)
	root, err := client.JoinRoots(ctx, a.server.URL, token.Fingerprint)
	must(t, err)
	m := newMachine(t)
	m.joined, err = a.stranger().Join(ctx, client.JoinRequest{Token: made.Token, CSR: m.csr, Agent: "1.0"})
	must(t, err)
	if m.joined.Roots != root || m.joined.Host != "web1.example.com" || m.joined.Generation != 1 || m.joined.AuditKey == "" {
		t.Fatalf("joined as %+v", m.joined)
	}
	agent := a.agent(m)
	desired, err := agent.Desired(ctx, "", 0)
	must(t, err)
	if len(desired.Placements) != 1 || desired.Pool != "default" || len(desired.Trust.Anchors) != 1 || desired.Trust.Authority != "default root" {
		t.Fatalf("desired %+v", desired)
	}
	if same, err := agent.Desired(ctx, desired.ETag, 0); err != nil || same != nil {
		t.Fatalf("with the ETag: %v, %v", same, err)
	}
	result, err := agent.Issue(ctx, client.IssueRequest{Profile: "server", CSR: csrPEM(t, "", "www.example.com")})
	must(t, err)
	issued := result.Certificate
	_, err = agent.Issue(ctx, client.IssueRequest{Profile: "server", CSR: csrPEM(t, "", "other.example.com")})
	wantKind(t, err, fault.Denied)
	must(t, agent.Report(ctx, client.Report{Agent: "1.0", Generation: 1, ETag: desired.ETag, Observations: []client.Observation{
		{Placement: "web", State: client.PlacementServed, Serial: issued.Serial, Served: issued.Serial, NotAfter: issued.NotAfter},
	}}))
	host, err := operator.Host(ctx, "web1.example.com")
	must(t, err)
	if p := host.Placements[0]; host.State != client.HostJoined || p.Observed.Served != issued.Serial || p.Observed.At.IsZero() || host.SeenAt.IsZero() {
		t.Fatalf("shown %+v", host)
	}
	next := newMachine(t)
	next.joined, err = agent.RenewIdentity(ctx, client.RenewIdentityRequest{CSR: next.csr, Generation: 1})
	must(t, err)
	if next.joined.Generation != 2 {
		t.Fatalf("renewed as %+v", next.joined)
	}
	if _, err := a.agent(next).Desired(ctx, "", 0); err != nil {
		t.Fatal(err)
	}
	listed, err := client.Collect(operator.Hosts(ctx, client.HostFilter{Pool: "default", State: client.HostJoined}))
	must(t, err)
	if len(listed) != 1 || listed[0].Name != "web1.example.com" {
		t.Fatalf("listed %+v", listed)
	}
	names := []string{}
	changed, err := operator.ChangeHost(ctx, "web1.example.com", client.ChangeHostRequest{DNS: &names})
	must(t, err)
	if len(changed.DNS) != 1 || len(changed.IP) != 1 {
		t.Fatalf("changed %+v", changed)
	}
	_, err = operator.ReplaceHost(ctx, "web1.example.com", client.ReplaceHostRequest{Reason: "superseded"})
	must(t, err)
	if made, err = operator.NewHostToken(ctx, "web1.example.com", client.HostTokenRequest{TokenLife: "7d"}); err != nil || made.Token == "" {
		t.Fatalf("another token: %+v, %v", made, err)
	}
	status, err := operator.Status(ctx)
	must(t, err)
	if status.Hosts.Joined != 1 || status.Hosts.SoonestPlacement != "web" {
		t.Fatalf("status %+v", status.Hosts)
	}
	must(t, operator.RemoveHost(ctx, "web1.example.com", ""))
	_, err = a.agent(next).Desired(ctx, "", 0)
	wantKind(t, err, fault.Unauthenticated)
	cert, err := operator.Certificate(ctx, "", issued.Serial)
	must(t, err)
	if cert.State != "revoked" || cert.Revocation.Reason != "cessationOfOperation" {
		t.Fatalf("after the removal: %+v", cert)
	}
}

// follow runs the loop that wakes who waits.
func (a *authority) follow() {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Hosts.Follow(ctx) }()
	a.t.Cleanup(func() { stop(); <-ended })
}

// TestDesiredIsAwaited has an agent wait over the wire, and wakes it by a change.
func TestDesiredIsAwaited(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	a.follow()
	m := a.join(client.AddHostRequest{Name: "db1", Placements: []client.PlacementOrder{{Recipe: "local/db"}}, Profiles: []string{"server"}})
	agent := a.agent(m)
	first, err := agent.Desired(t.Context(), "", 0)
	must(t, err)
	got := make(chan *client.Desired, 1)
	go func() {
		var next *client.Desired
		var err error
		etag := first.ETag
		for range 5 { // what the authority did by itself meanwhile wakes, too; and a busy machine may take longer than a wait
			if next, err = agent.Desired(t.Context(), etag, time.Minute); err != nil || next != nil && len(next.DNS) == 2 {
				break
			}
			if next != nil {
				etag = next.ETag
			}
		}
		if err != nil {
			t.Error(err)
		}
		got <- next
	}()
	names := []string{"db.example.com"}
	_, err = a.as(access.Operator).ChangeHost(t.Context(), "db1", client.ChangeHostRequest{DNS: &names})
	must(t, err)
	if next := <-got; next == nil || len(next.DNS) != 2 || next.ETag == first.ETag {
		t.Fatalf("woken with %+v", next)
	}
}

func wantKind(t testing.TB, err error, kind fault.Kind) {
	t.Helper()
	if !client.IsKind(err, string(kind)) {
		t.Fatalf("want %s, got: %v", kind, err)
	}
}

// call makes a call in this process, with the certificate that a trusted proxy passes on.
func (a *authority) call(t testing.TB, method, path string, m *machine, in, out any) (int, client.Problem) {
	t.Helper()
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		must(t, err)
		body = bytes.NewReader(text)
	}
	r := httptest.NewRequest(method, "http://node"+client.Prefix+path, body)
	r.RemoteAddr = "127.0.0.9:1000"
	r.Header.Set("Content-Type", "application/json")
	item := func(block *pem.Block) string { return ":" + base64.StdEncoding.EncodeToString(block.Bytes) + ":" }
	block, _ := pem.Decode([]byte(m.joined.Certificate))
	r.Header.Set("Client-Cert", item(block))
	for block, rest := pem.Decode([]byte(m.joined.Chain)); block != nil; block, rest = pem.Decode(rest) {
		r.Header.Add("Client-Cert-Chain", item(block))
	}
	w := httptest.NewRecorder()
	a.api.ServeHTTP(w, r)
	var p client.Problem
	if w.Code/100 == 2 {
		if out != nil {
			must(t, json.Unmarshal(w.Body.Bytes(), out))
		}
		return w.Code, p
	}
	must(t, json.Unmarshal(w.Body.Bytes(), &p))
	return w.Code, p
}

// TestExpiredIdentity lets weeks go by: an identity that ended renews itself for a month, and does nothing else.
func TestExpiredIdentity(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	joinIn := func(t *testing.T) (*authority, *machine) {
		a := makeAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
		made, err := a.Hosts.Add(t.Context(), a.people[access.Operator].Principal, client.AddHostRequest{Name: "web1"}, "")
		must(t, err)
		m := newMachine(t)
		m.joined, err = a.Hosts.Join(t.Context(), client.JoinRequest{Token: made.Token, CSR: m.csr})
		must(t, err)
		return a, m
	}
	renewal := func(t *testing.T) client.RenewIdentityRequest {
		return client.RenewIdentityRequest{CSR: newMachine(t).csr, Generation: 1}
	}
	t.Run("within the month", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, m := joinIn(t)
			time.Sleep(59 * day)
			for _, path := range []string{"/agent/desired", "/caller"} {
				status, p := a.call(t, http.MethodGet, path, m, nil, nil)
				if status != http.StatusUnauthorized || !strings.Contains(p.Detail, "it was valid from") || !strings.Contains(p.Hint, "an agent renews its own") {
					t.Fatalf("%s with an identity that ended: %d %+v", path, status, p)
				}
			}
			if status, _ := a.call(t, http.MethodPost, "/certificates", m, client.IssueRequest{Profile: "server", CSR: csrPEM(t, "", "web1")}, nil); status != http.StatusUnauthorized {
				t.Fatalf("an identity that ended got a certificate: %d", status)
			}
			next := newMachine(t)
			next.joined = &client.Joined{}
			in := client.RenewIdentityRequest{CSR: next.csr, Generation: 1}
			if status, p := a.call(t, http.MethodPost, "/agent/identity", m, in, next.joined); status != http.StatusCreated {
				t.Fatalf("renewed late: %d %+v", status, p)
			}
			if status, p := a.call(t, http.MethodGet, "/agent/desired", next, nil, nil); status != http.StatusOK {
				t.Fatalf("with the new identity: %d %+v", status, p)
			}
			if status, _ := a.call(t, http.MethodGet, "/agent/desired", m, nil, nil); status != http.StatusUnauthorized {
				t.Fatalf("with the old one: %d", status)
			}
		})
	})
	t.Run("after it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, m := joinIn(t)
			time.Sleep(61 * day)
			status, p := a.call(t, http.MethodPost, "/agent/identity", m, renewal(t), nil)
			if status != http.StatusUnauthorized || !strings.Contains(p.Hint, "chancery host replace NAME lets its machine join anew") {
				t.Fatalf("renewed too late: %d %+v", status, p)
			}
		})
	})
	t.Run("revoked", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, m := joinIn(t)
			must(t, a.Hosts.Remove(t.Context(), a.people[access.Operator].Principal, "web1", "", ""))
			time.Sleep(31 * day)
			if status, p := a.call(t, http.MethodPost, "/agent/identity", m, renewal(t), nil); status != http.StatusUnauthorized {
				t.Fatalf("a removed host renewed its identity: %d %+v", status, p)
			}
		})
	})
}

// TestGuessesAreLimited tries tokens until the node has had enough, and then finds that roots are not shown either.
func TestGuessesAreLimited(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	a.api.FewGuesses()
	ctx, stranger := t.Context(), a.stranger()
	made, err := a.as(access.Operator).AddHost(ctx, client.AddHostRequest{Name: "web1"})
	must(t, err)
	token, err := client.ParseJoinToken(made.Token)
	must(t, err)
	token.Secret = strings.Repeat("A", len(token.Secret))
	m, limited := newMachine(t), 0
	for range 300 {
		_, err := stranger.Join(ctx, client.JoinRequest{Token: token.String(), CSR: m.csr})
		if client.IsKind(err, string(fault.RateLimited)) {
			limited++
			continue
		}
		wantKind(t, err, fault.Unauthenticated)
	}
	if limited != 100 {
		t.Fatalf("%d of 300 guesses were sent away", limited)
	}
	if text := a.log.String(); strings.Contains(text, token.Secret) || strings.Contains(text, "chancery-join-1.") {
		t.Fatal("a token is in the log")
	}
}

// TestHostsEndAsHosts keeps a host's principal from being used as an operator's: no token, no identity but the agent's own,
// no removal that would leave its certificates good.
func TestHostsEndAsHosts(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	ctx, admin := t.Context(), a.as(access.Admin)
	m := a.join(client.AddHostRequest{Name: "web1"})
	wantKind(t, admin.RemoveOperator(ctx, "web1"), fault.Conflict)
	_, err := admin.CreateToken(ctx, "web1", client.CreateTokenRequest{})
	wantKind(t, err, fault.Invalid)
	for name, c := range map[string]*client.Client{"web1": admin, "": a.agent(m)} {
		_, err = c.Enrol(ctx, name, client.EnrolRequest{CSR: newMachine(t).csr})
		wantKind(t, err, fault.Denied)
	}
	if same, err := a.agent(m).Desired(ctx, "no such etag", time.Second); err != nil || same == nil {
		t.Fatalf("desired: %v, %v", same, err)
	}
	first, err := a.agent(m).Desired(ctx, "", 0)
	must(t, err)
	// The node's own deadlines for reading are shorter than this wait.
	if same, err := a.agent(m).Desired(ctx, first.ETag, time.Second); err != nil || same != nil {
		t.Fatalf("after a wait: %v, %v", same, err)
	}
}
