package cli

import (
	"context"
	"crypto"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
	"chancery/internal/store/keys"
)

type poolCommands struct {
	Add  poolAddCommand  `cmd:"" help:"Add a pool: its root is made here and its key written to --root-file, its issuer's key is made by the node."`
	List poolListCommand `cmd:"" help:"List the pools."`
	Show poolShowCommand `cmd:"" help:"Show a pool."`

	Trust poolTrustCommands `cmd:"" help:"What the hosts of a pool trust: its own roots and issuers, and what is added here."`
}

type poolAddCommand struct {
	Name            string   `arg:"" name:"NAME" help:"Its name: 1 to 56 characters of a-z, 0-9 and -, the first and last not -."`
	RootFile        string   `type:"path" placeholder:"F" help:"File to write the root's key to, sealed with a passphrase; take it off this machine."`
	Root            string   `enum:"offline,online" default:"offline" help:"Where the root's key is kept: offline in --root-file, or online, sealed in the authority."`
	PassphraseFile  string   `placeholder:"F|-" help:"Passphrase to seal the root's key with; asked for on a terminal when not given."`
	Organization    string   `aliases:"org" placeholder:"O" help:"Organization in the names of the root and the issuer."`
	Algorithm       string   `default:"p256" help:"Of the root's and the issuer's key: p256, p384, p521, rsa2048, rsa3072, rsa4096 or ed25519."`
	Validity        string   `default:"20y" help:"How long the root lasts."`
	NameConstraints []string `name:"name-constraint" placeholder:"C" help:"Names permitted below the root, +dns:example.com, or excluded, !ip:10.0.0.0/8. May be repeated."`
}

// Run adds a pool. The node makes the issuer's key and a request; the root is made in this process and signs it; what the
// root signed goes back to the node, its key goes to a file.
func (c *poolAddCommand) Run(ctx context.Context, g *globals) error {
	if (c.Root == "offline") != (c.RootFile != "") {
		return usage("give --root-file F for an offline root, or --root online")
	}
	if err := absent(c.RootFile); err != nil {
		return err
	}
	o, key, err := c.prepare()
	if err != nil {
		return err
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	in := client.AddPoolRequest{Name: c.Name, Organization: c.Organization, Algorithm: c.Algorithm}
	if c.Root == "online" {
		in.Online, in.Validity, in.NameConstraints = true, c.Validity, c.NameConstraints
		pool, err := api.AddPool(ctx, in)
		if err != nil {
			return err
		}
		return g.showPool(pool)
	}
	passphrase, err := g.newPassphrase(c.PassphraseFile)
	if err != nil {
		return err
	}
	pool, err := addPending(ctx, api, in)
	if err != nil {
		return err
	}
	complete, err := c.signPool(pool, o, key, passphrase)
	if err != nil {
		return fmt.Errorf("pool %s waits for its root: %w", c.Name, err)
	}
	if pool, err = api.CompletePool(ctx, c.Name, *complete); err != nil {
		return fmt.Errorf("the root's key is in %s, but the node did not take what it signed: %w", c.RootFile, err)
	}
	g.say("the root's key is in %s: take it off this machine", c.RootFile)
	return g.showPool(pool)
}

// prepare makes the root's key and judges its options, before anything is made at the node: the name alone is missing, and
// comes with the issuer's request.
func (c *poolAddCommand) prepare() (o root.Options, key crypto.Signer, err error) {
	algorithm, err := keyfile.ParseAlgorithm(c.Algorithm)
	if err != nil {
		return o, nil, err
	}
	o.PathLen = 1
	if o.Validity, err = lengthOf(c.Validity); err != nil {
		return o, nil, err
	}
	if o.Constraints, err = root.ParseConstraints(c.NameConstraints); err != nil {
		return o, nil, err
	}
	if key, err = keyfile.Generate(algorithm, 0); err != nil {
		return o, nil, err
	}
	trial := o
	trial.Subject = cert.CommonName(c.Name + " root")
	_, err = root.New(trial, key, time.Now())
	return o, key, err
}

// addPending adds a pool that waits for its root, or finds the one that an earlier call left waiting.
func addPending(ctx context.Context, api *client.Client, in client.AddPoolRequest) (*client.Pool, error) {
	pool, err := api.AddPool(ctx, in)
	if !client.IsKind(err, string(fault.Conflict)) {
		return pool, err
	}
	waiting, lookup := api.Pool(ctx, in.Name)
	if lookup != nil || waiting.State != "pending" {
		return nil, err
	}
	return waiting, nil
}

// signPool makes the root, has it sign the issuer's request and its first CRL, and writes its key to a file. The file is
// on disk before anything of the root leaves this process.
func (c *poolAddCommand) signPool(pool *client.Pool, o root.Options, key crypto.Signer, passphrase []byte) (*client.CompletePoolRequest, error) {
	if pool.Issuer == nil || pool.Issuer.CSR == "" {
		return nil, fmt.Errorf("the node gave no request to sign")
	}
	csr, err := cert.CSRLimits{}.ParsePEM([]byte(pool.Issuer.CSR))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	o.Subject = rootName(csr.Subject, c.Name)
	r, err := root.New(o, key, now)
	if err != nil {
		return nil, err
	}
	issuer, err := r.SignIssuer(root.Options{Subject: csr.Subject}, csr.SPKI, cert.Issuer{}, now)
	if err != nil {
		return nil, err
	}
	list, err := r.SignCRL(big.NewInt(now.UnixMilli()), nil, now, 0)
	if err != nil {
		return nil, err
	}
	sealed, err := keys.SealOffline(key, passphrase)
	if err != nil {
		return nil, err
	}
	if err := keyfile.WriteFile(c.RootFile, sealed, 0o600); err != nil {
		return nil, err
	}
	return &client.CompletePoolRequest{
		Root:   string(keyfile.EncodeCertificates(r.Certificate)),
		Issuer: string(keyfile.EncodeCertificates(issuer)),
		CRL:    string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list})),
	}, nil
}

