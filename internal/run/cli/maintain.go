package cli

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/drill"
	"chancery/internal/upkeep/setup"
)

type backupCommands struct {
	Whole backupCommand      `cmd:"" default:"withargs" help:"Write the whole authority, encrypted to its recovery recipient."`
	Drill backupDrillCommand `cmd:"" help:"Restore a backup into a scratch place, have it sign and be verified, and remove it."`
	Keys  backupKeysCommand  `cmd:"" help:"Write the signing keys with their certificates into a PKCS#12 file."`
}

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

type backupKeysCommand struct {
	Subsystem    string `enum:"ca,ocsp" default:"ca" help:"Whose keys: ca (issuers and their OCSP responders) or ocsp (responders)."`
	Out          string `required:"" type:"path" placeholder:"F.p12" help:"File to write, mode 0600; it must not be there."`
	PasswordFile string `required:"" placeholder:"P|-" help:"Password of the file, in a file that nobody else may read."`
	SkipToken    bool   `help:"Leave out keys that are in a PKCS#11 token, instead of writing nothing."`
}

// Run works on the machine of the node, which may run: keys do not travel over its API.
func (c *backupKeysCommand) Run(ctx context.Context, g *globals) error {
	if g.Dir == "" {
		return usage("backup keys needs --dir D: it works where the node is, so that no key travels")
	}
	if c.PasswordFile != "-" {
		st, err := os.Stat(c.PasswordFile)
		if err != nil {
			return err
		}
		if st.Mode().Perm()&0o077 != 0 {
			return fault.New(fault.Invalid, "%s has mode %04o: others can read the password; 0600 is wanted", c.PasswordFile, st.Mode().Perm()).
				WithHint("choose another password, into a file of mode 0600")
		}
	}
	password, err := g.secret(c.PasswordFile, "password")
	if err != nil {
		return err
	}
	defer clear(password)
	exported, err := setup.ExportKeys(ctx, setup.KeysOptions{
		Dir: datadir.Dir(g.Dir), Subsystem: keys.Subsystem(c.Subsystem), Out: c.Out, Password: password, SkipToken: c.SkipToken,
	})
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(map[string]any{"file": c.Out, "keys": exported})
	}
	written := 0
	for _, one := range exported {
		if one.Left != "" {
			g.say("%s is not in the file: %s", one.Name, one.Left)
			continue
		}
		written++
		fmt.Fprintf(g.Out, "%s  %s  %s\n", one.KeyID, printable(one.Name), printable(one.Subject))
	}
	_, err = fmt.Fprintf(g.Out, "%d keys are in %s. Who has it and the password can issue in the authority's name: take it off this machine.\n", written, c.Out)
	return err
}

type backupDrillCommand struct {
	Backup         string `type:"path" placeholder:"F" help:"A backup to try; a fresh one is taken when not given."`
	RecoveryFile   string `type:"path" placeholder:"F" help:"The sealed recovery key: needed for --backup; without it a fresh backup is opened by a key made for the drill."`
	PassphraseFile string `placeholder:"F|-" help:"Its passphrase; asked for on a terminal when not given."`

	ScratchDatabaseFile string `type:"path" placeholder:"F" help:"File with the URL of a PostgreSQL database to restore into, in a schema that is removed again; without it a file of SQLite in the data directory."`
}

// Run works on the machine of the node, which may run.
func (c *backupDrillCommand) Run(ctx context.Context, g *globals) error {
	switch {
	case g.Dir == "":
		return usage("backup drill needs --dir D: it works where the node is")
	case c.Backup != "" && c.RecoveryFile == "":
		return usage("a backup that was taken before opens with the recovery key only: --backup needs --recovery-file F")
	}
	dir := datadir.Dir(g.Dir)
	config, err := dir.Load()
	if err != nil {
		return err
	}
	o := drill.Options{Dir: g.Dir, Version: version, Backup: c.Backup}
	if o.Node, err = keys.LoadNodeKey(dir.NodeKey()); err != nil {
		return err
	}
	if c.ScratchDatabaseFile != "" {
		if o.Scratch, err = db.URLFromFile(c.ScratchDatabaseFile); err != nil {
			return err
		}
	}
	if c.RecoveryFile != "" {
		r := restoreCommand{RecoveryFile: c.RecoveryFile, PassphraseFile: c.PassphraseFile}
		if o.Recovery, err = r.recovery(g); err != nil {
			return err
		}
	}
	s, err := setup.OpenBeside(ctx, dir, config, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	end := g.progress("drilling")
	done, err := drill.Run(ctx, s, o)
	end()
	if closed := s.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("the drill failed: %w", err)
	}
	if g.Output == "json" {
		return g.json(struct {
			*drill.Drilled
			Took int64 `json:"took_ms"`
		}{done, done.Took.Milliseconds()})
	}
	fmt.Fprintf(g.Out, "The backup of %s is good: %d rows in %d octets, %d keys opened, %d issuers' keys fit their certificates.\n",
		stamp(done.Taken), done.Rows, done.Octets, done.Keys, done.Issuers)
	if done.Engine == db.Postgres {
		fmt.Fprintln(g.Out, "It was restored into a schema of its own on PostgreSQL.")
	}
	fmt.Fprintf(g.Out, "Each issuer's key signed a text that its certificate verifies, an issuer made there signed a certificate and a CRL, and verify found no error. "+
		"All of it is removed again; it took %s.\n",
		done.Took.Round(time.Millisecond))
	if !done.Recovery {
		fmt.Fprintln(g.Out, "The recovery key was not tried: for that, --recovery-file F where it is at hand.")
	}
	return nil
}
