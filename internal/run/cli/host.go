package cli

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/agent/recipe"
)

type hostCommands struct {
	Add     hostAddCommand     `cmd:"" help:"Add a host, and print the one-time token by which its machine joins."`
	Set     hostSetCommand     `cmd:"" help:"Change a host's names, addresses or recipes; what is given replaces the whole list, of labels those given."`
	List    hostListCommand    `cmd:"" help:"List the hosts and what each serves, those with a problem first."`
	Show    hostShowCommand    `cmd:"" help:"Show a host: what it shall hold, and what its agent saw."`
	Remove  hostRemoveCommand  `cmd:"" help:"Remove a host, and revoke what it holds."`
	Replace hostReplaceCommand `cmd:"" help:"Give a host's name and recipes to another machine, and print the token by which that one joins."`
	Token   hostTokenCommand   `cmd:"" help:"Print another join token for a host whose machine has not joined; the one before ends."`
}

type hostAddCommand struct {
	Name      string   `arg:"" name:"NAME" help:"The host's own DNS name."`
	Recipe    []string `sep:"none" placeholder:"NAME[:key=value,…]" help:"What it shall hold: a recipe with its parameters; local/NAME is a recipe file of the host's own. May be repeated."`
	DNS       []string `name:"dns" placeholder:"N" help:"Another DNS name of the host. May be repeated."`
	IP        []string `name:"ip" placeholder:"A" help:"An IP address of the host. May be repeated."`
	Profile   []string `placeholder:"P" help:"A profile whose certificates it may have beside those of its recipes; a recipe of its own (local/NAME) needs one. May be repeated."`
	Label     []string `sep:"none" placeholder:"K=V" help:"What it is known by in waves of a rollout: site=berlin. May be repeated."`
	Pool      string   `default:"default" placeholder:"P" help:"The pool whose hosts it trusts, and that trust it."`
	TokenLife string   `default:"24h" placeholder:"L" help:"How long the join token is good: 24h, 7d; 30d at most."`
}

