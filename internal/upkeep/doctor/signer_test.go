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
	look := func(at time.Time) (all []finding.Finding) {
		t.Helper()
		if err := n.signer(ctx, at, func(f finding.Finding) { all = append(all, f) }); err != nil {
			t.Fatal(err)
		}
		return all
	}
	if all := look(now); len(all) > 0 {
		t.Errorf("before any node has started: %v", all)
	}
	turn := func(pin bool) {
		t.Helper()
		if err := d.Tx(ctx, func(tx *db.Tx) error {
			_, err := db.HandOver(ctx, tx, revocation.Lease, "n1", pin, time.Minute, now)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	turn(false)
	want(t, look(now), finding.OK, "", "node n1 signs CRLs")
	want(t, look(now.Add(time.Hour)), finding.Warning, "", "no node signs CRLs")
	turn(true)
	want(t, look(now.Add(time.Hour)), finding.Warning, "", "pinned to n1")
}
