package db_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// crowd runs n functions so that they queue up behind one that holds the lane until all wait.
func crowd(t *testing.T, d *db.DB, n int, fn func(i int, tx *db.Tx) error) []error {
	t.Helper()
	held, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	var once sync.Once
	wg.Go(func() {
		d.Tx(context.Background(), func(*db.Tx) error {
			once.Do(func() { close(held) })
			<-release
			return nil
		})
	})
	<-held
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() {
			defer func() {
				if v := recover(); v != nil {
					errs[i] = fmt.Errorf("panic: %v", v)
				}
			}()
			errs[i] = d.Tx(context.Background(), func(tx *db.Tx) error { return fn(i, tx) })
		})
		db.AwaitQueue(d, i+1)
	}
	close(release)
	wg.Wait()
	return errs
}

func TestCrowdSharesACommit(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		var faults pkitest.Faults
		d := pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})
		makeTable(t, d)
		before := faults.Commits()
		for i, err := range crowd(t, d, 200, func(i int, tx *db.Tx) error { return insert(t.Context(), tx, fmt.Sprint(i), 1) }) {
			if err != nil {
				t.Errorf("function %d: %v", i, err)
			}
		}
		if n := count(t, d); n != 200 {
			t.Errorf("%d rows", n)
		}
		// The time limit of a batch may cut it short on a slow machine; far fewer commits than functions is what counts.
		if n := faults.Commits() - before; n < 4 || n > 100 {
			t.Errorf("200 functions took %d commits", n)
		}
	})
}

func TestPanicsPoisonNobody(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		makeTable(t, d)
		errs := crowd(t, d, 30, func(i int, tx *db.Tx) error {
			if err := insert(t.Context(), tx, fmt.Sprint(i), 1); err != nil {
				return err
			}
			switch i % 3 { // the first of the crowd leads the next batch, and panics
			case 0:
				panic("in function")
			case 1:
				runtime.Goexit()
			}
			return nil
		})
		for i, err := range errs {
			want := ""
			if i%3 == 0 {
				want = "panic: in function"
			}
			if got := fmt.Sprint(err); err != nil && got != want || err == nil && want != "" {
				t.Errorf("function %d: %v, want %q", i, err, want)
			}
		}
		if n := count(t, d); n != 10 {
			t.Errorf("%d rows, want the 10 of the functions that returned", n)
		}
		if err := d.Tx(t.Context(), func(tx *db.Tx) error { return insert(t.Context(), tx, "after", 1) }); err != nil {
			t.Errorf("the lane is blocked: %v", err)
		}
	})
}

func TestNestingIsRefused(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		err := d.Tx(ctx, func(*db.Tx) error {
			return d.Tx(ctx, func(*db.Tx) error { return nil })
		})
		if err == nil || !strings.Contains(err.Error(), "inside a transaction") {
			t.Fatalf("nested: %v", err)
		}
		if err := d.Tx(ctx, func(*db.Tx) error { return nil }); err != nil {
			t.Fatalf("afterwards: %v", err)
		}
	})
}

func TestTransactionEndsWithItsFunction(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		makeTable(t, d)
		var kept *db.Tx
		if err := d.Tx(t.Context(), func(tx *db.Tx) error { kept = tx; return nil }); err != nil {
			t.Fatal(err)
		}
		if err := insert(t.Context(), kept, "late", 1); err == nil {
			t.Fatal("a transaction could be used after its function")
		}
		if err := kept.Send(t.Context(), "INSERT INTO items (id, n, body) VALUES ('late', 1, '')"); err == nil {
			t.Fatal("a statement could be sent after the function")
		}
	})
}

func TestQueuedCallerMayGiveUpAndStartedOneMayNot(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		makeTable(t, d)
		ctx, cancel := context.WithCancel(t.Context())
		err := d.Tx(ctx, func(tx *db.Tx) error {
			cancel()
			return insert(ctx, tx, "started", 1)
		})
		if err != nil {
			t.Fatalf("a function that had started: %v", err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		held, done := make(chan struct{}), make(chan error, 1)
		release := make(chan struct{})
		go d.Tx(t.Context(), func(*db.Tx) error { close(held); <-release; return nil })
		<-held
		go func() {
			done <- d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, "queued", 1) })
		}()
		db.AwaitQueue(d, 1)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("a queued caller: %v", err)
		}
		close(release)
		if err := d.Tx(ctx, func(*db.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("a caller that had given up before: %v", err)
		}
		if n := count(t, d); n != 1 {
			t.Errorf("%d rows", n)
		}
	})
}

