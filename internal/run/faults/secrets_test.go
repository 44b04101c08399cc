package faults_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/run/consumer"
	"chancery/internal/upkeep/datadir"
)

// session is a day of an operator's work: every command that handles a secret, and what it printed.
type session struct {
	t       *testing.T
	dir     datadir.Dir
	node    *process
	printed map[string]string // by what printed it
	secrets map[string]string // by what it is
}

// run runs a command of the session; what it prints is kept.
func (s *session) run(args ...string) error {
	s.t.Helper()
	stdout, stderr, err := command(s.t, args...)
	s.printed[fmt.Sprint(len(s.printed), " ", args)] = stdout + stderr
	return err
}

func (s *session) must(args ...string) {
	s.t.Helper()
	if err := s.run(args...); err != nil {
		s.t.Fatalf("chancery %v: %v\n%s", args, err, s.printed[fmt.Sprint(len(s.printed)-1, " ", args)])
	}
}

// keep notes what a file holds as a secret. Of PEM and age files each long line is one.
func (s *session) keep(file string) {
	s.t.Helper()
	text, err := os.ReadFile(file)
	must(s.t, err)
	n := 0
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if strings.Contains(line, "BEGIN CERTIFICATE") {
			break
		}
		if len(line) >= 16 && !strings.HasPrefix(line, "-----") && !strings.HasPrefix(line, "#") {
			s.secrets[fmt.Sprintf("%s, line %d", filepath.Base(file), n)] = line
			n++
		}
	}
	if n == 0 {
		s.t.Fatalf("%s holds no secret", file)
	}
}

// newSession makes an authority by the command line, whose node logs all it ever logs.
func newSession(t *testing.T) *session {
	t.Helper()
	base := t.TempDir()
	address, err := consumer.FreeAddress()
	must(t, err)
	s := &session{t: t, dir: datadir.Dir(filepath.Join(base, "d")), printed: map[string]string{}, secrets: map[string]string{}}
	s.must("init", "--dir", string(s.dir), "--address", "https://"+address, "--public-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
		"--public-url", "http://pki.test")
	config, err := os.ReadFile(s.dir.Config())
	must(t, err)
	loud := bytes.Replace(config, []byte("log_level: info"), []byte("log_level: debug"), 1)
	if bytes.Equal(loud, config) {
		t.Fatalf("no log level in %s", config)
	}
	must(t, os.WriteFile(s.dir.Config(), loud, 0o644))
	s.keep(filepath.Join(s.dir.Offline(), "passphrase"))
	s.keep(s.dir.NodeKey())
	s.keep(s.dir.AdminKey())
	s.node = startNode(t, s.dir)
	return s
}

// work does what handles tokens, passphrases and keys, wrongly too.
func (s *session) work(base string) {
	at := func(name string) string { return filepath.Join(base, name) }
	dir := []string{"--dir", string(s.dir)}
	do := func(args ...string) { s.t.Helper(); s.must(append(slices.Clone(dir), args...)...) }
	passphrase := filepath.Join(s.dir.Offline(), "passphrase")
	do("key", "generate", "--algorithm", "ecdsa", "--out", at("k.pem"))
	s.keep(at("k.pem"))
	do("cert", "issue", "--profile", "server", "--name", "a.test", "--key", at("k.pem"), "--out", at("c.pem"))
	do("operator", "add", "bob", "--role", "officer")
	do("token", "add", "bob", "--label", "bob's", "--out", at("token"))
	s.keep(at("token"))
	do("operator", "enrol", "bob", "--key", at("bob.key"), "--out", at("bob.pem"))
	s.keep(at("bob.key"))
	s.must("--address", "https://"+s.node.API, "--identity-root", s.dir.IdentityRoot(), "--token-file", at("token"), "cert", "list")
	do("pool", "add", "blue", "--root-file", at("blue.key"), "--passphrase-file", passphrase)
	do("crl", "issue", "--issuer", "blue-root", "--key-file", at("blue.key"), "--passphrase-file", passphrase)
	do("backup", "--out", at("backup"))
	do("verify")
	_ = s.run(append(dir, "doctor")...) // it may find something
	// A secret where it does not belong.
	token := s.secrets["token, line 0"]
	if err := s.run(append(dir, "token", "revoke", token)...); err == nil {
		s.t.Error("a token's secret was taken for its ID")
	}
	if err := s.run(append(dir, "crl", "issue", "--issuer", "blue-root", "--key-file", at("blue.key"), "--passphrase-file", at("token"))...); err == nil {
		s.t.Error("a wrong passphrase opened the key")
	}
	admin := s.node.admin()
	for _, try := range []func(*http.Request){
		func(r *http.Request) { r.URL.RawQuery = "token=" + token },
		func(r *http.Request) { r.Header.Set("Authorization", "Basic "+token) },
		func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token[:len(token)-1]+"x") },
		func(r *http.Request) { r.Header.Set("X-Token", token) },
	} {
		s.try(try)
	}
	_, err := admin.Caller(s.t.Context())
	must(s.t, err)
	do("token", "list", "bob")
	do("audit", "export", "--out", at("audit"))
	exported, err := os.ReadFile(at("audit"))
	must(s.t, err)
	s.printed["the audit"] = string(exported)
	_, metrics := get(s.t, "http://"+s.node.Metrics+"/metrics")
	s.printed["the metrics"] = string(metrics)
}

