package cli

import (
	"context"
	"net"
	"os"
	"time"

	"chancery/internal/upkeep/doctor"
)

type backupCommand struct {
	Out string `required:"" type:"path" placeholder:"F" help:"File to write, mode 0600."`
}

// Run takes a backup.
func (c *backupCommand) Run(ctx context.Context, g *globals) error {
	if err := absent(c.Out); err != nil {
		return err
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	if err := g.toFile(c.Out, 0o600, "backing up", func(w writer) error { return api.Backup(ctx, w) }); err != nil {
		return err
	}
	st, err := os.Stat(c.Out)
	if err != nil {
		return err
	}
	g.say("%d octets in %s; only the recovery key opens it", st.Size(), c.Out)
	return nil
}

type doctorCommand struct {
	What string `arg:"" optional:"" name:"FILE" help:"A file with certificates or a key, looked at without a node; the node and its authority when not given."`
}

// Run looks.
func (c *doctorCommand) Run(ctx context.Context, g *globals) error {
	if c.What != "" {
		if _, err := os.Lstat(c.What); err != nil {
			if _, _, split := net.SplitHostPort(c.What); split == nil {
				return usage("doctor looks at files and at the node; %s is neither", c.What)
			}
			return err
		}
		return g.findings(wire(doctor.File(c.What, time.Now())))
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	return g.findings(api.Doctor(ctx))
}
