package host_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

func TestLifeOfAHost(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		m := a.join(client.AddHostRequest{
			Name: "db1.example.com", DNS: []string{"DB.example.com", "db1.example.com"}, IP: []string{"::ffff:192.0.2.7"},
			Placements: []client.PlacementOrder{{Recipe: "local/postgres"}, {Recipe: "local/postgres"}},
		})
		h := a.host("db1.example.com")
		if h.State != client.HostJoined || !slices.Equal(h.DNS, []string{"db1.example.com", "db.example.com"}) || !slices.Equal(h.IP, []string{"192.0.2.7"}) ||
			h.Placements[1].Name != "postgres-2" || h.IdentityEnds.IsZero() || !h.TokenExpires.IsZero() || h.Agent != "test" {
			t.Fatalf("joined: %+v", h)
		}
		entitled := must[map[string][]string](t)(a.Hosts.Entitlements(ctx, m.principal))
		for name, want := range map[string]string{
			"host.names": "db1.example.com db.example.com", "host.addresses": "192.0.2.7", "host.pool": "default", "host.authorities": "default root",
		} {
			if got := strings.Join(entitled[name], " "); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		held := must[*ca.Certificate](t)(a.issue(m, ca.Order{}, "db.example.com"))
		_, err := a.issue(m, ca.Order{}, "web.example.com")
		refused(t, err, fault.Denied, "web.example.com")

		names := []string{"web.example.com"}
		must[*client.Host](t)(a.Hosts.Set(ctx, operator, "db1.example.com", client.ChangeHostRequest{DNS: &names}, ""))
		must[*ca.Certificate](t)(a.issue(m, ca.Order{}, "web.example.com"))
		_, err = a.issue(m, ca.Order{}, "db.example.com")
		refused(t, err, fault.Denied, "db.example.com")

		// Another machine takes the place: the old one loses everything when it joins, and not before.
		made := must[*client.HostToken](t)(a.Hosts.Replace(ctx, operator, "db1.example.com", client.ReplaceHostRequest{Reason: "affiliationChanged"}, ""))
		if got := a.state(held); got != "valid" {
			t.Fatalf("before the new machine joined, the old one's certificate is %s", got)
		}
		next := a.redeem(made.Token)
		if got := a.state(held); got != "revoked affiliationChanged" {
			t.Fatalf("after the new machine joined, the old one's certificate is %s", got)
		}
		_, err = a.Hosts.Desired(ctx, m.principal, "", 0)
		refused(t, err, fault.Denied, "another machine has taken its place")
		if next.joined.Generation != 2 || next.principal.ID == m.principal.ID {
			t.Fatalf("the new machine is %+v, generation %d", next.principal, next.joined.Generation)
		}
		if h := a.host("db1.example.com"); len(h.Placements) != 2 || h.Placements[0].Observed.State != client.PlacementPending || h.DNS[1] != "web.example.com" {
			t.Fatalf("replaced: %+v", h)
		}
		last := must[*ca.Certificate](t)(a.issue(next, ca.Order{}, "web.example.com"))

		check(t, a.Hosts.Remove(ctx, operator, "db1.example.com", "", ""))
		if got := a.state(last); got != "revoked cessationOfOperation" {
			t.Fatalf("after the removal its certificate is %s", got)
		}
		if h := a.host("db1.example.com"); h.State != client.HostRemoved {
			t.Fatalf("removed: %+v", h)
		}
		if _, err := a.Access.PrincipalNamed(ctx, "db1.example.com"); !fault.Is(err, fault.NotFound) {
			t.Fatalf("the principal of a removed host: %v", err)
		}
		again := a.join(client.AddHostRequest{Name: "db1.example.com"})
		if again.joined.Generation != 1 {
			t.Fatalf("a host that was added anew begins with generation %d", again.joined.Generation)
		}
		findings, looked, err := a.CA.Check(ctx, 1)
		if check(t, err); len(findings) > 0 || looked == (ca.Checked{}) {
			t.Fatalf("the record is wrong: %v (looked at %+v)", findings, looked)
		}
		findings, told, err := a.CA.CheckAudit(ctx)
		if check(t, err); len(findings) > 0 || told.Statuses < 3 {
			t.Fatalf("the record is not what the audit says: %v (looked at %+v)", findings, told)
		}
	})
}

