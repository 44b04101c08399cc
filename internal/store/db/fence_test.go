package db_test

import (
	"context"
	"database/sql"
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

// TestFenceAgainstBusyAndStill: a fence is suspended though its process writes all the time, and though it stands still with the row locked;
// from then on it gives and ends no logins either. It goes on where it is resumed, unless the fence was raised.
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
						if !errors.Is(err, db.ErrSuspended) || errors.Is(err, db.ErrFenced) || !fault.Is(err, fault.Unavailable) || n < 9 {
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
		if err := two.SuspendFence(ctx, "n1"); err != nil {
			t.Fatalf("it writes all the time, and is not shut out: %v", err)
		}
		writers.Wait()
	}
	write := func() error {
		return one.Tx(ctx, func(tx *db.Tx) error {
			return tx.Send(ctx, `INSERT INTO clock (name, high_water) VALUES ($1, 1)`, db.NewID())
		})
	}
	then := func(do func(tx *db.Tx) error) error {
		t.Helper()
		if err := two.Tx(ctx, do); err != nil {
			t.Fatal(err)
		}
		return write()
	}
	resume := func(tx *db.Tx) error { return db.ResumeFence(ctx, tx, "n1", 14) }
	if err := one.DropLogin(ctx, "chancery_x"); !errors.Is(err, db.ErrSuspended) {
		t.Errorf("it is suspended, and ends logins: %v", err)
	}
	if err := then(resume); err != nil {
		t.Errorf("it is suspended no more: %v", err)
	}
	if err := then(func(tx *db.Tx) error { return db.RaiseFence(ctx, tx, "n1") }); !errors.Is(err, db.ErrFenced) {
		t.Errorf("its fence is raised: %v", err)
	}
	if err := two.SuspendFence(ctx, "n1"); err != nil {
		t.Fatal(err)
	}
	if err := then(resume); !errors.Is(err, db.ErrFenced) {
		t.Errorf("it was suspended and resumed after its fence was raised: %v", err)
	}

	take(20)
	runs := 0
	err := one.Tx(ctx, func(tx *db.Tx) error {
		runs++
		// The server itself would end it after fifteen seconds.
		if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
			return err
		}
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
		if err := two.SuspendFence(ctx, "n1"); err != nil {
			t.Errorf("it stands still, and is not shut out: %v", err)
		}
		return tx.QueryRow(ctx, `SELECT COUNT(*) FROM clock`).Scan(&n) // it goes on
	})
	if !errors.Is(err, db.ErrSuspended) || runs < 2 {
		t.Errorf("it stood still, and writes in %d runs: %v", runs, err)
	}
	if err := then(func(tx *db.Tx) error { return db.RaiseFence(ctx, tx, "n1") }); !errors.Is(err, db.ErrFenced) {
		t.Errorf("its fence is raised: %v", err)
	}
	for what, err := range map[string]error{
		"gives": one.AddLogin(ctx, "chancery_x", false), "ends": one.DropLogin(ctx, "chancery_x"), "suspends": one.SuspendFence(ctx, "n2"),
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

// TestFenceOfAnotherLogin has nodes with logins of their own, as the administrator's functions make them: one of them suspends the other's
// fence, whose process stands still with the row and another lock on it, and is ended by none but those functions.
func TestFenceOfAnotherLogin(t *testing.T) {
	l, ctx := newLogins(t), t.Context()
	l.install()
	one := l.as("chancery_one")
	if err := schema.Migrate(ctx, one); err != nil {
		t.Fatal(err)
	}
	if err := one.AddLogin(ctx, "chancery_two", false); err != nil {
		t.Fatal(err)
	}
	two := l.as("chancery_two")
	if err := two.Tx(ctx, func(tx *db.Tx) error { db.TakeFence(tx, "n2", 10); return nil }); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := one.Migrator().QueryRowContext(ctx, `SELECT count(*) FROM pg_stat_activity WHERE usename = 'chancery_two' AND state IS NOT NULL`).Scan(&n); err != nil || n != 0 {
		t.Fatalf("one sees how %d sessions of the other do: this proves nothing: %v", n, err)
	}
	runs := 0
	err := two.Tx(ctx, func(tx *db.Tx) error {
		if runs++; runs > 1 {
			return tx.Send(ctx, `INSERT INTO clock (name, high_water) VALUES ('still', 1)`)
		}
		for _, statement := range []string{
			`SET LOCAL idle_in_transaction_session_timeout = 0`, `SELECT 1 FROM write_mark WHERE node = 'n2' FOR KEY SHARE`, `INSERT INTO clock (name, high_water) VALUES ('still', 1)`,
		} {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return two.Aside(ctx, func(*sql.Conn) error { // which locks the row as well, so that it has two holders
			return one.SuspendFence(ctx, "n2")
		})
	})
	if !errors.Is(err, db.ErrSuspended) || runs < 2 {
		t.Errorf("it stood still, and writes in %d runs: %v", runs, err)
	}
	l.notEnded(one)
}

// notEnded has an administrator's session stand in the way of a fence: the function ends those of nodes and of the owner alone.
func (l *logins) notEnded(one *db.DB) {
	l.Helper()
	ctx := l.Context()
	conn, err := l.as("chancery").Migrator().Conn(ctx)
	if err != nil {
		l.Fatal(err)
	}
	defer conn.Close()
	for _, statement := range []string{"BEGIN", "SELECT 1 FROM write_mark WHERE node = 'n2' FOR UPDATE"} {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			l.Fatal(err)
		}
	}
	var held []db.Session
	for end := time.Now().Add(time.Minute); len(held) == 0 && time.Now().Before(end); { // a machine with much to do may look too late
		if held, err = one.RowHeldBy(ctx, "n2"); err == nil {
			l.Fatal("the row is the administrator's, and was taken")
		}
	}
	if len(held) != 1 || held[0].Role != "chancery" {
		l.Errorf("the row is the administrator's, and is said to be held by %v", held)
	}
	waits, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- one.SuspendFence(waits, "n2") }()
	// Once it has stood still for long enough, and is waited for.
	for observer, asked := l.as("chancery").Migrator(), 0; asked == 0; {
		var ended int
		err := observer.QueryRowContext(ctx, `SELECT count(*), coalesce(sum(chancery_logins.end_standing(w.pid)), 0)
			FROM pg_stat_activity w JOIN pg_stat_activity s ON s.pid = ANY (pg_blocking_pids(w.pid))
			WHERE s.state = 'idle in transaction' AND s.state_change < clock_timestamp() - interval '600 milliseconds'`).Scan(&asked, &ended)
		if err != nil || ended > 0 {
			l.Fatalf("a session of the administrator's is ended: %d, %v", ended, err)
		}
	}
	cancel()
	if err := <-done; err == nil {
		l.Error("the row is the administrator's, and was taken")
	}
	if _, err := conn.ExecContext(ctx, "COMMIT"); err != nil {
		l.Errorf("the administrator's session: %v", err)
	}
}

