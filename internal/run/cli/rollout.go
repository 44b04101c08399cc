package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"chancery/client"
	"chancery/internal/fault"
)

type rolloutCommands struct {
	Start    rolloutStartCommand    `cmd:"" help:"Start a change over the hosts of a pool, in waves; --dry-run says what it would do."`
	Status   rolloutStatusCommand   `cmd:"" help:"Show how far a rollout is, who holds it and what to do."`
	List     rolloutListCommand     `cmd:"" help:"List rollouts, the newest first."`
	Pause    rolloutPauseCommand    `cmd:"" help:"Stop a rollout where it is."`
	Resume   rolloutResumeCommand   `cmd:"" help:"Go on with a rollout, and leave out hosts that hold it."`
	Undo     rolloutUndoCommand     `cmd:"" help:"Go back through the stages, with the old and the new in each other's place."`
	Abort    rolloutAbortCommand    `cmd:"" help:"End a rollout where it is; the old and the new stay trusted."`
	Complete rolloutCompleteCommand `cmd:"" help:"Have a root whose key is in a file sign what a rollout waits for."`
}

// offlineRoot is where a root's key is.
type offlineRoot struct {
	RootFile       string `type:"path" placeholder:"F" help:"The key of the root that signs the new issuer: for rotate-issuer the file of the pool's root, else a file to write the new root's key to."`
	PassphraseFile string `placeholder:"F|-" help:"Passphrase of the root's key; asked for on a terminal when not given."`
}

type rolloutStartCommand struct {
	offlineRoot
	Kind        string   `arg:"" name:"KIND" enum:"reissue,rotate-issuer,rotate-root,identities,algorithm,rotate-away" help:"${enum}"`
	Pool        string   `default:"default" placeholder:"P" help:"The pool whose hosts are changed."`
	Select      []string `sep:"none" placeholder:"NAME|label:K=V" help:"Only these hosts, for reissue, identities and algorithm. May be repeated."`
	Wave        []string `sep:"none" placeholder:"W" help:"A wave: canary, 10%, host:NAME or label:K=V. May be repeated; canary, 10%, 50%, 100% when not given."`
	Except      []string `sep:"none" placeholder:"HOST|SERIAL" help:"A host, or a certificate that nobody replaces, that is not waited for. May be repeated."`
	Because     string   `placeholder:"TEXT" help:"Why; goes to the audit. Needed with --except and --compromised."`
	Compromised bool     `help:"Drop the old trust first, at once and everywhere; with reissue, revoke first."`
	Algorithm   string   `placeholder:"A" help:"For algorithm: of the hosts' keys. Else of the new root and issuer, which have that of those before when not given."`
	Key         string   `placeholder:"URI|software" help:"Key of the new issuer, which lies in a PKCS #11 token (RFC 7512), or software for one that is made; needed where the issuer before has its key in a token."`
	Root        string   `enum:",offline,online" default:"" placeholder:"WHERE" help:"Where a new root's key is kept: offline, in --root-file, or online, sealed in the authority."`
	Validity    string   `placeholder:"L" help:"How long a new root lasts; 20y when not given."`
	From        string   `placeholder:"ENTRY" help:"For rotate-away: what to go away from, an entry of pool trust list, its fingerprint, or an issuer's name."`
	NoNodeProbe bool     `help:"Do not look from the node at what the hosts serve."`
	DryRun      bool     `help:"Show the plan, and change nothing."`
	Yes         bool     `help:"Do not ask before a rollout that breaks connections."`
}

