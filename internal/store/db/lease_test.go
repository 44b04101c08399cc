package db_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

func TestLeaseChangesHands(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx, now, ttl := t.Context(), time.Now(), time.Minute
		first, ok, err := db.AcquireAt(d, ctx, "crl", "a", ttl, now)
		if err != nil || !ok || first.Epoch != 1 {
			t.Fatalf("first: %+v, %v, %v", first, ok, err)
		}
		if l, ok, err := db.AcquireAt(d, ctx, "crl", "b", ttl, now.Add(ttl/2)); err != nil || ok || l.Holder != "a" {
			t.Errorf("b while a holds: %+v, %v, %v", l, ok, err)
		}
		if l, ok, err := db.AcquireAt(d, ctx, "crl", "a", ttl, now.Add(ttl/2)); err != nil || !ok || l.Epoch != 1 {
			t.Errorf("a again: %+v, %v, %v", l, ok, err)
		}
		check := func(l db.Lease) error { return d.Tx(ctx, func(tx *db.Tx) error { return l.Check(ctx, tx) }) }
		if err := check(first); err != nil {
			t.Errorf("the holder's check: %v", err)
		}
		second, ok, err := db.AcquireAt(d, ctx, "crl", "b", ttl, now.Add(2*ttl))
		if err != nil || !ok || second.Epoch != 2 {
			t.Fatalf("b after it expired: %+v, %v, %v", second, ok, err)
		}
		if err := check(first); !fault.Is(err, fault.Conflict) {
			t.Errorf("the old holder's check: %v", err)
		}
		if _, err := d.Renew(ctx, first, ttl); !fault.Is(err, fault.Conflict) {
			t.Errorf("the old holder renews: %v", err)
		}
		if err := d.Release(ctx, first); err != nil {
			t.Errorf("the old holder releases: %v", err)
		}
		if err := check(second); err != nil {
			t.Errorf("the new holder's check: %v", err)
		}
		renewed, err := d.Renew(ctx, second, ttl)
		if err != nil || renewed.Epoch != 2 {
			t.Errorf("renewed: %+v, %v", renewed, err)
		}
		if err := d.Release(ctx, second); err != nil {
			t.Fatal(err)
		}
		third, ok, err := db.AcquireAt(d, ctx, "crl", "a", ttl, now)
		if err != nil || !ok || third.Epoch != 3 {
			t.Errorf("after the release: %+v, %v, %v", third, ok, err)
		}
		if _, _, err := d.Acquire(ctx, "crl", "", ttl); !fault.Is(err, fault.Invalid) {
			t.Errorf("nobody's lease: %v", err)
		}
	})
}

func TestLeaseIsHandedOver(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx, now, ttl := t.Context(), time.Now(), time.Minute
		give := func(to string, pin bool) (l db.Lease) {
			t.Helper()
			if err := d.Tx(ctx, func(tx *db.Tx) (err error) {
				l, err = db.HandOver(ctx, tx, "crl", to, pin, ttl, now)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return l
		}
		take := func(who string, at time.Time, want bool) db.Lease {
			t.Helper()
			if vacant, err := d.Vacant(ctx, "crl", who, ttl, at); err != nil || vacant != want {
				t.Errorf("vacant for %s: %v, %v", who, vacant, err)
			}
			l, ok, err := db.AcquireAt(d, ctx, "crl", who, ttl, at)
			if err != nil || ok != want {
				t.Errorf("%s: %+v, %v, %v", who, l, ok, err)
			}
			return l
		}
		check := func(l db.Lease) error { return d.Tx(ctx, func(tx *db.Tx) error { return l.Check(ctx, tx) }) }
		if l := give("b", false); l.Epoch != 1 {
			t.Errorf("of a lease that nobody had: %+v", l)
		}
		was := take("b", now, true)
		l := give("a", false)
		if l.Epoch != 3 || check(was) == nil || check(l) != nil {
			t.Errorf("handed over: %+v; the old holder's check: %v; the new one's: %v", l, check(was), check(l))
		}
		if have, held, err := d.Held(ctx, was); err != nil || held || have.Holder != "a" {
			t.Errorf("the old holder: %v, %+v, %v", held, have, err)
		}
		take("b", now, false)
		if again := give("a", false); again.Epoch != 3 {
			t.Errorf("to the one who has it: %+v", again)
		}
		take("b", now.Add(2*ttl), true) // not pinned: who comes first
		if l := give("a", true); l.Epoch != 5 || l.Pinned != "a" {
			t.Errorf("pinned: %+v", l)
		}
		take("b", now.Add(2*ttl), false)
		if l := take("a", now.Add(2*ttl), true); l.Pinned != "a" || l.Epoch != 6 {
			t.Errorf("taken up: %+v", l)
		}
		all, err := d.Leases(ctx)
		if err != nil || len(all) != 1 || all[0].Pinned != "a" {
			t.Errorf("listed: %+v, %v", all, err)
		}
		if err := d.Tx(ctx, func(tx *db.Tx) error { return db.Dismiss(ctx, tx, "a") }); err != nil {
			t.Fatal(err)
		}
		if l := take("b", now, true); l.Epoch != 8 || l.Pinned != "" {
			t.Errorf("after a was dismissed: %+v", l)
		}
	})
}

