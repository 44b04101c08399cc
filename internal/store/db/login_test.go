package db_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestNodesHaveLoginsOfTheirOwn: each node gives the next its login; what one makes is the owner's, and one whose login was taken away
// is out, at once and for good.
func TestNodesHaveLoginsOfTheirOwn(t *testing.T) {
	s, ctx := pkitest.Postgres(t), t.Context()
	for _, statement := range []string{
		"CREATE ROLE fleet NOLOGIN", "CREATE ROLE fleet_one LOGIN CREATEROLE", "GRANT fleet TO fleet_one WITH ADMIN OPTION",
		"ALTER ROLE fleet_one SET role = fleet", "GRANT pg_signal_backend TO fleet_one", "CREATE DATABASE fleet OWNER fleet",
		"CREATE ROLE fleet_weak LOGIN IN ROLE fleet", "ALTER ROLE fleet_weak SET role = fleet",
	} {
		s.Exec(t, statement)
	}
	as := func(role string) (*db.DB, error) {
		url := strings.Replace(s.URL("fleet"), "postgres://chancery@", "postgres://"+role+"@", 1)
		return db.Open(ctx, db.Options{URL: url})
	}
	open := func(role string) *db.DB {
		t.Helper()
		d, err := as(role)
		if err != nil {
			t.Fatalf("as %s: %v", role, err)
		}
		t.Cleanup(func() { _ = d.Close() })
		return d
	}
	exec := func(d *db.DB, statement string) error {
		_, err := d.Migrator().ExecContext(ctx, statement)
		return err
	}
	one := open("fleet_one")
	const hostile = `fleet_"; DROP DATABASE fleet; --'`
	for range 2 { // what is there already is left as it is
		for _, role := range []string{"fleet_two", hostile} {
			if err := one.AddLogin(ctx, role); err != nil {
				t.Fatal(err)
			}
		}
	}
	two := open("fleet_two")
	if err := exec(two, "CREATE TABLE made_by_two (id BIGINT)"); err != nil {
		t.Fatal(err)
	}
	if err := exec(one, "INSERT INTO made_by_two (id) VALUES (1)"); err != nil {
		t.Errorf("what one node makes is not the others': %v", err)
	}
	if err := two.AddLogin(ctx, "fleet_three"); err != nil {
		t.Fatalf("a clone of a clone: %v", err)
	}
	if err := exec(open("fleet_three"), "DROP TABLE made_by_two"); err != nil {
		t.Error(err)
	}
	err := open("fleet_weak").AddLogin(ctx, "fleet_four")
	var refused *fault.Error
	if !errors.As(err, &refused) || refused.Kind != fault.Denied || !strings.Contains(refused.Hint, `CREATE ROLE "fleet_four" LOGIN`) {
		t.Errorf("without CREATEROLE: %+v", err)
	}
	if err := one.AddLogin(ctx, strings.Repeat("x", 64)); !fault.Is(err, fault.Invalid) {
		t.Errorf("a name that is too long: %v", err)
	}

	for range 2 {
		if left, err := one.DropLogin(ctx, "fleet_two"); err != nil || len(left) > 0 {
			t.Fatalf("left %q, %v", left, err)
		}
	}
	if _, err := one.DropLogin(ctx, hostile); err != nil {
		t.Error(err)
	}
	for end := time.Now().Add(time.Minute); exec(two, "CREATE TABLE late (id BIGINT)") == nil; {
		if time.Now().After(end) {
			t.Fatal("a node whose login was dropped goes on writing")
		}
		if err := exec(one, "DROP TABLE IF EXISTS late"); err != nil {
			t.Fatal(err)
		}
	}
	if d, err := as("fleet_two"); err == nil {
		_ = d.Close()
		t.Error("a login that was dropped lets in")
	}
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		if d.Dialect() == db.SQLite {
			if err := d.AddLogin(ctx, "x"); !fault.Is(err, fault.Conflict) {
				t.Error(fmt.Sprint("on SQLite: ", err))
			}
		}
	})
}
