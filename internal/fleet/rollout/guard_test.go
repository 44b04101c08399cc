package rollout_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// TestWhatIsGoneToLasts: nobody is moved to a root that ends before he can be moved again.
func TestWhatIsGoneToLasts(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(1)
		for _, validity := range []string{"30s", "90d", "179d"} {
			_, err := w.Rollouts.Start(t.Context(), admin, client.StartRolloutRequest{Kind: client.RolloutRoot, Pool: "lab", Online: true, Validity: validity}, once.Call{})
			refused(t, err, fault.Invalid, "at the least")
		}
		short := must[*ca.Issuer](t)(first(w.CA.CreateIssuer(t.Context(), admin, ca.IssuerSpec{
			Name: "short", Parent: "lab-root", Subject: "CN=short", Validity: 60 * 24 * time.Hour,
		})))
		_, err := w.Rollouts.Start(t.Context(), admin, client.StartRolloutRequest{Kind: client.RolloutRotateAway, Pool: lab, From: "lab"}, once.Call{})
		refused(t, err, fault.Invalid, "at the least")
		must[*ca.Issuer](t)(w.CA.Retire(t.Context(), admin, short.ID, once.Call{}))
		w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true, Validity: "181d"})
		w.untilState(client.RolloutDone)
		w.safe()
	})
}

// TestOperatorRevokesNoPool: to revoke takes the right to, however it is called.
func TestOperatorRevokesNoPool(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(2)
		in := client.StartRolloutRequest{Kind: client.RolloutReissue, Pool: "lab", Compromised: true, Because: "a disk was lost"}
		_, err := w.Rollouts.Start(t.Context(), operator, in, once.Call{})
		refused(t, err, fault.Denied, "certificate.revoke")
		in.Compromised, in.Because = false, ""
		if _, err := w.Rollouts.Start(t.Context(), operator, in, once.Call{}); err != nil {
			t.Errorf("a re-issue by an operator: %v", err)
		}
	})
}

// TestStolenKeysAreNotWaitedFor: one host that fails does not keep the keys of others good; what is left out keeps what it has.
func TestStolenKeysAreNotWaitedFor(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(4)
		w.start(client.StartRolloutRequest{Kind: client.RolloutReissue, Compromised: true, Except: []string{"h03.example.com"}, Because: "keys were copied"})
		w.turn() // it is told, and fails after that
		w.hosts[0].fails = "ALARM: what is placed is revoked"
		w.until("all but one host have others", func(r *client.Rollout) bool {
			if r.State != client.RolloutRunning {
				t.Fatalf("it is %s: %s", r.State, r.Message)
			}
			return len(r.Holding) == 1 && strings.Contains(r.Holding[0].Message, "ALARM")
		})
		revoked, _, err := w.CA.Search(t.Context(), admin, ca.Filter{Issuer: "lab", State: ca.Revoked}, "", 100)
		check(t, err)
		if len(revoked) != 3 {
			t.Errorf("%d certificates are revoked, not 3 of 4", len(revoked))
		}
		w.hosts[0].fails = ""
		w.untilState(client.RolloutDone)
	})
}

// TestNothingIsIssuedUnderWhatLeaves: once the old trust is being taken away, nobody gets a certificate that will be refused in
// a moment; undone, it is issued under the old again.
func TestNothingIsIssuedUnderWhatLeaves(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(3)
		w.start(client.StartRolloutRequest{Kind: client.RolloutRoot, Online: true, Waves: []string{"canary", "100%"}})
		w.untilStage(client.StageLeave)
		if old := w.issuer("lab"); old.State != ca.IssuerRetired {
			t.Errorf("the issuer that leaves is %s", old.State)
		}
		must[*client.Rollout](t)(w.Rollouts.Undo(t.Context(), admin, w.id, once.Call{}))
		w.untilState(client.RolloutUndone)
		w.safe()
		if old, next := w.issuer("lab"), w.issuer("lab-2"); old.State != ca.IssuerActive || !old.Default || next.State != ca.IssuerRetired {
			t.Errorf("undone, the old issuer is %s (default %t), and the other %s", old.State, old.Default, next.State)
		}
	})
}

// TestLateCertificateHoldsTheEnd: what another node issued under the old issuer, while it had not heard yet that this issues no more,
// holds the end of the last stage, and is named.
func TestLateCertificateHoldsTheEnd(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(2)
		own := must[*ca.Certificate](t)(w.CA.Issue(t.Context(), admin, ca.Order{
			Pool: lab, Profile: "server", CSR: []byte(newCSR(t, "one.example.com")), Names: []string{"dns:one.example.com"},
		}))
		w.start(client.StartRolloutRequest{Kind: client.RolloutIssuer, Waves: []string{"host:h00.example.com", "100%"}})
		w.untilStage(client.StageRekey)
		next, _ := w.rekeyed(admin, own, "one.example.com")
		w.untilStage(client.StageLeave)
		replaced := func(by int64) {
			check(t, d.Tx(t.Context(), func(tx *db.Tx) error {
				_, err := tx.Exec(t.Context(), `UPDATE certificate SET replaced_by = $1 WHERE id = $2`, by, own.ID)
				return err
			}))
		}
		replaced(0)
		for range 8 {
			w.turn()
		}
		serial := cert.FormatSerial(own.Serial)
		if r := w.show(); r.State != client.RolloutRunning || !strings.Contains(fmt.Sprint(r.Holding), serial) {
			t.Errorf("with %s under what leaves, it is %s, and %v hold it", serial, r.State, r.Holding)
		}
		replaced(next.ID)
		w.untilState(client.RolloutDone)
	})
}

func first[A, B any](a A, _ B, err error) (A, error) { return a, err }

// TestNodeMaySeeOthers: where the node sees other machines at the hosts' addresses, an administrator may have it look no more.
func TestNodeMaySeeOthers(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(1)
		w.start(client.StartRolloutRequest{Kind: client.RolloutReissue, Waves: []string{"100%"}})
		for _, in := range []client.ResumeRolloutRequest{{NoNodeProbe: true}, {Because: "so"}} {
			_, err := w.Rollouts.Resume(t.Context(), admin, w.id, in, once.Call{})
			refused(t, err, fault.Invalid, "")
		}
		must[*client.Rollout](t)(w.Rollouts.Resume(t.Context(), admin, w.id, client.ResumeRolloutRequest{NoNodeProbe: true, Because: "the hosts are behind NAT"}, once.Call{}))
		w.untilState(client.RolloutDone)
		if w.events("rollout.except") != 1 {
			t.Errorf("%d events", w.events("rollout.except"))
		}
	})
}
