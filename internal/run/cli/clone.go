package cli

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

type cloneCommands struct {
	Invite      cloneInviteCommand      `cmd:"" help:"Make a one-time token with which a new node may ask to join."`
	Invitations cloneInvitationsCommand `cmd:"" help:"List invitations, or end one that was not used."`
	Join        cloneJoinCommand        `cmd:"" help:"On the new machine: make its keys, wait for the approval, and make its data directory."`
	Approve     cloneApproveCommand     `cmd:"" help:"Give a node that waits its keys, when the fingerprint is the one that it shows."`
	List        cloneListCommand        `cmd:"" help:"List the nodes."`
	Status      cloneStatusCommand      `cmd:"" help:"Show the nodes: subsystems, leases, database, keys, what is different; of one node also what RHCS's switches would be."`
	Leave       cloneLeaveCommand       `cmd:"" help:"Have a node give back what it holds, and end."`
	Remove      cloneRemoveCommand      `cmd:"" help:"Remove a node that is dead, or refuse one that waits."`
	Promote     clonePromoteCommand     `cmd:"" help:"Have a node sign the CRLs, or do other work that only one node does."`
	Demote      cloneDemoteCommand      `cmd:"" help:"Have another node do it."`
}

type cloneInviteCommand struct {
	Subsystems []string `default:"ca,ocsp" placeholder:"S" help:"What the node shall run: ca, ocsp."`
	Life       string   `placeholder:"L" help:"How long the token is good; 1h when not given."`
	Out        string   `type:"path" placeholder:"F" help:"File to write the token to (mode 0600); standard output when not given."`
}

// Run makes a token.
func (c *cloneInviteCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	if err := absent(c.Out); err != nil {
		return err // before there is a token that nobody has
	}
	made, err := api.InviteClone(ctx, client.CloneInvitation{Subsystems: c.Subsystems, Life: c.Life})
	if err != nil {
		return err
	}
	if c.Out != "" {
		if err := g.write(c.Out, []byte(made.Token+"\n"), 0o600); err != nil {
			return err
		}
		made.Token = ""
	}
	if g.Output == "json" {
		return g.json(made)
	}
	g.say("invitation %s: a node that runs %s; the token is good once, until %s", made.ID, strings.Join(made.Subsystems, " and "), stamp(made.Expires))
	g.say("on the new machine, with the token in a file: chancery clone join --token-file F --dir D --address https://HOST:PORT --database-file F")
	if made.Token != "" {
		_, err = fmt.Fprintln(g.Out, made.Token)
	}
	return err
}

type cloneInvitationsCommand struct {
	Withdraw string `placeholder:"ID" help:"End this one."`
}

// Run lists invitations.
func (c *cloneInvitationsCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	if c.Withdraw != "" {
		if err := api.WithdrawCloneInvitation(ctx, c.Withdraw); err != nil {
			return err
		}
		g.say("invitation %s is no longer good", printable(c.Withdraw))
		return nil
	}
	return list(g, api.CloneInvitations(ctx), "ID\tSUBSYSTEMS\tBY\tEXPIRES\tUSED BY", func(i client.CloneInvited) []string {
		return []string{i.ID, strings.Join(i.Subsystems, ","), i.By, day(i.Expires), orDash(i.UsedBy)}
	})
}

type cloneJoinCommand struct {
	Name             string        `placeholder:"N" help:"The node's name, for good; this machine's when not given."`
	Listen           string        `placeholder:"ADDR:PORT" help:"Where the API listens; the address of --address when that is an IP address, else loopback."`
	PublicListen     string        `placeholder:"ADDR:PORT" help:"Where CRLs and OCSP are served, by plain http."`
	MetricsListen    string        `placeholder:"ADDR:PORT" help:"Where metrics and health are served."`
	TLSName          []string      `name:"tls-name" placeholder:"NAME" help:"A further name or address of its TLS certificate. May be repeated."`
	DatabaseFile     string        `type:"path" placeholder:"F" help:"File (mode 0600) with the database's URL; the node's own login is added to it."`
	DatabaseReadFile string        `type:"path" placeholder:"F" help:"File (mode 0600) with the URL of this machine's standby, which answers what only reads."`
	PKCS11           []string      `name:"pkcs11" sep:"none" placeholder:"URI" help:"A PKCS #11 token that this machine reaches: pkcs11:token=T?module-path=F&pin-source=F (RFC 7512). All keys that the authority has in it are tried; with object=O or id=I it must have that one there. May be repeated."`
	PKCS11ReplicaOf  string        `name:"pkcs11-replica-of" placeholder:"SERIAL" help:"The token is a copy of the one with this serial number, under which the authority knows the keys."`
	Wait             time.Duration `default:"1h" placeholder:"D" help:"How long to wait for the approval; the same command goes on later."`
}

