package revocation

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/profile"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/settings"
)

// office is an authority of one node with one issuer.
type office struct {
	t        testing.TB
	db       *db.DB
	ca       *ca.CA
	keys     *keys.Store
	audit    *audit.Log
	settings *settings.Store
	service  *Service
	issuer   *ca.Issuer
	by       access.Principal
	name     string        // of a node that joined
	key      *keys.NodeKey // and its own
}

const publicURL = "http://pki.example"

// newOffice sets up a node and an issuer that signs the CRLs of mode.
func newOffice(t testing.TB, d *db.DB, mode ca.CRLMode, change func(*settings.Settings)) *office {
	t.Helper()
	o := node(t, d, "node-a", t.TempDir(), nil)
	first := settings.Defaults()
	first.Authority, first.Organization, first.PublicURL = "0197c6a8-6c58-7a4e-8f57-c6dbd7f1d9a5", "Fleet", publicURL
	first.CRL.Gather = 0
	if change != nil {
		change(&first)
	}
	must(t, d.Tx(t.Context(), func(tx *db.Tx) error { return o.settings.Create(t.Context(), tx, first, "test", time.Now()) }))
	recovery, err := keys.GenerateRecovery()
	must(t, err)
	must(t, d.Tx(t.Context(), func(tx *db.Tx) error {
		return o.keys.AddRecipient(t.Context(), tx, keys.Recipient{ID: "recovery", Kind: keys.KindRecovery, Name: "recovery", PublicKey: recovery.Public()}, "test", time.Now())
	}))
	o.issuer, _, err = o.ca.CreateIssuer(t.Context(), o.by, ca.IssuerSpec{Name: "one", Default: true, Subject: "CN=Issuer one,O=Fleet", CRL: mode})
	must(t, err)
	return o
}

// node is one more node on a database, which an older one sponsors.
func node(t testing.TB, d *db.DB, name, dir string, sponsor *office) *office {
	t.Helper()
	o := &office{t: t, db: d, by: access.Principal{
		ID: "admin", Name: "admin", Kind: access.KindOperator, Roles: []access.Role{access.Admin, access.Officer}}}
	var err error
	o.audit, err = audit.New(d, name)
	must(t, err)
	key, err := keys.CreateNodeKey(filepath.Join(dir, name+".key"))
	must(t, err)
	o.keys = keys.New(d, o.audit, name, key)
	if sponsor == nil {
		sponsor = o
	}
	must(t, sponsor.db.Tx(t.Context(), func(tx *db.Tx) error {
		return sponsor.keys.AddRecipient(t.Context(), tx, keys.Recipient{ID: name, Kind: keys.KindNode, Name: name,
			Subsystems: []keys.Subsystem{keys.SubsystemCA, keys.SubsystemOCSP}, PublicKey: key.Public()}, "test", time.Now())
	}))
	o.settings = settings.New(d, o.audit)
	o.ca = ca.New(ca.Options{DB: d, Keys: o.keys, Profiles: profile.New(d, o.audit), Settings: o.settings, Audit: o.audit})
	o.service = New(Options{DB: d, CA: o.ca, Keys: o.keys, Settings: o.settings, Audit: o.audit, Logger: slog.New(slog.DiscardHandler)})
	return o
}

// run lets the node work until the test ends, or stop is called.
func (o *office) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	for _, loop := range []func(context.Context) error{o.service.Run, o.service.Follow} {
		group.Go(func() {
			if err := loop(ctx); ctx.Err() == nil {
				o.t.Errorf("a loop ended: %v", err)
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); group.Wait() })
	o.t.Cleanup(stop)
	return stop
}

var leafKey = sync.OnceValue(func() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
})

// issue makes a certificate under the office's issuer.
func (o *office) issue(name string) *x509.Certificate {
	o.t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(leafKey().Public())
	must(o.t, err)
	issued, err := o.ca.Issue(o.t.Context(), o.by, ca.Order{Issuer: o.issuer.ID, Profile: "server", PublicKey: spki, Subject: "CN=" + name, Names: []string{"dns:" + name}})
	must(o.t, err)
	certificate, err := issued.Parsed()
	must(o.t, err)
	return certificate
}

func (o *office) ref(c *x509.Certificate) ca.Ref {
	return ca.Ref{Issuer: o.issuer.ID, Serial: c.SerialNumber}
}

func (o *office) revoke(c *x509.Certificate, reason crl.Reason) {
	o.t.Helper()
	_, err := o.ca.Revoke(o.t.Context(), o.by, o.ref(c), ca.RevokeOrder{Reason: reason})
	must(o.t, err)
}

// list waits until the current list of a scope satisfies want, and returns it checked against the issuer.
func (o *office) list(scope Scope, want func(*crl.List) bool) *crl.List {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), 2*time.Minute)
	defer cancel()
	for {
		if l, err := o.service.Current(ctx, o.issuer.Name, scope); err == nil {
			if parsed := o.parse(l); want(parsed) {
				return parsed
			}
		}
		select {
		case <-ctx.Done():
			o.t.Fatalf("no list of scope %s came to be as it should", scope)
		case <-time.After(5 * time.Millisecond): // the list is made by another goroutine, or another node
		}
	}
}

func (o *office) parse(l *List) *crl.List {
	o.t.Helper()
	der := o.octets(l)
	parsed, err := crl.Parse(der)
	must(o.t, err)
	must(o.t, parsed.CheckIssuer(o.issuer.Certificate))
	must(o.t, parsed.CheckTimes(time.Now()))
	if int64(len(der)) != l.Size || int64(parsed.Count) != l.Entries || parsed.Number.Cmp(l.Number) != 0 {
		o.t.Fatalf("list %+v has %d octets, %d entries, number %v", l, len(der), parsed.Count, parsed.Number)
	}
	return parsed
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
