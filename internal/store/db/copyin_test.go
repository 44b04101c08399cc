package db_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"

	"github.com/google/go-cmp/cmp"
)

// TestCopyInAndGoOn copies rows in pieces and reads them from every key on: the order is that of octets on both engines.
func TestCopyInAndGoOn(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		if _, err := d.Migrator().Exec("CREATE TABLE odd (name TEXT NOT NULL, n BIGINT NOT NULL, body BYTEA, note TEXT, PRIMARY KEY (name, n))"); err != nil {
			t.Fatal(err)
		}
		var table db.Table
		if err := d.Read(ctx, func(tx *db.Tx) error {
			all, err := db.Tables(ctx, tx)
			for _, t := range all {
				if t.Name == "odd" {
					table = t
				}
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		var want [][]any
		for _, name := range []string{"", "A", "B", "a", "b\tc\\n", "ä", "😀"} { // in the order of their octets
			for _, n := range []int64{-1 << 63, 0, 1<<63 - 1} {
				var body, note any
				if n == 0 {
					body, note = []byte{}, ""
				} else if n > 0 {
					body = []byte{0, 1, 255, '\\', '\n'}
				}
				want = append(want, []any{name, n, body, note})
			}
		}
		for i := 0; i < len(want); i += 4 {
			if err := d.TxAlone(ctx, func(tx *db.Tx) error { return table.CopyIn(ctx, tx, want[i:min(i+4, len(want))]) }); err != nil {
				t.Fatal(err)
			}
		}
		for i := range want {
			var key []any
			if i > 0 {
				key = table.KeyOf(want[i-1])
			}
			var got [][]any
			if err := d.Read(ctx, func(tx *db.Tx) error {
				got = nil
				for row, err := range table.RowsAfter(ctx, tx, key) {
					if err != nil {
						return err
					}
					got = append(got, row)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want[i:], got); diff != "" {
				t.Fatalf("after %v (-want +got)\n%s", key, diff)
			}
		}
		// A row that is there already, a text that no database of both keeps, a row of another shape: nothing of their pieces stays.
		for name, rows := range map[string][][]any{
			"twice": {{"new", int64(1), nil, nil}, want[0]}, "NUL": {{"new", int64(2), nil, "a\x00b"}}, "short": {{"new", int64(3)}},
		} {
			if err := d.TxAlone(ctx, func(tx *db.Tx) error { return table.CopyIn(ctx, tx, rows) }); err == nil {
				t.Errorf("%s passed", name)
			} else if name == "NUL" && !strings.Contains(err.Error(), "NUL") {
				t.Errorf("%s: %v", name, err)
			}
		}
		var n int64
		if err := d.Read(ctx, func(tx *db.Tx) (err error) { n, err = table.Count(ctx, tx); return err }); err != nil || n != int64(len(want)) {
			t.Errorf("%d rows are there, error %v", n, err)
		}
	})
}

// TestOnlyRead refuses all writes with the reason that was given, and none that ran before is cut off.
func TestOnlyRead(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx, why := t.Context(), errors.New("it is being moved")
		insert := func(i int) error {
			return d.Tx(ctx, func(tx *db.Tx) error {
				_, err := tx.Exec(ctx, "INSERT INTO leases (name, holder, epoch, expires_at) VALUES ($1, 'x', 1, 0)", fmt.Sprint(i))
				return err
			})
		}
		results := make(chan error, 100)
		for i := range cap(results) {
			go func() { results <- insert(i) }()
		}
		d.OnlyRead(why)
		count := func() (n int) {
			if err := d.ReadSnapshot(ctx, func(tx *db.Tx) error { return tx.QueryRow(ctx, "SELECT COUNT(*) FROM leases").Scan(&n) }); err != nil {
				t.Fatal(err)
			}
			return n
		}
		before, passed := count(), 0
		for range cap(results) {
			if err := <-results; err == nil {
				passed++
			} else if !errors.Is(err, why) {
				t.Error(err)
			}
		}
		if after := count(); after != before || passed != before {
			t.Errorf("%d rows when writing ended, %d at the end, %d acknowledged", before, after, passed)
		}
		if err := d.CheckWrites(); !errors.Is(err, why) {
			t.Errorf("CheckWrites says %v", err)
		}
		d.OnlyRead(nil)
		if err := errors.Join(insert(1000), d.CheckWrites()); err != nil {
			t.Error(err)
		}
	})
}
