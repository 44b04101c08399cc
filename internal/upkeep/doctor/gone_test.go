package doctor

import (
	"strings"
	"testing"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/schema"
	"chancery/internal/upkeep/finding"
)

// TestGoneThatWrite: of the nodes that are gone those are named whose login or fence is left, and no others.
func TestGoneThatWrite(t *testing.T) {
	ctx := t.Context()
	d := pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.Postgres)})
	err := d.Tx(ctx, func(tx *db.Tx) error {
		for _, node := range []struct {
			name, state, role string
			fence             int64
		}{{"n1", "active", "chancery_n1", 7}, {"n2", "gone", "", 7}, {"n3", "gone", "", -1}, {"n4", "gone", "chancery_n4", -1}, {"n5", "gone", "", -2}} {
			_, err := tx.Exec(ctx, `INSERT INTO node (name, state, subsystems, address, public_key, fingerprint, tls_spki, principal, database_role, request,
				answer, report, joined_by, approved_by, created_at, approved_at, started_at, seen_at, gone_at)
				VALUES ($1, $2, 'ca', '', $1, $1, $3, '', $4, '', '', '', '', '', 1, 1, 1, 1, 0)`, node.name, node.state, []byte{}, node.role)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `INSERT INTO write_mark (node, number, fence) VALUES ($1, 0, $2)`, node.name, node.fence); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `INSERT INTO node (name, state, subsystems, address, public_key, fingerprint, tls_spki, principal, database_role, request,
			answer, report, joined_by, approved_by, created_at, approved_at, started_at, seen_at, gone_at)
			SELECT 'n6', state, subsystems, address, 'n6', 'n6', tls_spki, principal, database_role, request,
			answer, report, joined_by, approved_by, created_at, approved_at, started_at, seen_at, gone_at FROM node WHERE name = 'n3'`) // it never wrote
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	if err := (&Node{DB: d}).gone(ctx, func(f finding.Finding) {
		said = append(said, string(f.Level)+" "+f.Object+": "+f.Message+": "+f.Hint)
	}); err != nil {
		t.Fatal(err)
	}
	for i, has := range []string{"warning n2: node n2 is removed, and may write still: its fence", "warning n4: node n4 is removed, and may write still: its login chancery_n4", "warning n5: "} {
		if len(said) != 3 || !strings.HasPrefix(said[i], has) || !strings.Contains(said[i], "chancery clone remove n") {
			t.Fatalf("it says %q", said)
		}
	}
}

// TestLoginsOfOthers: where there is the pool database, nodes that are in it as somebody else are named; those that are gone until nobody is
// let in so any more.
func TestLoginsOfOthers(t *testing.T) {
	ctx := t.Context()
	pg := pkitest.Postgres(t, "fsync=off")
	pg.Exec(t, "CREATE ROLE pki LOGIN")
	pg.Exec(t, "CREATE DATABASE fleet OWNER pki")
	if _, err := pkitest.Open(t, db.Options{URL: pg.URL("fleet")}).Migrator().ExecContext(ctx, db.LoginFunctions); err != nil {
		t.Fatal(err)
	}
	d := pkitest.Open(t, db.Options{URL: strings.Replace(pg.URL("fleet"), "postgres://chancery@", "postgres://pki@", 1)})
	if err := schema.Migrate(ctx, d); err != nil {
		t.Fatal(err)
	}
	said := func() (said []string) {
		t.Helper()
		if err := (&Node{DB: d}).gone(ctx, func(f finding.Finding) { said = append(said, string(f.Level)+" "+f.Message) }); err != nil {
			t.Fatal(err)
		}
		return said
	}
	const own, none = `{"Database":{"engine":"postgres","login_ends":"2030-01-01T00:00:00Z"}}`, `{"Database":{"engine":"postgres"}}`
	err := d.Tx(ctx, func(tx *db.Tx) error {
		for _, node := range [][4]string{{"n1", "active", "", none}, {"n2", "active", "chancery_n2", own}, {"n3", "gone", "", none}, {"n4", "gone", "", own},
			{"n5", "gone", "", `{"Database":{"engine":"sqlite"}}`}, {"n6", "gone", "", ""}, {"n7", "waiting", "", ""}} {
			_, err := tx.Exec(ctx, `INSERT INTO node (name, state, subsystems, address, public_key, fingerprint, tls_spki, principal, database_role, request,
				answer, report, joined_by, approved_by, created_at, approved_at, started_at, seen_at, gone_at)
				VALUES ($1, $2, 'ca', '', $1, $1, $3, '', $4, '', '', $5, '', '', 1, 1, 1, 1, 0)`, node[0], node[1], []byte{}, node[2], node[3])
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := said(); len(got) != 0 {
		t.Errorf("without the pool it says %q", got)
	}
	if err := d.Tx(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO pool (name, organization, created_at) VALUES ('database', '', 0)`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{"warning node n1 has no login of its own", "warning node n3 is removed, had no login of its own"}
	if got := said(); len(got) != 2 || !strings.HasPrefix(got[0], want[0]) || !strings.HasPrefix(got[1], want[1]) {
		t.Errorf("it says %q", got)
	}
	pg.Exec(t, "ALTER ROLE pki NOLOGIN")
	if got := said(); len(got) != 1 || !strings.HasPrefix(got[0], want[0]) {
		t.Errorf("when the owner is let in no more it says %q", got)
	}
}
