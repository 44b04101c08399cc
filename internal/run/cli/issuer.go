package cli

import (
	"context"
	"encoding/pem"
	"fmt"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/certtool"
)

type issuerCommands struct {
	Issue   issuerIssueCommand   `cmd:"" help:"Make an issuer with a new key: a root, under an issuer of this authority, or for an outside root to sign."`
	List    issuerListCommand    `cmd:"" help:"List the issuers."`
	Show    issuerShowCommand    `cmd:"" help:"Show an issuer."`
	CSR     issuerCSRCommand     `cmd:"" name:"csr" help:"Print the request of an issuer that waits for an outside root."`
	Import  issuerImportCommand  `cmd:"" help:"Bring in what an outside root made of an issuer's request."`
	Renew   issuerRenewCommand   `cmd:"" help:"Give an issuer another certificate for its key, which lasts longer."`
	Chain   issuerChainCommand   `cmd:"" help:"Print an issuer's path, its root included."`
	Default issuerDefaultCommand `cmd:"" help:"Make an issuer the one that requests for its pool get."`
	CRLs    issuerCRLsCommand    `cmd:"" name:"crls" help:"Say which CRLs an issuer signs: complete alone, with deltas, or in partitions."`
	Retire  issuerRetireCommand  `cmd:"" help:"End issuance under an issuer; it goes on signing its CRLs."`
	Reopen  issuerReopenCommand  `cmd:"" help:"Have an issuer issue again that was retired, under the certificate that it has."`
}

type issuerIssueCommand struct {
	Name            string   `arg:"" name:"NAME" help:"Its name in this authority: 1 to 63 characters of a-z, 0-9 and -, the first not -."`
	Template        string   `type:"path" placeholder:"T" help:"certtool template with ca."`
	CerttoolCompat  bool     `help:"Read the template as certtool does, silent traps included."`
	Under           string   `aliases:"parent" placeholder:"I" help:"The issuer that signs it; without it a root is made."`
	External        bool     `help:"Make a request for an outside root instead."`
	Subject         string   `placeholder:"DN" help:"Subject (RFC 4514)."`
	Key             string   `placeholder:"URI" help:"Its key, which lies in a PKCS #11 token that the node reaches: pkcs11:token=T;object=O (RFC 7512)."`
	Algorithm       string   `placeholder:"A" help:"p256, p384, p521, rsa2048, rsa3072, rsa4096 or ed25519; p256 when not given."`
	Validity        string   `placeholder:"V" help:"How long, such as 10y."`
	PathLen         *int     `placeholder:"N" help:"How many CA certificates may follow below."`
	NameConstraints []string `name:"name-constraint" placeholder:"C" help:"Names permitted below, +dns:example.com, or excluded, !ip:10.0.0.0/8. May be repeated."`
	Pool            string   `placeholder:"P" help:"The pool it is for: that of --under, which no other passes for, and default without."`
	Default         bool     `help:"Requests for its pool that name no issuer get it."`
	CRLDelta        bool     `name:"crl-delta" help:"Sign delta CRLs."`
	CRLPartitions   int      `name:"crl-partitions" placeholder:"N" help:"Partition the CRL into so many; it never changes."`
	KeyFile         string   `type:"path" placeholder:"F" help:"With --under: the key of an offline root, which signs here."`
	PassphraseFile  string   `placeholder:"F|-" help:"Passphrase of the key."`
	Out             string   `type:"path" placeholder:"F" help:"File to write; standard output when not given."`
}

