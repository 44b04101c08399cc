package drill_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/backup"
	"chancery/internal/upkeep/drill"
	"chancery/internal/upkeep/setup"
)

// TestDrillFails has what is backed up, or the backup, be of no use in ways that nobody sees before it is needed. Each drill fails, says why, and
// is found in the audit as failed; nothing of it is left.
func TestDrillFails(t *testing.T) {
	t.Parallel()
	s, o := authority(t, keyfile.ECDSA)
	other, err := keys.GenerateRecovery()
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, recovery *keys.Recovery, spoil func([]byte) []byte) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), name)
		text := written(t, s, recovery)
		if err := os.WriteFile(path, spoil(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	whole := func(b []byte) []byte { return b }
	fails := func(name string, o drill.Options, want string) {
		t.Helper()
		_, err := drill.Run(t.Context(), s, o)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; it should say %q", name, err, want)
			return
		}
		last, err := backup.LastDrill(t.Context(), s.Audit)
		if err != nil || !strings.Contains(last.Failed, want) || !strings.Contains(last.Wanting(0, time.Now()), want) {
			t.Errorf("%s: the audit has %+v, %v", name, last, err)
		}
		if left, err := filepath.Glob(filepath.Join(o.Dir, "drill-*")); err != nil || len(left) > 0 {
			t.Errorf("%s: left: %v, %v", name, left, err)
		}
	}
	with := func(path string, recovery *keys.Recovery) drill.Options {
		o := o
		o.Backup, o.Recovery = path, recovery
		return o
	}
	fails("a flipped bit", with(file("flipped", other, func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), other), "load the backup")
	fails("cut short", with(file("cut", other, func(b []byte) []byte { return b[:len(b)-100] }), other), "load the backup")
	fails("nothing", with(file("nothing", other, func([]byte) []byte { return nil }), other), "load the backup")
	third, err := keys.GenerateRecovery()
	if err != nil {
		t.Fatal(err)
	}
	fails("another key", with(file("whole", other, whole), third), "does not open with this recovery key")
	fails("opened, and the keys in it are not", with(file("foreign", other, whole), other), "recovery")
	fails("a missing file", with(filepath.Join(t.TempDir(), "gone"), other), "no such file")
	fails("a foreign engine", func() drill.Options { o := o; o.Scratch = "mysql://localhost/x"; return o }(), "none of PostgreSQL")

	// From here on it is the authority itself that is damaged, and put right again; hurt and heal have the same rows in other states.
	change := func(query string, args ...any) {
		t.Helper()
		if err := s.DB.Tx(t.Context(), func(tx *db.Tx) error { _, err := tx.Exec(t.Context(), query, args...); return err }); err != nil {
			t.Fatal(err)
		}
	}
	one := func(query string, into ...any) {
		t.Helper()
		if err := s.DB.Read(t.Context(), func(tx *db.Tx) error { return tx.QueryRow(t.Context(), query).Scan(into...) }); err != nil {
			t.Fatal(err)
		}
	}
	var key, recovery, issuerKey, otherKey, detail string
	var wrap []byte
	one(`SELECT key_id, wrap FROM key_wrap WHERE recipient_id = 'node1' ORDER BY key_id LIMIT 1`, &key, &wrap)
	one(`SELECT id FROM key_recipient WHERE kind = 'recovery'`, &recovery)
	one(`SELECT key_id FROM issuer WHERE name = 'default'`, &issuerKey)
	one(`SELECT key_id FROM issuer WHERE name = 'identity'`, &otherKey)
	one(`SELECT detail FROM audit_event WHERE seq = 2`, &detail)

	change(`UPDATE key_wrap SET wrap = $1 WHERE key_id = $2 AND recipient_id = 'node1'`, wrap[:len(wrap)/2], key)
	fails("a damaged wrap", o, key)
	change(`UPDATE key_wrap SET wrap = $1 WHERE key_id = $2 AND recipient_id = 'node1'`, wrap, key)

	change(`UPDATE key_wrap SET recipient_id = 'elsewhere' WHERE recipient_id = $1 AND key_id = $2`, recovery, key)
	fails("a key that the recovery key does not open", o, "entitled to the")
	change(`UPDATE key_wrap SET recipient_id = $1 WHERE recipient_id = 'elsewhere'`, recovery)

	change(`UPDATE key_recipient SET kind = 'lost' WHERE id = $1`, recovery)
	fails("a lost recovery recipient", o, "no recovery recipient")
	change(`UPDATE key_recipient SET kind = 'recovery' WHERE id = $1`, recovery)

	change(`UPDATE issuer SET key_id = $1 WHERE name = 'default'`, otherKey)
	fails("the key of another certificate", o, "CA private key is null!")
	change(`UPDATE issuer SET key_id = $1 WHERE name = 'default'`, issuerKey)

	change(`UPDATE audit_event SET detail = '{}' WHERE seq = 2`)
	fails("a changed record", o, "chancery verify finds in what was restored")
	change(`UPDATE audit_event SET detail = $1 WHERE seq = 2`, detail)

	if _, err := drill.Run(t.Context(), s, o); err != nil {
		t.Fatalf("all is well again: %v", err)
	}
	if last, err := backup.LastDrill(t.Context(), s.Audit); err != nil || last.Failed != "" || last.Wanting(0, time.Now()) != "" {
		t.Errorf("after one that passed: %+v, %v", last, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := drill.Run(ctx, s, o); err == nil {
		t.Error("a drill that was ended passed")
	}
	if last, err := backup.LastDrill(t.Context(), s.Audit); err != nil || last.Failed != "" {
		t.Errorf("a drill that was ended counts as failed: %+v, %v", last, err)
	}
}

// written is a backup of the authority for that recovery key, though it is not the authority's own.
func written(t *testing.T, s *setup.Services, recovery *keys.Recovery) []byte {
	t.Helper()
	signer, err := s.AuditSigner(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := backup.Write(t.Context(), &out, s.DB, recovery.Public(), backup.Header{Node: "node1", Version: "test"}, signer); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestDrillOnPostgreSQL restores into a schema of a database in which another one has its tables, from each engine; a schema that a killed
// drill left is gone after the next, and nothing else is touched.
func TestDrillOnPostgreSQL(t *testing.T) {
	t.Parallel()
	pkitest.EachURL(t, func(t *testing.T, from string) {
		s, o := authorityAt(t, keyfile.ECDSA, from)
		o.Scratch = pkitest.URL(t, db.Postgres)
		around := pkitest.Open(t, db.Options{URL: o.Scratch})
		for _, text := range []string{`CREATE TABLE beside (theirs TEXT)`, `INSERT INTO beside VALUES ('kept')`, `CREATE SCHEMA chancery_drill_of_another`} {
			if err := around.TxAlone(t.Context(), func(tx *db.Tx) error { _, err := tx.Exec(t.Context(), text); return err }); err != nil {
				t.Fatal(err)
			}
		}
		schemas := func() (all []string) {
			t.Helper()
			err := around.Read(t.Context(), func(tx *db.Tx) error {
				all = nil
				rows, err := tx.Query(t.Context(), `SELECT nspname FROM pg_namespace WHERE nspname LIKE 'chancery%' ORDER BY nspname`)
				if err != nil {
					return err
				}
				defer rows.Close()
				for rows.Next() {
					var one string
					if err := rows.Scan(&one); err != nil {
						return err
					}
					all = append(all, one)
				}
				return rows.Err()
			})
			if err != nil {
				t.Fatal(err)
			}
			return all
		}
		// A drill that is ended while it restores leaves nothing; one that is killed leaves its schema.
		var made []string
		for try := 0; ; try++ {
			made = nil
			ctx, end := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { _, err := drill.Run(ctx, s, o); ended <- err }()
			for deadline := time.Now().Add(time.Minute); len(made) < 2 && len(ended) == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				made = schemas()
			}
			end()
			err := <-ended
			if err == nil && try < 5 {
				continue // it was at its end before it was looked at
			}
			if err == nil || len(made) != 2 {
				t.Fatalf("a drill that was ended, with the schemas %v: %v", made, err)
			}
			break
		}
		if left := schemas(); len(left) != 1 {
			t.Errorf("a drill that was ended left %v", left)
		}
		killed := slices.DeleteFunc(made, func(name string) bool { return name == "chancery_drill_of_another" })[0]
		if err := around.TxAlone(t.Context(), func(tx *db.Tx) error { _, err := tx.Exec(t.Context(), `CREATE SCHEMA `+killed); return err }); err != nil {
			t.Fatal(err)
		}
		done, err := drill.Run(t.Context(), s, o)
		if err != nil {
			t.Fatal(err)
		}
		if done.Engine != db.Postgres || done.Issuers < 4 || done.Keys < done.Issuers || done.Rows == 0 || done.Looked == 0 {
			t.Errorf("%+v", done)
		}
		if left := schemas(); len(left) != 1 || left[0] != "chancery_drill_of_another" {
			t.Errorf("the schemas are %v", left)
		}
		var theirs string
		if err := around.Read(t.Context(), func(tx *db.Tx) error { return tx.QueryRow(t.Context(), `SELECT theirs FROM beside`).Scan(&theirs) }); err != nil || theirs != "kept" {
			t.Errorf("the table of another: %q, %v", theirs, err)
		}
	})
}
