package examine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"chancery/client"
	"chancery/internal/agent/loop"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/upkeep/finding"
)

// HostOptions are how a host is looked at.
type HostOptions struct {
	// State is the state directory of the host's agent, where one looks on the host itself. With Guessed it is looked at only
	// where it is there, readable, and this host's.
	State   string
	Guessed bool
	Trust   *Trust
	Timeout time.Duration
	Offline bool
	System  probe.System
	// FetchPrivate is that of PortOptions.
	FetchPrivate bool
}

// silentAfter is how long an agent may be silent: it reports every hour, and calls every minute.
const silentAfter = time.Hour

// Unreachable says that the authority could not be asked.
func Unreachable(err error) finding.Finding {
	r := &report{where: "wire", object: "authority"}
	r.tell("authority.unreachable", shorten(clean(err.Error()), 300), "what the authority knows was not looked at", "chancery status")
	return r.found[0]
}

// Host looks at a host of the authority: what its agent reported, what its ports serve as seen from here, and on the host
// itself at what was placed.
func Host(ctx context.Context, a *Authority, name string, o HostOptions, now time.Time) ([]finding.Finding, error) {
	h, err := a.API.Host(ctx, name)
	if err != nil {
		return nil, err
	}
	r := &report{where: "host", object: h.Name}
	r.lookAtHost(h, now)
	for i := range h.Placements {
		r.object = h.Name + " " + h.Placements[i].Name
		r.lookAtPlacement(h, &h.Placements[i], now)
	}
	if o.Trust == nil && h.Pool != "" {
		o.Trust = a.poolTrust(ctx, h.Pool)
	}
	if err := r.lookAtPorts(ctx, h, a, o, now); err != nil {
		return nil, err
	}
	r.object = h.Name
	return r.found, r.lookLocally(ctx, h, o, now)
}

// mostAtOnce bounds the ports of a host that are looked at at a time.
const mostAtOnce = 8

// lookAtPorts looks at the ports of all placements. One that does not answer holds up none of the others.
func (r *report) lookAtPorts(ctx context.Context, h *client.Host, a *Authority, o HostOptions, now time.Time) error {
	var group errgroup.Group
	group.SetLimit(mostAtOnce)
	each := make([]*report, len(h.Placements))
	for i := range h.Placements {
		each[i] = &report{where: r.where, object: h.Name + " " + h.Placements[i].Name}
		group.Go(func() error { return each[i].lookAtServed(ctx, h, &h.Placements[i], a, o, now) })
	}
	err := group.Wait()
	for _, one := range each {
		r.found = append(r.found, one.found...)
	}
	return err
}

// lookAtHost judges the host as a whole.
func (r *report) lookAtHost(h *client.Host, now time.Time) {
	switch h.State {
	case client.HostPending:
		r.tell("state.pending", h.State, fmt.Sprintf("no agent has joined as %s", h.Name), "chancery host token "+h.Name)
		return
	case client.HostSuspect:
		r.tell("state.suspect", orNone(h.Message), fmt.Sprintf("the identity of %s was used by two machines", h.Name), "chancery host replace "+h.Name)
	case client.HostRemoved:
		r.tell("state.removed", h.State, fmt.Sprintf("%s was removed", h.Name), "")
		return
	}
	switch {
	case h.SeenAt.IsZero() || now.Sub(h.SeenAt) > silentAfter:
		seen := "never"
		if !h.SeenAt.IsZero() {
			seen = "last seen " + stamp(h.SeenAt)
		}
		r.tell("silent", seen, fmt.Sprintf("the agent of %s has not called for %s", h.Name, since(h.SeenAt, now)),
			"systemctl status chancery-agent; chancery agent status    (on "+h.Name+")")
	default:
		r.ok("state", "%s in pool %s, seen %s ago", h.State, h.Pool, span(now.Sub(h.SeenAt)))
	}
	left := h.IdentityEnds.Sub(now)
	switch {
	case h.IdentityEnds.IsZero():
	case left < 0:
		r.tell("identity.expired", "ended "+stamp(h.IdentityEnds), fmt.Sprintf("the identity of %s ended %s ago", h.Name, span(left)),
			fmt.Sprintf("chancery host replace %s, and on it: chancery agent join --again --token-file F", h.Name))
	case left < 7*24*time.Hour && !h.JoinedAt.IsZero():
		r.tell("identity.ends", "ends "+stamp(h.IdentityEnds), fmt.Sprintf("the identity of %s ends in %s", h.Name, span(left)), "chancery agent run --once    (as root on "+h.Name+")")
	default:
		r.ok("identity", "for another %s", span(left))
	}
}

