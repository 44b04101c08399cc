package migrate_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/move"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/migrate"
	"chancery/internal/upkeep/setup"
)

// refused moves, and wants a refusal of that kind with that text.
func refused(t *testing.T, o migrate.Options, kind fault.Kind, text string) {
	t.Helper()
	_, err := migrate.Run(t.Context(), o)
	if !fault.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("%v; %s with %q was wanted", err, kind, text)
	}
}

// TestRefusedTargets leaves source and target as they were.
func TestRefusedTargets(t *testing.T) {
	server := pkitest.Postgres(t)
	dir := filled(t, 1)
	at := func(name string) migrate.Options {
		return migrate.Options{Dir: dir, URLFile: urlFile(t, empty(t, server, name))}
	}

	foreign := at("guests")
	d := pkitest.Open(t, db.Options{URL: server.URL("guests")})
	if _, err := d.Migrator().Exec("CREATE TABLE guests (id integer PRIMARY KEY, name varchar(20))"); err != nil {
		t.Fatal(err)
	}
	refused(t, foreign, fault.Conflict, "holds tables that are none of ours")

	other := at("other")
	if _, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: datadir.Dir(t.TempDir() + "/o"), DatabaseFile: other.URLFile}); err != nil {
		t.Fatal(err)
	}
	refused(t, other, fault.Conflict, "holds an authority already: its table ")

	server.Exec(t, "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
	refused(t, migrate.Options{Dir: dir, URLFile: urlFile(t, server.URL("latin"))}, fault.Conflict, "has the encoding LATIN1")

	readOnly := at("readonly")
	server.Exec(t, "ALTER DATABASE readonly SET default_transaction_read_only = on")
	refused(t, readOnly, fault.Conflict, "only reads")
	server.Exec(t, "CREATE ROLE guest LOGIN")
	server.Exec(t, "CREATE DATABASE ours")
	guest := strings.Replace(server.URL("ours"), "chancery@", "guest@", 1)
	refused(t, migrate.Options{Dir: dir, URLFile: urlFile(t, guest)}, fault.Denied, "may not make tables")

	// One that ends in the middle is given up, and the authority goes on where it was.
	cut := at("middle")
	cut.Tell = func(step string) {
		if strings.HasPrefix(step, "copying") {
			server.Exec(t, "ALTER DATABASE middle SET default_transaction_read_only = on")
			server.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'middle'")
		}
	}
	refused(t, cut, fault.Unavailable, "copy table")
	if to, err := migrate.GiveUp(t.Context(), dir); err != nil || !strings.HasSuffix(to, "/middle") {
		t.Errorf("given up: %q, %v", to, err)
	}
	s := open(t, dir)
	issue(t, s, "goes-on.example")
	if err := s.DB.Close(); err != nil {
		t.Fatal(err)
	}

	running := open(t, dir)
	_, err := migrate.Run(t.Context(), at("fresh"))
	if f, ok := errors.AsType[*fault.Error](err); !ok || f.Kind != fault.Conflict || !strings.Contains(f.Hint, "stop the node first") {
		t.Errorf("beside a node: %v", err)
	}
	if err := running.DB.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCutBetweenTheLastSteps ends a move between leaving the source and opening the target: no node starts on either, and the same
// command ends it.
func TestCutBetweenTheLastSteps(t *testing.T) {
	server := pkitest.Postgres(t)
	dir := filled(t, 1)
	o := migrate.Options{Dir: dir, URLFile: urlFile(t, empty(t, server, "cut"))}
	asked, answered := 0, make(chan struct{})
	o.Answer = func(ctx context.Context, _ *datadir.Config, s *setup.Services) error {
		defer close(answered)
		if _, err := tryIssue(t, s, "meanwhile.example"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "the authority is being moved to") {
			t.Errorf("issued meanwhile: %v", err)
		}
		if _, err := s.CA.Issuers(ctx); err != nil {
			t.Errorf("nothing is read meanwhile: %v", err)
		}
		asked++
		<-ctx.Done()
		return nil
	}
	o.Tell = func(step string) {
		if step == "switching" {
			select {
			case <-answered:
			default:
				t.Error("somebody answers from a source that is left")
			}
		}
		if strings.HasPrefix(step, "opening") {
			server.Exec(t, "ALTER DATABASE cut SET default_transaction_read_only = on")
			server.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'cut'")
		}
	}
	refused(t, o, fault.Unavailable, "open the target")
	if asked != 1 {
		t.Errorf("it answered %d times", asked)
	}
	if s, err := tryOpen(t, dir); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "left this database") {
		t.Errorf("on the source: %v, %v", s, err)
	}
	target := pkitest.Open(t, db.Options{URL: server.URL("cut")})
	if err := move.Guard(t.Context(), target); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "not all of it is here") {
		t.Errorf("on the target: %v", err)
	}
	if _, err := migrate.GiveUp(t.Context(), dir); !fault.Is(err, fault.Conflict) {
		t.Errorf("given up when it was made: %v", err)
	}
	another := migrate.Options{Dir: dir, URLFile: urlFile(t, empty(t, server, "another"))}
	refused(t, another, fault.Conflict, "is not that database")
	server.Exec(t, "ALTER DATABASE cut RESET default_transaction_read_only")
	o.Tell, o.Answer = nil, nil
	done, err := migrate.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if done.Copied != 0 {
		t.Errorf("%d rows were copied once more", done.Copied)
	}
	s := open(t, dir)
	defer s.DB.Close()
	if s.DB.Dialect() != db.Postgres {
		t.Error("node.yaml names SQLite")
	}
	sound(t, s)
	if text, err := os.ReadFile(dir.Config()); err != nil || strings.Count(string(text), "database_file") != 1 {
		t.Errorf("%s, %v", text, err)
	}
}