// Run makes this machine a node. The token is the one of --token-file, which elsewhere is a caller's own.
func (c *cloneJoinCommand) Run(ctx context.Context, g *globals) error {
	switch {
	case g.TokenFile == "":
		return usage("clone join needs --token-file: a file with the token of clone invite, or - for standard input")
	case g.Dir == "":
		return usage("clone join needs --dir: the data directory that it makes")
	case g.Address == "":
		return usage("clone join needs --address: https://HOST:PORT, where clients will reach this node")
	}
	token, err := g.guarded(g.TokenFile, "token")
	if err != nil {
		return err
	}
	waiting, stop := context.WithTimeoutCause(ctx, c.Wait, fmt.Errorf("%v passed", c.Wait))
	defer stop()
	joined, err := setup.Join(waiting, setup.JoinOptions{
		Dir: datadir.Dir(g.Dir), Token: string(token), Release: version, Name: c.Name, Address: g.Address, Listen: c.Listen, Public: c.PublicListen,
		Metrics: c.MetricsListen, TLSNames: c.TLSName, DatabaseFile: c.DatabaseFile, ReadDatabaseFile: c.DatabaseReadFile,
		Tokens: c.PKCS11, ReplicaOf: c.PKCS11ReplicaOf,
		Waiting: func(name, fingerprint string) {
			g.say("node %s waits for its approval. Its fingerprint is\n\n    %s\n", name, inGroups(fingerprint))
			g.say("an administrator, who has compared it: chancery clone approve %s %s", name, fingerprint)
		},
	})
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(joined)
	}
	g.say("approved. It runs %s; its data directory is %s", strings.Join(joined.Subsystems, " and "), g.Dir)
	config, err := datadir.Dir(g.Dir).Load()
	if err != nil {
		return err
	}
	g.say("it will listen on %s (API) and %s (CRLs and OCSP); clients are told %s", config.Listen.API, config.Listen.Public, config.Address)
	for _, unreached := range config.Unreached() {
		g.say("warning: %s", unreached)
	}
	g.say("start it: chancery serve --dir %s; chancery clone status --wait 1m then says when it is ready", g.Dir)
	return nil
}

// inGroups is a fingerprint as people read it to each other.
func inGroups(fingerprint string) string {
	var groups []string
	for len(fingerprint) > 8 {
		groups, fingerprint = append(groups, fingerprint[:8]), fingerprint[8:]
	}
	return strings.Join(append(groups, fingerprint), " ")
}

type cloneArg struct {
	Node string `arg:"" name:"NODE" help:"The node's name."`
}

type cloneApproveCommand struct {
	cloneArg    `embed:""`
	Fingerprint []string `arg:"" optional:"" name:"FINGERPRINT" help:"What the new node shows; spaces and colons do not matter. Without it, what the node asks for is shown, and nothing is approved."`
}

// Run approves a node, or shows what it asks for.
func (c *cloneApproveCommand) Run(ctx context.Context, g *globals) error {
	if len(c.Fingerprint) == 0 {
		if err := g.clone(func(api *client.Client) (*client.Clone, error) { return api.Clone(ctx, c.Node) }); err != nil {
			return err
		}
		return usage("nothing is approved: give the fingerprint that the new machine shows, if it and all of the above are right")
	}
	return g.clone(func(api *client.Client) (*client.Clone, error) {
		return api.ApproveClone(ctx, c.Node, client.PlainFingerprint(strings.Join(c.Fingerprint, "")))
	})
}

type cloneListCommand struct{}

// Run lists the nodes.
func (c *cloneListCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	return list(g, api.Clones(ctx), "NAME\tSTATE\tREADY\tSUBSYSTEMS\tHOLDS\tAGE\tSEEN\tRELEASE\tADDRESS", func(n client.Clone) []string {
		return []string{n.Name, n.State, readiness(&n), strings.Join(n.Subsystems, ","), holds(&n), age(&n), day(n.Seen), orDash(n.Release), n.Address}
	})
}

func readiness(n *client.Clone) string {
	switch {
	case n.State != client.CloneActive:
		return "-"
	case n.Ready:
		return "yes"
	}
	return "no"
}

