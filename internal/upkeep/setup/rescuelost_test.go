package setup_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/setup"
)

// TestRescueOnAClone brings back what is a clone's own, whose directory never had an administrator; he is put there when asked for.
func TestRescueOnAClone(t *testing.T) {
	t.Parallel()
	s := newServed(t)
	o := s.joining(t, "n2", s.approving(t, "n2"))
	if _, err := setup.Join(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	certificates := func() (n int) {
		if err := s.DB.Read(t.Context(), func(tx *db.Tx) error { return tx.QueryRow(t.Context(), `SELECT COUNT(*) FROM certificate`).Scan(&n) }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := os.WriteFile(o.Dir.TLS(), []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := certificates()
	done, err := setup.RescueExpired(t.Context(), setup.ExpiredOptions{Dir: o.Dir})
	if err != nil {
		t.Fatal(err)
	}
	if done.Administrator != "" || !done.TLSRemoved || certificates() != before {
		t.Errorf("%+v, and %d certificates more; the node's TLS certificate was bad, and nothing else", done, certificates()-before)
	}
	if _, err := os.Stat(filepath.Dir(o.Dir.AdminKey())); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an administrator's directory: %v", err)
	}
	if _, err := setup.RescueAdmin(t.Context(), o.Dir); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]fs.FileMode{filepath.Dir(o.Dir.AdminKey()): 0o700 | fs.ModeDir, o.Dir.AdminKey(): 0o600} {
		if stat, err := os.Stat(path); err != nil || stat.Mode() != mode {
			t.Errorf("%s: %v, %v", path, stat, err)
		}
	}
	if done, err = setup.RescueExpired(t.Context(), setup.ExpiredOptions{Dir: o.Dir}); err != nil || !done.Kept {
		t.Errorf("%+v, %v; the administrator's identity is good", done, err)
	}
}

// TestAllNodesLost has the recovery key bring back an authority of two nodes whose keys are lost, first with a data directory, then with
// none. Whoever lives, or was not called lost, is not ended.
func TestAllNodesLost(t *testing.T) {
	t.Parallel()
	url := pkitest.URL(t, db.Postgres)
	file := databaseFile(t, url)
	result, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t), DatabaseFile: file, Online: true})
	if err != nil {
		t.Fatal(err)
	}
	key, one := recovery(t, result), open(t, result.Dir)
	issued := issue(t, one, "before.example")
	other := secondNode(t, one, url)
	if err := other.Clones.Register(t.Context(), "https://n2.test:1", time.Now()); err != nil {
		t.Fatal(err)
	}
	exec := func(statement string, args ...any) {
		t.Helper()
		if err := other.DB.Tx(t.Context(), func(tx *db.Tx) error { _, err := tx.Exec(t.Context(), statement, args...); return err }); err != nil {
			t.Fatal(err)
		}
	}
	lose(t, result.Dir)
	rescue := setup.NodeRescue{Dir: result.Dir, Recovery: key}
	refused := func(kind fault.Kind, text string, lost ...string) {
		t.Helper()
		rescue.Lost = lost
		_, err := setup.RescueNode(t.Context(), rescue)
		var f *fault.Error
		if !errors.As(err, &f) || f.Kind != kind || !strings.Contains(f.Error()+f.Hint, text) {
			t.Errorf("%q are lost: %v; want %s", lost, err, text)
		}
	}
	seen := func(ago time.Duration) {
		exec(`UPDATE node SET seen_at = $1 WHERE name = 'node2'`, db.Micros(time.Now().Add(-ago)))
	}
	seen(-time.Hour) // however slow this is
	refused(fault.Conflict, "was seen", "node2")
	seen(time.Minute)
	refused(fault.Conflict, "--lost node2")
	refused(fault.Invalid, `"node9"`, "node2", "node9")
	rescue.Lost = []string{"node2"}
	done, err := setup.RescueNode(t.Context(), rescue)
	if err != nil {
		t.Fatal(err)
	}
	serves(t, result.Dir, done.Name)
	list, err := one.Keys.Recipients(t.Context())
	if err != nil || slices.ContainsFunc(list, func(r keys.Recipient) bool { return r.Kind == keys.KindNode && r.ID != done.Name }) {
		t.Errorf("keys are wrapped to %v, %v; %s alone is a node", list, err, done.Name)
	}

	// Nothing is left but the database and the recovery key.
	rescue = setup.NodeRescue{Dir: newDir(t), Recovery: key}
	if _, err := setup.RescueNode(t.Context(), rescue); !fault.Is(err, fault.NotFound) {
		t.Errorf("a directory of nothing: %v", err)
	}
	rescue.DatabaseFile = file
	for range 2 { // the first makes node.yaml; the same again is judged as the first was
		refused(fault.Conflict, "there: chancery clone invite; here")
	}
	rescue.DatabaseFile = databaseFile(t, url)
	refused(fault.Invalid, "leave --database-file away", done.Name)
	rescue.DatabaseFile, rescue.Lost = file, []string{done.Name}
	pull := blocked(t, rescue.Dir.TLS()) // node.yaml has its name by then
	if _, err := setup.RescueNode(t.Context(), rescue); err == nil {
		t.Error("nothing was in the way")
	}
	pull()
	if done, err = setup.RescueNode(t.Context(), rescue); err != nil {
		t.Fatal(err)
	}
	serves(t, rescue.Dir, done.Name)
	refused(fault.Invalid, "leave --database-file away")
	for _, path := range []string{rescue.Dir.IdentityRoot(), rescue.Dir.AuditKey()} {
		before, _ := os.ReadFile(strings.Replace(path, string(rescue.Dir), string(result.Dir), 1))
		if now, err := os.ReadFile(path); err != nil || len(before) == 0 || string(now) != string(before) {
			t.Errorf("%s: %v, and not as it was", path, err)
		}
	}
	after := open(t, rescue.Dir)
	if found, err := after.CA.Find(t.Context(), officer, ca.Ref{Issuer: issued.Issuer.ID, Serial: issued.Serial}); err != nil || found.State != "valid" {
		t.Errorf("what was issued before is %+v, %v", found, err)
	}
}

