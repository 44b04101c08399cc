package db_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// awaitSyncWait returns when n sessions of the server wait for a synchronous standby, and names one of them.
func awaitSyncWait(t *testing.T, s *pkitest.PostgresServer, n int) (pid int) {
	t.Helper()
	pool, err := sql.Open("pgx", s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		var have int
		err := pool.QueryRowContext(ctx, "SELECT COUNT(*), COALESCE(MAX(pid), 0) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").Scan(&have, &pid)
		if err != nil {
			t.Fatal(err)
		}
		if have == n {
			return pid
		}
	}
}

// unseeing is a login that may not see how standbys stand: its commits wait for one that is not there.
func unseeing(t *testing.T, s *pkitest.PostgresServer) (url string) {
	t.Helper()
	s.Exec(t, "CREATE ROLE unseeing LOGIN")
	s.Exec(t, "GRANT CREATE ON SCHEMA public TO unseeing")
	return strings.Replace(s.URL("postgres"), "chancery@", "unseeing@", 1)
}

// TestCancelledWaitForTheStandbyIsNoSuccess: PostgreSQL reports a COMMIT whose wait was cancelled as done, with a warning only.
func TestCancelledWaitForTheStandbyIsNoSuccess(t *testing.T) {
	t.Parallel()
	s := pkitest.Postgres(t, "synchronous_standby_names=ghost", "synchronous_commit=local")
	d := pkitest.Open(t, db.Options{URL: unseeing(t, s)})
	makeTable(t, d) // with the server's own setting, which does not wait
	d.SetDurability(db.Synchronous)
	ctx, cancel := context.WithCancel(t.Context())
	answer := make(chan error, 1)
	go func() {
		answer <- d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, "a", 1) })
	}()
	pid := awaitSyncWait(t, s, 1)
	cancel() // the caller gives up; COMMIT goes on
	if again := awaitSyncWait(t, s, 1); again != pid {
		t.Errorf("session %d waits, not %d", again, pid)
	}
	select {
	case err := <-answer:
		t.Fatalf("COMMIT was cancelled with its caller: %v", err)
	default:
	}
	s.Exec(t, fmt.Sprintf("SELECT pg_cancel_backend(%d)", pid))
	if err := <-answer; !errors.Is(err, db.ErrUnknownOutcome) {
		t.Fatalf("the cancelled wait was reported as %v", err)
	}
	report, err := d.DurabilityReport(t.Context())
	if err != nil || len(report.Problems()) == 0 || report.SynchronousCommit == "" {
		t.Errorf("report %+v, %v", report, err)
	}
}

// awaitSetting makes commits until the first of them waits: processes read a reloaded configuration each in its time.
func awaitSetting(t *testing.T, s *pkitest.PostgresServer) {
	t.Helper()
	pool, err := sql.Open("pgx", s.URL("postgres"))
	must(t, err)
	defer pool.Close()
	for i := 0; ; i++ {
		ctx, cancel := context.WithCancel(t.Context())
		answer := make(chan error, 1)
		go func() {
			_, err := pool.ExecContext(ctx, fmt.Sprintf("SET synchronous_commit = on; CREATE TABLE probe_%d (id TEXT)", i))
			answer <- err
		}()
		var waits, answered bool
		for !waits && !answered {
			select {
			case err = <-answer:
				answered = true
			default:
				must(t, pool.QueryRowContext(ctx, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'").Scan(&waits))
			}
		}
		cancel() // pgx then cancels the wait
		if waits {
			<-answer
			return
		}
		must(t, err)
	}
}

// TestImpatienceSendsNoCancelRequest: a COMMIT without an answer is given up by closing the connection; the server goes on waiting,
// and the row appears when the standby does.
func TestImpatienceSendsNoCancelRequest(t *testing.T) {
	t.Parallel()
	s := pkitest.Postgres(t, "synchronous_commit=local")
	d := pkitest.Open(t, db.Options{URL: s.URL("postgres"), Patience: 5 * time.Second})
	makeTable(t, d) // with the server's own setting, which does not wait
	s.Exec(t, "ALTER SYSTEM SET synchronous_standby_names = 'ghost'")
	s.Exec(t, "SELECT pg_reload_conf()")
	awaitSetting(t, s)
	ctx := t.Context()
	err := d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, "a", 1) })
	if !errors.Is(err, db.ErrUnknownOutcome) {
		t.Fatalf("the answer is %v", err)
	}
	awaitSyncWait(t, s, 1) // a cancel request would have ended the wait
	if n := count(t, d); n != 0 {
		t.Errorf("%d rows are visible before the standby has them", n)
	}
	s.Exec(t, "ALTER SYSTEM RESET synchronous_standby_names")
	s.Exec(t, "SELECT pg_reload_conf()")
	awaitSyncWait(t, s, 0)
	for deadline := time.Now().Add(time.Minute); count(t, d) != 1; {
		if time.Now().After(deadline) {
			t.Fatal("the row did not appear")
		}
	}
}

func TestSynchronousNeedsAStandbyName(t *testing.T) {
	t.Parallel()
	url := pkitest.URL(t, db.Postgres)
	d := pkitest.Open(t, db.Options{URL: url, Durability: db.Synchronous})
	err := d.Tx(t.Context(), func(*db.Tx) error { return nil })
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "read-only") {
		t.Fatalf("without standby names: %v", err)
	}
	if n := len(mustReport(t, d).Problems()); n == 0 {
		t.Error("the report sees no problem")
	}
	for _, v := range []db.Durability{db.Local, db.Provider} {
		d.SetDurability(v)
		if err := d.Tx(t.Context(), func(*db.Tx) error { return nil }); err != nil {
			t.Errorf("%s: %v", v, err)
		}
	}
}