// Run adds a host.
func (c *hostAddCommand) Run(ctx context.Context, g *globals) error {
	orders, err := parseOrders(c.Recipe)
	if err != nil {
		return err
	}
	labels, err := parseLabels(c.Label)
	if err != nil {
		return err
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	made, err := api.AddHost(ctx, client.AddHostRequest{
		Name: c.Name, Pool: c.Pool, DNS: c.DNS, IP: c.IP, Placements: orders, Profiles: c.Profile, Labels: labels,
		TokenLife: c.TokenLife,
	})
	if err != nil {
		return err
	}
	return g.printToken(made)
}

// parseOrders reads the recipes of a command line.
func parseOrders(texts []string) ([]client.PlacementOrder, error) {
	var orders []client.PlacementOrder
	for _, text := range texts {
		order, err := recipe.ParseOrder(text)
		if err != nil {
			return nil, err
		}
		orders = append(orders, order)
	}
	return orders, nil
}

// parseLabels reads the labels of a command line; nil where there is none.
func parseLabels(texts []string) (map[string]string, error) {
	var labels map[string]string
	for _, text := range texts {
		key, value, ok := strings.Cut(text, "=")
		if _, twice := labels[key]; !ok || key == "" || twice {
			return nil, usage("--label %s: K=V is wanted, each K once", text)
		}
		if labels == nil {
			labels = map[string]string{}
		}
		labels[key] = value
	}
	return labels, nil
}

// printToken prints the token alone on standard output, so that it goes where it is sent and nothing else does.
func (g *globals) printToken(made *client.HostToken) error {
	if g.Output == "json" {
		return g.json(made)
	}
	g.say("host %s is in pool %s; its join token is good once, until %s", printable(made.Host.Name), made.Host.Pool, stamp(made.Host.TokenExpires))
	g.say("on the host, with the token in a file: chancery agent join --token-file F --state S")
	_, err := fmt.Fprintln(g.Out, made.Token)
	return err
}

type hostSetCommand struct {
	Name      string   `arg:"" name:"NAME" help:"The host."`
	Recipe    []string `sep:"none" placeholder:"NAME[:key=value,…]" help:"What it shall hold from now on. May be repeated."`
	DNS       []string `name:"dns" placeholder:"N" help:"Its DNS names beside its own. May be repeated."`
	IP        []string `name:"ip" placeholder:"A" help:"Its IP addresses. May be repeated."`
	Profile   []string `placeholder:"P" help:"The profiles whose certificates it may have beside those of its recipes. May be repeated."`
	Label     []string `sep:"none" placeholder:"K=V" help:"A label to set; --label K= removes one, and the others stay. May be repeated."`
	Absent    bool     `help:"It is away: no certificate that peers pin waits until this host holds it. Its next report ends that."`
	Because   string   `placeholder:"TEXT" help:"Why it is away."`
	RevokeNow bool     `help:"Revoke the certificates of its machine with names that it no longer has, at once."`
	Clear     []string `enum:"recipe,dns,ip,profile" placeholder:"WHAT" help:"Empty a list: ${enum}. May be repeated."`
}

// Run changes a host.
func (c *hostSetCommand) Run(ctx context.Context, g *globals) error {
	orders, err := parseOrders(c.Recipe)
	if err != nil {
		return err
	}
	var in client.ChangeHostRequest
	for _, l := range []struct {
		name  string
		given int
		set   func()
	}{
		{"recipe", len(c.Recipe), func() { in.Placements = &orders }},
		{"dns", len(c.DNS), func() { in.DNS = &c.DNS }},
		{"ip", len(c.IP), func() { in.IP = &c.IP }},
		{"profile", len(c.Profile), func() { in.Profiles = &c.Profile }},
	} {
		cleared := slices.Contains(c.Clear, l.name)
		if cleared && l.given > 0 {
			return usage("give either --%s or --clear %s", l.name, l.name)
		}
		if cleared || l.given > 0 {
			l.set()
		}
	}
	labels, err := parseLabels(c.Label)
	if err != nil {
		return err
	}
	if labels != nil {
		in.Labels = &labels
	}
	if c.Absent != (c.Because != "") {
		return usage("give --absent and --because TEXT together")
	}
	if c.Absent {
		in.Absent = &c.Because
	}
	in.RevokeNow = c.RevokeNow
	if in == (client.ChangeHostRequest{}) {
		return usage("give what to change: --recipe, --dns, --ip, --profile, --label, --clear, --absent or --revoke-now")
	}
	if in.Placements != nil && *in.Placements == nil {
		in.Placements = &[]client.PlacementOrder{}
	}
	for _, names := range []*[]string{in.DNS, in.IP, in.Profiles} {
		if names != nil && *names == nil {
			*names = []string{}
		}
	}
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	host, err := api.ChangeHost(ctx, c.Name, in)
	if err != nil {
		return err
	}
	for _, left := range host.FormerNames {
		g.say("certificate %s of %s is good until %s for %s; once its agent has another, chancery host set %s --revoke-now ends it", left.Serial,
			printable(host.Name), stamp(left.NotAfter), printable(strings.Join(left.Names, ", ")), printable(host.Name))
	}
	return g.showHost(host)
}

type hostListCommand struct {
	Pool  string `placeholder:"P" help:"Only those of one pool."`
	State string `enum:",pending,joined,suspect,removed" default:"" placeholder:"S" help:"Only those that are pending, joined, suspect or removed."`
}

// hostLine is a line of the list: a placement of a host, or a host without one.
type hostLine struct {
	host      client.Host
	placement *client.Placement
}

// Run lists the hosts.
func (c *hostListCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	hosts := api.Hosts(ctx, client.HostFilter{Pool: c.Pool, State: c.State})
	if g.Output == "json" {
		return list(g, hosts, "", nil)
	}
	return list(g, hostLines(hosts), "HOST POOL RECIPE STATE SERIAL SERVED EXPIRES SEEN", hostLine.cells)
}

func hostLines(hosts iter.Seq2[client.Host, error]) iter.Seq2[hostLine, error] {
	return func(yield func(hostLine, error) bool) {
		for h, err := range hosts {
			if err != nil || len(h.Placements) == 0 {
				if !yield(hostLine{host: h}, err) {
					return
				}
				continue
			}
			failed := func(p client.Placement) int {
				if p.Observed.State == client.PlacementFailed {
					return 0
				}
				return 1
			}
			slices.SortStableFunc(h.Placements, func(a, b client.Placement) int { return failed(a) - failed(b) })
			for i := range h.Placements {
				if !yield(hostLine{h, &h.Placements[i]}, nil) {
					return
				}
			}
		}
	}
}

func (l hostLine) cells() []string {
	name, state, serial, served, expires := "-", l.host.State, "-", "-", "-"
	if p := l.placement; p != nil {
		name = p.Name
		if p.Name != p.Recipe {
			name = p.Name + "=" + p.Recipe
		}
		if l.host.State == client.HostJoined {
			state = p.Observed.State
		}
		serial, served, expires = short(p.Observed.Serial), short(p.Observed.Served), day(p.Observed.NotAfter)
	}
	return []string{l.host.Name, l.host.Pool, name, state, serial, served, expires, ago(l.host.SeenAt, time.Now())}
}

// short is enough of a serial to tell it from others of a host; host show has all of it.
func short(serial string) string {
	if len(serial) > 12 {
		return serial[:12] + "…"
	}
	return orDash(serial)
}

// ago prints how long ago something was, as coarse as it is known.
func ago(t, now time.Time) string {
	switch age := now.Sub(t); {
	case t.IsZero():
		return "never"
	case age < 2*time.Minute:
		return "now"
	case age < 2*time.Hour:
		return fmt.Sprintf("%dm ago", int(age.Minutes()))
	case age < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(age.Hours()))
	default:
		return fmt.Sprintf("%dd ago", int(age.Hours()/24))
	}
}