func holds(n *client.Clone) string {
	var names []string
	for _, l := range n.Leases {
		name := l.Name
		if l.Pinned != "" {
			name += " (pinned)"
		}
		names = append(names, name)
	}
	return orDash(strings.Join(names, ","))
}

// age is how old a node's reads may be.
func age(n *client.Clone) string {
	if n.State != client.CloneActive {
		return "-"
	}
	return time.Duration(n.Database.Age * float64(time.Second)).Round(100 * time.Millisecond).String()
}

type cloneStatusCommand struct {
	Node string        `arg:"" optional:"" name:"NODE" help:"Only this node; all when not given."`
	Wait time.Duration `placeholder:"D" help:"Wait until they are ready, at most so long; exit code 1 where they are not."`
}

// Run shows how the nodes do.
func (c *cloneStatusCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	nodes, late, err := c.look(ctx, g, api)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		err = g.json(nodes)
	}
	for i := range nodes {
		if g.Output == "json" {
			break
		}
		if i > 0 {
			fmt.Fprintln(g.Out)
		}
		if c.Node == "" {
			nodes[i].Switches = nil // those who look for them name the node
		}
		if err = g.showClone(&nodes[i]); err != nil {
			break
		}
	}
	if err == nil && len(late) > 0 {
		err = fault.New(fault.Unavailable, "not ready: %s", strings.Join(late, "; "))
	}
	return err
}

