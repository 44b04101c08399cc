package db_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// logins are the logins of nodes at a PostgreSQL of their own, whose database pki owns.
type logins struct {
	*testing.T
	pg *pkitest.PostgresServer
}

func newLogins(t *testing.T) *logins {
	l := &logins{t, pkitest.Postgres(t)}
	for _, statement := range []string{
		"CREATE ROLE pki NOLOGIN", "CREATE DATABASE fleet OWNER pki", "CREATE ROLE chancery_one LOGIN IN ROLE pki", "ALTER ROLE chancery_one SET role = pki",
	} {
		l.pg.Exec(t, statement)
	}
	return l
}

func (l *logins) url(role string) string {
	return strings.Replace(l.pg.URL("fleet"), "postgres://chancery@", "postgres://"+role+"@", 1)
}

func (l *logins) as(role string) *db.DB {
	l.Helper()
	d, err := db.Open(l.Context(), db.Options{URL: l.url(role)})
	if err != nil {
		l.Fatalf("as %s: %v", role, err)
	}
	l.Cleanup(func() { _ = d.Close() })
	return d
}

func (l *logins) install() {
	l.Helper()
	if _, err := l.as("chancery").Migrator().ExecContext(l.Context(), db.LoginFunctions); err != nil {
		l.Fatal(err)
	}
}

