package migrate_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/finding"
	"chancery/internal/upkeep/migrate"
	"chancery/internal/upkeep/setup"
	"chancery/internal/upkeep/verify"

	"github.com/google/go-cmp/cmp"
)

// childDir, where it is set, makes the test binary a move of that data directory, to be killed.
const childDir, childURL = "MIGRATE_TEST_DIR", "MIGRATE_TEST_URL_FILE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		_, err := migrate.Run(context.Background(), migrate.Options{Dir: datadir.Dir(dir), URLFile: os.Getenv(childURL), Rows: 7,
			Tell: func(step string) { fmt.Println(step) }})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var officer = access.Principal{ID: "t", Name: "t", Kind: access.KindOperator, Roles: []access.Role{access.Admin}}

// filled makes an authority with certificates, one of them revoked, and events with what is odd in texts.
func filled(t *testing.T, events int) datadir.Dir {
	t.Helper()
	result, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: datadir.Dir(filepath.Join(t.TempDir(), "d")), Online: true})
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, result.Dir)
	defer s.DB.Close()
	for i := range 12 {
		c := issue(t, s, fmt.Sprintf("host%d.example", i))
		if i == 3 {
			if _, err := s.CA.Revoke(t.Context(), officer, ca.Ref{Serial: c.Serial}, ca.RevokeOrder{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range events {
		err := s.DB.Tx(t.Context(), func(tx *db.Tx) error {
			return s.Audit.Append(t.Context(), tx, audit.Event{Time: time.Now(), Actor: "operator:test", Action: "test.fill", Object: fmt.Sprint(i),
				Detail: map[string]string{"ü\t\\N": "\u2028\\."}})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return result.Dir
}

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
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return s.CA.Issue(t.Context(), officer, ca.Order{Profile: "server", PublicKey: spki, Names: []string{"dns:" + name}})
}

func tryOpen(t *testing.T, dir datadir.Dir) (*setup.Services, error) {
	t.Helper()
	config, err := dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	return setup.Open(t.Context(), dir, config, nil)
}

func open(t *testing.T, dir datadir.Dir) *setup.Services {
	t.Helper()
	s, err := tryOpen(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func urlFile(t *testing.T, url string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(file, []byte(url+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// empty makes a database with nothing in it.
func empty(t *testing.T, server *pkitest.PostgresServer, name string) string {
	t.Helper()
	server.Exec(t, "CREATE DATABASE "+name)
	return server.URL(name)
}

// hashes is one hash of every row of every table that is moved, by table.
func hashes(t *testing.T, d *db.DB) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	err := d.ReadSnapshot(t.Context(), func(tx *db.Tx) error {
		tables, err := db.Tables(t.Context(), tx)
		if err != nil {
			return err
		}
		for _, table := range tables {
			if slices.Contains([]string{"schema_version", "move_mark", "move_table"}, table.Name) {
				continue
			}
			all[table.Name] = []string{}
			for row, err := range table.Rows(t.Context(), tx) {
				if err != nil {
					return err
				}
				all[table.Name] = append(all[table.Name], fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%q", row))))
			}
			slices.Sort(all[table.Name])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func rows(all map[string][]string) (n int) {
	for _, rows := range all {
		n += len(rows)
	}
	return n
}

// sound has verify look at a store.
func sound(t *testing.T, s *setup.Services) {
	t.Helper()
	seq, err := verify.Store(t.Context(), s, verify.Shown{})
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	for f, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		if looked++; f.Level == finding.Error {
			t.Errorf("%+v", f)
		}
	}
	if looked < 5 {
		t.Fatalf("verify looked at %d things", looked)
	}
}

// killedMove runs a move in a process of its own and kills it a moment after it has said that it is at a step; at its start where step
// is empty, and never where it is "end". It says whether the move came to its end.
func killedMove(t *testing.T, dir datadir.Dir, file, step string, moment time.Duration) (ended bool) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childDir+"="+string(dir), childURL+"="+file)
	var complaint bytes.Buffer
	child.Stderr = &complaint
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	for lines := bufio.NewScanner(out); step != "" && lines.Scan(); {
		if said = append(said, lines.Text()); strings.HasPrefix(lines.Text(), step) {
			break
		}
	}
	if step != "end" {
		time.Sleep(moment)
		_ = child.Process.Kill()
	}
	switch err := child.Wait(); {
	case err == nil:
		return true
	case child.ProcessState.ExitCode() != -1:
		t.Fatalf("the move ended by itself, with %v, after %q\n%s", err, said, &complaint)
	}
	return false
}

// TestKilledAtAnyMoment kills moves at random moments of each of their steps, twenty times and then until one ends by itself, and looks at
// both sides.
func TestKilledAtAnyMoment(t *testing.T) {
	server := pkitest.Postgres(t)
	dir := filled(t, 900)
	file := urlFile(t, empty(t, server, "killed"))
	source := open(t, dir)
	want := hashes(t, source.DB)
	if err := source.DB.Close(); err != nil {
		t.Fatal(err)
	}
	killed := map[string]int{}
	ended := false
	for i := 0; i < 20 && !ended; i++ {
		step := []string{"", "copying"}[i%2]
		switch { // these may come to their end before they are killed, where who kills them is late
		case i >= 16:
			step = "switching"
		case i >= 13:
			step = "verifying"
		case i >= 10:
			step = "comparing"
		}
		if ended = killedMove(t, dir, file, step, time.Duration(mathrand.IntN(40))*time.Millisecond); !ended {
			killed[step]++
		}
	}
	t.Logf("killed after saying: %v", killed)
	if !ended && !killedMove(t, dir, file, "end", 0) {
		t.Fatal("the move that nobody killed did not end")
	}
	if n := killed[""] + killed["copying"] + killed["comparing"]; n < 8 {
		t.Fatalf("only %d moves were killed before their last steps", n)
	}
	moved := open(t, dir)
	defer moved.DB.Close()
	if moved.DB.Dialect() != db.Postgres {
		t.Fatal("node.yaml still names SQLite")
	}
	got := hashes(t, moved.DB)
	// The move itself is in the audit: that it began, each time that it began anew, and that it arrived.
	for _, table := range []string{"audit_event", "audit_head"} {
		if table == "audit_event" && (len(got[table]) < len(want[table])+2 || !subset(want[table], got[table])) {
			t.Errorf("the audit has %d events, and had %d", len(got[table]), len(want[table]))
		}
		delete(got, table)
		delete(want, table)
	}
	if diff := cmp.Diff(want, got); diff != "" || rows(want) < 20 {
		t.Errorf("%d rows (-want +got)\n%s", rows(want), diff)
	}
	sound(t, moved)
	issue(t, moved, "after.example")
	stays(t, dir)
}

func subset(few, many []string) bool {
	for _, one := range few {
		if _, found := slices.BinarySearch(many, one); !found {
			return false
		}
	}
	return true
}

// stays says that nobody starts on the old file, whatever node.yaml says.
func stays(t *testing.T, dir datadir.Dir) {
	t.Helper()
	text, err := os.ReadFile(dir.Config())
	if err != nil {
		t.Fatal(err)
	}
	old := datadir.Dir(filepath.Join(t.TempDir(), "old"))
	if err := os.CopyFS(string(old), os.DirFS(string(dir))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(string(old), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(old.NodeKey(), 0o600); err != nil {
		t.Fatal(err)
	}
	var kept []string
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "database_file") {
			kept = append(kept, line)
		}
	}
	if err := os.WriteFile(old.Config(), []byte(strings.Join(kept, "")), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := tryOpen(t, old)
	if s != nil {
		s.DB.Close()
	}
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "the authority left this database on") {
		t.Errorf("on the old file: %v", err)
	}
}