// TestCheckFindsEachWrong breaks the rows of hosts one by one, and has Check name each.
func TestCheckFindsEachWrong(t *testing.T) {
	a, ctx := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)})), t.Context()
	m := a.join(client.AddHostRequest{Name: "joined"})
	gone := a.join(client.AddHostRequest{Name: "gone"})
	held := must[*ca.Certificate](t)(a.issue(gone, ca.Order{}, "gone"))
	check(t, a.Hosts.Remove(ctx, operator, "gone", "", ""))
	look := func() (messages []string) {
		t.Helper()
		seen, err := a.Hosts.Check(ctx, func(f host.Finding) bool {
			messages = append(messages, f.Host+": "+f.Message)
			return true
		})
		if check(t, err); seen.Hosts != 1 || seen.Removed != 1 {
			t.Fatalf("looked at %+v", seen)
		}
		return messages
	}
	if found := look(); len(found) != 0 {
		t.Fatalf("found %q where nothing is wrong", found)
	}
	for _, c := range []struct{ want, do, undo string }{
		{"its principal is not there", `UPDATE host SET principal = 'x' WHERE name = 'joined'`,
			`UPDATE host SET principal = '` + m.principal.ID + `' WHERE name = 'joined'`},
		{"its principal is operator:joined", `UPDATE principal SET kind = 'operator' WHERE name = 'joined'`,
			`UPDATE principal SET kind = 'host' WHERE name = 'joined'`},
		{"is not in the record", `UPDATE host SET identity_serial = 'abc' WHERE name = 'joined'`,
			`UPDATE host SET identity_serial = '` + m.certificate(t).SerialNumber.Text(16) + `' WHERE name = 'joined'`},
		{"was removed, and its certificate", fmt.Sprintf(`UPDATE certificate SET state = 'valid' WHERE id = %d`, held.ID),
			fmt.Sprintf(`UPDATE certificate SET state = 'revoked' WHERE id = %d`, held.ID)},
	} {
		a.exec(c.do)
		if found := look(); len(found) != 1 || !strings.Contains(found[0], c.want) {
			t.Errorf("found %q, want %q", found, c.want)
		}
		a.exec(c.undo)
	}
	if found := look(); len(found) != 0 {
		t.Fatalf("found %q when all was mended", found)
	}
}

func TestRemovedMachineProvesNobody(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		a, ctx := newAuthority(t, pkitest.Open(t, db.Options{URL: url})), t.Context()
		m := a.join(client.AddHostRequest{Name: "web1"})
		issued := m.certificate(t)
		check(t, a.Identity.Good(ctx, a.identityIssuer(), issued.SerialNumber))
		proven := must[access.Principal](t)(a.Access.AuthenticateCertificate(ctx, a.identityIssuer(), issued.RawSubjectPublicKeyInfo))
		if proven.Name != "web1" {
			t.Fatalf("the identity proves %+v", proven)
		}
		check(t, a.Hosts.Remove(ctx, operator, "web1", "keyCompromise", ""))
		if err := a.Identity.Good(ctx, a.identityIssuer(), issued.SerialNumber); err == nil {
			t.Fatal("the identity of a removed host is good")
		}
		if _, err := a.Access.AuthenticateCertificate(ctx, a.identityIssuer(), issued.RawSubjectPublicKeyInfo); !fault.Is(err, fault.Unauthenticated) {
			t.Fatalf("the key of a removed host proves somebody: %v", err)
		}
		_, err := a.issue(m, ca.Order{}, "web1")
		refused(t, err, fault.Denied, "web1")
	})
}

// TestOrderJudgedBeforeTheRemoval plays an order that was judged and signed while its host was removed: what decides is the
// transaction that would record it.
func TestOrderJudgedBeforeTheRemoval(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		m := a.join(client.AddHostRequest{Name: "web1"})
		check(t, d.Tx(ctx, func(tx *db.Tx) error { return a.Hosts.AdmitHost(ctx, tx, m.principal, "server") }))
		check(t, a.Hosts.Remove(ctx, operator, "web1", "", ""))
		refused(t, d.Tx(ctx, func(tx *db.Tx) error { return a.Hosts.AdmitHost(ctx, tx, m.principal, "server") }), fault.Denied, "is no host here")
	})
}

