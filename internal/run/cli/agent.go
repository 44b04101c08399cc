package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/coreos/go-systemd/v22/daemon"

	"chancery/client"
	"chancery/internal/agent/loop"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

type agentCommands struct {
	Join     agentJoinCommand     `cmd:"" help:"Enrol this host with the one-time token in --token-file."`
	Run      agentRunCommand      `cmd:"" help:"Hold what the authority wants this host to hold: issue, place, reload, probe, report."`
	Status   agentStatusCommand   `cmd:"" help:"Show what is placed, served, due and wrong on this host; reaches nothing."`
	CSR      agentCSRCommand      `cmd:"" name:"csr" help:"Make a key here and print the request for it, for a host that does not reach the authority."`
	Place    agentPlaceCommand    `cmd:"" help:"Place what a bundle brings for a key that is here."`
	Repair   agentRepairCommand   `cmd:"" help:"End what a crash left in the middle, from the journal; reaches nothing."`
	Readable agentReadableCommand `cmd:"" hidden:"" help:"Try to read a file as another user."`
}

// stateFlag is the directory of the agent.
type stateFlag struct {
	State string `type:"path" env:"CHANCERY_STATE" default:"/var/lib/chancery-agent" placeholder:"S" help:"State directory of the agent."`
}

func (f stateFlag) options(g *globals) loop.Options {
	return loop.Options{State: f.State, Version: version}
}

type agentJoinCommand struct {
	stateFlag `embed:""`
	Root      string `type:"path" placeholder:"R" help:"Put before every path that is placed, from now on; / when not given."`
	Again     bool   `help:"Take a new identity where the host has one: after host replace, or because the old one ended."`
}

// Run enrols the host. The token is the one of --token-file, which elsewhere is a caller's own.
func (c *agentJoinCommand) Run(ctx context.Context, g *globals) error {
	if g.TokenFile == "" {
		return usage("agent join needs --token-file: a file that holds the join token, or - for standard input")
	}
	if err := ownerOnly(g.TokenFile, "a join token"); err != nil {
		// Whoever read it can at most join before us, and then we are refused and the authority's record names the other key.
		g.say("warning: %v", err)
	}
	token, err := g.secret(g.TokenFile, "join token")
	if err != nil {
		return err
	}
	joined, err := loop.Join(ctx, loop.JoinOptions{State: c.State, Root: c.Root, Token: string(token), Again: c.Again, Version: version})
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(joined)
	}
	g.say("joined as %s; the identity ends on %s and renews itself", printable(joined.Host), stamp(joined.Ends))
	return nil
}

type agentRunCommand struct {
	stateFlag `embed:""`
	Once      bool      `help:"Converge once and end: with 0 when every placement is in place, and probed where it can be."`
	Adopt     adoptFlag `placeholder:"PLACEMENT" help:"With --once, take over files that are there and are not the agent's, and keep a copy of each; of one placement with --adopt=PLACEMENT."`
}

// adoptFlag is --adopt, for every placement, or --adopt=PLACEMENT.
type adoptFlag string

// IsBool says that the flag may stand without a value.
func (*adoptFlag) IsBool() bool { return true }

// Decode takes the value where there is one.
func (f *adoptFlag) Decode(ctx *kong.DecodeContext) error {
	*f = loop.AdoptAll
	if ctx.Scan.Peek().Type != kong.FlagValueToken {
		return nil
	}
	name, _ := ctx.Scan.Pop().Value.(string)
	if name == "" {
		return errors.New("--adopt= needs the name of a placement; --adopt alone is for all of them")
	}
	*f = adoptFlag(name)
	return nil
}

