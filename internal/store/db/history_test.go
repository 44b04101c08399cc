package db_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
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
}
