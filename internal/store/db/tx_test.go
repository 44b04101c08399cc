package db_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

func makeTable(t testing.TB, d *db.DB) {
	t.Helper()
	if _, err := d.Migrator().Exec("CREATE TABLE items (id TEXT NOT NULL PRIMARY KEY, n BIGINT NOT NULL, body BYTEA NOT NULL)"); err != nil {
		t.Fatal(err)
	}
}

func insert(ctx context.Context, tx *db.Tx, id string, n int64) error {
	_, err := tx.Exec(ctx, "INSERT INTO items (id, n, body) VALUES ($1, $2, $3)", id, n, []byte("body of "+id))
	return err
}

func count(t testing.TB, d *db.DB) (n int) {
	t.Helper()
	err := d.Read(context.Background(), func(tx *db.Tx) error {
		return tx.QueryRow(context.Background(), "SELECT COUNT(*) FROM items").Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestWriteAndRead(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		makeTable(t, d)
		ctx := t.Context()
		if err := d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, "a", 1) }); err != nil {
			t.Fatal(err)
		}
		err := d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, "a", 1) })
		if !db.IsUnique(err) {
			t.Fatalf("a duplicate: %v", err)
		}
		if n := count(t, d); n != 1 {
			t.Fatalf("%d rows", n)
		}
	})
}

// TestNeighboursAreIsolated has functions of one batch fail in every way between functions that succeed.
func TestNeighboursAreIsolated(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		makeTable(t, d)
		ctx := t.Context()
		refused := errors.New("refused")
		const each = 40
		var wg sync.WaitGroup
		problems := make(chan error, each*8)
		try := func(want func(error) bool, fn func(tx *db.Tx) error) {
			wg.Go(func() {
				if err := d.Tx(ctx, fn); !want(err) {
					problems <- fmt.Errorf("unexpected answer %w", err)
				}
			})
		}
		ok := func(err error) bool { return err == nil }
		for i := range each {
			try(ok, func(tx *db.Tx) error { return insert(ctx, tx, fmt.Sprint("good", i), 1) })
			try(func(err error) bool { return errors.Is(err, refused) }, func(tx *db.Tx) error {
				if err := insert(ctx, tx, fmt.Sprint("wrote and refused", i), 1); err != nil {
					return err
				}
				return refused
			})
			try(func(err error) bool { return errors.Is(err, refused) }, func(tx *db.Tx) error { return refused })
			try(func(err error) bool { return err != nil }, func(tx *db.Tx) error {
				if err := insert(ctx, tx, fmt.Sprint("broke", i), 1); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, "INSERT INTO nowhere (id) VALUES ($1)", "x")
				return err
			})
			try(func(err error) bool { return err != nil }, func(tx *db.Tx) error {
				insert(ctx, tx, fmt.Sprint("swallowed", i), 1)
				tx.Exec(ctx, "INSERT INTO nowhere (id) VALUES ($1)", "x")
				return nil
			})
		}
		wg.Wait()
		close(problems)
		for err := range problems {
			t.Error(err)
		}
		if n := count(t, d); n != each {
			t.Errorf("%d rows, want %d", n, each)
		}
	})
}
