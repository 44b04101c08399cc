package setup_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"filippo.io/age/armor"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// databaseFile writes a PostgreSQL URL where init finds it; for SQLite there is none.
func databaseFile(t *testing.T, url string) string {
	t.Helper()
	if !strings.HasPrefix(url, "postgres") {
		return ""
	}
	file := filepath.Join(t.TempDir(), "database")
	if err := os.WriteFile(file, []byte(url+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func newDir(t *testing.T) datadir.Dir { return datadir.Dir(filepath.Join(t.TempDir(), "d")) }

func TestInit(t *testing.T) {
	t.Parallel()
	pkitest.EachURL(t, func(t *testing.T, url string) {
		dir := newDir(t)
		result, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: dir, Organization: "Example", DatabaseFile: databaseFile(t, url), PublicURL: "http://pki.example"})
		if err != nil {
			t.Fatal(err)
		}
		for file, mode := range map[string]os.FileMode{
			"": 0o700, "node.key": 0o600, "admin/key.pem": 0o600, "offline": 0o700, "offline/recovery.age": 0o600, "offline/audit-key.pem": 0o600, "offline/identity-root.key": 0o600,
			"offline/default-root.key": 0o600, "offline/passphrase": 0o600, "admin/cert.pem": 0o644, "ca/identity-root.pem": 0o644, "ca/audit-key.pem": 0o644, "node.yaml": 0o644,
		} {
			st, err := os.Stat(filepath.Join(string(dir), file))
			if err != nil {
				t.Error(err)
			} else if st.Mode().Perm() != mode {
				t.Errorf("%s has mode %04o, not %04o", file, st.Mode().Perm(), mode)
			}
		}
		if len(result.Offline) != 5 {
			t.Errorf("offline files %v", result.Offline)
		}
		s := open(t, dir)
		issuers, err := s.CA.Issuers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, i := range issuers {
			names = append(names, i.Name)
			if i.Root() == (i.KeyID != "") {
				t.Errorf("issuer %s: root %t, key online %t", i.Name, i.Root(), i.KeyID != "")
			}
		}
		if got := strings.Join(names, " "); got != "default default-root identity identity-root" {
			t.Errorf("issuers %s", got)
		}
		findings, checked, err := s.Keys.Check(t.Context(), recovery(t, result))
		if err != nil || len(findings) > 0 || checked.Keys < 3 || checked.Opened != checked.Wraps {
			t.Errorf("findings %v, checked %+v, error %v", findings, checked, err)
		}
	})
}

// TestSealedForYears: what lies offline behind a passphrase is sealed at a work that nobody lessens, by init and when the recovery key is
// replaced.
func TestSealedForYears(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	if _, err := setup.Init(t.Context(), setup.Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	made, err := setup.ReplaceRecovery(t.Context(), dir, filepath.Join(t.TempDir(), "new.age"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{filepath.Join(dir.Offline(), "recovery.age"), made.File} {
		header, _ := io.ReadAll(armor.NewReader(bytes.NewReader(readFile(t, file))))
		stanza, _, _ := bytes.Cut(bytes.TrimPrefix(header, []byte("age-encryption.org/v1\n")), []byte("\n"))
		if !regexp.MustCompile(`^-> scrypt \S+ 18$`).Match(stanza) {
			t.Errorf("%s is sealed as %q", file, stanza)
		}
	}
	sealedForYears(t, filepath.Join(dir.Offline(), "identity-root.key"))
	sealedForYears(t, filepath.Join(dir.Offline(), "default-root.key"))
}

// sealedForYears fails unless guessing the passphrase of a root's key takes 600,000 iterations for each try.
func sealedForYears(t *testing.T, path string) {
	t.Helper()
	parsed, err := exec.Command("openssl", "asn1parse", "-in", path).CombinedOutput()
	if err != nil || !regexp.MustCompile(`INTEGER +:0927C0\n`).Match(parsed) {
		t.Errorf("%s is not sealed with 600,000 iterations: %v\n%s", path, err, parsed)
	}
}

func open(t *testing.T, dir datadir.Dir) *setup.Services {
	t.Helper()
	config, err := dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	s, err := setup.Open(t.Context(), dir, config, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.DB.Close() })
	return s
}

func passphrase(t *testing.T, result *setup.Result) []byte {
	t.Helper()
	text, err := os.ReadFile(result.Passphrase)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(strings.TrimSpace(string(text)))
}

func recovery(t *testing.T, result *setup.Result) *keys.Recovery {
	t.Helper()
	sealed, err := os.ReadFile(filepath.Join(result.Dir.Offline(), "recovery.age"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := keys.OpenRecovery(sealed, passphrase(t, result))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestOfflineRootOpens reads the file that belongs off the machine: key and certificate of the root are a pair.
func TestOfflineRootOpens(t *testing.T) {
	t.Parallel()
	result, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(result.Dir.Offline(), "default-root.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := keyfile.ParsePrivateKey(text, passphrase(t, result))
	if err != nil {
		t.Fatal(err)
	}
	certificates, err := keyfile.ParseCertificates(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := keyfile.CheckPair(key.Public(), certificates[0]); err != nil {
		t.Error(err)
	}
}

func TestOutsideRoot(t *testing.T) {
	t.Parallel()
	result, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t), Outside: true})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(result.CSR), "-----BEGIN CERTIFICATE REQUEST-----") {
		t.Errorf("request %q", result.CSR)
	}
	p, err := open(t, result.Dir).Pools.Pool(t.Context(), "default")
	if err != nil || !p.Pending() {
		t.Errorf("pool %+v, error %v", p, err)
	}
}

func TestOnlineRoots(t *testing.T) {
	t.Parallel()
	result, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t), Online: true, Passphrase: []byte("correct horse battery staple")})
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Offline) != 2 || result.Passphrase != "" { // the recovery key, and the public key of the audit
		t.Errorf("offline files %v, passphrase %q", result.Offline, result.Passphrase)
	}
}

// TestInitRefuses tries what must leave nothing behind.
func TestInitRefuses(t *testing.T) {
	t.Parallel()
	full := newDir(t)
	if err := os.MkdirAll(filepath.Join(string(full), "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]setup.Options{
		"not empty":       {Dir: full},
		"bad address":     {Dir: newDir(t), Address: "http://x"},
		"bad node":        {Dir: newDir(t), Node: "a b"},
		"short secret":    {Dir: newDir(t), Passphrase: []byte("x")},
		"bad constraint":  {Dir: newDir(t), Constraints: []string{"+ip:1.2.3"}},
		"bad public URL":  {Dir: newDir(t), PublicURL: "https://pki.example"},
		"missing DB file": {Dir: newDir(t), DatabaseFile: "/nonexistent/file"},
	} {
		o.RecoveryWork = pkitest.RecoveryWork
		if _, err := setup.Init(t.Context(), o); err == nil {
			t.Errorf("%s: no refusal", name)
		} else if fault.KindOf(err) == fault.Internal && name != "missing DB file" {
			t.Errorf("%s: %v is no refusal", name, err)
		}
		left, err := filepath.Glob(filepath.Join(filepath.Dir(string(o.Dir)), ".chancery-init-*"))
		if err != nil || len(left) > 0 {
			t.Errorf("%s: left behind %v", name, left)
		}
	}
}
