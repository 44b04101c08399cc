// Package pkitest has what tests share: fresh databases on both engines, and faults for them. Only tests may import it.
//
// The tests of a package that this one imports must be of the external test package (package db_test), or the imports would
// go in a circle.
package pkitest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"chancery/internal/store/db"
	"chancery/internal/store/schema"
)

// RecoveryWork is at what the recovery files of tests' authorities are sealed (setup.Options): in a millisecond, not in a second.
const RecoveryWork = 10

// EachDB runs test on a fresh, migrated database of each engine: SQLite, and a real PostgreSQL. The database is closed when
// the test ends.
func EachDB(t *testing.T, test func(t *testing.T, d *db.DB)) {
	t.Helper()
	EachURL(t, func(t *testing.T, url string) { test(t, Open(t, db.Options{URL: url})) })
}

// EachURL is EachDB for tests that open the database themselves.
func EachURL(t *testing.T, test func(t *testing.T, url string)) {
	t.Helper()
	var ran []db.Dialect
	for _, engine := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			ran = append(ran, engine)
			test(t, URL(t, engine))
		})
	}
	if chosen := flag.Lookup("test.run").Value.String(); len(ran) != 2 && !strings.Contains(chosen, "/") {
		t.Fatalf("the test ran on %v, not on both engines", ran)
	}
}

// URL makes a fresh, migrated database of the given engine. It is gone when the test ends.
func URL(tb testing.TB, engine db.Dialect) string {
	tb.Helper()
	if engine == db.SQLite {
		return sqliteURL(tb)
	}
	return postgresURL(tb)
}

// Open opens a database for as long as the test runs.
func Open(tb testing.TB, o db.Options) *db.DB {
	tb.Helper()
	d, err := db.Open(tb.Context(), o)
	if err != nil {
		tb.Fatalf("open the database: %v", err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Errorf("close the database: %v", err)
		}
	})
	return d
}

func sqliteURL(tb testing.TB) string {
	tb.Helper()
	template, err := sqliteTemplate()
	if err != nil {
		tb.Fatalf("make the SQLite template: %v", err)
	}
	dir := filepath.Join(tb.TempDir(), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	path := filepath.Join(dir, "chancery.db")
	if err := os.WriteFile(path, template, 0o600); err != nil {
		tb.Fatal(err)
	}
	return "sqlite:" + path
}

// sqliteTemplate is the file of a migrated, empty database.
var sqliteTemplate = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "chancery-sqlite-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "chancery.db")
	if err := migrate("sqlite:" + path); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

func migrate(url string) error {
	ctx := context.Background()
	d, err := db.Open(ctx, db.Options{URL: url})
	if err != nil {
		return err
	}
	if err := schema.Migrate(ctx, d); err != nil {
		d.Close()
		return fmt.Errorf("migrate: %w", err)
	}
	return d.Close()
}