// try makes one raw call.
func (s *session) try(change func(*http.Request)) {
	s.t.Helper()
	conn := s.node.dial()
	conn.SetDeadline(time.Now().Add(time.Minute))
	r, err := http.NewRequest(http.MethodGet, "https://"+s.node.API+"/api/v1/caller", nil)
	must(s.t, err)
	r.Close = true
	change(r)
	must(s.t, r.Write(conn))
	var answer bytes.Buffer
	_, err = answer.ReadFrom(conn)
	must(s.t, err)
	s.printed[fmt.Sprint(len(s.printed), " an answer")] = answer.String()
}

// TestNoSecretIsPrintedOrStoredOpenly searches all that commands and the node print, the audit, the metrics, the database
// and the backup for every secret of the session.
func TestNoSecretIsPrintedOrStoredOpenly(t *testing.T) {
	t.Parallel()
	s, base := newSession(t), t.TempDir()
	s.work(base)
	modes(t, string(s.dir), true) // while it runs
	s.misplaced(base)
	s.restored(base)
	s.node.stop()
	s.printed["the node"] = s.node.log.String() + s.node.out.String()
	if len(s.printed["the audit"]) < 1000 || len(s.printed["the node"]) < 1000 || len(s.secrets) < 10 {
		t.Fatalf("%d octets of audit, %d of log and %d secrets prove nothing", len(s.printed["the audit"]), len(s.printed["the node"]), len(s.secrets))
	}
	for what, text := range s.printed {
		if strings.Contains(text, "PRIVATE KEY") || strings.Contains(text, "AGE-SECRET-KEY") {
			t.Errorf("%s holds a private key", what)
		}
	}
	stored := map[string]string{}
	for _, file := range []string{s.dir.Database(), filepath.Join(base, "backup")} {
		text, err := os.ReadFile(file)
		must(t, err)
		if stored[file] = string(text); len(text) < 10_000 {
			t.Errorf("%s has %d octets", file, len(text))
		}
	}
	for name, secret := range s.secrets {
		for _, texts := range []map[string]string{s.printed, stored} {
			for what, text := range texts {
				if strings.Contains(text, secret) {
					t.Errorf("%s holds the secret %s", what, name)
				}
			}
		}
	}
	modes(t, string(s.dir), false)
}