// notes gathers what a batch's functions add, as the audit log does.
func TestBeforeCommitSeesWhatSucceeded(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		makeTable(t, d)
		refused := errors.New("refused")
		key := new(int)
		var mu sync.Mutex
		var calls [][]any
		write := func(ctx context.Context, tx *db.Tx, items []any) error {
			mu.Lock()
			defer mu.Unlock()
			calls = append(calls, items)
			for _, it := range items {
				if it == "poison" {
					return errors.New("cannot write poison")
				}
				if err := tx.Send(ctx, "INSERT INTO items (id, n, body) VALUES ($1, $2, $3)", "note of "+it.(string), int64(2), []byte{}); err != nil {
					return err
				}
			}
			return nil
		}
		errs := crowd(t, d, 20, func(i int, tx *db.Tx) error {
			if err := insert(t.Context(), tx, fmt.Sprint(i), 1); err != nil {
				return err
			}
			item := fmt.Sprint(i)
			if i == 7 {
				item = "poison"
			}
			tx.BeforeCommit(key, item, write)
			if i%5 == 0 {
				return refused
			}
			return nil
		})
		for i, err := range errs {
			switch {
			case i == 7 && (err == nil || !strings.Contains(err.Error(), "poison")):
				t.Errorf("poison: %v", err)
			case i%5 == 0 && !errors.Is(err, refused):
				t.Errorf("function %d: %v", i, err)
			case i != 7 && i%5 != 0 && err != nil:
				t.Errorf("function %d: %v", i, err)
			}
		}
		if n := count(t, d); n != 2*(20-4-1) {
			t.Errorf("%d rows: each of 15 functions has one row and one note", n)
		}
		for _, items := range calls {
			if slices.Contains(items, any("0")) {
				t.Error("the item of a function that failed was written")
			}
		}
	})
}

func TestSentStatementsBelongToTheirFunction(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		makeTable(t, d)
		const q = "INSERT INTO items (id, n, body) VALUES ($1, $2, $3)"
		errs := crowd(t, d, 40, func(i int, tx *db.Tx) error {
			ctx := t.Context()
			if err := tx.Send(ctx, q, fmt.Sprint(i), int64(i), []byte("x")); err != nil {
				return err
			}
			switch i % 4 {
			case 1:
				return errors.New("refused")
			case 2:
				return tx.Send(ctx, q, "0", int64(0), []byte("duplicate"))
			case 3: // what was sent is there for the next query
				var n int
				if err := tx.QueryRow(ctx, "SELECT COUNT(*) FROM items WHERE id = $1", fmt.Sprint(i)).Scan(&n); err != nil || n != 1 {
					return fmt.Errorf("%d rows seen, %w", n, err)
				}
			}
			return nil
		})
		for i, err := range errs {
			switch i % 4 {
			case 0, 3:
				if err != nil {
					t.Errorf("function %d: %v", i, err)
				}
			case 1:
				if err == nil || err.Error() != "refused" {
					t.Errorf("function %d: %v", i, err)
				}
			case 2:
				if !db.IsUnique(err) {
					t.Errorf("function %d: %v", i, err)
				}
			}
		}
		if n := count(t, d); n != 20 {
			t.Errorf("%d rows, want 20", n)
		}
	})
}

// TestTwoNodesCount has two handles on one PostgreSQL add to one row; each lost conflict would be a lost addition.
func TestTwoNodesCount(t *testing.T) {
	url := pkitest.URL(t, db.Postgres)
	nodes := []*db.DB{pkitest.Open(t, db.Options{URL: url}), pkitest.Open(t, db.Options{URL: url})}
	makeTable(t, nodes[0])
	ctx := t.Context()
	if err := nodes[0].Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, "sum", 0) }); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			err := nodes[i%2].Tx(ctx, func(tx *db.Tx) error {
				var n int64
				if err := tx.QueryRow(ctx, "SELECT n FROM items WHERE id = 'sum'").Scan(&n); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, "UPDATE items SET n = $1 WHERE id = 'sum'", n+1)
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var n int
	if err := nodes[1].Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, "SELECT n FROM items WHERE id = 'sum'").Scan(&n)
	}); err != nil || n != 100 {
		t.Fatalf("the sum is %d, %v", n, err)
	}
}

