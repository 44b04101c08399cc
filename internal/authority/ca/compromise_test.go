package ca

import (
	"context"
	"slices"
	"strings"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestReasonBecomesKeyCompromiseWhenThatIsLearntLater revokes for other reasons first.
func TestReasonBecomesKeyCompromiseWhenThatIsLearntLater(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), context.Background()
		revoke := func(c *Certificate, reason crl.Reason) (*Certificate, error) {
			return a.Revoke(ctx, officer(), Ref{Serial: c.Serial}, RevokeOrder{Reason: reason})
		}
		for _, first := range []crl.Reason{crl.Unspecified, crl.Superseded, crl.CessationOfOperation} {
			key := newKey(t)
			old := must[*Certificate](t)(a.Issue(ctx, admin(), Order{Profile: "server", CSR: csr(t, key, "dns:a.example.com")}))
			twin := must[*Certificate](t)(a.Renew(ctx, admin(), Ref{Serial: old.Serial}, RenewOrder{}))
			was := must[*Certificate](t)(revoke(old, first))
			_, err := revoke(old, crl.AffiliationChanged)
			refusedAs(t, err, fault.Conflict)
			_, err = revoke(old, crl.CertificateHold)
			refusedAs(t, err, fault.Conflict)

			changes := a.count(`SELECT change FROM revocation WHERE certificate = $1`, old.ID)
			keyed := RevokeOrder{IdempotencyKey: old.Serial.String(), Reason: crl.KeyCompromise}
			now := must[*Certificate](t)(a.Revoke(ctx, officer(), Ref{Serial: old.Serial}, keyed))
			if again := must[*Certificate](t)(a.Revoke(ctx, officer(), Ref{Serial: old.Serial}, keyed)); !slices.Equal(again.Warnings, now.Warnings) {
				t.Errorf("after %s the warnings were %q, and of the repeated call %q", first, now.Warnings, again.Warnings)
			}
			if now.Revocation.Reason != crl.KeyCompromise || !now.Revocation.RevokedAt.Equal(was.Revocation.RevokedAt) {
				t.Errorf("after %s: %+v, before %+v", first, now.Revocation, was.Revocation)
			}
			if text := strings.Join(now.Warnings, "\n"); len(now.Warnings) != 1 || !strings.Contains(text, cert.FormatSerial(twin.Serial)) {
				t.Errorf("after %s the warnings are %q, and the key's other certificate is %s", first, text, cert.FormatSerial(twin.Serial))
			}
			if n := a.count(`SELECT change FROM revocation WHERE certificate = $1`, old.ID); n <= changes {
				t.Errorf("after %s no list would show it: change %d after %d", first, n, changes)
			}
			_, err = a.Issue(ctx, admin(), Order{Profile: "server", CSR: csr(t, key, "dns:b.example.com")})
			refusedAs(t, err, fault.Denied)
			for _, reason := range []crl.Reason{crl.KeyCompromise, first} {
				_, err = revoke(old, reason)
				refusedAs(t, err, fault.Conflict)
			}
		}
		if n := a.count(`SELECT COUNT(*) FROM audit_event WHERE action = 'certificate.revoke'`); n != 6 {
			t.Errorf("%d events of revocation, want 6", n)
		}
		if findings, _, err := a.Check(ctx, 1); err != nil || len(findings) > 0 {
			t.Errorf("check: %v, %v", findings, err)
		}
	})
}

// TestOfficerCannotEndAnIssuer revokes and holds the certificate of an issuer, which ends all that is under it.
func TestOfficerCannotEndAnIssuer(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), context.Background()
		ref := Ref{Issuer: "root", Serial: a.issuer.Certificate.SerialNumber}
		_, err := a.Revoke(ctx, officer(), ref, RevokeOrder{Reason: crl.Superseded})
		refusedAs(t, err, fault.Denied)
		_, err = a.Hold(ctx, officer(), ref, "")
		refusedAs(t, err, fault.Denied)
		must[*Certificate](t)(a.Hold(ctx, admin(), ref, ""))
		_, err = a.Release(ctx, officer(), ref, "")
		refusedAs(t, err, fault.Denied)
		must[*Certificate](t)(a.Release(ctx, admin(), ref, ""))
		if i := must[*Issuer](t)(a.Issuer(ctx, "issuing")); i.State != IssuerActive {
			t.Errorf("the issuer is %s", i.State)
		}
		must[*Certificate](t)(a.Revoke(ctx, admin(), ref, RevokeOrder{Reason: crl.Superseded}))
	})
}
