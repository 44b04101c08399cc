package trust_test

import (
	"crypto/x509"
	"testing"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fleet/pool"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// TestPurposeFollowsBelowAnOutsideRoot: consumers of a purpose that trust an outside root above the pool's issuer are given what
// takes its place, though that root is no issuer of ours.
func TestPurposeFollowsBelowAnOutsideRoot(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		outside := forge(t, "Outside root", nil)
		below := forge(t, "Below it", outside)
		must[[]client.TrustEntry](t)(a.Trust.Add(ctx, admin, pool.Default, client.AddTrustRequest{Purpose: "ldaps", PEM: outside.pem()}, once.Call{}))
		must[*ca.Issuer](t)(a.CA.ImportIssuer(ctx, system, ca.ImportSpec{Name: "below", Pool: pool.Default, Certificate: below.Certificate, Key: below.key,
			Chain: []*x509.Certificate{outside.Certificate}}))
		a.of(0)
		check(t, a.tx(func(tx *db.Tx) error { return a.Trust.Claim(ctx, tx, pool.Default, "1") }))
		sets := a.of(a.stage(a.successors(2)))
		if len(sets.Others) != 1 || len(sets.Others[0].Anchors) != 2 {
			t.Errorf("other purposes have %+v", sets.Others)
		}
	})
}
