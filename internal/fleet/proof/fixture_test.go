package proof_test

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authoritytest"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
	"chancery/internal/upkeep/setup"
)

var (
	officer  = access.Principal{ID: "olga", Name: "olga", Kind: access.KindOperator, Roles: []access.Role{access.Officer}}
	operator = access.Principal{ID: "otto", Name: "otto", Kind: access.KindOperator, Roles: []access.Role{access.Operator}}
	admin    = access.Principal{ID: "ada", Name: "ada", Kind: access.KindOperator, Roles: []access.Role{access.Admin}}
)

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused fails unless err is a refusal of that kind whose words hold the text.
func refused(t testing.TB, err error, kind fault.Kind, text string) {
	t.Helper()
	if !fault.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Fatalf("got %v, want a refusal that is %s and says %q", err, kind, text)
	}
}

// authority is the services over a database, with the pools identity, default and lab.
type authority struct {
	*setup.Services
	t   testing.TB
	key *keys.NodeKey
}

// second is the same node, started again: it remembers nothing.
func (a *authority) second() *authority {
	a.t.Helper()
	return &authority{must[*setup.Services](a.t)(setup.Assemble(a.DB, "n1", a.key, nil)), a.t, a.key}
}

func newAuthority(t testing.TB, d *db.DB) *authority {
	t.Helper()
	s, node := authoritytest.New(t, d, authoritytest.Settings(), pool.Identity, pool.Default, "lab")
	a, ctx := &authority{s, t, node}, t.Context()
	for _, name := range cert.BuiltinProfiles() {
		text := must[[]byte](t)(cert.BuiltinYAML(name))
		if _, err := a.Profiles.Current(ctx, name); err != nil {
			_, _, err := a.Profiles.Save(ctx, admin, text, 0, once.Call{})
			check(t, err)
		}
	}
	return a
}

// machine is a host's machine.
type machine struct {
	name      string
	principal access.Principal
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	return must[crypto.Signer](t)(keyfile.Generate(keyfile.ECDSAP256, 0))
}

