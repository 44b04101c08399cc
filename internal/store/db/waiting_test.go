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
)

// TestWaitForAConnection: snapshots have all connections. A write waits for no longer than its caller does, and says that nothing was changed;
// one that has time is done when there is a connection.
func TestWaitForAConnection(t *testing.T) {
	d := pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.Postgres)})
	makeTable(t, d)
	var readers sync.WaitGroup
	defer readers.Wait()
	leave := make(chan struct{})
	free := sync.OnceFunc(func() { close(leave) })
	defer free()
	inside := make(chan struct{})
	for range 8 {
		readers.Go(func() {
			if err := d.ReadSnapshot(t.Context(), func(*db.Tx) error { inside <- struct{}{}; <-leave; return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	for range 8 {
		<-inside
	}
	write := func(ctx context.Context, id string) chan error {
		answer := make(chan error, 1)
		go func() { answer <- d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, id, 1) }) }()
		return answer
	}
	heard := func(answer chan error) error {
		t.Helper()
		select {
		case err := <-answer:
			return err
		case <-time.After(time.Minute):
			t.Fatal("a write is not answered")
			return nil
		}
	}
	brief, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond) // of which a busy machine takes some before the call is made
	defer cancel()
	if err := heard(write(brief, "brief")); !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, db.ErrUnknownOutcome) {
		t.Errorf("one with little time: %v", err)
	}
	gone, leaves := context.WithCancel(t.Context())
	answer := write(gone, "gone") // one of the two leads, and the other queues
	patient := write(t.Context(), "patient")
	db.AwaitQueue(d, 1)
	leaves()
	if err := heard(answer); !errors.Is(err, context.Canceled) {
		t.Errorf("one whose caller is gone: %v", err)
	}
	free()
	if err := heard(patient); err != nil {
		t.Errorf("one with time: %v", err)
	}
	if n := count(t, d); n != 1 {
		t.Errorf("%d rows", n)
	}
}

// TestBegunIsBroughtToItsEnd: what has begun is repeated, with whatever connection, though its caller has no time any more.
func TestBegunIsBroughtToItsEnd(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		makeTable(t, d)
		if err := d.Tx(t.Context(), func(tx *db.Tx) error { return insert(t.Context(), tx, "taken", 1) }); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		runs := 0
		err := d.Tx(ctx, func(tx *db.Tx) error {
			if runs++; runs == 1 {
				cancel()
				return insert(context.WithoutCancel(ctx), tx, "taken", 1) // a duplicate key, after which a function has another run
			}
			return insert(context.WithoutCancel(ctx), tx, "other", 1)
		})
		if err != nil || runs != 2 || count(t, d) != 2 {
			t.Errorf("%v after %d runs, %d rows", err, runs, count(t, d))
		}
	})
}
