package api_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"encoding/pem"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// machine is a machine as the authority meets it: a key, a request for it, and later an identity.
type machine struct {
	key        crypto.Signer
	csr        string
	joined     *client.Joined
	generation int64
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

// TestAgentOverTheWire walks the whole way of an agent: token, roots by their fingerprint, identity, desired state, a
// certificate for the host's own names, report, renewal, removal.
func TestAgentOverTheWire(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx, operator := t.Context(), a.as(access.Operator)
		made, err := operator.AddHost(ctx, client.AddHostRequest{
			Name: "Web1.Example.com", DNS: []string{"www.example.com"}, IP: []string{"192.0.2.7"},
			Placements: []client.PlacementOrder{{Recipe: "local/web"}},
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
		must(t, operator.RemoveHost(ctx, "web1.example.com", ""))
		_, err = a.agent(next).Desired(ctx, "", 0)
		wantKind(t, err, fault.Unauthenticated)
		cert, err := operator.Certificate(ctx, "", issued.Serial)
		must(t, err)
		if cert.State != "revoked" || cert.Revocation.Reason != "cessationOfOperation" {
			t.Fatalf("after the removal: %+v", cert)
		}
	})
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
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	a.follow()
	m := a.join(client.AddHostRequest{Name: "db1", Placements: []client.PlacementOrder{{Recipe: "local/db"}}})
	agent := a.agent(m)
	first, err := agent.Desired(t.Context(), "", 0)
	must(t, err)
	got := make(chan *client.Desired, 1)
	go func() {
		next, err := agent.Desired(t.Context(), first.ETag, 20*time.Second)
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
