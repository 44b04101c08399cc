package cli

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/authority/importer"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

type importCommand struct {
	CA           string `arg:"" type:"path" name:"CA" help:"Its certificate, its PKCS#12 file, or the directory of an OpenSSL CA."`
	Name         string `required:"" placeholder:"I" help:"Name of the issuer here."`
	Pool         string `default:"default" placeholder:"P" help:"Pool; added when there is none of this name."`
	Default      bool   `help:"Make it the pool's default issuer."`
	Key          string `type:"path" placeholder:"K" help:"Its key."`
	CRL          string `name:"crl" type:"path" placeholder:"F" help:"Its newest CRL: what it lists stays revoked."`
	Issued       string `type:"path" placeholder:"F" help:"A bundle of certificates that it issued."`
	Chain        string `type:"path" placeholder:"F" help:"The certificates above it."`
	Alias        string `placeholder:"A" help:"Which entry of a PKCS#12 file."`
	PasswordFile string `placeholder:"F|-" help:"Password of the key or of the PKCS#12 file."`
	DryRun       bool   `help:"Say what would be brought in, or why not; change nothing."`
}

// Run brings in a CA. It works on the machine of the node, because the CA's key must not travel; with SQLite the node must
// not be running.
func (c *importCommand) Run(ctx context.Context, g *globals) error {
	if g.Dir == "" {
		return usage("import needs --dir D: it works where the node is, so that the CA's key does not travel")
	}
	source := importer.Source{CA: c.CA, Key: c.Key, CRL: c.CRL, Issued: c.Issued, Chain: c.Chain, Alias: c.Alias}
	if c.PasswordFile != "" {
		var err error
		if source.Password, err = g.secret(c.PasswordFile, "password"); err != nil {
			return err
		}
	}
	from, err := importer.Read(source, time.Now())
	if err != nil {
		return fmt.Errorf("import %s: %w", c.CA, err)
	}
	for _, w := range from.Warnings {
		g.say("warning: %s", printable(w))
	}
	into := importer.Into{Name: c.Name, Pool: c.Pool, Default: c.Default}
	if c.DryRun {
		here, err := setup.ForeseeImport(ctx, datadir.Dir(g.Dir), from, into)
		switch {
		case err != nil:
			return err
		case here:
			g.say("would give the key to issuer %q, %q, which is here without it", c.Name, from.Certificate.Subject)
		default:
			g.say("would bring in %q, %d certificates, %d of them revoked", from.Certificate.Subject, len(from.Issued), from.Revoked())
		}
		return nil
	}
	issuer, err := setup.Import(ctx, datadir.Dir(g.Dir), from, into)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(map[string]any{"issuer": issuer.Name, "pool": issuer.Pool, "certificates": len(from.Issued), "revoked": from.Revoked()})
	}
	fmt.Fprintf(g.Out, "issuer %s: %d certificates, %d of them revoked\n", issuer.Name, len(from.Issued), from.Revoked())
	return nil
}