// TestDuplicateOfAnotherNodeIsLookedAtAgain: two nodes look for a row, miss it, and insert it. The one that comes second must
// find the row on its second look, not report a duplicate.
func TestDuplicateOfAnotherNodeIsLookedAtAgain(t *testing.T) {
	url := pkitest.URL(t, db.Postgres)
	a, b := pkitest.Open(t, db.Options{URL: url}), pkitest.Open(t, db.Options{URL: url})
	makeTable(t, a)
	ctx := t.Context()
	claim := func(d *db.DB, looked func()) (found int, err error) {
		err = d.Tx(ctx, func(tx *db.Tx) error {
			if err := tx.QueryRow(ctx, "SELECT COUNT(*) FROM items WHERE id = 'key'").Scan(&found); err != nil || found > 0 {
				return err
			}
			looked()
			return insert(ctx, tx, "key", 1)
		})
		return found, err
	}
	var first sync.Once
	found, err := claim(b, func() {
		first.Do(func() {
			if n, err := claim(a, func() {}); n != 0 || err != nil {
				t.Errorf("the first node: %d, %v", n, err)
			}
		})
	})
	if err != nil || found != 1 {
		t.Fatalf("the second node found %d rows, %v", found, err)
	}
}

func TestCloseWaitsForTheLane(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		d, err := db.Open(t.Context(), db.Options{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		makeTable(t, d)
		started := make(chan struct{})
		answer := make(chan error, 1)
		go func() {
			answer <- d.Tx(context.Background(), func(tx *db.Tx) error {
				close(started)
				time.Sleep(time.Millisecond) // Close is likely to wait by now; the outcome does not depend on it
				return insert(context.Background(), tx, "a", 1)
			})
		}()
		<-started
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := <-answer; err != nil {
			t.Errorf("the transaction that ran: %v", err)
		}
		if err := d.Tx(context.Background(), func(*db.Tx) error { return nil }); err == nil {
			t.Error("a closed database takes transactions")
		}
		if err := d.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
	})
}

// TestRowsLeftOpen: a function that forgets its rows, returns or panics must not take the connection from its neighbours.
func TestRowsLeftOpen(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		makeTable(t, d)
		ctx := t.Context()
		fill := func(tx *db.Tx) error {
			for i := range 500 {
				if err := insert(ctx, tx, fmt.Sprint("row", i), 1); err != nil {
					return err
				}
			}
			return nil
		}
		if err := d.Tx(ctx, fill); err != nil {
			t.Fatal(err)
		}
		leave := func(tx *db.Tx) error {
			rows, err := tx.Query(ctx, "SELECT id, body FROM items ORDER BY id")
			if err != nil {
				return err
			}
			if !rows.Next() {
				return errors.New("no rows")
			}
			return nil
		}
		for i, err := range crowd(t, d, 12, func(i int, tx *db.Tx) error {
			if err := leave(tx); err != nil {
				return err
			}
			if i%4 == 0 {
				panic("with open rows")
			}
			return nil
		}) {
			if (err != nil) != (i%4 == 0) {
				t.Errorf("function %d: %v", i, err)
			}
		}
		for range 20 {
			if err := d.Read(ctx, leave); err != nil {
				t.Errorf("read: %v", err)
			}
			func() {
				defer func() { recover() }()
				d.Read(ctx, func(tx *db.Tx) error { leave(tx); panic("with open rows") })
			}()
		}
	})
}

// TestStatementWhileRowsAreRead: PostgreSQL takes one question at a time. A second one is an error, and does not hang; after
// the rows are read, or closed, it passes.
func TestStatementWhileRowsAreRead(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		makeTable(t, d)
		ctx := t.Context()
		if err := d.Tx(ctx, func(tx *db.Tx) error { return errors.Join(insert(ctx, tx, "a", 1), insert(ctx, tx, "b", 1)) }); err != nil {
			t.Fatal(err)
		}
		ask := func(tx *db.Tx, upTo int) error {
			rows, err := tx.Query(ctx, "SELECT id FROM items ORDER BY id")
			if err != nil {
				return err
			}
			for n := 0; n < upTo && rows.Next(); n++ {
			}
			var count int
			return tx.QueryRow(ctx, "SELECT COUNT(*) FROM items").Scan(&count)
		}
		for name, run := range map[string]func(context.Context, func(*db.Tx) error) error{"Tx": d.Tx, "Read": d.Read} {
			err := run(ctx, func(tx *db.Tx) error { return ask(tx, 1) })
			if refused := d.Dialect() == db.Postgres; refused != (err != nil) {
				t.Errorf("%s, in the middle: %v", name, err)
			}
			if err := run(ctx, func(tx *db.Tx) error { return ask(tx, 3) }); err != nil {
				t.Errorf("%s, at the end: %v", name, err)
			}
		}
	})
}
