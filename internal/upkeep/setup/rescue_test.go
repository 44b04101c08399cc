package setup_test

import (
	"bytes"
	"crypto/tls"
	"os"
	"path/filepath"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/backup"
	"chancery/internal/upkeep/setup"
)

// TestRescue plays the day after a clock was ahead: nothing is signed, the administrator's identity ends, and both are mended
// where the node's key is.
func TestRescue(t *testing.T) {
	t.Parallel()
	pkitest.EachURL(t, func(t *testing.T, url string) {
		dir := newDir(t)
		if _, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: dir, DatabaseFile: databaseFile(t, url)}); err != nil {
			t.Fatal(err)
		}
		ahead := time.Now().Add(48 * time.Hour)
		s := open(t, dir)
		if err := s.DB.Heartbeat(t.Context(), ahead); err != nil {
			t.Fatal(err)
		}
		if err := s.DB.Close(); err != nil {
			t.Fatal(err)
		}
		before := readFile(t, dir.AdminKey())
		if _, err := setup.RescueAdmin(t.Context(), dir); !fault.Is(err, fault.Unavailable) {
			t.Errorf("an identity was issued by a clock that is behind: %v", err)
		}
		if !bytes.Equal(before, readFile(t, dir.AdminKey())) {
			t.Error("a refusal changed the key")
		}
		seen, err := setup.RescueClock(t.Context(), dir)
		if err != nil || seen.Sub(ahead).Abs() > time.Millisecond {
			t.Fatalf("the time before was %v, not %v: %v", seen, ahead, err)
		}
		name, err := setup.RescueAdmin(t.Context(), dir)
		if err != nil || name != "admin" {
			t.Fatalf("%q, %v", name, err)
		}
		if bytes.Equal(before, readFile(t, dir.AdminKey())) {
			t.Error("the key is the old one")
		}
		if _, err := tls.LoadX509KeyPair(dir.AdminCert(), dir.AdminKey()); err != nil {
			t.Error(err)
		}
		if st, err := os.Stat(dir.AdminKey()); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st, err)
		}
		s = open(t, dir)
		page, err := s.Audit.Search(t.Context(), audit.Filter{Action: "clock.rescue"}, "", 10)
		if err != nil || len(page.Events) != 1 {
			t.Errorf("the audit has %d events of it, %v", len(page.Events), err)
		}
		if wrong, _, err := s.Audit.Verify(t.Context(), audit.Evidence{}); err != nil || len(wrong) > 0 {
			t.Errorf("the audit does not verify: %v, %v", wrong, err)
		}
	})
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestReplaceRecovery: backups go to the new key from then on, the authority comes back by it, and the old one opens nothing more.
func TestReplaceRecovery(t *testing.T) {
	t.Parallel()
	pkitest.EachURL(t, func(t *testing.T, url string) {
		result, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t), DatabaseFile: databaseFile(t, url)})
		if err != nil {
			t.Fatal(err)
		}
		dir, old := result.Dir, recovery(t, result)
		if _, err := setup.ReplaceRecovery(t.Context(), dir, "", nil); !fault.Is(err, fault.Conflict) {
			t.Fatalf("the old key's file was in the way, and the answer is %v", err)
		}
		made, err := setup.ReplaceRecoveryCheaply(t.Context(), dir, filepath.Join(t.TempDir(), "new.age"), []byte("a long passphrase"))
		if err != nil || made.Passphrase != "" || len(made.Old) != 1 || made.Old[0].PublicKey != old.Public() || made.Keys < 3 {
			t.Fatalf("%+v, %v", made, err)
		}
		next, err := keys.OpenRecovery(readFile(t, made.File), []byte("a long passphrase"))
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, dir)
		for _, c := range []struct {
			key  *keys.Recovery
			want int
		}{{next, 0}, {old, 1}} {
			if findings, _, err := s.Keys.Check(t.Context(), c.key); err != nil || len(findings) != c.want {
				t.Errorf("by %s: %+v, %v", c.key, findings, err)
			}
		}
		for _, action := range []string{"recipient.add", "key.rewrap", "recipient.remove"} {
			page, err := s.Audit.Search(t.Context(), audit.Filter{Action: action}, "", 10)
			if err != nil || len(page.Events) == 0 {
				t.Errorf("the audit says nothing of %s: %v", action, err)
			}
		}
		signer, err := s.AuditSigner(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := backup.Write(t.Context(), &out, s.DB, next.Public(), backup.Header{}, signer); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "backup")
		if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		o := setup.RestoreOptions{Dir: newDir(t), Backup: file, Recovery: next, AuditKeys: auditKeys(t, dir.AuditKey())}
		if r, err := setup.Restore(t.Context(), o); err != nil || r.Keys != made.Keys {
			t.Errorf("restored by the new key: %+v, %v", r, err)
		}
	})
}
