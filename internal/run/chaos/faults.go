package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"chancery/client"
	"chancery/internal/run/cluster"
)

// strike is a fault as it was planned: it returns what heals it.
type strike struct {
	name   string
	budget string        // what the time until the next issuance is held against; empty for nothing
	stops  bool          // the node of the struck machine stands still, or ends
	hold   time.Duration // how long it lasts, and until somebody has issued again
	begin  func(context.Context) (struck string, heal func() error, err error)
}

// nodeAt is the name of the node that was struck, or is on the machine that was.
func (w *world) nodeAt(struck string) string {
	for _, n := range w.nodes {
		if n.name == struck || n.member.Name == struck {
			return n.name
		}
	}
	return ""
}

// of is the node on a member's machine.
func (w *world) of(m *cluster.Member) *node {
	return w.nodes[slices.Index(w.cluster.Members, m)]
}

func (w *world) killNode(hold time.Duration) strike {
	n := w.nodes[w.dice.IntN(len(w.nodes))]
	return strike{"kill node", "node-kill", true, hold, func(context.Context) (string, func() error, error) {
		return n.name, n.start, n.signal(syscall.SIGKILL)
	}}
}

func (w *world) freezeNode(hold time.Duration) strike {
	n := w.nodes[w.dice.IntN(len(w.nodes))]
	return strike{"freeze node", "", true, hold, func(context.Context) (string, func() error, error) {
		return n.name, func() error { return n.signal(syscall.SIGCONT) }, n.signal(syscall.SIGSTOP)
	}}
}

func none() error { return nil }

func (w *world) killProcess(hold time.Duration, which func(context.Context) (*cluster.Member, error), budget string) strike {
	return strike{"kill PostgreSQL", budget, false, hold, func(ctx context.Context) (string, func() error, error) {
		m, err := which(ctx)
		if err != nil {
			return "", nil, err
		}
		return m.Name, none, m.Kill(cluster.Process) // Patroni starts it again
	}}
}

func (w *world) killMachine(hold time.Duration, which func(context.Context) (*cluster.Member, error), budget string) strike {
	return strike{"kill machine", budget, true, hold, func(ctx context.Context) (string, func() error, error) {
		m, err := which(ctx)
		if err != nil {
			return "", nil, err
		}
		n := w.of(m)
		if err := errors.Join(n.signal(syscall.SIGKILL), m.Kill(cluster.Machine)); err != nil {
			return "", nil, err
		}
		return m.Name, func() error { return errors.Join(m.Restart(), n.start()) }, nil
	}}
}

func (w *world) freezeMember(hold time.Duration, which func(context.Context) (*cluster.Member, error), budget string) strike {
	return strike{"freeze member", budget, false, hold, func(ctx context.Context) (string, func() error, error) {
		m, err := which(ctx)
		if err != nil {
			return "", nil, err
		}
		return m.Name, func() error { return m.Thaw(cluster.Machine) }, m.Freeze(cluster.Machine)
	}}
}

// freezeMachine stops a member and the node beside it: both go on believing what they held when they stopped.
func (w *world) freezeMachine(hold time.Duration, which func(context.Context) (*cluster.Member, error), budget string) strike {
	return strike{"freeze machine", budget, true, hold, func(ctx context.Context) (string, func() error, error) {
		m, err := which(ctx)
		if err != nil {
			return "", nil, err
		}
		n := w.of(m)
		if err := errors.Join(m.Freeze(cluster.Machine), n.signal(syscall.SIGSTOP)); err != nil {
			return "", nil, err
		}
		return m.Name, func() error { return errors.Join(m.Thaw(cluster.Machine), n.signal(syscall.SIGCONT)) }, nil
	}}
}

// freezePatroni stops the primary's Patroni alone: another is promoted while PostgreSQL goes on there, and takes writes whose outcome nobody
// is told.
func (w *world) freezePatroni(hold time.Duration) strike {
	return strike{"freeze Patroni", "", false, hold, func(ctx context.Context) (string, func() error, error) {
		m, err := w.cluster.Primary(ctx)
		if err != nil {
			return "", nil, err
		}
		return m.Name, func() error { return m.Thaw(cluster.Patroni) }, m.Freeze(cluster.Patroni)
	}}
}

// cut parts a machine, its node included, from all others; where it has no link of its own, its member stands still instead.
func (w *world) cut(hold time.Duration, which func(context.Context) (*cluster.Member, error), budget string) strike {
	return strike{"cut machine off", budget, false, hold, func(ctx context.Context) (string, func() error, error) {
		m, err := which(ctx)
		if err != nil {
			return "", nil, err
		}
		n := w.of(m)
		if err := m.Cut(); err != nil {
			return "", nil, err
		}
		n.cutOff.Store(m.Link != nil)
		return m.Name, func() error {
			err := w.within(ctx, n)
			n.cutOff.Store(false)
			return errors.Join(err, m.Heal())
		}, nil
	}}
}

