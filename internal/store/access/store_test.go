package access_test

import (
	"context"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

func newStore(t testing.TB, d *db.DB, node string) *access.Store {
	t.Helper()
	log, err := audit.New(d, node)
	if err != nil {
		t.Fatal(err)
	}
	return access.New(d, log)
}

// bootstrap makes the first administrator.
func bootstrap(t testing.TB, d *db.DB, s *access.Store) access.Principal {
	t.Helper()
	var admin access.Principal
	err := d.Tx(t.Context(), func(tx *db.Tx) (err error) {
		admin, err = s.Bootstrap(t.Context(), tx, "root", "system:init", time.Now())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return admin
}

func create(t testing.TB, s *access.Store, by access.Principal, name string, kind access.Kind, roles ...access.Role) access.Principal {
	t.Helper()
	p, err := s.CreatePrincipal(t.Context(), by, access.Principal{Name: name, Kind: kind, Roles: roles}, once.Call{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func token(t testing.TB, s *access.Store, by, owner access.Principal) (access.Token, string) {
	t.Helper()
	tok, text, err := s.CreateToken(t.Context(), by, access.TokenOrder{Principal: owner.ID, Label: "test", Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return tok, text
}

func TestBootstrapOnce(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s := newStore(t, d, "n1")
		admin := bootstrap(t, d, s)
		if err := admin.May(access.ManagePrincipals); err != nil {
			t.Fatal(err)
		}
		err := d.Tx(t.Context(), func(tx *db.Tx) error {
			_, err := s.Bootstrap(t.Context(), tx, "second", "system:init", time.Now())
			return err
		})
		if !fault.Is(err, fault.Conflict) {
			t.Fatalf("a second first administrator: %v", err)
		}
	})
}

func TestPrincipals(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		s := newStore(t, d, "n1")
		admin := bootstrap(t, d, s)
		alice := create(t, s, admin, "alice", access.KindOperator, access.Officer, access.Auditor, access.Officer)
		if !slices.Equal(alice.Roles, []access.Role{access.Auditor, access.Officer}) || alice.ID == "" {
			t.Fatalf("got %+v", alice)
		}
		if same, err := s.PrincipalNamed(ctx, "alice"); err != nil || same.ID != alice.ID {
			t.Fatalf("got %+v, %v", same, err)
		}
		for i := range 5 {
			create(t, s, admin, fmt.Sprint("host-", i), access.KindHost, access.Host)
		}
		for name, c := range map[string]struct {
			by   access.Principal
			p    access.Principal
			kind fault.Kind
		}{
			"taken":             {admin, access.Principal{Name: "alice", Kind: access.KindOperator}, fault.Conflict},
			"no name":           {admin, access.Principal{Kind: access.KindOperator}, fault.Invalid},
			"control":           {admin, access.Principal{Name: "a\nb", Kind: access.KindOperator}, fault.Invalid},
			"override":          {admin, access.Principal{Name: "a\u202eb", Kind: access.KindOperator}, fault.Invalid},
			"spaces":            {admin, access.Principal{Name: " a", Kind: access.KindOperator}, fault.Invalid},
			"kind":              {admin, access.Principal{Name: "a", Kind: "robot"}, fault.Invalid},
			"role":              {admin, access.Principal{Name: "a", Kind: access.KindOperator, Roles: []access.Role{"root"}}, fault.Invalid},
			"role with comma":   {admin, access.Principal{Name: "a", Kind: access.KindOperator, Roles: []access.Role{"auditor,admin"}}, fault.Invalid},
			"host as admin":     {admin, access.Principal{Name: "a", Kind: access.KindHost, Roles: []access.Role{access.Admin}}, fault.Invalid},
			"operator as host":  {admin, access.Principal{Name: "a", Kind: access.KindOperator, Roles: []access.Role{access.Host}}, fault.Invalid},
			"not administrator": {alice, access.Principal{Name: "a", Kind: access.KindOperator}, fault.Denied},
			"anonymous":         {access.Principal{}, access.Principal{Name: "a", Kind: access.KindOperator}, fault.Unauthenticated},
		} {
			if _, err := s.CreatePrincipal(ctx, c.by, c.p, once.Call{}); !fault.Is(err, c.kind) {
				t.Errorf("%s: %v", name, err)
			}
		}
		var names []string
		for after := ""; ; {
			page, next, err := s.Principals(ctx, alice, "", after, 3)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range page {
				names = append(names, p.Name)
			}
			if after = next; next == "" {
				break
			}
		}
		// Ids that were made within one millisecond have no order.
		if got := strings.Join(slices.Sorted(slices.Values(names)), " "); got != "alice host-0 host-1 host-2 host-3 host-4 root" {
			t.Fatalf("listed %s", got)
		}
		if hosts, _, err := s.Principals(ctx, admin, access.KindHost, "", 100); err != nil || len(hosts) != 5 {
			t.Fatalf("listed %+v, %v", hosts, err)
		}
		if _, _, err := s.Principals(ctx, with(access.Operator), "", "", 100); !fault.Is(err, fault.Denied) {
			t.Fatalf("listed by an operator: %v", err)
		}
		if _, _, err := s.Principals(ctx, admin, "", "", 0); !fault.Is(err, fault.Invalid) {
			t.Fatalf("a page of none: %v", err)
		}
	})
}

func TestTheLastAdministratorStays(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		s := newStore(t, d, "n1")
		admin := bootstrap(t, d, s)
		yes, no := true, false
		for name, err := range map[string]error{
			"disabled": second(s.UpdatePrincipal(ctx, admin, admin.ID, access.Change{Disabled: &yes}, once.Call{})),
			"demoted":  second(s.UpdatePrincipal(ctx, admin, admin.ID, access.Change{Roles: []access.Role{access.Auditor}}, once.Call{})),
			"deleted":  s.DeletePrincipal(ctx, admin, admin.ID, once.Call{}),
		} {
			if !fault.Is(err, fault.Conflict) {
				t.Errorf("%s: %v", name, err)
			}
		}
		other := create(t, s, admin, "other", access.KindOperator, access.Admin)
		if _, err := s.UpdatePrincipal(ctx, admin, other.ID, access.Change{Disabled: &yes}, once.Call{}); err != nil {
			t.Fatal(err)
		}
		if err := s.DeletePrincipal(ctx, admin, admin.ID, once.Call{}); !fault.Is(err, fault.Conflict) {
			t.Fatalf("a disabled administrator counted: %v", err)
		}
		if _, err := s.UpdatePrincipal(ctx, admin, other.ID, access.Change{Disabled: &no}, once.Call{}); err != nil {
			t.Fatal(err)
		}
		// Two administrators remove each other at the same time: one stays.
		var group sync.WaitGroup
		var removed atomic.Int32
		for _, pair := range [][2]access.Principal{{admin, other}, {other, admin}} {
			group.Go(func() {
				if s.DeletePrincipal(context.Background(), pair[0], pair[1].ID, once.Call{}) == nil {
					removed.Add(1)
				}
			})
		}
		group.Wait()
		if removed.Load() != 1 {
			t.Fatalf("%d administrators were removed", removed.Load())
		}
	})
}

func second[T any](_ T, err error) error { return err }

func run(t testing.TB, d *db.DB, query string, args ...any) {
	t.Helper()
	err := d.Tx(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), query, args...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A disabled principal's tokens and certificates die with the call that disables it, although they were remembered; at
// another node within the second that answers are remembered for.
func TestDisablingTakesEffectAtOnce(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		here, there := newStore(t, d, "n1"), newStore(t, d, "n2")
		admin := bootstrap(t, d, here)
		alice := create(t, here, admin, "alice", access.KindOperator, access.Operator)
		_, text := token(t, here, admin, alice)
		spki := []byte("her public key")
		identify(t, d, here, alice, spki)
		works := func(s *access.Store) (byToken, byCertificate bool) {
			_, err := s.Authenticate(ctx, text)
			_, err2 := s.AuthenticateCertificate(ctx, "identities", spki)
			for _, err := range []error{err, err2} {
				if err != nil && !fault.Is(err, fault.Unauthenticated) {
					t.Fatal(err)
				}
			}
			return err == nil, err2 == nil
		}
		for _, s := range []*access.Store{here, there} {
			if a, b := works(s); !a || !b || s.Known() != 2 {
				t.Fatalf("before: %v, %v, %d remembered", a, b, s.Known())
			}
		}
		yes := true
		if _, err := here.UpdatePrincipal(ctx, admin, alice.ID, access.Change{Disabled: &yes}, once.Call{}); err != nil {
			t.Fatal(err)
		}
		if a, b := works(here); a || b {
			t.Fatalf("after, at this node: %v, %v", a, b)
		}
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(time.Minute); ; <-tick.C {
			if a, b := works(there); !a && !b {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the other node accepts her for ever")
			}
		}
	})
}

func identify(t testing.TB, d *db.DB, s *access.Store, p access.Principal, spki []byte) {
	t.Helper()
	err := d.Tx(t.Context(), func(tx *db.Tx) error {
		return s.AddIdentity(t.Context(), tx, identityOf(p, spki), "system:n1", time.Now())
	})
	if err != nil {
		t.Fatal(err)
	}
}

func identityOf(p access.Principal, spki []byte) access.Identity {
	return access.Identity{Principal: p.ID, Issuer: "identities", SPKI: spki, Serial: big.NewInt(7), NotAfter: time.Now().Add(time.Hour)}
}

func TestCertificateIdentities(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		s := newStore(t, d, "n1")
		admin := bootstrap(t, d, s)
		web := create(t, s, admin, "web", access.KindHost, access.Host)
		mail := create(t, s, admin, "mail", access.KindHost, access.Host)
		key := []byte("a public key")
		if _, err := s.AuthenticateCertificate(ctx, "identities", key); !fault.Is(err, fault.Unauthenticated) {
			t.Fatalf("before: %v", err)
		}
		identify(t, d, s, web, key)
		identify(t, d, s, web, key) // renewed
		if p, err := s.AuthenticateCertificate(ctx, "identities", key); err != nil || p.ID != web.ID || !p.Has(access.Host) {
			t.Fatalf("got %+v, %v", p, err)
		}
		for name, c := range map[string]struct {
			issuer string
			spki   []byte
		}{"issuer": {"other", key}, "no issuer": {"", key}, "no key": {"identities", nil}, "key": {"identities", []byte("another")}} {
			if _, err := s.AuthenticateCertificate(ctx, c.issuer, c.spki); !fault.Is(err, fault.Unauthenticated) {
				t.Errorf("another %s: %v", name, err)
			}
		}
		err := d.Tx(ctx, func(tx *db.Tx) error {
			return s.AddIdentity(ctx, tx, identityOf(mail, key), "system:n1", time.Now())
		})
		if !fault.Is(err, fault.Conflict) {
			t.Fatalf("one key for two: %v", err)
		}
		if err := s.RemoveIdentity(ctx, web, "identities", key); !fault.Is(err, fault.Denied) {
			t.Fatalf("removed by a host: %v", err)
		}
		if err := s.RemoveIdentity(ctx, admin, "identities", key); err != nil {
			t.Fatal(err)
		}
		if _, err := s.AuthenticateCertificate(ctx, "identities", key); !fault.Is(err, fault.Unauthenticated) {
			t.Fatalf("after: %v", err)
		}
		if err := s.RemoveIdentity(ctx, admin, "identities", key); !fault.Is(err, fault.NotFound) {
			t.Fatalf("removed twice: %v", err)
		}
		identify(t, d, s, mail, key)
		_, text := token(t, s, admin, mail)
		if err := s.DeletePrincipal(ctx, admin, mail.ID, once.Call{}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.AuthenticateCertificate(ctx, "identities", key); !fault.Is(err, fault.Unauthenticated) {
			t.Fatalf("a deleted host: %v", err)
		}
		if _, err := s.Authenticate(ctx, text); !fault.Is(err, fault.Unauthenticated) {
			t.Fatalf("a deleted host's token: %v", err)
		}
	})
}

