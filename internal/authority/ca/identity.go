package ca

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// IdentityGrace is how long after its end an agent's identity still renews itself, if it is not revoked: a host that was off
// for weeks comes back without a hand.
const IdentityGrace = 30 * 24 * time.Hour

// Within writes, in the transaction that records an identity, what must be there exactly if the identity is. It may run
// twice, and is not run for a repeated call, whose first run it was committed with.
type Within func(ctx context.Context, tx *db.Tx, issued *Certificate) error

// IssueIdentity issues a certificate of the pool of identities, in the authority's own name for the service or node named.
// It is the only way to one: whoever could have other keys certified there could pass for others. Who may call is the
// caller's to decide; here it counts against his rate. within may be nil.
func (c *CA) IssueIdentity(ctx context.Context, by access.Principal, name string, order Order, within Within) (*Certificate, error) {
	now := time.Now()
	if err := c.db.CheckClock(now); err != nil {
		return nil, err
	}
	if err := c.withinRate(ctx, by, now); err != nil {
		return nil, err
	}
	order.Pool, order.Profile, order.identity, order.within = IdentityPool, IdentityProfile, true, within
	return c.planAndIssue(ctx, access.System(name), &order, now)
}

// CheckIdentity says why IssueIdentity would refuse an order. It changes nothing, and needs no key.
func (c *CA) CheckIdentity(ctx context.Context, name string, order Order) error {
	order.Pool, order.Profile, order.identity = IdentityPool, IdentityProfile, true
	p, err := c.plan(ctx, access.System(name), &order, time.Now())
	if err != nil {
		return err
	}
	return c.checkKey(ctx, p.facts.spki)
}

// CheckKey refuses a key that was revoked as compromised, under whatever issuer.
func (c *CA) CheckKey(ctx context.Context, spki []byte) error {
	if err := c.checkKey(ctx, spki); err != nil {
		return fmt.Errorf("check the key: %w", err)
	}
	return nil
}
