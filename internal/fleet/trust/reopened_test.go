package trust_test

import (
	"crypto/x509"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// stored are the certificates of the default pool's present version in the order in which its entries came to be, as any program reads them.
func (a *authority) stored() (all []string) {
	a.t.Helper()
	version := a.of(0).Version
	check(a.t, a.DB.ReadSnapshot(a.t.Context(), func(tx *db.Tx) error {
		rows, err := tx.Query(a.t.Context(), `SELECT certificate FROM trust_entry WHERE pool = 'default' AND purpose = $1 AND pruned_at = 0 AND from_version <= $2
			AND (to_version = 0 OR to_version > $3) ORDER BY id`, client.TrustGeneral, version, version)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var der []byte
			if err := rows.Scan(&der); err != nil {
				return err
			}
			all = append(all, encode(der))
		}
		return rows.Err()
	}))
	return all
}

// TestVersionsAreReadAsTheyWereMade: the newest certificate of a key stands first in a version by the order in which that was made, and what
// is revoked for good leaves it. So programs that know of neither hand out the same.
func TestVersionsAreReadAsTheyWereMade(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		a.of(0)
		root := forge(t, "Foreign", nil)
		entry := a.add(root.pem())[0]
		check(t, a.Trust.AddCRL(ctx, admin, pool.Default, entry.ID, root.list(t, 5, time.Now().Add(-time.Hour), 24*time.Hour), once.Call{}))
		before := must[*ca.Issuer](t)(a.CA.Issuer(ctx, "default"))
		after := must[*ca.Issuer](t)(a.CA.RenewIssuer(ctx, admin, ca.RenewSpec{Issuer: "default", Validity: 12 * 365 * 24 * time.Hour}))
		again := forge(t, "Foreign", nil, func(c *x509.Certificate) { c.PublicKey, c.NotBefore = root.key, time.Now().Add(-time.Minute) })
		a.add(again.pem())
		follows := func(first, second *x509.Certificate) bool {
			all := a.stored()
			n := slices.Index(all, encode(first.Raw))
			return slices.Equal(all, a.pems()) && n >= 0 && slices.Index(all, encode(second.Raw)) == n+1
		}
		if !follows(after.Certificate, before.Certificate) || !follows(again.Certificate, root.Certificate) {
			t.Errorf("%d certificates are read in another order than the %d were made in, or the newest is not the first", len(a.pems()), len(a.stored()))
		}
		if moved := must[client.TrustEntry](t)(a.Trust.Find(ctx, pool.Default, entry.Fingerprint)); moved.CRLNumber != "5" || moved.State != "trusted" {
			t.Errorf("the CRL of what moved: %+v", moved)
		}
		version, old := a.of(0).Version, ca.Ref{Issuer: "default-root", Serial: before.Certificate.SerialNumber}
		must[*ca.Certificate](t)(a.CA.Hold(ctx, admin, old, ""))
		check(t, a.Trust.Prune(ctx, time.Now()))
		if a.of(0).Version != version {
			t.Error("what is on hold left for good")
		}
		must[*ca.Certificate](t)(a.CA.Revoke(ctx, admin, old, ca.RevokeOrder{Reason: crl.Superseded}))
		check(t, a.tx(func(tx *db.Tx) error { return a.Trust.Claim(ctx, tx, pool.Default, "7") }))
		check(t, a.Trust.Prune(ctx, time.Now()))
		if a.of(0).Version != version || slices.Contains(a.pems(), encode(before.Certificate.Raw)) {
			t.Error("a version changed while a rollout works on the pool, or what is revoked is handed out")
		}
		check(t, a.tx(func(tx *db.Tx) error { return a.Trust.Unclaim(ctx, tx, pool.Default, "7") }))
		for range 2 { // another node, too
			check(t, a.Trust.Prune(ctx, time.Now()))
		}
		if a.of(0).Version <= version || slices.Contains(a.stored(), encode(before.Certificate.Raw)) || !slices.Equal(a.stored(), a.pems()) || a.events("trust.prune") != 1 {
			t.Errorf("version %d of %d, %d events", a.of(0).Version, version, a.events("trust.prune"))
		}
		a.verified()
	})
}

