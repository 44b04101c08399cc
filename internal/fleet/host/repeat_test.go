package host_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/schema"
)

func TestRepeatedCalls(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		in := client.AddHostRequest{Name: "web1", DNS: []string{"www"}, Profiles: []string{"server"}}
		first := must[*client.HostToken](t)(a.Hosts.Add(ctx, operator, in, "k-add"))
		second := must[*client.HostToken](t)(a.Hosts.Add(ctx, operator, in, "k-add"))
		if first.Token == second.Token || second.Host.Name != "web1" {
			t.Fatal("a repeated call got the token of the first, which is stored nowhere")
		}
		_, err := a.Hosts.Join(ctx, client.JoinRequest{Token: first.Token, CSR: newCSR(t)})
		refused(t, err, fault.Unauthenticated, "replaced by a later one")
		_, err = a.Hosts.Add(ctx, operator, client.AddHostRequest{Name: "web2"}, "k-add")
		refused(t, err, fault.Conflict, "was used for another request")
		m := a.redeem(second.Token)
		_, err = a.Hosts.Add(ctx, operator, in, "k-add")
		refused(t, err, fault.Conflict, "was redeemed")
		if n := a.events("host.add"); n != 1 {
			t.Fatalf("the audit has %d hosts added", n)
		}

		names := []string{"www2"}
		change := client.ChangeHostRequest{DNS: &names}
		for range 2 {
			if h := must[*client.Host](t)(a.Hosts.Set(ctx, operator, "web1", change, "k-set")); h.DNS[1] != "www2" {
				t.Fatalf("changed: %+v", h)
			}
		}
		if n := a.events("host.set"); n != 1 {
			t.Fatalf("the audit has %d changes", n)
		}
		held := must[*ca.Certificate](t)(a.issue(m, ca.Order{}, "www2"))
		replace := client.ReplaceHostRequest{Reason: "superseded"}
		must[*client.HostToken](t)(a.Hosts.Replace(ctx, operator, "web1", replace, "k-replace"))
		made := must[*client.HostToken](t)(a.Hosts.Replace(ctx, operator, "web1", replace, "k-replace"))
		a.redeem(made.Token)
		if got := a.state(held); got != "revoked superseded" {
			t.Fatalf("its certificate is %s", got)
		}
		for range 2 {
			check(t, a.Hosts.Remove(ctx, operator, "web1", "", "k-remove"))
		}
		if n := a.events("host.remove"); n != 1 {
			t.Fatalf("the audit has %d removals", n)
		}
		a.add(client.AddHostRequest{Name: "web1"})
		check(t, a.Hosts.Remove(ctx, operator, "web1", "", "k-remove")) // the answer of the first, and not another removal
		if h := a.host("web1"); h.State != client.HostPending {
			t.Fatalf("a removal that came twice removed the host that has the name now: %+v", h)
		}
	})
}

// again calls until a call is answered, as a client does that got no answer.
func again(t *testing.T, do func() error) {
	t.Helper()
	var err error
	for range 5 {
		if err = do(); err == nil {
			return
		}
		if fault.KindOf(err) != fault.Internal && fault.KindOf(err) != fault.Unavailable {
			break
		}
	}
	t.Fatal(err)
}

