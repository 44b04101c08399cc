package ca

import (
	"context"
	"crypto"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// faultyAuthority is an authority whose database fails where the test says so.
func faultyAuthority(t *testing.T, url string) (*authority, *pkitest.Faults) {
	t.Helper()
	faults := new(pkitest.Faults)
	return newAuthority(t, pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})), faults
}

// TestEveryCommit lets each commit of each act fail, in both ways: the writes lost, and the writes kept. Nothing that was
// acknowledged is lost, nothing that was not acknowledged leaves, and the call repeated with its key gets one certificate.
func TestEveryCommit(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		a, faults := faultyAuthority(t, url)
		ctx := context.Background()
		key := 0
		cases := 0
		for _, act := range []struct {
			name string
			run  func(key string, c *Certificate) (*Certificate, error)
			done func(c *Certificate) bool
		}{
			{"issue", func(key string, _ *Certificate) (*Certificate, error) {
				return a.Issue(ctx, admin(), Order{IdempotencyKey: key, Profile: "server", PublicKey: fixedKey, Names: []string{"dns:" + key + ".example.com"}})
			}, func(c *Certificate) bool { return c.State == Valid }},
			{"renew", func(key string, c *Certificate) (*Certificate, error) {
				return a.Renew(ctx, admin(), Ref{Serial: c.Serial}, RenewOrder{IdempotencyKey: key})
			}, func(c *Certificate) bool { return c.Replaces != 0 }},
			{"revoke", func(key string, c *Certificate) (*Certificate, error) {
				return a.Revoke(ctx, admin(), Ref{Serial: c.Serial}, RevokeOrder{IdempotencyKey: key, Reason: 4})
			}, func(c *Certificate) bool { return c.State == Revoked }},
			{"hold", func(key string, c *Certificate) (*Certificate, error) {
				return a.Hold(ctx, admin(), Ref{Serial: c.Serial}, key)
			}, func(c *Certificate) bool { return c.State == Held }},
		} {
			for _, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway} {
				for _, failures := range []int{1, 2, 5} { // 4 commits are tried
					cases++
					key++
					name := fmt.Sprintf("%s, %s, %d times", act.name, outcome, failures)
					before := a.server(fmt.Sprintf("dns:old%d.example.com", key))
					rows := a.count(`SELECT COUNT(*) FROM certificate`)
					for n := range failures {
						faults.FailCommit(n+1, outcome)
					}
					id := fmt.Sprintf("key%d", key)
					first, err := act.run(id, before)
					if failures < 4 && err != nil {
						t.Errorf("%s: %v", name, err)
					}
					if err == nil && !act.done(a.again(first)) {
						t.Errorf("%s: was acknowledged and is lost", name)
					}
					if err != nil && !errors.Is(err, db.ErrUnknownOutcome) && !fault.Is(err, fault.Unavailable) {
						t.Errorf("%s: failed with %v", name, err)
					}
					faultsOver(t, a)
					second, err := act.run(id, before)
					if err != nil || !act.done(a.again(second)) {
						t.Errorf("%s: repeated: %+v, %v", name, second, err)
						continue
					}
					if first != nil && first.ID != second.ID {
						t.Errorf("%s: the call got %d, repeated it got %d", name, first.ID, second.ID)
					}
					wanted := rows
					if second.ID != before.ID {
						wanted++
					}
					if n := a.count(`SELECT COUNT(*) FROM certificate`); n != wanted {
						t.Errorf("%s: %d certificates, want %d", name, n, wanted)
					}
				}
			}
		}
		if cases < 24 {
			t.Fatalf("%d cases ran", cases)
		}
		findings, _, err := a.audit.Verify(ctx, audit.Evidence{})
		if err != nil || len(findings) > 0 {
			t.Errorf("audit: %v, %v", findings, err)
		}
	})
}

// fixedKey is a public key for orders that must be the same each time.
var fixedKey = func() []byte {
	spki, err := cert.MarshalPublicKey(mustKey().Public())
	if err != nil {
		panic(err)
	}
	return spki
}()

// again reads a certificate from the database.
func (a *authority) again(c *Certificate) *Certificate {
	a.t.Helper()
	return must[*Certificate](a.t)(a.ByID(context.Background(), admin(), c.ID))
}

// faultsOver uses up the faults that are left.
func faultsOver(t *testing.T, a *authority) {
	t.Helper()
	for range 20 {
		if err := a.db.Heartbeat(context.Background(), time.Now()); err == nil {
			return
		}
	}
	t.Fatal("the database fails on")
}

// TestDoubtStays: when the database fails on after a commit without an answer, in whatever way, the caller is not told that nothing was
// changed, for it was.
func TestDoubtStays(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		a, faults := faultyAuthority(t, url)
		ctx := context.Background()
		later := []error{driver.ErrBadConn, errors.New("no answer that anybody knows")}
		if strings.HasPrefix(url, "postgres") {
			for _, code := range []string{"42501", "53200", "57014"} { // insufficient_privilege, out_of_memory, query_canceled
				later = append(later, &pgconn.PgError{Severity: "ERROR", Code: code, Message: "later"})
			}
		}
		for i, then := range later {
			order := Order{IdempotencyKey: fmt.Sprint("doubt", i), Profile: "server", PublicKey: fixedKey, Names: []string{"dns:doubt.example.com"}}
			faults.FailCommit(1, pkitest.PersistedAnyway)
			var gone sync.Once
			faults.BeforeCommit(func() {
				gone.Do(func() {
					for n := range 1000 {
						faults.FailStatement(n+1, then)
					}
				})
			})
			_, err := a.Issue(ctx, admin(), order)
			if !errors.Is(err, db.ErrUnknownOutcome) || !fault.Is(err, fault.Unavailable) || strings.Contains(err.Error(), "nothing was changed") {
				t.Errorf("a commit that took effect, and then %v: %v", then, err)
			}
			faults.Clear()
			if n := a.count(`SELECT COUNT(*) FROM certificate WHERE profile = 'server'`); n != int64(i)+1 {
				t.Fatalf("%d certificates, not %d", n, i+1)
			}
			check(t, func() error { _, err := a.Issue(ctx, admin(), order); return err }())
			if n := a.count(`SELECT COUNT(*) FROM certificate WHERE profile = 'server'`); n != int64(i)+1 {
				t.Errorf("%d certificates after the call was repeated, not %d", n, i+1)
			}
		}
	})
}

