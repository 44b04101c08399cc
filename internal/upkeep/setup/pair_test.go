package setup_test

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/doctor"
	"chancery/internal/upkeep/finding"
	"chancery/internal/upkeep/setup"
	"chancery/internal/upkeep/verify"
)

var officer = access.Principal{ID: "t", Name: "t", Kind: access.KindOperator, Roles: []access.Role{access.Admin}}

// secondNode adds a node to the authority of s, on a connection of its own.
func secondNode(t *testing.T, s *setup.Services, url string) *setup.Services {
	t.Helper()
	return anotherNode(t, s, url, "node2")
}

func anotherNode(t *testing.T, s *setup.Services, url, name string) *setup.Services {
	t.Helper()
	key, err := keys.CreateNodeKey(filepath.Join(t.TempDir(), "node.key"))
	if err != nil {
		t.Fatal(err)
	}
	by := access.System(s.Keys.Self()).Actor()
	recipient := keys.Recipient{ID: name, Kind: keys.KindNode, Name: name, PublicKey: key.Public(), Created: time.Now(),
		Subsystems: []keys.Subsystem{keys.SubsystemCA, keys.SubsystemOCSP}}
	if err := s.DB.Tx(t.Context(), func(tx *db.Tx) error { return s.Keys.AddRecipient(t.Context(), tx, recipient, by, time.Now()) }); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Keys.Rewrap(t.Context(), name, by); err != nil || n == 0 {
		t.Fatalf("%d keys were wrapped to it, %v", n, err)
	}
	other, err := setup.Assemble(pkitest.Open(t, db.Options{URL: url}), name, key, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return other
}

// TestReKeyReachesEveryNode re-keys an issuer on one node: another issues under the new key at once, without being told, and what the
// old key signed keeps its revocation.
func TestReKeyReachesEveryNode(t *testing.T) {
	t.Parallel()
	url := pkitest.URL(t, db.Postgres)
	dir := newDir(t)
	if _, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: dir, DatabaseFile: databaseFile(t, url), Online: true}); err != nil {
		t.Fatal(err)
	}
	one := open(t, dir)
	other := secondNode(t, one, url)
	before := issue(t, other, "before.example")
	old, err := one.CA.Issuer(t.Context(), "default")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := one.CA.CreateIssuer(t.Context(), officer, ca.IssuerSpec{Name: "default2", Parent: old.Parent, Pool: old.Pool, Default: true, Subject: "CN=Second"}); err != nil {
		t.Fatal(err)
	}
	// A node reads the issuers anew every few moments.
	var after *ca.Certificate
	for n := 0; ; n++ {
		after = issue(t, other, fmt.Sprintf("after%d.example", n))
		if after.Issuer.Name == "default2" || n == 600 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if after.Issuer.Name != "default2" || after.Issuer.KeyID == old.KeyID || before.Issuer.ID != old.ID {
		t.Fatalf("issued by %s before, and by %s after", before.Issuer.Name, after.Issuer.Name)
	}
	for _, s := range []*setup.Services{one, other} {
		problems, looked, err := s.CA.KeyProblems(t.Context())
		if err != nil || len(problems) > 0 || looked < 4 {
			t.Errorf("node %s looked at %d keys: %v, %v", s.Keys.Self(), looked, problems, err)
		}
	}
	if _, err := other.CA.Revoke(t.Context(), officer, ca.Ref{Issuer: old.ID, Serial: before.Serial}, ca.RevokeOrder{}); err != nil {
		t.Errorf("what the old key signed can be revoked no more: %v", err)
	}
}

// TestKeyOfAnotherCertificate gives an issuer a key that is not its certificate's: each node says so before it issues, in the words that
// an operator of a Certificate System looks for, and neither certificates nor CRLs are signed with it.
func TestKeyOfAnotherCertificate(t *testing.T) {
	t.Parallel()
	pkitest.EachURL(t, func(t *testing.T, url string) {
		dir := newDir(t)
		if _, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: dir, DatabaseFile: databaseFile(t, url), Online: true}); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir)
		issue(t, s, "before.example")
		if err := s.DB.Tx(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE issuer SET key_id = (SELECT key_id FROM issuer WHERE name = 'identity') WHERE name = 'default'`)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if err := s.DB.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir) // as after a restart: nothing is remembered
		issuer, err := s.CA.Issuer(t.Context(), "default")
		if err != nil {
			t.Fatal(err)
		}
		said := func(all finding.Seq, check string) {
			t.Helper()
			for f, err := range all {
				if err != nil {
					t.Fatal(err)
				}
				if f.Check == check && f.Level == finding.Error && f.Object == "default" && strings.Contains(f.Message, "CA private key is null!") {
					return
				}
			}
			t.Errorf("%s does not name the issuer", check)
		}
		look := doctor.Node{Dir: dir, DB: s.DB, Keys: s.Keys, Pairs: s.CA.KeyProblems}
		said(look.Look(t.Context(), time.Now()), "issuers.keys")
		all, err := verify.Store(t.Context(), s, verify.Shown{})
		if err != nil {
			t.Fatal(err)
		}
		said(all, "issuers.keys")
		_, err = tryIssue(t, s, "after.example")
		if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), `on node node1 the key of "`+issuer.Certificate.Subject.String()+`" is not the one in its certificate`) {
			t.Errorf("a certificate was to be issued: %v", err)
		}
		_, err = setup.ExportKeys(t.Context(), setup.KeysOptions{Dir: dir, Subsystem: keys.SubsystemCA, Out: filepath.Join(t.TempDir(), "x.p12"), Password: []byte("long enough a word")})
		if err == nil || !strings.Contains(err.Error(), "caSigningCert default") {
			t.Errorf("a file with a pair that is none: %v", err)
		}
	})
}

// TestKeyThatIsMissing takes an issuer's key out of the store: whoever asks for a certificate hears that, in the words that an operator of a
// Certificate System looks for, and not that what he asked for is not there; doctor says it before.
func TestKeyThatIsMissing(t *testing.T) {
	t.Parallel()
	pkitest.EachURL(t, func(t *testing.T, url string) {
		dir := newDir(t)
		if _, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: dir, DatabaseFile: databaseFile(t, url), Online: true}); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir)
		if err := s.DB.Tx(t.Context(), func(tx *db.Tx) error {
			for _, statement := range []string{
				`DELETE FROM key_wrap WHERE key_id = (SELECT key_id FROM issuer WHERE name = 'default')`,
				`DELETE FROM sealed_key WHERE id = (SELECT key_id FROM issuer WHERE name = 'default')`,
			} {
				if n, err := tx.Exec(t.Context(), statement); err != nil || n == 0 {
					return fmt.Errorf("%d rows of %s: %w", n, statement, err)
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := s.DB.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir)
		issuer, err := s.CA.Issuer(t.Context(), "default")
		if err != nil {
			t.Fatal(err)
		}
		const words = "is not in the store; a Certificate System says of this: CA private key is null!"
		want := `on node node1 the key of "` + issuer.Certificate.Subject.String() + `" ` + words
		_, err = tryIssue(t, s, "after.example")
		if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), want) {
			t.Errorf("a certificate was to be issued: %v", err)
		}
		said := false
		for f, err := range (&doctor.Node{Dir: dir, DB: s.DB, Keys: s.Keys, Pairs: s.CA.KeyProblems}).Look(t.Context(), time.Now()) {
			if err != nil {
				t.Fatal(err)
			}
			said = said || f.Check == "issuers.keys" && f.Level == finding.Error && f.Object == "default" && strings.Contains(f.Message, words)
		}
		if !said {
			t.Error("doctor does not name the issuer")
		}
	})
}
