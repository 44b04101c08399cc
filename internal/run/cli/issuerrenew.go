package cli

import (
	"context"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
)

type issuerRenewCommand struct {
	issuerArg      `embed:""`
	Validity       string `placeholder:"V" help:"How long, such as 10y; as long as the certificate before when not given, and never beyond the issuer above."`
	KeyFile        string `type:"path" placeholder:"F" help:"The key of the offline root above it, which signs here."`
	PassphraseFile string `placeholder:"F|-" help:"Passphrase of the key."`
	CSROut         string `type:"path" name:"csr-out" placeholder:"F" help:"Write a request for the outside root above it, and change nothing."`
	Certificate    string `type:"path" name:"certificate" placeholder:"F" help:"The certificate that the outside root made."`
	ChainFile      string `type:"path" placeholder:"F" help:"With --certificate: those above it that are not here."`
}

// Run renews an issuer.
func (c *issuerRenewCommand) Run(ctx context.Context, g *globals) error {
	switch {
	case c.CSROut != "" && (c.KeyFile != "" || c.Certificate != "" || c.Validity != ""):
		return usage("--csr-out makes a request, and goes with no --key-file, --certificate or --validity; the root says how long")
	case c.Certificate != "" && (c.KeyFile != "" || c.Validity != ""):
		return usage("--certificate brings in what is signed already, and goes with no --key-file or --validity")
	case c.ChainFile != "" && c.Certificate == "":
		return usage("--chain-file is what stands above the one that --certificate names")
	case c.PassphraseFile != "" && c.KeyFile == "":
		return usage("--passphrase-file is of the key that --key-file names")
	}
	if err := absent(c.CSROut); err != nil {
		return err
	}
	in, err := c.request(g)
	if err != nil {
		return err
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	if c.CSROut != "" {
		csr, err := api.RenewalRequest(ctx, c.Issuer)
		if err != nil {
			return err
		}
		return g.write(c.CSROut, csr, 0o644)
	}
	if c.KeyFile != "" {
		if in.Certificate, err = c.byOfflineRoot(ctx, g, api); err != nil {
			return err
		}
		in.Validity = ""
	}
	before, err := api.Issuer(ctx, c.Issuer)
	if err != nil {
		return err
	}
	issuer, err := api.RenewIssuer(ctx, c.Issuer, in)
	if err != nil {
		return err
	}
	switch {
	case before.State == "retired":
		g.say("issuer %s was retired, and issues again", issuer.Name)
	case issuer.Serial == before.Serial:
		g.say("issuer %s has this certificate already; nothing was changed", issuer.Name)
	}
	return g.showIssuer(issuer)
}

func (c *issuerRenewCommand) request(g *globals) (in client.RenewIssuerRequest, err error) {
	in.Validity = c.Validity
	for _, file := range []struct {
		name string
		to   *string
	}{{c.Certificate, &in.Certificate}, {c.ChainFile, &in.Chain}} {
		if file.name == "" {
			continue
		}
		text, err := g.readAll(file.name)
		if err != nil {
			return in, err
		}
		*file.to = string(text)
	}
	return in, nil
}

// byOfflineRoot has the root sign whose key is in a file here. The key never leaves this process.
func (c *issuerRenewCommand) byOfflineRoot(ctx context.Context, g *globals, api *client.Client) (string, error) {
	issuer, err := api.Issuer(ctx, c.Issuer)
	if err != nil {
		return "", err
	}
	if issuer.Parent == "" {
		return "", fault.New(fault.Conflict, "what signed issuer %s is no issuer of this authority", issuer.Name).
			WithHint("chancery issuer renew %s --csr-out F, and have it signed there", issuer.Name)
	}
	before, err := certificateOf(ctx, api, issuer.Name)
	if err != nil {
		return "", err
	}
	above, err := certificateOf(ctx, api, issuer.Parent)
	if err != nil {
		return "", err
	}
	key, err := g.offlineKey(c.KeyFile, c.PassphraseFile)
	if err != nil {
		return "", err
	}
	r, err := root.Open(above, key)
	if err != nil {
		return "", err
	}
	var validity time.Duration
	if c.Validity != "" {
		if validity, err = lengthOf(c.Validity); err != nil {
			return "", err
		}
	}
	links, err := publishedBy(ctx, api, issuer.Parent)
	if err != nil {
		return "", err
	}
	signed, err := r.RenewIssuer(before, validity, links, time.Now())
	if err != nil {
		return "", err
	}
	return string(keyfile.EncodeCertificates(signed)), nil
}