// TestLaw10 asks for what would let a host of one pool into another.
func TestLaw10(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		m := a.join(client.AddHostRequest{Name: "kvm1", Pool: "lab", Profiles: []string{"server", "libvirt-server"}})
		own := must[*ca.Certificate](t)(a.issue(m, ca.Order{}, "kvm1"))
		if own.Issuer.Name != "lab" {
			t.Fatalf("an order without a pool was issued by %s", own.Issuer.Name)
		}
		for _, o := range []ca.Order{{Pool: "default"}, {Issuer: "default"}, {Issuer: "identity"}} {
			_, err := a.issue(m, o, "kvm1")
			refused(t, err, fault.Denied, "")
		}
		_, err := a.CA.Issue(ctx, m.principal, ca.Order{Template: "cn = kvm1\n", CSR: []byte(newCSR(t))})
		refused(t, err, fault.Denied, "by profile and not by template")
		virt := func(organization string) (*ca.Certificate, error) {
			return a.CA.Issue(ctx, m.principal, ca.Order{
				Profile: "libvirt-server", CSR: []byte(newCSR(t)), Subject: "CN=kvm1,O=" + organization, Names: []string{"dns:kvm1"},
			})
		}
		must[*ca.Certificate](t)(virt("lab root"))
		_, err = virt("default root")
		refused(t, err, fault.Denied, "default root")
		desired := must[*client.Desired](t)(a.Hosts.Desired(ctx, m.principal, "", 0))
		if desired.Trust.Authority != "lab root" || len(desired.Trust.Anchors) != 1 || len(desired.Trust.Issuers) != 2 {
			t.Fatalf("a host of lab trusts %+v", desired.Trust)
		}
	})
}

func TestMayOnly(t *testing.T) {
	a, ctx := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)})), t.Context()
	m := a.join(client.AddHostRequest{Name: "web1"})
	for name, by := range map[string]access.Principal{"auditor": auditor, "host": m.principal, "nobody": {}} {
		_, add := a.Hosts.Add(ctx, by, client.AddHostRequest{Name: "x"}, "")
		_, set := a.Hosts.Set(ctx, by, "web1", client.ChangeHostRequest{}, "")
		_, replace := a.Hosts.Replace(ctx, by, "web1", client.ReplaceHostRequest{}, "")
		_, token := a.Hosts.NewToken(ctx, by, "web1", client.HostTokenRequest{}, "")
		for act, err := range map[string]error{
			"add": add, "set": set, "replace": replace, "token": token, "remove": a.Hosts.Remove(ctx, by, "web1", "", ""),
		} {
			if !fault.Is(err, fault.Denied) && !fault.Is(err, fault.Unauthenticated) {
				t.Errorf("%s by %s: %v", act, name, err)
			}
		}
	}
	if _, err := a.Hosts.Show(ctx, m.principal, "web1"); !fault.Is(err, fault.Denied) {
		t.Errorf("a host reads the list of hosts: %v", err)
	}
	if _, err := a.Hosts.Desired(ctx, operator, "", 0); !fault.Is(err, fault.Denied) {
		t.Errorf("an operator fetches what a host shall hold: %v", err)
	}
	if err := a.Hosts.Report(ctx, operator, client.Report{}); !fault.Is(err, fault.Denied) {
		t.Errorf("an operator reports for a host: %v", err)
	}
}

// TestManyCertificatesAreRevoked removes a host that holds more than one transaction revokes, and is cut short in between.
func TestManyCertificatesAreRevoked(t *testing.T) {
	a, ctx := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)})), t.Context()
	a.liftLimits()
	m := a.join(client.AddHostRequest{Name: "web1"})
	const many = 230
	for range many {
		must[*ca.Certificate](t)(a.issue(m, ca.Order{}, "web1"))
	}
	check(t, a.Hosts.Remove(ctx, operator, "web1", "", ""))
	left, _, err := a.CA.Search(ctx, access.System("n1"), ca.Filter{Requester: m.principal.ID, State: ca.Valid}, "", 1000)
	if check(t, err); len(left) != 0 {
		t.Fatalf("%d certificates of a removed host are valid", len(left))
	}
	gone, _, err := a.CA.Search(ctx, access.System("n1"), ca.Filter{Requester: m.principal.ID, State: ca.Revoked}, "", 1000)
	if check(t, err); len(gone) != many || gone[0].Revocation.Reason != crl.CessationOfOperation {
		t.Fatalf("%d certificates were revoked", len(gone))
	}
}

