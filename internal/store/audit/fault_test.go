package audit_test

import (
	"testing"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// Whatever becomes of a commit, the chain goes on where the database says that it ends, and has no gap and no fork.
func TestChainSurvivesFaultsAtEveryCommit(t *testing.T) {
	t.Parallel()
	pkitest.EachURL(t, func(t *testing.T, url string) {
		var faults pkitest.Faults
		d := pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})
		l := newLog(t, d, "n1")
		key, _ := signers(t)
		events := int64(0)
		for i, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway, pkitest.NotPersisted, pkitest.PersistedAnyway} {
			appendEvents(t, d, l, i*10, i*10+2)
			events += 3
			faults.FailCommit(1, outcome)
			err := d.Tx(t.Context(), func(tx *db.Tx) error { return l.Append(t.Context(), tx, event(i*10+5)) })
			if err == nil {
				t.Fatal("the fault was not seen")
			}
			if outcome == pkitest.PersistedAnyway {
				events++
			}
			wantClean(t, l, key, events)
		}
		appendEvents(t, d, l, 100, 101)
		wantClean(t, l, key, events+2)
	})
}

// Sixty-four events cost two statements, as one does: the head's and one INSERT.
func TestABatchOfEventsCostsTwoStatements(t *testing.T) {
	t.Parallel()
	pkitest.EachURL(t, func(t *testing.T, url string) {
		var faults pkitest.Faults
		d := pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})
		l := newLog(t, d, "n1")
		cost := func(events int) int {
			before := faults.Statements()
			err := d.Tx(t.Context(), func(tx *db.Tx) error {
				for i := range events {
					if err := l.Append(t.Context(), tx, event(i)); err != nil {
						return err
					}
				}
				_, err := tx.Exec(t.Context(), `UPDATE audit_base SET seq = 1 WHERE node = ''`)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return faults.Statements() - before
		}
		cost(1) // the first event also makes the head
		none := cost(0)
		if one, many := cost(1)-none, cost(64)-none; one != 2 || many != 2 {
			t.Fatalf("one event costs %d statements, 64 cost %d", one, many)
		}
		key, _ := signers(t)
		wantClean(t, l, key, 66)
	})
}
