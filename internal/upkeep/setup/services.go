// Package setup makes an authority: its database, keys, roots and issuers, its first administrator, and the data directory
// of its first node. It makes one anew from a backup as well.
//
// What init makes is made beside the data directory and put in its place when it is whole, so an init that was cut short
// leaves nothing that looks like an authority.
package setup

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"chancery/internal/agent/recipe"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/clone"
	"chancery/internal/authority/identity"
	"chancery/internal/authority/profile"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/fleet/pool"
	"chancery/internal/fleet/proof"
	"chancery/internal/fleet/rollout"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/move"
	"chancery/internal/store/schema"
	"chancery/internal/store/settings"
	"chancery/internal/store/token"
	"chancery/internal/upkeep/datadir"
)

// Services are the services of a node over one database.
type Services struct {
	DB         *db.DB
	Audit      *audit.Log
	Settings   *settings.Store
	Keys       *keys.Store
	Access     *access.Store
	Profiles   *profile.Store
	CA         *ca.CA
	Identity   *identity.Service
	Revocation *revocation.Service
	Clones     *clone.Service
	Pools      *pool.Service
	Trust      *trust.Service
	Hosts      *host.Service
	Rollouts   *rollout.Service
	Proofs     *proof.Service
	Tokens     *token.Tokens // nil where the services were assembled without a data directory

	pinned []crypto.PublicKey // the audit's, in the node's own directory
}

// Close closes the database, and ends the helpers that sign in tokens.
func (s *Services) Close() error {
	var err error
	if s.Tokens != nil {
		err = s.Tokens.Close()
	}
	return errors.Join(err, s.DB.Close())
}

// Assemble puts the services of the named node together. It starts nothing.
func Assemble(d *db.DB, node string, key *keys.NodeKey, logger *slog.Logger) (*Services, error) {
	log, err := audit.New(d, node)
	if err != nil {
		return nil, err
	}
	s := &Services{DB: d, Audit: log, Settings: settings.New(d, log), Keys: keys.New(d, log, node, key), Access: access.New(d, log)}
	s.Profiles = profile.New(d, log)
	s.CA = ca.New(ca.Options{
		DB: d, Keys: s.Keys, Profiles: s.Profiles, Settings: s.Settings, Audit: log,
		// Hosts are made further down, since they need the CA; nothing is issued before.
		Entitlements: func(ctx context.Context, by access.Principal) (map[string][]string, error) {
			return s.Hosts.Entitlements(ctx, by)
		},
		AdmitHost: func(ctx context.Context, tx *db.Tx, by access.Principal, profile string) error {
			return s.Hosts.AdmitHost(ctx, tx, by, profile)
		},
		HostNames: func(ctx context.Context, tx *db.Tx, by access.Principal) (string, []string, error) {
			return s.Hosts.PoolAndNames(ctx, tx, by)
		},
		Successor: func(ctx context.Context, by access.Principal, old *ca.Certificate) (string, error) {
			return s.Rollouts.Successor(ctx, by, old)
		},
		Renewing: func(ctx context.Context, tx *db.Tx, before, after *ca.Issuer) error {
			if err := s.Trust.Renewed(ctx, tx, before, after); err != nil || before.Certificate.Equal(after.Certificate) {
				return err
			}
			return host.Renewed(ctx, tx, trust.Fingerprint(before.Certificate), trust.Fingerprint(after.Certificate))
		},
	})
	s.Identity = identity.New(d, s.CA, s.Access)
	s.Revocation = revocation.New(revocation.Options{DB: d, CA: s.CA, Keys: s.Keys, Settings: s.Settings, Audit: log, Logger: logger})
	s.Clones = clone.New(clone.Options{
		DB: d, CA: s.CA, Keys: s.Keys, Access: s.Access, Identity: s.Identity, Settings: s.Settings, Audit: log, Logger: logger,
		// Pools are made further down.
		OpenLogin: func(ctx context.Context, by access.Principal, node, csr string) (clone.Login, error) {
			return s.openLogin(ctx, node, csr)
		},
		CloseLogin: func(ctx context.Context, role string) error { return s.closeLogin(ctx, role, logger) },
		Logins:     s.loginsOf,
	})
	s.Settings.Guard(s.Clones.GuardSettings)
	s.Pools = pool.New(pool.Options{DB: d, CA: s.CA, Revocation: s.Revocation, Settings: s.Settings, Audit: log})
	s.Trust = trust.New(trust.Options{
		DB: d, CA: s.CA, Pools: s.Pools, Revocation: s.Revocation, Settings: s.Settings, Audit: log, Logger: logger,
		// Hosts are made further down, since they need their pools' trust.
		Presenting: func(ctx context.Context, tx *db.Tx, pool string, issuers []string, limit int) ([]trust.Presented, error) {
			return s.Hosts.Presenting(ctx, tx, pool, issuers, limit)
		},
		Lacking: func(ctx context.Context, tx *db.Tx, p trust.Pinning, limit int) (map[string][]trust.Presented, error) {
			return s.Hosts.Lacking(ctx, tx, p, limit)
		},
		Touched: func(ctx context.Context, tx *db.Tx, pool string) (int64, error) {
			return s.Hosts.Touched(ctx, tx, pool)
		},
		HostName: func(ctx context.Context, tx *db.Tx, id string) (string, error) { return s.Hosts.NameOf(ctx, tx, id) },
	})
	s.Hosts = host.New(host.Options{
		DB: d, CA: s.CA, Access: s.Access, Identity: s.Identity, Pools: s.Pools, Trust: s.Trust, Settings: s.Settings, Audit: log, Revocation: s.Revocation,
		Keys: s.Keys, Logger: logger, Recipe: recipe.Builtin, Proofs: proof.Pending, Excepted: rollout.Excepted,
	})
	s.Rollouts = rollout.New(rollout.Options{
		DB: d, CA: s.CA, Pools: s.Pools, Trust: s.Trust, Hosts: s.Hosts, Keys: s.Keys, Audit: log, Logger: logger, Recipe: recipe.Builtin,
	})
	s.Proofs = proof.New(proof.Options{DB: d, CA: s.CA, Audit: log})
	return s, nil
}