// TestReleasedLeaseStaysReleased: what its holder still does prolongs it no more, so nobody waits for it, and when that was is kept.
func TestReleasedLeaseStaysReleased(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx, ttl := t.Context(), time.Minute
		for i, end := range []func(db.Lease) error{
			func(l db.Lease) error { return d.Release(ctx, l) },
			func(db.Lease) error {
				return d.Tx(ctx, func(tx *db.Tx) error { return db.Dismiss(ctx, tx, "a") })
			},
		} {
			l, ok, err := d.Acquire(ctx, "crl", "a", ttl)
			if err != nil || !ok || !l.Released.IsZero() {
				t.Fatalf("%d: a: %+v, %v, %v", i, l, ok, err)
			}
			var before, after time.Time
			if err := d.Tx(ctx, func(tx *db.Tx) (err error) { before, err = tx.Clock(ctx); return err }); err != nil {
				t.Fatal(err)
			}
			if err := end(l); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Renew(ctx, l, ttl); !fault.Is(err, fault.Conflict) {
				t.Errorf("%d: who has let go of it renews: %v", i, err)
			}
			if err := d.Tx(ctx, func(tx *db.Tx) (err error) { after, err = tx.Clock(ctx); return err }); err != nil {
				t.Fatal(err)
			}
			all, err := d.Leases(ctx)
			if err != nil || len(all) != 1 || all[0].Expires.After(time.Unix(0, 0)) || all[0].Released.Before(before) || all[0].Released.After(after) {
				t.Fatalf("%d: let go of between %v and %v: %+v, %v", i, before, after, all, err)
			}
			if err := d.Release(ctx, l); err != nil {
				t.Fatal(err)
			}
			if again, err := d.Leases(ctx); err != nil || !again[0].Released.Equal(all[0].Released) {
				t.Errorf("%d: released twice: %+v, %v", i, again, err)
			}
			next, ok, err := d.Acquire(ctx, "crl", "b", ttl)
			if err != nil || !ok {
				t.Fatalf("%d: b: %+v, %v, %v", i, next, ok, err)
			}
			if have, err := d.Leases(ctx); err != nil || have[0].Holder != "b" || !have[0].Released.IsZero() {
				t.Errorf("%d: taken: %+v, %v", i, have, err)
			}
			if err := d.Release(ctx, next); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestTwoProcessesOfOneName has two processes hold a lease under one name, as after a machine was started twice from one snapshot: they
// never share an epoch.
func TestTwoProcessesOfOneName(t *testing.T) {
	url, ctx := pkitest.URL(t, db.Postgres), t.Context()
	one, two := pkitest.Open(t, db.Options{URL: url}), pkitest.Open(t, db.Options{URL: url})
	take := func(d *db.DB) db.Lease {
		t.Helper()
		l, ok, err := d.Acquire(ctx, "crl", "n1", time.Minute)
		if err != nil || !ok {
			t.Fatal(l, ok, err)
		}
		return l
	}
	check := func(d *db.DB, l db.Lease) error { return d.Tx(ctx, func(tx *db.Tx) error { return l.Check(ctx, tx) }) }
	first := take(one)
	if again := take(one); again.Epoch != first.Epoch {
		t.Errorf("one process began %d after %d", again.Epoch, first.Epoch)
	}
	second := take(two)
	if second.Epoch <= first.Epoch || check(one, first) == nil || check(two, second) != nil {
		t.Errorf("the second has %+v, of %+v; %v, %v", second, first, check(one, first), check(two, second))
	}
	if _, err := one.Renew(ctx, first, time.Minute); !fault.Is(err, fault.Conflict) {
		t.Errorf("the first renews: %v", err)
	}
	if third := take(one); third.Epoch <= second.Epoch || check(two, second) == nil {
		t.Errorf("the first took %+v, of %+v", third, second)
	}
}

// TestClocksApart has a node reach for a lease whose clock is ahead of its holder's by more than the lease lasts.
func TestClocksApart(t *testing.T) {
	url, ctx, ttl := pkitest.URL(t, db.Postgres), t.Context(), 15*time.Second
	one, two := pkitest.Open(t, db.Options{URL: url}), pkitest.Open(t, db.Options{URL: url})
	ahead := 20 * time.Second
	now := time.Now()
	for i := range 10 { // the holder renews, and the other looks
		at := now.Add(time.Duration(i) * ttl / 3)
		if _, ok, err := db.AcquireAt(one, ctx, "crl", "a", ttl, at); err != nil || !ok {
			t.Fatal(ok, err)
		}
		if vacant, err := two.Vacant(ctx, "crl", "b", ttl, at.Add(ahead)); err != nil || vacant {
			t.Fatalf("turn %d: it is free, %v", i, err)
		}
		if l, ok, err := db.AcquireAt(two, ctx, "crl", "b", ttl, at.Add(ahead)); err != nil || ok {
			t.Fatalf("turn %d: it took %+v, %v", i, l, err)
		}
	}
	if l, ok, err := db.AcquireAt(two, ctx, "crl", "b", ttl, now.Add(3*ttl+ahead+ttl)); err != nil || !ok {
		t.Fatalf("the holder is silent: %+v, %v", l, err)
	}
}

// TestHolderAheadDies has a node die that holds a lease and whose clock is ahead: another follows when it has seen the lease unrenewed for as
// long as it lasts, and not when it ends by the clock of the dead. One that renews keeps it, and a node whose clock jumps takes nothing.
func TestHolderAheadDies(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		ctx, ttl, now := t.Context(), 15*time.Second, time.Now()
		one := pkitest.Open(t, db.Options{URL: url})
		two := one // of SQLite there is one process; its names are told apart by what each began
		if one.Dialect() == db.Postgres {
			two = pkitest.Open(t, db.Options{URL: url})
		}
		ahead := 4 * time.Minute
		var first db.Lease
		for i := range 4 { // one renews, two looks
			at := now.Add(time.Duration(i) * ttl / 3)
			var ok bool
			var err error
			if first, ok, err = db.AcquireAt(one, ctx, "crl", "a", ttl, at.Add(ahead)); err != nil || !ok {
				t.Fatal(ok, err)
			}
			if two == one {
				continue // it would remember the clock of the other as its own
			}
			for _, by := range []time.Duration{0, -time.Minute} { // a clock that is right, and then is set back
				if l, ok, err := db.AcquireAt(two, ctx, "crl", "b", ttl, at.Add(by)); err != nil || ok {
					t.Fatalf("turn %d, a clock %v ahead: it took %+v, %v", i, by, l, err)
				}
			}
		}
		died := now.Add(ttl)
		if two == one {
			died = died.Add(ahead)
		} else if l, ok, err := db.AcquireAt(two, ctx, "crl", "b", ttl, died.Add(ttl/2)); err != nil || ok {
			t.Fatalf("half its time after the holder died: %+v, %v", l, err)
		}
		after := died.Add(ttl + 2*time.Second)
		if vacant, err := two.Vacant(ctx, "crl", "b", ttl, after); err != nil || !vacant {
			t.Errorf("the holder is dead: vacant %v, %v", vacant, err)
		}
		second, ok, err := db.AcquireAt(two, ctx, "crl", "b", ttl, after)
		if err != nil || !ok || second.Epoch != first.Epoch+1 {
			t.Fatalf("the holder is dead: %+v, %v, %v", second, ok, err)
		}
		if err := one.Tx(ctx, func(tx *db.Tx) error { return first.Check(ctx, tx) }); !fault.Is(err, fault.Conflict) {
			t.Errorf("the one that was held to be dead writes: %v", err)
		}
	})
}

