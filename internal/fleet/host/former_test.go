package host_test

import (
	"slices"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// TestNameThatWasTakenStaysCertified takes names from a host whose certificates have them, and would give them to another.
func TestNameThatWasTakenStaysCertified(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		m := a.join(client.AddHostRequest{Name: "web1", DNS: []string{"www"}, IP: []string{"192.0.2.7"}})
		old := must[*ca.Certificate](t)(a.issue(m, ca.Order{Names: []string{"dns:web1", "dns:www", "ip:192.0.2.7"}}))
		set := func(host string, in client.ChangeHostRequest) (*client.Host, error) {
			return a.Hosts.Set(ctx, operator, host, in, "")
		}
		h := must[*client.Host](t)(set("web1", client.ChangeHostRequest{DNS: &[]string{}, IP: &[]string{}}))
		if len(h.FormerNames) != 1 || !slices.Equal(h.FormerNames[0].Names, []string{"www", "192.0.2.7"}) || a.state(old) != "valid" {
			t.Fatalf("what stays good is said to be %+v", h.FormerNames)
		}
		// No other host gets the name meanwhile, neither a new one nor one that is there.
		for _, err := range []error{
			second(a.Hosts.Add(ctx, operator, client.AddHostRequest{Name: "www"}, "")),
			second(a.Hosts.Add(ctx, operator, client.AddHostRequest{Name: "web2", IP: []string{"192.0.2.7"}}, "")),
		} {
			refused(t, err, fault.Conflict, "was a name of host web1, and its certificate")
			refused(t, err, fault.Conflict, "is good until "+old.NotAfter.UTC().Format("2006-01-02"))
		}
		a.add(client.AddHostRequest{Name: "web2"})
		_, err := set("web2", client.ChangeHostRequest{DNS: &[]string{"www"}})
		refused(t, err, fault.Conflict, "www was a name of host web1")
		// Its own host may have it back.
		must[*client.Host](t)(set("web1", client.ChangeHostRequest{DNS: &[]string{"www"}}))
		must[*client.Host](t)(set("web1", client.ChangeHostRequest{DNS: &[]string{}}))

		other := must[*ca.Certificate](t)(a.issue(m, ca.Order{}, "web1"))
		if h = must[*client.Host](t)(set("web1", client.ChangeHostRequest{RevokeNow: true})); len(h.FormerNames) != 0 {
			t.Fatalf("when it was revoked, %+v stays good", h.FormerNames)
		}
		if a.state(old) != "revoked superseded" || a.state(other) != "valid" {
			t.Fatalf("with its former names: %s; with its own: %s", a.state(old), a.state(other))
		}
		must[*client.Host](t)(set("web2", client.ChangeHostRequest{DNS: &[]string{"www"}, IP: &[]string{"192.0.2.7"}}))
	})
}

// TestReplacedCertificateWithFormerNamesIsRevoked has a host report another certificate in the place of one whose names it no
// longer has: then, and not before, the old one is revoked.
func TestReplacedCertificateWithFormerNamesIsRevoked(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		m := a.join(client.AddHostRequest{Name: "web1", DNS: []string{"www"}, Placements: []client.PlacementOrder{{Recipe: "nginx", Name: "web"}}})
		old := must[*ca.Certificate](t)(a.issue(m, ca.Order{Names: []string{"dns:web1", "dns:www"}}))
		report := func(state string, placed, served *ca.Certificate) {
			t.Helper()
			o := client.Observation{Placement: "web", State: state, Serial: cert.FormatSerial(placed.Serial), NotAfter: placed.NotAfter}
			if served != nil {
				o.Served = cert.FormatSerial(served.Serial)
			}
			check(t, a.Hosts.Report(ctx, m.principal, client.Report{Generation: 1, Observations: []client.Observation{o}}))
		}
		report(client.PlacementServed, old, old)
		// A re-key for the same names leaves the old one good, as every re-key does.
		same := must[*ca.Certificate](t)(a.issue(m, ca.Order{Names: []string{"dns:web1", "dns:www"}}))
		report(client.PlacementServed, same, same)
		if a.state(old) != "valid" {
			t.Fatalf("for the same names: %s", a.state(old))
		}
		must[*client.Host](t)(a.Hosts.Set(ctx, operator, "web1", client.ChangeHostRequest{DNS: &[]string{}}, ""))
		fresh := must[*ca.Certificate](t)(a.issue(m, ca.Order{Names: []string{"dns:web1"}}))
		report(client.PlacementFailed, same, same) // it could not be placed yet
		if a.state(same) != "valid" {
			t.Fatalf("while it is served: %s", a.state(same))
		}
		report(client.PlacementServed, fresh, fresh)
		if a.state(same) != "revoked superseded" || a.state(fresh) != "valid" {
			t.Fatalf("replaced: %s; in its place: %s", a.state(same), a.state(fresh))
		}
		// The one that was replaced for the same names was never looked at again; an operator revokes it with the rest.
		h := must[*client.Host](t)(a.Hosts.Set(ctx, operator, "web1", client.ChangeHostRequest{RevokeNow: true}, ""))
		if len(h.FormerNames) != 0 || a.state(old) != "revoked superseded" {
			t.Fatalf("%s, and there are %+v", a.state(old), h.FormerNames)
		}
	})
}

// TestOthersCertificatesAreSaid has an officer issue for a host's names: that certificate is not the host's, and outlives it.
func TestOthersCertificatesAreSaid(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		m := a.join(client.AddHostRequest{Name: "web1", DNS: []string{"www"}})
		must[*ca.Certificate](t)(a.issue(m, ca.Order{}, "www"))
		if h := a.host("web1"); len(h.OthersCertificates) != 0 {
			t.Fatalf("its own certificate is said to be another's: %+v", h.OthersCertificates)
		}
		officer := must[access.Principal](t)(a.Access.CreatePrincipal(ctx, access.System("n1"), access.Principal{
			Name: "olga", Kind: access.KindOperator, Roles: []access.Role{access.Officer},
		}, once.Call{}))
		by := must[*ca.Certificate](t)(a.CA.Issue(ctx, officer, ca.Order{Profile: "server", CSR: []byte(newCSR(t, "www", "web1"))}))
		h := a.host("web1")
		if len(h.OthersCertificates) != 1 || h.OthersCertificates[0].Requester != "olga" || len(h.OthersCertificates[0].Names) != 2 {
			t.Fatalf("shown: %+v", h.OthersCertificates)
		}
		check(t, a.Hosts.Remove(ctx, operator, "web1", "", ""))
		if a.state(by) != "valid" {
			t.Fatal("a certificate that an officer requested is gone with the host")
		}
		if h := a.host("web1"); len(h.OthersCertificates) != 1 || !strings.Contains(h.State, "removed") {
			t.Fatalf("shown when removed: %+v", h)
		}
	})
}
