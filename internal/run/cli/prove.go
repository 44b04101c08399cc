package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
)

type certProveCommand struct {
	serialArg  `embed:""`
	Timeout    time.Duration `default:"2m" help:"How long to wait for the hosts."`
	Last       bool          `help:"Show the newest proof of it, as it stands now, and begin none."`
	NoControls bool          `help:"Issue no good certificates to hold refusals against."`
	Host       []string      `placeholder:"H" help:"Only this host; may be repeated."`
}

// The pause between two looks at a proof, and that where it is so long that each look costs something.
const (
	proofPoll     = 500 * time.Millisecond
	proofPollLong = 3 * time.Second
	longProof     = 500 // trials
)

// Run has the hosts that should refuse a revoked certificate try it upon their own consumers, and prints who took it. It fails
// unless the certificate is refused wherever it could be tried.
func (c *certProveCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	var found *client.ProofResult
	if c.Last {
		found, err = api.LastProof(ctx, c.Issuer, c.Serial)
	} else if found, err = api.ProveRevoked(ctx, c.Issuer, c.Serial, client.ProveRequest{NoControls: c.NoControls, Hosts: c.Host}); err == nil {
		found, err = c.await(ctx, g, api, found)
	}
	if err != nil {
		return err
	}
	if err := printProof(g, found); err != nil {
		return err
	}
	return verdict(found)
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
	return []string{client.ProofAccepted, client.ProofUnclear, client.ProofSilent, client.ProofWaiting, client.ProofNotTried, client.ProofRefused}
}

func progress(p *client.ProofResult) string {
	var counts []string
	for _, result := range results() {
		if n := p.Count(result); n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", n, result))
		}
	}
	return fmt.Sprintf("%d placements: %s", len(p.Trials), strings.Join(counts, ", "))
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
func verdict(p *client.ProofResult) error {
	if p.Proven() {
		return nil
	}
	hint := fmt.Sprintf("chancery cert prove-revoked %s --last shows how it stands later, until %s", p.Serial, stamp(p.Ends))
	switch {
	case p.Count(client.ProofAccepted) > 0:
		return fault.New(fault.Conflict, "%s is still accepted: %s", p.Serial, progress(p)).WithHint("%s", hint)
	case p.Count(client.ProofRefused) == 0 && p.Done():
		return fault.New(fault.Conflict, "nothing is proven of %s, since nobody was seen to refuse it: %s", p.Serial, progress(p)).WithHint("%s", hint)
	}
	return fault.New(fault.Conflict, "not everybody was seen to refuse %s: %s", p.Serial, progress(p)).WithHint("%s", hint)
}
