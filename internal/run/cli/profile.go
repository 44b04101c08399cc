package cli

import (
	"context"
	"encoding/pem"
	"fmt"
	"strings"

	"chancery/client"
	"chancery/internal/pki/certtool"
)

type profileCommands struct {
	List   profileListCommand   `cmd:"" help:"List the profiles."`
	Show   profileShowCommand   `cmd:"" help:"Print a profile's text."`
	Save   profileSaveCommand   `cmd:"" help:"Save a new version, when what it would issue passes the lints."`
	Check  profileCheckCommand  `cmd:"" help:"Say what a profile's text would issue; save nothing."`
	Sample profileSampleCommand `cmd:"" help:"Show what a stored profile issues."`
	Retire profileRetireCommand `cmd:"" help:"Have a profile issue nothing more."`
}

type profileListCommand struct {
	Name string `arg:"" optional:"" name:"NAME" help:"List the versions of this one."`
}

// Run lists profiles, or the versions of one.
func (c *profileListCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	profiles := api.Profiles(ctx)
	if c.Name != "" {
		profiles = api.ProfileVersions(ctx, c.Name)
	}
	return list(g, profiles, "NAME VERSION SAVED BY DESCRIPTION", func(p client.Profile) []string {
		return []string{p.Name, itoa(p.Version), day(p.SavedAt), orDash(p.SavedBy), orDash(strings.TrimSpace(p.Description))}
	})
}

type profileShowCommand struct {
	Name    string `arg:"" name:"NAME" help:"The profile."`
	Version int64  `help:"The version; the newest when not given."`
}

// Run prints the text.
func (c *profileShowCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	p, err := api.Profile(ctx, c.Name, c.Version)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(p)
	}
	return g.write("", []byte(p.YAML), 0)
}

type profileSaveCommand struct {
	Name string `arg:"" name:"NAME" help:"The profile."`
	File string `arg:"" name:"FILE" help:"Its text in YAML; - for standard input."`
}

// Run saves a version.
func (c *profileSaveCommand) Run(ctx context.Context, g *globals) error {
	text, err := g.readAll(c.File)
	if err != nil {
		return err
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	p, err := api.SaveProfile(ctx, c.Name, client.ProfileText{YAML: string(text)})
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(p)
	}
	g.say("saved %s, version %d", p.Profile.Name, p.Profile.Version)
	return nil
}

type profileCheckCommand struct {
	File string `arg:"" name:"FILE" help:"The profile's text in YAML; - for standard input."`
}

// Run says what a text would issue.
func (c *profileCheckCommand) Run(ctx context.Context, g *globals) error {
	text, err := g.readAll(c.File)
	if err != nil {
		return err
	}
	return g.sample(func(api *client.Client) (*client.ProfileCheck, error) {
		return api.CheckProfile(ctx, client.ProfileText{YAML: string(text)})
	})
}

type profileRetireCommand struct {
	Name string `arg:"" name:"NAME" help:"The profile."`
}

// Run retires a profile.
func (c *profileRetireCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	p, err := api.RetireProfile(ctx, c.Name)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(p)
	}
	g.say("%s issues nothing more", p.Name)
	return nil
}

type profileSampleCommand struct {
	Name string `arg:"" name:"NAME" help:"The profile."`
}

// Run shows what a stored profile issues.
func (c *profileSampleCommand) Run(ctx context.Context, g *globals) error {
	return g.sample(func(api *client.Client) (*client.ProfileCheck, error) { return api.SampleProfile(ctx, c.Name) })
}

func (g *globals) sample(check func(*client.Client) (*client.ProfileCheck, error)) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	result, err := check(api)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(result)
	}
	for _, s := range result.Samples {
		if err := g.showSample(s); err != nil {
			return err
		}
	}
	return nil
}

// showSample prints what a profile issues to one kind of key, and what the lints say of it.
func (g *globals) showSample(s client.ProfileSample) error {
	g.say("for a key of %s:", s.Algorithm)
	for _, text := range append(s.Findings, s.Warnings...) {
		g.say("  lint: %s", text)
	}
	block, _ := pem.Decode([]byte(s.PEM))
	if block == nil {
		return fmt.Errorf("the node's sample for %s holds no certificate", s.Algorithm)
	}
	return certtool.Print(g.Out, block.Bytes)
}
