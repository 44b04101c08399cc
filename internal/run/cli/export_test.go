package cli

import (
	"context"

	"github.com/alecthomas/kong"
)

// RunQuick is Run, whose init seals the recovery key at less than a second's work: the scripts make dozens of authorities.
func RunQuick(ctx context.Context, args []string, streams Streams) int {
	var c commands
	c.recoveryWork = 10
	return c.run(ctx, args, streams)
}

// GrammarFor is the parser that these arguments have.
func GrammarFor(args ...string) (*kong.Kong, error) {
	return newParser(&commands{}, args, kong.Exit(func(int) {}))
}