// TestRescuedNodeHasItsLogin asserts that a node that was rescued logs in by its new name: the login of its old one is ended by the next
// node that joins, since that node is gone.
func TestRescuedNodeHasItsLogin(t *testing.T) {
	t.Parallel()
	server := pkitest.Postgres(t, "fsync=off")
	for _, statement := range []string{"CREATE ROLE pki NOLOGIN", "CREATE DATABASE lost OWNER pki", "CREATE ROLE chancery_first LOGIN IN ROLE pki"} {
		server.Exec(t, statement)
	}
	psql := func(text string) string {
		t.Helper()
		out, err := exec.Command("psql", "-XAtqvON_ERROR_STOP=1", "-c", text, server.URL("lost")).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	psql(db.LoginFunctions)
	boss := strings.Replace(server.URL("lost"), "//chancery@", "//chancery_first@", 1)
	file := databaseFile(t, boss)
	result, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t), DatabaseFile: file, Online: true})
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, result.Dir)
	if err := s.Clones.Register(t.Context(), "https://n1.test:1", time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pools.Add(t.Context(), officer, "", pool.Spec{Name: setup.DatabasePool, Organization: "E", Online: true}); err != nil {
		t.Fatal(err)
	}
	made, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		t.Fatal(err)
	}
	text, err := keyfile.EncodePKCS8(made)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := cert.ProofOfPossession(made)
	if err != nil {
		t.Fatal(err)
	}
	login, err := s.Clones.OpenLogin(t.Context(), officer, "node1", csr)
	if err != nil {
		t.Fatal(err)
	}
	if err := result.Dir.KeepDatabaseLogin(login.Role, text, login.Certificate, login.Roots); err != nil {
		t.Fatal(err)
	}
	if err := s.DB.Close(); err != nil {
		t.Fatal(err)
	}
	// From here on the node logs in as chancery_node1, by its certificate where the server asks for one.
	if err := os.WriteFile(file, []byte(strings.Replace(server.URL("lost"), "//chancery@", "//", 1)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	key := recovery(t, result)
	lose(t, result.Dir)
	done, err := setup.RescueNode(t.Context(), setup.NodeRescue{Dir: result.Dir, Recovery: key})
	if err != nil {
		t.Fatal(err)
	}
	role, err := result.Dir.DatabaseRole()
	if err != nil || role != setup.LoginRole(done.Name) || done.Login != "" {
		t.Fatalf("the node is %+v, and its login %q, %v", done, role, err)
	}
	if remembered := psql(`SELECT database_role FROM node WHERE state = 'active'`); remembered != role {
		t.Errorf("the login of the node is remembered as %q", remembered)
	}
	rescued := open(t, result.Dir)
	if err := rescued.Clones.Register(t.Context(), "https://n1.test:1", time.Now()); err != nil {
		t.Fatal(err)
	}
	another := anotherNode(t, rescued, boss, "node9")
	if err := another.Clones.Register(t.Context(), "https://n9.test:1", time.Now()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := another.Clones.Finish(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if left := psql(`SELECT string_agg(rolname, ' ' ORDER BY rolname) FROM pg_roles WHERE rolcanlogin AND rolname LIKE 'chancery\_n%'`); left != role {
		t.Errorf("logins are %q; want %s alone", left, role)
	}
	issue(t, rescued, "after.example")

	// A login of another name gets its successor whole, or not at all: cut between its files, the next run finishes it.
	if err := os.WriteFile(filepath.Join(filepath.Dir(result.Dir.DatabaseLogin()), "role"), []byte("chancery_node1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(result.Dir.DatabaseLogin()); err != nil {
		t.Fatal(err)
	}
	pull := blocked(t, result.Dir.DatabaseLogin())
	expired := setup.ExpiredOptions{Dir: result.Dir, DatabaseFile: databaseFile(t, boss)}
	if _, err := setup.RescueExpired(t.Context(), expired); err == nil {
		t.Fatal("nothing was in the way of the login")
	}
	pull()
	whole, err := result.Dir.NextDatabaseLogin().LoginCertificate()
	if err != nil || whole == nil {
		t.Fatalf("the new login is not whole beside the old one: %v", err)
	}
	if _, err := setup.RescueExpired(t.Context(), expired); err != nil {
		t.Fatal(err)
	}
	if taken, err := result.Dir.LoginCertificate(); err != nil || taken == nil || !taken.Equal(whole) || taken.Subject.CommonName != role {
		t.Errorf("the login is %v, %v; want the one that was made for %s", taken, err, role)
	}
	if now, err := result.Dir.DatabaseRole(); err != nil || now != role {
		t.Errorf("the login's name is %q, %v", now, err)
	}
}

// blocked puts a directory that is not empty where a file belongs.
func blocked(t *testing.T, path string) (pull func()) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
}
