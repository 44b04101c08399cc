package trust_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/fleet/pool"
	"chancery/internal/fleet/trust"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// TestCutAtEveryStep cuts adding, bringing in a CRL, dropping and pruning at every statement and at the commit, with its writes
// kept or not: what is done is done whole, with its audit event, and the call that is repeated with its key ends where an
// undisturbed one does.
func TestCutAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		engine  db.Dialect
		commits bool // they are cut, and not the statements
	}{{db.SQLite, false}, {db.Postgres, false}, {db.SQLite, true}, {db.Postgres, true}} {
		t.Run(fmt.Sprintf("%s commits %t", c.engine, c.commits), func(t *testing.T) {
			faults := &pkitest.Faults{}
			a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, c.engine), Wrap: faults.Wrap}))
			ctx := t.Context()
			a.of(0)
			root := forge(t, "Foreign", nil)
			fingerprint := trust.Fingerprint(root.Certificate)
			list := root.list(t, 1, time.Now().Add(-time.Hour), 24*time.Hour)
			call := func(key string) once.Call { return once.Call{Caller: "api:alice", Key: key, Request: []byte(key)} }
			acts := []struct {
				action string
				do     func() error
			}{
				{"trust.add", func() error {
					_, err := a.Trust.Add(ctx, admin, pool.Default, client.AddTrustRequest{PEM: root.pem()}, call("add"))
					return err
				}},
				{"trust.crl", func() error { return a.Trust.AddCRL(ctx, admin, pool.Default, fingerprint, list, call("crl")) }},
				{"trust.drop", func() error {
					return a.Trust.Drop(ctx, admin, pool.Default, fingerprint, client.DropTrustRequest{}, call("drop"))
				}},
				{"trust.prune", func() error { return a.Trust.Prune(ctx, time.Now().Add(2000*time.Hour)) }},
			}
			cuts := 0
			for _, act := range acts {
				if act.action == "trust.prune" {
					must[[]client.TrustEntry](t)(a.Trust.Add(ctx, admin, pool.Default, client.AddTrustRequest{PEM: forge(t, "Short", nil).pem()}, once.Call{}))
				}
				version, events := a.of(0).Version, a.events(act.action)
				untouched := func(when string, err error) {
					t.Helper()
					if a.of(0).Version != version || a.events(act.action) != events {
						t.Fatalf("%s, %s with %v: version %d of %d, %d events", act.action, when, err, a.of(0).Version, version, a.events(act.action))
					}
				}
				if c.commits {
					faults.FailCommit(1, pkitest.NotPersisted)
					err := act.do()
					if faults.Clear(); err == nil {
						t.Errorf("%s: a commit that failed was passed over", act.action)
					}
					untouched("not committed", err)
					faults.FailCommit(1, pkitest.PersistedAnyway)
					if err := act.do(); err == nil {
						t.Errorf("%s: the outcome was unknown, and it was said to be done", act.action)
					}
					faults.Clear()
					check(t, act.do())
					cuts += 2
				}
				for n := 1; !c.commits; n++ {
					before := faults.Statements()
					faults.FailStatement(n, errors.New("injected"))
					err := act.do()
					met := faults.Statements()-before >= n
					faults.Clear()
					if met {
						cuts++
					}
					if err == nil {
						break // it went through, undisturbed or by trying again
					}
					if !met {
						t.Fatal(err)
					}
					untouched(fmt.Sprintf("cut at statement %d", n), err)
				}
				if n := a.events(act.action); n != events+1 {
					t.Errorf("%s was done %d times", act.action, n-events)
				}
			}
			if cuts < 8 {
				t.Errorf("%d cuts only", cuts)
			}
			if sets := a.of(0); len(sets.General.Anchors) != 1 {
				t.Errorf("%d anchors are left", len(sets.General.Anchors))
			}
			a.verified()
		})
	}
}