// runSQL runs statements on one connection.
func runSQL(ctx context.Context, d *db.DB, statements ...string) error {
	conn, err := d.Migrator().Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, statement := range statements {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// tables makes what the rights of readers are about.
func (l *logins) tables(d *db.DB) {
	l.Helper()
	for _, statement := range []string{
		"CREATE TABLE node (name TEXT PRIMARY KEY, state TEXT, address TEXT, report TEXT, seen_at BIGINT, started_at BIGINT)",
		"INSERT INTO node (name) VALUES ('one'), ('near')", "CREATE TABLE write_mark (node TEXT PRIMARY KEY, number BIGINT, fence BIGINT NOT NULL DEFAULT 0, suspended_until BIGINT NOT NULL DEFAULT 0)",
		"CREATE TABLE clock (name TEXT PRIMARY KEY, high_water BIGINT)", "CREATE TABLE host_seen (host TEXT PRIMARY KEY, seen_at BIGINT)",
		"CREATE TABLE host_heard (node TEXT, host TEXT, seen_at BIGINT, PRIMARY KEY (node, host))", "CREATE TABLE access_token (id TEXT)", "CREATE TABLE key_recipient (id TEXT)",
	} {
		if err := runSQL(l.Context(), d, statement); err != nil {
			l.Fatal(err)
		}
	}
}

// TestNodesHaveLoginsOfTheirOwn: each node gives the next its login; what one makes is the owner's, and one whose login was taken away
// is out, at once and for good.
func TestNodesHaveLoginsOfTheirOwn(t *testing.T) {
	l, ctx := newLogins(t), t.Context()
	one := l.as("chancery_one")
	err := one.AddLogin(ctx, "chancery_two", false)
	if refused, ok := errors.AsType[*fault.Error](err); !ok || refused.Kind != fault.Denied || !strings.Contains(refused.Hint, "CREATE OR REPLACE FUNCTION chancery_logins.add") {
		t.Errorf("without the functions: %v", err)
	}
	l.install()
	l.install() // again brings it up to date
	for range 2 {
		if err := one.AddLogin(ctx, "chancery_two", false); err != nil {
			t.Fatal(err)
		}
	}
	two := l.as("chancery_two")
	if err := runSQL(ctx, two, "CREATE TABLE made_by_two (id BIGINT)"); err != nil {
		t.Fatal(err)
	}
	if err := runSQL(ctx, one, "INSERT INTO made_by_two (id) VALUES (1)"); err != nil {
		t.Errorf("what one node makes is not the others': %v", err)
	}
	if err := two.AddLogin(ctx, "chancery_three", false); err != nil {
		t.Fatalf("a clone of a clone: %v", err)
	}
	// One that somebody made by hand, with more and with less than it needs, and that made a table of its own, is mended.
	l.pg.Exec(t, "CREATE ROLE chancery_four LOGIN CREATEROLE IN ROLE pki, pg_execute_server_program")
	if err := runSQL(ctx, l.as("chancery_four"), "CREATE TABLE made_by_four (id BIGINT)"); err != nil {
		t.Fatal(err)
	}
	if err := one.AddLogin(ctx, "chancery_four", false); err != nil {
		t.Fatal(err)
	}
	four := l.as("chancery_four")
	if err := runSQL(ctx, four, "CREATE TABLE made_by_four_again (id BIGINT)"); err != nil {
		t.Fatal(err)
	}
	if err := runSQL(ctx, one, "DROP TABLE made_by_four_again"); err != nil {
		t.Errorf("a login that was there makes tables of its own: %v", err)
	}
	l.powerless("chancery_four")
	l.powerless("chancery_three")
	_ = four.Close()

	for _, role := range []string{"chancery_two", "chancery_four"} { // given by one, and ended by another
		for range 2 {
			if err := l.as("chancery_three").DropLogin(ctx, role); err != nil {
				t.Fatal(err)
			}
		}
		if d, err := db.Open(ctx, db.Options{URL: l.url(role)}); err == nil {
			_ = d.Close()
			t.Errorf("%s was dropped, and lets in", role)
		}
	}
	for end := time.Now().Add(time.Minute); runSQL(ctx, two, "CREATE TABLE late (id BIGINT)") == nil; {
		if time.Now().After(end) {
			t.Fatal("a node whose login was dropped goes on writing")
		}
		if err := runSQL(ctx, one, "DROP TABLE IF EXISTS late"); err != nil {
			t.Fatal(err)
		}
	}
	l.refusals(one)
}

// refusals are what the functions do for nobody.
func (l *logins) refusals(one *db.DB) {
	l.Helper()
	ctx := l.Context()
	for _, statement := range []string{
		"CREATE ROLE chancery_boss LOGIN SUPERUSER", "CREATE ROLE chancery_other LOGIN", "CREATE ROLE bystander LOGIN",
	} {
		l.pg.Exec(l.T, statement)
	}
	for _, role := range []string{
		"bystander", "postgres", "pki", "chancery", "chancery_", "chancery_UP", "chancery_boss", "chancery_other", `chancery_"; DROP ROLE bystander; --`,
		"chancery_x\n", "chancery_" + strings.Repeat("x", 55), "pg_monitor",
	} {
		if err := one.AddLogin(ctx, role, false); err == nil {
			l.Errorf("%q was made a login", role)
		}
		if err := one.DropLogin(ctx, role); err == nil {
			l.Errorf("%q was dropped", role)
		}
	}
	l.pg.Exec(l.T, "ALTER ROLE pki CREATEROLE")
	if err := one.AddLogin(ctx, "chancery_five", false); !fault.Is(err, fault.Conflict) {
		l.Errorf("nodes would have CREATEROLE by the owner: %v", err)
	}
	l.pg.Exec(l.T, "ALTER ROLE pki NOCREATEROLE")
	pkitest.EachDB(l.T, func(t *testing.T, d *db.DB) {
		if d.Dialect() == db.SQLite {
			if err := d.AddLogin(ctx, "x", false); !fault.Is(err, fault.Conflict) {
				t.Errorf("on SQLite: %v", err)
			}
		}
	})
}

// powerless wants a login to have no way to roles, and to the machine of the server.
func (l *logins) powerless(role string) {
	l.Helper()
	d := l.as(role)
	if err := runSQL(l.Context(), d, "CREATE TEMP TABLE mine (line TEXT)"); err != nil {
		l.Fatal(err)
	}
	for _, statements := range [][]string{
		{"CREATE ROLE thief LOGIN"}, {"CREATE ROLE chancery_thief SUPERUSER"}, {"ALTER ROLE chancery_one NOLOGIN"}, {"ALTER ROLE pki LOGIN PASSWORD 'x'"},
		{"DROP ROLE chancery_one"}, {"GRANT pg_execute_server_program TO " + role}, {"GRANT pki TO pg_monitor"},
		{"ALTER ROLE " + role + " CREATEROLE"}, {"ALTER ROLE " + role + " SUPERUSER"},
		{"CREATE TEMP TABLE IF NOT EXISTS taken (line TEXT)", "COPY taken FROM PROGRAM 'id'"}, {"CREATE TEMP TABLE IF NOT EXISTS read (line TEXT)", "COPY read FROM '/etc/passwd'"},
		{"SELECT pg_read_file('/etc/passwd')"}, {"CREATE OR REPLACE FUNCTION chancery_logins.drop(login text) RETURNS boolean LANGUAGE sql AS 'SELECT true'"},
		{"SELECT chancery_logins.strip('chancery_one')"},
	} {
		for _, first := range []string{"SET ROLE NONE", "RESET ROLE"} {
			if err := runSQL(l.Context(), d, append([]string{first}, statements...)...); err == nil {
				l.Errorf("%s may do %q", role, statements)
			} else if !strings.Contains(err.Error(), "42501") && !strings.Contains(err.Error(), "0LP01") {
				l.Errorf("%s: %q: %v", role, statements, err)
			}
		}
	}
}

// TestLoginOfNodeThatIssuesNothing: it reads, and says of itself how it is; whatever would give it more is refused.
func TestLoginOfNodeThatIssuesNothing(t *testing.T) {
	l, ctx := newLogins(t), t.Context()
	l.install()
	one := l.as("chancery_one")
	l.tables(one)
	for range 2 {
		if err := one.AddLogin(ctx, "chancery_near", true); err != nil {
			t.Fatal(err)
		}
	}
	near := l.as("chancery_near")
	if err := runSQL(ctx, one, "CREATE TABLE made_later (id BIGINT)"); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		"SELECT * FROM made_later", "SELECT * FROM access_token", "UPDATE node SET report = 'well', seen_at = 1, started_at = 1, address = 'x' WHERE name = 'near'",
		"INSERT INTO clock (name, high_water) VALUES ('reader near', 1) ON CONFLICT (name) DO UPDATE SET high_water = excluded.high_water",
		"INSERT INTO clock (name, high_water) VALUES ('reader near', 2) ON CONFLICT (name) DO UPDATE SET high_water = excluded.high_water",
		"INSERT INTO host_heard (node, host, seen_at) VALUES ('near', 'h', 1) ON CONFLICT (node, host) DO UPDATE SET seen_at = excluded.seen_at",
		"SELECT fence FROM write_mark WHERE node = 'near' FOR UPDATE",
		"INSERT INTO write_mark (node, number) VALUES ('near', 1) ON CONFLICT (node) DO UPDATE SET number = excluded.number",
		"INSERT INTO write_mark (node, number) VALUES ('near', 2) ON CONFLICT (node) DO UPDATE SET number = excluded.number",
	} {
		if err := runSQL(ctx, near, statement); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
	}
	count := func(query string) (n int) {
		t.Helper()
		if err := near.Migrator().QueryRowContext(ctx, query).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count("SELECT COUNT(*) FROM node"); n != 2 {
		t.Errorf("it sees %d nodes", n)
	}
	if err := runSQL(ctx, near, "UPDATE node SET report = 'ill' WHERE name = 'one'"); err != nil || count("SELECT COUNT(*) FROM node WHERE report = 'ill'") != 0 {
		t.Errorf("it reports for another: %v", err)
	}
	for _, statement := range []string{
		"INSERT INTO access_token (id) VALUES ('x')", "INSERT INTO key_recipient (id) VALUES ('x')", "DELETE FROM key_recipient", "DELETE FROM node",
		"INSERT INTO node (name) VALUES ('x')", "UPDATE node SET state = 'active' WHERE name = 'near'", "UPDATE node SET name = 'one' WHERE name = 'near'",
		"INSERT INTO clock (name, high_water) VALUES ('authority', 1)", "UPDATE clock SET high_water = 99999999999999999 WHERE name = 'reader near'",
		"UPDATE clock SET name = 'authority'", "DELETE FROM clock", "INSERT INTO host_seen (host, seen_at) VALUES ('h', 1)", "UPDATE host_seen SET seen_at = 1",
		"INSERT INTO host_heard (node, host, seen_at) VALUES ('one', 'h', 1)", "SELECT 1 FROM host_seen FOR KEY SHARE", "INSERT INTO write_mark (node, number) VALUES ('one', 9)", "TRUNCATE made_later",
		"ALTER TABLE node DISABLE ROW LEVEL SECURITY", "DROP POLICY own_again ON node", "SET ROLE pki", "SET SESSION AUTHORIZATION chancery_one",
		"SELECT chancery_logins.add('chancery_near', false)", "SELECT chancery_logins.drop('chancery_one')",
		"SELECT chancery_logins.end_standing(1)", "SELECT chancery_logins.owner_enters()",
	} {
		if err := runSQL(ctx, near, statement); err == nil || !strings.Contains(err.Error(), "42501") {
			t.Errorf("%s: %v", statement, err)
		}
	}
	l.powerless("chancery_near")
	if err := one.AddLogin(ctx, "chancery_near", false); err != nil { // it may issue from now on
		t.Fatal(err)
	}
	if err := runSQL(ctx, l.as("chancery_near"), "INSERT INTO access_token (id) VALUES ('x')"); err != nil {
		t.Error(err)
	}
	if err := one.AddLogin(ctx, "chancery_near", true); err != nil { // and no more
		t.Fatal(err)
	}
	if err := runSQL(ctx, l.as("chancery_near"), "SET ROLE pki"); err == nil {
		t.Error("a login that was limited may be the owner still")
	}
	if err := one.DropLogin(ctx, "chancery_near"); err != nil {
		t.Error(err)
	}
}

// TestLoginFunctionsAreShipped: what operators install is what this program calls.
func TestLoginFunctionsAreShipped(t *testing.T) {
	shipped, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "patroni", "logins.sql"))
	if err != nil || string(shipped) != db.LoginFunctions {
		t.Errorf("deploy/patroni/logins.sql is not internal/store/db/logins.sql: %v", err)
	}
}
