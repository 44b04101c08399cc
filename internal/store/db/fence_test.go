package db_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/schema"
)

// TestFence: from the commit on by which its fence was raised or taken, nothing that a process sends is committed, though it remembers
// nothing of it, and stood in the middle of a transaction.
func TestFence(t *testing.T) {
	ctx, url := t.Context(), pkitest.URL(t, db.Postgres)
	one, two := pkitest.Open(t, db.Options{URL: url}), pkitest.Open(t, db.Options{URL: url})
	if err := schema.Migrate(ctx, one); err != nil {
		t.Fatal(err)
	}
	put := func(d *db.DB, name string, between func(), send bool) error {
		return d.Tx(ctx, func(tx *db.Tx) error {
			do := tx.Send
			if !send {
				do = func(ctx context.Context, query string, args ...any) error {
					_, err := tx.Exec(ctx, query, args...)
					return err
				}
			}
			if err := do(ctx, `INSERT INTO clock (name, high_water) VALUES ($1, 1)`, name); err != nil {
				return err
			}
			if between != nil {
				between()
			}
			return nil
		})
	}
	take := func(d *db.DB, number int64) {
		t.Helper()
		err := d.Tx(ctx, func(tx *db.Tx) error {
			db.TakeFence(tx, "n1", number)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	raise := func() {
		if err := two.Tx(ctx, func(tx *db.Tx) error { return db.RaiseFence(ctx, tx, "n1") }); err != nil {
			t.Error(err)
		}
	}
	kept := func(name string) (n int64) {
		t.Helper()
		err := two.Read(ctx, func(tx *db.Tx) error {
			return tx.QueryRow(ctx, `SELECT COUNT(*) FROM clock WHERE name = $1`, name).Scan(&n)
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	refused := func(err error, name string) {
		t.Helper()
		if !fault.Is(err, fault.Unavailable) || !errors.Is(err, db.ErrFenced) || kept(name) != 0 {
			t.Fatalf("%s: %v; %d rows", name, err, kept(name))
		}
	}
	passes := func(err error, name string) {
		t.Helper()
		if err != nil || kept(name) != 1 {
			t.Fatalf("%s: %v; %d rows", name, err, kept(name))
		}
	}
	passes(put(one, "before it has one", nil, true), "before it has one")
	take(one, 10)
	passes(put(one, "sent", nil, true), "sent")
	passes(put(one, "executed", nil, false), "executed")

	// What a function was refused is what its caller hears, though the mark would have followed it.
	err := one.Tx(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO clock (name, high_water) VALUES ('executed', 1)`)
		return err
	})
	if !db.IsUnique(err) {
		t.Fatalf("a row that is there: %v", err)
	}

	tried := 0
	refused(put(one, "in between", func() { // the function runs again, and the fence is raised once
		if tried++; tried == 1 {
			raise()
		}
	}, false), "in between")
	if tried < 2 {
		t.Errorf("the function ran %d times; what it stood in was committed at once", tried)
	}
	refused(put(one, "after", nil, true), "after")
	passes(put(two, "another", nil, true), "another")
	if err := one.Read(ctx, func(*db.Tx) error { return nil }); err != nil {
		t.Errorf("it does not read: %v", err)
	}
	if err := one.Tx(ctx, func(tx *db.Tx) error { return nil }); err != nil {
		t.Errorf("a transaction that writes nothing: %v", err)
	}

	// Many at once share transactions; each is refused.
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if err := put(one, db.NewID(), nil, true); !errors.Is(err, db.ErrFenced) {
				t.Errorf("one of many: %v", err)
			}
		})
	}
	all.Wait()

	// Raised, it is nobody's to take, until it is lowered; that gives it back to nobody.
	for _, d := range []*db.DB{one, two} {
		if err := d.Tx(ctx, func(tx *db.Tx) error { db.TakeFence(tx, "n1", 20); return nil }); !errors.Is(err, db.ErrFenced) {
			t.Fatalf("a raised fence is taken: %v", err)
		}
	}
	if err := two.Tx(ctx, func(tx *db.Tx) error { return db.LowerFence(ctx, tx, "n1") }); err != nil {
		t.Fatal(err)
	}
	refused(put(one, "lowered", nil, true), "lowered")
	take(one, 20)
	passes(put(one, "taken again", nil, true), "taken again")
	if err := two.Tx(ctx, func(tx *db.Tx) error { return db.LowerFence(ctx, tx, "n1") }); err != nil {
		t.Fatal(err)
	}
	passes(put(one, "still its own", nil, true), "still its own")
	take(two, 30)
	refused(put(one, "former", nil, true), "former")
	passes(put(two, "latter", nil, false), "latter")
}

// TestFenceAgainstBusyAndStill: a fence is raised though its process writes all the time, and though it stands still with the row locked;
// from then on it gives and ends no logins either.
func TestFenceAgainstBusyAndStill(t *testing.T) {
	ctx, url := t.Context(), pkitest.URL(t, db.Postgres)
	one, two := pkitest.Open(t, db.Options{URL: url}), pkitest.Open(t, db.Options{URL: url})
	if err := schema.Migrate(ctx, one); err != nil {
		t.Fatal(err)
	}
	take := func(number int64) {
		t.Helper()
		err := two.Tx(ctx, func(tx *db.Tx) error { return db.LowerFence(ctx, tx, "n1") })
		if err == nil {
			err = one.Tx(ctx, func(tx *db.Tx) error { db.TakeFence(tx, "n1", number); return nil })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for round := range 5 {
		take(int64(10 + round))
		var writers sync.WaitGroup
		wrote := make(chan bool, 8)
		for range 8 {
			writers.Go(func() {
				for n := 0; ; n++ {
					err := one.Tx(ctx, func(tx *db.Tx) error {
						return tx.Send(ctx, `INSERT INTO clock (name, high_water) VALUES ($1, 1)`, db.NewID())
					})
					if n == 9 {
						wrote <- true
					}
					if err != nil {
						if !errors.Is(err, db.ErrFenced) || n < 9 {
							t.Errorf("after %d writes: %v", n, err)
						}
						return
					}
				}
			})
		}
		for range 8 {
			<-wrote
		}
		if err := two.RaiseFence(ctx, "n1"); err != nil {
			t.Fatalf("it writes all the time, and is not shut out: %v", err)
		}
		writers.Wait()
	}

	take(20)
	short, cancel := context.WithTimeout(ctx, 12*time.Second) // the server itself would end it after fifteen
	defer cancel()
	runs := 0
	err := one.Tx(ctx, func(tx *db.Tx) error {
		runs++
		if err := tx.Send(ctx, `INSERT INTO clock (name, high_water) VALUES ('still', 1)`); err != nil {
			return err
		}
		var n int
		if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM clock`).Scan(&n); err != nil { // sends what waits, and with it locks the row
			return err
		}
		if runs > 1 {
			return nil
		}
		begun := time.Now()
		if err := two.RaiseFence(short, "n1"); err != nil {
			t.Errorf("it stands still, and is not shut out: %v", err)
		}
		t.Logf("raised after %s", time.Since(begun))
		return tx.QueryRow(ctx, `SELECT COUNT(*) FROM clock`).Scan(&n) // it goes on
	})
	if !errors.Is(err, db.ErrFenced) || runs < 2 {
		t.Errorf("it stood still, and writes in %d runs: %v", runs, err)
	}
	for what, err := range map[string]error{
		"gives": one.AddLogin(ctx, "chancery_x", false), "ends": one.DropLogin(ctx, "chancery_x"), "raises": one.RaiseFence(ctx, "n2"),
	} {
		if !errors.Is(err, db.ErrFenced) {
			t.Errorf("it was shut out, and %s: %v", what, err)
		}
	}
	no := errors.New("not this process")
	two.Guard(func(context.Context) error { return no })
	for what, err := range map[string]error{"gives": two.AddLogin(ctx, "chancery_x", false), "ends": two.DropLogin(ctx, "chancery_x")} {
		if !errors.Is(err, no) {
			t.Errorf("its guard refuses, and it %s: %v", what, err)
		}
	}
}