// within has a caller on a machine that is cut off ask its node for a certificate, and for a revocation; somebody on the other side has the same
// certificate revoked for another reason. The cut-off side may acknowledge neither, and the reason at the end is one that was not refused: Check judges.
func (w *world) within(ctx context.Context, n *node) error {
	at, name := slices.Index(w.nodes, n), fmt.Sprintf("within-%s-%d", n.name, time.Now().UnixMicro())
	inside, err := w.caller(name, at)
	if err != nil {
		return err
	}
	defer inside.close()
	outside, err := w.caller("across-"+name, (at+1)%len(w.nodes))
	if err != nil {
		return err
	}
	defer outside.close()
	serial := outside.doomed()
	var both errgroup.Group
	both.Go(func() error {
		_, err := inside.issue(ctx, 1, true)
		return err
	})
	if serial != "" {
		both.Go(func() error { return inside.revokes(ctx, serial, "keyCompromise", 1, true) })
		both.Go(func() error { return outside.revokes(ctx, serial, "superseded", attempts, true) })
	}
	return both.Wait()
}

// turn has operators give a lease to nodes: two of them at once where it is a duel.
func (w *world) turn(duel bool) strike {
	verbs := []string{"promote", "demote"}
	count := 1
	if duel {
		count = 2
	}
	first, lease := w.dice.IntN(len(w.nodes)), []string{"crl", "crl", "audit"}[w.dice.IntN(3)]
	verb := verbs[w.dice.IntN(2)]
	if duel {
		verb = "promote"
	}
	return strike{verb, "", false, 0, func(ctx context.Context) (string, func() error, error) {
		errs := make([]error, count)
		var all sync.WaitGroup
		for i := range count {
			all.Go(func() {
				n := w.nodes[(first+i)%len(w.nodes)]
				c, err := w.caller(fmt.Sprintf("operator%d", i+1), (first+i)%len(w.nodes))
				if err != nil {
					errs[i] = err
					return
				}
				defer c.close()
				call := c.act(ctx, Call{Act: Turn, Name: verb + " " + lease + " " + n.name}, 3, false, func(ctx context.Context, at int) error {
					_, err := c.api[at].TurnClone(ctx, n.name, verb, client.CloneTurn{Lease: lease})
					return err
				})
				errs[i] = w.history.add(call)
			})
		}
		all.Wait()
		return lease, none, errors.Join(errs...)
	}}
}

// random is any fault.
func (w *world) random() strike {
	long := func(from, to time.Duration) time.Duration { return from + time.Duration(w.dice.Int64N(int64(to-from))) }
	member := w.cluster.Members[w.dice.IntN(len(w.cluster.Members))]
	one := func(context.Context) (*cluster.Member, error) { return member, nil }
	switch w.dice.IntN(14) {
	case 0, 1:
		return w.killNode(long(time.Second/2, 8*time.Second))
	case 2:
		return w.freezeNode(long(time.Second, 25*time.Second))
	case 3:
		return w.killProcess(0, w.cluster.Primary, "primary-process")
	case 4:
		return w.killProcess(0, one, "")
	case 5:
		return w.killMachine(long(time.Second, 10*time.Second), w.cluster.Primary, "primary-machine")
	case 6:
		return w.killMachine(long(time.Second, 10*time.Second), one, "")
	case 7:
		return w.freezeMember(long(time.Second, 25*time.Second), w.cluster.Synchronous, "standby-frozen")
	case 8:
		return w.freezeMember(long(time.Second, 30*time.Second), one, "")
	case 9:
		return w.cut(long(time.Second, 10*time.Second), w.cluster.Synchronous, "standby-cut")
	case 10:
		return w.cut(long(time.Second, 40*time.Second), one, "")
	case 11:
		return w.freezeMachine(long(time.Second, 40*time.Second), w.cluster.Primary, "primary-frozen")
	case 12:
		return w.freezePatroni(long(15*time.Second, 45*time.Second))
	default:
		return w.turn(w.dice.IntN(2) == 0)
	}
}

// opening are the faults that have a budget, in an order of their own, after what else a short run must have seen.
func (w *world) opening() []strike {
	all := []strike{
		w.killNode(2 * time.Second),
		w.freezeNode(4 * time.Second),
		w.killProcess(0, w.cluster.Primary, "primary-process"),
		w.freezeMember(time.Second, w.cluster.Synchronous, "standby-frozen"),
		w.cut(time.Second, w.cluster.Synchronous, "standby-cut"),
		w.cut(time.Second, w.cluster.Primary, "primary-cut"), // until another was promoted, while this one is still asked
		w.killMachine(time.Second, w.cluster.Primary, "primary-machine"),
		w.freezeMachine(time.Second, w.cluster.Primary, "primary-frozen"), // until another was promoted, and has acknowledged
	}
	w.dice.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return append([]strike{w.turn(true)}, all...)
}