func since(t, now time.Time) string {
	if t.IsZero() {
		return "as long as it is known"
	}
	return span(now.Sub(t))
}

// lookAtPlacement judges what the agent reported of a placement.
func (r *report) lookAtPlacement(h *client.Host, p *client.Placement, now time.Time) {
	o := p.Observed
	once := fmt.Sprintf("chancery agent run --once    (as root on %s)", h.Name)
	message := orNone(o.Message)
	switch o.State {
	case client.PlacementFailed:
		r.tell("placement.failed", o.State, message, once)
	case client.PlacementDown:
		r.tell("placement.down", o.State, "the consumer of recipe "+p.Recipe+" is down; the files are in place", "")
	case client.PlacementPending, "":
		if h.State == client.HostJoined {
			r.tell("placement.pending", client.PlacementPending, "the agent has not reported on it", once)
		}
	default:
		r.ok("placement", "%s, serial %s, reported %s ago%s", o.State, orNone(o.Serial), span(now.Sub(o.At)), behind(o.Message))
	}
	switch {
	case o.NotAfter.IsZero():
	case now.After(o.NotAfter):
		r.tell("placement.expired", "notAfter "+stamp(o.NotAfter), fmt.Sprintf("its certificate ended %s ago", span(now.Sub(o.NotAfter))), once)
	case !o.RekeyAt.IsZero() && now.After(o.RekeyAt.Add(24*time.Hour)):
		r.tell("placement.late", "was to be re-keyed "+stamp(o.RekeyAt), fmt.Sprintf("its certificate ends in %s and is not replaced", span(o.NotAfter.Sub(now))), once)
	}
	for _, drift := range o.Repaired {
		r.ok("placement.repaired", "%s", drift)
	}
	for _, f := range o.Files {
		label := ""
		if f.Label != "" {
			label = ", " + f.Label
		}
		r.ok("file", "%s: %s:%s %s%s", f.Path, f.Owner, f.Group, f.Mode, label)
	}
}

func behind(message string) string {
	if message == "" {
		return ""
	}
	return ": " + message
}

// lookAtServed looks at the placement's port from here, by the host's own names and addresses: where it is, is not taken from
// what the host says, but for the port.
func (r *report) lookAtServed(ctx context.Context, h *client.Host, p *client.Placement, a *Authority, o HostOptions, now time.Time) error {
	if p.Observed.Address == "" || h.State != client.HostJoined {
		return nil
	}
	_, port, err := net.SplitHostPort(p.Observed.Address)
	if err != nil {
		return nil
	}
	options := PortOptions{
		StartTLS: orElse(p.Observed.StartTLS, "none"), Trust: o.Trust, Recipe: p.Recipe, Plan: planOf(h, p), Authority: a,
		Timeout: o.Timeout, Offline: o.Offline, FetchPrivate: o.FetchPrivate, Quick: true, ServerName: h.Name,
	}
	if _, known := recipe.Builtin(p.Recipe); !known {
		options.Recipe = ""
	}
	options.Names = namesOf(options.Plan)
	if i := slices.IndexFunc(options.Names, func(n string) bool { return asked(n, "") != "" }); i >= 0 {
		options.ServerName = options.Names[i]
	}
	var served *Served
	var told []finding.Finding
	var tried []string
	for _, at := range places(h) {
		address := net.JoinHostPort(at, port)
		found, seen, err := Port(ctx, address, options, now)
		if err != nil {
			return err
		}
		if seen != nil {
			served, told, tried = seen, found, []string{address}
			break
		}
		tried = append(tried, address)
		told = append(told, found...)
	}
	if served == nil {
		r.notSeen(p, tried, told)
		return nil
	}
	r.contradiction(h, p, tried[0], served)
	r.wrongThere(tried[0], told)
	return nil
}

