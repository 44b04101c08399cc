package setup_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/upkeep/backup"
	"chancery/internal/upkeep/setup"
)

func issue(t *testing.T, s *setup.Services, name string) *ca.Certificate {
	t.Helper()
	c, err := tryIssue(t, s, name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func tryIssue(t *testing.T, s *setup.Services, name string) (*ca.Certificate, error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	return s.CA.Issue(t.Context(), officer, ca.Order{Profile: "server", PublicKey: spki, Names: []string{"dns:" + name}})
}

// TestRestore takes a backup of an authority, lets it go on, and makes it anew on the other engine with the CRL that was
// published in the meantime.
func TestRestore(t *testing.T) {
	t.Parallel()
	pkitest.EachURL(t, func(t *testing.T, url string) {
		result, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t), DatabaseFile: databaseFile(t, url)})
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, result.Dir)
		before := issue(t, s, "before.example")
		key := recovery(t, result)
		file := filepath.Join(t.TempDir(), "backup")
		var out bytes.Buffer
		signer, err := s.AuditSigner(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := backup.Write(t.Context(), &out, s.DB, key.Public(), backup.Header{Node: "node1", Authority: "x"}, signer); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		// What the backup does not know: a certificate, and the revocation of it and of an older one.
		after := issue(t, s, "after.example")
		issuer, err := s.CA.Issuer(t.Context(), "default")
		if err != nil {
			t.Fatal(err)
		}
		signer, err = s.Keys.Signer(t.Context(), issuer.KeyID)
		if err != nil {
			t.Fatal(err)
		}
		list, err := crl.Encode(&crl.Spec{Issuer: issuer.Certificate, Number: big.NewInt(5), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)},
			[]crl.Entry{
				{Serial: before.Serial, RevokedAt: time.Now(), Reason: crl.KeyCompromise},
				{Serial: after.Serial, RevokedAt: time.Now(), Reason: crl.Superseded},
			}, signer)
		if err != nil {
			t.Fatal(err)
		}
		pkitest.EachURL(t, func(t *testing.T, url string) {
			dir := newDir(t)
			done, err := setup.Restore(t.Context(), setup.RestoreOptions{
				Dir: dir, Backup: file, Recovery: key, AuditKeys: auditKeys(t, filepath.Join(result.Dir.Offline(), "audit-key.pem")), CRLs: [][]byte{list}, DatabaseFile: databaseFile(t, url),
			})
			if err != nil {
				t.Fatal(err)
			}
			if done.Node != "node2" || done.Merged != (ca.Merged{Revoked: 1, Unknown: 1}) || done.Keys < 3 {
				t.Errorf("restored %+v", done)
			}
			if config, err := dir.Load(); err != nil || config.Address != "https://127.0.0.1:8443" || len(done.Warnings) != 1 {
				t.Errorf("restored without an address: %+v, warnings %v, error %v", config, done.Warnings, err)
			}
			r := open(t, dir)
			found, err := r.CA.Find(t.Context(), access.System("test"), ca.Ref{Serial: before.Serial})
			if err != nil || found.State != ca.Revoked || !bytes.Equal(found.DER, before.DER) {
				t.Errorf("certificate from before the backup: %+v, error %v", found, err)
			}
			again := issue(t, r, "again.example")
			parsed, err := again.Parsed()
			if err != nil || parsed.CheckSignatureFrom(issuer.Certificate) != nil {
				t.Errorf("the restored authority does not issue under its issuer: %v", err)
			}
			// A restored node seals new keys too.
			if _, _, err := r.CA.CreateIssuer(t.Context(), access.System(done.Node), ca.IssuerSpec{Name: "another", Subject: "CN=Another"}); err != nil {
				t.Errorf("make an issuer: %v", err)
			}
			findings, _, err := r.Keys.Check(t.Context(), key)
			if err != nil || len(findings) > 0 {
				t.Errorf("wraps: %v, error %v", findings, err)
			}
			erased, told, err := r.CA.CheckAudit(t.Context())
			if err != nil || len(erased) > 0 || told.Statuses != 2 {
				t.Errorf("certificates against the audit: %v, %+v, error %v", erased, told, err)
			}
			wrong, seen, err := r.Audit.Verify(t.Context(), audit.Evidence{})
			if err != nil || len(wrong) > 0 || seen.Chains != 2 {
				t.Errorf("audit: %v, %+v, error %v", wrong, seen, err)
			}
		})
	})
}

