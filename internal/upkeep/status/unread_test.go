package status_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/doctor"
	"chancery/internal/upkeep/finding"
	"chancery/internal/upkeep/status"
)

// TestDatabaseReadIsAnother: a node was started while the server of database_read was away, and that is of another database. Status and doctor
// say that it is not read, and why, and say nothing where it is read.
func TestDatabaseReadIsAnother(t *testing.T) {
	pg := pkitest.Postgres(t)
	pg.Exec(t, "CREATE DATABASE chancery")
	s := opened(t, pg.URL("chancery"))
	read := func(database string) *db.DB {
		d := pkitest.Open(t, db.Options{URL: pg.URL("chancery"), ReadURL: pg.URL(database), Node: "beside"})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- d.Watch(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
		return d
	}
	warned := func(d *db.DB) bool {
		t.Helper()
		beside := *s
		beside.DB = d
		st := must[*status.Status](t)(status.Of(t.Context(), &beside, time.Now()))
		return slices.ContainsFunc(st.Warnings, func(w string) bool {
			return strings.Contains(w, "database_read is of another database") && strings.Contains(w, "chancery doctor database")
		})
	}
	told := func(d *db.DB) (found []finding.Finding) {
		t.Helper()
		for f, err := range (&doctor.Node{DB: d, Keys: s.Keys}).Look(t.Context(), time.Now()) {
			if err != nil {
				t.Fatal(err)
			}
			if f.Check == "database.read" {
				found = append(found, f)
			}
		}
		return found
	}
	own, foreign := read("chancery"), read("later")
	pg.Exec(t, "CREATE DATABASE later")
	for deadline := time.Now().Add(time.Minute); !warned(foreign); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("status does not say within a minute what %v says", foreign.Unread())
		}
	}
	if f := told(foreign); len(f) != 1 || f[0].Level != finding.Error || !strings.Contains(f[0].Message, "another database") || f[0].Hint == "" {
		t.Errorf("doctor says %+v", f)
	}
	if warned(own) || len(told(own)) != 0 {
		t.Errorf("of a server that is read, status or doctor says %+v", told(own))
	}
}
