package doctor

import (
	"testing"
	"time"

	"chancery/internal/authority/revocation"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/finding"
)

// TestNobodySignsCRLs: it is said long before a list is stale, and whose work it is.
func TestNobodySignsCRLs(t *testing.T) {
	ctx, now := t.Context(), time.Now()
	d := pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.Postgres)})
	n := &Node{DB: d}
	look := func() (all []finding.Finding) {
		t.Helper()
		if err := n.signer(ctx, func(f finding.Finding) { all = append(all, f) }); err != nil {
			t.Fatal(err)
		}
		return all
	}
	want(t, look(), finding.Warning, "", "no node signs CRLs") // before any node has started
	turn := func(pin bool, at time.Time) {
		t.Helper()
		if err := d.Tx(ctx, func(tx *db.Tx) error {
			_, err := db.HandOver(ctx, tx, revocation.Lease, "n1", pin, time.Minute, at)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	turn(false, now)
	want(t, look(), finding.OK, "", "node n1 signs CRLs")
	turn(false, now.Add(-4*time.Minute)) // by the holder's clock, which is behind
	want(t, look(), finding.OK, "", "node n1 signs CRLs")
	turn(false, now.Add(-time.Hour))
	want(t, look(), finding.Warning, "", "no node signs CRLs")
	turn(true, now.Add(-time.Hour))
	want(t, look(), finding.Warning, "", "pinned to n1")
}
