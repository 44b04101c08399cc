package db_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// rowCount is an item that learns how many rows there are.
type rowCount struct{ rows, reads int }

func readCounts(ctx context.Context, tx *db.Tx, items []any) error {
	var n int
	if err := tx.QueryRow(ctx, "SELECT COUNT(*) FROM items").Scan(&n); err != nil {
		return err
	}
	for _, item := range items {
		item.(*rowCount).rows = n
		item.(*rowCount).reads++
	}
	return nil
}

type countKey struct{}

// TestAheadIsAsIfReadByTheFunction has many functions at once insert a row each, in each of the ways there are to write: all
// see the rows of those before them, whatever batch they came into. The rows given to BeforeCommit are seen as pending.
func TestAheadIsAsIfReadByTheFunction(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		makeTable(t, d)
		const calls = 200
		insert := func(tx *db.Tx, way int) error {
			const query = "INSERT INTO items (id, n, body) VALUES ($1, $2, $3)"
			id, n, body := db.NewID(), int64(1), []byte("x")
			switch way {
			case 0:
				_, err := tx.Exec(t.Context(), query, id, n, body)
				return err
			case 1:
				return tx.Send(t.Context(), query, id, n, body)
			default:
				tx.BeforeCommit(countKey{}, id, func(ctx context.Context, tx *db.Tx, items []any) error {
					for _, item := range items {
						if _, err := tx.Exec(ctx, query, item, n, body); err != nil {
							return err
						}
					}
					return nil
				})
				return nil
			}
		}
		var all sync.WaitGroup
		var shared atomic.Int32
		found := make([]int, calls)
		for i := range calls {
			all.Go(func() {
				item := &rowCount{}
				ahead := db.Ahead{Key: countKey{}, Item: item, Read: readCounts}
				err := d.TxAhead(t.Context(), ahead, func(tx *db.Tx) error {
					var own int
					waiting := len(tx.Pending(countKey{}))
					shared.Add(int32(waiting))
					if i%3 == 0 {
						if err := tx.QueryRow(t.Context(), "SELECT COUNT(*) FROM items").Scan(&own); err != nil {
							return err
						}
						if own != item.rows {
							return fmt.Errorf("%d rows were read ahead, and %d are there", item.rows, own)
						}
					}
					found[i] = item.rows + waiting
					if i%10 == 9 {
						return errors.Join(insert(tx, i%3), errors.New("refused"))
					}
					return insert(tx, i%3)
				})
				if refused := i%10 == 9; (err != nil) != refused || item.reads == 0 {
					t.Errorf("call %d, read %d times: %v", i, item.reads, err)
				}
			})
		}
		all.Wait()
		seen := map[int]bool{}
		for i, n := range found {
			if i%10 == 9 {
				continue // refused: another sees what it saw
			}
			if seen[n] {
				t.Errorf("two calls saw %d rows before their own", n)
			}
			seen[n] = true
		}
		if shared.Load() == 0 {
			t.Error("no call saw what another of its transaction had added")
		}
	})
}

func TestAheadThatFailsFailsOnlyItsOwn(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		makeTable(t, d)
		broken := errors.New("cannot be read")
		var all sync.WaitGroup
		for i := range 64 {
			all.Go(func() {
				ahead := db.Ahead{Key: countKey{}, Item: &rowCount{}, Read: readCounts}
				switch i % 8 {
				case 3:
					ahead.Item, ahead.Read = "panic", func(context.Context, *db.Tx, []any) error { return broken }
				case 5:
					ahead.Key = "another"
					ahead.Read = func(context.Context, *db.Tx, []any) error { panic("in a read") }
				}
				ran := false
				err := d.TxAhead(t.Context(), ahead, func(tx *db.Tx) error {
					ran = true
					return tx.Send(t.Context(), "INSERT INTO items (id, n, body) VALUES ($1, $2, $3)", db.NewID(), int64(1), []byte("x"))
				})
				switch {
				case i%8 == 3 || i%8 == 5:
					if err == nil || ran {
						t.Errorf("call %d: %v, ran %v", i, err, ran)
					}
				case err != nil:
					t.Errorf("call %d: %v", i, err)
				}
			})
		}
		all.Wait()
		item := &rowCount{}
		if err := d.TxAhead(t.Context(), db.Ahead{Key: countKey{}, Item: item, Read: readCounts}, func(*db.Tx) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if item.rows != 48 {
			t.Errorf("%d rows were written, not 48", item.rows)
		}
	})
}

func TestPadded(t *testing.T) {
	for n := 1; n <= 64; n++ {
		values := make([]int, n, 100)
		for i := range values {
			values[i] = i
		}
		padded := db.Padded(values)
		if m := len(padded); m&(m-1) != 0 || m < n || m >= 2*n {
			t.Errorf("%d values became %d", n, m)
		}
		for i, v := range padded {
			if v != min(i, n-1) {
				t.Errorf("of %d values, %d is at %d", n, v, i)
			}
		}
	}
}

// TestAheadOfFunctionsThatWrite reads anew for each of them, and not each time for all that wait.
func TestAheadOfFunctionsThatWrite(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		makeTable(t, d)
		const calls = 256
		items := make([]rowCount, calls)
		var all sync.WaitGroup
		for i := range items {
			all.Go(func() {
				ahead := db.Ahead{Key: countKey{}, Item: &items[i], Read: readCounts}
				err := d.TxAhead(t.Context(), ahead, func(tx *db.Tx) error {
					_, err := tx.Exec(t.Context(), "INSERT INTO items (id, n, body) VALUES ($1, $2, $3)", db.NewID(), int64(1), []byte("x"))
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		reads, seen := 0, map[int]bool{}
		for _, item := range items {
			reads += item.reads
			seen[item.rows] = true
		}
		if reads > 3*calls || len(seen) != calls {
			t.Errorf("%d functions were read ahead for %d times, and saw %d states", calls, reads, len(seen))
		}
	})
}