// TestClockJumpsOverALease has a node whose clock jumps an hour ahead look at a lease that another renews.
func TestClockJumpsOverALease(t *testing.T) {
	url, ctx, ttl, now := pkitest.URL(t, db.Postgres), t.Context(), 15*time.Second, time.Now()
	one, two := pkitest.Open(t, db.Options{URL: url}), pkitest.Open(t, db.Options{URL: url})
	for i := range 3 {
		at := now.Add(time.Duration(i) * ttl / 3)
		if _, ok, err := db.AcquireAt(one, ctx, "crl", "a", ttl, at); err != nil || !ok {
			t.Fatal(ok, err)
		}
		if _, ok, err := db.AcquireAt(two, ctx, "crl", "b", ttl, at); err != nil || ok {
			t.Fatal(ok, err)
		}
	}
	if _, ok, err := db.AcquireAt(one, ctx, "crl", "a", ttl, now.Add(ttl)); err != nil || !ok {
		t.Fatal(ok, err)
	}
	if l, ok, err := db.AcquireAt(two, ctx, "crl", "b", ttl, now.Add(time.Hour)); err != nil || ok {
		t.Fatalf("it took %+v from one that renews, %v", l, err)
	}
	if l, ok, err := db.AcquireAt(two, ctx, "crl", "b", ttl, now.Add(time.Hour+ttl)); err != nil || !ok {
		t.Fatalf("the other is silent: %+v, %v", l, err)
	}
}

