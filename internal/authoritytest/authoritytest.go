// Package authoritytest makes authorities for tests of what stands above the stores: in a database alone, or in a data directory as init
// makes it. Only tests may import it; those of packages that setup imports must be of the external test package, as with pkitest.
package authoritytest

import (
	"crypto"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/fleet/pool"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/settings"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// Settings are those of an authority that is about to be made.
func Settings() settings.Settings {
	first := settings.Defaults()
	first.Authority, first.Organization, first.Address = db.NewID(), "Test", "https://ca.example.com:8443"
	return first
}

// New makes an authority in a migrated, empty database: its first node n1, whose key is given, a recovery recipient, the audit's key, and
// pools of these names with their roots online.
func New(tb testing.TB, d *db.DB, first settings.Settings, pools ...string) (*setup.Services, *keys.NodeKey) {
	tb.Helper()
	node := must[*keys.NodeKey](tb)(keys.CreateNodeKey(filepath.Join(tb.TempDir(), "node.key")))
	recovery := must[*keys.Recovery](tb)(keys.GenerateRecovery())
	s := must[*setup.Services](tb)(setup.Assemble(d, "n1", node, slog.New(slog.DiscardHandler)))
	ctx, now := tb.Context(), time.Now()
	check(tb, d.Tx(ctx, func(tx *db.Tx) error {
		return errors.Join(s.Settings.Create(ctx, tx, first, "test", now),
			s.Keys.AddRecipient(ctx, tx, keys.Recipient{ID: "recovery", Kind: keys.KindRecovery, Name: "recovery", PublicKey: recovery.Public(), Created: now}, "test", now),
			s.Keys.AddRecipient(ctx, tx, keys.Recipient{ID: "n1", Kind: keys.KindNode, Name: "n1", PublicKey: node.Public(), Created: now,
				Subsystems: []keys.Subsystem{keys.SubsystemCA, keys.SubsystemOCSP}}, "test", now))
	}))
	audit := must[crypto.Signer](tb)(keyfile.Generate(keyfile.Ed25519, 0))
	sealed := must[*keys.Sealed](tb)(s.Keys.Seal(ctx, audit, keys.Audit, "authority"))
	check(tb, d.Tx(ctx, func(tx *db.Tx) error { return s.Keys.Insert(ctx, tx, sealed, "test", now) }))
	for _, name := range pools {
		must[*pool.Pool](tb)(s.Pools.Add(ctx, access.System("n1"), "", pool.Spec{Name: name, Online: true}))
	}
	return s, node
}

// Init makes an authority as init does, in a directory of its own where the options name none, and opens it.
func Init(tb testing.TB, o setup.Options) (*setup.Services, datadir.Dir) {
	tb.Helper()
	if o.Dir == "" {
		o.Dir = datadir.Dir(filepath.Join(tb.TempDir(), "d"))
	}
	o.RecoveryWork = pkitest.RecoveryWork
	must[*setup.Result](tb)(setup.Init(tb.Context(), o))
	return Open(tb, o.Dir), o.Dir
}

// Open opens the services of a data directory for as long as the test runs.
func Open(tb testing.TB, dir datadir.Dir) *setup.Services {
	tb.Helper()
	config := must[*datadir.Config](tb)(dir.Load())
	s := must[*setup.Services](tb)(setup.Open(tb.Context(), dir, config, slog.New(slog.DiscardHandler)))
	tb.Cleanup(func() { _ = s.Close() }) // some tests have closed it themselves
	return s
}

// DatabaseFile writes a PostgreSQL URL to a file, as init and join want it; for SQLite there is none.
func DatabaseFile(tb testing.TB, url string) string {
	tb.Helper()
	if !strings.HasPrefix(url, "postgres") {
		return ""
	}
	file := filepath.Join(tb.TempDir(), "database")
	check(tb, os.WriteFile(file, []byte(url+"\n"), 0o600))
	return file
}

func must[T any](tb testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		tb.Helper()
		check(tb, err)
		return v
	}
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
