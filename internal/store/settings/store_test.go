package settings_test

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
)

func newStore(t *testing.T, d *db.DB, node string) (*settings.Store, *audit.Log) {
	t.Helper()
	log, err := audit.New(d, node)
	if err != nil {
		t.Fatal(err)
	}
	return settings.New(d, log), log
}

func create(t *testing.T, d *db.DB, s *settings.Store) {
	t.Helper()
	err := d.Tx(t.Context(), func(tx *db.Tx) error { return s.Create(t.Context(), tx, valid(), "operator:init", time.Now()) })
	if err != nil {
		t.Fatal(err)
	}
}

func TestChangesAreVersionedAndRecorded(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		s, log := newStore(t, d, "n1")
		if _, err := s.Get(ctx); !fault.Is(err, fault.NotFound) {
			t.Fatalf("settings of an empty database: %v", err)
		}
		create(t, d, s)
		first, err := s.Get(ctx)
		if err != nil || first.Version != 1 {
			t.Fatalf("got %+v, %v", first, err)
		}
		next, err := first.With("crl.validity", "14d")
		if err != nil {
			t.Fatal(err)
		}
		second, err := s.Set(ctx, "operator:alice", *next, once.Call{})
		if err != nil || second.Version != 2 {
			t.Fatalf("got %+v, %v", second, err)
		}
		if got, err := s.Get(ctx); err != nil || got.Version != 2 || got.CRL.Validity.String() != "14d" {
			t.Fatalf("after the change: %+v, %v", got, err)
		}
		if _, err := s.Set(ctx, "operator:bob", *next, once.Call{}); !fault.Is(err, fault.Conflict) {
			t.Fatalf("a change of version 1 passed: %v", err)
		}
		other := *second
		other.Authority = "another"
		if _, err := s.Set(ctx, "operator:bob", other, once.Call{}); !fault.Is(err, fault.Invalid) {
			t.Fatalf("another authority passed: %v", err)
		}
		if same, err := s.Set(ctx, "operator:bob", *second, once.Call{}); err != nil || same.Version != 2 {
			t.Fatalf("a change of nothing: %+v, %v", same, err)
		}
		err = d.Tx(ctx, func(tx *db.Tx) error { return s.Create(ctx, tx, valid(), "operator:init", time.Now()) })
		if !fault.Is(err, fault.Conflict) {
			t.Fatalf("made twice: %v", err)
		}
		page, err := log.Search(ctx, audit.Filter{Action: "settings."}, "", 10)
		if err != nil || len(page.Events) != 2 {
			t.Fatalf("events: %+v, %v", page, err)
		}
		e := page.Events[1]
		const want = `{"changes":{"crl.validity":{"from":"7d","to":"14d"}},"version":2}`
		if got := string(e.Detail.(json.RawMessage)); got != want || e.Actor != "operator:alice" {
			t.Fatalf("event %+v, detail %s", e, got)
		}
	})
}

func TestAnotherNodeSeesTheChange(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		here, _ := newStore(t, d, "n1")
		there, _ := newStore(t, d, "n2")
		create(t, d, here)
		old, err := there.Get(ctx)
		if err != nil {
			t.Fatal(err)
		}
		next := *old
		next.Organization = "Other Ltd"
		if _, err := here.Set(ctx, "operator:alice", next, once.Call{}); err != nil {
			t.Fatal(err)
		}
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(time.Minute); ; <-tick.C {
			got, err := there.Get(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if got.Organization == "Other Ltd" && got.Version == 2 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the other node never sees the change")
			}
		}
	})
}

// Of changes made from the same version one passes, whatever the engine.
func TestConcurrentChangesDoNotOverwriteEachOther(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s, _ := newStore(t, d, "n1")
		create(t, d, s)
		base, err := s.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		var mu sync.Mutex
		passed, conflicts := 0, 0
		for i := range 8 {
			group.Go(func() {
				next := *base
				next.Limits.Names = int64(100 + i)
				_, err := s.Set(context.Background(), "operator:x", next, once.Call{})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					passed++
				case fault.Is(err, fault.Conflict):
					conflicts++
				default:
					t.Errorf("set: %v", err)
				}
			})
		}
		group.Wait()
		if passed != 1 || conflicts != 7 {
			t.Fatalf("%d passed, %d conflicts", passed, conflicts)
		}
	})
}

// A later release may have added a field; this one must run on its row.
func TestAFieldOfALaterReleaseIsPassedOver(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s, _ := newStore(t, d, "n1")
		create(t, d, s)
		err := d.Tx(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE settings SET document = $1`, `{"authority":"x","later":{"a":1}}`)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(t.Context()); err != nil || got.Authority != "x" || got.CRL != settings.Defaults().CRL {
			t.Fatalf("got %+v, %v", got, err)
		}
	})
}

func TestSettingsOutliveTheDatabase(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		d, err := db.Open(t.Context(), db.Options{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		s, _ := newStore(t, d, "n1")
		create(t, d, s)
		if _, err := s.Get(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(t.Context()); err != nil || got.Version != 1 {
			t.Fatalf("got %+v, %v", got, err)
		}
	})
}