func TestNamesAreChecked(t *testing.T) {
	a, ctx := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)})), t.Context()
	a.add(client.AddHostRequest{Name: "web1", DNS: []string{"www.example.com"}, IP: []string{"192.0.2.1"}})
	for text, in := range map[string]client.AddHostRequest{
		"is an address and no DNS name":         {Name: "192.0.2.1"},
		"www.example.com is a name of host":     {Name: "web2", DNS: []string{"WWW.Example.COM"}},
		"192.0.2.1 is a name of host web1":      {Name: "web2", IP: []string{"::ffff:192.0.2.1"}},
		"web1 is a name of host web1":           {Name: "web2", DNS: []string{"web1"}},
		"there is a host web1 already":          {Name: "WEB1"},
		"at most 200 pass":                      {Name: strings.Repeat(strings.Repeat("a", 50)+".", 4) + "example"},
		"is no address of one host":             {Name: "web2", IP: []string{"0.0.0.0"}},
		"there is no recipe \"nosuch\"":         {Name: "web2", Placements: []client.PlacementOrder{{Recipe: "nosuch"}}},
		"letters, digits and ._-":               {Name: "web2", Placements: []client.PlacementOrder{{Recipe: "local/../x"}}},
		"two placements are named \"a\"":        {Name: "web2", Placements: []client.PlacementOrder{{Name: "a", Recipe: "local/x"}, {Name: "a", Recipe: "local/y"}}},
		"both write /etc/nginx/tls/server.key":  {Name: "web2", Placements: []client.PlacementOrder{{Recipe: "nginx"}, {Recipe: "nginx"}}},
		"no host is in it":                      {Name: "web2", Pool: "identity"},
		"there is no pool \"nosuch\"":           {Name: "web2", Pool: "nosuch"},
		"from 1m to 30d can be had":             {Name: "web2", TokenLife: "31d"},
		"there is a principal named \"person\"": {Name: "person"},
	} {
		if text == "there is a principal named \"person\"" {
			must[access.Principal](t)(a.Access.CreatePrincipal(ctx, access.System("n1"), access.Principal{
				Name: "person", Kind: access.KindOperator, Roles: []access.Role{access.Auditor},
			}, once.Call{}))
		}
		_, err := a.Hosts.Add(ctx, operator, in, "")
		if err == nil || !strings.Contains(err.Error(), text) || fault.KindOf(err) == fault.Internal {
			t.Errorf("%+v: %v, want %q", in, err, text)
		}
	}
	found, _, err := a.Hosts.List(ctx, operator, client.HostFilter{}, "", 10)
	if check(t, err); len(found) != 1 {
		t.Fatalf("refused hosts are there: %+v", found)
	}
}

func TestPages(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		for _, name := range []string{"e", "d", "c", "b", "a"} {
			a.add(client.AddHostRequest{Name: name, Placements: []client.PlacementOrder{{Recipe: "local/x"}}})
		}
		m := a.redeem(must[*client.HostToken](t)(a.Hosts.NewToken(ctx, operator, "d", client.HostTokenRequest{}, "")).Token)
		check(t, a.Hosts.Report(ctx, m.principal, client.Report{Observations: []client.Observation{
			{Placement: "x", State: client.PlacementFailed, Message: "the directory is not there"},
		}}))
		var names []string
		for after := ""; ; {
			found, next, err := a.Hosts.List(ctx, operator, client.HostFilter{}, after, 2)
			check(t, err)
			for _, h := range found {
				names = append(names, h.Name)
			}
			if after = next; next == "" {
				break
			}
		}
		if got := strings.Join(names, ""); got != "dabce" {
			t.Fatalf("listed %s: the host with a failed placement first, then by name", got)
		}
		found, _, err := a.Hosts.List(ctx, operator, client.HostFilter{State: client.HostJoined}, "", 10)
		if check(t, err); len(found) != 1 || found[0].Name != "d" {
			t.Fatalf("joined: %+v", found)
		}
		counts := must[struct{ h, f int64 }](t)(func() (struct{ h, f int64 }, error) {
			c, err := a.Hosts.Count(ctx, time.Now())
			return struct{ h, f int64 }{c.Hosts, c.Failed}, err
		}())
		if counts.h != 5 || counts.f != 1 {
			t.Fatalf("counted %+v", counts)
		}
		for _, after := range []string{"x", "1", "a b c d"} {
			if _, _, err := a.Hosts.List(ctx, operator, client.HostFilter{}, after, 2); !fault.Is(err, fault.Invalid) {
				t.Errorf("page key %q: %v", after, err)
			}
		}
	})
}
