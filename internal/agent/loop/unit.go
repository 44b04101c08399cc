package loop

import (
	"context"
	"slices"
	"strings"

	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
)

// stopped reports whether the service that a step restarts does not run: a consumer that was down stays down (law 3), and one
// without a port shows it in no other way. It is not said of a service that systemd does not know, nor where systemd does not
// answer: then the restart itself says what is wrong. One that starts just now runs.
func (c *consumer) stopped(ctx context.Context, step recipe.Step) bool {
	systemctl, unit := step.Service()
	if unit == "" {
		return false
	}
	out, err := c.system.Run(ctx, probe.Command{Args: []string{systemctl, "show", "--property=LoadState,ActiveState", unit}})
	if err != nil {
		return false
	}
	lines := strings.Fields(string(out))
	idle := slices.ContainsFunc(lines, func(line string) bool {
		return line == "ActiveState=inactive" || line == "ActiveState=failed" || line == "ActiveState=deactivating"
	})
	return idle && !slices.Contains(lines, "LoadState=not-found")
}

// restored is the step that tells of the old files. A service that did not come up again with the new ones is not running any
// more, and try-restart would leave it so; it ran before we told it, so it is started.
func (c *consumer) restored(ctx context.Context, step recipe.Step) recipe.Step {
	if !c.stopped(ctx, step) {
		return step
	}
	step.Command = slices.Clone(step.Command)
	step.Command[1] = "restart"
	return step
}
