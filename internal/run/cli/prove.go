package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
)

type certProveCommand struct {
	serialArg    `embed:""`
	Timeout      time.Duration `default:"2m" help:"How long to wait for the hosts."`
	Last         bool          `help:"Show the newest proof of it, as it stands now, and begin none."`
	NoControls   bool          `help:"Issue no good certificates to hold refusals against."`
	Twins        bool          `help:"Issue twins although no key is said to be compromised: of what is on hold, or revoked for another reason."`
	Host         []string      `placeholder:"H" help:"Only this host; may be repeated."`
	AllowUntried bool          `help:"Exit 0 although something that has a port was not tried."`
	DryRun       bool          `help:"Show who would try it and who could get a twin, and begin nothing."`
	Yes          bool          `help:"Do not ask before hosts may get twins."`
}

// The pause between two looks at a proof, and that where it is so long that each look costs something.
const (
	proofPoll     = 500 * time.Millisecond
	proofPollLong = 3 * time.Second
	longProof     = 500 // trials
)

// Run has the hosts that should refuse a revoked certificate try it upon their own consumers, and prints who took it. It fails
// unless everything that has a port was seen to refuse the certificate. Like a rollout --compromised it asks first, where hosts
// may get twins, and begins nothing where there is nobody to ask and --yes is not given.
func (c *certProveCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	var found *client.ProofResult
	if c.Last {
		found, err = api.LastProof(ctx, c.Issuer, c.Serial)
	} else if found, err = c.start(ctx, g, api); err == nil && !c.DryRun {
		found, err = c.await(ctx, g, api, found)
	}
	if err != nil {
		return err
	}
	if err := printProof(g, found); err != nil {
		return err
	}
	if c.DryRun && !c.Last {
		sayTwins(g.Err, found, "could get")
		return nil
	}
	return c.verdict(g, found)
}

// start begins the proof, once it is clear who may get a twin for it.
func (c *certProveCommand) start(ctx context.Context, g *globals, api *client.Client) (*client.ProofResult, error) {
	in := client.ProveRequest{NoControls: c.NoControls, Twins: c.Twins, Hosts: c.Host, DryRun: true}
	if c.DryRun || !c.Yes {
		plan, err := api.ProveRevoked(ctx, c.Issuer, c.Serial, in)
		if err != nil || c.DryRun {
			return plan, err
		}
		if len(plan.Twins) > 0 {
			if err := g.confirmTwins(plan); err != nil {
				return nil, err
			}
		}
	}
	in.DryRun = false
	return api.ProveRevoked(ctx, c.Issuer, c.Serial, in)
}

// confirmTwins shows who may get a twin, and asks.
func (g *globals) confirmTwins(plan *client.ProofResult) error {
	if !isTerminal(g.In) {
		return usage("%s may get a twin of %s, and there is no terminal to ask on: look at it with --dry-run, then give --yes", number(len(plan.Twins), "host", "hosts"),
			plan.Serial)
	}
	sayTwins(g.Err, plan, "may get")
	fmt.Fprint(g.Err, "Before consumers that read no CRL they pass for its subject, for an hour. Type yes to go on: ")
	line, err := bufio.NewReader(io.LimitReader(g.In, 1024)).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	if strings.TrimSpace(line) != "yes" {
		return fault.New(fault.Denied, "nothing was begun")
	}
	return nil
}

// namedTwins is how many of the hosts that may get a twin are named; -o json names all.
const namedTwins = 50

func sayTwins(to io.Writer, p *client.ProofResult, may string) {
	fmt.Fprintf(to, "%s %s a twin of %s, %s\n", number(len(p.Twins), "host", "hosts"), may, p.Serial, printable(p.Subject))
	for _, name := range p.Twins[:min(len(p.Twins), namedTwins)] {
		fmt.Fprintf(to, "  %s\n", printable(name))
	}
	if more := len(p.Twins) - namedTwins; more > 0 {
		fmt.Fprintf(to, "  and %d more, which -o json with --dry-run names\n", more)
	}
}

