package clone_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/store/schema"
	"chancery/internal/store/settings"
	"chancery/internal/upkeep/setup"
)

// authority is one whose nodes are assembled here, each with a key, a database connection and a file of the newest list of its own.
type authority struct {
	*setup.Services // the first node's
	t               *testing.T
	url             string
	anchors         []crypto.PublicKey
	key             *keys.NodeKey
	admin           access.Principal
	recovery        *keys.Recovery
}

// machine is one that joins, with the keys that it made.
type machine struct {
	name  string
	key   *keys.NodeKey
	tls   crypto.Signer
	floor string
	in    client.CloneJoin
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refused(t *testing.T, err error, kind fault.Kind, says ...string) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Fatalf("%v is not %s", err, kind)
	}
	for _, text := range says {
		if !strings.Contains(err.Error(), text) {
			t.Fatalf("%q is not in %q", text, err)
		}
	}
}

// newAuthority makes one on PostgreSQL whose operator vouches for its database.
func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := newLocal(t, pkitest.URL(t, db.Postgres))
	a.set("durability", "provider")
	return a
}

func newLocal(t *testing.T, url string) *authority {
	t.Helper()
	a := &authority{t: t, url: url}
	var err error
	a.key, err = keys.CreateNodeKey(filepath.Join(t.TempDir(), "node.key"))
	must(t, err)
	a.recovery, err = keys.GenerateRecovery()
	must(t, err)
	d := pkitest.Open(t, db.Options{URL: url})
	must(t, schema.Migrate(t.Context(), d))
	must(t, d.LearnClock(t.Context()))
	a.Services, err = setup.Assemble(d, "n1", a.key, slog.New(slog.DiscardHandler))
	must(t, err)
	first, now, ctx := settings.Defaults(), time.Now(), t.Context()
	first.Authority, first.Organization, first.Address = db.NewID(), "Test", "https://pki.test:8443"
	must(t, d.Tx(ctx, func(tx *db.Tx) error {
		return errors.Join(a.Settings.Create(ctx, tx, first, "test", now),
			a.Keys.AddRecipient(ctx, tx, keys.Recipient{ID: "n1", Kind: keys.KindNode, Name: "n1", PublicKey: a.key.Public(),
				Created: now, Subsystems: []keys.Subsystem{keys.SubsystemCA, keys.SubsystemOCSP}}, "test", now),
			a.Keys.AddRecipient(ctx, tx, keys.Recipient{ID: "recovery", Kind: keys.KindRecovery, Name: "recovery",
				PublicKey: a.recovery.Public(), Created: now}, "test", now))
	}))
	auditKey, err := keyfile.Generate(keyfile.Ed25519, 0)
	must(t, err)
	sealed, err := a.Keys.Seal(ctx, auditKey, keys.Audit, "authority")
	must(t, err)
	must(t, d.Tx(ctx, func(tx *db.Tx) error { return a.Keys.Insert(ctx, tx, sealed, "test", now) }))
	a.anchors = []crypto.PublicKey{auditKey.Public()}
	must(t, a.Keys.Anchor(a.anchors, filepath.Join(t.TempDir(), "recipients")))
	for _, name := range []string{pool.Identity, pool.Default} {
		_, err := a.Pools.Add(ctx, access.System("n1"), "", pool.Spec{Name: name, Online: true})
		must(t, err)
	}
	a.admin, err = a.Access.CreatePrincipal(ctx, access.System("n1"), access.Principal{Name: "ada", Kind: access.KindOperator, Roles: []access.Role{access.Admin}}, once.Call{})
	must(t, err)
	a.start(a.Services, "https://one.test:8443")
	return a
}

// start does what a node does before it serves.
func (a *authority) start(s *setup.Services, address string) {
	a.t.Helper()
	now := time.Now()
	_, err := s.Keys.FirstList(a.t.Context(), "test", now)
	must(a.t, err)
	must(a.t, s.Clones.Register(a.t.Context(), address, now))
}

func (a *authority) set(path, value string) error {
	a.t.Helper()
	now, err := a.Settings.Get(a.t.Context())
	must(a.t, err)
	next, err := now.WithAll([]settings.Field{{Path: path, Value: value}})
	must(a.t, err)
	_, err = a.Settings.Set(a.t.Context(), "test", *next, once.Call{})
	return err
}

