package doctor

import (
	"strings"
	"testing"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
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
