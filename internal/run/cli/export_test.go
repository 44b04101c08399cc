package cli

import "context"

// RunQuick is Run, whose init seals the recovery key at less than a second's work: the scripts make dozens of authorities.
func RunQuick(ctx context.Context, args []string, streams Streams) int {
	var c commands
	c.recoveryWork = 10
	return c.run(ctx, args, streams)
}
