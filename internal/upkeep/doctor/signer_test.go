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
	look := func(patience time.Duration) (all []finding.Finding) {
		t.Helper()
		if err := n.signs(ctx, patience, func(f finding.Finding) { all = append(all, f) }); err != nil {
			t.Fatal(err)
		}
		if len(all) != 1 {
			t.Errorf("%d findings: %v", len(all), all)
		}
		return all
	}
	const short, long = time.Millisecond, 2 * time.Minute
	want(t, look(short), finding.Warning, "", "no node signs CRLs") // before any node has started
	write := func(fn func(tx *db.Tx) error) {
		t.Helper()
		if err := d.Tx(ctx, fn); err != nil {
			t.Fatal(err)
		}
	}
	turn := func(pin bool, at time.Time) (l db.Lease) {
		t.Helper()
		write(func(tx *db.Tx) (err error) {
			l, err = db.HandOver(ctx, tx, revocation.Lease, "n1", pin, time.Minute, at)
			return err
		})
		return l
	}
	turn(false, time.Now())
	want(t, look(short), finding.OK, "", "node n1 signs CRLs")

	turn(false, now.Add(-4*time.Minute)) // as after a crash
	want(t, look(short), finding.Warning, "", "no node signs CRLs")
	end, ended := make(chan struct{}), make(chan error)
	go func() { // by the holder's clock, which is behind
		var err error
		for at := now.Add(-4 * time.Minute); err == nil; at = at.Add(time.Second) {
			select {
			case <-end:
				ended <- nil
				return
			case <-time.After(10 * time.Millisecond):
			}
			err = d.Tx(ctx, func(tx *db.Tx) error {
				_, err := tx.Exec(ctx, `UPDATE leases SET expires_at = $1`, db.Micros(at))
				return err
			})
		}
		ended <- err
	}()
	want(t, look(long), finding.OK, "", "node n1 signs CRLs")
	close(end)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}

	// One that was let go of is taken within seconds, and not forever said to be.
	l := turn(false, time.Now())
	if err := d.Release(ctx, l); err != nil {
		t.Fatal(err)
	}
	want(t, look(short), finding.OK, "", "node n1 let go of")
	turn(false, time.Now())
	write(func(tx *db.Tx) error { return db.Dismiss(ctx, tx, "n1") })
	want(t, look(short), finding.OK, "", "node n1 let go of")
	ago := func(micros int64) {
		t.Helper()
		write(func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE leases SET expires_at = $1`, micros)
			return err
		})
	}
	ago(-db.Micros(now.Add(-takenWithin)))
	want(t, look(long), finding.Warning, "", "no node signs CRLs")
	ago(0) // by a node of a release that does not note it
	want(t, look(long), finding.Warning, "", "no node signs CRLs")

	turn(false, now.Add(-time.Hour))
	want(t, look(long), finding.Warning, "", "no node signs CRLs")
	turn(true, now.Add(-time.Hour))
	want(t, look(long), finding.Warning, "", "pinned to n1")
}
