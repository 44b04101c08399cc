package db_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestHeldRow has somebody else's session hold a row for as long as it likes: who wants it is refused, once and for all, and those who
// share a transaction with him are served.
func TestHeldRow(t *testing.T) {
	t.Parallel()
	ctx, url := t.Context(), pkitest.URL(t, db.Postgres)
	d := pkitest.Open(t, db.Options{URL: url})
	makeTable(t, d)
	if err := d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, "held", 1) }); err != nil {
		t.Fatal(err)
	}
	other, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(context.WithoutCancel(ctx))
	if _, err := other.Exec(ctx, "BEGIN; UPDATE items SET n = 2 WHERE id = 'held'"); err != nil {
		t.Fatal(err)
	}
	const change = "UPDATE items SET n = n + 10 WHERE id = $1"
	execute := func(tx *db.Tx) error { _, err := tx.Exec(ctx, change, "held"); return err }
	send := func(tx *db.Tx) error { return tx.Send(ctx, change, "held") }
	late := func(tx *db.Tx) error {
		tx.BeforeCommit("late", "held", func(ctx context.Context, tx *db.Tx, _ []any) error { return execute(tx) })
		return insert(ctx, tx, "late", 1)
	}

	// One after the other into the lane, behind a function that waits for them.
	var writers sync.WaitGroup
	queued, begun, waits := 0, make(chan struct{}, 9), make(chan struct{})
	enqueue := func(fn func(tx *db.Tx) error, judge func(error)) {
		writers.Go(func() { judge(d.Tx(ctx, fn)) })
		queued++
		db.AwaitQueue(d, queued)
	}
	writers.Go(func() {
		if err := d.Tx(ctx, func(tx *db.Tx) error { begun <- struct{}{}; <-waits; return nil }); err != nil {
			t.Error(err)
		}
	})
	<-begun
	served := func(err error) {
		if err != nil {
			t.Errorf("a neighbour: %v", err)
		}
	}
	refused := func(err error) {
		if !errors.Is(err, db.ErrHeld) || !fault.Is(err, fault.Unavailable) || errors.Is(err, db.ErrUnknownOutcome) || !strings.Contains(err.Error(), "nothing was changed") {
			t.Errorf("who wants the row: %v", err)
		}
	}
	enqueue(func(tx *db.Tx) error { return insert(ctx, tx, "before", 1) }, served)
	enqueue(execute, refused)
	enqueue(func(tx *db.Tx) error { return insert(ctx, tx, "between", 1) }, served)
	enqueue(send, refused)
	enqueue(func(tx *db.Tx) error { return tx.Send(ctx, "INSERT INTO items (id, n, body) VALUES ('after', 1, '')") }, served)
	close(waits)
	writers.Wait()
	refused(d.Tx(ctx, late))
	if n := count(t, d); n != 4 {
		t.Errorf("%d rows: the neighbours' are not there, or one of those that were refused", n)
	}
	if _, err := other.Exec(ctx, "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	for _, fn := range []func(*db.Tx) error{execute, send, late} {
		if err := d.Tx(ctx, fn); err != nil {
			t.Errorf("it is let go of: %v", err)
		}
	}
	var n int
	if err := d.Read(ctx, func(tx *db.Tx) error { return tx.QueryRow(ctx, "SELECT n FROM items WHERE id = 'held'").Scan(&n) }); err != nil || n != 31 {
		t.Errorf("the row says %d: %v", n, err)
	}
}

// holds has a session of a login do something, and stay in the middle of it: it works, as far as PostgreSQL can tell.
func (l *logins) holds(role, begin string) {
	l.Helper()
	conn, err := pgx.Connect(l.Context(), l.url(role))
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = conn.Close(context.Background()) })
	if _, err := conn.Exec(l.Context(), begin); err != nil {
		l.Fatalf("as %s: %s: %v", role, begin, err)
	}
	slept := make(chan struct{})
	go func() {
		defer close(slept)
		_, _ = conn.Exec(context.WithoutCancel(l.Context()), "SELECT pg_sleep(3600)")
	}()
	ends := fmt.Sprintf("SELECT pg_terminate_backend(%d)", conn.PgConn().PID()) // whether it sleeps by then or not
	l.Cleanup(func() {                                                          // before the connection is closed
		l.pg.Exec(l.T, ends)
		<-slept
	})
}

