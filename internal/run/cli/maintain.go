package cli

import (
	"context"
	"os"
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
