package loop

import (
	"context"

	"chancery/client"
)

// Fetch and Pass are the two halves of Once, so that tests can change what a host is told in between.
func (a *Agent) Fetch(ctx context.Context) (*client.Desired, error) {
	d, _, err := a.fetch(ctx)
	return d, err
}

func (a *Agent) Pass(ctx context.Context, d *client.Desired) (*Result, error) {
	return a.pass(ctx, d, nil)
}

// Leave makes the authority one that is not reached.
func (a *Agent) Leave(err error) { a.setGone(err) }
