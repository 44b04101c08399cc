package setup_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// prepared is an empty directory as it is made for the user that a node runs as, and nothing can be made around it. Its owner is another
// than who joins where that is root.
func prepared(t *testing.T) (dir datadir.Dir, owner int) {
	t.Helper()
	around := filepath.Join(t.TempDir(), "var")
	dir, owner = datadir.Dir(filepath.Join(around, "node")), os.Geteuid()
	if err := os.MkdirAll(string(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if owner == 0 {
		owner = 65534
		if err := os.Chown(string(dir), owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(around, 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(around, 0o755) })
	return dir, owner
}

// owned fails where something in the directory is not the owner's, or the directory is not the node's alone.
func owned(t *testing.T, dir datadir.Dir, owner int) {
	t.Helper()
	found := 0
	err := filepath.WalkDir(string(dir), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		if found++; int(st.Sys().(*syscall.Stat_t).Uid) != owner {
			t.Errorf("%s belongs to %d", path, st.Sys().(*syscall.Stat_t).Uid)
		}
		return nil
	})
	if st, e := os.Stat(string(dir)); err != nil || e != nil || found < 6 || st.Mode().Perm() != 0o700 {
		t.Errorf("%s: %d files, %v, %v, %v", string(dir), found, st, e, err)
	}
}

// TestJoinInAPreparedDirectory joins in an empty directory that was made for the node's user, and leaves all that it makes to that user. Cut short
// while all is put in its place, the same command goes on.
func TestJoinInAPreparedDirectory(t *testing.T) {
	t.Parallel()
	s := newServed(t)
	approved := 0
	approve := s.approving(t, "n2")
	dir, owner := prepared(t)
	at := filepath.Join(string(dir), ".joining")
	alone := map[string][]byte{"tls.key": nil, "database.key": nil, "token.sha256": nil, "known": nil} // of a join, and no node's
	o := s.joining(t, "n2", func(fingerprint string) {
		if approved++; approved > 1 {
			return
		}
		for name := range alone {
			text, err := os.ReadFile(filepath.Join(at, name))
			if err != nil {
				t.Error(err)
			}
			alone[name] = text
		}
		approve(fingerprint)
	})
	o.Dir = dir
	if _, err := setup.Join(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	owned(t, o.Dir, owner)
	if _, err := os.Stat(string(o.Dir) + ".joining"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it made something beside the directory: %v", err)
	}
	if _, err := setup.Join(t.Context(), o); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("into a node: %v", err)
	}
	for name := range alone {
		if _, err := os.Stat(filepath.Join(string(dir), name)); err == nil {
			t.Errorf("it leaves %s", name)
		}
	}
	// As it is when it was cut short before the last files were in their place.
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(at, owner, owner); err != nil {
		t.Fatal(err)
	}
	for name, text := range alone {
		if err := os.WriteFile(filepath.Join(string(dir), name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{o.Dir.Config(), o.Dir.TLS()} {
		if err := os.Rename(file, filepath.Join(at, filepath.Base(file))); err != nil {
			t.Fatal(err)
		}
	}
	if joined, err := setup.Join(t.Context(), o); err != nil || joined.State != client.CloneActive {
		t.Fatalf("it does not go on: %+v, %v", joined, err)
	}
	owned(t, o.Dir, owner)
	issue(t, open(t, o.Dir), "prepared.example")
	// What is not empty and no join's is left alone.
	full, _ := prepared(t)
	if err := os.WriteFile(filepath.Join(string(full), "letter"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := o
	other.Dir = full
	if _, err := setup.Join(t.Context(), other); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("into a directory with a letter: %v", err)
	}
}

// refusedLeavesNothing has the next token begin anew where the authority refused the one before it, or was not even asked.
func (s *served) refusedLeavesNothing(t *testing.T) {
	t.Helper()
	o := s.joining(t, "n2", s.approving(t, "n2"))
	good := o.Token
	ended, err := client.ParseCloneToken(good)
	if err != nil {
		t.Fatal(err)
	}
	other := *ended
	ended.Secret = strings.Repeat("A", len(ended.Secret))
	o.Token = ended.String()
	if _, err := setup.Join(t.Context(), o); err == nil || !strings.Contains(err.Error(), "this token is not good") {
		t.Fatalf("a token of nobody's: %v", err)
	}
	if left, err := filepath.Glob(string(o.Dir) + "*"); err != nil || len(left) > 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
	other.Fingerprint = make([]byte, len(other.Fingerprint))
	o.Token = other.String()
	if _, err := setup.Join(t.Context(), o); err == nil || !strings.Contains(err.Error(), "is not that authority") {
		t.Fatalf("a token of another authority's: %v", err)
	}
	o.Token = good
	if _, err := setup.Join(t.Context(), o); err != nil {
		t.Errorf("the good token: %v", err)
	}
}

// TestJoinLooksAtTheDatabaseFirst refuses a database that is seen to be the wrong one before anybody is asked to approve; and a token that
// is refused leaves nothing.
func TestJoinLooksAtTheDatabaseFirst(t *testing.T) {
	t.Parallel()
	s := newServed(t)
	another := pkitest.URL(t, db.Postgres)
	if _, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t), DatabaseFile: databaseFile(t, another), Online: true}); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct{ url, says string }{
		"no authority":      {pkitest.URL(t, db.Postgres), "holds no authority"},
		"another authority": {another, "is another authority's: it has not the root of identities that https://127.0.0.1:"},
		"a standby alone":   {pkitest.Postgres(t, "fsync=off").Standby(t, "local").URL("postgres"), "leads to a standby alone, which takes no writes"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		o := s.joining(t, "n2", func(string) { t.Errorf("%s: somebody is asked to approve", what); cancel() })
		o.DatabaseFile = databaseFile(t, c.url)
		if _, err := setup.Join(ctx, o); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
		nothingBut(t, o.Dir)
	}
	var n int64
	err := s.DB.Read(t.Context(), func(tx *db.Tx) error { return tx.QueryRow(t.Context(), `SELECT COUNT(*) FROM node`).Scan(&n) })
	if err != nil || n != 1 {
		t.Errorf("there are %d nodes, %v", n, err)
	}
	s.refusedLeavesNothing(t)
}
