package server

import (
	"context"
	"log/slog"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/clone"
	"chancery/internal/authority/identity"
	"chancery/internal/fleet/host"
	"chancery/internal/fleet/proof"
	"chancery/internal/fleet/rollout"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
	"chancery/internal/upkeep/setup"
)

const (
	heartbeatEvery = 5 * time.Second
	pruneEvery     = 10 * time.Minute
	pruneRows      = 500 // in one transaction, so that no caller waits long behind it
)

// heartbeat writes the time that the authority has seen, and says once when that fails, and once when it no longer does.
// With it comes what the node must know at once: how durable commits have to be.
func heartbeat(ctx context.Context, s *setup.Services, logger *slog.Logger) error {
	failing := false
	return everyOr(ctx, heartbeatEvery, s.DB.Promoted(), func(ctx context.Context, now time.Time) {
		err := s.DB.Heartbeat(ctx, now)
		if err == nil {
			err = followDurability(ctx, s)
		}
		switch {
		case ctx.Err() != nil:
		case err != nil && !failing:
			failing = true
			logger.Error("heartbeat", "error", err)
		case err == nil && failing:
			failing = false
			logger.Info("heartbeat: all is well again")
		}
	})
}

// followDurability holds the database to what the settings ask of its commits.
func followDurability(ctx context.Context, s *setup.Services) error {
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return err
	}
	s.DB.SetDurability(db.Durability(set.Durability))
	return nil
}

// pruner removes rows that nothing needs any more, as the settings' retention says.
type pruner struct {
	db       *db.DB
	settings *settings.Store
	access   *access.Store
	ca       *ca.CA
	hosts    *host.Service
	rollouts *rollout.Service
	proofs   *proof.Service
	clones   *clone.Service
	logger   *slog.Logger
}

// Run prunes now and then. Every node does it: two that meet remove the same rows, and neither harms.
func (p *pruner) Run(ctx context.Context) error {
	return every(ctx, pruneEvery, func(ctx context.Context, now time.Time) {
		if err := p.prune(ctx, now); err != nil && ctx.Err() == nil {
			p.logger.Error("prune", "error", err)
		}
	})
}

func (p *pruner) prune(ctx context.Context, now time.Time) error {
	if err := p.db.JudgeClock(ctx, now); err != nil {
		return err // what is old by a wrong clock is not
	}
	set, err := p.settings.Get(ctx)
	if err != nil {
		return err
	}
	if keep := set.Retention.Idempotency.Std(); keep > 0 {
		err := whole(func() (n int64, err error) {
			err = p.db.Tx(ctx, func(tx *db.Tx) error {
				n, err = once.Prune(ctx, tx, now.Add(-keep), pruneRows)
				return err
			})
			return n, err
		})
		if err != nil {
			return err
		}
	}
	if err := whole(func() (int64, error) { return p.access.PruneTokens(ctx, now, pruneRows) }); err != nil {
		return err
	}
	if err := whole(func() (int64, error) { return p.access.PruneIdentities(ctx, now.Add(-identity.Grace), pruneRows) }); err != nil {
		return err
	}
	if err := whole(func() (int64, error) { return p.hosts.Prune(ctx, now, pruneRows) }); err != nil {
		return err
	}
	if err := whole(func() (int64, error) { return p.proofs.Prune(ctx, now, pruneRows) }); err != nil {
		return err
	}
	if err := whole(func() (int64, error) { return p.rollouts.Prune(ctx, now, pruneRows) }); err != nil {
		return err
	}
	if err := whole(func() (int64, error) { return p.clones.Prune(ctx, now, pruneRows) }); err != nil {
		return err
	}
	_, err = p.ca.Prune(ctx)
	return err
}

// whole repeats a bounded removal until it finds less than it may remove.
func whole(remove func() (int64, error)) error {
	for {
		n, err := remove()
		if err != nil || n < pruneRows {
			return err
		}
	}
}