func csrOf(t testing.TB, key crypto.Signer, template *cert.CSRTemplate) string {
	t.Helper()
	der := must[[]byte](t)(cert.CreateCSR(template, key))
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// bare is a request that asks for nothing.
func bare(t testing.TB, key crypto.Signer) string { return csrOf(t, key, &cert.CSRTemplate{}) }

// join adds a host with an nginx that listens and is given CRLs, and has a machine join as it.
func (a *authority) join(name, of string) *machine {
	a.t.Helper()
	return a.reports(a.joins(name, of), client.Observation{Placement: "nginx", Address: "localhost:443", CRLEnds: time.Now().Add(time.Hour)})
}

// reports has a machine say what it sees.
func (a *authority) reports(m *machine, seen client.Observation) *machine {
	a.t.Helper()
	seen.State = client.PlacementServed
	check(a.t, a.Hosts.Report(a.t.Context(), m.principal, client.Report{Agent: "test", Observations: []client.Observation{seen}}))
	return m
}

// joins adds a host of which nothing is known yet.
func (a *authority) joins(name, of string) *machine {
	a.t.Helper()
	ctx := a.t.Context()
	token := must[*client.HostToken](a.t)(a.Hosts.Add(ctx, operator, client.AddHostRequest{
		Name: name, Pool: of, Placements: []client.PlacementOrder{{Name: "nginx", Recipe: "nginx"}, {Name: "plain", Recipe: "plain"}},
	}, ""))
	joined := must[*client.Joined](a.t)(a.Hosts.Join(ctx, client.JoinRequest{Token: token.Token, CSR: bare(a.t, newKey(a.t)), Agent: "test"}))
	block, _ := pem.Decode([]byte(joined.Certificate))
	identity := must[*x509.Certificate](a.t)(x509.ParseCertificate(block.Bytes))
	p := must[access.Principal](a.t)(a.Access.PrincipalNamed(ctx, name))
	return &machine{name, p.Showing(identity.RawSubjectPublicKeyInfo)}
}

// certificate issues a client's certificate to an operator.
func (a *authority) certificate(of string, key crypto.Signer) *ca.Certificate {
	a.t.Helper()
	return must[*ca.Certificate](a.t)(a.CA.Issue(a.t.Context(), admin, ca.Order{
		Profile: "client", Pool: of, CSR: []byte(bare(a.t, key)), Subject: "CN=mallory,O=Example", Names: []string{"email:mallory@example.com"},
	}))
}

func (a *authority) revoke(c *ca.Certificate) {
	a.t.Helper()
	_, err := a.CA.Revoke(a.t.Context(), officer, refOf(c), ca.RevokeOrder{Reason: crl.KeyCompromise})
	check(a.t, err)
}

func refOf(c *ca.Certificate) ca.Ref { return ca.Ref{Issuer: c.Issuer.ID, Serial: c.Serial} }

// start begins a proof.
func (a *authority) start(c *ca.Certificate, in client.ProveRequest) *client.ProofResult {
	a.t.Helper()
	id := must[string](a.t)(a.Proofs.Start(a.t.Context(), officer, refOf(c), in, once.Call{}))
	return must[*client.ProofResult](a.t)(a.Proofs.Show(a.t.Context(), officer, id))
}

// twin asks for one.
func (a *authority) twin(m *machine, proof, csr string) (*client.ProofCertificate, error) {
	return a.Proofs.Issue(a.t.Context(), m.principal, proof, client.ProofKeyRequest{CSR: csr})
}

func (a *authority) control(m *machine, proof, csr string) (*client.ProofCertificate, error) {
	return a.Proofs.Issue(a.t.Context(), m.principal, proof, client.ProofKeyRequest{CSR: csr, Control: true})
}

func (a *authority) find(serial string) *ca.Certificate {
	a.t.Helper()
	number, err := cert.ParseSerial(serial)
	check(a.t, err)
	return must[*ca.Certificate](a.t)(a.CA.Find(a.t.Context(), admin, ca.Ref{Serial: number}))
}

func (a *authority) events(action string) []audit.Event {
	a.t.Helper()
	return must[audit.Page](a.t)(a.Audit.Search(a.t.Context(), audit.Filter{Action: action}, "", 1000)).Events
}

// exec changes rows behind the services' back, as time would.
func (a *authority) exec(query string, args ...any) {
	a.t.Helper()
	check(a.t, a.DB.Tx(a.t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(a.t.Context(), query, args...)
		return err
	}))
}

// clean fails unless the records agree with each other and with the audit.
func (a *authority) clean() {
	a.t.Helper()
	findings, done, err := a.CA.Check(a.t.Context(), 1)
	check(a.t, err)
	more, seen, err := a.CA.CheckAudit(a.t.Context())
	check(a.t, err)
	if done.Certificates == 0 || done.Revocations == 0 || seen.Issued == 0 || seen.Statuses == 0 {
		a.t.Errorf("little was checked: %+v, %+v", done, seen)
	}
	for _, f := range append(findings, more...) {
		a.t.Errorf("%s: %s", f.Object, f.Message)
	}
}

func desired(t testing.TB, a *authority, m *machine) *client.Desired {
	t.Helper()
	return must[*client.Desired](t)(a.Hosts.Desired(t.Context(), m.principal, "", 0))
}

// liftLimits lets hosts and operators get as many certificates as a test wants.
func (a *authority) liftLimits() {
	a.t.Helper()
	set := *must[*settings.Settings](a.t)(a.Settings.Get(a.t.Context()))
	set.Limits.HostRate, set.Limits.OperatorRate = settings.Rate{PerSecond: 100_000, Burst: 100_000}, settings.Rate{PerSecond: 100_000, Burst: 100_000}
	set.Limits.Duplicates, set.Limits.OperatorDuplicates = 100_000, 100_000
	must[*settings.Settings](a.t)(a.Settings.Set(a.t.Context(), "test", set, once.Call{}))
}
