package cli

import (
	"context"
	"os"

	"chancery/internal/run/demo"
)

type demoCommand struct{}

// Run plays the demo. It stays until it is interrupted, unless DEMO_ONCE is set or nobody is there to see it.
func (c *demoCommand) Run(ctx context.Context, g *globals) error {
	return demo.Run(ctx, demo.Options{Out: g.Out, Stay: os.Getenv("DEMO_ONCE") == "", Version: version})
}