// TestOneHolder has nodes of one PostgreSQL reach for a lease that has expired.
func TestOneHolder(t *testing.T) {
	url := pkitest.URL(t, db.Postgres)
	var wg sync.WaitGroup
	var holders atomic.Int32
	now := time.Now()
	for i := range 4 {
		d := pkitest.Open(t, db.Options{URL: url})
		wg.Go(func() {
			if _, ok, err := db.AcquireAt(d, t.Context(), "crl", string(rune('a'+i)), time.Minute, now); err != nil {
				t.Error(err)
			} else if ok {
				holders.Add(1)
			}
		})
	}
	wg.Wait()
	if n := holders.Load(); n != 1 {
		t.Fatalf("%d holders", n)
	}
}

func TestClockSetBack(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		d, err := db.Open(t.Context(), db.Options{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		ctx, now := t.Context(), time.Now()
		if err := d.CheckClock(now); err != nil {
			t.Errorf("before the first heartbeat: %v", err)
		}
		if age, err := d.ReadAge(ctx, now); err != nil || age != 0 {
			t.Errorf("age before the first heartbeat: %v, %v", age, err)
		}
		if err := d.Heartbeat(ctx, now); err != nil {
			t.Fatal(err)
		}
		if age, err := d.ReadAge(ctx, now.Add(3*time.Second)); err != nil || age.Round(time.Millisecond) != 3*time.Second {
			t.Errorf("age: %v, %v", age, err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		d = pkitest.Open(t, db.Options{URL: url}) // a new process, whose clock is an hour behind
		if err := d.LearnClock(ctx); err != nil {
			t.Fatal(err)
		}
		hourAgo := now.Add(-time.Hour)
		if err := d.CheckClock(hourAgo); !fault.Is(err, fault.Unavailable) {
			t.Errorf("an hour behind: %v", err)
		}
		if err := d.Heartbeat(ctx, hourAgo); !fault.Is(err, fault.Unavailable) {
			t.Errorf("a heartbeat an hour behind: %v", err)
		}
		if err := d.CheckClock(now.Add(-db.ClockTolerance + time.Second)); err != nil {
			t.Errorf("within the tolerance: %v", err)
		}
		if err := d.Heartbeat(ctx, now.Add(-time.Minute)); err != nil {
			t.Errorf("a node a minute behind: %v", err)
		}
		if err := d.CheckClock(hourAgo); err == nil {
			t.Error("a heartbeat from behind lowered the mark")
		}
		if err := d.ResetClock(ctx, hourAgo); err != nil {
			t.Fatal(err)
		}
		if err := d.Heartbeat(ctx, hourAgo); err != nil {
			t.Errorf("after the mark was reset: %v", err)
		}
	})
}

func TestIDsSortByTime(t *testing.T) {
	seen := map[string]bool{}
	last := ""
	for range 3 {
		var id string
		for range 2000 {
			id = db.NewID()
			if seen[id] || len(id) != 36 || id[14] != '7' || id[19] < '8' || id[19] > 'b' {
				t.Fatalf("id %q", id)
			}
			seen[id] = true
		}
		if id <= last {
			t.Errorf("%q is made after %q and sorts before it", id, last)
		}
		last = id
		for start := time.Now().UnixMilli(); time.Now().UnixMilli() == start; {
		}
	}
	if now := time.Now(); !db.FromMicros(db.Micros(now)).Equal(now.Truncate(time.Microsecond)) {
		t.Error("Micros and FromMicros differ")
	}
}