// places are where a host is looked for: at most four.
func places(h *client.Host) []string {
	at := slices.Concat(h.IP, h.DNS)
	at = slices.DeleteFunc(at, func(s string) bool { return s == "" || s[0] == '*' })
	return at[:min(4, len(at))]
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// planOf decides the recipe as the host would, by the facts that it reported.
func planOf(h *client.Host, p *client.Placement) *recipe.Plan {
	r, ok := recipe.Builtin(p.Recipe)
	if !ok {
		return nil
	}
	plan, err := r.Resolve(recipe.Host{Name: h.Name, DNS: h.DNS, IP: h.IP}, p.Parameters, p.Observed.Facts)
	if err != nil {
		return nil
	}
	return plan
}

// namesOf are the names by which peers look for what is planned: none where that is not known here, since a recipe may have its
// certificate for other names than the host's.
func namesOf(plan *recipe.Plan) []string {
	names := []string{}
	if plan == nil || len(plan.Certificates) == 0 {
		return names
	}
	wanted := plan.Certificates[0].Names
	if plan.Probe != nil && len(plan.Probe.Names) > 0 {
		wanted = plan.Probe.Names
	}
	const most = 8
	for _, name := range wanted {
		name = strings.TrimPrefix(strings.TrimPrefix(name, "dns:"), "ip:")
		if len(names) < most && !strings.ContainsRune(name, '*') {
			names = append(names, name)
		}
	}
	return names
}

// notSeen tells that no port was found. One that the agent saw on loopback alone may well be there alone.
func (r *report) notSeen(p *client.Placement, tried []string, told []finding.Finding) {
	host, _, _ := net.SplitHostPort(p.Observed.Address)
	address, err := netip.ParseAddr(host)
	if p.Observed.State == client.PlacementDown || p.Observed.State == client.PlacementFailed {
		return // that is told already
	}
	seen := fmt.Sprintf("%v", tried)
	for _, f := range told {
		if f.Level == finding.Error {
			seen = f.Message
		}
	}
	if host == "localhost" || err == nil && address.IsLoopback() {
		r.ok("port", "the agent looks at %s, which is not seen from here (%s)", p.Observed.Address, seen)
		return
	}
	if len(tried) == 0 {
		seen = "the host has no name or address"
	}
	r.tell("port.unreachable", seen, fmt.Sprintf("the agent reports %s, and from here its port does not show that", p.Observed.State), "")
}

// contradiction holds what is served against what the agent reported.
func (r *report) contradiction(h *client.Host, p *client.Placement, address string, served *Served) {
	has, said := serial(served.Path[0]), p.Observed.Serial
	switch {
	case said == "":
		r.ok("port", "%s serves serial %s; the agent has reported none", address, has)
	case has == said:
		r.ok("port", "%s serves serial %s, as the agent reported", address, has)
	case servesAnother(h, has):
		r.ok("port", "%s serves serial %s, which is another placement's of this host", address, has)
	default:
		r.tell("port.contradiction", fmt.Sprintf("serial %s (%s), not %s", has, named(served.Path[0]), said),
			fmt.Sprintf("%s serves another certificate than the agent reported %s", address, stamp(p.Observed.At)),
			fmt.Sprintf("chancery agent run --once; chancery doctor %s    (as root on %s)", h.Name, h.Name))
	}
}

func servesAnother(h *client.Host, serial string) bool {
	return slices.ContainsFunc(h.Placements, func(p client.Placement) bool { return p.Observed.Serial == serial || p.Observed.Served == serial })
}

// wrongThere tells what is wrong at a port in the placement's name. What only warns is left to a look at the port itself.
func (r *report) wrongThere(address string, told []finding.Finding) {
	wrong := 0
	for _, f := range told {
		if f.Level != finding.Error {
			continue
		}
		if wrong++; wrong <= 8 {
			r.tell("port.wrong", f.Check+": "+f.Seen, f.Message, orElse(f.Hint, "chancery doctor "+address))
		}
	}
	if wrong == 0 {
		r.ok("port.judged", "nothing is wrong with what %s shows", address)
	}
}

// lookLocally looks at what was placed, where one is on the host.
func (r *report) lookLocally(ctx context.Context, h *client.Host, o HostOptions, now time.Time) error {
	if o.State == "" {
		return nil
	}
	status, err := loop.Look(o.State, now)
	if o.Guessed && (err != nil || status.Host != h.Name) {
		return nil
	}
	if err != nil {
		return err
	}
	if status.Host != h.Name {
		return fmt.Errorf("the state directory %s is that of %s, and not of %s", o.State, orNone(status.Host), h.Name)
	}
	if !status.Running {
		r.object = h.Name
		r.tell("agent.stopped", "no process holds "+o.State, "no agent runs on this host", "systemctl enable --now chancery-agent")
	}
	placed, err := loop.LookPlaced(o.State)
	if err != nil {
		return err
	}
	system := o.System
	system.Root = status.Root
	if system.Root == "/" {
		system.Root = ""
	}
	for _, p := range placed {
		r.object = h.Name + " " + p.Name
		l := &local{report: r, placed: p, system: system, state: o.State, now: now}
		if err := l.look(ctx, o.Timeout); err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return nil
}