// Authentication needs no write: with the writer gone, callers are known, and the times of use are kept for later.
func TestLastUseWaitsForTheDatabase(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		ctx := t.Context()
		var faults pkitest.Faults
		d := pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})
		s := newStore(t, d, "n1")
		admin := bootstrap(t, d, s)
		_, text := token(t, s, admin, admin)
		if _, err := s.Authenticate(ctx, text); err != nil {
			t.Fatal(err)
		}
		faults.FailCommit(1, pkitest.NotPersisted)
		if err := s.FlushUse(ctx); err == nil {
			t.Fatal("the fault was not seen")
		}
		if err := s.FlushUse(ctx); err != nil {
			t.Fatal(err)
		}
		list, _, err := s.Tokens(ctx, admin, admin.ID, "", 10)
		if err != nil || len(list) != 1 || list[0].LastUsed.IsZero() {
			t.Fatalf("listed %+v, %v", list, err)
		}
	})
}

func TestManyCallersAtOnce(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s := newStore(t, d, "n1")
		admin := bootstrap(t, d, s)
		var texts []string
		for range 4 {
			_, text := token(t, s, admin, admin)
			texts = append(texts, text)
		}
		var group sync.WaitGroup
		for worker := range 8 {
			group.Go(func() {
				for i := range 200 {
					if p, err := s.Authenticate(context.Background(), texts[(worker+i)%4]); err != nil || p.ID != admin.ID {
						t.Errorf("got %+v, %v", p, err)
						return
					}
				}
			})
		}
		group.Wait()
		if s.Known() != 4 {
			t.Fatalf("%d answers are remembered", s.Known())
		}
	})
}