// Open opens the database of a data directory and the services of its node. The caller closes it, or Services.DB where the
// program ends with it.
func Open(ctx context.Context, dir datadir.Dir, config *datadir.Config, logger *slog.Logger) (*Services, error) {
	return openServices(ctx, dir, config, logger, false)
}

// OpenBeside is Open for a short act while the node of the directory may run; it has to be of the same release.
func OpenBeside(ctx context.Context, dir datadir.Dir, config *datadir.Config, logger *slog.Logger) (*Services, error) {
	s, err := openServices(ctx, dir, config, logger, true)
	if err != nil {
		return nil, err
	}
	have, err := schema.Version(ctx, s.DB)
	if err == nil && have != schema.Newest() {
		err = fault.New(fault.Conflict, "the database has schema %d, and this program's is %d", have, schema.Newest()).
			WithHint("use the program that the node runs; a newer one changes the schema when it serves")
	}
	if err == nil {
		err = s.DB.LearnClock(ctx)
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func openServices(ctx context.Context, dir datadir.Dir, config *datadir.Config, logger *slog.Logger, beside bool) (*Services, error) {
	write, read, err := config.DatabaseURLs(dir)
	if err != nil {
		return nil, err
	}
	key, err := keys.LoadNodeKey(dir.NodeKey())
	if err != nil {
		return nil, err
	}
	options := db.Options{URL: write, ReadURL: read, Node: config.Name, Logger: logger, Beside: beside}
	if !beside { // it is the node's
		options.MarkFile = dir.DatabaseMark()
	}
	d, err := db.Open(ctx, options)
	if err != nil {
		return nil, err
	}
	if err := move.Guard(ctx, d); err != nil {
		return nil, closing(d, err)
	}
	s, err := Assemble(d, config.Name, key, logger)
	if err != nil {
		return nil, closing(d, err)
	}
	if err := s.anchor(dir); err != nil {
		return nil, closing(d, err)
	}
	tokens := config.TokenOptions(dir)
	tokens.Logger = logger
	s.Tokens = token.New(tokens)
	s.Keys.UseTokens(s.Tokens)
	return s, nil
}

// anchor gives the node what it believes lists of key recipients by: the audit's public keys in its own directory. One that is just
// being made has none yet.
func (s *Services) anchor(dir datadir.Dir) error {
	text, err := os.ReadFile(dir.AuditKey())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the audit's public keys: %w", err)
	}
	if s.pinned, err = ParseAuditKeys(text); err != nil {
		return err
	}
	return s.Keys.Anchor(s.pinned, dir.Recipients())
}

// BelieveAs has services over what was restored from a node's backup believe the lists of key recipients that the node believes: one that
// joined has endorsed nobody. The newest list that it has seen is no measure for them, since a backup may be older.
func (s *Services) BelieveAs(node *Services) error {
	s.pinned = node.pinned
	return s.Keys.Anchor(s.pinned, "")
}

// closing closes d on the way out of a failure, whose error is the one that counts.
func closing(d *db.DB, err error) error {
	_ = d.Close()
	return err
}