type hostShowCommand struct {
	Name string `arg:"" name:"NAME" help:"The host."`
}

// Run shows a host.
func (c *hostShowCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	host, err := api.Host(ctx, c.Name)
	if err != nil {
		return err
	}
	return g.showHost(host)
}

// labelText are labels on one line, by their names.
func labelText(labels map[string]string) string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, key+"="+labels[key])
	}
	return strings.Join(all, ", ")
}

func (g *globals) showHost(h *client.Host) error {
	fields := []field{
		{"name", printable(h.Name)}, {"pool", h.Pool}, {"state", h.State}, {"message", printable(h.Message)}, {"absent", printable(h.Absent)},
		{"dns", strings.Join(h.DNS, ", ")},
		{"ip", strings.Join(h.IP, ", ")}, {"added", stamp(h.CreatedAt)}, {"joined", stamp(h.JoinedAt)}, {"seen", stamp(h.SeenAt)},
		{"profiles beside", strings.Join(h.Profiles, ", ")}, {"labels", printable(labelText(h.Labels))},
		{"join token until", stamp(h.TokenExpires)}, {"agent", printable(h.Agent)}, {"identity until", stamp(h.IdentityEnds)},
	}
	for _, p := range h.Placements {
		o := p.Observed
		fields = append(fields, field{"placement", printable(p.Name)}, field{"  recipe", printable(recipe.FormatOrder(p.PlacementOrder))},
			field{"  state", o.State}, field{"  message", printable(o.Message)}, field{"  serial", printable(o.Serial)}, field{"  served", printable(o.Served)},
			field{"  expires", stamp(o.NotAfter)}, field{"  re-key", stamp(o.RekeyAt)}, field{"  allow-list line", printable(o.AllowList)})
		fields = append(fields, standing(o)...)
		for _, f := range o.Files {
			text := strings.TrimSpace(fmt.Sprintf("%s %s:%s %s %s", f.Mode, f.Owner, f.Group, f.Path, f.Label))
			fields = append(fields, field{"  file", printable(text)})
		}
		for _, issuer := range slices.Sorted(maps.Keys(o.CRLs)) {
			fields = append(fields, field{"  CRL", printable(issuer + " " + o.CRLs[issuer])})
		}
		for _, repaired := range o.Repaired {
			fields = append(fields, field{"  repaired", printable(repaired)})
		}
		for _, fact := range slices.Sorted(maps.Keys(o.Facts)) {
			fields = append(fields, field{"  fact", printable(fact + " = " + o.Facts[fact])})
		}
		fields = append(fields, field{"  reported", stamp(o.At)})
	}
	return g.show(h, fields...)
}

type hostRemoveCommand struct {
	Name   string `arg:"" name:"NAME" help:"The host."`
	Reason string `default:"cessationOfOperation" placeholder:"R" help:"Why what it holds is revoked, as RFC 5280 names it."`
}

// Run removes a host.
func (c *hostRemoveCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	host, err := api.Host(ctx, c.Name) // whose names are gone afterwards
	if err != nil {
		return err
	}
	if err := api.RemoveHost(ctx, c.Name, c.Reason); err != nil {
		return err
	}
	for _, left := range host.OthersCertificates {
		g.say("certificate %s, which %s requested, stays good until %s for %s: chancery cert revoke %s", left.Serial, printable(left.Requester),
			stamp(left.NotAfter), printable(strings.Join(left.Names, ", ")), left.Serial)
	}
	g.say("host %s is removed, and what its machine held is revoked", printable(c.Name))
	return nil
}

type hostReplaceCommand struct {
	Name      string `arg:"" name:"NAME" help:"The host."`
	Reason    string `default:"superseded" placeholder:"R" help:"Why what the old machine holds is revoked when the new one joins, as RFC 5280 names it; keyCompromise revokes it at once."`
	TokenLife string `default:"24h" placeholder:"L" help:"How long the join token is good: 24h, 7d; 30d at most."`
}

// Run lets another machine take a host's place.
func (c *hostReplaceCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	made, err := api.ReplaceHost(ctx, c.Name, client.ReplaceHostRequest{Reason: c.Reason, TokenLife: c.TokenLife})
	if err != nil {
		return err
	}
	return g.printToken(made)
}

type hostTokenCommand struct {
	Name      string `arg:"" name:"NAME" help:"The host."`
	TokenLife string `default:"24h" placeholder:"L" help:"How long the join token is good: 24h, 7d; 30d at most."`
}

// Run makes another join token.
func (c *hostTokenCommand) Run(ctx context.Context, g *globals) error {
	api, err := g.connect()
	if err != nil {
		return err
	}
	defer api.Close()
	made, err := api.NewHostToken(ctx, c.Name, client.HostTokenRequest{TokenLife: c.TokenLife})
	if err != nil {
		return err
	}
	return g.printToken(made)
}
