package db_test

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/schema"
)

// TestDemotedIsNotRead: the primary beside a node takes a transaction that no standby has, another is promoted, and the one that was the primary
// comes back as a standby of nobody, as Patroni leaves it where it reaches no other. It shows the transaction then, and the node does not;
// and the node learns that a history has begun.
func TestDemotedIsNotRead(t *testing.T) {
	t.Parallel()
	beside := pkitest.Postgres(t, "fsync=off", "full_page_writes=off", "wal_keep_size=64MB")
	beside.Exec(t, "CREATE DATABASE chancery")
	if err := schema.Migrate(t.Context(), pkitest.Open(t, db.Options{URL: beside.URL("chancery")})); err != nil {
		t.Fatal(err)
	}
	other := beside.Standby(t, "other", "fsync=off")
	wait := func(standbys string) {
		beside.Exec(t, "ALTER SYSTEM SET synchronous_standby_names = '"+standbys+"'")
		beside.Reload(t)
	}
	wait("other")
	url := fmt.Sprintf("postgres://chancery@127.0.0.1:%d,127.0.0.1:%d/chancery?sslmode=disable&connect_timeout=5", beside.Port, other.Port)
	d := pkitest.Open(t, db.Options{URL: url, ReadURL: beside.URL("chancery"), Node: "n1", Durability: db.Synchronous,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	watch(t, d)
	await(t, "a heartbeat", func() bool { return d.Heartbeat(t.Context(), time.Now()) == nil })
	written(t, d, 1)
	if d.History() != 1 {
		t.Errorf("before any promotion the history is %d", d.History())
	}
	select {
	case <-d.Promoted(): // of before the first heartbeat
	default:
	}
	await(t, "a look at the server beside the node", func() bool { return db.Ruled(d) })

	wait("nobody")
	other.Exec(t, "SELECT pg_promote()")
	hung := make(chan error, 1)
	lost, looks := pkitest.Open(t, db.Options{URL: beside.URL("chancery")}), pkitest.Open(t, db.Options{URL: beside.URL("chancery")})
	go func() { hung <- put(t, lost, 99) }()
	var waiting bool
	await(t, "a commit that waits for a standby", func() bool {
		if err := looks.ReadSnapshot(t.Context(), func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), `SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep')`).Scan(&waiting)
		}); err != nil {
			t.Fatal(err)
		}
		return waiting
	})
	if err := os.WriteFile(filepath.Join(beside.Dir, "data", "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := beside.Crash(); err != nil {
		t.Fatal(err)
	}
	if err := beside.Restart(); err != nil {
		t.Fatal(err)
	}
	<-hung

	shows := pkitest.Open(t, db.Options{URL: url, ReadURL: beside.URL("chancery"), Node: "n2", Durability: db.Synchronous})
	if value, _, err := look(t, shows); err != nil || value != 99 {
		t.Fatalf("the server that was the primary shows %d, %v, and the commit that waited was of 99", value, err)
	}
	never := func() {
		t.Helper()
		seen := 0
		for begun := time.Now(); seen < 20 || time.Since(begun) < 2*time.Second; {
			value, _, err := look(t, d)
			if err != nil {
				continue // while nothing answers
			}
			if seen++; value != 1 {
				t.Fatalf("the node shows %d, which nobody acknowledged", value)
			}
		}
	}
	never()
	select {
	case <-d.Promoted():
	case <-time.After(time.Minute):
		t.Fatal("nothing tells that another was promoted")
	}
	d.SetDurability(db.Local) // the promoted server has no standby
	await(t, "a heartbeat at the promoted server", func() bool { return d.Heartbeat(t.Context(), time.Now()) == nil })
	if d.History() != 2 {
		t.Errorf("after the promotion the history is %d", d.History())
	}
	// It is started again, and asks one that does not answer for what comes after that transaction.
	configure(t, beside, "primary_conninfo = 'host=/nowhere'")
	if err := beside.Crash(); err != nil {
		t.Fatal(err)
	}
	if err := beside.Restart(); err != nil {
		t.Fatal(err)
	}
	await(t, "that the server is known", func() bool { err := d.Unread(); return err != nil && strings.Contains(err.Error(), "was the primary") })
	never()
}

// configure adds a line to a server's configuration, for its next start.
func configure(t *testing.T, s *pkitest.PostgresServer, line string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(s.Dir, "data", "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(line + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestDemotedFollowsAnArchive: the primary beside a node is stopped, another is promoted, and the one that was the primary follows it by the
// log that it fetches, connected to nobody. It is not read, and that is said, until it shows what was acknowledged at the promoted one.
func TestDemotedFollowsAnArchive(t *testing.T) {
	t.Parallel()
	beside := pkitest.Postgres(t, "fsync=off", "full_page_writes=off", "wal_keep_size=64MB", "wal_retrieve_retry_interval=100ms")
	beside.Exec(t, "CREATE DATABASE chancery")
	if err := schema.Migrate(t.Context(), pkitest.Open(t, db.Options{URL: beside.URL("chancery")})); err != nil {
		t.Fatal(err)
	}
	other := beside.Standby(t, "other", "fsync=off", "wal_keep_size=64MB")
	d := pkitest.Open(t, db.Options{
		URL:     fmt.Sprintf("postgres://chancery@127.0.0.1:%d,127.0.0.1:%d/chancery?sslmode=disable&connect_timeout=5", beside.Port, other.Port),
		ReadURL: beside.URL("chancery"), Node: "n1", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	watch(t, d)
	await(t, "a heartbeat", func() bool { return d.Heartbeat(t.Context(), time.Now()) == nil })
	written(t, d, 1)
	await(t, "a look at the server beside the node", func() bool { return db.Ruled(d) })

	configure(t, beside, "restore_command = 'cp "+filepath.Join(other.Dir, "data", "pg_wal")+"/%f %p'")
	if err := os.WriteFile(filepath.Join(beside.Dir, "data", "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(beside.PID, syscall.SIGINT); err != nil { // it sends all that it has, and ends
		t.Fatal(err)
	}
	await(t, "its end", func() bool {
		_, err := os.Stat(filepath.Join(beside.Dir, "data", "postmaster.pid"))
		return errors.Is(err, fs.ErrNotExist)
	})
	other.Exec(t, "SELECT pg_promote()")
	if err := beside.Restart(); err != nil {
		t.Fatal(err)
	}
	await(t, "that it is said", func() bool { err := d.Unread(); return err != nil && strings.Contains(err.Error(), "was the primary") })
	await(t, "a heartbeat at the promoted server", func() bool { return d.Heartbeat(t.Context(), time.Now()) == nil && d.History() == 2 })
	await(t, "the server beside the node", func() bool { return d.Unread() == nil })
	written(t, d, 2)
	await(t, "what was written, read at the server beside the node", func() bool {
		beside := false
		value, _, err := look(t, d)
		if err == nil {
			err = d.Read(t.Context(), func(tx *db.Tx) error { beside = tx.AtStandby(); return nil })
		}
		return err == nil && value == 2 && beside
	})
	if db.Ruled(d) {
		t.Error("it follows, and is known as one that may not")
	}
}
