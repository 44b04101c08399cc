package cli

import (
	"context"
	"encoding/pem"
	"fmt"
	"iter"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/upkeep/finding"
)

type statusCommand struct{}

// Run shows how the authority does.
func (c *statusCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	s, err := api.Status(ctx)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(s)
	}
	g.ended(s.Outage)
	if err := g.show(s, field{"node", s.Node}, field{"version", s.Version}, field{"since", stamp(s.Started)}, field{"store", s.Store.Engine + ", " + s.Store.Durability},
		field{"clock", s.Clock}, field{"pending requests", itoa(s.Pending)}); err != nil {
		return err
	}
	fmt.Fprintln(g.Out)
	err = list(g, values(s.Issuers), "ISSUER STATE EXPIRES CRL CRL-UNTIL", func(i client.IssuerStatus) []string {
		return []string{i.Name, i.State, day(i.NotAfter), orDash(i.CRLNumber), day(i.NextUpdate)}
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(g.Out)
	for _, e := range s.Expiring {
		what := fmt.Sprintf("end within %d days", e.Days)
		if e.Days == 0 {
			what = "ended in the last 30 days and were not replaced"
		}
		fmt.Fprintf(g.Out, "%8d certificates %s\n", e.Count, what)
	}
	for _, l := range s.Leases {
		fmt.Fprintf(g.Out, "lease %s: %s until %s (epoch %d)\n", l.Name, l.Holder, stamp(l.Expires), l.Epoch)
	}
	if h := s.Hosts; h.Hosts > 0 {
		fmt.Fprintf(g.Out, "hosts: %d, %d joined, %d pending, %d suspect, %d silent for an hour; %d placements failed\n", h.Hosts, h.Joined, h.Pending,
			h.Suspect, h.Silent, h.Failed)
		if h.SoonestHost != "" {
			fmt.Fprintf(g.Out, "next to end: placement %s of host %s on %s\n", printable(h.SoonestPlacement), printable(h.SoonestHost), day(h.SoonestEnd))
		}
	}
	if err := g.outage(s.Outage); err != nil {
		return err
	}
	for _, w := range s.Warnings {
		fmt.Fprintln(g.Out, "warning:", printable(w))
	}
	return nil
}

// ended says what has ended already, before all else: beside it, for how long an outage could be is no comfort.
func (g *globals) ended(b client.OutageBudget) {
	for _, e := range b.Ended {
		fmt.Fprintln(g.Out, g.red(fmt.Sprintf("ENDED: %s, on %s", printable(e.What), stamp(e.At))))
	}
}

// outage says for how long the authority could be down, and what would end then and later.
func (g *globals) outage(b client.OutageBudget) error {
	if len(b.Ends) > 0 {
		fmt.Fprintf(g.Out, "could be down for %s: then %s ends\n", span(time.Duration(b.Seconds)*time.Second), printable(b.Ends[0].What))
	}
	if b.OCSP != nil {
		fmt.Fprintf(g.Out, "new OCSP questions: at once; answers in caches: until %s\n", stamp(b.OCSP.Caches))
	}
	if len(b.Ends) == 0 {
		return nil
	}
	fmt.Fprintln(g.Out)
	err := list(g, values(b.Ends), "KIND ENDS WHAT", func(e client.OutageEnd) []string {
		return []string{e.Kind, stamp(e.At), e.What}
	})
	fmt.Fprintln(g.Out)
	return err
}

// red colours a text where it is read on a terminal, unless that is unwanted (NO_COLOR).
func (g *globals) red(text string) string {
	f, ok := g.Out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return text
	}
	return "\x1b[31m" + text + "\x1b[0m"
}

// span is a time in its two largest units: 5d 3h, 3h 20m.
func span(d time.Duration) string {
	days, hours, minutes := int(d.Hours())/24, int(d.Hours())%24, int(d.Minutes())%60
	switch {
	case days > 0:
		return fmt.Sprintf("%dd %dh", days, hours)
	case hours > 0:
		return fmt.Sprintf("%dh %dm", hours, minutes)
	}
	return fmt.Sprintf("%dm", minutes)
}

// values makes a list of a slice.
func values[T any](items []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, item := range items {
			if !yield(item, nil) {
				return
			}
		}
	}
}

type verifyCommand struct {
	Checkpoint []string `type:"path" placeholder:"F" help:"A checkpoint that was kept elsewhere: a rollback behind it is found. May be repeated."`
	AuditKey   []string `type:"path" placeholder:"F" help:"The public key of the audit as it was kept elsewhere (ca/audit-key.pem of the data directory): without it the store's own is believed. May be repeated."`
}

// Run checks the store.
func (c *verifyCommand) Run(ctx context.Context, g *globals) error {
	var in client.VerifyRequest
	for _, file := range c.Checkpoint {
		text, err := g.readAll(file)
		if err != nil {
			return err
		}
		in.Checkpoints = append(in.Checkpoints, string(text))
	}
	for _, file := range c.AuditKey {
		text, err := g.readAll(file)
		if err != nil {
			return err
		}
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			in.AuditKeys = append(in.AuditKeys, string(pem.EncodeToMemory(block)))
		}
		if len(in.AuditKeys) == 0 {
			return fault.New(fault.Invalid, "%s holds no public key in PEM", file)
		}
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	return g.findings(api.Verify(ctx, in), false)
}

// findings prints findings as they come, and fails where one is an error or where nothing was looked at.
func (g *globals) findings(all iter.Seq2[client.Finding, error], strict bool) error {
	looked, wrong, warnings := 0, 0, 0
	tell := func(yield func(client.Finding, error) bool) {
		for f, err := range all {
			if err == nil {
				looked++
				switch f.Level {
				case "error":
					wrong++
				case "warning":
					warnings++
				}
			}
			if !yield(f, err) {
				return
			}
		}
	}
	err := list(g, tell, "LEVEL CHECK OBJECT FINDING", func(f client.Finding) []string {
		text := f.Message
		if f.Hint != "" {
			text += " → " + f.Hint
		}
		return []string{strings.ToUpper(f.Level), f.Check, orDash(f.Object), text}
	})
	if err != nil {
		return err
	}
	return judged(looked, wrong, warnings, strict)
}

// wire turns local findings into those of the API, so that both print alike.
func wire(local finding.Seq) iter.Seq2[client.Finding, error] {
	return func(yield func(client.Finding, error) bool) {
		for f, err := range local {
			if !yield(client.Finding{Level: string(f.Level), Check: f.Check, Object: f.Object, Message: f.Message, Seen: f.Seen, Do: f.Do, Hint: f.Hint}, err) {
				return
			}
		}
	}
}