// Run starts a rollout.
func (c *rolloutStartCommand) Run(ctx context.Context, g *globals) error {
	newRoot := c.Kind == client.RolloutRoot
	if newRoot && !c.DryRun && (c.Root == "online") == (c.RootFile != "") {
		return usage("give --root-file F for an offline root, or --root online")
	}
	if c.Root == "offline" && c.RootFile == "" && !c.DryRun {
		return usage("--root offline wants --root-file F")
	}
	if newRoot || c.Kind == client.RolloutRotateAway {
		if err := absent(c.RootFile); err != nil {
			return err
		}
	}
	if c.Kind == client.RolloutIssuer && c.RootFile != "" {
		if _, err := os.Stat(c.RootFile); err != nil {
			return err // before anything waits for it
		}
	}
	in := client.StartRolloutRequest{
		Kind: c.Kind, Pool: c.Pool, Select: c.Select, Waves: c.Wave, Except: c.Except, Because: c.Because, Algorithm: c.Algorithm, Validity: c.Validity, Key: c.Key,
		Online: c.Root == "online", From: c.From, Compromised: c.Compromised, NoNodeProbe: c.NoNodeProbe, DryRun: true,
	}
	if c.Compromised && !c.Yes && !c.DryRun && !isTerminal(g.In) {
		return usage("a rollout --compromised breaks connections, and there is no terminal to ask on: look at it with --dry-run, then give --yes")
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	if c.DryRun || c.Compromised {
		plan, err := api.StartRollout(ctx, in)
		if err != nil {
			return err
		}
		if c.DryRun {
			return g.showPlan(g.Out, plan)
		}
		if !c.Yes {
			if err := g.confirm(plan); err != nil {
				return err
			}
		}
	}
	in.DryRun = false
	r, err := api.StartRollout(ctx, in)
	if err != nil {
		return err
	}
	if r.CSR != "" && c.RootFile == "" {
		g.say("rollout %s waits for root %s: chancery rollout complete %s --root-file F", r.ID, orDash(r.Root), r.ID)
	} else if r.CSR != "" {
		if r, err = c.complete(ctx, g, api, r, c.Validity, c.Algorithm); err != nil {
			return fmt.Errorf("rollout %s waits for its root (chancery rollout complete %s): %w", r.ID, r.ID, err)
		}
	}
	return g.showRollout(r)
}

func isTerminal(in io.Reader) bool {
	f, ok := in.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// confirm shows what breaks, and asks.
func (g *globals) confirm(plan *client.Rollout) error {
	if err := g.showPlan(g.Err, plan); err != nil {
		return err
	}
	fmt.Fprintf(g.Err, "This breaks connections and cannot be undone. Type the pool's name, %s, to go on: ", plan.Pool)
	line, err := bufio.NewReader(io.LimitReader(g.In, 1024)).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	if strings.TrimSpace(line) != plan.Pool {
		return fault.New(fault.Denied, "nothing was begun")
	}
	return nil
}

// showPlan prints what a rollout would do.
func (g *globals) showPlan(to io.Writer, r *client.Rollout) error {
	if g.Output == "json" && to == g.Out {
		return g.json(r)
	}
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	p := r.Plan
	fmt.Fprintf(w, "rollout:\t%s of pool %s\n", r.Kind, r.Pool)
	if p.Old != "" || p.New != "" {
		fmt.Fprintf(w, "from:\t%s\nto:\t%s\n", printable(orDash(p.Old)), printable(orDash(p.New)))
	}
	fmt.Fprintf(w, "hosts:\t%d\nfiles written:\t%d\nreloads:\t%d, of which %d lose connections\nestimated:\t%s, while nobody holds it\n", p.Hosts, p.Files, p.Reloads, p.Interrupts,
		time.Duration(p.Seconds)*time.Second)
	for i, wave := range r.Waves {
		fmt.Fprintf(w, "wave %d:\t%s, %d hosts\n", i+1, printable(wave.Text), wave.Hosts)
	}
	for _, note := range p.Notes {
		fmt.Fprintf(w, "note:\t%s\n", printable(note))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(p.Actions) > 0 {
		fmt.Fprintln(w, "\nWAVE\tHOST\tPLACEMENT\tRELOAD\tFILES")
		for _, a := range p.Actions {
			reload := orDash(a.Reload)
			if a.Interrupts {
				reload += " (loses connections)"
			}
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", a.Wave, printable(a.Host), printable(a.Placement), printable(reload), printable(strings.Join(a.Files, " ")))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	for _, list := range []struct {
		title string
		hosts []client.RolloutHost
	}{{"would hold it", p.Would}, {"breaks until it is re-keyed", p.Breaks}, {"left out", r.Excepted}} {
		writeHosts(w, list.title, list.hosts)
	}
	return w.Flush()
}

// writeHosts writes hosts, or certificates, and what is to be said of each.
func writeHosts(w io.Writer, title string, hosts []client.RolloutHost) {
	if len(hosts) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s:\n", title)
	for _, h := range hosts {
		name := h.Host
		if name == "" {
			name = h.Serial
		}
		fmt.Fprintf(w, "  %s\t%s\n", printable(name), printable(h.Message))
	}
}

// showRollout prints how far a rollout is.
func (g *globals) showRollout(r *client.Rollout) error {
	if g.Output == "json" {
		return g.json(r)
	}
	w := tabwriter.NewWriter(g.Out, 0, 8, 2, ' ', 0)
	direction := ""
	if r.Backwards {
		direction = ", backwards"
	}
	fmt.Fprintf(w, "rollout:\t%s, %s of pool %s\nstate:\t%s\n", r.ID, r.Kind, r.Pool, r.State)
	if r.EndedAt.IsZero() {
		fmt.Fprintf(w, "stage:\t%s%s\n", r.Stage, direction)
		if r.Wave > 0 {
			fmt.Fprintf(w, "wave:\t%d of %d\n", r.Wave, len(r.Waves))
		}
	}
	if r.Plan.Old != "" {
		fmt.Fprintf(w, "from:\t%s\nto:\t%s\n", printable(r.Plan.Old), printable(orDash(r.Plan.New)))
	}
	fmt.Fprintf(w, "started:\t%s by %s\n", stamp(r.CreatedAt), printable(r.Actor))
	if !r.EndedAt.IsZero() {
		fmt.Fprintf(w, "ended:\t%s\n", stamp(r.EndedAt))
	}
	if r.Message != "" {
		fmt.Fprintf(w, "message:\t%s\n", printable(r.Message))
	}
	for _, note := range r.Plan.Notes {
		fmt.Fprintf(w, "note:\t%s\n", printable(note))
	}
	if r.EndedAt.IsZero() && r.Wave > 0 {
		fmt.Fprintln(w, "\n\tWAVE\tHOSTS\tDONE")
		for i, wave := range r.Waves {
			mark := ""
			if i+1 == r.Wave {
				mark = ">"
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\n", mark, printable(wave.Text), wave.Hosts, wave.Done)
		}
	}
	writeHosts(w, "held by", r.Holding)
	writeHosts(w, "left out", r.Excepted)
	if err := w.Flush(); err != nil {
		return err
	}
	if slices.ContainsFunc(r.Holding, func(h client.RolloutHost) bool { return h.Serial != "" }) {
		g.say("a certificate: have its holder get another, which chancery cert issue makes under the new issuer, then: chancery cert revoke SERIAL")
	}
	switch {
	case r.State == client.RolloutPaused:
		g.say("mend what failed, then: chancery rollout resume %s; or leave it out: chancery rollout resume %s --except HOST --because TEXT; "+
			"or go back: chancery rollout undo %s", r.ID, r.ID, r.ID)
	case len(r.Holding) > 0 && r.EndedAt.IsZero():
		g.say("it goes on by itself when these have; to leave one out: chancery rollout resume %s --except HOST|SERIAL --because TEXT", r.ID)
	}
	return nil
}

type rolloutStatusCommand struct {
	ID   string `arg:"" optional:"" name:"ID" help:"The rollout; the one that runs, or else the newest, when not given."`
	Wait bool   `help:"Wait until it is done, and fail where it is paused or ended otherwise."`
}

// Run shows a rollout.
func (c *rolloutStatusCommand) Run(ctx context.Context, g *globals) error {
	return g.rollout(func(api *client.Client) (*client.Rollout, error) {
		r, err := api.Rollout(ctx, currentRollout(c.ID))
		if err != nil || !c.Wait {
			return r, err
		}
		text := ""
		defer g.progressing(func() string { return text })()
		for r.State == client.RolloutRunning || r.State == client.RolloutWaiting {
			text = fmt.Sprintf("stage %s, wave %d of %d", r.Stage, r.Wave, len(r.Waves))
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(500 * time.Millisecond):
			}
			if r, err = api.Rollout(ctx, r.ID); err != nil {
				return nil, err
			}
		}
		if r.State != client.RolloutDone && r.State != client.RolloutUndone {
			return nil, fault.New(fault.Conflict, "rollout %s is %s: %s", r.ID, r.State, r.Message).WithHint("chancery rollout status %s", r.ID)
		}
		return r, nil
	})
}

// currentRollout is how the API names the rollout that is meant where none is given.
func currentRollout(id string) string {
	if id == "" {
		return "current"
	}
	return id
}

// rollout runs one act upon a rollout, and shows the rollout as it is then.
func (g *globals) rollout(act func(*client.Client) (*client.Rollout, error)) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	r, err := act(api)
	if err != nil {
		return err
	}
	return g.showRollout(r)
}

type rolloutListCommand struct {
	Pool string `placeholder:"P" help:"Only those of one pool."`
}

// Run lists rollouts.
func (c *rolloutListCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	return list(g, api.Rollouts(ctx, c.Pool), "ID KIND POOL STATE STAGE WAVE HOSTS STARTED ENDED", func(r client.Rollout) []string {
		hosts := 0
		for _, w := range r.Waves {
			hosts += w.Hosts
		}
		return []string{r.ID, r.Kind, r.Pool, r.State, r.Stage, fmt.Sprintf("%d/%d", r.Wave, len(r.Waves)), fmt.Sprint(hosts), day(r.CreatedAt), day(r.EndedAt)}
	})
}

// rolloutID is the argument of what is done to a rollout.
type rolloutID struct {
	ID string `arg:"" optional:"" name:"ID" help:"The rollout; the one that runs when not given."`
}

type rolloutPauseCommand struct{ rolloutID }

// Run pauses a rollout.
func (c *rolloutPauseCommand) Run(ctx context.Context, g *globals) error {
	return g.rollout(func(api *client.Client) (*client.Rollout, error) { return api.PauseRollout(ctx, currentRollout(c.ID)) })
}

type rolloutResumeCommand struct {
	rolloutID
	Except      []string `sep:"none" placeholder:"HOST|SERIAL" help:"A host, or a certificate that nobody replaces, that is not waited for any more. May be repeated."`
	Because     string   `placeholder:"TEXT" help:"Why; goes to the audit."`
	NoNodeProbe bool     `help:"From now on take the agents' word for what hosts serve: the node sees other machines at their addresses. Needs --because."`
}

// Run goes on with a rollout.
func (c *rolloutResumeCommand) Run(ctx context.Context, g *globals) error {
	if (len(c.Except) > 0 || c.NoNodeProbe) != (c.Because != "") {
		return usage("--except or --no-node-probe goes together with --because")
	}
	return g.rollout(func(api *client.Client) (*client.Rollout, error) {
		return api.ResumeRollout(ctx, currentRollout(c.ID), client.ResumeRolloutRequest{Except: c.Except, Because: c.Because, NoNodeProbe: c.NoNodeProbe})
	})
}

type rolloutUndoCommand struct{ rolloutID }

// Run undoes a rollout.
func (c *rolloutUndoCommand) Run(ctx context.Context, g *globals) error {
	return g.rollout(func(api *client.Client) (*client.Rollout, error) { return api.UndoRollout(ctx, currentRollout(c.ID)) })
}

type rolloutAbortCommand struct{ rolloutID }

// Run aborts a rollout.
func (c *rolloutAbortCommand) Run(ctx context.Context, g *globals) error {
	return g.rollout(func(api *client.Client) (*client.Rollout, error) { return api.AbortRollout(ctx, currentRollout(c.ID)) })
}