// TestLostCommits fails each commit of each act, both ways, and repeats the call: it is done once, and what it made is whole.
func TestLostCommits(t *testing.T) {
	for _, engine := range []db.Dialect{db.SQLite, db.Postgres} {
		for _, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway} {
			t.Run(string(engine)+" "+string(outcome), func(t *testing.T) {
				faults := &pkitest.Faults{}
				a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, engine), Wrap: faults.Wrap}))
				ctx := t.Context()
				fail := func() { faults.FailCommit(1, outcome) }
				var made *client.HostToken
				fail()
				again(t, func() (err error) {
					made, err = a.Hosts.Add(ctx, operator, client.AddHostRequest{Name: "web1", Profiles: []string{"server"}}, "k1")
					return err
				})
				in := client.JoinRequest{Token: made.Token, CSR: newCSR(t)}
				var joined *client.Joined
				fail()
				again(t, func() (err error) {
					joined, err = a.Hosts.Join(ctx, in)
					return err
				})
				if joined.Generation != 1 {
					t.Fatalf("joined as %+v", joined)
				}
				m := &machine{joined: joined}
				m.principal = must[access.Principal](t)(a.Access.PrincipalNamed(ctx, "web1")).Showing(m.certificate(t).RawSubjectPublicKeyInfo)
				held := must[*ca.Certificate](t)(a.issue(m, ca.Order{}, "web1"))
				csr := newCSR(t)
				fail()
				again(t, func() (err error) {
					joined, err = a.renew(m, 1, csr, "k2")
					return err
				})
				if h := a.host("web1"); joined.Generation != 2 || h.State != client.HostJoined {
					t.Fatalf("renewed as %+v, host %+v", joined, h)
				}
				fail()
				again(t, func() (err error) {
					made, err = a.Hosts.Replace(ctx, operator, "web1", client.ReplaceHostRequest{}, "k3")
					return err
				})
				in = client.JoinRequest{Token: made.Token, CSR: newCSR(t)}
				fail()
				again(t, func() (err error) {
					joined, err = a.Hosts.Join(ctx, in)
					return err
				})
				if got := a.state(held); got != "revoked superseded" || joined.Generation != 3 {
					t.Fatalf("replaced: %s, %+v", got, joined)
				}
				fail()
				again(t, func() error { return a.Hosts.Remove(ctx, operator, "web1", "", "k4") })
				faults.Clear()
				for action, want := range map[string]int{"host.add": 1, "host.join": 2, "host.renew": 1, "host.replace": 1, "host.remove": 1} {
					if n := a.events(action); n != want {
						t.Errorf("%s: %d events, want %d", action, n, want)
					}
				}
				identities, _, err := a.CA.Search(ctx, access.System("identity"), ca.Filter{Profile: ca.IdentityProfile}, "", 100)
				if check(t, err); len(identities) != 3 {
					t.Fatalf("%d identities were issued", len(identities))
				}
			})
		}
	}
}

