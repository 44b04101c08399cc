package host_test

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authoritytest"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/cert"
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
	operator = access.Principal{ID: "otto", Name: "otto", Kind: access.KindOperator, Roles: []access.Role{access.Operator}}
	auditor  = access.Principal{ID: "adam", Name: "adam", Kind: access.KindOperator, Roles: []access.Role{access.Auditor}}
)

// authority is the services over a database.
type authority struct {
	*setup.Services
	t testing.TB
}

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

// newAuthority makes an authority with the pools identity, default and lab, their roots online.
func newAuthority(t testing.TB, d *db.DB) *authority {
	t.Helper()
	names := []string{pool.Identity, pool.Default, "lab"}
	s, _ := authoritytest.New(t, d, authoritytest.Settings(), names...)
	for _, name := range names {
		must[*trust.Sets](t)(s.Trust.Of(t.Context(), name, 0, time.Now())) // the first version is written when somebody looks
	}
	return &authority{s, t}
}

// second is another node of the same authority, which opens no key: it serves what is only read.
func (a *authority) second(d *db.DB) *authority {
	a.t.Helper()
	node := must[*keys.NodeKey](a.t)(keys.CreateNodeKey(filepath.Join(a.t.TempDir(), "node.key")))
	return &authority{must[*setup.Services](a.t)(setup.Assemble(d, "n2", node, nil)), a.t}
}

// machine is a machine as the authority meets it.
type machine struct {
	csr       string
	principal access.Principal
	joined    *client.Joined
}

func newCSR(t testing.TB, names ...string) string {
	t.Helper()
	key := must[crypto.Signer](t)(keyfile.Generate(keyfile.ECDSAP256, 0))
	template := &cert.CSRTemplate{}
	for _, name := range names {
		template.SAN = append(template.SAN, cert.DNSName(name))
	}
	der := must[[]byte](t)(cert.CreateCSR(template, key))
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// add adds a host, which may have certificates of servers unless the test says otherwise.
func (a *authority) add(in client.AddHostRequest) *client.HostToken {
	a.t.Helper()
	if in.Profiles == nil {
		in.Profiles = []string{"server"}
	}
	return must[*client.HostToken](a.t)(a.Hosts.Add(a.t.Context(), operator, in, ""))
}

// redeem has a new machine join with a token.
func (a *authority) redeem(token string) *machine {
	a.t.Helper()
	m := &machine{csr: newCSR(a.t)}
	m.joined = must[*client.Joined](a.t)(a.Hosts.Join(a.t.Context(), client.JoinRequest{Token: token, CSR: m.csr, Agent: "test"}))
	m.principal = must[access.Principal](a.t)(a.Access.PrincipalNamed(a.t.Context(), m.joined.Host)).Showing(m.certificate(a.t).RawSubjectPublicKeyInfo)
	return m
}

// join adds a host and has a machine join as it.
func (a *authority) join(in client.AddHostRequest) *machine {
	a.t.Helper()
	return a.redeem(a.add(in).Token)
}

// issue orders a certificate as a machine.
func (a *authority) issue(m *machine, o ca.Order, names ...string) (*ca.Certificate, error) {
	a.t.Helper()
	o.Profile, o.CSR = "server", []byte(newCSR(a.t, names...))
	return a.CA.Issue(a.t.Context(), m.principal, o)
}

func (a *authority) host(name string) *client.Host {
	a.t.Helper()
	return must[*client.Host](a.t)(a.Hosts.Show(a.t.Context(), operator, name))
}

// state is what the record says of a certificate now, and why.
func (a *authority) state(c *ca.Certificate) string {
	a.t.Helper()
	found := must[*ca.Certificate](a.t)(a.CA.Find(a.t.Context(), access.System("n1"), ca.Ref{Issuer: c.Issuer.ID, Serial: c.Serial}))
	if found.Revocation != nil {
		return string(found.State) + " " + found.Revocation.Reason.String()
	}
	return string(found.State)
}

// events counts the audit's events of an action.
func (a *authority) events(action string) int {
	a.t.Helper()
	return len(must[audit.Page](a.t)(a.Audit.Search(a.t.Context(), audit.Filter{Action: action}, "", 1000)).Events)
}

// exec changes a row behind the services' back, as time or another program would.
func (a *authority) exec(query string, args ...any) {
	a.t.Helper()
	check(a.t, a.DB.Tx(a.t.Context(), func(tx *db.Tx) error {
		n, err := tx.Exec(a.t.Context(), query, args...)
		if err == nil && n == 0 {
			err = fmt.Errorf("%s: no row", query)
		}
		return err
	}))
}

// certificate is the machine's identity.
func (m *machine) certificate(t testing.TB) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(m.joined.Certificate))
	return must[*x509.Certificate](t)(x509.ParseCertificate(block.Bytes))
}

// identityIssuer is the ID of the issuer of identities.
func (a *authority) identityIssuer() string {
	a.t.Helper()
	return must[*ca.Issuer](a.t)(a.CA.Issuer(a.t.Context(), pool.Identity)).ID
}

// liftLimits lets hosts get as many certificates as a test wants.
func (a *authority) liftLimits() {
	a.t.Helper()
	set := *must[*settings.Settings](a.t)(a.Settings.Get(a.t.Context()))
	set.Limits.HostRate, set.Limits.Duplicates = settings.Rate{PerSecond: 100_000, Burst: 100_000}, 100_000
	must[*settings.Settings](a.t)(a.Settings.Set(a.t.Context(), "test", set, once.Call{}))
}