func mustReport(t *testing.T, d *db.DB) db.DurabilityReport {
	t.Helper()
	r, err := d.DurabilityReport(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestSessionWaitsForWhatWasAsked looks at the setting inside write transactions.
func TestSessionWaitsForWhatWasAsked(t *testing.T) {
	t.Parallel()
	s := pkitest.Postgres(t, "synchronous_standby_names=ghost", "synchronous_commit=local")
	d := pkitest.Open(t, db.Options{URL: unseeing(t, s)})
	for v, want := range map[db.Durability]string{db.Local: "on", db.Synchronous: "remote_apply", db.Provider: "local"} {
		d.SetDurability(v)
		refused := errors.New("refused") // a rollback must not take the setting back
		if err := d.Tx(t.Context(), func(*db.Tx) error { return refused }); !errors.Is(err, refused) {
			t.Errorf("%s: %v", v, err)
		}
		var isolation, commit string
		err := d.Tx(t.Context(), func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), "SELECT current_setting('transaction_isolation'), current_setting('synchronous_commit')").Scan(&isolation, &commit)
		})
		if err != nil || isolation != "serializable" || commit != want {
			t.Errorf("%s: isolation %s, synchronous_commit %s, want %s: %v", v, isolation, commit, want, err)
		}
	}
}

// TestServerCrashes: what was acknowledged is there after a crash in the middle of COMMIT, and the handle goes on.
func TestServerCrashes(t *testing.T) {
	t.Parallel()
	s := pkitest.Postgres(t)
	var faults pkitest.Faults
	d := pkitest.Open(t, db.Options{URL: s.TCP("postgres"), Wrap: faults.Wrap})
	makeTable(t, d)
	ctx := t.Context()
	acknowledged := map[string]bool{}
	write := func(id string) error {
		err := d.Tx(ctx, func(tx *db.Tx) error { return insert(ctx, tx, id, 1) })
		if err == nil {
			acknowledged[id] = true
		}
		return err
	}
	for round := range 3 {
		for i := range 20 {
			if err := write(fmt.Sprint(round, ".", i)); err != nil {
				t.Fatalf("before the crash: %v", err)
			}
		}
		faults.BeforeCommit(func() {
			if err := s.Crash(); err != nil {
				t.Error(err)
			}
		})
		if err := write(fmt.Sprint("crash", round)); err != nil && !fault.Is(err, fault.Unavailable) {
			t.Errorf("during the crash: %v", err)
		}
		faults.BeforeCommit(nil)
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
		if err := write(fmt.Sprint("after", round)); err != nil {
			t.Errorf("after the crash: %v", err)
		}
	}
	for id := range acknowledged {
		var n int
		err := d.Read(ctx, func(tx *db.Tx) error {
			return tx.QueryRow(ctx, "SELECT COUNT(*) FROM items WHERE id = $1", id).Scan(&n)
		})
		if err != nil || n != 1 {
			t.Errorf("acknowledged %s: %d rows, %v", id, n, err)
		}
	}
	if len(acknowledged) < 63 {
		t.Errorf("only %d writes were acknowledged", len(acknowledged))
	}
}

func TestServerAwayIsUnavailable(t *testing.T) {
	port, err := pkitest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Open(t.Context(), db.Options{URL: fmt.Sprintf("postgres://chancery:secret-word@127.0.0.1:%d/x", port)})
	if !fault.Is(err, fault.Unavailable) || strings.Contains(fmt.Sprintf("%+v %v", err, errors.Unwrap(err)), "secret-word") {
		t.Fatalf("nobody listens: %v", err)
	}
	_, err = db.Open(t.Context(), db.Options{URL: "postgres://chancery:secret-word@[::1/x"})
	if !fault.Is(err, fault.Invalid) || strings.Contains(fmt.Sprintf("%+v %v", err, errors.Unwrap(err)), "secret-word") {
		t.Fatalf("a broken URL: %v", err)
	}
}

// TestSeveralHosts: the URL lists a dead host first.
func TestSeveralHosts(t *testing.T) {
	t.Parallel()
	s := pkitest.Postgres(t)
	dead, err := pkitest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	d := pkitest.Open(t, db.Options{URL: fmt.Sprintf("postgres://chancery@127.0.0.1:%d,127.0.0.1:%d/postgres?sslmode=disable", dead, s.Port)})
	makeTable(t, d)
	if err := d.Tx(t.Context(), func(tx *db.Tx) error { return insert(t.Context(), tx, "a", 1) }); err != nil {
		t.Fatal(err)
	}
}

func TestURLFromFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(path, []byte("postgres://u:p@h/d\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if url, err := db.URLFromFile(path); err != nil || url != "postgres://u:p@h/d" {
		t.Errorf("%q, %v", url, err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := db.URLFromFile(path); !fault.Is(err, fault.Invalid) {
		t.Errorf("a file that others may read: %v", err)
	}
}

// TestServerEndsTransactionsOfWhoStandsStill: the locks of a node that stands still must not keep others from its leases. A
// snapshot, of which a backup is read slowly, locks nothing and is left alone.
func TestServerEndsTransactionsOfWhoStandsStill(t *testing.T) {
	d := pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.Postgres)})
	for range 2 { // the first leaves nothing behind in its session
		for want, run := range map[string]func(context.Context, func(*db.Tx) error) error{"15s": d.Tx, "0": d.ReadSnapshot} {
			err := run(t.Context(), func(tx *db.Tx) error {
				var got string
				if err := tx.QueryRow(t.Context(), "SHOW idle_in_transaction_session_timeout").Scan(&got); err != nil {
					return err
				}
				if got != want {
					t.Errorf("a transaction may stand still for %s, not %s", got, want)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}