// TestVersionsOfTheReleaseBefore: that put an issuer's new certificate behind its former one, and first when it read; so it is handed out still.
func TestVersionsOfTheReleaseBefore(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		a.of(0)
		before := must[*ca.Issuer](t)(a.CA.Issuer(ctx, "default"))
		after := must[*ca.Issuer](t)(a.CA.RenewIssuer(ctx, admin, ca.RenewSpec{Issuer: "default", Validity: 12 * 365 * 24 * time.Hour}))
		check(t, a.tx(func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE trust_entry SET id = (SELECT MAX(id) FROM trust_entry) || 'z' WHERE pool = 'default' AND purpose = $1 AND certificate = $2`,
				client.TrustGeneral, after.Certificate.Raw)
			return err
		}))
		at := func(all []string, c *x509.Certificate) int { return slices.Index(all, encode(c.Raw)) }
		if all := a.stored(); at(all, before.Certificate) > at(all, after.Certificate) {
			t.Fatal("the store has the new one first; the test would prove nothing")
		}
		if all := a.pems(); at(all, after.Certificate) < 0 || at(all, before.Certificate) != at(all, after.Certificate)+1 {
			t.Error("the former certificate is handed out before the new one")
		}
	})
}

// TestRetiredIssuerIsTrustedAgain: an issuer that was retired by a slip issues again and nothing of the trust changes; one that hosts trust
// no longer does so when their trust has it again.
func TestRetiredIssuerIsTrustedAgain(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		version := a.of(0).Version
		is := must[*ca.Issuer](t)(a.CA.Issuer(ctx, "default"))
		reopen := func() (*ca.Issuer, error) {
			return a.CA.RenewIssuer(ctx, admin, ca.RenewSpec{Issuer: "default", Answer: []*x509.Certificate{is.Certificate}})
		}
		must[*ca.Issuer](t)(a.CA.Retire(ctx, admin, "default", once.Call{}))
		if i := must[*ca.Issuer](t)(reopen()); i.State != ca.IssuerActive || !i.Default || a.of(0).Version != version {
			t.Errorf("it is %s; version %d of %d", i.State, a.of(0).Version, version)
		}
		must[*ca.Issuer](t)(a.CA.Retire(ctx, admin, "default", once.Call{}))
		check(t, a.drop(trust.Fingerprint(is.Certificate), "left"))
		_, err := reopen()
		refused(t, err, fault.Conflict, `hosts of pool "default" trust issuer "default" no longer`)
		_, err = a.CA.RenewIssuer(ctx, admin, ca.RenewSpec{Issuer: "default", Validity: 12 * 365 * 24 * time.Hour})
		refused(t, err, fault.Conflict, "no longer")
		if i := must[*ca.Issuer](t)(a.CA.Issuer(ctx, "default")); i.State != ca.IssuerRetired || len(i.Former) != 0 {
			t.Errorf("what was refused was done: %s", i.State)
		}
		a.add(encode(is.Certificate.Raw)) // as the hint says
		after := must[*ca.Issuer](t)(a.CA.RenewIssuer(ctx, admin, ca.RenewSpec{Issuer: "default", Validity: 12 * 365 * 24 * time.Hour}))
		if after.State != ca.IssuerActive || !slices.Contains(a.pems(), encode(after.Certificate.Raw)) {
			t.Errorf("it is %s, and its new certificate is not trusted", after.State)
		}
		// The certificate that it has is revoked, and leaves before the one that it had: the next one is trusted beside that.
		must[*ca.Certificate](t)(a.CA.Revoke(ctx, admin, ca.Ref{Issuer: "default-root", Serial: after.Certificate.SerialNumber}, ca.RevokeOrder{Reason: crl.Superseded}))
		check(t, a.Trust.Prune(ctx, time.Now()))
		third := must[*ca.Issuer](t)(a.CA.RenewIssuer(ctx, admin, ca.RenewSpec{Issuer: "default", Validity: 14 * 365 * 24 * time.Hour}))
		if all := strings.Join(a.pems(), ""); !strings.Contains(all, encode(third.Certificate.Raw)) || strings.Contains(all, encode(after.Certificate.Raw)) {
			t.Error("its third certificate is not trusted, or its second is")
		}
		a.verified()
	})
}