// Run converges once, or until it is told to stop.
func (c *agentRunCommand) Run(ctx context.Context, g *globals) error {
	if c.Adopt != "" && !c.Once {
		return usage("--adopt is for one pass that somebody looks at: give --once too; adopt: true in agent.yaml is for good")
	}
	loop.Frugal()
	logger, end := g.logger("info")
	o := c.options(g)
	o.Alone, o.Adopt = true, string(c.Adopt)
	if !c.Once {
		o.Logger = logger
	}
	agent, err := loop.New(o)
	if err != nil {
		return errors.Join(err, end())
	}
	if c.Once {
		return errors.Join(c.once(ctx, g, agent), agent.Close(), end())
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // nothing to do where there is no systemd
	return errors.Join(agent.Run(ctx), agent.Close(), end())
}

func (c *agentRunCommand) once(ctx context.Context, g *globals, agent *loop.Agent) error {
	stop := g.progress("converging")
	result, err := agent.Once(ctx)
	stop()
	if err != nil {
		return err
	}
	known := func(o client.Observation) bool { return o.Placement == string(c.Adopt) }
	if c.Adopt != "" && c.Adopt != loop.AdoptAll && !slices.ContainsFunc(result.Observations, known) {
		g.say("warning: nothing was adopted: this host has no placement %s", printable(string(c.Adopt)))
	}
	return g.converged(result)
}

// converged prints what a pass saw, and fails where not everything is in place.
func (g *globals) converged(result *loop.Result) error {
	for _, p := range result.Problems {
		g.say("warning: %s", printable(p))
	}
	if g.Output == "json" {
		if err := g.json(result); err != nil {
			return err
		}
	} else if err := g.observations(result.Observations); err != nil {
		return err
	}
	if !result.Done() {
		return fault.New(fault.Conflict, "%s", result)
	}
	return nil
}

func (g *globals) observations(all []client.Observation) error {
	rows := func(yield func(client.Observation, error) bool) {
		for _, o := range all {
			if !yield(o, nil) {
				return
			}
		}
	}
	err := list(g, rows, "PLACEMENT STATE PLACED SERVED EXPIRES RE-KEY", func(o client.Observation) []string {
		return []string{o.Placement, o.State, orDash(o.Serial), orDash(o.Served), day(o.NotAfter), day(o.RekeyAt)}
	})
	for _, o := range all {
		if o.Message != "" {
			g.say("%s: %s", printable(o.Placement), printable(o.Message))
		}
		for _, r := range o.Repaired {
			g.say("%s: repaired: %s", printable(o.Placement), printable(r))
		}
	}
	return err
}

type agentStatusCommand struct {
	stateFlag `embed:""`
}

// Run reads the state directory and nothing else.
func (c *agentStatusCommand) Run(g *globals) error {
	status, err := loop.Look(c.State, time.Now())
	if errors.Is(err, os.ErrNotExist) {
		return fault.New(fault.NotFound, "there is no agent's state in %s", c.State).
			WithHint("chancery agent join --token-file F --state %s makes it", c.State)
	}
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(status)
	}
	running := "no"
	if status.Running {
		running = "yes"
	}
	err = g.show(status, field{"host", printable(status.Host)}, field{"authority", printable(status.Address)}, field{"state", status.State},
		field{"root", status.Root}, field{"running", running}, field{"identity ends", stamp(status.IdentityEnds)},
		field{"identity renewed from", stamp(status.IdentityDue)}, field{"trust", trustVersion(status.Trust)})
	if err != nil {
		return err
	}
	if len(status.Placements) > 0 {
		fmt.Fprintln(g.Out)
	}
	if err := c.placements(g, status); err != nil {
		return err
	}
	for _, p := range status.Placements {
		if p.Observed.AllowList != "" {
			fmt.Fprintf(g.Out, "\n%s, for the consumer's list of names:\n  %s\n", printable(p.Name), printable(p.Observed.AllowList))
		}
	}
	for _, p := range status.Placements {
		for _, serial := range p.Waiting {
			fmt.Fprintf(g.Out, "%s: certificate %s waits until all who pin it hold it\n", printable(p.Name), printable(serial))
		}
	}
	for _, wrong := range status.Wrong {
		fmt.Fprintln(g.Out, "wrong:", printable(wrong))
	}
	return nil
}

