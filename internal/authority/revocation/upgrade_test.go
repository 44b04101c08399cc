package revocation

import (
	"slices"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestReasonThatBecameKeyCompromiseIsListedOnce upgrades a revocation before and after its entry was packed.
func TestReasonThatBecameKeyCompromiseIsListedOnce(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		lease := o.lease()
		packed, loose := o.issue("packed.example"), o.issue("loose.example")
		o.revoke(packed, crl.Superseded)
		o.revokeMany(packFrom, time.Now().AddDate(0, 0, 90))
		must(t, o.service.pack(t.Context(), lease, o.issuer, 0))
		before := o.make(lease, Complete, true)
		was, ok := before.Lookup(packed.SerialNumber)
		if rows, _ := o.segments(); rows != 1 || !ok || was.Reason != crl.Superseded {
			t.Fatalf("%d segments; %+v", rows, was)
		}
		o.revoke(packed, crl.KeyCompromise) // loose.example uses the same key, so it is the next
		o.revoke(loose, crl.Superseded)
		o.revoke(loose, crl.KeyCompromise)
		look := func(when string, entries int) {
			t.Helper()
			list := o.make(lease, Complete, true)
			now, ok := list.Lookup(packed.SerialNumber)
			if !ok || now.Reason != crl.KeyCompromise || !now.RevokedAt.Equal(was.RevokedAt) {
				t.Errorf("%s: %+v, was %+v", when, now, was)
			}
			if all := serials(list); list.Count != entries || len(slices.Compact(all)) != entries {
				t.Errorf("%s: %d entries, want %d, each once", when, list.Count, entries)
			}
		}
		look("loose", packFrom+2)
		o.revokeMany(packFrom, time.Now().AddDate(0, 0, 90))
		must(t, o.service.pack(t.Context(), lease, o.issuer, 0))
		if rows, _ := o.segments(); rows != 2 {
			t.Fatalf("%d segments", rows)
		}
		look("packed too", 2*packFrom+2)
	})
}