// TestEveryStatement breaks the connection at each statement of an issuance.
func TestEveryStatement(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		a, faults := faultyAuthority(t, url)
		ctx := context.Background()
		a.server("dns:warm.example.com")
		for n := 1; n <= 12; n++ {
			rows := a.count(`SELECT COUNT(*) FROM certificate`)
			order := Order{IdempotencyKey: fmt.Sprintf("s%d", n), Profile: "server", PublicKey: fixedKey, Names: []string{"dns:s.example.com"}}
			faults.FailStatement(n, errors.New("injected"))
			first, err := a.Issue(ctx, admin(), order)
			for range 12 {
				a.db.Heartbeat(ctx, time.Now()) // uses up a fault that was not met
			}
			if err != nil && a.count(`SELECT COUNT(*) FROM certificate`) != rows {
				t.Errorf("statement %d: refused with %v, and stored", n, err)
			}
			second := must[*Certificate](t)(a.Issue(ctx, admin(), order))
			if first != nil && first.ID != second.ID {
				t.Errorf("statement %d: two certificates for one key", n)
			}
			if n := a.count(`SELECT COUNT(*) FROM certificate`); n != rows+1 {
				t.Errorf("%d certificates, want %d", n, rows+1)
			}
		}
	})
}

// faultySigner is a key that fails, or signs something else.
type faultySigner struct {
	crypto.Signer
	wrong bool
}

func (f faultySigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if f.wrong {
		digest[0] ^= 1
		return f.Signer.Sign(random, digest, opts)
	}
	return nil, errors.New("the key does not answer")
}

// TestFaultySigner signs an issuer with a key that fails: nothing is stored. A key in hardware that signs wrongly is found
// out before its certificate leaves.
func TestFaultySigner(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newStores(t, d)
		ctx := context.Background()
		root, key, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "root", Subject: "CN=Root", Offline: true})
		check(t, err)
		if root.KeyID != "" || key == nil {
			t.Fatalf("an offline root: %+v, key %v", root, key)
		}
		spec := IssuerSpec{IdempotencyKey: "k", Name: "other", Subject: "CN=Other", Offline: true}
		_, _, err = a.CreateIssuer(ctx, admin(), spec)
		check(t, err)
		_, _, err = a.CreateIssuer(ctx, admin(), spec) // the key left with the first answer
		refusedAs(t, err, fault.Conflict)
		for _, f := range []faultySigner{{key, false}, {key, true}} {
			_, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "sub", Subject: "CN=Sub", Parent: "root", ParentKey: f})
			if err == nil {
				t.Errorf("a faulty key (%v) signed", f.wrong)
			}
		}
		if n := a.count(`SELECT COUNT(*) FROM issuer`); n != 2 {
			t.Errorf("%d issuers", n)
		}
		if n := a.count(`SELECT COUNT(*) FROM sealed_key`); n != 0 {
			t.Errorf("%d keys", n)
		}
		_, err = a.Issue(ctx, admin(), Order{Issuer: "root", Profile: "server", CSR: csr(t, newKey(t), "dns:a.example.com")})
		refusedAs(t, err, fault.Conflict)
		sub, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "sub", Subject: "CN=Sub", Parent: "root", ParentKey: key, Default: true})
		check(t, err)
		// A key that another process deleted: the issuance fails, and leaves nothing.
		check(t, d.Tx(ctx, func(tx *db.Tx) error { return a.keys.Delete(ctx, tx, sub.KeyID, "test", time.Now()) }))
		a.keys.Forget()
		if _, err := a.Issue(ctx, admin(), Order{Profile: "server", CSR: csr(t, newKey(t), "dns:a.example.com")}); err == nil {
			t.Error("issued without a key")
		}
		if n := a.count(`SELECT COUNT(*) FROM certificate WHERE requester = $1 AND profile = 'server'`, admin().ID); n != 0 {
			t.Errorf("%d certificates", n)
		}
	})
}

// TestApprovalCommit lets the commit of an approval fail both ways.
func TestApprovalCommit(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		a, faults := faultyAuthority(t, url)
		ctx := context.Background()
		saveProfile(t, a, guardedYAML)
		a.known(operator("bob", access.Operator))
		for _, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway} {
			r, _, err := a.Submit(ctx, operator("bob", access.Operator), Order{Profile: "guarded", CSR: csr(t, newKey(t), "dns:a.example.com")})
			check(t, err)
			faults.FailCommit(1, outcome)
			done, c, err := a.Approve(ctx, officer(), r.ID)
			if err != nil || done.State != RequestIssued || c == nil || done.Certificate != c.ID {
				t.Fatalf("%s: %+v, %v, %v", outcome, done, c, err)
			}
			again, c2, err := a.Approve(ctx, officer(), r.ID)
			if err != nil || again.State != RequestIssued || c2.ID != c.ID {
				t.Errorf("%s: repeated: %+v, %v", outcome, again, err)
			}
		}
		if n := a.count(`SELECT COUNT(*) FROM certificate WHERE profile = 'guarded'`); n != 2 {
			t.Errorf("%d certificates", n)
		}
	})
}
