package rollout_test

import (
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// TestRenewedIssuerIsRotated rotates an issuer that was renewed with its key, while hosts report the certificate that it had before:
// they are found, moved and moved back all the same, and what is left in the end is trusted by neither certificate. While the
// rollout works the issuer is not renewed.
func TestRenewedIssuerIsRotated(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(4)
		for _, a := range w.hosts {
			a.converge()
		}
		before := w.issuer("lab")
		after := must[*ca.Issuer](t)(w.CA.RenewIssuer(t.Context(), admin, ca.RenewSpec{Issuer: "lab", Validity: 12 * 365 * 24 * time.Hour}))
		prints := []string{print256(before.Certificate), print256(after.Certificate)}
		for _, a := range w.hosts {
			a.converge()
		}
		w.start(client.StartRolloutRequest{Kind: client.RolloutIssuer, Waves: []string{"host:h02.example.com", "50%"}})
		_, err := w.CA.RenewIssuer(t.Context(), admin, ca.RenewSpec{Issuer: "lab", Validity: 14 * 365 * 24 * time.Hour})
		refused(t, err, fault.Conflict, "works on the trust")
		w.until("the second wave has its certificates", func(r *client.Rollout) bool { return r.Stage == client.StageRekey && w.under("lab-2") >= 2 })
		must[*client.Rollout](t)(w.Rollouts.Undo(t.Context(), admin, w.id, once.Call{}))
		w.untilState(client.RolloutUndone)
		if n := w.under("lab"); n != 4 {
			t.Errorf("undone, %d of 4 are under the issuer", n)
		}
		w.start(client.StartRolloutRequest{Kind: client.RolloutIssuer})
		w.untilState(client.RolloutDone)
		if w.under("lab") != 0 || w.issuer("lab").State != ca.IssuerRetired {
			t.Errorf("done, %d are under the issuer, which is %s", w.under("lab"), w.issuer("lab").State)
		}
		w.trustsNone(prints)
	})
}

// TestCompromisedIssuerWasRenewed: a compromise drops and revokes both certificates of the key.
func TestCompromisedIssuerWasRenewed(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.unsafe = true
		w.addMany(2)
		before := w.issuer("lab")
		after := must[*ca.Issuer](t)(w.CA.RenewIssuer(t.Context(), admin, ca.RenewSpec{Issuer: "lab", Validity: 12 * 365 * 24 * time.Hour}))
		w.start(client.StartRolloutRequest{Kind: client.RolloutIssuer, Compromised: true, Because: "the key was on a laptop"})
		w.untilState(client.RolloutDone)
		for _, i := range []*ca.Issuer{before, after} {
			ref := ca.Ref{Issuer: "lab-root", Serial: i.Certificate.SerialNumber}
			found := must[*ca.Certificate](t)(w.CA.Find(t.Context(), access.System("n1"), ref))
			if found.State != ca.Revoked || found.Revocation.Reason.String() != "cACompromise" {
				t.Errorf("a certificate of the compromised key is %s", found.State)
			}
		}
		w.trustsNone([]string{print256(before.Certificate), print256(after.Certificate)})
	})
}

func (w *world) trustsNone(prints []string) {
	w.t.Helper()
	trusted := w.trusts(0)
	if len(trusted) == 0 {
		w.t.Error("nothing is trusted")
	}
	for _, one := range trusted {
		for _, print := range prints {
			if one == print {
				w.t.Errorf("%.16s… is trusted still", print)
			}
		}
	}
}
