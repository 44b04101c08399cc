package cli

import (
	"context"
	"fmt"

	"chancery/internal/pki/keyfile"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

type restoreCommand struct {
	Backup         string   `arg:"" type:"path" name:"BACKUP" help:"The backup."`
	RecoveryFile   string   `required:"" type:"path" placeholder:"F" help:"The sealed recovery key that init wrote."`
	PassphraseFile string   `placeholder:"F|-" help:"Its passphrase; asked for on a terminal when not given."`
	AuditKey       string   `type:"path" placeholder:"F" help:"The public key of the audit, which must have signed the backup: offline/audit-key.pem that init wrote, or ca/audit-key.pem of a data directory. Needed."`
	CRL            []string `name:"crl" type:"path" placeholder:"F" help:"A CRL that was published after the backup: what it lists is revoked again. May be repeated."`
	DatabaseFile   string   `type:"path" placeholder:"F" help:"File (mode 0600) with a PostgreSQL URL of an empty database; SQLite in --dir when not given."`
	Listen         string   `placeholder:"ADDR:PORT" help:"Where the API listens."`
	PublicListen   string   `placeholder:"ADDR:PORT" help:"Where CRLs and OCSP are served."`
	Metrics        string   `name:"metrics-listen" placeholder:"ADDR:PORT" help:"Where metrics and health are served."`
}

// Run makes an authority anew in --dir.
func (c *restoreCommand) Run(ctx context.Context, g *globals) error {
	if g.Dir == "" {
		return usage("restore needs --dir D")
	}
	if c.AuditKey == "" {
		return usage("restore needs --audit-key F, the public key that signed the backup: init wrote it to offline/audit-key.pem, " +
			"and every data directory has it in ca/audit-key.pem")
	}
	text, err := g.readAll(c.AuditKey)
	if err != nil {
		return err
	}
	known, err := setup.ParseAuditKeys(text)
	if err != nil {
		return fmt.Errorf("read %s: %w", c.AuditKey, err)
	}
	recovery, err := c.recovery(g)
	if err != nil {
		return err
	}
	o := setup.RestoreOptions{
		Dir: datadir.Dir(g.Dir), Backup: c.Backup, Recovery: recovery, AuditKeys: known, DatabaseFile: c.DatabaseFile, Address: g.Address, Listen: c.Listen,
		PublicListen: c.PublicListen, Metrics: c.Metrics,
	}
	for _, file := range c.CRL {
		list, err := g.readAll(file)
		if err != nil {
			return err
		}
		o.CRLs = append(o.CRLs, list)
	}
	done := g.progress("restoring")
	r, err := setup.Restore(ctx, o)
	done()
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(map[string]any{"backup": r.Header, "node": r.Node, "rows": r.Rows, "keys": r.Keys, "merged": r.Merged, "warnings": r.Warnings})
	}
	fmt.Fprintf(g.Out, "The authority as of %s is in %s: %d rows, %d keys, node %s.\n", stamp(r.Header.At), g.Dir, r.Rows, r.Keys, r.Node)
	if len(c.CRL) > 0 {
		fmt.Fprintf(g.Out, "From the CRLs: %d certificates revoked, %d serials revoked whose certificates are lost, %d were revoked already.\n",
			r.Merged.Revoked, r.Merged.Unknown, r.Merged.Known)
	} else {
		fmt.Fprintln(g.Out, "No --crl was given: what was revoked after the backup is good again. Restore with the newest CRL of each issuer where you have it.")
	}
	for _, w := range r.Warnings {
		fmt.Fprintln(g.Out, "warning:", printable(w))
	}
	fmt.Fprintf(g.Out, "\nNext: chancery serve --dir %s\n", g.Dir)
	return nil
}

// recovery opens the sealed recovery key.
func (c *restoreCommand) recovery(g *globals) (*keys.Recovery, error) {
	sealed, err := g.private(c.RecoveryFile, "recovery file", keyfile.MaxFile)
	if err != nil {
		return nil, err
	}
	passphrase, err := c.passphrase(g)
	if err != nil {
		return nil, err
	}
	return keys.OpenRecovery(sealed, passphrase)
}

func (c *restoreCommand) passphrase(g *globals) ([]byte, error) {
	if c.PassphraseFile != "" {
		return g.secret(c.PassphraseFile, "passphrase")
	}
	return g.ask("Passphrase of " + c.RecoveryFile + ": ")
}
