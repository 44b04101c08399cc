package setup

import (
	"context"
	"crypto/x509"
	"log/slog"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/importer"
	"chancery/internal/fleet/pool"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/store/schema"
	"chancery/internal/upkeep/datadir"
)

// local runs an act on an authority of this machine that no node serves at the moment; on SQLite a node that runs refuses
// it by its lock.
func local(ctx context.Context, dir datadir.Dir, act func(s *Services, by access.Principal) error) error {
	config, err := dir.Load()
	if err != nil {
		return err
	}
	s, err := Open(ctx, dir, config, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if err := s.ready(ctx); err != nil {
		return closing(s.DB, err)
	}
	if err := act(s, access.System(config.Name)); err != nil {
		_ = s.Close()
		return err
	}
	return s.Close()
}

func (s *Services) ready(ctx context.Context) error {
	if err := schema.Migrate(ctx, s.DB); err != nil {
		return err
	}
	return s.DB.LearnClock(ctx)
}

// Answer gives the default pool's waiting issuer what an outside root made of its request.
func Answer(ctx context.Context, dir datadir.Dir, certificates []*x509.Certificate) (issuer *ca.Issuer, err error) {
	err = local(ctx, dir, func(s *Services, by access.Principal) error {
		issuer, err = s.CA.ImportAnswer(ctx, by, pool.Default, certificates, once.Call{})
		return err
	})
	return issuer, err
}

// Import brings in a CA that exists already as one more issuer, with what it issued and revoked. Its key is read on this
// machine and sealed into the store: it never goes over a network. A pool that does not exist yet is added for it.
func Import(ctx context.Context, dir datadir.Dir, from *importer.CA, into importer.Into) (issuer *ca.Issuer, err error) {
	err = local(ctx, dir, func(s *Services, by access.Principal) error {
		now := time.Now()
		set, err := s.Settings.Get(ctx)
		if err != nil {
			return err
		}
		into.Also = func(ctx context.Context, tx *db.Tx) error {
			return s.Pools.RecordIn(ctx, tx, by, into.Pool, set.Organization, now)
		}
		issuer, err = from.Import(ctx, s.CA, by, into)
		return err
	})
	return issuer, err
}
