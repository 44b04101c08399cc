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

	Recovery rescueRecoveryCommand `cmd:"" help:"Make a new recovery key in the place of the old one, after that was lost or seen by others."`
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

type rescueRecoveryCommand struct {
	Out            string `type:"path" placeholder:"F" help:"Where the sealed key goes; offline/recovery.age in --dir when not given."`
	PassphraseFile string `placeholder:"F|-" help:"Passphrase that seals it; one is made when not given."`
}

// Run works on the machine of the node too: what opens every key of the authority does not travel over its API.
func (c *rescueRecoveryCommand) Run(ctx context.Context, g *globals) error {
	if g.Dir == "" {
		return usage("rescue needs --dir D")
	}
	var passphrase []byte
	if c.PassphraseFile != "" {
		var err error
		if passphrase, err = g.secret(c.PassphraseFile, "passphrase"); err != nil {
			return err
		}
	}
	done := g.progress("wrapping every key")
	made, err := setup.ReplaceRecovery(ctx, datadir.Dir(g.Dir), c.Out, passphrase)
	done()
	if err != nil {
		return err
	}
	if g.Output == "json" {
		old := []string{}
		for _, r := range made.Old {
			old = append(old, r.PublicKey)
		}
		return g.json(map[string]any{"recipient": made.ID, "file": made.File, "passphrase_file": made.Passphrase, "keys": made.Keys, "replaced": old})
	}
	fmt.Fprintf(g.Out, "The new recovery key is in %s and opens all %d keys; the old one opens none of them any more.\n", made.File, made.Keys)
	if made.Passphrase != "" {
		fmt.Fprintf(g.Out, "Its passphrase is in %s. Take both off this machine, and keep them apart.\n", made.Passphrase)
	} else {
		fmt.Fprintln(g.Out, "Take it off this machine.")
	}
	fmt.Fprintln(g.Out, "\nNext: take a backup, since those from before open with the old key only. If others may have that and a backup, make new issuers.")
	return nil
}
