package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"chancery/internal/authority/profile"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
)

// authority is a CA with its stores, a root and an issuer under it.
type authority struct {
	*CA
	t      testing.TB
	db     *db.DB
	audit  *audit.Log
	root   *Issuer
	issuer *Issuer
}

const publicURL = "http://pki.example.com"

func operator(name string, roles ...access.Role) access.Principal {
	return access.Principal{ID: "id-" + name, Name: name, Kind: access.KindOperator, Roles: roles}
}

func host(name string) access.Principal {
	return access.Principal{ID: "id-" + name, Name: name, Kind: access.KindHost, Roles: []access.Role{access.Host}}
}

func admin() access.Principal   { return operator("alice", access.Admin) }
func officer() access.Principal { return operator("olga", access.Officer) }

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

// refusedAs fails unless err is a refusal of that kind.
func refusedAs(t testing.TB, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Fatalf("got %v, want a refusal that is %s", err, kind)
	}
}

// newStores makes a CA on an empty database, with a node, a recovery recipient and settings.
func newStores(t testing.TB, d *db.DB) *authority {
	t.Helper()
	ctx, now := context.Background(), time.Now()
	log := must[*audit.Log](t)(audit.New(d, "n1"))
	node := must[*keys.NodeKey](t)(keys.CreateNodeKey(filepath.Join(t.TempDir(), "node.key")))
	recovery := must[*keys.Recovery](t)(keys.GenerateRecovery())
	store, set := keys.New(d, log, "n1", node), settings.New(d, log)
	first := settings.Defaults()
	first.Authority, first.Organization, first.Address, first.PublicURL = "test", "Test", "https://ca.example.com:8443", publicURL
	check(t, d.Tx(ctx, func(tx *db.Tx) error {
		if err := set.Create(ctx, tx, first, "test", now); err != nil {
			return err
		}
		err := store.AddRecipient(ctx, tx, keys.Recipient{ID: "n1", Kind: keys.KindNode, Name: "n1",
			Subsystems: []keys.Subsystem{keys.SubsystemCA}, PublicKey: node.Public()}, "test", now)
		if err != nil {
			return err
		}
		return store.AddRecipient(ctx, tx, keys.Recipient{ID: "recovery", Kind: keys.KindRecovery, PublicKey: recovery.Public()}, "test", now)
	}))
	return &authority{t: t, db: d, audit: log, CA: New(Options{
		DB: d, Keys: store, Profiles: profile.New(d, log), Settings: set, Audit: log,
	})}
}

// known stores principals, as those of an authority are.
func (a *authority) known(all ...access.Principal) {
	a.t.Helper()
	store, ctx := access.New(a.db, a.audit), context.Background()
	check(a.t, a.db.Tx(ctx, func(tx *db.Tx) error {
		for _, p := range all {
			p.Created = time.Now()
			if err := store.InsertPrincipal(ctx, tx, p, "test"); err != nil {
				return err
			}
		}
		return nil
	}))
}

// newAuthority adds a root and an issuer, both online.
func newAuthority(t testing.TB, d *db.DB) *authority {
	t.Helper()
	a := newStores(t, d)
	ctx := context.Background()
	var err error
	a.root, _, err = a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "root", Subject: "CN=Test root,O=Test"})
	check(t, err)
	a.issuer, _, err = a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "issuing", Subject: "CN=Test issuing,O=Test", Parent: "root", Default: true})
	check(t, err)
	return a
}

// settingsWith changes the settings.
func (a *authority) settingsWith(change func(*settings.Settings)) {
	a.t.Helper()
	s := *must[*settings.Settings](a.t)(a.settings.Get(context.Background()))
	change(&s)
	must[*settings.Settings](a.t)(a.settings.Set(context.Background(), "test", s, once.Call{}))
}

func mustKey() crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	return mustKey()
}

func spkiOf(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	return must[[]byte](t)(cert.MarshalPublicKey(key.Public()))
}

// csr makes a request for names as cert.ParseGeneralName reads them.
func csr(t testing.TB, key crypto.Signer, names ...string) []byte {
	t.Helper()
	var template cert.CSRTemplate
	for _, name := range names {
		template.SAN = append(template.SAN, must[cert.GeneralName](t)(cert.ParseGeneralName(name)))
	}
	return must[[]byte](t)(cert.CreateCSR(&template, key))
}

// server issues a certificate of profile server to the admin.
func (a *authority) server(names ...string) *Certificate {
	a.t.Helper()
	return must[*Certificate](a.t)(a.Issue(context.Background(), admin(), Order{Profile: "server", CSR: csr(a.t, newKey(a.t), names...)}))
}

func (a *authority) count(query string, args ...any) int64 {
	a.t.Helper()
	var n int64
	check(a.t, a.db.ReadSnapshot(context.Background(), func(tx *db.Tx) error {
		return tx.QueryRow(context.Background(), query, args...).Scan(&n)
	}))
	return n
}

// path writes the certificate and its issuers to files, for the programs that verify them.
func (a *authority) path(c *Certificate) (leaf, chain, roots string) {
	a.t.Helper()
	dir := a.t.TempDir()
	write := func(name string, ders ...[]byte) string {
		var text []byte
		for _, der := range ders {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		file := filepath.Join(dir, name)
		check(a.t, os.WriteFile(file, text, 0o600))
		return file
	}
	above := append([]*x509.Certificate{c.Issuer.Certificate}, c.Issuer.Chain...)
	root := above[len(above)-1]
	return write("leaf.pem", c.DER), write("chain.pem", above[0].Raw), write("root.pem", root.Raw)
}

func run(t testing.TB, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return string(out)
}
