package db_test

import (
	"testing"
	"time"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestHandOverIsAnswered: only what the holder itself does after a hand-over answers it, and each hand-over asks anew; undone, the lease is
// again as before the first that was not answered.
func TestHandOverIsAnswered(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx, ttl := t.Context(), time.Minute
		tx := func(fn func(tx *db.Tx) error) {
			t.Helper()
			if err := d.Tx(ctx, fn); err != nil {
				t.Fatal(err)
			}
		}
		give := func(to string, pin bool) (l db.Lease) {
			t.Helper()
			tx(func(tx *db.Tx) (err error) {
				l, err = db.HandOver(ctx, tx, "crl", to, pin, ttl, time.Now())
				return err
			})
			return l
		}
		stands := func(what string, want db.Lease, unanswered bool) db.Lease {
			t.Helper()
			var l db.Lease
			tx(func(tx *db.Tx) (err error) { l, err = db.LeaseOf(ctx, tx, "crl"); return err })
			got := db.Lease{Holder: l.Holder, Epoch: l.Epoch, Pinned: l.Pinned, GivenFrom: l.GivenFrom, GivenPinned: l.GivenPinned}
			if got != want || l.Unanswered() != unanswered {
				t.Errorf("%s: %+v, unanswered %v", what, l, l.Unanswered())
			}
			for _, who := range []string{"a", "b", "c"} {
				if handed, err := d.Handed(ctx, "crl", who); err != nil || handed != (unanswered && who == l.Holder) {
					t.Errorf("%s: handed to %s: %v, %v", what, who, handed, err)
				}
			}
			return l
		}
		take := func(who string) db.Lease {
			t.Helper()
			l, ok, err := d.Acquire(ctx, "crl", who, ttl)
			if err != nil || !ok {
				t.Fatalf("%s takes it: %v, %v", who, ok, err)
			}
			return l
		}
		if handed, err := d.Handed(ctx, "crl", "a"); err != nil || handed {
			t.Errorf("a lease that nobody had: %v, %v", handed, err)
		}
		give("a", true)
		stands("the first", db.Lease{Holder: "a", Epoch: 1, Pinned: "a"}, true)
		had := take("a")
		stands("taken", db.Lease{Holder: "a", Epoch: 2, Pinned: "a"}, false)
		give("b", false)
		give("b", true)
		give("c", false)
		l := stands("given on twice, and answered by nobody", db.Lease{Holder: "c", Epoch: 4, GivenFrom: "a", GivenPinned: "a"}, true)
		if _, err := d.Renew(ctx, had, ttl); err == nil {
			t.Error("who had it renews it")
		}
		tx(func(tx *db.Tx) error { return db.GiveBack(ctx, tx, l, l.GivenFrom, l.GivenPinned, ttl, time.Now()) })
		stands("given back", db.Lease{Holder: "a", Epoch: 5, Pinned: "a", GivenFrom: "a", GivenPinned: "a"}, true)
		had = take("a")
		stands("taken again", db.Lease{Holder: "a", Epoch: 6, Pinned: "a", GivenFrom: "a", GivenPinned: "a"}, false)

		// To the one who has it: his next word answers, under the same epoch.
		give("a", false)
		l = stands("without its pin", db.Lease{Holder: "a", Epoch: 6, GivenFrom: "a", GivenPinned: "a"}, true)
		tx(func(tx *db.Tx) error { return db.GiveBack(ctx, tx, l, "a", "a", ttl, time.Now()) })
		stands("with it again", db.Lease{Holder: "a", Epoch: 6, Pinned: "a", GivenFrom: "a", GivenPinned: "a"}, false)
		give("a", false)
		if _, err := d.Renew(ctx, had, ttl); err != nil {
			t.Fatal(err)
		}
		stands("renewed", db.Lease{Holder: "a", Epoch: 6, GivenFrom: "a", GivenPinned: "a"}, false)

		// To nobody: whoever comes first may have it, and who had it may not go on.
		l = give("b", true)
		tx(func(tx *db.Tx) error { return db.GiveBack(ctx, tx, l, "", "", ttl, time.Now()) })
		stands("nobody's", db.Lease{Holder: "b", Epoch: 8, GivenFrom: "b"}, false)
		if err := d.Tx(ctx, func(tx *db.Tx) error { return l.Check(ctx, tx) }); err == nil {
			t.Error("it was taken back, and its holder writes")
		}
		take("c")
	})
}