// rootName is the issuer's name with the root's own common name.
func rootName(issuer cert.Name, pool string) cert.Name {
	name := cert.CommonName(pool + " root")
	for _, organization := range issuer.Attributes(cert.OIDOrganization) {
		name = append(cert.Name{{{Type: cert.OIDOrganization, Value: organization}}}, name...)
	}
	return name
}

// newPassphrase reads the passphrase for a key that is to be sealed; on a terminal it is asked for twice.
func (g *globals) newPassphrase(file string) ([]byte, error) {
	if file != "" {
		return g.secret(file, "passphrase")
	}
	first, err := g.ask("New passphrase for the root's key: ")
	if err != nil {
		return nil, err
	}
	second, err := g.ask("The same again: ")
	if err != nil {
		return nil, err
	}
	if string(first) != string(second) {
		return nil, fault.New(fault.Invalid, "the two passphrases differ")
	}
	return first, nil
}

type poolListCommand struct{}

// Run lists the pools.
func (c *poolListCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	return list(g, api.Pools(ctx), "NAME STATE ROOT ISSUER CREATED", func(p client.Pool) []string {
		name := func(i *client.Issuer) string {
			if i == nil {
				return "-"
			}
			return i.Name
		}
		return []string{p.Name, p.State, name(p.Root), name(p.Issuer), day(p.CreatedAt)}
	})
}

type poolShowCommand struct {
	Name string `arg:"" name:"NAME" help:"The pool."`
}

// Run shows a pool.
func (c *poolShowCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	pool, err := api.Pool(ctx, c.Name)
	if err != nil {
		return err
	}
	return g.showPool(pool)
}

func (g *globals) showPool(p *client.Pool) error {
	fields := []field{{"name", p.Name}, {"state", p.State}}
	if p.Root != nil {
		fields = append(fields, field{"root", p.Root.Name}, field{"root subject", printable(p.Root.Subject)}, field{"root until", stamp(p.Root.NotAfter)},
			field{"root sha256", p.Root.Fingerprint})
	}
	if p.Issuer != nil {
		fields = append(fields, field{"issuer", p.Issuer.Name}, field{"issuer subject", printable(p.Issuer.Subject)}, field{"issuer until", stamp(p.Issuer.NotAfter)})
	}
	return g.show(p, fields...)
}