// misplaced names a file of a secret, the passphrase's, wherever another file is wanted. What cannot be read as that is not shown.
func (s *session) misplaced(base string) {
	s.t.Helper()
	passphrase, backup := filepath.Join(s.dir.Offline(), "passphrase"), filepath.Join(base, "backup")
	recovery, new := filepath.Join(s.dir.Offline(), "recovery.age"), filepath.Join(base, "new")
	before := len(s.printed)
	for _, args := range [][]string{
		{"restore", backup, "--audit-key", filepath.Join(s.dir.Offline(), "audit-key.pem"), "--recovery-file", passphrase, "--passphrase-file", passphrase, "--dir", new},
		{"restore", passphrase, "--audit-key", filepath.Join(s.dir.Offline(), "audit-key.pem"), "--recovery-file", recovery, "--passphrase-file", passphrase, "--dir", new},
		{"restore", backup, "--audit-key", passphrase, "--recovery-file", recovery, "--passphrase-file", passphrase, "--dir", new},
		{"backup", "drill", "--dir", string(s.dir), "--backup", passphrase, "--recovery-file", recovery, "--passphrase-file", passphrase},
		{"backup", "drill", "--dir", string(s.dir), "--backup", backup, "--recovery-file", passphrase, "--passphrase-file", passphrase},
		{"backup", "drill", "--dir", string(s.dir), "--scratch-database-file", passphrase},
		{"init", "--dir", new, "--database-file", passphrase},
		{"init", "--dir", new, "--import-ca", passphrase, "--import-key", passphrase},
		{"clone", "join", "--dir", new, "--token-file", passphrase, "--database-file", passphrase, "--address", "https://127.0.0.1:1"},
		{"doctor", "database", "--database-file", passphrase},
		{"--dir", string(s.dir), "--token-file", passphrase, "cert", "list"},
		{"--dir", string(s.dir), "--identity-root", passphrase, "cert", "list"},
		{"--dir", string(s.dir), "cert", "issue", "--profile", "server", "--name", "b.test", "--key", passphrase, "--out", filepath.Join(base, "b.pem")},
		{"--dir", string(s.dir), "cert", "issue", "--profile", "server", "--csr", passphrase, "--out", filepath.Join(base, "b.pem")},
		{"--dir", string(s.dir), "crl", "issue", "--issuer", "blue-root", "--key-file", passphrase, "--passphrase-file", passphrase},
		{"--dir", string(s.dir), "profile", "add", passphrase},
		{"doctor", passphrase},
		{"key", "id", passphrase},
	} {
		if err := s.run(args...); err == nil {
			s.t.Errorf("chancery %v takes a passphrase for it", args)
		}
	}
	for what, text := range s.printed {
		if strings.Contains(what, "restore "+passphrase) && !strings.Contains(text, "no file of age") || strings.Contains(text, "unknown flag") {
			s.t.Errorf("%s: %s", what, text)
		}
	}
	if len(s.printed)-before < 18 {
		s.t.Error("not every command was tried")
	}
}

// restored makes an authority from the backup, and looks at its files.
func (s *session) restored(base string) {
	s.t.Helper()
	again := filepath.Join(base, "again")
	s.must("--dir", again, "restore", filepath.Join(base, "backup"), "--audit-key", filepath.Join(s.dir.Offline(), "audit-key.pem"), "--recovery-file", filepath.Join(s.dir.Offline(), "recovery.age"),
		"--passphrase-file", filepath.Join(s.dir.Offline(), "passphrase"), "--listen", "127.0.0.1:0", "--public-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
	p := startNode(s.t, datadir.Dir(again))
	p.stop()
	s.printed["the restored node"] = p.log.String()
	modes(s.t, again, false)
}

// public is what others than the node's user may read, if they get past the data directory.
var public = []string{"node.yaml", "ca/identity-root.pem", "ca/audit-key.pem", "admin/cert.pem"}

// modes walks a data directory that processes with umask 0 wrote: it and its directories are for their owner alone, and so
// is every file that is not public.
func modes(t *testing.T, dir string, running bool) {
	t.Helper()
	seen := []string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		stat, err := entry.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		want := fs.FileMode(0o600)
		switch {
		case entry.IsDir():
			want = 0o700
		case slices.Contains(public, name), name == ".drill-lock" && stat.Size() == 0:
			want = 0o644
		}
		if got := stat.Mode().Perm(); got != want {
			t.Errorf("%s has mode %04o, want %04o", name, got, want)
		}
		seen = append(seen, name)
		return nil
	})
	must(t, err)
	wanted := append(slices.Clone(public), "node.key", "admin/key.pem", "chancery.db", "node-tls.pem")
	if running {
		wanted = append(wanted, "chancery.db-wal", "chancery.db-shm")
	}
	for _, name := range wanted {
		if !slices.Contains(seen, name) {
			t.Errorf("%s is not there: %v", name, seen)
		}
	}
}
