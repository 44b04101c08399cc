package cli

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/term"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
)

type crlCommands struct {
	Issue  crlIssueCommand  `cmd:"" help:"Sign an issuer's CRL now; with --key-file here, for a root whose key is offline."`
	List   crlListCommand   `cmd:"" help:"List an issuer's CRLs, newest first."`
	Show   crlShowCommand   `cmd:"" help:"Show an issuer's CRL."`
	Export crlExportCommand `cmd:"" help:"Write an issuer's CRL to a file."`
}

type crlIssueCommand struct {
	Issuer         string `default:"default" placeholder:"I" help:"Issuer."`
	Template       string `type:"path" placeholder:"T" help:"certtool template with CRL options."`
	CerttoolCompat bool   `help:"Read the template as certtool does."`
	KeyFile        string `type:"path" placeholder:"F" help:"Sign here, with the key of an offline root; the result is uploaded."`
	PassphraseFile string `placeholder:"F|-" help:"Passphrase of the key."`
	Validity       string `placeholder:"V" help:"With --key-file: how long until the next one; 400 days when not given."`
}

// Run signs a CRL.
func (c *crlIssueCommand) Run(ctx context.Context, g *globals) error {
	if c.Template != "" && c.KeyFile != "" {
		return usage("--template and --key-file exclude each other")
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	var signed *client.CRL
	if c.KeyFile != "" {
		signed, err = c.signHere(ctx, g, api)
	} else {
		in := client.IssueCRLRequest{CerttoolCompat: c.CerttoolCompat}
		if c.Template != "" {
			text, err := g.readAll(c.Template)
			if err != nil {
				return err
			}
			in.Template = string(text)
		}
		done := g.progress("signing")
		signed, err = api.IssueCRL(ctx, c.Issuer, in)
		done()
	}
	if err != nil {
		return err
	}
	for _, w := range signed.Warnings {
		g.say("warning: %s", printable(w))
	}
	return g.showCRL(signed)
}

// signHere signs the CRL of an offline root: the entries are those of its last CRL and of what was revoked since, which
// the node knows; the key never leaves this process.
func (c *crlIssueCommand) signHere(ctx context.Context, g *globals, api *client.Client) (*client.CRL, error) {
	issuer, err := api.Issuer(ctx, c.Issuer)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(issuer.PEM))
	if block == nil {
		return nil, fmt.Errorf("issuer %s has no certificate yet", issuer.Name)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, err := g.offlineKey(c.KeyFile, c.PassphraseFile)
	if err != nil {
		return nil, err
	}
	r, err := root.Open(certificate, key)
	if err != nil {
		return nil, err
	}
	draft, err := api.DraftCRL(ctx, issuer.Name)
	if err != nil {
		return nil, err
	}
	entries, err := entriesOf(draft.Entries)
	if err != nil {
		return nil, err
	}
	number, ok := new(big.Int).SetString(draft.Number, 10)
	if !ok {
		return nil, fmt.Errorf("the node's CRLNumber %q is not a number", draft.Number)
	}
	validity := draft.NextUpdate.Sub(draft.ThisUpdate)
	if c.Validity != "" {
		if validity, err = lengthOf(c.Validity); err != nil {
			return nil, err
		}
	}
	der, err := r.SignCRL(number, entries, draft.ThisUpdate, validity)
	if err != nil {
		return nil, err
	}
	return api.UploadCRL(ctx, issuer.Name, client.UploadCRLRequest{CRL: string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))})
}

// entriesOf reads the elements of revokedCertificates that stand one behind the other.
func entriesOf(der []byte) ([]crl.Entry, error) {
	var entries []crl.Entry
	for rest := cryptobyte.String(der); !rest.Empty(); {
		var element cryptobyte.String
		if !rest.ReadASN1Element(&element, asn1.SEQUENCE) {
			return nil, fmt.Errorf("the node's draft has a malformed entry behind %d others", len(entries))
		}
		entry, err := crl.ParseEntry(element)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry)
	}
	return entries, nil
}

func (g *globals) showCRL(c *client.CRL) error {
	return g.show(c, field{"issuer", c.Issuer}, field{"number", c.Number}, field{"scope", c.Scope}, field{"base", c.Base},
		field{"this update", stamp(c.ThisUpdate)}, field{"next update", stamp(c.NextUpdate)}, field{"entries", itoa(c.Entries)}, field{"octets", itoa(c.Size)})
}

