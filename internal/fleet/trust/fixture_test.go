package trust_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/fleet/trust"
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
	admin    = access.Principal{ID: "alice", Name: "alice", Kind: access.KindOperator, Roles: []access.Role{access.Admin}}
	operator = access.Principal{ID: "otto", Name: "otto", Kind: access.KindOperator, Roles: []access.Role{access.Operator}}
	system   = access.System("n1")
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
		t.Errorf("got %v, want a refusal that is %s and says %q", err, kind, text)
	}
}

// newAuthority makes an authority with the pools identity, default and lab, their roots online.
func newAuthority(t testing.TB, d *db.DB) *authority {
	t.Helper()
	node := must[*keys.NodeKey](t)(keys.CreateNodeKey(filepath.Join(t.TempDir(), "node.key")))
	recovery := must[*keys.Recovery](t)(keys.GenerateRecovery())
	a := &authority{must[*setup.Services](t)(setup.Assemble(d, "n1", node, nil)), t}
	ctx, now := context.Background(), time.Now()
	first := settings.Defaults()
	first.Authority, first.Organization, first.Address = db.NewID(), "Test", "https://ca.example.com:8443"
	check(t, d.Tx(ctx, func(tx *db.Tx) error {
		return errors.Join(a.Settings.Create(ctx, tx, first, "test", now),
			a.Keys.AddRecipient(ctx, tx, keys.Recipient{ID: "recovery", Kind: keys.KindRecovery, PublicKey: recovery.Public(), Created: now}, "test", now),
			a.Keys.AddRecipient(ctx, tx, keys.Recipient{ID: "n1", Kind: keys.KindNode, Name: "n1", PublicKey: node.Public(), Created: now,
				Subsystems: []keys.Subsystem{keys.SubsystemCA}}, "test", now))
	}))
	for _, name := range []string{pool.Identity, pool.Default, "lab"} {
		must[*pool.Pool](t)(a.Pools.Add(ctx, system, "", pool.Spec{Name: name, Online: true}))
	}
	return a
}

// of is a version of the default pool's trust; 0 is the present one.
func (a *authority) of(version int64) *trust.Sets {
	a.t.Helper()
	return must[*trust.Sets](a.t)(a.Trust.Of(a.t.Context(), pool.Default, version, time.Now()))
}

// list is what the default pool trusts.
func (a *authority) list() []client.TrustEntry {
	a.t.Helper()
	return must[[]client.TrustEntry](a.t)(a.Trust.Entries(a.t.Context(), admin, pool.Default))
}

// add adds to the default pool's general set.
func (a *authority) add(texts ...string) []client.TrustEntry {
	a.t.Helper()
	return must[[]client.TrustEntry](a.t)(a.Trust.Add(a.t.Context(), admin, pool.Default, client.AddTrustRequest{PEM: strings.Join(texts, "")}, once.Call{}))
}

// tx runs in a transaction.
func (a *authority) tx(fn func(tx *db.Tx) error) error { return a.DB.Tx(a.t.Context(), fn) }

// events counts the audit's events of an action.
func (a *authority) events(action string) int {
	a.t.Helper()
	return len(must[audit.Page](a.t)(a.Audit.Search(a.t.Context(), audit.Filter{Action: action}, "", 1000)).Events)
}

// exec changes rows behind the services' back, as time would.
func (a *authority) exec(query string, args ...any) {
	a.t.Helper()
	check(a.t, a.tx(func(tx *db.Tx) error {
		n, err := tx.Exec(a.t.Context(), query, args...)
		if err == nil && n == 0 {
			err = errors.New(query + ": no row")
		}
		return err
	}))
}

// forged is a certificate that somebody else made, and its key.
type forged struct {
	*x509.Certificate
	key crypto.Signer
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	return must[crypto.Signer](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
}

// forge makes a CA certificate, as the changes want it; without an issuer it signs itself.
func forge(t testing.TB, name string, by *forged, changes ...func(*x509.Certificate)) *forged {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	f := &forged{key: newKey(t)}
	for _, change := range changes {
		change(template)
	}
	if key, ok := template.PublicKey.(crypto.Signer); ok {
		f.key, template.PublicKey = key, key.Public()
	}
	parent, signer := template, f.key
	if by != nil {
		parent, signer = by.Certificate, by.key
	}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, parent, f.key.Public(), signer))
	f.Certificate = must[*x509.Certificate](t)(x509.ParseCertificate(der))
	return f
}

func (f *forged) pem() string { return encode(f.Raw) }

// list signs a CRL.
func (f *forged) list(t testing.TB, number int64, thisUpdate time.Time, validity time.Duration) []byte {
	t.Helper()
	return must[[]byte](t)(crl.Encode(&crl.Spec{
		Issuer: f.Certificate, ThisUpdate: thisUpdate.UTC().Truncate(time.Second), NextUpdate: thisUpdate.Add(validity).UTC().Truncate(time.Second), Number: big.NewInt(number),
	}, nil, f.key))
}

func encode(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// machine is a machine that has joined.
type machine struct {
	principal access.Principal
	name      string
}

// join adds a host and has a machine join as it.
func (a *authority) join(in client.AddHostRequest) *machine {
	a.t.Helper()
	ctx := a.t.Context()
	if in.Profiles == nil {
		in.Profiles = []string{"server"}
	}
	token := must[*client.HostToken](a.t)(a.Hosts.Add(ctx, operator, in, "")).Token
	der := must[[]byte](a.t)(cert.CreateCSR(&cert.CSRTemplate{}, newKey(a.t)))
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	joined := must[*client.Joined](a.t)(a.Hosts.Join(ctx, client.JoinRequest{Token: token, CSR: csr, Agent: "test"}))
	return &machine{must[access.Principal](a.t)(a.Access.PrincipalNamed(ctx, joined.Host)), joined.Host}
}

// issue gets a certificate for the machine's name.
func (a *authority) issue(m *machine) *ca.Certificate {
	a.t.Helper()
	der := must[[]byte](a.t)(cert.CreateCSR(&cert.CSRTemplate{SAN: []cert.GeneralName{cert.DNSName(m.name)}}, newKey(a.t)))
	return must[*ca.Certificate](a.t)(a.CA.Issue(a.t.Context(), m.principal, ca.Order{Profile: "server", CSR: der}))
}

// desired is what the machine shall hold.
func (a *authority) desired(m *machine) *client.Desired {
	a.t.Helper()
	return must[*client.Desired](a.t)(a.Hosts.Desired(a.t.Context(), m.principal, "", 0))
}

// report says what a machine saw of a placement.
func (a *authority) report(m *machine, seen client.Observation) {
	a.t.Helper()
	if seen.State == "" {
		seen.State = client.PlacementServed
	}
	check(a.t, a.Hosts.Report(a.t.Context(), m.principal, client.Report{Agent: "test", Observations: []client.Observation{seen}}))
}

// issuerKey makes a key of some algorithm.
func issuerKey(t testing.TB, algorithm keyfile.Algorithm, bits int) crypto.Signer {
	t.Helper()
	return must[crypto.Signer](t)(keyfile.Generate(algorithm, bits))
}

func parse(t testing.TB, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("%q is no PEM", text)
	}
	return must[*x509.Certificate](t)(x509.ParseCertificate(block.Bytes))
}
