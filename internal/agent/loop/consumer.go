package loop

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"chancery/internal/agent/place"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
)

// consumer is the program that reads a placement's files, as internal/agent/place asks it.
type consumer struct {
	system probe.System
	plan   *recipe.Plan
	last   *recipe.Plan      // what was placed before; nil where nothing was
	before *x509.Certificate // of last's chief certificate; nil where nothing was
	want   map[string]*probe.Material
	now    time.Time
	// gentle leaves out a reload that would interrupt connections.
	gentle  bool
	skipped bool
	// trusted: the consumer has read all of the trust that is placed, and is to be told of certificates only.
	trusted bool
	beat    func()            // tells that the agent got on
	served  *probe.Seen       // the last that was seen on the live port
	late    error             // parts of the consumer that do not serve what is placed, while others do
	reasons map[string]string // why a part could not be told, by its name
	note    func(string)      // takes how it was told, where that was not as usual
	told    bool              // it was told of new files
	ran     probe.Listening   // who listened at its port before it was told
	restart time.Duration     // how long it is waited for where it ended when it was told
	ended   bool              // it ended when it was told, and nothing had started it again when we looked last
}

func (w *work) consumer(plan *recipe.Plan, want map[string]*probe.Material, gentle bool) *consumer {
	note := func(text string) {
		if !slices.Contains(w.notes, text) {
			w.notes = append(w.notes, text)
		}
	}
	return &consumer{system: w.agent.system, plan: plan, last: w.record.Plan, want: want, now: w.now, gentle: gentle,
		beat: w.agent.beat, note: note, restart: w.agent.pace.Restart}
}

// Down reports whether the consumer does not run. It is known of one that has a port, a file with its process's number, or a
// service of systemd that its reload restarts.
func (c *consumer) Down(ctx context.Context) bool {
	c.beat()
	if p := c.plan.Probe; p != nil && p.Address != "" {
		_, err := probe.Look(ctx, *p, nil)
		return probe.IsDown(err)
	}
	if c.plan.Reload != nil && c.plan.Reload.Signal != nil {
		process, err := c.process(*c.plan.Reload.Signal)
		if err == nil {
			process.Release()
		}
		return errors.Is(err, errNotRunning)
	}
	if c.plan.Reload != nil {
		return c.stopped(ctx, *c.plan.Reload)
	}
	return false
}