// await waits until nothing is waited for any more, or the time is over, and says how far it is.
func (c *certProveCommand) await(ctx context.Context, g *globals, api *client.Client, found *client.ProofResult) (*client.ProofResult, error) {
	end := time.NewTimer(c.Timeout)
	defer end.Stop()
	said, pause := "", proofPoll
	if len(found.Trials) > longProof {
		pause = proofPollLong
	}
	for !found.Done() {
		if now := progress(found); now != said {
			said = now
			g.say("%s", now)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-end.C:
			return found, nil
		case <-time.After(pause):
		}
		newer, err := api.Proof(ctx, found.ID)
		if err != nil {
			return nil, err
		}
		found = newer
	}
	return found, nil
}

// results are those of a trial, the worst first.
func results() []string {
	return []string{client.ProofAccepted, client.ProofOpen, client.ProofUnclear, client.ProofSilent, client.ProofWaiting, client.ProofNotTried, client.ProofRefused}
}

// progress says how many have refused, of how many that have to, and what the others do.
func progress(p *client.ProofResult) string {
	said := []string{fmt.Sprintf("refused by %d of %s", p.Count(client.ProofRefused), number(p.Ports(), "placement", "placements"))}
	say := func(n int, one, many string) {
		if n > 0 {
			said = append(said, number(n, one, many))
		}
	}
	say(p.Count(client.ProofAccepted), "accepts", "accept")
	say(p.Count(client.ProofOpen), "lets everybody in", "let everybody in")
	say(p.Count(client.ProofUnclear), "is unclear", "are unclear")
	say(p.Count(client.ProofSilent), "is silent", "are silent")
	say(p.Count(client.ProofWaiting), "waits", "wait")
	say(p.Untried(client.UntriedDown), "down", "down")
	say(p.Untried(client.UntriedNoCRL), "is given no CRL", "are given no CRL")
	say(p.Untried(client.UntriedNoTwin), "on a host without a twin", "on hosts without a twin")
	say(p.Untried(client.UntriedOtherPool), "in another pool", "in other pools")
	say(p.Untried(""), "not tried", "not tried")
	say(p.Untried(client.UntriedNoPort), "more has no port", "more have no port")
	return strings.Join(said, "; ")
}

func number(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func printProof(g *globals, p *client.ProofResult) error {
	if g.Output == "json" {
		return g.json(p)
	}
	items := func(yield func(client.ProofTrial, error) bool) {
		trials := slices.Clone(p.Trials)
		rank := func(t client.ProofTrial) int { return slices.Index(results(), t.Result) }
		slices.SortStableFunc(trials, func(a, b client.ProofTrial) int { return rank(a) - rank(b) })
		for _, t := range trials {
			if !yield(t, nil) {
				return
			}
		}
	}
	err := list(g, items, "HOST PLACEMENT WITH CRL RESULT DETAIL", func(t client.ProofTrial) []string {
		return []string{t.Host, t.Placement, triedWith(t), orDash(t.CRL), t.Result, t.Detail}
	})
	if err == nil && p.Message != "" {
		g.say("%s", p.Message)
	}
	return err
}

func triedWith(t client.ProofTrial) string {
	switch {
	case t.With == "":
		return "-"
	case t.Twin:
		return "twin " + short(t.With) // -o json has all of it
	}
	return "itself"
}

// verdict fails unless the proof is one.
func (c *certProveCommand) verdict(g *globals, p *client.ProofResult) error {
	if p.Proven() || c.AllowUntried && p.ProvenWhereTried() {
		g.say("%s", progress(p))
		return nil
	}
	hint := fmt.Sprintf("chancery cert prove-revoked %s --last shows how it stands later, until %s", p.Serial, stamp(p.Ends))
	switch {
	case p.Count(client.ProofAccepted) > 0:
		return fault.New(fault.Conflict, "%s is still accepted: %s", p.Serial, progress(p)).WithHint("%s", hint)
	case p.Count(client.ProofRefused) == 0 && p.Done():
		return fault.New(fault.Conflict, "nothing is proven of %s, since nobody was seen to refuse it: %s", p.Serial, progress(p)).WithHint("%s", hint)
	}
	if p.ProvenWhereTried() {
		hint += "; --allow-untried leaves out what was not tried"
	}
	return fault.New(fault.Conflict, "not everybody was seen to refuse %s: %s", p.Serial, progress(p)).WithHint("%s", hint)
}