func (c *agentStatusCommand) placements(g *globals, status *loop.Status) error {
	if len(status.Placements) == 0 {
		return nil
	}
	rows := func(yield func(loop.PlacementStatus, error) bool) {
		for _, p := range status.Placements {
			if !yield(p, nil) {
				return
			}
		}
	}
	return list(g, rows, "PLACEMENT RECIPE STATE PLACED SERVED EXPIRES RE-KEY ISSUER TRUST", func(p loop.PlacementStatus) []string {
		o, state := p.Observed, p.Observed.State
		switch {
		case p.Gone:
			state = "not desired"
		case len(p.Wanted) > 0:
			state += ", wants " + strings.Join(p.Wanted, " ")
		}
		return []string{p.Name, p.Recipe, state, orDash(o.Serial), orDash(o.Served), day(o.NotAfter), day(o.RekeyAt),
			cmp.Or(p.Issuer, short(o.Issuer)), orDash(trustVersion(o.Trust))}
	})
}

type agentCSRCommand struct {
	stateFlag   `embed:""`
	Recipe      string   `arg:"" name:"RECIPE" help:"NAME[:key=value,…]"`
	Name        string   `placeholder:"HOST" help:"Name of this host; what the authority said when not given."`
	DNS         []string `name:"dns" placeholder:"N" help:"Other name of this host. May be repeated."`
	IP          []string `name:"ip" placeholder:"A" help:"Address of this host. May be repeated."`
	Authority   string   `placeholder:"CN" help:"Common name of the pool's root, for recipes that put it into the subject."`
	Certificate string   `placeholder:"ID" help:"Which certificate, where the recipe has several."`
	Root        string   `type:"path" placeholder:"R" help:"Put before every path that is placed, from now on; / when not given."`
	Out         string   `type:"path" placeholder:"F" help:"File to write; standard output when not given."`
}

// Run makes the key and prints the request.
func (c *agentCSRCommand) Run(ctx context.Context, g *globals) error {
	order, err := recipe.ParseOrder(c.Recipe)
	if err != nil {
		return err
	}
	if err := absent(c.Out); err != nil {
		return err
	}
	o := c.options(g)
	o.Root = c.Root
	agent, err := loop.New(o)
	if err != nil {
		return err
	}
	defer agent.Close()
	host := recipe.Host{Name: c.Name, IP: c.IP, Authority: c.Authority}
	if c.Name != "" {
		host.DNS = append([]string{c.Name}, c.DNS...)
	}
	csr, err := agent.CSR(ctx, loop.CSROrder{Placement: order, Certificate: c.Certificate, Host: host})
	if err != nil {
		return err
	}
	return g.write(c.Out, []byte(csr), 0o644)
}

type agentPlaceCommand struct {
	stateFlag `embed:""`
	Offline   string `required:"" type:"path" placeholder:"BUNDLE" help:"Bundle that chancery cert issue --bundle wrote."`
	Adopt     bool   `help:"Take over files that are there and are not the agent's, and keep a copy of each."`
}

// Run places a bundle.
func (c *agentPlaceCommand) Run(ctx context.Context, g *globals) error {
	text, err := g.readAll(c.Offline)
	if err != nil {
		return err
	}
	bundle, err := loop.ParseBundle(text)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Offline, err)
	}
	o := c.options(g)
	if c.Adopt {
		o.Adopt = loop.AdoptAll
	}
	agent, err := loop.New(o)
	if err != nil {
		return err
	}
	defer agent.Close()
	result, err := agent.PlaceOffline(ctx, bundle)
	if err != nil {
		return err
	}
	return g.converged(result)
}

type agentRepairCommand struct {
	stateFlag `embed:""`
}

// Run ends what was left in the middle.
func (c *agentRepairCommand) Run(ctx context.Context, g *globals) error {
	if _, err := os.Stat(c.State); errors.Is(err, os.ErrNotExist) {
		return nil // no agent was here, so it left nothing: the unit runs at every boot
	}
	mended, err := loop.Repair(ctx, c.options(g))
	for _, m := range mended {
		g.say("repaired: %s", printable(m))
	}
	return err
}

type agentReadableCommand struct {
	Args []string `arg:"" passthrough:""`
}

// Run is the child of the agent that becomes another user; what it prints is for the agent.
func (c *agentReadableCommand) Run() error {
	if code := probe.ReadableMain(c.Args); code != 0 {
		os.Exit(code)
	}
	return nil
}
