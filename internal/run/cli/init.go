package cli

import (
	"context"
	"fmt"
	"time"

	"chancery/internal/authority/importer"
	"chancery/internal/pki/keyfile"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

type initCommand struct {
	Organization string `default:"Chancery" placeholder:"O" help:"In the names of the roots and issuers."`
	Listen       string `placeholder:"ADDR:PORT" help:"Where the API listens; the host of --address when that is an IP address, else loopback."`
	PublicURL    string `name:"public-url" placeholder:"http://NAME" help:"Stable prefix of the CRL, OCSP and CA URLs in certificates; never a node's own address."`
	PublicListen string `placeholder:"ADDR:PORT" help:"Where they are served, by plain http."`
	Metrics      string `name:"metrics-listen" placeholder:"ADDR:PORT" help:"Where metrics and health are served, by plain http."`
	DatabaseFile string `type:"path" placeholder:"F" help:"File (mode 0600) with a PostgreSQL URL; SQLite in --dir when not given."`
	Node         string `default:"node1" help:"Name of the first node."`

	Root           string   `enum:"offline,online" default:"offline" help:"Where the roots' keys are kept: offline in sealed files, or online, sealed in the authority."`
	PassphraseFile string   `placeholder:"F|-" help:"Passphrase that seals the offline keys; one is made when not given."`
	Key            string   `placeholder:"URI" help:"Key of the default pool's issuer, which lies in a PKCS #11 token: pkcs11:token=T;object=O?module-path=F&pin-source=F (RFC 7512)."`
	Algorithm      string   `default:"p256" help:"Of the roots and issuers: p256, p384, p521, rsa2048, rsa3072, rsa4096 or ed25519."`
	PathLen        *int     `placeholder:"N" help:"Path length of the default pool's root; 1 when not given."`
	NameConstraint []string `placeholder:"C" help:"Names permitted below the default pool's root, +dns:example.com, or excluded, !ip:10.0.0.0/8. May be repeated."`
	Validity       string   `placeholder:"V" help:"How long the roots last; 20y when not given."`

	RootCSROut string `name:"root-csr-out" type:"path" placeholder:"F" help:"Make no root for the default pool, but a request for an outside root to sign."`
	RootCert   string `type:"path" placeholder:"F" help:"Bring in what the outside root made of that request, with the certificates above it: a second init on the same --dir."`

	ImportCA       string `name:"import-ca" type:"path" placeholder:"F" help:"Go on with a CA that exists: its certificate, its PKCS#12 file, or the directory of an OpenSSL CA."`
	ImportKey      string `type:"path" placeholder:"F" help:"Its key."`
	ImportCRL      string `name:"import-crl" type:"path" placeholder:"F" help:"Its newest CRL: what it lists stays revoked."`
	ImportIssued   string `type:"path" placeholder:"F" help:"A bundle of certificates that it issued."`
	ImportPassword string `name:"import-password-file" placeholder:"F|-" help:"Password of the key or of the PKCS#12 file."`
}

// Run makes the authority.
func (c *initCommand) Run(ctx context.Context, g *globals) error {
	if g.Dir == "" {
		return usage("init needs --dir D")
	}
	if c.RootCert != "" {
		return c.answer(ctx, g)
	}
	o, err := c.options(g)
	if err != nil {
		return err
	}
	if err := absent(c.RootCSROut); err != nil {
		return err
	}
	done := g.progress("making keys")
	result, err := setup.Init(ctx, *o)
	done()
	if err != nil {
		return err
	}
	if c.RootCSROut != "" {
		if err := g.write(c.RootCSROut, result.CSR, 0o644); err != nil {
			return err
		}
	}
	return c.tell(g, result)
}

func (c *initCommand) options(g *globals) (*setup.Options, error) {
	o := &setup.Options{
		Dir: datadir.Dir(g.Dir), Node: c.Node, Organization: c.Organization, Address: g.Address, Listen: c.Listen, PublicURL: c.PublicURL,
		PublicListen: c.PublicListen, Metrics: c.Metrics, DatabaseFile: c.DatabaseFile, Online: c.Root == "online", PathLen: c.PathLen, RecoveryWork: g.recoveryWork,
		Constraints: c.NameConstraint, Outside: c.RootCSROut != "", Token: c.Key,
	}
	var err error
	if o.Algorithm, err = keyfile.ParseAlgorithm(c.Algorithm); err != nil {
		return nil, err
	}
	if c.Validity != "" {
		if o.Validity, err = lengthOf(c.Validity); err != nil {
			return nil, err
		}
	}
	if c.PassphraseFile != "" {
		if o.Passphrase, err = g.secret(c.PassphraseFile, "passphrase"); err != nil {
			return nil, err
		}
	}
	if c.ImportCA == "" {
		return o, nil
	}
	source := importer.Source{CA: c.ImportCA, Key: c.ImportKey, CRL: c.ImportCRL, Issued: c.ImportIssued, Token: c.Key}
	if c.ImportPassword != "" {
		if source.Password, err = g.secret(c.ImportPassword, "password"); err != nil {
			return nil, err
		}
	}
	if o.Import, err = importer.Read(source, time.Now()); err != nil {
		return nil, fmt.Errorf("import %s: %w", c.ImportCA, err)
	}
	return o, nil
}

func (c *initCommand) tell(g *globals, r *setup.Result) error {
	if g.Output == "json" {
		return g.json(map[string]any{
			"dir": r.Dir, "identity_root_sha256": r.Fingerprint, "offline": r.Offline, "passphrase_file": r.Passphrase, "warnings": r.Warnings,
		})
	}
	fmt.Fprintf(g.Out, "An authority is in %s.\n", r.Dir)
	fmt.Fprintf(g.Out, "Identity root, SHA-256: %s\n", r.Fingerprint)
	if len(r.Offline) > 0 {
		fmt.Fprintln(g.Out, "\nTake these off this machine, to two places that are safe and apart; a node never needs them:")
		for _, file := range r.Offline {
			fmt.Fprintln(g.Out, " ", file)
		}
	}
	if r.Passphrase != "" {
		fmt.Fprintln(g.Out, "The passphrase opens the others: keep it elsewhere than them.")
	}
	for _, w := range r.Warnings {
		fmt.Fprintln(g.Out, "\nNote:", w)
	}
	if c.RootCSROut != "" {
		fmt.Fprintf(g.Out, "\nHave the outside root sign %s, then: chancery init --dir %s --root-cert ANSWER\n", c.RootCSROut, r.Dir)
	}
	fmt.Fprintf(g.Out, "\nNext: chancery serve --dir %s\n", r.Dir)
	return nil
}

// answer brings in what the outside root made, on an authority that is not being served; a node takes it by issuer import.
func (c *initCommand) answer(ctx context.Context, g *globals) error {
	text, err := g.readAll(c.RootCert)
	if err != nil {
		return err
	}
	certificates, err := keyfile.ParseCertificates(text)
	if err != nil {
		return fmt.Errorf("%s: %w", c.RootCert, err)
	}
	issuer, err := setup.Answer(ctx, datadir.Dir(g.Dir), certificates)
	if err != nil {
		return err
	}
	fmt.Fprintf(g.Out, "issuer %s is active, valid until %s\n", issuer.Name, stamp(issuer.Certificate.NotAfter))
	return nil
}
