package db_test

import (
	"fmt"
	"log/slog"
	"testing"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestPromotedBesideFollowers: a standby is promoted while its primary goes on, and another standby follows that one still. Who was connected
// before goes to the promoted one, whether a connection has met it or nothing is wrong but that the follower is none that commits wait for.
func TestPromotedBesideFollowers(t *testing.T) {
	t.Parallel()
	replaced := pkitest.Postgres(t, "fsync=off", "full_page_writes=off", "wal_keep_size=64MB")
	waitFor := func(standbys string) {
		replaced.Exec(t, "ALTER SYSTEM SET synchronous_standby_names = '"+standbys+"'")
		replaced.Reload(t)
	}
	waitFor("follower")
	replaced.Standby(t, "follower", "fsync=off")
	promoted := replaced.Standby(t, "promoted", "fsync=off")
	open := func(first, second *pkitest.PostgresServer) *db.DB {
		return pkitest.Open(t, db.Options{URL: fmt.Sprintf("postgres://chancery@127.0.0.1:%d,127.0.0.1:%d/postgres?sslmode=disable", first.Port, second.Port),
			Durability: db.Synchronous, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	}
	d := open(promoted, replaced)
	if at, err := server(t, d); err != nil || at != replaced.Port {
		t.Fatalf("it is at %d, %v, and the primary is at %d", at, err, replaced.Port)
	}
	watch(t, d)
	promoted.Exec(t, "SELECT pg_promote()")
	await(t, "a connection to the promoted server", func() bool {
		// The connection that asks alone is lost, and the next is to the first that the URL names.
		replaced.Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE query ~ 'transaction_read_only|pg_stat_replication' AND pid <> pg_backend_pid()`)
		at, err := server(t, d)
		return err == nil && at == promoted.Port
	})

	waitFor("")
	late := open(replaced, promoted)
	if at, err := server(t, late); err != nil || at != replaced.Port {
		t.Fatalf("it is at %d, %v, and the first is at %d", at, err, replaced.Port)
	}
	watch(t, late)
	await(t, "a connection to the promoted server", func() bool { at, err := server(t, late); return err == nil && at == promoted.Port })
}

// server is the port of the server that is written to.
func server(t *testing.T, d *db.DB) (port int, err error) {
	err = d.ReadSnapshot(t.Context(), func(tx *db.Tx) error { return tx.QueryRow(t.Context(), "SELECT inet_server_port()").Scan(&port) })
	return port, err
}
