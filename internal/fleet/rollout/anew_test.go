package rollout_test

import (
	"fmt"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// TestIssuerIsRenewedWhileARolloutIsPlanned: an issuer that is renewed after the plan was made and before the pool's trust was claimed is
// planned with its new certificate. Hosts that join meanwhile find back when the rollout is undone, and what left is trusted by neither
// certificate when it is done.
func TestIssuerIsRenewedWhileARolloutIsPlanned(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(3)
		before := w.issuer("lab")
		w.startAfterRenewal(client.StartRolloutRequest{Kind: client.RolloutIssuer, Waves: []string{"host:h02.example.com", "50%"}}, "lab", 12)
		w.comeAndUndo()
		if n := w.under("lab"); n != 5 {
			t.Errorf("undone, %d of 5 are under the issuer", n)
		}
		again := w.issuer("lab")
		w.startAfterRenewal(client.StartRolloutRequest{Kind: client.RolloutIssuer}, "lab", 14)
		w.untilState(client.RolloutDone)
		if w.under("lab") != 0 {
			t.Errorf("done, %d are under the issuer", w.under("lab"))
		}
		w.trustsNone([]string{print256(before.Certificate), print256(again.Certificate), print256(w.issuer("lab").Certificate)})
	})
}

// TestWaitingForAFormerCertificate: a rollout that waits for a certificate that its issuer had before, as one does that an earlier release
// planned, is put right as it goes, in both directions.
func TestWaitingForAFormerCertificate(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		old := w.split()
		before := w.issuer("lab-2")
		after := must[*ca.Issuer](t)(w.CA.RenewIssuer(t.Context(), admin, ca.RenewSpec{Issuer: "lab-2", Validity: years(12)}))
		for _, a := range w.hosts {
			a.converge()
		}
		w.start(client.StartRolloutRequest{Kind: client.RolloutIssuer, Waves: []string{"host:" + old[0].name, "50%"}})
		w.untilStage(client.StageTrust)
		w.planOf(after, before)
		w.comeAndUndo()
		if n := w.under("lab") + w.under("lab-2"); n != 8 {
			t.Errorf("undone, %d of 8 are under an issuer that was there before", n)
		}
		w.start(client.StartRolloutRequest{Kind: client.RolloutRotateAway, From: "lab"})
		w.untilStage(client.StageRekey)
		w.planOf(after, before)
		w.untilState(client.RolloutDone)
		if n := w.under("lab-2"); n != 8 {
			t.Errorf("%d of 8 are under the issuer that they were to go to", n)
		}
	})
}

// planOf has the rollout be planned with another certificate, as an earlier release does it, which did not say whose it is.
func (w *world) planOf(now, before *ca.Issuer) {
	w.t.Helper()
	check(w.t, w.DB.Tx(w.t.Context(), func(tx *db.Tx) error {
		n, err := tx.Exec(w.t.Context(), `UPDATE rollout SET plan = REPLACE(REPLACE(plan, $1, $2), '"issuers":', '"others":') WHERE id = $3 AND plan LIKE $4`,
			print256(now.Certificate), print256(before.Certificate), w.id, "%"+print256(now.Certificate)+"%")
		if err == nil && n != 1 {
			err = fmt.Errorf("%d plans name the certificate", n)
		}
		return err
	}))
}

// startAfterRenewal starts a rollout when an issuer is renewed for n years after the plan is made.
func (w *world) startAfterRenewal(in client.StartRolloutRequest, issuer string, n int) {
	w.t.Helper()
	in.Pool = lab
	id, err := w.Rollouts.StartAfter(w.t.Context(), admin, in, func() {
		must[*ca.Issuer](w.t)(w.CA.RenewIssuer(w.t.Context(), admin, ca.RenewSpec{Issuer: issuer, Validity: years(n)}))
	})
	check(w.t, err)
	w.id = id
}

func years(n int) time.Duration { return time.Duration(n) * 365 * 24 * time.Hour }

// comeAndUndo has two hosts join while the second wave gets its certificates, and undoes the rollout.
func (w *world) comeAndUndo() {
	w.t.Helper()
	w.until("the second wave", func(r *client.Rollout) bool { return r.Stage == client.StageRekey && w.under(r.Plan.New) >= 1 })
	for _, name := range []string{"h77.example.com", "h78.example.com"} {
		w.add(client.AddHostRequest{Name: name}).converge()
	}
	must[*client.Rollout](w.t)(w.Rollouts.Undo(w.t.Context(), admin, w.id, once.Call{}))
	w.untilState(client.RolloutUndone)
}
