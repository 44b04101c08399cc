package trust_test

import (
	"crypto/x509"
	"slices"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/fleet/pool"
	"chancery/internal/fleet/trust"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestRenewedIssuerIsTrustedBesideTheOneBefore: an issuer that is renewed with its key is trusted by both certificates at once, and
// whoever is under it is known by the new one, whichever his agent names. What leaves it leaves both.
func TestRenewedIssuerIsTrustedBesideTheOneBefore(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := t.Context()
		m := a.join(client.AddHostRequest{Name: "h1.example.com", Placements: []client.PlacementOrder{{Name: "a", Recipe: "local/x"}}})
		before := must[*ca.Issuer](t)(a.CA.Issuer(ctx, "default"))
		old := trust.Fingerprint(before.Certificate)
		a.report(m, client.Observation{Placement: "a", Issuer: old, Serial: "01"})
		first, told := a.of(0), a.desired(m)
		after, err := a.CA.RenewIssuer(ctx, admin, ca.RenewSpec{Issuer: "default", Validity: 12 * 365 * 24 * time.Hour})
		check(t, err)
		now := trust.Fingerprint(after.Certificate)
		second := a.of(0)
		if second.Version <= first.Version || len(second.General.Issuers) != len(first.General.Issuers)+1 || !slices.Equal(second.General.Anchors, first.General.Anchors) {
			t.Fatalf("from %d issuers at version %d to %d at version %d", len(first.General.Issuers), first.Version, len(second.General.Issuers), second.Version)
		}
		for _, text := range []string{encode(before.Certificate.Raw), encode(after.Certificate.Raw)} {
			if !slices.ContainsFunc(second.General.Issuers, func(i client.TrustIssuer) bool { return i.PEM == text && i.Name == "default" }) {
				t.Error("one of the issuer's certificates is not trusted, or not as its own")
			}
		}
		if a.desired(m).ETag == told.ETag {
			t.Error("the host is not told")
		}
		under := func(print string) int64 {
			var n int64
			check(t, a.DB.ReadSnapshot(ctx, func(tx *db.Tx) error {
				return tx.QueryRow(ctx, `SELECT COUNT(*) FROM host_placement WHERE issuer = $1`, print).Scan(&n)
			}))
			return n
		}
		if under(now) != 1 || under(old) != 0 {
			t.Errorf("%d placements are under the new certificate, %d under the old one", under(now), under(old))
		}
		a.report(m, client.Observation{Placement: "a", Issuer: old, Serial: "01", Message: "not there yet"})
		if under(now) != 1 || under(old) != 0 {
			t.Errorf("after a late report, %d placements are under the new certificate, %d under the old one", under(now), under(old))
		}
		presenting := func() host.Presenting { return must[host.Presenting](t)(a.Hosts.PresentingFormer(ctx, now, old)) }
		if p := presenting(); p.Placements != 1 || p.Hosts != 1 {
			t.Errorf("the agent names the old certificate, and they say that %+v do", p)
		}
		who := func() []trust.Presented {
			return must[[]trust.Presented](t)(a.Hosts.WhoPresentsFormer(ctx, now, old, 10))
		}
		if all := who(); len(all) != 1 || all[0].Placement != "a" || all[0].Host == "" {
			t.Errorf("placement a names the old certificate, and they say that %+v do", all)
		}
		a.report(m, client.Observation{Placement: "a", Issuer: now, Serial: "01"})
		if p := presenting(); p.Placements != 0 || p.Hosts != 0 {
			t.Errorf("the agent names the new certificate, and they say that %+v present the old one", p)
		}
		if all := who(); len(all) != 0 {
			t.Errorf("the agent names the new certificate, and they say that %+v present the old one", all)
		}
		seen, err := a.Trust.Check(ctx, func(f trust.Finding) bool { t.Errorf("finding: %+v", f); return true })
		if err != nil || seen.Entries < 3 {
			t.Errorf("%+v, %v", seen, err)
		}
		for _, e := range must[[]trust.Ending](t)(a.Trust.Ending(ctx, time.Now().Add(100*365*24*time.Hour), 100)) {
			for _, entry := range a.list() {
				if entry.ID == e.Entry && entry.Fingerprint == old {
					t.Error("the end of a certificate that was renewed is told of")
				}
			}
		}
		a.leavesWithBoth(now, old)
	})
}

// TestRenewedIssuerThatHadEnded: an issuer that is renewed after its end is trusted again, unless it had been dropped.
func TestRenewedIssuerThatHadEnded(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		a.of(0)
		before := must[*ca.Issuer](t)(a.CA.Issuer(t.Context(), "default"))
		a.exec(`UPDATE trust_entry SET pruned_at = 1 WHERE fingerprint = $1`, trust.Fingerprint(before.Certificate))
		after, err := a.CA.RenewIssuer(t.Context(), admin, ca.RenewSpec{Issuer: "default", Validity: 12 * 365 * 24 * time.Hour})
		check(t, err)
		trusts := func(c *x509.Certificate) bool {
			return slices.ContainsFunc(a.of(0).General.Issuers, func(i client.TrustIssuer) bool { return i.PEM == encode(c.Raw) })
		}
		if !trusts(after.Certificate) || trusts(before.Certificate) {
			t.Errorf("the new certificate is trusted: %t; the one that ended: %t", trusts(after.Certificate), trusts(before.Certificate))
		}
		a.exec(`UPDATE trust_entry SET to_version = from_version WHERE fingerprint = $1`, trust.Fingerprint(after.Certificate))
		dropped := after
		after, err = a.CA.RenewIssuer(t.Context(), admin, ca.RenewSpec{Issuer: "default", Validity: 14 * 365 * 24 * time.Hour})
		check(t, err)
		if trusts(after.Certificate) || trusts(dropped.Certificate) {
			t.Error("an issuer that was dropped from the trust came back by its renewal")
		}
	})
}

// leavesWithBoth has a rollout drop the issuer, and renews it meanwhile.
func (a *authority) leavesWithBoth(now, old string) {
	t, ctx := a.t, a.t.Context()
	t.Helper()
	var version int64
	check(t, a.tx(func(tx *db.Tx) (err error) {
		if err = a.Trust.Claim(ctx, tx, pool.Default, "r1"); err == nil {
			version, err = a.Trust.Stage(ctx, tx, pool.Default, nil, []string{now})
		}
		return err
	}))
	for _, i := range a.of(version).General.Issuers {
		if one := trust.Fingerprint(parse(t, i.PEM)); one == now || one == old {
			t.Errorf("certificate %.16s… of the issuer that leaves is trusted still", one)
		}
	}
	_, err := a.CA.RenewIssuer(ctx, admin, ca.RenewSpec{Issuer: "default", Validity: 14 * 365 * 24 * time.Hour})
	refused(t, err, fault.Conflict, "rollout r1 works on the trust")
	if i := must[*ca.Issuer](t)(a.CA.Issuer(ctx, "default")); trust.Fingerprint(i.Certificate) != now {
		t.Error("what was refused was done")
	}
	check(t, a.tx(func(tx *db.Tx) error { return a.Trust.Unclaim(ctx, tx, pool.Default, "r1") }))
}
