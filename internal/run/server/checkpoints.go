package server

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/checkpoint"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/upkeep/setup"
)

const (
	checkpointEvery = 5 * time.Minute
	checkpointLook  = 500 * time.Millisecond
	auditLeaseTime  = 2 * time.Minute
)

// checkpoints signs the audit's checkpoints, and prunes what the settings let go, under the audit's lease.
type checkpoints struct {
	*setup.Services
	logger *slog.Logger
}

// Sign signs a checkpoint now, for a call that may be repeated. Only one node may at a time; another is told who that is.
func (c *checkpoints) Sign(ctx context.Context, call once.Call) (*checkpoint.Signed, error) {
	lease, err := c.acquire(ctx)
	if err != nil {
		return nil, err
	}
	return c.sign(ctx, lease, time.Now(), call)
}

func (c *checkpoints) acquire(ctx context.Context) (db.Lease, error) {
	lease, ok, err := c.DB.Acquire(ctx, audit.Lease, c.Audit.Node(), auditLeaseTime)
	if err == nil && !ok {
		err = fault.New(fault.Conflict, "node %s signs the audit's checkpoints, until %v", lease.Holder, lease.Expires.UTC()).
			WithHint("ask that node")
	}
	return lease, err
}

func (c *checkpoints) sign(ctx context.Context, lease db.Lease, now time.Time, call once.Call) (*checkpoint.Signed, error) {
	set, err := c.Settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.DB.CheckClock(now); err != nil {
		return nil, err
	}
	signer, err := c.AuditSigner(ctx)
	if err != nil {
		return nil, err
	}
	return c.Audit.Checkpoint(ctx, lease, set.Authority, now, call, signer)
}

// Run signs every few minutes, while this node holds the lease, and as soon as the lease was handed to it.
func (c *checkpoints) Run(ctx context.Context) error {
	handed := make(chan struct{})
	var looking sync.WaitGroup
	looking.Go(func() { c.look(ctx, handed) })
	defer looking.Wait()
	return everyOr(ctx, checkpointEvery, handed, func(ctx context.Context, now time.Time) {
		lease, err := c.acquire(ctx)
		if fault.Is(err, fault.Conflict) {
			return // another node does it
		}
		if err == nil {
			_, err = c.sign(ctx, lease, now, once.Call{})
		}
		if err == nil {
			err = c.prune(ctx, lease, now)
		}
		if err != nil && ctx.Err() == nil {
			c.logger.Error("the audit's checkpoint was not signed", "error", err)
		}
	})
}

// look tells whenever the lease was handed to this node: whoever promotes it waits until it has taken it up. And it sees the lease renewed, or
// not: whoever looks as seldom as it is taken could not tell one that ended long ago from one that lives.
func (c *checkpoints) look(ctx context.Context, handed chan<- struct{}) {
	t := time.NewTicker(checkpointLook)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		_, _ = c.DB.Vacant(ctx, audit.Lease, c.Audit.Node(), auditLeaseTime, time.Now()) // what counts is that it was seen
		if is, err := c.DB.Handed(ctx, audit.Lease, c.Audit.Node()); err != nil || !is {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case handed <- struct{}{}:
		}
	}
}

func (c *checkpoints) prune(ctx context.Context, lease db.Lease, now time.Time) error {
	set, err := c.Settings.Get(ctx)
	if err != nil || set.Retention.Audit == 0 {
		return err
	}
	n, err := c.Audit.Prune(ctx, lease, now.Add(-set.Retention.Audit.Std()), "system:"+c.Audit.Node(), now)
	if n > 0 {
		c.logger.Info("audit events pruned", "events", n)
	}
	return err
}

// every calls work at once and then each interval, until ctx ends.
func every(ctx context.Context, interval time.Duration, work func(context.Context, time.Time)) error {
	return everyOr(ctx, interval, nil, work)
}

// everyOr does work at once, in every interval, and when now has something.
func everyOr(ctx context.Context, interval time.Duration, now <-chan struct{}, work func(context.Context, time.Time)) error {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		work(ctx, time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-now:
		}
	}
}
