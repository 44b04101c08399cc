package cli

import (
	"context"
	"encoding/pem"
	"fmt"

	"chancery/client"
	"chancery/internal/pki/crl"
)

type poolTrustCommands struct {
	List poolTrustListCommand `cmd:"" help:"List what the hosts of a pool trust, for each purpose."`
	Add  poolTrustAddCommand  `cmd:"" help:"Add certificates: of CAs, or with --pinned single ones that are trusted as they are."`
	Drop poolTrustDropCommand `cmd:"" help:"Take a certificate out. While hosts present certificates under it this is refused, and they are named."`
	CRL  poolTrustCRLCommand  `cmd:"" name:"crl" help:"Bring in the newest CRL of a CA that is none of the authority's."`
}

type poolTrustListCommand struct {
	Pool    string `arg:"" name:"POOL" help:"The pool."`
	Purpose string `placeholder:"P" help:"Only what is for one purpose."`
	PEM     bool   `name:"pem" help:"Print the certificates, in PEM."`
}

// Run lists what a pool trusts.
func (c *poolTrustListCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	entries := api.Trust(ctx, c.Pool, c.Purpose)
	if !c.PEM || g.Output == "json" {
		return list(g, entries, trustHeader, trustLine)
	}
	for e, err := range entries {
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(g.Out, "# %s %s %s: %s\n%s", e.Purpose, e.Kind, e.Fingerprint, printable(e.Subject), e.PEM); err != nil {
			return err
		}
	}
	return nil
}

const trustHeader = "SHA256 PURPOSE KIND STATE EXPIRES CRL-UNTIL SUBJECT"

// subjectWidth is how much of a subject a line of 120 columns has room for; -o json and --pem have all of it.
const subjectWidth = 44

// trustLine is an entry on a line. The beginning of the SHA-256 is enough to name it to drop and crl.
func trustLine(e client.TrustEntry) []string {
	subject := e.Subject
	if e.Issuer != "" {
		subject = "issuer " + e.Issuer
	}
	if e.Host != "" {
		subject = e.Host + ", " + e.Comment
	}
	if letters := []rune(subject); len(letters) > subjectWidth && e.State != "announced" {
		subject = string(letters[:subjectWidth-1]) + "…"
	}
	return []string{e.Fingerprint[:min(16, len(e.Fingerprint))], e.Purpose, e.Kind, e.State, day(e.NotAfter), day(e.NextUpdate), subject}
}

type poolTrustAddCommand struct {
	Pool    string `arg:"" name:"POOL" help:"The pool."`
	File    string `arg:"" name:"F" help:"The certificates, in PEM; - for standard input. All are added, or none."`
	Purpose string `default:"general" placeholder:"P" help:"What they are trusted for: general, or a name that recipes use, such as ldaps or licensing."`
	Pinned  bool   `help:"Trust the certificates as they are, and nothing below them."`
	Comment string `placeholder:"TEXT" help:"Why they are trusted."`
}

// Run adds to what a pool trusts.
func (c *poolTrustAddCommand) Run(ctx context.Context, g *globals) error {
	text, err := g.readAll(c.File)
	if err != nil {
		return err
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	added, err := api.AddTrust(ctx, c.Pool, client.AddTrustRequest{Purpose: c.Purpose, Pinned: c.Pinned, PEM: string(text), Comment: c.Comment})
	if err != nil {
		return err
	}
	return list(g, func(yield func(client.TrustEntry, error) bool) {
		for _, e := range added {
			if !yield(e, nil) {
				return
			}
		}
	}, trustHeader, trustLine)
}

type poolTrustDropCommand struct {
	Pool    string `arg:"" name:"POOL" help:"The pool."`
	Entry   string `arg:"" name:"ENTRY" help:"The SHA-256 of the certificate or its first 12 digits, or the entry's ID."`
	Because string `placeholder:"TEXT" help:"Why it is dropped although it is in use; the audit keeps it."`
}

// Run takes something out of what a pool trusts.
func (c *poolTrustDropCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	if err := api.DropTrust(ctx, c.Pool, c.Entry, client.DropTrustRequest{Because: c.Because}); err != nil {
		return err
	}
	g.say("hosts of pool %s trust %s no longer, each as soon as its agent has placed that", printable(c.Pool), printable(c.Entry))
	return nil
}

type poolTrustCRLCommand struct {
	Pool  string `arg:"" name:"POOL" help:"The pool."`
	Entry string `arg:"" name:"ENTRY" help:"The SHA-256 of the CA certificate or its first 12 digits, or the entry's ID."`
	File  string `arg:"" name:"F" help:"The CRL, in PEM or DER; - for standard input."`
}

// Run brings in a CRL.
func (c *poolTrustCRLCommand) Run(ctx context.Context, g *globals) error {
	text, err := g.readAll(c.File)
	if err != nil {
		return err
	}
	der, err := crl.FromPEM(text)
	if err != nil {
		return err
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	e, err := api.AddTrustCRL(ctx, c.Pool, c.Entry, client.UploadCRLRequest{CRL: string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))})
	if err != nil {
		return err
	}
	return g.show(e, field{"entry", e.ID}, field{"subject", printable(e.Subject)}, field{"sha256", e.Fingerprint}, field{"purpose", e.Purpose},
		field{"kind", e.Kind}, field{"CRL number", e.CRLNumber}, field{"CRL until", stamp(e.NextUpdate)})
}