// Run makes an issuer.
func (c *issuerIssueCommand) Run(ctx context.Context, g *globals) error {
	if c.KeyFile != "" && (c.Under == "" || c.Template != "") {
		return usage("--key-file is the key of the root that --under names, and goes with no template")
	}
	if c.External && c.Under != "" {
		return usage("--external and --under exclude each other")
	}
	if err := absent(c.Out); err != nil {
		return err
	}
	in := client.CreateIssuerRequest{
		Name: c.Name, Kind: "root", Parent: c.Under, Subject: c.Subject, Algorithm: c.Algorithm, Validity: c.Validity, PathLen: c.PathLen,
		NameConstraints: c.NameConstraints, CerttoolCompat: c.CerttoolCompat, Pool: c.Pool, Default: c.Default, Key: c.Key,
		CRL: &client.CRLMode{Delta: c.CRLDelta, Partitions: c.CRLPartitions},
	}
	switch {
	case c.External:
		in.Kind = "external"
	case c.Under != "":
		in.Kind = "intermediate"
	}
	if c.Template != "" {
		text, err := g.readAll(c.Template)
		if err != nil {
			return err
		}
		in.Template = string(text)
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	var issuer *client.Issuer
	if c.KeyFile != "" {
		issuer, err = c.underOfflineRoot(ctx, g, api, in)
	} else {
		issuer, err = api.CreateIssuer(ctx, in)
	}
	if err != nil {
		return err
	}
	text := issuer.PEM
	if in.Kind == "external" {
		text = issuer.CSR
	} else if c.Template != "" && g.Output != "json" {
		if err := g.sections(issuer.PEM); err != nil {
			return err
		}
	}
	if g.Output == "json" && c.Out == "" {
		return g.json(issuer)
	}
	return g.write(c.Out, []byte(text), 0o644)
}

type issuerListCommand struct{}

// Run lists the issuers.
func (c *issuerListCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	return list(g, api.Issuers(ctx), "NAME STATE KEY ALGORITHM EXPIRES UNDER SUBJECT", func(i client.Issuer) []string {
		key, under := "offline", orDash(i.Parent)
		if i.KeyOnline {
			key = "online"
		}
		if i.Root {
			under = "(root)"
		}
		return []string{i.Name, i.State, key, orDash(i.Algorithm), day(i.NotAfter), under, i.Subject}
	})
}

// issuerArg names an issuer.
type issuerArg struct {
	Issuer string `arg:"" name:"ISSUER" help:"Name or ID."`
}

type issuerShowCommand struct {
	issuerArg `embed:""`
	PEM       bool `name:"pem" help:"Print its certificate in PEM."`
	Text      bool `help:"Print its certificate in certtool's sections."`
}

// Run shows an issuer.
func (c *issuerShowCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	issuer, err := api.Issuer(ctx, c.Issuer)
	if err != nil {
		return err
	}
	if c.Text {
		if block, _ := pem.Decode([]byte(issuer.PEM)); block != nil {
			return certtool.Print(g.Out, block.Bytes)
		}
	}
	if c.PEM {
		return g.write("", []byte(issuer.PEM), 0)
	}
	return g.showIssuer(issuer)
}

func (g *globals) showIssuer(i *client.Issuer) error {
	fields := []field{
		{"name", i.Name}, {"id", i.ID}, {"pool", i.Pool}, {"state", i.State}, {"under", i.Parent}, {"subject", printable(i.Subject)},
		{"serial", i.Serial},
		{"algorithm", i.Algorithm}, {"not before", stamp(i.NotBefore)}, {"not after", stamp(i.NotAfter)}, {"sha256", i.Fingerprint},
		{"subject key id", i.KeyID},
	}
	if i.CRL != nil {
		fields = append(fields, field{"CRL", i.CRL.Number}, field{"CRL until", stamp(i.CRL.NextUpdate)})
	}
	for _, f := range i.Former {
		state := f.State
		if state == "" {
			state = "its state is known where it was signed"
		}
		fields = append(fields, field{"before", fmt.Sprintf("%s (%s), until %s; %d placements on %d hosts present it", f.Serial, state, stamp(f.NotAfter), f.Placements, f.Hosts)})
	}
	for _, w := range i.Warnings {
		g.say("warning: %s", printable(w))
	}
	return g.show(i, fields...)
}

type issuerCSRCommand struct {
	issuerArg `embed:""`
	Out       string `type:"path" placeholder:"F" help:"File to write."`
}

// Run prints the request.
func (c *issuerCSRCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	issuer, err := api.Issuer(ctx, c.Issuer)
	if err != nil {
		return err
	}
	if issuer.CSR == "" {
		return fault.New(fault.Conflict, "issuer %s waits for nothing: it is %s", issuer.Name, issuer.State)
	}
	return g.write(c.Out, []byte(issuer.CSR), 0o644)
}

type issuerImportCommand struct {
	issuerArg   `embed:""`
	Certificate string `required:"" type:"path" name:"certificate" placeholder:"F" help:"The certificate that the outside root made."`
	ChainFile   string `type:"path" placeholder:"F" help:"The certificates above it, up to the root."`
}

// Run brings in the answer of an outside root.
func (c *issuerImportCommand) Run(ctx context.Context, g *globals) error {
	certificate, err := g.readAll(c.Certificate)
	if err != nil {
		return err
	}
	in := client.IssuerCertificateRequest{Certificate: string(certificate)}
	if c.ChainFile != "" {
		chain, err := g.readAll(c.ChainFile)
		if err != nil {
			return err
		}
		in.Chain = string(chain)
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	issuer, err := api.ImportIssuerCertificate(ctx, c.Issuer, in)
	if err != nil {
		return err
	}
	return g.showIssuer(issuer)
}

type issuerChainCommand struct {
	issuerArg `embed:""`
	Out       string `type:"path" placeholder:"F" help:"File to write."`
}

// Run prints the path.
func (c *issuerChainCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	chain, err := api.Chain(ctx, c.Issuer)
	if err != nil {
		return err
	}
	return g.write(c.Out, chain, 0o644)
}

type issuerRetireCommand struct {
	issuerArg `embed:""`
}

// Run retires an issuer.
func (c *issuerRetireCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	issuer, err := api.RetireIssuer(ctx, c.Issuer)
	if err != nil {
		return err
	}
	return g.showIssuer(issuer)
}

type issuerReopenCommand struct {
	issuerArg `embed:""`
}

// Run has a retired issuer issue again: it is renewed to the certificate that it has.
func (c *issuerReopenCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	issuer, err := api.Issuer(ctx, c.Issuer)
	if err != nil {
		return err
	}
	if issuer.State == "active" {
		g.say("issuer %s is active already; nothing was changed", issuer.Name)
		return g.showIssuer(issuer)
	}
	if issuer, err = api.RenewIssuer(ctx, c.Issuer, client.RenewIssuerRequest{Certificate: issuer.PEM}); err != nil {
		return err
	}
	return g.showIssuer(issuer)
}

type issuerDefaultCommand struct {
	issuerArg `embed:""`
}

// Run makes an issuer its pool's default.
func (c *issuerDefaultCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	issuer, err := api.SetDefaultIssuer(ctx, c.Issuer)
	if err != nil {
		return err
	}
	return g.showIssuer(issuer)
}

type issuerCRLsCommand struct {
	issuerArg  `embed:""`
	Delta      bool   `xor:"scope" help:"Sign delta CRLs between the complete ones."`
	Partitions int    `xor:"scope" placeholder:"N" help:"Partition the CRL into so many, from 2 on; only before the issuer has issued anything."`
	Validity   string `placeholder:"V" help:"How long a complete CRL lasts; the settings' when not given."`
	Refresh    string `placeholder:"V" help:"How often a new one is signed; the settings' when not given."`

	OnRevocation bool `default:"true" negatable:"" help:"Sign a list as soon as something was revoked (crl_on_revocation), a complete one of more than crl.whole_up_to entries every five minutes at most; with --no-on-revocation at the schedule only."`
}

// Run sets which CRLs an issuer signs.
func (c *issuerCRLsCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	issuer, err := api.SetCRLMode(ctx, c.Issuer, client.CRLMode{
		Delta: c.Delta, Partitions: c.Partitions, Validity: c.Validity, Refresh: c.Refresh, OnRevocation: &c.OnRevocation,
	})
	if err != nil {
		return err
	}
	return g.showIssuer(issuer)
}