func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	result, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	key := recovery(t, result)
	known := auditKeys(t, result.Dir.AuditKey())
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte("no backup"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]setup.RestoreOptions{
		"over an authority": {Dir: result.Dir, Backup: other, Recovery: key, AuditKeys: known},
		"no audit key":      {Dir: newDir(t), Backup: other, Recovery: key},
		"no backup":         {Dir: newDir(t), Backup: other, Recovery: key, AuditKeys: known},
		"bad CRL":           {Dir: newDir(t), Backup: other, Recovery: key, AuditKeys: known, CRLs: [][]byte{[]byte("x")}},
	} {
		if _, err := setup.Restore(t.Context(), o); fault.KindOf(err) == fault.Internal {
			t.Errorf("%s: error %v", name, err)
		}
		left, _ := filepath.Glob(filepath.Join(filepath.Dir(string(o.Dir)), ".chancery-init-*"))
		if len(left) > 0 {
			t.Errorf("%s: left behind %v", name, left)
		}
	}
}

func auditKeys(t *testing.T, file string) []crypto.PublicKey {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all, err := setup.ParseAuditKeys(text)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestRestoreTookABackupThatAStrangerWrote: whoever knows the recovery recipient can make an authority of his own and write
// its rows to the recipient. Such a file changes nothing, not even an empty database.
func TestRestoreTookABackupThatAStrangerWrote(t *testing.T) {
	t.Parallel()
	victim, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	s, key := open(t, stranger.Dir), recovery(t, victim)
	signer, err := s.AuditSigner(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := backup.Write(t.Context(), &out, s.DB, key.Public(), backup.Header{}, signer); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "backup")
	if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	pkitest.EachURL(t, func(t *testing.T, url string) {
		dir := newDir(t)
		o := setup.RestoreOptions{Dir: dir, Backup: file, Recovery: key, AuditKeys: auditKeys(t, victim.Dir.AuditKey()), DatabaseFile: databaseFile(t, url)}
		if _, err := setup.Restore(t.Context(), o); !fault.Is(err, fault.Invalid) {
			t.Errorf("error %v", err)
		}
		if _, err := os.Stat(string(dir)); err == nil {
			t.Error("a data directory was left behind")
		}
	})
}

// TestRestoredNodePointedAtTheOldOne: what is told where it listens is spoken to there.
func TestRestoredNodePointedAtTheOldOne(t *testing.T) {
	t.Parallel()
	result, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t), Address: "https://old.example:8443"})
	if err != nil {
		t.Fatal(err)
	}
	s, key := open(t, result.Dir), recovery(t, result)
	signer, err := s.AuditSigner(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := backup.Write(t.Context(), &out, s.DB, key.Public(), backup.Header{}, signer); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "backup")
	if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ listen, address, want string }{
		{"127.0.0.1:9999", "", "https://127.0.0.1:9999"},
		{"0.0.0.0:9999", "", "https://127.0.0.1:9999"},
		{"[::]:9999", "", "https://[::1]:9999"},
		{"127.0.0.1:9999", "https://new.example:1", "https://new.example:1"},
		{"", "", "https://old.example:8443"},
	} {
		pkitest.EachURL(t, func(t *testing.T, url string) {
			dir := newDir(t)
			done, err := setup.Restore(t.Context(), setup.RestoreOptions{
				Dir: dir, Backup: file, Recovery: key, AuditKeys: auditKeys(t, result.Dir.AuditKey()), Listen: c.listen, Address: c.address,
				DatabaseFile: databaseFile(t, url),
			})
			if err != nil {
				t.Fatal(err)
			}
			config, err := dir.Load()
			if err != nil || config.Address != c.want || (len(done.Warnings) > 0) != (c.listen == "") {
				t.Errorf("%+v: address %s, warnings %v, error %v", c, config.Address, done.Warnings, err)
			}
		})
	}
}
