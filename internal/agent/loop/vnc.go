package loop

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/pki/cert"
)

// The actions that concern the VNC displays of virtual machines that run. QEMU loads the certificates of a display once, and
// again when it is told to (display-reload, since 6.0); the machine and whoever looks at it go on.
const (
	actionReloadQEMU    = "reload-qemu-vnc"
	actionReloadLibvirt = "reload-libvirt-vnc"
	actionLookQEMU      = "look-at-qemu-vnc"
	actionLookLibvirt   = "look-at-libvirt-vnc"
)

// machine is a virtual machine that runs, with a VNC display.
type machine struct {
	name    string
	display string // host:port
	reload  func(context.Context) error
}

// filesRefused is the error of a QEMU that was told, and does not take the files; what it had it keeps.
type filesRefused struct{ error }

func (f filesRefused) Unwrap() error { return f.error }

// mostMachines bounds how many machines are asked at once: each is a program or a socket, and a host may have hundreds.
const mostMachines = 8

// machines are those that run, as far as they can be seen; what cannot be is in the error.
func (c *consumer) machines(ctx context.Context, action string, with map[string]string) ([]machine, error) {
	if action == actionReloadQEMU || action == actionLookQEMU {
		return machinesOfQMP(ctx, c.system.Path(with["sockets"]), c.system.Path(with["dir"]))
	}
	return machinesOfLibvirt(ctx, c.system, with)
}

// eachMachine calls f for every one, some at once.
func eachMachine[T any](all []T, f func(T)) {
	var wait sync.WaitGroup
	room := make(chan struct{}, mostMachines)
	for _, m := range all {
		room <- struct{}{}
		wait.Go(func() {
			defer func() { <-room }()
			f(m)
		})
	}
	wait.Wait()
}

// reloadVNC has every machine that runs load the files again. It fails only where machines refuse the files and none takes
// them: then they are not good. One that cannot be told, because it is too old or does not answer, does not keep the others
// from their certificates; why is remembered for the look at its display.
func (c *consumer) reloadVNC(ctx context.Context, step recipe.Step) error {
	all, _ := c.machines(ctx, step.Action, step.With) // the look says which could not be asked
	var mu sync.Mutex
	var refused []error
	reasons, took := map[string]string{}, 0
	eachMachine(all, func(m machine) {
		if _, err := c.shown(ctx, m); errors.Is(err, probe.ErrNotTLS) {
			return // looking says so
		}
		err := m.reload(ctx)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			took++
			return
		}
		reasons[m.name] = err.Error()
		if _, is := errors.AsType[filesRefused](err); is {
			refused = append(refused, fmt.Errorf("machine %s: %w", m.name, err))
		}
	})
	c.reasons = reasons
	if took == 0 && len(refused) > 0 {
		slices.SortFunc(refused, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return errors.Join(refused...)
	}
	return nil
}

// lookAtVNC wants every display that has TLS to show what is placed. Those that do not are named in c.late, and are no
// failure of the placement.
func (c *consumer) lookAtVNC(ctx context.Context, p recipe.Probe) error {
	all, wrong := c.machines(ctx, p.Action, p.With)
	var mu sync.Mutex
	late := map[string]error{}
	var plain []string
	want := c.want[c.plan.Certificates[0].ID]
	eachMachine(all, func(m machine) {
		seen, err := c.shown(ctx, m)
		if err == nil && seen.Leaf().Equal(want.Path[0]) {
			err = seen.Judge(want.Roots(), c.now)
		} else if err == nil {
			err = fmt.Errorf("its display serves certificate %s, and certificate %s was placed", cert.FormatSerial(seen.Leaf().SerialNumber),
				cert.FormatSerial(want.Path[0].SerialNumber))
			if why := c.reasons[m.name]; why != "" {
				err = fmt.Errorf("%w: %s", err, why)
			} else {
				err = fmt.Errorf("%w: if it was started with another directory, stop and start it, or migrate it", err)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil:
			c.served = seen
		case errors.Is(err, probe.ErrNotTLS):
			plain = append(plain, m.name)
		case errors.Is(err, probe.ErrDown):
			return // it ended meanwhile
		default:
			late[m.name] = err
		}
	})
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(late)) {
		errs = append(errs, fmt.Errorf("machine %s: %w", name, late[name]))
	}
	c.late = errors.Join(append(errs, wrong)...)
	if len(plain) > 0 {
		slices.Sort(plain)
		c.note("displays without TLS, of machines that were started before it was set up or are not to have it: " + strings.Join(plain, ", "))
	}
	return nil
}

// shown looks at a machine's display. An address that is not this host's is not connected to: a machine that is not what it
// should be could have said it.
func (c *consumer) shown(ctx context.Context, m machine) (*probe.Seen, error) {
	if !isOwn(m.display) {
		return nil, fmt.Errorf("its display is said to be at %s, which is no address of this host", m.display)
	}
	return probe.Look(ctx, recipe.Probe{Address: m.display, StartTLS: "vnc"}, nil)
}

// isOwn reports whether an address, host:port, is one of this host.
func isOwn(address string) bool {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return false
	}
	ip := at.Addr().Unmap()
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	own, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(own, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(ip.AsSlice())
	})
}

// look asks whether the consumer serves what is placed, wherever it runs.
func (c *consumer) look(ctx context.Context) error {
	c.late = nil
	return errors.Join(c.Probe(ctx), c.late)
}