// TestLoginsOfThoseWhoResist: whatever a login holds on to, it keeps no other from being given, and is ended itself.
func TestLoginsOfThoseWhoResist(t *testing.T) {
	t.Parallel()
	l, ctx := newLogins(t), t.Context()
	l.install()
	one := l.as("chancery_one")
	l.tables(one)
	add := func(role string, limited bool) {
		t.Helper()
		if err := one.AddLogin(ctx, role, limited); err != nil {
			t.Fatal(err)
		}
	}
	add("chancery_near", true)
	add("chancery_two", false)
	for _, role := range []string{"chancery_near", "chancery_two"} {
		if err := runSQL(ctx, l.as(role), "BEGIN", "LOCK TABLE chancery_logins.gate IN ACCESS SHARE MODE"); err == nil || !strings.Contains(err.Error(), "42501") {
			t.Errorf("%s may lock what the functions lock: %v", role, err)
		}
	}
	l.holds("chancery_near", "SELECT pg_advisory_lock(7161403)") // as the functions did once
	l.holds("chancery_near", "BEGIN; ALTER ROLE chancery_near PASSWORD 'x'")
	add("chancery_three", false)
	add("chancery_four", true)
	if err := one.DropLogin(ctx, "chancery_near"); err != nil {
		t.Errorf("it is not ended: %v", err)
	}
	// One that may call the functions can hold their gate, for as long as it has its login.
	l.holds("chancery_two", "BEGIN; SELECT chancery_logins.add('chancery_two', false); SELECT chancery_logins.add('chancery_four', true)")
	if err := one.AddLogin(ctx, "chancery_five", false); !errors.Is(err, db.ErrHeld) || !fault.Is(err, fault.Unavailable) {
		t.Errorf("the gate is held: %v", err)
	}
	if err := one.ShutLogin(ctx, "chancery_two"); err != nil {
		t.Errorf("it is not shut: %v", err)
	}
	if d, err := db.Open(ctx, db.Options{URL: l.url("chancery_two")}); err == nil {
		_ = d.Close()
		t.Error("it was shut, and is let in")
	}
	add("chancery_five", false)
	add("chancery_two", false) // it was not to go after all
	_ = l.as("chancery_two")
}

// TestNoneIsEndedBetweenTwoStatements: a session that has just had an answer does not stand still, though another waits for it.
func TestNoneIsEndedBetweenTwoStatements(t *testing.T) {
	t.Parallel()
	ctx, url := t.Context(), pkitest.URL(t, db.Postgres)
	d := pkitest.Open(t, db.Options{URL: url})
	makeTable(t, d)
	if err := d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, "held", 1) }); err != nil {
		t.Fatal(err)
	}
	connect := func() *pgx.Conn {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close(context.WithoutCancel(ctx)) })
		return conn
	}
	waits := connect()
	var pid int64
	if err := waits.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		t.Fatal(err)
	}
	for alive := false; !alive; {
		holder := connect()
		if _, err := holder.Exec(ctx, "BEGIN; UPDATE items SET n = 2"); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { defer close(done); _, _ = waits.Exec(ctx, "UPDATE items SET n = 3") }()
		var asked time.Time
		for blocked := false; !blocked; {
			asked = time.Now()
			if err := holder.QueryRow(ctx, "SELECT pg_backend_pid() = ANY (pg_blocking_pids($1))", pid).Scan(&blocked); err != nil {
				t.Fatal(err)
			}
		}
		d.EndStanding(ctx, pid)
		soon := time.Since(asked) < 500*time.Millisecond // else it stood still, on a machine that has much to do
		_, err := holder.Exec(ctx, "ROLLBACK")
		if alive = err == nil; !alive && soon {
			t.Fatalf("it is ended: %v", err)
		}
		<-done
	}
}

// TestShutLoginWithoutAnswer: the COMMIT of a change of a login has no answer, and was done, or was not. The change is made whole, and a login
// that is shut is not removed by being shut again.
func TestShutLoginWithoutAnswer(t *testing.T) {
	t.Parallel()
	l, ctx := newLogins(t), t.Context()
	l.install()
	one := l.as("chancery_one")
	l.tables(one)
	var faults pkitest.Faults
	d := pkitest.Open(t, db.Options{URL: l.url("chancery_one"), Wrap: faults.Wrap})
	const role = "chancery_two"
	if err := one.AddLogin(ctx, role, false); err != nil {
		t.Fatal(err)
	}
	standing := func() (s db.LoginStanding, there bool) {
		t.Helper()
		all, err := one.LoginStandings(ctx)
		if err != nil {
			t.Fatal(err)
		}
		s, there = all[role]
		return s, there
	}
	made, _ := standing()
	for _, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway} {
		faults.FailCommit(1, outcome)
		if err := d.ShutLogin(ctx, role); err != nil {
			t.Fatalf("%s: shut: %v", outcome, err)
		}
		if s, there := standing(); !there || !s.Shut || s.ID != made.ID {
			t.Errorf("%s: shut: %+v", outcome, s)
		}
		faults.FailCommit(1, outcome)
		if _, err := d.ReopenLogin(ctx, role, false); err != nil {
			t.Fatalf("%s: given back: %v", outcome, err)
		}
		if s, there := standing(); !there || s.Shut || s.ID != made.ID {
			t.Errorf("%s: given back: %+v", outcome, s)
		}
	}
	for try := range 3 {
		faults.FailCommit(try+1, pkitest.NotPersisted)
	}
	if err := d.ShutLogin(ctx, role); !errors.Is(err, db.ErrUnknownOutcome) {
		t.Errorf("no COMMIT is answered: %v", err)
	}
	if again, err := d.ReopenLogin(ctx, role, false); again || err != nil {
		t.Errorf("it is not shut, and was given back: %v, %v", again, err)
	}
	if err := d.DropLogin(ctx, role); err != nil {
		t.Fatal(err)
	}
	if again, err := d.ReopenLogin(ctx, role, false); again || err != nil {
		t.Errorf("it was taken away for good, and was given back: %v, %v", again, err)
	}
	if _, there := standing(); there {
		t.Error("it is there again")
	}
}
