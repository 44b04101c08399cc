package revocation

import (
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

// TestAnotherNodeTakesOver: when the holder stops, another node goes on where it was, and a node without issuers' keys
// never takes the lease.
func TestAnotherNodeTakesOver(t *testing.T) {
	url := pkitest.URL(t, db.Postgres)
	a := newOffice(t, pkitest.Open(t, db.Options{URL: url}), ca.CRLMode{Delta: true}, nil)
	b := node(t, pkitest.Open(t, db.Options{URL: url}), "node-b", t.TempDir(), a)
	b.issuer = a.issuer
	_, err := a.keys.Rewrap(t.Context(), "node-b", "test")
	must(t, err)
	stop := a.run()
	first := a.list(Complete, func(*crl.List) bool { return true })
	c := a.issue("a.example")
	stop()
	a.revoke(c, crl.Superseded)
	b.run()
	next := b.list(Complete, has(c.SerialNumber, crl.Superseded))
	must(t, next.CheckSuccessor(first))
	b.list(Delta, func(l *crl.List) bool { return l.Number.Cmp(first.Number) > 0 })
}

// TestHandedOverWhileItWorks: two nodes run, and the work goes from one to the other and back with nothing but the lease's row. While
// it is pinned to a node that stands still, nobody signs.
func TestHandedOverWhileItWorks(t *testing.T) {
	url := pkitest.URL(t, db.Postgres)
	a := newOffice(t, pkitest.Open(t, db.Options{URL: url}), ca.CRLMode{}, nil)
	b := node(t, pkitest.Open(t, db.Options{URL: url}), "node-b", t.TempDir(), a)
	b.issuer = a.issuer
	_, err := a.keys.Rewrap(t.Context(), "node-b", "test")
	must(t, err)
	a.run()
	newest := a.list(Complete, func(*crl.List) bool { return true })
	stopB := b.run()
	epoch := int64(1)
	for i, to := range []string{"node-b", "node-a", "node-b"} {
		var lease db.Lease
		must(t, a.db.Tx(t.Context(), func(tx *db.Tx) (err error) {
			lease, err = db.HandOver(t.Context(), tx, Lease, to, i == 2, leaseTime, time.Now())
			return err
		}))
		if lease.Epoch <= epoch {
			t.Fatalf("to %s: epoch %d, after %d", to, lease.Epoch, epoch)
		}
		epoch = lease.Epoch
		c := a.issue(fmt.Sprintf("h%d.example", i))
		a.revoke(c, crl.Superseded)
		l := a.list(Complete, has(c.SerialNumber, crl.Superseded))
		must(t, l.CheckSuccessor(newest))
		newest = l
		must(t, a.db.Tx(t.Context(), func(tx *db.Tx) (err error) {
			lease, err = db.LeaseOf(t.Context(), tx, Lease)
			return err
		}))
		if lease.Holder != to || lease.Epoch != epoch+1 { // taken up, under an epoch of that process's own
			t.Fatalf("%s was given epoch %d, and the lease is %+v", to, epoch, lease)
		}
	}
	stopB()
	if vacant, err := a.db.Vacant(t.Context(), Lease, "node-a", time.Minute, time.Now().Add(time.Hour)); err != nil || vacant {
		t.Fatalf("it is pinned to node-b, and node-a may have it: %v", err)
	}
	c := a.issue("late.example")
	a.revoke(c, crl.Superseded)
	must(t, a.db.Tx(t.Context(), func(tx *db.Tx) error { return db.Dismiss(t.Context(), tx, "node-b") }))
	must(t, a.list(Complete, has(c.SerialNumber, crl.Superseded)).CheckSuccessor(newest))
}

func TestNodeWithoutIssuersKeysSignsNothing(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		if _, ok, err := o.service.acquire(t.Context()); !ok || err != nil {
			t.Fatalf("a ca node: %v, %v", ok, err)
		}
		must(t, d.Tx(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE key_recipient SET subsystems = $1 WHERE id = 'node-a'`, string(keys.SubsystemOCSP))
			return err
		}))
		if _, ok, err := o.service.acquire(t.Context()); ok || err != nil {
			t.Fatalf("an ocsp node: %v, %v", ok, err)
		}
	})
}

func TestNothingIsSignedByAClockThatWasSetBack(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		lease := o.lease()
		must(t, d.Heartbeat(t.Context(), time.Now()))
		_, err := o.service.build(t.Context(), lease, o.issuer, order{scope: Complete}, time.Now().Add(-time.Hour))
		if !fault.Is(err, fault.Unavailable) {
			t.Fatalf("an hour back: %v", err)
		}
	})
}

// TestAnIssuerThatFailsHoldsUpNobody: one issuer's key cannot be opened; the other's lists are made, and the first one is
// tried again later and later.
func TestAnIssuerThatFailsHoldsUpNobody(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		broken, _, err := o.ca.CreateIssuer(t.Context(), o.by, ca.IssuerSpec{Name: "broken", Subject: "CN=Broken,O=Fleet"})
		must(t, err)
		must(t, d.Tx(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `DELETE FROM key_wrap WHERE key_id = $1`, broken.KeyID)
			return err
		}))
		w := newWorker(o.service, o.lease(), true)
		w.patience = time.Minute
		now := time.Now()
		must(t, w.once(t.Context(), now))
		if f := w.failing[broken.ID]; f.pause != time.Second || len(w.failing) != 1 {
			t.Fatalf("failing %+v", w.failing)
		}
		o.list(Complete, func(*crl.List) bool { return true })
		must(t, w.once(t.Context(), now.Add(500*time.Millisecond)))
		must(t, w.once(t.Context(), now.Add(2*time.Second)))
		if f := w.failing[broken.ID]; f.pause != 2*time.Second {
			t.Fatalf("failing %+v", w.failing)
		}
	})
}

// TestRetiredIssuerSignsUntilItsEnd holds that the lists of an old key go on as long as anything that it issued may be good, which is no longer
// than its own certificate is.
func TestRetiredIssuerSignsUntilItsEnd(t *testing.T) {
	end := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, state := range []ca.IssuerState{ca.IssuerActive, ca.IssuerRetired, ca.IssuerPending} {
		i := &ca.Issuer{KeyID: "k", Certificate: &x509.Certificate{NotAfter: end}, State: state}
		if got := signs(i, end.Add(-time.Second)); got != (state != ca.IssuerPending) {
			t.Errorf("one that is %s, at its last second: %v", state, got)
		}
		if signs(i, end) {
			t.Errorf("one that is %s, at its end", state)
		}
	}
}