// invite makes a token and reads it.
func (a *authority) invite(subsystems ...string) *client.CloneToken {
	a.t.Helper()
	made, err := a.Clones.Invite(a.t.Context(), a.admin, client.CloneInvitation{Subsystems: subsystems}, "")
	must(a.t, err)
	token, err := client.ParseCloneToken(made.Token)
	must(a.t, err)
	return token
}

// machine makes the keys of one that will join with a token.
func (a *authority) machine(name string, token *client.CloneToken) *machine {
	a.t.Helper()
	m := &machine{name: name, floor: filepath.Join(a.t.TempDir(), "recipients")}
	var err error
	m.key, err = keys.CreateNodeKey(filepath.Join(a.t.TempDir(), "node.key"))
	must(a.t, err)
	m.tls, err = keyfile.Generate(keyfile.ECDSAP256, 0)
	must(a.t, err)
	m.in = client.CloneJoin{
		Secret: token.Secret, Name: name, Address: "https://" + name + ".test:8443", PublicKey: m.key.Public(), CSR: request(a.t, m.tls),
		Release: "test", Schema: schema.Newest(), Time: time.Now(),
	}
	return m
}

func request(t *testing.T, key crypto.Signer) string {
	t.Helper()
	der, err := cert.CreateCSR(&cert.CSRTemplate{}, key)
	must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// join has a machine join and be approved, and returns its services.
func (a *authority) join(name string, subsystems ...string) (*machine, *setup.Services) {
	a.t.Helper()
	m := a.machine(name, a.invite(subsystems...))
	waits, err := a.Clones.Join(a.t.Context(), m.in)
	must(a.t, err)
	if waits.State != client.CloneWaiting || len(waits.Certificate) > 0 {
		a.t.Fatalf("it joined as %+v", waits)
	}
	_, err = a.Clones.Approve(a.t.Context(), a.admin, name, client.CloneApproval{Fingerprint: waits.Fingerprint})
	must(a.t, err)
	return m, a.open(m)
}

// open opens what a machine has of the authority, as its program would.
func (a *authority) open(m *machine) *setup.Services {
	a.t.Helper()
	return a.openAt(m, db.Options{URL: a.url})
}

func (a *authority) openAt(m *machine, o db.Options) *setup.Services {
	a.t.Helper()
	d := pkitest.Open(a.t, o)
	must(a.t, d.LearnClock(a.t.Context()))
	s, err := setup.Assemble(d, m.name, m.key, slog.New(slog.DiscardHandler))
	must(a.t, err)
	must(a.t, s.Keys.Anchor(a.anchors, m.floor))
	return s
}

// count counts rows.
func (a *authority) count(query string, args ...any) (n int64) {
	a.t.Helper()
	must(a.t, a.DB.ReadSnapshot(a.t.Context(), func(tx *db.Tx) error { return tx.QueryRow(a.t.Context(), query, args...).Scan(&n) }))
	return n
}

// exec writes to the database as whoever can does.
func (a *authority) exec(query string, args ...any) {
	a.t.Helper()
	must(a.t, a.DB.Tx(a.t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(a.t.Context(), query, args...)
		return err
	}))
}

func leaf(t *testing.T, path []string) *x509.Certificate {
	t.Helper()
	if len(path) == 0 {
		t.Fatal("there is no certificate")
	}
	block, _ := pem.Decode([]byte(path[0]))
	c, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return c
}

// responderKey seals a key of an OCSP responder and returns its ID.
func (a *authority) responderKey() string {
	a.t.Helper()
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	must(a.t, err)
	sealed, err := a.Keys.Seal(a.t.Context(), key, keys.OCSP, "default")
	must(a.t, err)
	must(a.t, a.DB.Tx(a.t.Context(), func(tx *db.Tx) error { return a.Keys.Insert(a.t.Context(), tx, sealed, "test", time.Now()) }))
	return sealed.ID
}

// weak is a request for a key that is too short.
func weak(t *testing.T) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}
