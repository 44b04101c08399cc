package cli

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"chancery/internal/run/bench"
	"chancery/internal/run/chaos"
)

type benchCommand struct {
	Quick    bool     `help:"A smoke run of a minute, whose figures judge nothing."`
	Only     []string `placeholder:"NAME" help:"Measure only issuance, ocsp, revocation, crl, start, clones, agents or rollouts, only sqlite or postgres, or only clones on a cluster (cluster). May be repeated."`
	StepCA   string   `name:"step-ca" type:"path" placeholder:"F" help:"The peer for issuance; step-ca beside this program when not given."`
	Profiles string   `type:"path" default:"bench-profiles" placeholder:"D" help:"Where profiles of missed budgets are written."`

	Bare   string `hidden:"" placeholder:"ADDR:PORT" help:"Serve as the bare handler that OCSP is compared with."`
	Octets int    `hidden:"" default:"1" help:"Of its answers."`
	Sign   bool   `hidden:"" help:"Sign for each of them."`
	Agents string `hidden:"" type:"path" help:"Be simulated agents as this file says."`

	Chaos   time.Duration `hidden:"" help:"Strike three nodes for so long, and judge what they say."`
	Seed    uint64        `hidden:"" help:"Of the order of what strikes; one by chance when not given."`
	Rush    int           `hidden:"" default:"5000" help:"How many certificates two nodes issue at once before, from each."`
	History string        `hidden:"" type:"path" help:"File to which all calls are written."`
}

// Run measures the budgets. A missed budget is in the report, and no failure of the command.
func (c *benchCommand) Run(ctx context.Context, g *globals) error {
	if c.Bare != "" {
		return bench.ServeBare(ctx, c.Bare, c.Octets, c.Sign)
	}
	if c.Agents != "" {
		return bench.ServeAgents(ctx, c.Agents)
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	if c.Chaos > 0 {
		if c.Seed == 0 {
			c.Seed = rand.Uint64()
		}
		return chaos.Run(ctx, chaos.Options{Program: program, Length: c.Chaos, Seed: c.Seed, Rush: c.Rush, History: c.History, Out: g.Out, Err: g.Err})
	}
	o := bench.Options{Program: program, StepCA: c.StepCA, Only: c.Only, Profiles: c.Profiles, Scale: bench.Whole, Out: g.Out, Err: g.Err}
	if c.Quick {
		o.Scale = bench.Quick
	}
	if o.StepCA == "" {
		beside := filepath.Join(filepath.Dir(program), "step-ca")
		if _, err := os.Stat(beside); err == nil {
			o.StepCA = beside
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Hour) // a run that hangs must end too
	defer cancel()
	return bench.Run(ctx, o)
}
