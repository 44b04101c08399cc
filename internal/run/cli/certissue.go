package cli

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"chancery/client"
	"chancery/internal/pki/certtool"
)

type certIssueCommand struct {
	keySource      `embed:""`
	Template       string   `type:"path" placeholder:"T" help:"certtool template; who is no admin gives the profile it is within as well."`
	Profile        string   `placeholder:"P" help:"Profile."`
	CerttoolCompat bool     `help:"Read the template as certtool does, silent traps included."`
	Issuer         string   `placeholder:"I" help:"Issuer; the default one of --pool when not given."`
	Pool           string   `placeholder:"P" help:"Pool."`
	Subject        string   `placeholder:"DN" help:"Subject (RFC 4514), instead of the request's."`
	Name           []string `aliases:"san" placeholder:"N" help:"Alternative name, instead of the request's: a DNS name or address, or dns:, ip:, email:, uri: and the name. May be repeated."`
	Validity       string   `placeholder:"V" help:"How long, such as 90d; the profile's when not given."`
	NotBefore      string   `placeholder:"TIME" help:"Begin (RFC 3339)."`
	NotAfter       string   `placeholder:"TIME" help:"End (RFC 3339)."`
	Out            string   `aliases:"outfile" type:"path" placeholder:"F" help:"File to write; standard output when not given."`
	Chain          bool     `help:"Write the issuers below the root as well, behind the certificate."`
	Bundle         string   `type:"path" placeholder:"F" help:"Write what a host needs that does not reach the authority: certificate, issuers, trust and CRLs, and no key. For agent place --offline."`
	Submit         bool     `help:"Submit a request, which waits for an officer where the profile does not let the caller have it at once."`
	DryRun         bool     `help:"Say what would be issued, or why not; issue nothing."`
}

// Run issues the certificate. As certtool does, it prints it on standard error on the way.
func (c *certIssueCommand) Run(ctx context.Context, g *globals) error {
	if c.Template == "" && c.Profile == "" {
		return usage("give --template, --profile, or both: then the template must be within the profile")
	}
	in, err := c.order(g)
	if err != nil {
		return err
	}
	if err := errors.Join(absent(c.Out), absent(c.Bundle)); err != nil {
		return err
	}
	if c.Bundle != "" && (c.Submit || c.DryRun) {
		return usage("--bundle is of a certificate that is issued at once: it goes neither with --submit nor with --dry-run")
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	if c.Template != "" && g.Output != "json" {
		fmt.Fprint(g.Err, certtool.GeneratingSigned)
	}
	if c.Submit {
		result, err := api.Submit(ctx, *in)
		if err != nil {
			return err
		}
		return g.issued(result, c.Out, c.Chain, c.Template != "")
	}
	result, err := api.Issue(ctx, *in)
	if err != nil {
		return err
	}
	out := c.Out
	if c.Bundle != "" && result.Certificate != nil {
		if err := g.writeBundle(ctx, api, result.Certificate, c.Bundle); err != nil {
			return err
		}
		if out == "" && g.Output != "json" {
			g.say("issued %s, valid until %s; on the host: chancery agent place --offline %s", result.Certificate.Serial, stamp(result.Certificate.NotAfter), c.Bundle)
			return nil
		}
	}
	return g.issued(result, out, c.Chain, c.Template != "")
}

func (c *certIssueCommand) order(g *globals) (*client.IssueRequest, error) {
	csr, err := c.request(g)
	if err != nil {
		return nil, err
	}
	in := &client.IssueRequest{
		Issuer: c.Issuer, Pool: c.Pool, Profile: c.Profile, CerttoolCompat: c.CerttoolCompat, CSR: csr, Validity: c.Validity, DryRun: c.DryRun,
	}
	if c.Template != "" {
		text, err := g.readAll(c.Template)
		if err != nil {
			return nil, err
		}
		in.Template = string(text)
	}
	if c.Subject != "" || len(c.Name) > 0 {
		in.Names = &client.Names{Subject: c.Subject, SAN: c.Name}
	}
	for _, bound := range []struct {
		flag, text string
		to         **time.Time
	}{{"--not-before", c.NotBefore, &in.NotBefore}, {"--not-after", c.NotAfter, &in.NotAfter}} {
		if bound.text == "" {
			continue
		}
		at, err := time.Parse(time.RFC3339, bound.text)
		if err != nil {
			return nil, usage("%s %q is not of the form 2027-02-28T16:24:41Z", bound.flag, bound.text)
		}
		*bound.to = &at
	}
	return in, nil
}

// issued writes what an issue, renewal or re-key gave. With sections it prints the certificate in certtool's sections.
func (g *globals) issued(result *client.IssueResult, out string, chain, sections bool) error {
	for _, w := range result.Warnings {
		g.say("warning: %s", printable(w))
	}
	if result.Request != nil {
		return g.waits(result.Request)
	}
	c := result.Certificate
	if result.DryRun {
		if result.Pending {
			g.say("an officer would have to decide; would then be issued:")
		} else {
			g.say("would be issued:")
		}
		return g.show(result, certificateFields(c)...)
	}
	if sections && g.Output != "json" {
		if err := g.sections(c.PEM); err != nil {
			return err
		}
		fmt.Fprint(g.Err, certtool.Signing)
	}
	text := c.PEM
	if chain {
		text += c.Chain
	}
	if g.Output == "json" && out == "" {
		return g.json(result)
	}
	if err := g.write(out, []byte(text), 0o644); err != nil {
		return fmt.Errorf("%s is issued, but was not written: %w; chancery cert show %s --pem prints it", c.Serial, err, c.Serial)
	}
	if g.Output == "json" {
		return g.json(result)
	}
	if !sections {
		g.say("issued %s to %s, valid until %s", c.Serial, printable(orDash(c.Subject)), stamp(c.NotAfter))
	}
	return nil
}

func (g *globals) sections(text string) error {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return fmt.Errorf("the node's answer holds no certificate")
	}
	return certtool.PrintUnsigned(g.Err, block.Bytes)
}

// waits tells that an officer must decide.
func (g *globals) waits(r *client.Request) error {
	if g.Output == "json" {
		return g.json(client.IssueResult{Request: r})
	}
	g.say("request %s waits for an officer; when it is approved: chancery request retrieve %s", r.ID, r.ID)
	_, err := fmt.Fprintln(g.Out, r.ID)
	return err
}
