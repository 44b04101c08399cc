package setup

import (
	"context"
	"crypto/x509"
	"log/slog"
	"slices"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/importer"
	"chancery/internal/fault"
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
	return opened(ctx, dir, func(s *Services, by access.Principal) error {
		if err := s.ready(ctx); err != nil {
			return err
		}
		return act(s, by)
	})
}

// opened is local with a store that may be of another release.
func opened(ctx context.Context, dir datadir.Dir, act func(s *Services, by access.Principal) error) error {
	config, err := dir.Load()
	if err != nil {
		return err
	}
	s, err := Open(ctx, dir, config, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
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
		issuer, err = s.importCA(ctx, by, from, into)
		return err
	})
	return issuer, err
}

// ForeseeImport says why Import would be refused, and changes nothing; else whether the issuer is here already, and would be given its key.
func ForeseeImport(ctx context.Context, dir datadir.Dir, from *importer.CA, into importer.Into) (here bool, err error) {
	into.DryRun = true
	err = opened(ctx, dir, func(s *Services, by access.Principal) error {
		switch version, err := schema.Version(ctx, s.DB); {
		case err != nil:
			return err
		case version != schema.Newest():
			return fault.New(fault.Unavailable, "the store is of schema %d, and the import would bring it to %d first", version, schema.Newest())
		}
		if err := s.DB.LearnClock(ctx); err != nil {
			return err
		}
		issuer, err := s.importCA(ctx, by, from, into)
		if err != nil {
			return err
		}
		all, err := s.CA.Issuers(ctx)
		here = slices.ContainsFunc(all, func(i *ca.Issuer) bool { return i.ID == issuer.ID })
		return err
	})
	return here, err
}

func (s *Services) importCA(ctx context.Context, by access.Principal, from *importer.CA, into importer.Into) (*ca.Issuer, error) {
	now := time.Now()
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	into.Also = func(ctx context.Context, tx *db.Tx) error {
		return s.Pools.RecordIn(ctx, tx, by, into.Pool, set.Organization, now)
	}
	return from.Import(ctx, s.CA, by, into)
}
