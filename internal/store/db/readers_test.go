package db_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"chancery/internal/store/db"
	"chancery/internal/store/schema"
)

// former are rights as releases gave them whose nodes write rows that others write too.
var former = []string{
	"GRANT INSERT, UPDATE ON write_mark, clock, host_seen TO pki_reader",
	"CREATE POLICY first ON clock FOR INSERT TO pki_reader WITH CHECK (high_water <= 9000000000000000)",
	"CREATE POLICY own ON clock FOR UPDATE TO pki_reader USING (high_water <= 9000000000000000)",
	"ALTER TABLE host_seen ENABLE ROW LEVEL SECURITY", "CREATE POLICY readers ON host_seen FOR SELECT USING (true)",
	"CREATE POLICY first ON host_seen FOR INSERT TO pki_reader WITH CHECK (true)", "CREATE POLICY own ON host_seen FOR UPDATE TO pki_reader USING (true)",
	"CREATE POLICY own ON write_mark FOR UPDATE TO pki_reader USING (true)", "CREATE POLICY own ON node FOR UPDATE TO pki_reader USING (true)",
}

// TestReaderHoldsNobodyUp has who has the login of a node that issues nothing hold all that it can, and set back what it can: the others'
// writes do not wait, and the mark of time stays.
func TestReaderHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	l, ctx := newLogins(t), t.Context()
	l.install()
	one := l.as("chancery_one")
	if err := schema.Migrate(ctx, one); err != nil {
		t.Fatal(err)
	}
	insert := `INSERT INTO node (name, state, subsystems, address, public_key, fingerprint, tls_spki, principal, database_role, request, answer, report, joined_by,
		approved_by, created_at, approved_at, started_at, seen_at, gone_at) VALUES ('near', 'active', 'ocsp', '', '', '', '', '', '', '', '', '', '', '', 0, 0, 0, 0, 0)`
	if err := runSQL(ctx, one, insert); err != nil {
		t.Fatal(err)
	}
	if err := one.LimitReaders(ctx); err != nil {
		t.Errorf("there are no readers: %v", err)
	}
	if err := one.AddLogin(ctx, "chancery_near", true); err != nil {
		t.Fatal(err)
	}
	near := l.as("chancery_near")
	now := time.Now().Truncate(time.Microsecond)
	beat := l.beat
	row := func(name string) (at int64) {
		t.Helper()
		if err := one.Migrator().QueryRowContext(ctx, "SELECT COALESCE(MAX(high_water), 0) FROM clock WHERE name = $1", name).Scan(&at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	beat(one, now)

	// As a release before left it, a node of this one goes on, while its rights are taken back too.
	if err := runSQL(ctx, one, former...); err != nil {
		t.Fatal(err)
	}
	if err := one.AddLogin(ctx, "chancery_other", true); err != nil {
		t.Fatal(err)
	}
	beat(near, now.Add(time.Second))
	if row("authority") != db.Micros(now.Add(time.Second)) || row("reader near") != 0 {
		t.Fatal("it has the rights of the release before, which its nodes need, and does not write by them")
	}
	for range 2 {
		if err := one.LimitReaders(ctx); err != nil {
			t.Fatal(err)
		}
	}
	beat(near, now.Add(2*time.Second))
	if row("authority") != db.Micros(now.Add(time.Second)) || row("reader near") != db.Micros(now.Add(2*time.Second)) {
		t.Error("its heartbeat is not in a row of its own")
	}
	if age, err := one.ReadAge(ctx, now.Add(2*time.Second)); err != nil || age != 0 {
		t.Errorf("what is read is %s old: %v", age, err)
	}
	if err := near.Tx(ctx, func(tx *db.Tx) error { db.TakeFence(tx, "near", 7); return nil }); err != nil {
		t.Fatal(err)
	}
	beat(near, now.Add(2*time.Second))
	l.endsSuspensions(one, near, beat)
	l.readsAhead(one, near, beat)
	for _, statement := range []string{"UPDATE clock SET high_water = 1", "UPDATE node SET report = 'x', seen_at = 1", "UPDATE write_mark SET number = 1"} {
		if err := runSQL(ctx, near, statement); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
	}
	if row("authority") != db.Micros(now.Add(time.Second)) || row("reader near") != 1 {
		t.Error("it has set back what is not its own")
	}
	for _, table := range []string{"node", "write_mark", "clock", "host_seen", "host_heard", "leases", "audit_event"} {
		for _, mode := range []string{"ROW SHARE", "ROW EXCLUSIVE", "ACCESS EXCLUSIVE"} {
			if err := runSQL(ctx, near, "BEGIN", "LOCK TABLE "+table+" IN "+mode+" MODE"); err == nil || !strings.Contains(err.Error(), "42501") {
				t.Errorf("%s: %s: %v", table, mode, err)
			}
		}
		if err := runSQL(ctx, near, "SELECT 1 FROM "+table+" WHERE false FOR UPDATE"); (err == nil) != (table == "node" || table == "write_mark" || table == "clock" || table == "host_heard") {
			t.Errorf("the rows of %s: %v", table, err)
		}
	}
	l.holds("chancery_near", `BEGIN; UPDATE clock SET high_water = 2; UPDATE node SET report = 'y'; UPDATE write_mark SET number = 3;
		INSERT INTO host_heard (node, host, seen_at) VALUES ('near', 'h', 1); SELECT 1 FROM node FOR UPDATE; SELECT 1 FROM clock FOR UPDATE`)
	quick, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for n := range 3 {
		beat(one, now.Add(time.Duration(3+n)*time.Second))
		if _, ok, err := one.Acquire(quick, "work", "one", time.Second); err != nil || !ok {
			t.Errorf("a lease: %v", err)
		}
		if err := one.Tx(quick, func(tx *db.Tx) error { db.TakeFence(tx, "one", int64(n+1)); return nil }); err != nil {
			t.Errorf("a fence: %v", err)
		}
	}
}

// readsAhead has a node whose login reads beat with a clock that is ahead by less than stops it, and with a row that is too late by the clock of
// a server that was promoted since. One of an authority from before may do the second as soon as its rights are brought up.
func (l *logins) readsAhead(one, near *db.DB, beat func(*db.DB, time.Time)) {
	l.Helper()
	ctx := l.Context()
	beat(near, time.Now().Add(100*time.Second))
	late := fmt.Sprintf("UPDATE clock SET high_water = %d WHERE name = 'reader near'", db.Micros(time.Now().Add(10*time.Minute)))
	again := "CREATE POLICY own_again ON clock FOR UPDATE TO pki_reader USING (name = 'reader ' || substr(session_user, 10) AND high_water <= (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + 60000000)"
	if err := runSQL(ctx, one, late, "DROP POLICY own_again ON clock", again); err != nil {
		l.Fatal(err)
	}
	if err := near.Heartbeat(ctx, time.Now()); !errors.Is(err, db.ErrReadsOnly) {
		l.Fatalf("by the rights of before: %v", err)
	}
	if err := one.LimitReaders(ctx); err != nil {
		l.Fatal(err)
	}
	beat(near, time.Now())
	if err := runSQL(ctx, near, late); err == nil || !strings.Contains(err.Error(), "42501") {
		l.Errorf("it may say any time: %v", err)
	}
}

func (l *logins) beat(d *db.DB, at time.Time) {
	l.Helper()
	if err := d.Heartbeat(l.Context(), at); err != nil {
		l.Fatal(err)
	}
}

// endsSuspensions has a node whose login reads go on after a suspension that is over, and leave no end for the next one: as soon as its login has
// the right to it, which one of an authority from before has not. It does without where the right is taken back by a node of a release before.
func (l *logins) endsSuspensions(one, near *db.DB, heartbeat func(*db.DB, time.Time)) {
	l.Helper()
	ctx := l.Context()
	ends := func() (at int64) {
		l.Helper()
		if err := one.Migrator().QueryRowContext(ctx, "SELECT suspended_until FROM write_mark WHERE node = 'near'").Scan(&at); err != nil {
			l.Fatal(err)
		}
		return at
	}
	write := func() error {
		return near.Tx(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, "UPDATE node SET report = report WHERE name = 'near'")
			return err
		})
	}
	const revoke = "REVOKE UPDATE (suspended_until) ON write_mark FROM pki_reader"
	for _, right := range []bool{true, false, true} {
		statements := []string{"UPDATE write_mark SET fence = -2, suspended = 7, suspended_until = 1 WHERE node = 'near'"}
		if !right {
			statements = append(statements, revoke)
		} else if err := one.LimitReaders(ctx); err != nil {
			l.Fatal(err)
		}
		if err := runSQL(ctx, one, statements...); err != nil {
			l.Fatal(err)
		}
		if !right { // it knows of the right that it had
			if err := write(); !errors.Is(err, db.ErrReadsOnly) {
				l.Fatalf("what it may no longer: %v", err)
			}
		}
		heartbeat(near, time.Now())
		if err := write(); err != nil {
			l.Fatal(err)
		}
		if left := ends(); (left == 0) != right {
			l.Errorf("with the right to it %v, the end of a suspension is %d after it", right, left)
		}
	}
}
