package db_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestLockOfACommitThatWaits: another node's COMMIT waits for a standby that stands still, and has a row meanwhile. Who wants that row waits on
// behind it, also behind others who do, for as long as there is patience; then he is not told that somebody left a session open. One that
// was left open is waited for briefly all the same.
func TestLockOfACommitThatWaits(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pg := pkitest.Postgres(t, "fsync=off")
	pg.Exec(t, "CREATE DATABASE chancery")
	d := pkitest.Open(t, db.Options{URL: pg.URL("chancery")})
	makeTable(t, d)
	if err := d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, "held", 1) }); err != nil {
		t.Fatal(err)
	}
	standbys := func(names string) {
		t.Helper()
		pg.Exec(t, "ALTER SYSTEM SET synchronous_standby_names = '"+names+"'")
		pg.Reload(t)
	}
	connect := func() *pgx.Conn {
		t.Helper()
		conn, err := pgx.Connect(ctx, pg.URL("chancery"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close(context.WithoutCancel(ctx)) })
		return conn
	}
	looks := connect()
	ask := func(query string) (answer string) {
		t.Helper()
		if err := looks.QueryRow(ctx, query).Scan(&answer); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		return answer
	}
	// commits has a session take the row and wait for nobody's answer; it is let go of when there are no names any more.
	commits := func() (done chan error) {
		t.Helper()
		standbys("nobody")
		peer, done := connect(), make(chan error, 1)
		go func() { _, err := peer.Exec(ctx, "UPDATE items SET n = n + 1 WHERE id = 'held'"); done <- err }()
		await(t, "a commit that waits for a standby", func() bool {
			return ask("SELECT COUNT(*)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == "1"
		})
		return done
	}
	change := func(d *db.DB) error {
		db.WaitBriefly(d)
		return d.Tx(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, "UPDATE items SET n = n + 10 WHERE id = $1", "held")
			return err
		})
	}

	done := commits()
	another, queued := connect(), make(chan error, 1) // it stands in the queue before us, and holds nobody up by itself
	go func() { _, err := another.Exec(ctx, "UPDATE items SET n = n + 1 WHERE id = 'held'"); queued <- err }()
	const waits = "FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
	await(t, "another who waits", func() bool { return ask("SELECT COUNT(*)::text "+waits) == "1" })
	answer := make(chan error, 1)
	go func() { answer <- change(d) }()
	newest := func() string {
		return ask("SELECT CASE COUNT(*) WHEN 2 THEN MAX(xact_start)::text ELSE '' END " + waits)
	}
	var first string
	await(t, "one who wants the row", func() bool { first = newest(); return first != "" })
	await(t, "a second try", func() bool { now := newest(); return now != "" && now != first })
	select {
	case err := <-answer:
		t.Fatalf("one who waits for a commit is answered before that is: %v", err)
	default:
	}
	standbys("")
	for _, one := range []chan error{done, queued, answer} {
		if err := <-one; err != nil {
			t.Errorf("the standby is waited for no more: %v", err)
		}
	}
	if n := ask("SELECT n::text FROM items WHERE id = 'held'"); n != "13" {
		t.Errorf("the row says %s", n)
	}

	brief := pkitest.Open(t, db.Options{URL: pg.URL("chancery"), Patience: 2 * time.Second})
	done = commits()
	err := change(brief)
	if !fault.Is(err, fault.Unavailable) || errors.Is(err, db.ErrHeld) || !strings.Contains(err.Error(), "synchronous standby") {
		t.Errorf("one whose patience ends: %v", err)
	}
	standbys("")
	if err := <-done; err != nil {
		t.Error(err)
	}
	open := connect()
	if _, err := open.Exec(ctx, "BEGIN; UPDATE items SET n = 0 WHERE id = 'held'"); err != nil {
		t.Fatal(err)
	}
	if err := change(d); !errors.Is(err, db.ErrHeld) || !fault.Is(err, fault.Unavailable) {
		t.Errorf("a session that was left open: %v", err)
	}
}
