package host_test

import (
	"testing"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// TestHostGetsWhatItsPlacementsNeed asks for profiles that any host's rule would pass, and that nothing on the host is of.
func TestHostGetsWhatItsPlacementsNeed(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		m := a.join(client.AddHostRequest{Name: "web1", Profiles: []string{}, Placements: []client.PlacementOrder{{Recipe: "nginx"}, {Recipe: "local/own"}}})
		order := func(profile string) (*ca.Certificate, error) {
			return a.CA.Issue(ctx, m.principal, ca.Order{Profile: profile, CSR: []byte(newCSR(t, "web1"))})
		}
		held := must[*ca.Certificate](t)(order("server"))
		for _, profile := range []string{"client", "peer"} {
			_, err := order(profile)
			refused(t, err, fault.Denied, `no certificate of profile "`+profile+`"`)
			refused(t, err, fault.Denied, "placement nginx (server), placement own (of the host's own recipe")
			_, _, err = a.CA.Submit(ctx, m.principal, ca.Order{Profile: profile, CSR: []byte(newCSR(t, "web1"))})
			refused(t, err, fault.Denied, "no placement of it is of that profile")
			refused(t, d.Tx(ctx, func(tx *db.Tx) error { return a.Hosts.AdmitHost(ctx, tx, m.principal, profile) }), fault.Denied, "no placement of it")
		}
		_, err := a.CA.Issue(ctx, m.principal, ca.Order{Profile: "libvirt-client", CSR: []byte(newCSR(t)), Subject: "CN=web1,O=default root"})
		refused(t, err, fault.Denied, `no certificate of profile "libvirt-client"`)

		// What an operator lists beside the placements passes, and no longer when it is taken away: no renewal either.
		set := func(in client.ChangeHostRequest) {
			t.Helper()
			must[*client.Host](t)(a.Hosts.Set(ctx, operator, "web1", in, ""))
		}
		set(client.ChangeHostRequest{Profiles: &[]string{"client"}})
		if h := a.host("web1"); len(h.Profiles) != 1 || h.Profiles[0] != "client" {
			t.Fatalf("shown: %+v", h)
		}
		extra := must[*ca.Certificate](t)(order("client"))
		set(client.ChangeHostRequest{Profiles: &[]string{}})
		ref := ca.Ref{Issuer: extra.Issuer.ID, Serial: extra.Serial}
		_, err = a.CA.Renew(ctx, m.principal, ref, ca.RenewOrder{})
		refused(t, err, fault.Denied, `no certificate of profile "client"`)
		_, err = a.CA.Rekey(ctx, m.principal, ref, []byte(newCSR(t)), nil, ca.RenewOrder{})
		refused(t, err, fault.Denied, `no certificate of profile "client"`)
		set(client.ChangeHostRequest{Placements: &[]client.PlacementOrder{{Recipe: "plain", Parameters: map[string]string{"profile": "peer", "combined": "/etc/web/all.pem"}}}})
		_, err = a.CA.Renew(ctx, m.principal, ca.Ref{Issuer: held.Issuer.ID, Serial: held.Serial}, ca.RenewOrder{})
		refused(t, err, fault.Denied, "it has placement plain (peer)")
		must[*ca.Certificate](t)(order("peer"))
		_, err = a.Hosts.Set(ctx, operator, "web1", client.ChangeHostRequest{Profiles: &[]string{"nosuch"}}, "")
		refused(t, err, fault.NotFound, "nosuch")
	})
}

// TestOrderJudgedBeforeThePlacementWent has an order recorded after what it was judged by is gone.
func TestOrderJudgedBeforeThePlacementWent(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		m := a.join(client.AddHostRequest{Name: "web1"})
		admit := func() error {
			return d.Tx(ctx, func(tx *db.Tx) error { return a.Hosts.AdmitHost(ctx, tx, m.principal, "server") })
		}
		check(t, admit())
		must[*client.Host](t)(a.Hosts.Set(ctx, operator, "web1", client.ChangeHostRequest{Profiles: &[]string{}}, ""))
		refused(t, admit(), fault.Denied, "nothing is placed on it")
	})
}

// TestHoldSuspends holds a host's certificate: its agent is not told to replace it, and it gets no other until that is decided.
func TestHoldSuspends(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		m := a.join(client.AddHostRequest{Name: "web1", Profiles: []string{"client"}, Placements: []client.PlacementOrder{{Recipe: "nginx"}}})
		c := must[*ca.Certificate](t)(a.issue(m, ca.Order{}, "web1"))
		ref := ca.Ref{Issuer: c.Issuer.ID, Serial: c.Serial}
		officer := access.Principal{ID: "olga", Name: "olga", Kind: access.KindOperator, Roles: []access.Role{access.Officer}}
		revoked := func() int {
			t.Helper()
			return len(must[*client.Desired](t)(a.Hosts.Desired(ctx, m.principal, "", 0)).Placements[0].Revoked)
		}
		act := func(_ *ca.Certificate, err error) {
			t.Helper()
			check(t, err)
		}
		act(a.CA.Revoke(ctx, officer, ref, ca.RevokeOrder{Reason: crl.CertificateHold}))
		if n := revoked(); n != 0 {
			t.Fatalf("the agent is told to replace %d certificates, and one is only on hold", n)
		}
		_, err := a.issue(m, ca.Order{}, "web1")
		refused(t, err, fault.Conflict, "is on hold")
		_, err = a.CA.Renew(ctx, m.principal, ref, ca.RenewOrder{})
		refused(t, err, fault.Conflict, "")
		must[*ca.Certificate](t)(a.CA.Issue(ctx, m.principal, ca.Order{Profile: "client", CSR: []byte(newCSR(t, "web1"))}))
		act(a.CA.Release(ctx, officer, ref, ""))
		must[*ca.Certificate](t)(a.issue(m, ca.Order{}, "web1"))
		act(a.CA.Revoke(ctx, officer, ref, ca.RevokeOrder{Reason: crl.CertificateHold}))
		act(a.CA.Revoke(ctx, officer, ref, ca.RevokeOrder{Reason: crl.KeyCompromise}))
		if n := revoked(); n != 1 {
			t.Fatalf("the agent is told to replace %d certificates, want the one that is revoked", n)
		}
		must[*ca.Certificate](t)(a.issue(m, ca.Order{}, "web1"))
	})
}
