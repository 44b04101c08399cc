package clone_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/upkeep/setup"
)

// withLogins is an authority whose nodes have logins of their own at a PostgreSQL server.
func withLogins(t *testing.T) *authority {
	t.Helper()
	pg := pkitest.Postgres(t, "fsync=off", "full_page_writes=off")
	for _, statement := range []string{
		"CREATE ROLE pki NOLOGIN", "CREATE DATABASE fleet OWNER pki", "CREATE ROLE chancery_n1 LOGIN IN ROLE pki",
		"CREATE ROLE chancery_bystander LOGIN", "CREATE ROLE chancery_elsewhere LOGIN", "COMMENT ON ROLE chancery_elsewhere IS 'chancery: a node of other'",
	} {
		pg.Exec(t, statement)
	}
	installer := pkitest.Open(t, db.Options{URL: pg.URL("fleet")})
	_, err := installer.Migrator().ExecContext(t.Context(), db.LoginFunctions)
	must(t, err)
	a := newLocal(t, strings.Replace(pg.URL("fleet"), "postgres://chancery@", "postgres://chancery_n1@", 1))
	must(t, a.set("durability", "provider"))
	_, err = a.Pools.Add(t.Context(), access.System("n1"), "", pool.Spec{Name: setup.DatabasePool, Online: true})
	must(t, err)
	return a
}

// withDatabase is machine with a request for a login too.
func (a *authority) withDatabase(name string) *machine {
	a.t.Helper()
	m := a.machine(name, a.invite())
	m.in.DatabaseCSR = a.machine("x", &client.CloneToken{}).in.CSR
	return m
}

// again are the services of the first node after its process was started anew.
func (a *authority) again() *setup.Services {
	a.t.Helper()
	d := pkitest.Open(a.t, db.Options{URL: a.url})
	must(a.t, d.LearnClock(a.t.Context()))
	s, err := setup.Assemble(d, "n1", a.key, slog.New(slog.DiscardHandler))
	must(a.t, err)
	return s
}

// TestLoginOfOneThatEndedIsFound has the process that gives a login die before it has written so, while the node is removed: the next that
// looks finds the login at PostgreSQL, and ends it with its certificate. Logins of nodes that there are, and of others, stay.
func TestLoginOfOneThatEndedIsFound(t *testing.T) {
	t.Parallel()
	a, ctx := withLogins(t), t.Context()
	stays := a.withDatabase("n3")
	waits, err := a.Clones.Join(ctx, stays.in)
	must(t, err)
	_, err = a.Clones.Approve(ctx, a.admin, "n3", client.CloneApproval{Fingerprint: waits.Fingerprint})
	must(t, err)

	m := a.withDatabase("n2")
	waits, err = a.Clones.Join(ctx, m.in)
	must(t, err)
	died, real := errors.New("the process is killed"), a.Clones.OpenLogin
	a.Clones.OpenLogin = func(ctx context.Context, by access.Principal, node, csr string) (clone.Login, error) {
		must(t, a.Clones.Remove(ctx, a.admin, "n2", clone.Removal{Force: true}, once.Call{}))
		if _, err := real(ctx, by, node, csr); err != nil {
			return clone.Login{}, err
		}
		return clone.Login{}, died
	}
	if _, err = a.Clones.Approve(ctx, a.admin, "n2", client.CloneApproval{Fingerprint: waits.Fingerprint}); !errors.Is(err, died) {
		t.Fatalf("approved: %v", err)
	}
	certificates := func(role, state string) int64 {
		return a.count(`SELECT COUNT(*) FROM certificate WHERE requester = $1 AND state = $2`, "system:login "+role, state)
	}
	logins := func(of *setup.Services) []string { return must1(t)(of.DB.Logins(ctx)) }
	left := []string{"chancery_n2", "chancery_n3"}
	if got := logins(a.Services); !slices.Equal(got, left) || certificates("chancery_n2", "valid") != 1 {
		t.Fatalf("the logins are %q, with %d certificates", got, certificates("chancery_n2", "valid"))
	}
	if a.count(`SELECT COUNT(*) FROM node WHERE name = 'n2' AND state = 'gone' AND database_role = ''`) != 1 {
		t.Fatal("the login of the node that is gone is remembered: this proves nothing")
	}
	// Roles that somebody else made, and that are of another database, have names that nodes of this one had.
	for _, name := range []string{"bystander", "elsewhere"} {
		a.exec(`INSERT INTO node SELECT $1, state, subsystems, address, public_key, fingerprint, tls_spki, principal, database_role, request,
			answer, report, joined_by, approved_by, created_at, approved_at, started_at, seen_at, gone_at FROM node WHERE name = 'n2'`, name)
	}

	one := a.again()
	for range 2 { // and again, with nothing to do
		must(t, one.Clones.Finish(ctx, time.Now()))
		if got := logins(one); !slices.Equal(got, []string{"chancery_n3"}) {
			t.Fatalf("the logins are %q", got)
		}
	}
	if certificates("chancery_n2", "valid") != 0 || certificates("chancery_n2", "revoked") != 1 || certificates("chancery_n3", "valid") != 1 {
		t.Error("its certificate is good still, or another's is not")
	}
	if n := a.count(`SELECT COUNT(*) FROM node WHERE state = 'gone' AND database_role <> ''`); n != 0 {
		t.Errorf("%d logins are left to end", n)
	}
	if n := a.count(`SELECT COUNT(*) FROM pg_roles WHERE rolname IN ('chancery_bystander', 'chancery_elsewhere')`); n != 2 {
		t.Errorf("%d roles of others are left", n)
	}
	_, err = one.Clones.Approve(ctx, a.admin, "n2", client.CloneApproval{Fingerprint: waits.Fingerprint})
	refused(t, err, fault.Conflict, "node n2 is gone")
}