func TestEveryChangeIsRecorded(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		log, err := audit.New(d, "n1")
		if err != nil {
			t.Fatal(err)
		}
		s := access.New(d, log)
		admin := bootstrap(t, d, s)
		alice := create(t, s, admin, "alice", access.KindOperator, access.Operator)
		tok, text := token(t, s, admin, alice)
		yes := true
		identify(t, d, s, alice, []byte("key"))
		if _, err := s.UpdatePrincipal(ctx, admin, alice.ID, access.Change{Disabled: &yes}, once.Call{}); err != nil {
			t.Fatal(err)
		}
		if err := s.RemoveIdentity(ctx, admin, "identities", []byte("key")); err != nil {
			t.Fatal(err)
		}
		if err := s.DeleteToken(ctx, admin, tok.ID, once.Call{}); err != nil {
			t.Fatal(err)
		}
		if err := s.DeletePrincipal(ctx, admin, alice.ID, once.Call{}); err != nil {
			t.Fatal(err)
		}
		page, err := log.Search(ctx, audit.Filter{}, "", 100)
		if err != nil {
			t.Fatal(err)
		}
		var actions []string
		for _, e := range page.Events {
			actions = append(actions, e.Action)
			if strings.Contains(fmt.Sprintf("%s %s", e.Object, e.Detail), text[4:30]) {
				t.Errorf("event %+v has the token in it", e)
			}
		}
		want := "principal.create principal.create token.create identity.add principal.update identity.remove token.delete principal.delete"
		if got := strings.Join(actions, " "); got != want {
			t.Fatalf("recorded %s\nwant %s", got, want)
		}
	})
}
