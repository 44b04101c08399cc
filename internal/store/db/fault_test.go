package db_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestCommitWithoutAnswer: whether the commit took effect or not, the caller hears that nobody knows, the function is not
// run again, and the next transaction passes.
func TestCommitWithoutAnswer(t *testing.T) {
	for _, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway} {
		t.Run(string(outcome), func(t *testing.T) {
			pkitest.EachURL(t, func(t *testing.T, url string) {
				var faults pkitest.Faults
				d := pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})
				makeTable(t, d)
				ctx := t.Context()
				faults.FailCommit(1, outcome)
				runs := 0
				err := d.Tx(ctx, func(tx *db.Tx) error { runs++; return insert(ctx, tx, "a", 1) })
				if !errors.Is(err, db.ErrUnknownOutcome) || !fault.Is(err, fault.Unavailable) || !errors.Is(err, pkitest.ErrFault) {
					t.Fatalf("the answer is %v", err)
				}
				if runs != 1 {
					t.Errorf("the function ran %d times", runs)
				}
				want := 0
				if outcome == pkitest.PersistedAnyway {
					want = 1
				}
				if n := count(t, d); n != want {
					t.Errorf("%d rows, want %d", n, want)
				}
				if err := d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, "b", 1) }); err != nil {
					t.Errorf("the next transaction: %v", err)
				}
			})
		})
	}
}

// TestUnknownOutcomeIsToldToAll: everybody in the batch hears it, and nobody hears a success.
func TestUnknownOutcomeIsToldToAll(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		var faults pkitest.Faults
		d := pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})
		makeTable(t, d)
		for i := range 100 {
			faults.FailCommit(i+1, pkitest.NotPersisted)
		}
		for i, err := range crowd(t, d, 20, func(i int, tx *db.Tx) error { return insert(t.Context(), tx, fmt.Sprint(i), 1) }) {
			if !errors.Is(err, db.ErrUnknownOutcome) {
				t.Errorf("function %d: %v", i, err)
			}
		}
	})
}

// TestEachStatementFails kills the connection at each statement of a transaction in turn: it is run again on a new one, and
// its writes are there exactly once.
func TestEachStatementFails(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		var faults pkitest.Faults
		d := pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})
		makeTable(t, d)
		ctx := t.Context()
		write := func(i int) error {
			return d.Tx(ctx, func(tx *db.Tx) error {
				for j := range 3 {
					if err := insert(ctx, tx, fmt.Sprint(i, ".", j), 1); err != nil {
						return err
					}
				}
				return nil
			})
		}
		before := faults.Statements()
		if err := write(0); err != nil {
			t.Fatal(err)
		}
		steps := faults.Statements() - before
		if steps < 4 {
			t.Fatalf("a transaction of three inserts has %d steps", steps)
		}
		for i := 1; i <= steps; i++ {
			faults.FailStatement(i, driver.ErrBadConn)
			if err := write(i); err != nil {
				t.Errorf("broken at step %d: %v", i, err)
			}
		}
		if n := count(t, d); n != 3*(steps+1) {
			t.Errorf("%d rows, want %d", n, 3*(steps+1))
		}
	})
}

// TestConnectionsDie cuts all connections between transactions, and while a crowd waits.
func TestConnectionsDie(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		var faults pkitest.Faults
		d := pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})
		makeTable(t, d)
		count(t, d)
		faults.KillConnections()
		if n := count(t, d); n != 0 {
			t.Errorf("%d rows", n)
		}
		cut := false
		errs := crowd(t, d, 20, func(i int, tx *db.Tx) error {
			if i == 10 && !cut {
				cut = true
				faults.KillConnections()
			}
			return insert(t.Context(), tx, fmt.Sprint(i), 1)
		})
		for i, err := range errs {
			if err != nil {
				t.Errorf("function %d: %v", i, err)
			}
		}
		if n := count(t, d); n != 20 {
			t.Errorf("%d rows", n)
		}
	})
}

// TestReadIsRunAgain: a read whose connection dies is repeated, and a refusal of its function is not.
func TestReadIsRunAgain(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		var faults pkitest.Faults
		d := pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})
		ctx := t.Context()
		faults.FailStatement(2, driver.ErrBadConn) // BEGIN is the first
		runs := 0
		read := func(tx *db.Tx) error {
			runs++
			var one int
			return tx.QueryRow(ctx, "SELECT 1").Scan(&one)
		}
		if err := d.Read(ctx, read); err != nil || runs != 2 {
			t.Errorf("%d runs, %v", runs, err)
		}
		refused := errors.New("refused")
		runs = 0
		if err := d.Read(ctx, func(*db.Tx) error { runs++; return refused }); !errors.Is(err, refused) || runs != 1 {
			t.Errorf("%d runs, %v", runs, err)
		}
		if err := d.Read(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, "CREATE TABLE t (id TEXT)")
			return err
		}); err == nil {
			t.Error("a read transaction could write")
		}
		// and the refused write has not spoilt the connection
		if err := d.Read(ctx, read); err != nil {
			t.Error(err)
		}
	})
}

// TestReadSeesOneState: what commits during a read is not seen by its later statements.
func TestReadSeesOneState(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		makeTable(t, d)
		ctx := t.Context()
		for name, read := range map[string]func(context.Context, func(*db.Tx) error) error{"Read": d.Read, "ReadSnapshot": d.ReadSnapshot} {
			var before, after int
			err := read(ctx, func(tx *db.Tx) error {
				if err := tx.QueryRow(ctx, "SELECT COUNT(*) FROM items").Scan(&before); err != nil {
					return err
				}
				if err := d.Tx(ctx, func(w *db.Tx) error { return insert(ctx, w, name, 1) }); err != nil {
					return err
				}
				return tx.QueryRow(ctx, "SELECT COUNT(*) FROM items").Scan(&after)
			})
			if err != nil || before != after {
				t.Errorf("%s saw %d rows, then %d: %v", name, before, after, err)
			}
		}
	})
}

func TestTextMustBeText(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		makeTable(t, d)
		for _, text := range []string{"a\x00b", "\xff"} {
			err := d.Tx(t.Context(), func(tx *db.Tx) error { return insert(t.Context(), tx, text, 1) })
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("%q: %v", text, err)
			}
		}
	})
}
