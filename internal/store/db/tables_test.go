package db_test

import (
	"fmt"
	"testing"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"

	"github.com/google/go-cmp/cmp"
)

// TestTablesMoveBetweenEngines copies all tables from each engine to each other by what Tables says alone.
func TestTablesMoveBetweenEngines(t *testing.T) {
	ddl := []string{
		"CREATE TABLE z_parent (id TEXT NOT NULL PRIMARY KEY, note TEXT)",
		"CREATE TABLE a_child (parent TEXT NOT NULL REFERENCES z_parent (id), n BIGINT NOT NULL, body BYTEA, PRIMARY KEY (n, parent))",
	}
	for _, from := range []db.Dialect{db.SQLite, db.Postgres} {
		for _, to := range []db.Dialect{db.SQLite, db.Postgres} {
			t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) {
				ctx := t.Context()
				source := pkitest.Open(t, db.Options{URL: pkitest.URL(t, from)})
				target := pkitest.Open(t, db.Options{URL: pkitest.URL(t, to)})
				for _, d := range []*db.DB{source, target} {
					for _, q := range ddl {
						if _, err := d.Migrator().Exec(q); err != nil {
							t.Fatal(err)
						}
					}
				}
				if err := source.Tx(ctx, fillTables(t)); err != nil {
					t.Fatal(err)
				}
				var tables []db.Table
				rows := map[string][][]any{}
				dump := func(d *db.DB, into map[string][][]any) {
					err := d.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
						tables, err = db.Tables(ctx, tx)
						for _, table := range tables {
							for row, err := range table.Rows(ctx, tx) {
								if err != nil {
									return err
								}
								into[table.Name] = append(into[table.Name], row)
							}
						}
						return err
					})
					if err != nil {
						t.Fatal(err)
					}
				}
				dump(source, rows)
				err := target.TxAlone(ctx, func(tx *db.Tx) error {
					for _, table := range tables {
						if table.Name == "schema_version" {
							continue // the target has its own
						}
						if err := table.Insert(ctx, tx, rows[table.Name]); err != nil {
							return err
						}
						if n, err := table.Count(ctx, tx); err != nil || int(n) != len(rows[table.Name]) {
							return fmt.Errorf("%s has %d rows, want %d: %w", table.Name, n, len(rows[table.Name]), err)
						}
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				if len(tables) < 6 || len(rows["a_child"]) != 1000 {
					t.Fatalf("%d tables, %d children", len(tables), len(rows["a_child"]))
				}
				copied := map[string][][]any{}
				dump(target, copied)
				delete(rows, "schema_version")
				delete(copied, "schema_version")
				if diff := cmp.Diff(rows, copied); diff != "" {
					t.Errorf("the copy differs (-source +copy):\n%s", diff)
				}
			})
		}
	}
}

// fillTables writes nulls, empty values and every octet.
func fillTables(t *testing.T) func(tx *db.Tx) error {
	return func(tx *db.Tx) error {
		ctx := t.Context()
		for i, note := range []any{nil, "", "ü 'quoted'"} {
			if _, err := tx.Exec(ctx, "INSERT INTO z_parent (id, note) VALUES ($1, $2)", fmt.Sprint("p", i), note); err != nil {
				return err
			}
		}
		every := make([]byte, 256)
		for i := range every {
			every[i] = byte(i)
		}
		for i := range 1000 {
			body := []any{nil, []byte{}, every}[i%3]
			if err := tx.Send(ctx, "INSERT INTO a_child (parent, n, body) VALUES ($1, $2, $3)", fmt.Sprint("p", i%3), int64(i)-500, body); err != nil {
				return err
			}
		}
		return nil
	}
}

func TestTablesListParentsFirst(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		for _, q := range []string{
			"CREATE TABLE c (id TEXT NOT NULL PRIMARY KEY, next TEXT REFERENCES c (id))",
			"CREATE TABLE b (id TEXT NOT NULL PRIMARY KEY, c TEXT NOT NULL REFERENCES c (id))",
			"CREATE TABLE a (x BIGINT NOT NULL, b TEXT NOT NULL REFERENCES b (id), y BYTEA, PRIMARY KEY (b, x))",
		} {
			if _, err := d.Migrator().Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		var names []string
		var a db.Table
		err := d.Read(t.Context(), func(tx *db.Tx) error {
			tables, err := db.Tables(t.Context(), tx)
			for _, table := range tables {
				if len(table.Name) == 1 {
					names = append(names, table.Name)
				}
				if table.Name == "a" {
					a = table
				}
			}
			return err
		})
		if err != nil || fmt.Sprint(names) != "[c b a]" {
			t.Errorf("order %v, %v", names, err)
		}
		want := []db.Column{{Name: "x", Type: "BIGINT", NotNull: true}, {Name: "b", Type: "TEXT", NotNull: true}, {Name: "y", Type: "BYTEA"}}
		if diff := cmp.Diff(want, a.Columns); diff != "" || fmt.Sprint(a.Key) != "[b x]" {
			t.Errorf("key %v, columns (-want +got):\n%s", a.Key, diff)
		}
	})
}