// Check asks whether the consumer would take the files that are there: its user must be able to read them, and its own
// checks must succeed.
func (c *consumer) Check(ctx context.Context) error {
	for _, f := range c.plan.Files {
		for _, path := range readers(f) {
			if err := probe.Readable(ctx, c.system, path, c.plan.User, c.plan.Group); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	for _, step := range c.plan.Checks {
		if err := c.do(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

// Reload tells the consumer of what was placed. One that ends of it, and is started again by whoever looks after it, has
// read the new files when it started.
func (c *consumer) Reload(ctx context.Context) error {
	if c.plan.Reload == nil {
		return nil
	}
	if c.gentle && c.plan.Reload.Interrupts {
		c.skipped = true
		return nil
	}
	c.beforeTelling()
	err := c.do(ctx, *c.plan.Reload)
	if err == nil || !c.hasEnded(ctx) {
		return err
	}
	return c.comesBack(ctx, err, c.probe)
}

// Return tells the consumer of the old files, which were put back. It ran when it was told of the new ones.
func (c *consumer) Return(ctx context.Context) error {
	if c.plan.Reload == nil || c.skipped {
		return nil
	}
	if _, unit := c.plan.Reload.Service(); c.ended && unit == "" {
		return c.comesBack(ctx, errNotBack, c.showsOld) // it is not there to be told; who starts it now starts it with the old files
	}
	c.beforeTelling()
	err := c.tellOfOld(ctx)
	if err == nil || !c.hasEnded(ctx) {
		return err
	}
	return c.comesBack(ctx, err, c.showsOld)
}

func (c *consumer) tellOfOld(ctx context.Context) error {
	step := c.restored(ctx, *c.plan.Reload)
	if step.Action != actionOpenLDAP || c.last == nil {
		return c.do(ctx, step)
	}
	if err := c.setOpenLDAPFiles(ctx, step, c.last, c.plan); err != nil {
		return fmt.Errorf("%s: %w", step.Name, err)
	}
	return nil
}

// Probe looks whether the consumer serves what was placed. One that is found ended after it was told is waited for.
func (c *consumer) Probe(ctx context.Context) error {
	err := c.probe(ctx)
	if err == nil || !c.told || !probe.IsDown(err) {
		return err
	}
	return c.comesBack(ctx, err, c.probe)
}

func (c *consumer) probe(ctx context.Context) error {
	c.beat()
	p := c.plan.Probe
	switch {
	case p == nil:
		return nil
	case len(p.Command) > 0:
		if _, err := c.system.Run(ctx, probe.Command{Args: p.Command, User: p.User, Timeout: time.Duration(p.Timeout)}); err != nil {
			return fmt.Errorf("probe: %w", err)
		}
		return nil
	case p.Action != "":
		return c.lookAtVNC(ctx, *p)
	case p.Holds != "":
		return c.holds(p.Holds)
	case p.Address == "":
		return nil
	}
	m := c.want[c.plan.Certificates[0].ID]
	if over(m, c.now) {
		return c.serves(ctx, *p, m)
	}
	var client *tls.Certificate
	if of := c.want[p.ClientCertificate]; of != nil {
		client = &tls.Certificate{PrivateKey: of.Key, Leaf: of.Path[0]}
		for _, certificate := range of.Path {
			client.Certificate = append(client.Certificate, certificate.Raw)
		}
	}
	seen, err := probe.Served(ctx, *p, m.Path[0], m.Roots(), client, c.now)
	if seen != nil {
		c.served = seen
	}
	return err
}

// do takes one step: its time is bounded, and no shell is between.
func (c *consumer) do(ctx context.Context, step recipe.Step) error {
	c.beat()
	var err error
	switch {
	case len(step.Command) > 0:
		_, err = c.system.Run(ctx, probe.Command{Args: step.Command, User: step.User, Timeout: time.Duration(step.Timeout)})
	case step.Signal != nil:
		err = c.signal(*step.Signal)
	case step.Action == actionMatch:
		err = c.matchPairs()
	case step.Action == actionHAProxy:
		err = c.setHAProxyCertificate(ctx, step)
	case step.Action == actionReloadQEMU, step.Action == actionReloadLibvirt:
		err = c.reloadVNC(ctx, step)
	case step.Action == actionCheckQEMU:
		err = c.checkQEMU(ctx, step)
	case step.Action == actionOpenLDAP:
		err = c.setOpenLDAPFiles(ctx, step, c.plan, c.last)
	default:
		err = fault.New(fault.Invalid, "the step says nothing that this agent can do here")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", step.Name, err)
	}
	return nil
}

// errNotRunning says that the process to be told of new files is not there.
var errNotRunning = errors.New("it is not running")

// signals are what a consumer may be told.
func signals(name string) (syscall.Signal, error) {
	known := map[string]syscall.Signal{
		"HUP": syscall.SIGHUP, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "WINCH": syscall.SIGWINCH,
		"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "QUIT": syscall.SIGQUIT,
	}
	s, ok := known[strings.TrimPrefix(name, "SIG")]
	if !ok {
		return 0, fault.New(fault.Invalid, "%q is no signal that a consumer is told; HUP, USR1, USR2, WINCH, INT, TERM and QUIT pass", name)
	}
	return s, nil
}

func (c *consumer) signal(s recipe.Signal) error {
	number, err := signals(s.Signal)
	if err != nil {
		return err
	}
	process, err := c.process(s)
	if err != nil {
		return err
	}
	defer process.Release()
	return process.Signal(number)
}

// mostPIDFile bounds the file with a process's number, which may hold other lines.
const mostPIDFile = 4 << 10

// process finds the process of a signal. It is taken hold of before its name is read (a pidfd, where the kernel has it), so
// that the signal goes to the process that was looked at, and not to a later one with its number.
func (c *consumer) process(s recipe.Signal) (*os.Process, error) {
	file := c.system.Path(s.PIDFile)
	text, err := place.ReadPlain(c.system.Root, s.PIDFile, mostPIDFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s does not exist", errNotRunning, file)
	}
	if err != nil {
		return nil, fmt.Errorf("read the number of its process: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 1 {
		return nil, fault.New(fault.Invalid, "the first line of %s is no process number", file)
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotRunning, err)
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		process.Release()
		return nil, fmt.Errorf("%w: there is no process %d, which %s names", errNotRunning, pid, file)
	}
	if got := strings.TrimSpace(string(name)); got != s.Process {
		process.Release()
		return nil, fmt.Errorf("%w: process %d, which %s names, is %q and not %s", errNotRunning, pid, file, got, s.Process)
	}
	return process, nil
}

// after takes the steps that follow a placement that succeeded. What goes wrong with one is told; the placement stands.
func (w *work) after(ctx context.Context, began time.Time) {
	if w.down {
		return
	}
	for _, step := range w.plan.After {
		var err error
		if step.Action == actionDrop {
			err = w.dropRevoked(ctx, step)
		} else {
			err = w.consumer(w.plan, nil, false).do(ctx, step)
		}
		if err != nil {
			w.fail(fmt.Errorf("after placing: %s: %w", step.Name, err))
		}
	}
}

func cloneWith(with map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range with {
		out[k] = v
	}
	return out
}

// withProgram puts a host's own vector in the place of an action's program; its further words come before the action's own.
func withProgram(with map[string]string, vector []string) map[string]string {
	out := cloneWith(with)
	out["program"] = vector[0]
	if len(vector) > 1 {
		out["words"] = strings.Join(slices.Clone(vector[1:]), "\x00")
	}
	return out
}
