package cli

import (
	"context"
	"os"

	"chancery/internal/run/demo"
)

type demoCommand struct{}

// Run plays the demo. It stays until it is interrupted, unless DEMO_ONCE is set.
func (c *demoCommand) Run(ctx context.Context, g *globals) error {
	return demo.Run(ctx, demo.Options{Out: g.Out, Stay: os.Getenv("DEMO_ONCE") == "", Version: version})
}

type demoConsumerCommand struct {
	Args []string `arg:"" passthrough:""`
}

// Run is a process that the demo starts.
func (c *demoConsumerCommand) Run(ctx context.Context) error { return demo.Consumer(ctx, c.Args) }