// look asks until all are ready, or for as long as it may.
func (c *cloneStatusCommand) look(ctx context.Context, g *globals, api *client.Client) (nodes []client.Clone, late []string, err error) {
	defer g.progress("waiting for the nodes")()
	for end := time.Now().Add(c.Wait); ; {
		nodes, late = nil, nil
		if c.Node != "" {
			n, err := api.Clone(ctx, c.Node)
			if err != nil {
				return nil, nil, err
			}
			nodes = append(nodes, *n)
		} else {
			for n, err := range api.Clones(ctx) {
				if err != nil {
					return nil, nil, err
				}
				nodes = append(nodes, n)
			}
		}
		for _, n := range nodes {
			if n.State == client.CloneActive && !n.Ready || n.State == client.CloneWaiting && c.Node != "" {
				late = append(late, n.Name+" ("+strings.Join(n.NotReady, ", ")+")")
			}
		}
		if c.Wait == 0 {
			return nodes, nil, nil
		}
		if len(late) == 0 || time.Now().After(end) {
			return nodes, late, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// showClone prints one node, with the switches of RHCS as they stand on it.
func (g *globals) showClone(n *client.Clone) error {
	ready := readiness(n)
	if len(n.NotReady) > 0 {
		ready += ": " + strings.Join(n.NotReady, "; ")
	}
	name := n.Name
	if n.Self {
		name += " (the node that answers)"
	}
	err := g.show(n, field{"node", name}, field{"state", n.State}, field{"ready", ready}, field{"subsystems", strings.Join(n.Subsystems, ", ")},
		field{"address", n.Address}, field{"further names", orDash(strings.Join(n.Names, ", "))}, field{"fingerprint", inGroups(n.Fingerprint)}, field{"release", fmt.Sprintf("%s (schema %d)", orDash(n.Release), n.Schema)},
		field{"approved", stamp(n.Approved)}, field{"seen", stamp(n.Seen)}, field{"TLS identity ends", stamp(n.CertificateEnds)},
		field{"keys", fmt.Sprintf("%d of %d open", n.Keys.Open, n.Keys.Entitled)}, field{"database", database(n)}, field{"answers OCSP for", answersFor(n)}, field{"reads are", age(n) + " old"}, field{"its standby", behind(n)})
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(g.Out, 0, 8, 2, ' ', 0)
	for _, l := range n.Leases {
		fmt.Fprintf(w, "  holds %s\tepoch %d\tuntil %s\t%s\n", l.Name, l.Epoch, stamp(l.Expires), pinned(l))
	}
	for _, u := range n.Unreached {
		fmt.Fprintf(w, "  reached?\t%s\n", printable(u))
	}
	for _, d := range n.Differences {
		fmt.Fprintf(w, "  differs\t%s\n", printable(d))
	}
	for _, s := range n.Switches {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", s.Name, s.Value, s.Meaning)
	}
	return w.Flush()
}

// behind is how far the standby that a node reads at is behind the primary.
func behind(n *client.Clone) string {
	switch d := n.Database; {
	case n.State != client.CloneActive || !d.LocalReads:
		return "-"
	case d.Lag == nil:
		return "not known"
	default:
		return fmt.Sprintf("%s and %d octets behind the primary", time.Duration(*d.Lag*float64(time.Second)).Round(time.Millisecond), d.LagOctets)
	}
}

func database(n *client.Clone) string {
	parts := []string{n.Database.Engine}
	if n.Database.Role != "" {
		as := "as " + n.Database.Role
		if !n.Database.LoginEnds.IsZero() {
			as += " (certificate ends " + stamp(n.Database.LoginEnds) + ")"
		}
		parts = append(parts, as)
	}
	if n.Database.LocalReads {
		parts = append(parts, "reads locally")
	}
	if n.Database.Primary != "" {
		parts = append(parts, "primary "+n.Database.Primary)
	}
	return printable(strings.Join(parts, ", "))
}

// answersFor tells lists of issuers apart by the beginning of their digests.
func answersFor(n *client.Clone) string {
	if n.Issuers.Digest == "" {
		return "-"
	}
	return fmt.Sprintf("%d issuers (list %.16s)", n.Issuers.Count, printable(n.Issuers.Digest))
}

func pinned(l client.CloneLease) string {
	if l.Pinned == "" {
		return ""
	}
	return "pinned: no other node takes it"
}

type cloneLeaveCommand struct {
	cloneArg `embed:""`
}

// Run has a node leave.
func (c *cloneLeaveCommand) Run(ctx context.Context, g *globals) error {
	return g.clone(func(api *client.Client) (*client.Clone, error) {
		left, err := api.LeaveClone(ctx, c.Node)
		if err == nil {
			g.staysIn(left)
		}
		return left, err
	})
}

type cloneRemoveCommand struct {
	cloneArg    `embed:""`
	Yes         bool `help:"Remove it although it was seen just now, and do not ask."`
	Compromised bool `help:"It fell into wrong hands: revoke its identity as compromised, and remove it although it was seen just now."`
}

// Run removes a node.
func (c *cloneRemoveCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	before, err := api.Clone(ctx, c.Node)
	if err != nil {
		return err
	}
	if c.Compromised {
		err = api.RemoveCompromisedClone(ctx, c.Node)
	} else {
		err = api.RemoveClone(ctx, c.Node, c.Yes)
	}
	if err != nil {
		return err
	}
	g.say("node %s is gone: its identity is revoked, and its copies of the keys are deleted.", printable(c.Node))
	g.say("What it opened before it may have kept: if its machine fell into wrong hands, chancery rollout start rotate-root --compromised for each pool")
	g.staysIn(before)
	return nil
}

// staysIn says of a node that ends what of it PostgreSQL lets in still: what had no login of its own was in as somebody else, whom no end shuts
// out.
func (g *globals) staysIn(n *client.Clone) {
	d := n.Database
	if d.Role != "" || n.State == client.CloneWaiting || d.Engine == string(db.SQLite) || n.State == client.CloneGone && !d.LoginEnds.IsZero() {
		return
	}
	g.say("warning: it had no login of its own at the database: PostgreSQL goes on letting in whoever has what its database URL names. Take its line out of pg_ident "+
		"(or change the password) on each member and reload, then end its sessions there: SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_addr = '…', by %s's address",
		printable(n.Name))
}

type turn struct {
	cloneArg `embed:""`
	Lease    string `enum:"crl,audit,rollout" default:"crl" placeholder:"L" help:"Which work: crl signs CRLs and renews OCSP responders, audit signs checkpoints, rollout drives rollouts."`
}

type clonePromoteCommand struct {
	turn `embed:""`
	Pin  bool `help:"No other node takes it from then on, even while this one is away."`
}

// Run gives a node a lease.
func (c *clonePromoteCommand) Run(ctx context.Context, g *globals) error {
	return g.clone(func(api *client.Client) (*client.Clone, error) {
		return api.TurnClone(ctx, c.Node, "promote", client.CloneTurn{Lease: c.Lease, Pin: c.Pin})
	})
}

type cloneDemoteCommand struct {
	turn `embed:""`
}

// Run takes a lease from a node.
func (c *cloneDemoteCommand) Run(ctx context.Context, g *globals) error {
	return g.clone(func(api *client.Client) (*client.Clone, error) {
		return api.TurnClone(ctx, c.Node, "demote", client.CloneTurn{Lease: c.Lease})
	})
}

// clone does one act upon a node and shows it.
func (g *globals) clone(act func(*client.Client) (*client.Clone, error)) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	node, err := act(api)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(node)
	}
	node.Switches = nil
	return g.showClone(node)
}