// schedule strikes until the opening is done and the time is over, one fault after the other, and sometimes one of a node within one of a member. A cluster of three
// bears the loss of one: each member is well again before the next is struck.
func (w *world) schedule(ctx context.Context, end time.Time) error {
	opening := w.opening()
	for i := 0; i < len(opening) || time.Now().Before(end); i++ {
		s := w.random()
		if i < len(opening) {
			s = opening[i]
		}
		second := w.dice.IntN(4) == 0 && i >= len(opening)
		within := w.freezeNode(time.Duration(w.dice.Int64N(int64(5 * time.Second))))
		if err := w.strike(ctx, s, func() error {
			if !second {
				return nil
			}
			return w.strike(ctx, within, nil)
		}); err != nil {
			return err
		}
		if err := w.well(ctx); err != nil {
			return fmt.Errorf("after %q: %w", s.name, err)
		}
		sleep(ctx, time.Second)
	}
	return nil
}

// strike does one fault, and holds it until somebody has issued since, for patience at most: what does not go on then is a finding.
func (w *world) strike(ctx context.Context, s strike, within func() error) error {
	before, begin := len(w.history.calls()), time.Now()
	struck, heal, err := s.begin(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	at := time.Now()
	w.struck = struck
	if within != nil {
		err = within()
	}
	sleep(ctx, s.hold)
	if s.budget != "" && err == nil {
		err = w.until(ctx, "issuing goes on after "+s.name, func(context.Context) error {
			if _, ok := recovery(w.history.calls()[before:], s.budget, struck, at); !ok {
				return errors.New("nobody has issued")
			}
			return nil
		})
	}
	err = errors.Join(err, heal())
	call := Call{Act: Fault, Name: s.name, Node: struck, Budget: s.budget, Begin: begin, Last: at, End: time.Now()}
	if s.stops {
		call.Stopped = w.nodeAt(struck)
	}
	if took, ok := recovery(w.history.calls()[before:], s.budget, struck, at); ok && s.budget != "" {
		w.say("%s %s: issued again after %s", s.name, struck, took.Round(time.Millisecond))
	} else {
		w.say("%s %s, for %s", s.name, struck, call.End.Sub(begin).Round(100*time.Millisecond))
	}
	return errors.Join(err, w.history.add(call))
}

// well waits until members and nodes are as they were.
func (w *world) well(ctx context.Context) error {
	if err := w.cluster.WaitHealthy(ctx); err != nil {
		if err := w.restart(ctx, err); err != nil {
			return err
		}
	}
	for i, n := range w.nodes {
		err := w.until(ctx, n.name+" answers", func(ctx context.Context) error {
			_, err := w.admin[i].Clone(ctx, n.name)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// restart does what an operator does with a database that does not come to itself in two minutes: the member that was struck last, or else
// the first, is started anew. How often that was needed is reported, and what Patroni said is kept.
func (w *world) restart(ctx context.Context, why error) error {
	m := w.cluster.Members[0]
	for _, one := range w.cluster.Members {
		if one.Name == w.struck {
			m = one
		}
	}
	w.say("%v; machine %s is started anew", why, m.Name)
	w.restarts++
	begin := time.Now()
	if err := w.keepLogs(); err != nil {
		return err
	}
	n := w.of(m)
	if err := errors.Join(n.signal(syscall.SIGKILL), m.Kill(cluster.Machine)); err != nil {
		return err
	}
	sleep(ctx, time.Second)
	if err := errors.Join(m.Restart(), n.start()); err != nil {
		return err
	}
	call := Call{Act: Fault, Name: "start machine anew", Node: m.Name, Stopped: n.name, Begin: begin, Last: begin, End: time.Now()}
	return errors.Join(w.history.add(call), w.cluster.WaitHealthy(ctx))
}

// keepLogs copies what nodes and members have said to where the history is.
func (w *world) keepLogs() error {
	logs := map[string]string{}
	for _, n := range w.nodes {
		logs[n.name] = n.log
	}
	if w.cluster != nil {
		for _, m := range w.cluster.Members {
			for _, program := range []string{"patroni", "etcd"} {
				logs[m.Name+"."+program] = filepath.Join(m.Dir, program+".log")
			}
		}
	}
	for name, path := range logs {
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := errors.Join(err, os.WriteFile(w.History+"."+name+".log", text, 0o644)); err != nil {
			return err
		}
	}
	return nil
}
