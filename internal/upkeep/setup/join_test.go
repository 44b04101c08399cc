package setup_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/run/server"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// served is an authority on PostgreSQL whose first node runs, for others to join.
type served struct {
	*setup.Services // beside the node
	url             string
}

func newServed(t *testing.T) *served {
	t.Helper()
	ports := make([]int, 3)
	for i := range ports {
		var err error
		if ports[i], err = pkitest.FreePort(); err != nil {
			t.Fatal(err)
		}
	}
	at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	dir, url := newDir(t), pkitest.URL(t, db.Postgres)
	_, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: dir, DatabaseFile: databaseFile(t, url), Online: true,
		Address: "https://" + at(0), Listen: at(0), PublicListen: at(1), Metrics: at(2)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan bool), make(chan error, 1)
	go func() {
		ended <- server.Run(ctx, server.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler), Listening: func(server.Addresses) { close(ready) }})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the node ended: %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		t.Fatal(err)
	}
	s := &served{Services: open(t, dir), url: url}
	now, err := s.Settings.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	next, err := now.WithAll([]settings.Field{{Path: "durability", Value: "provider"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Settings.Set(t.Context(), "test", *next, once.Call{}); err != nil {
		t.Fatal(err)
	}
	return s
}

// joining says how a machine joins; approve, if set, is done when it waits.
func (s *served) joining(t *testing.T, name string, approve func(fingerprint string)) setup.JoinOptions {
	t.Helper()
	made, err := s.Clones.Invite(t.Context(), officer, client.CloneInvitation{}, "")
	if err != nil {
		t.Fatal(err)
	}
	return setup.JoinOptions{
		Dir: newDir(t), Token: made.Token, Release: "test", Name: name, Address: "https://" + name + ".test:8443", DatabaseFile: databaseFile(t, s.url),
		Waiting: func(_, fingerprint string) { approve(fingerprint) },
	}
}

// nothingBut fails where a join that was refused left more behind than what it goes on with.
func nothingBut(t *testing.T, dir datadir.Dir) {
	t.Helper()
	if _, err := os.Stat(string(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a data directory was made: %v", err)
	}
	if _, err := os.Stat(datadir.Dir(string(dir) + ".joining").Config()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was begun looks like a node: %v", err)
	}
}

func (s *served) exec(t *testing.T, statement string) {
	t.Helper()
	err := s.DB.Tx(t.Context(), func(tx *db.Tx) error {
		n, err := tx.Exec(t.Context(), statement)
		if err == nil && n == 0 {
			err = errors.New("it touched nothing")
		}
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// TestJoinWantsGoodKeys has a machine join while a wrap of its does not open, and while an issuer's key is not its certificate's: it is
// refused before there is a node, and the same command goes on once that is repaired.
func TestJoinWantsGoodKeys(t *testing.T) {
	t.Parallel()
	s, approved := newServed(t), 0
	const wrap = `UPDATE key_wrap SET wrap = (SELECT w.wrap FROM key_wrap w WHERE w.recipient_id = 'n2' AND w.key_id <> key_wrap.key_id LIMIT 1)
		WHERE recipient_id = 'n2' AND key_id = (SELECT key_id FROM issuer WHERE name = 'identity')`
	o := s.joining(t, "n2", func(fingerprint string) {
		if approved++; approved > 1 {
			return // it goes on
		}
		if _, err := s.Clones.Approve(t.Context(), officer, "n2", client.CloneApproval{Fingerprint: fingerprint}); err != nil {
			t.Error(err)
		}
		s.exec(t, `CREATE TABLE kept_wrap AS SELECT * FROM key_wrap WHERE recipient_id = 'n2'`)
		s.exec(t, `CREATE TABLE kept_issuer AS SELECT * FROM issuer WHERE name = 'default'`)
		s.exec(t, wrap)
		s.exec(t, `UPDATE issuer SET key_id = (SELECT key_id FROM issuer WHERE name = 'identity-root') WHERE name = 'default'`)
	})
	_, err := setup.Join(t.Context(), o)
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "node n2 was approved, and could not sign: of the ") ||
		!strings.Contains(err.Error(), "CA private key is null!") {
		t.Fatalf("it joined: %v", err)
	}
	nothingBut(t, o.Dir)
	s.exec(t, `DELETE FROM key_wrap WHERE recipient_id = 'n2'`)
	s.exec(t, `INSERT INTO key_wrap SELECT * FROM kept_wrap`)
	// The key of a retired issuer may be lost for good, and keeps no machine out.
	s.exec(t, `UPDATE issuer SET key_id = 'lost', state = 'retired', is_default = 0 WHERE name = 'default'`)
	joined, err := setup.Join(t.Context(), o)
	if err != nil || joined.State != client.CloneActive {
		t.Fatalf("it was repaired, and the node is %+v, %v", joined, err)
	}
	s.exec(t, `UPDATE issuer SET (key_id, state, is_default) = (SELECT key_id, state, is_default FROM kept_issuer) WHERE name = 'default'`)
	issue(t, open(t, o.Dir), "after.example")
	if _, err := os.Stat(string(o.Dir) + ".joining"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was begun is still there: %v", err)
	}
}

// TestJoinRefuses has machines join that may not, each of which leaves no node behind.
func TestJoinRefuses(t *testing.T) {
	t.Parallel()
	s := newServed(t)
	never := func(string) { t.Error("it was told to wait") }
	for what, c := range map[string]struct {
		change func(*setup.JoinOptions)
		kind   fault.Kind // empty where the authority answers
		says   string
	}{
		"a token withdrawn": {func(*setup.JoinOptions) { s.exec(t, `DELETE FROM node_invitation`) }, "", "this token is not good"},
		"no token":          {func(o *setup.JoinOptions) { o.Token = "chancery-join-1.abc" }, fault.Invalid, "token"},
		"no database":       {func(o *setup.JoinOptions) { o.DatabaseFile = "" }, fault.Invalid, "--database-file"},
		"its file is open":  {func(o *setup.JoinOptions) { chmod(t, o.DatabaseFile, 0o644) }, fault.Invalid, "which others may have read"},
		"a name of another": {func(o *setup.JoinOptions) { o.Name = "node1" }, "", "no name is given twice"},
		"a hostile name":    {func(o *setup.JoinOptions) { o.Name = "n2; rm -rf" }, fault.Invalid, "name"},
		"capitals":          {func(o *setup.JoinOptions) { o.Name = "N2" }, "", "is not 1 to 54 of a-z"},
		"a reserved name":   {func(o *setup.JoinOptions) { o.Name = "invitations" }, "", "a word of the authority's own"},
		"plain http":        {func(o *setup.JoinOptions) { o.Address = "http://n2.test:8443" }, fault.Invalid, "address"},
		"nobody's address":  {func(o *setup.JoinOptions) { o.Address = "https://0.0.0.0:8443" }, "", "an address that nobody reaches"},
		"an address's zone": {func(o *setup.JoinOptions) { o.Address = "https://[fe80::1%25eth0]:8443" }, "", "address"},
		"user in address":   {func(o *setup.JoinOptions) { o.Address = "https://root@n2.test:8443" }, "", "address"},
		"star in a name":    {func(o *setup.JoinOptions) { o.TLSNames = []string{"*.test"} }, "", "neither dns:name nor ip:address"},
	} {
		o := s.joining(t, "n2", never)
		c.change(&o)
		_, err := setup.Join(t.Context(), o)
		if err == nil || c.kind != "" && !fault.Is(err, c.kind) || !strings.Contains(strings.ToLower(err.Error()), c.says) {
			t.Errorf("%s: %v", what, err)
		}
		nothingBut(t, o.Dir)
	}
	var n int64
	err := s.DB.Read(t.Context(), func(tx *db.Tx) error {
		return tx.QueryRow(t.Context(), `SELECT (SELECT COUNT(*) FROM node) + (SELECT COUNT(*) FROM node_invitation WHERE used_by <> '')`).Scan(&n)
	})
	if err != nil || n != 1 {
		t.Errorf("there are %d nodes and used tokens, %v", n, err)
	}
	// One that nobody approves in time waits on, and the command may be given again.
	told := make(chan string, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := s.joining(t, "n2", func(fingerprint string) { told <- fingerprint; cancel() })
	if _, err := setup.Join(ctx, o); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "was not approved") {
		t.Errorf("nobody approved it: %v", err)
	}
	nothingBut(t, o.Dir)
	first := tell(t, told)
	other := o
	other.Token = s.joining(t, "n3", never).Token
	if _, err := setup.Join(t.Context(), other); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "another token") {
		t.Errorf("it went on with another token: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	o.Waiting = func(_, fingerprint string) { told <- fingerprint; stop() }
	if _, err := setup.Join(ctx, o); !fault.Is(err, fault.Unavailable) {
		t.Errorf("it went on: %v", err)
	}
	if again := tell(t, told); again != first {
		t.Errorf("its fingerprint was %s, and is %s", first, again)
	}
}

// tell is the fingerprint that was told.
func tell(t *testing.T, told <-chan string) (fingerprint string) {
	t.Helper()
	select {
	case fingerprint = <-told:
	default:
		t.Fatal("it was not told to wait")
	}
	return fingerprint
}

func chmod(t *testing.T, file string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
}