// TestReportWritesOnlyWhatChanged counts commits.
func TestReportWritesOnlyWhatChanged(t *testing.T) {
	faults := &pkitest.Faults{}
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite), Wrap: faults.Wrap}))
	ctx := t.Context()
	m := a.join(client.AddHostRequest{Name: "web1", Placements: []client.PlacementOrder{{Recipe: "local/a"}, {Recipe: "local/b"}}})
	other := a.join(client.AddHostRequest{Name: "web2", Placements: []client.PlacementOrder{{Recipe: "local/a"}}})
	report := client.Report{Agent: "test", Observations: []client.Observation{
		{Placement: "a", State: client.PlacementServed, Serial: "01", Files: []client.ObservedFile{{Path: "/etc/a.pem", Mode: "0644"}}, Facts: map[string]string{"x": "1", "y": "2"}},
		{Placement: "b", State: client.PlacementFailed, Message: "no such group"},
		{Placement: "gone", State: client.PlacementServed},
	}}
	commits := func(do func()) int {
		before := faults.Commits()
		do()
		return faults.Commits() - before
	}
	if n := commits(func() { must[*client.Desired](t)(a.Hosts.Desired(ctx, m.principal, "", 0)) }); n != 1 {
		t.Fatalf("the first call with the identity's key took %d commits", n)
	}
	if n := commits(func() { check(t, a.Hosts.Report(ctx, m.principal, report)) }); n != 1 {
		t.Fatalf("the first report took %d commits", n)
	}
	if n := commits(func() {
		for range 5 {
			check(t, a.Hosts.Report(ctx, m.principal, report))
			desired := must[*client.Desired](t)(a.Hosts.Desired(ctx, m.principal, "", 0))
			must[*client.Desired](t)(a.Hosts.Desired(ctx, m.principal, desired.ETag, 0))
		}
	}); n != 0 {
		t.Fatalf("agents that found nothing new took %d commits", n)
	}
	if n := commits(func() { check(t, a.Hosts.FlushSeen(ctx)) }); n != 1 {
		t.Fatalf("the times of both agents took %d commits", n)
	}
	h := a.host("web1")
	if h.Placements[0].Observed.Serial != "01" || h.Placements[1].Observed.Message != "no such group" || len(h.Placements) != 2 || h.SeenAt.IsZero() {
		t.Fatalf("shown: %+v", h)
	}
	if h := a.host("web2"); h.Placements[0].Observed.State != client.PlacementPending {
		t.Fatalf("a host reported for another: %+v", h)
	}
	check(t, a.Hosts.Report(ctx, other.principal, client.Report{Agent: "test", Message: "the clock is off"}))
	if h := a.host("web2"); h.Message != "the clock is off" {
		t.Fatalf("shown: %+v", h)
	}
	for text, bad := range map[string]client.Report{
		"is not one of":     {Observations: []client.Observation{{Placement: "a", State: "fine"}}},
		"is reported twice": {Observations: []client.Observation{{Placement: "a", State: "served"}, {Placement: "a", State: "served"}}},
		"octets":            {Observations: []client.Observation{{Placement: "a", State: "served", Message: strings.Repeat("x", 1<<17)}}},
		"at most 64":        {Observations: make([]client.Observation, 65)},
	} {
		if err := a.Hosts.Report(ctx, m.principal, bad); err == nil || !strings.Contains(err.Error(), text) || fault.KindOf(err) == fault.Internal {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestTwoNodes has one node learn what another did.
func TestTwoNodes(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		if strings.HasPrefix(url, "sqlite:") {
			return // one process has an SQLite database at a time; the other engine is the one of clones
		}
		a := newAuthority(t, pkitest.Open(t, db.Options{URL: url}))
		b := a.second(pkitest.Open(t, db.Options{URL: url}))
		ctx := t.Context()
		follow(t, b)
		m := a.join(client.AddHostRequest{Name: "web1"})
		first := must[*client.Desired](t)(b.Hosts.Desired(ctx, m.principal, "", 0))
		got := await(b, m.principal, first.ETag)
		b.waiting(1)
		names := []string{"www"}
		must[*client.Host](t)(a.Hosts.Set(ctx, operator, "web1", client.ChangeHostRequest{DNS: &names}, ""))
		next := <-got
		if check(t, next.err); len(next.desired.DNS) != 2 {
			t.Fatalf("woken with %+v", next.desired)
		}
		got = await(b, m.principal, next.desired.ETag)
		b.waiting(1)
		held := must[*ca.Certificate](t)(a.issue(m, ca.Order{}, "www"))
		must[*ca.Certificate](t)(a.CA.Revoke(ctx, access.System("n1"), ca.Ref{Issuer: held.Issuer.ID, Serial: held.Serial}, ca.RevokeOrder{}))
		// No placement tells of the serial, so nothing changed but by the CRL, which nobody signs here: a placement is added.
		orders := []client.PlacementOrder{{Recipe: "local/x"}}
		must[*client.Host](t)(a.Hosts.Set(ctx, operator, "web1", client.ChangeHostRequest{Placements: &orders}, ""))
		next = <-got
		if check(t, next.err); len(next.desired.Placements) != 1 || len(next.desired.Placements[0].Revoked) != 1 {
			t.Fatalf("woken with %+v", next.desired)
		}
		got = await(b, m.principal, next.desired.ETag)
		b.waiting(1)
		check(t, a.Hosts.Remove(context.WithoutCancel(ctx), operator, "web1", "", ""))
		if gone := <-got; !fault.Is(gone.err, fault.Denied) {
			t.Fatalf("a removed host that waited on another node: %+v", gone)
		}
	})
}

