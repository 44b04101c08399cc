package server

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/schema"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// TestUnregisteredWritesNothing has a node start that cannot register: until it has, nothing that it does is written.
func TestUnregisteredWritesNothing(t *testing.T) {
	ctx, url := t.Context(), pkitest.URL(t, db.Postgres)
	d, other := pkitest.Open(t, db.Options{URL: url}), pkitest.Open(t, db.Options{URL: url})
	key, err := keys.CreateNodeKey(filepath.Join(t.TempDir(), "node.key"))
	must(t, err)
	s, err := setup.Assemble(d, "n1", key, slog.New(slog.DiscardHandler))
	must(t, err)
	n := &node{config: &datadir.Config{Name: "n1", Address: "https://one.test:8443"}, logger: slog.New(slog.DiscardHandler), services: s}
	rename := func(from, to string) {
		_, err := other.Migrator().ExecContext(ctx, "ALTER TABLE "+from+" RENAME TO "+to)
		must(t, err)
	}
	must(t, schema.Migrate(ctx, d))
	rename("key_recipient", "away")
	must(t, n.register(ctx))
	rename("away", "key_recipient")
	write := func(ctx context.Context) error {
		return d.Tx(ctx, func(tx *db.Tx) error {
			return tx.Send(ctx, `INSERT INTO clock (name, high_water) VALUES ($1, 1)`, db.NewID())
		})
	}
	if err := write(ctx); n.registered || !fault.Is(err, fault.Unavailable) {
		t.Fatalf("it is not registered (%t), and writes: %v", !n.registered, err)
	}
	must(t, other.Tx(ctx, func(tx *db.Tx) error {
		return s.Keys.AddRecipient(ctx, tx, keys.Recipient{ID: "n1", Kind: keys.KindNode, Name: "n1", PublicKey: key.Public(), Created: time.Now(),
			Subsystems: []keys.Subsystem{keys.SubsystemCA}}, "test", time.Now())
	}))
	must(t, n.register(ctx))
	must(t, write(ctx))
	if !n.registered {
		t.Fatal("it is not registered")
	}
}
