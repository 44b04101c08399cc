package cli

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

type rescueCommands struct {
	Clock rescueClockCommand `cmd:"" help:"Set the authority's time back to this machine's, after a clock was ahead."`
	Admin rescueAdminCommand `cmd:"" help:"Give an administrator a new identity in --dir, after the old one ended or was lost."`
}

type rescueClockCommand struct{}

// Run works on the machine of the node, because who is locked out cannot use its API; with SQLite the node must not run.
func (c *rescueClockCommand) Run(ctx context.Context, g *globals) error {
	if g.Dir == "" {
		return usage("rescue needs --dir D")
	}
	before, err := setup.RescueClock(ctx, datadir.Dir(g.Dir))
	if err != nil {
		return err
	}
	now := time.Now()
	if g.Output == "json" {
		return g.json(map[string]any{"before": before.UTC(), "after": now.UTC()})
	}
	was := "nothing yet"
	if !before.IsZero() {
		was = stamp(before)
	}
	_, err = fmt.Fprintf(g.Out, "the authority had seen %s; it has %s now\n", was, stamp(now))
	return err
}

type rescueAdminCommand struct{}

// Run works on the machine of the node as well.
func (c *rescueAdminCommand) Run(ctx context.Context, g *globals) error {
	if g.Dir == "" {
		return usage("rescue needs --dir D")
	}
	dir := datadir.Dir(g.Dir)
	name, err := setup.RescueAdmin(ctx, dir)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(map[string]any{"operator": name, "cert": dir.AdminCert(), "key": dir.AdminKey()})
	}
	_, err = fmt.Fprintf(g.Out, "%s has a new identity in %s\n", name, dir.AdminCert())
	return err
}
