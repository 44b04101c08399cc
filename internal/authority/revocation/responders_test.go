package revocation

import (
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestEveryResponderThatMaySign is told of, not the newest alone: the one before it signs until all nodes have the new one. Who lost the
// lease makes none, and leaves no certificate of one behind.
func TestEveryResponderThatMaySign(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		d := pkitest.Open(t, db.Options{URL: url})
		o := newOffice(t, d, ca.CRLMode{}, nil)
		lease := o.lease()
		for range 2 {
			must(t, o.service.makeResponder(t.Context(), lease, o.issuer, time.Now()))
		}
		all, err := o.service.Responders(t.Context(), time.Now())
		must(t, err)
		if len(all) != 2 || all[0].KeyID == all[1].KeyID || all[0].Issuer != all[1].Issuer {
			t.Errorf("the responders in force: %+v", all)
		}
		certificates := func() (n int) {
			must(t, d.Read(t.Context(), func(tx *db.Tx) error { return tx.QueryRow(t.Context(), "SELECT COUNT(*) FROM certificate").Scan(&n) }))
			return n
		}
		before := certificates()
		must(t, d.Release(t.Context(), lease))
		if _, ok, err := d.Acquire(t.Context(), Lease, "node-b", time.Minute); err != nil || !ok {
			t.Fatal(ok, err)
		}
		if err := o.service.makeResponder(t.Context(), lease, o.issuer, time.Now()); err == nil {
			t.Error("who lost the lease made a responder")
		}
		if after := certificates(); after != before {
			t.Errorf("%d certificates without a key were left", after-before)
		}
	})
}
