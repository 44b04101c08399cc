package db_test

import (
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestCheckWritesKnowsTheLastRefusal: a store that takes no writes is known from the call that met it until a heartbeat is
// written; what a caller does wrong says nothing of the store.
func TestCheckWritesKnowsTheLastRefusal(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		write := func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO leases (name, holder, epoch, expires_at) VALUES ('x', 'y', 1, 1)`)
			return err
		}
		if err := d.Tx(ctx, write); err != nil || d.CheckWrites() != nil {
			t.Fatalf("%v, %v", err, d.CheckWrites())
		}
		if err := d.Tx(ctx, write); !db.IsUnique(err) || d.CheckWrites() != nil {
			t.Errorf("a row that is there already: %v, %v", err, d.CheckWrites())
		}
		// A file that may not grow, as on a full disk; and a standby.
		limit := map[db.Dialect]string{db.SQLite: `PRAGMA max_page_count = 1`, db.Postgres: `SET TRANSACTION READ ONLY`}
		err := d.Tx(ctx, func(tx *db.Tx) error {
			if _, err := tx.Exec(ctx, limit[d.Dialect()]); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `INSERT INTO leases (name, holder, epoch, expires_at) VALUES ('z', $1, 1, 1)`, strings.Repeat("y", 1<<20))
			return err
		})
		if !fault.Is(err, fault.Unavailable) {
			t.Fatalf("a store that only reads: %v", err)
		}
		if err := d.CheckWrites(); !fault.Is(err, fault.Unavailable) {
			t.Errorf("after the refusal: %v", err)
		}
		if d.Dialect() == db.SQLite {
			if err := d.Tx(ctx, func(tx *db.Tx) error { _, err := tx.Exec(ctx, `PRAGMA max_page_count = 1000000`); return err }); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Tx(ctx, func(*db.Tx) error { return nil }); err != nil || d.CheckWrites() == nil {
			t.Errorf("nothing was written, and all is well: %v", err)
		}
		if err := d.Heartbeat(ctx, time.Now()); err != nil || d.CheckWrites() != nil {
			t.Errorf("after a heartbeat: %v, %v", err, d.CheckWrites())
		}
	})
}
