package schema_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/schema"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden file anew")

// describe is the schema as one text for both engines: tables with columns and keys, then indexes.
func describe(t *testing.T, d *db.DB) string {
	t.Helper()
	ctx := t.Context()
	var text strings.Builder
	err := d.Read(ctx, func(tx *db.Tx) error {
		text.Reset()
		tables, err := db.Tables(ctx, tx)
		if err != nil {
			return err
		}
		for _, table := range tables {
			fmt.Fprintf(&text, "%s (key %s)\n", table.Name, strings.Join(table.Key, ", "))
			for _, c := range table.Columns {
				null := "null"
				if c.NotNull {
					null = "not null"
				}
				fmt.Fprintf(&text, "  %s %s %s\n", c.Name, c.Type, null)
			}
		}
		query := "SELECT indexname FROM pg_indexes WHERE schemaname = current_schema() AND indexname NOT LIKE '%\\_pkey' AND indexname NOT LIKE '%\\_key' ORDER BY indexname COLLATE \"C\""
		if d.Dialect() == db.SQLite {
			query = "SELECT name FROM sqlite_schema WHERE type = 'index' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name"
		}
		rows, err := tx.Query(ctx, query)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var name string
			if err := rows.Scan(&name); err != nil {
				return err
			}
			fmt.Fprintf(&text, "index %s\n", name)
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// TestGoldenSchemaOnBothEngines compares the engines with each other and with the golden file.
func TestGoldenSchemaOnBothEngines(t *testing.T) {
	seen := map[db.Dialect]string{}
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) { seen[d.Dialect()] = describe(t, d) })
	if diff := cmp.Diff(seen[db.SQLite], seen[db.Postgres]); diff != "" {
		t.Errorf("the engines differ (-sqlite +postgres):\n%s", diff)
	}
	golden := filepath.Join("testdata", "schema.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(seen[db.SQLite]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), seen[db.SQLite]); diff != "" {
		t.Errorf("the schema is not the golden one; if that is meant, run the test with -update (-golden +now):\n%s", diff)
	}
}

func TestMigrateAgainDoesNothing(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		if err := schema.Migrate(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if v, err := schema.Version(t.Context(), d); err != nil || v != schema.Newest() || v < 1 {
			t.Errorf("version %d of %d, %v", v, schema.Newest(), err)
		}
	})
}

func TestEmptyDatabaseHasVersionZero(t *testing.T) {
	d := pkitest.Open(t, db.Options{URL: "sqlite:" + filepath.Join(t.TempDir(), "empty.db")})
	if v, err := schema.Version(t.Context(), d); err != nil || v != 0 {
		t.Errorf("version %d, %v", v, err)
	}
}

func file(text string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte("-- +goose Up\n" + text)}
}

// TestNewerSchema: a program meets the schema of a newer one, which says whether the older may run on it.
func TestNewerSchema(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		old := fstest.MapFS{"0090_old.sql": file("CREATE TABLE old (id TEXT NOT NULL PRIMARY KEY);")}
		expanded := fstest.MapFS{"0090_old.sql": old["0090_old.sql"],
			"0091_expand.sql": file("-- readers from: 90\nALTER TABLE old ADD COLUMN note TEXT;")}
		contracted := fstest.MapFS{"0090_old.sql": old["0090_old.sql"], "0091_expand.sql": expanded["0091_expand.sql"],
			"0092_contract.sql": file("ALTER TABLE old DROP COLUMN note;")}
		for _, fsys := range []fstest.MapFS{old, expanded, old} {
			if err := schema.MigrateFS(ctx, d, fsys); err != nil {
				t.Fatalf("with %d files: %v", len(fsys), err)
			}
		}
		if err := schema.MigrateFS(ctx, d, contracted); err != nil {
			t.Fatal(err)
		}
		for _, fsys := range []fstest.MapFS{old, expanded} {
			if err := schema.MigrateFS(ctx, d, fsys); !fault.Is(err, fault.Conflict) {
				t.Errorf("a program of %d migrations on the newest schema: %v", len(fsys), err)
			}
		}
		if _, err := schema.Version(ctx, d); !fault.Is(err, fault.Conflict) {
			t.Errorf("this program: %v", err)
		}
	})
}

// TestBrokenMigrationChangesNothing: a migration of two statements whose second fails.
func TestBrokenMigrationChangesNothing(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		broken := fstest.MapFS{"0090_broken.sql": file("CREATE TABLE half (id TEXT);\nCREATE TABEL other (id TEXT);")}
		if err := schema.MigrateFS(ctx, d, broken); err == nil {
			t.Fatal("it passed")
		}
		if strings.Contains(describe(t, d), "half") {
			t.Error("half of it is there")
		}
		mended := fstest.MapFS{"0090_broken.sql": file("CREATE TABLE half (id TEXT NOT NULL PRIMARY KEY);")}
		if err := schema.MigrateFS(ctx, d, mended); err != nil {
			t.Errorf("mended: %v", err)
		}
	})
}

// TestNodesMigrateTogether starts several nodes on a database without a schema.
func TestNodesMigrateTogether(t *testing.T) {
	s := pkitest.Postgres(t, "fsync=off")
	var wg sync.WaitGroup
	for range 4 {
		d := pkitest.Open(t, db.Options{URL: s.URL("postgres")})
		wg.Go(func() {
			if err := schema.Migrate(t.Context(), d); err != nil {
				t.Error(err)
			}
			if v, err := schema.Version(t.Context(), d); err != nil || v != schema.Newest() {
				t.Errorf("version %d, %v", v, err)
			}
		})
	}
	wg.Wait()
}
