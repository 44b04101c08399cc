package drill_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"chancery/internal/authoritytest"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/audit"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/backup"
	"chancery/internal/upkeep/drill"
	"chancery/internal/upkeep/setup"
)

// authority makes one whose issuers' and roots' keys are of that algorithm.
func authority(t *testing.T, algorithm keyfile.Algorithm) (*setup.Services, drill.Options) {
	t.Helper()
	return authorityAt(t, algorithm, "")
}

// authorityAt makes one in that database; in SQLite in its directory where none is named.
func authorityAt(t *testing.T, algorithm keyfile.Algorithm, url string) (*setup.Services, drill.Options) {
	t.Helper()
	s, dir := authoritytest.Init(t, setup.Options{DatabaseFile: authoritytest.DatabaseFile(t, url), Algorithm: algorithm, Online: true})
	if err := s.DB.LearnClock(t.Context()); err != nil {
		t.Fatal(err)
	}
	key, err := keys.LoadNodeKey(dir.NodeKey())
	if err != nil {
		t.Fatal(err)
	}
	return s, drill.Options{Dir: string(dir), Node: key, Version: "test"}
}

// TestDrill has every issuer's key tried, whatever its algorithm, and leaves nothing but a line in the audit.
func TestDrill(t *testing.T) {
	for _, algorithm := range []keyfile.Algorithm{keyfile.ECDSA, keyfile.RSA, keyfile.Ed25519} {
		t.Run(string(algorithm), func(t *testing.T) {
			t.Parallel()
			s, o := authority(t, algorithm)
			before, err := s.CA.Issuers(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			done, err := drill.Run(t.Context(), s, o)
			if err != nil {
				t.Fatal(err)
			}
			if done.Issuers != 4 || done.Keys < done.Issuers || done.Rows == 0 || done.Looked == 0 || done.Failed != "" {
				t.Errorf("%+v", done)
			}
			after, err := s.CA.Issuers(t.Context())
			if err != nil || len(after) != len(before) {
				t.Errorf("the drill left issuers: %d, %d before, %v", len(after), len(before), err)
			}
			if left, err := filepath.Glob(filepath.Join(o.Dir, "drill-*")); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
			page, err := s.Audit.Search(t.Context(), audit.Filter{Action: backup.DrillAction}, "", 10)
			if err != nil || len(page.Events) != 1 {
				t.Errorf("the audit has %d drills, %v", len(page.Events), err)
			}
		})
	}
}

// TestTwoDrillsAtOnce has the second refused from before the first made anything, and takes away what a killed one left.
func TestTwoDrillsAtOnce(t *testing.T) {
	t.Parallel()
	s, o := authority(t, keyfile.ECDSA)
	lock, err := os.OpenFile(filepath.Join(o.Dir, ".drill-lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	begun := filepath.Join(o.Dir, "drill-begun") // as after its MkdirTemp, before its database
	if err := os.Mkdir(begun, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := drill.Run(t.Context(), s, o); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "another drill runs") {
		t.Errorf("beside another: %v", err)
	}
	if _, err := os.Stat(begun); err != nil {
		t.Errorf("the other's place is gone: %v", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if _, err := drill.Run(t.Context(), s, o); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(begun); err == nil {
		t.Error("what a killed drill left is there")
	}
}
