package verify_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authoritytest"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/finding"
	"chancery/internal/upkeep/setup"
	"chancery/internal/upkeep/verify"
)

func services(t *testing.T) *setup.Services {
	t.Helper()
	s, _ := authoritytest.Init(t, setup.Options{Online: true})
	return s
}

// findings returns the levels by check.
func findings(t *testing.T, s *setup.Services) map[string][]finding.Level {
	t.Helper()
	return findingsOf(t, s, verify.Shown{})
}

func findingsOf(t *testing.T, s *setup.Services, shown verify.Shown) map[string][]finding.Level {
	t.Helper()
	seq, err := verify.Store(t.Context(), s, shown)
	if err != nil {
		t.Fatal(err)
	}
	levels := map[string][]finding.Level{}
	for f, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", f)
		levels[f.Check] = append(levels[f.Check], f.Level)
	}
	return levels
}

func TestStore(t *testing.T) {
	s := services(t)
	by := access.Principal{ID: "a", Name: "a", Kind: access.KindOperator, Roles: []access.Role{access.Admin}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := cert.MarshalPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CA.Issue(t.Context(), by, ca.Order{Profile: "server", PublicKey: spki, Names: []string{"dns:a.example"}}); err != nil {
		t.Fatal(err)
	}
	before := findings(t, s)
	for _, name := range []string{"audit", "keys.wraps", "issuers.keys", "certificates", "certificates.audit", "crls", "hosts", "trust", "rollouts"} {
		if !slices.Equal(before[name], []finding.Level{finding.OK}) {
			t.Errorf("%s: %v", name, before[name])
		}
	}
	for name, statement := range map[string]string{
		"audit":              `UPDATE audit_event SET actor = 'system:other' WHERE seq = 3`,
		"keys.wraps":         `DELETE FROM key_wrap WHERE key_id = (SELECT MIN(id) FROM sealed_key)`,
		"certificates.audit": `DELETE FROM certificate WHERE profile = 'server'`,
		"rollouts":           `INSERT INTO rollout_host VALUES ('9', 'h', 'h', 1, 0, 0, 0, '', '', '')`,
		"certificates":       `UPDATE certificate SET profile = profile, der = serial WHERE id = (SELECT MAX(id) FROM certificate)`,
	} {
		err := s.DB.Tx(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), statement)
			return err
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := findings(t, s)[name]; !slices.Contains(got, finding.Error) {
			t.Errorf("%s: %v after %s", name, got, statement)
		}
	}
}

func TestShownCheckpointMustBeOne(t *testing.T) {
	s := services(t)
	if _, err := verify.Store(t.Context(), s, verify.Shown{Checkpoints: []string{"x"}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("error %v", err)
	}
}

// TestAuditKeyKeptElsewhere shows verify the audit's public key as init wrote it, and then another: that is what an operator
// sees who kept a copy, after somebody planted a key of his own and signed a past with it.
func TestAuditKeyKeptElsewhere(t *testing.T) {
	dir := datadir.Dir(filepath.Join(t.TempDir(), "d"))
	s, _ := authoritytest.Init(t, setup.Options{Dir: dir, Online: true})
	lease, ok, err := s.DB.Acquire(t.Context(), audit.Lease, s.Audit.Node(), time.Minute)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	found, err := s.Keys.Find(t.Context(), keys.Audit, "")
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	signer, err := s.Keys.Signer(t.Context(), found[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	set, err := s.Settings.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Audit.Checkpoint(t.Context(), lease, set.Authority, time.Now(), once.Call{}, signer); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(dir.AuditKey())
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	own, err := cert.ParsePublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		key  crypto.PublicKey
		want finding.Level
	}{"kept": {own, finding.OK}, "another": {other, finding.Error}} {
		if got := findingsOf(t, s, verify.Shown{AuditKeys: []crypto.PublicKey{c.key}})["audit"]; !slices.Contains(got, c.want) {
			t.Errorf("%s key: %v", name, got)
		}
	}
}
