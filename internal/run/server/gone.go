package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

// stillOne ends a node that was removed and has lost its login at the database with that: it cannot read there that it is none any more.
// When PostgreSQL lets it in no longer it asks the other nodes, and stops where one of them says that its identity is revoked. What
// PostgreSQL says alone is no reason: a mistake in pg_hba.conf says the same, and meanwhile this node answers what it knows.
func (n *node) stillOne(ctx context.Context) error {
	if n.services.DB.Dialect() != db.Postgres {
		return nil
	}
	var others []client.Clone // as it read last
	t := time.NewTicker(reportEvery)
	defer t.Stop()
	for {
		switch away := n.services.DB.Away(); {
		case db.LoginRefused(away):
			if err := n.askWhether(ctx, others); err != nil && ctx.Err() == nil {
				n.logger.Error("the node stops", "error", err)
				return fmt.Errorf("stop: %w", err)
			}
		case away == nil:
			if found, err := n.runCA(ctx); err == nil {
				others = found
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// askWhether asks the other nodes for nothing: the one that knows this node answers that it asks for nothing, and the one to which it
// is none any more lets it ask no question.
func (n *node) askWhether(ctx context.Context, others []client.Clone) error {
	current := n.certificate.current.Load()
	if current == nil || time.Now().After(current.Leaf.NotAfter) {
		return nil // an identity that has ended is refused as well, and is no sign
	}
	var roots *x509.CertPool
	for _, other := range others {
		if roots == nil {
			var err error
			if roots, err = n.identityRoots(); err != nil {
				return nil // without the root nobody's word counts
			}
		}
		_, err := n.askOne(ctx, &other, roots, current, client.CloneIdentity{})
		if client.IsKind(err, "unauthenticated") {
			return fault.New(fault.Denied, "PostgreSQL does not let this node in any more, and node %s at %s says that its identity is revoked: node %s left or was removed",
				other.Name, other.Address, n.config.Name).WithHint("join this machine anew, with another name: chancery clone invite, and join")
		}
	}
	return nil
}

// runCA are the other nodes that run ca, those that are ready before the others.
func (n *node) runCA(ctx context.Context) ([]client.Clone, error) {
	all, _, err := n.services.Clones.List(ctx, access.System(n.config.Name), "", clone.MaxNodes)
	if err != nil {
		return nil, fmt.Errorf("look for a node that runs ca: %w", err)
	}
	all = slices.DeleteFunc(all, func(c client.Clone) bool {
		return c.State != client.CloneActive || c.Self || !slices.Contains(c.Subsystems, string(keys.SubsystemCA))
	})
	slices.SortStableFunc(all, byReadiness)
	return all, nil
}