type crlListCommand struct {
	Issuer string `arg:"" optional:"" default:"default" name:"ISSUER" help:"Issuer."`
	Scope  string `default:"complete" placeholder:"S" help:"complete, delta, or the number of a partition."`
}

// Run lists CRLs.
func (c *crlListCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	return list(g, api.CRLs(ctx, c.Issuer, c.Scope), "NUMBER SCOPE THIS-UPDATE NEXT-UPDATE ENTRIES OCTETS", func(r client.CRL) []string {
		return []string{r.Number, r.Scope, day(r.ThisUpdate), day(r.NextUpdate), itoa(r.Entries), itoa(r.Size)}
	})
}

type crlShowCommand struct {
	Issuer string `arg:"" optional:"" default:"default" name:"ISSUER" help:"Issuer."`
	Number string `default:"current" placeholder:"N" help:"Its CRLNumber."`
	Scope  string `default:"complete" placeholder:"S" help:"complete, delta, or the number of a partition."`
}

// Run shows a CRL.
func (c *crlShowCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	found, err := api.CRL(ctx, c.Issuer, c.Number, c.Scope)
	if err != nil {
		return err
	}
	return g.showCRL(found)
}

type crlExportCommand struct {
	File   string `arg:"" type:"path" name:"FILE" help:"File to write; - for standard output."`
	Issuer string `default:"default" placeholder:"I" help:"Issuer."`
	Number string `default:"current" placeholder:"N" help:"Its CRLNumber."`
	Scope  string `default:"complete" placeholder:"S" help:"complete, delta, or the number of a partition."`
	Form   string `enum:"pem,der" default:"pem" help:"${enum}."`
}

// Run writes a CRL to a file, and takes the place of the one that is there.
func (c *crlExportCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	return g.toFile(c.File, 0o644, "fetching", func(w writer) error { return api.DownloadCRL(ctx, w, c.Issuer, c.Number, c.Scope, c.Form) })
}

type writer = io.Writer

// toFile streams what is fetched into a new file beside its place and puts it there when it is whole; on standard output
// when there is no name.
func (g *globals) toFile(file string, mode os.FileMode, what string, fetch func(writer) error) error {
	defer g.progress(what)()
	if file == "" || file == "-" {
		return fetch(g.Out)
	}
	return writeWhole(file, mode, fetch)
}

// writeWhole has fetch fill a temporary file beside file, and renames it there once it is whole and on disk. It is for
// what is fetched and may be fetched again; a file that exists is replaced.
func writeWhole(file string, mode os.FileMode, fetch func(writer) error) (err error) {
	temporary, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = temporary.Close()
			_ = os.Remove(temporary.Name())
		}
	}()
	if err := fetch(temporary); err != nil {
		return err
	}
	if err := temporary.Chmod(mode); err != nil {
		return err
	}
	if err := temporary.Sync(); err != nil {
		return err
	}
	if err := temporary.Close(); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), file)
}

// offlineKey opens a root's key file.
func (g *globals) offlineKey(file, passphraseFile string) (crypto.Signer, error) {
	text, err := g.key(file)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	var passphrase []byte
	if passphraseFile != "" {
		if passphrase, err = g.secret(passphraseFile, "passphrase"); err != nil {
			return nil, err
		}
	} else if passphrase, err = g.ask("Passphrase of " + file + ": "); err != nil {
		return nil, err
	}
	key, err := keyfile.ParsePrivateKey(text, passphrase)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return key, nil
}

// ask reads a secret from the terminal without showing it.
func (g *globals) ask(prompt string) ([]byte, error) {
	f, ok := g.In.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, fault.New(fault.Invalid, "there is no terminal to ask for the passphrase on: give --passphrase-file")
	}
	fmt.Fprint(g.Err, prompt)
	secret, err := term.ReadPassword(int(f.Fd()))
	fmt.Fprintln(g.Err)
	if err != nil {
		return nil, fmt.Errorf("read passphrase: %w", err)
	}
	if len(secret) == 0 {
		return nil, fault.New(fault.Invalid, "the passphrase is empty")
	}
	return secret, nil
}