// TestTakeHeard has another node, whose login reads, hear an agent: its word counts where it is newer, and of hosts that there are.
func TestTakeHeard(t *testing.T) {
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.Postgres)}))
	ctx := t.Context()
	a.join(client.AddHostRequest{Name: "web1"})
	at := time.Now().Add(time.Hour).Truncate(time.Second)
	hear := func(node string, at time.Time) {
		t.Helper()
		check(t, a.DB.Tx(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO host_heard (node, host, seen_at) SELECT CAST($1 AS TEXT), id, CAST($2 AS BIGINT) FROM host UNION ALL SELECT $1, 'x' || $1, $2
				ON CONFLICT (node, host) DO UPDATE SET seen_at = excluded.seen_at`, node, db.Micros(at))
			return err
		}))
		check(t, a.Hosts.TakeHeard(ctx))
	}
	for _, heard := range []struct {
		node     string
		at, want time.Time
	}{
		{"o1", at, at}, {"o2", at.Add(time.Minute), at.Add(time.Minute)}, {"o1", at.Add(2 * time.Minute), at.Add(2 * time.Minute)},
		{"o2", at.Add(-time.Hour), at.Add(2 * time.Minute)},
	} {
		if hear(heard.node, heard.at); !a.host("web1").SeenAt.Equal(heard.want) {
			t.Errorf("%s heard it at %s; it was seen at %s", heard.node, heard.at, a.host("web1").SeenAt)
		}
	}
	var n int
	check(t, a.DB.Read(ctx, func(tx *db.Tx) error { return tx.QueryRow(ctx, `SELECT COUNT(*) FROM host_seen`).Scan(&n) }))
	if n != 1 {
		t.Errorf("%d hosts were seen", n)
	}
	check(t, a.Hosts.Remove(ctx, operator, "web1", "", ""))
	check(t, a.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT COUNT(*) FROM host_heard WHERE host NOT LIKE 'x%'`).Scan(&n)
	}))
	if n != 0 {
		t.Errorf("%d rows of a host that was removed are left", n)
	}
}

// TestHeardByReader has an agent call a node whose login writes rows of its own alone.
func TestHeardByReader(t *testing.T) {
	pg, ctx := pkitest.Postgres(t), t.Context()
	for _, statement := range []string{"CREATE ROLE pki NOLOGIN", "CREATE DATABASE fleet OWNER pki", "CREATE ROLE chancery_one LOGIN IN ROLE pki"} {
		pg.Exec(t, statement)
	}
	as := func(role string) *db.DB {
		return pkitest.Open(t, db.Options{URL: strings.Replace(pg.URL("fleet"), "//chancery@", "//"+role+"@", 1)})
	}
	_, err := as("chancery").Migrator().ExecContext(ctx, db.LoginFunctions)
	check(t, err)
	one := as("chancery_one")
	check(t, schema.Migrate(ctx, one))
	a := newAuthority(t, one)
	m := a.join(client.AddHostRequest{Name: "web1"})
	must[*client.Desired](t)(a.Hosts.Desired(ctx, m.principal, "", 0)) // the first call with its key is written where it is made
	check(t, one.AddLogin(ctx, "chancery_near", true))
	near := a.second(as("chancery_near"))
	must[*client.Desired](t)(near.Hosts.Desired(ctx, m.principal, "", 0))
	for range 2 {
		check(t, near.Hosts.FlushSeen(ctx))
		check(t, near.Hosts.TakeHeard(ctx)) // which is not for it to do
	}
	rows := func(query string) (n int) {
		t.Helper()
		check(t, one.Migrator().QueryRowContext(ctx, query).Scan(&n))
		return n
	}
	if heard, seen := rows(`SELECT COUNT(*) FROM host_heard WHERE node = 'near'`), rows(`SELECT COUNT(*) FROM host_seen`); heard != 1 || seen != 0 {
		t.Fatalf("%d rows of its own, %d of all nodes", heard, seen)
	}
	check(t, a.Hosts.TakeHeard(ctx))
	if rows(`SELECT COUNT(*) FROM host_seen`) != 1 {
		t.Error("the agent that called another node was not seen")
	}
}