// TestTargetLosesRows has rows that were compared go with the server that had them, as a standby's promotion does: before the source is left
// the move is refused and goes on when it is repeated; after it, what is lost goes over again before the target is opened.
func TestTargetLosesRows(t *testing.T) {
	server := pkitest.Postgres(t)
	for name, step := range map[string]string{"before": "switching", "after": "opening"} {
		t.Run(name, func(t *testing.T) {
			dir := filled(t, 1)
			url := empty(t, server, "lost_"+name)
			o := migrate.Options{Dir: dir, URLFile: urlFile(t, url)}
			o.Tell = func(now string) {
				if strings.HasPrefix(now, step) {
					d := pkitest.Open(t, db.Options{URL: url})
					if _, err := d.Migrator().Exec("DELETE FROM move_table WHERE name = 'audit_event'; DELETE FROM audit_event"); err != nil {
						t.Error(err)
					}
				}
			}
			if name == "before" {
				refused(t, o, fault.Unavailable, "another server took the place")
				s := open(t, dir)
				if s.DB.Dialect() != db.SQLite {
					t.Error("the source was left")
				}
				_ = s.DB.Close()
				o.Tell = nil
			}
			done, err := migrate.Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if done.Copied == 0 {
				t.Error("nothing went over again")
			}
			s := open(t, dir)
			defer s.DB.Close()
			sound(t, s)
		})
	}
}

// TestTargetThatWaitsForNobody is refused while it has a standby: what is acknowledged there goes with the primary.
func TestTargetThatWaitsForNobody(t *testing.T) {
	server := pkitest.Postgres(t, "wal_level=replica", "max_wal_senders=3")
	dir := filled(t, 1)
	o := migrate.Options{Dir: dir, URLFile: urlFile(t, empty(t, server, "alone"))}
	receiver := exec.Command("/usr/lib/postgresql/15/bin/pg_receivewal", "--no-password", "-D", t.TempDir(), "-d", server.URL("alone"))
	if err := receiver.Start(); err != nil {
		t.Fatal(err)
	}
	d := pkitest.Open(t, db.Options{URL: server.URL("alone")})
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		var n int
		if err := d.Migrator().QueryRow("SELECT COUNT(*) FROM pg_stat_replication").Scan(&n); err != nil || time.Now().After(end) {
			t.Fatal(n, err)
		}
		if n > 0 {
			break
		}
	}
	refused(t, o, fault.Conflict, "has standbys and waits for none")
	if err := errors.Join(receiver.Process.Kill(), ignored(receiver.Wait())); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		var n int
		if err := d.Migrator().QueryRow("SELECT COUNT(*) FROM pg_stat_replication").Scan(&n); err != nil || time.Now().After(end) {
			t.Fatal(n, err)
		}
		if n == 0 {
			break
		}
	}
	if _, err := migrate.Run(t.Context(), o); err != nil {
		t.Errorf("one server without standbys: %v", err)
	}
}

// ignored is for a process that was killed.
func ignored(error) error { return nil }