// TestTakeFenceWaitsForAside has a process take the fence of one that gives a login just now: that one ends first, or is refused.
func TestTakeFenceWaitsForAside(t *testing.T) {
	ctx, url := t.Context(), pkitest.URL(t, db.Postgres)
	one, two := pkitest.Open(t, db.Options{URL: url}), pkitest.Open(t, db.Options{URL: url})
	if err := schema.Migrate(ctx, one); err != nil {
		t.Fatal(err)
	}
	take := func(d *db.DB, number int64) error {
		return d.Tx(ctx, func(tx *db.Tx) error { db.TakeFence(tx, "n1", number); return nil })
	}
	if err := take(one, 10); err != nil {
		t.Fatal(err)
	}
	taken := make(chan error, 1)
	err := one.Aside(ctx, func(conn *sql.Conn) error {
		go func() { taken <- take(two, 20) }()
		for waits := false; !waits; {
			select {
			case err := <-taken:
				t.Errorf("the fence is taken while its process stands in the middle of what it does: %v", err)
				taken <- err
				return nil
			default:
			}
			err := conn.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid)))`).Scan(&waits)
			if err != nil {
				return err
			}
		}
		_, err := conn.ExecContext(ctx, `INSERT INTO clock (name, high_water) VALUES ('aside', 1)`)
		return err
	})
	if err := errors.Join(err, <-taken); err != nil {
		t.Error(err)
	}
	if err := one.Aside(ctx, func(*sql.Conn) error { return nil }); !errors.Is(err, db.ErrFenced) {
		t.Errorf("another process has its fence: %v", err)
	}
}
