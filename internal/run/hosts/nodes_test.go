package hosts_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/run/consumer"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// pair is an authority with two nodes on one database, and an address before them that leads to one of the two, as whoever
// keeps a service's address on the node that answers does.
type pair struct {
	*world
	t     *testing.T
	nodes [2]*node
	store *setup.Services // the first node's, for what no call tells

	mu    sync.Mutex // guards what follows
	to    string
	conns map[net.Conn]bool
}

type node struct {
	name    string
	dir     datadir.Dir
	api     string
	process *consumer.Process
}

// newPair makes an authority on PostgreSQL, starts its node, and has a second machine join it.
func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{t: t, conns: map[net.Conn]bool{}}
	p.world = ownWorld(t, pkitest.URL(t, db.Postgres), func(w *world) {
		front := w.API
		p.nodes[0] = &node{name: "node1", dir: w.dir, api: freeAddress(t)}
		p.nodes[1] = &node{name: "second", dir: datadir.Dir(filepath.Join(t.TempDir(), "second")), api: freeAddress(t)}
		p.first(w)
		w.API = p.nodes[0].api
		p.lead(front)
	})
	p.nodes[0].process = p.world.process
	p.turnTo(p.nodes[0])
	p.join()
	p.start(p.nodes[1])
	t.Cleanup(func() { must(t, p.nodes[1].process.Stop()) })
	until(t, "both nodes are ready", func() bool {
		all, err := client.Collect(p.admin.Clones(t.Context()))
		must(t, err)
		return len(all) == 2 && all[0].Ready && all[1].Ready
	})
	return p
}

func freeAddress(t *testing.T) string {
	t.Helper()
	at, err := consumer.FreeAddress()
	must(t, err)
	return at
}

// first gives the first node an address behind the common one.
func (p *pair) first(w *world) {
	t, one := p.t, p.nodes[0]
	t.Helper()
	config, err := one.dir.Load()
	must(t, err)
	one.name, config.Listen.API = config.Name, one.api
	must(t, os.Remove(one.dir.Config()))
	must(t, one.dir.Create(*config))
	p.store, err = setup.Open(t.Context(), one.dir, config, slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() { must(t, p.store.Close()) })
}

// join has the second machine join as an operator does it, whose administrator compares what the machine shows.
func (p *pair) join() {
	t, two := p.t, p.nodes[1]
	t.Helper()
	ctx := t.Context()
	config, err := p.nodes[0].dir.Load()
	must(t, err)
	now, err := p.admin.Settings(ctx)
	must(t, err)
	_, err = p.admin.ChangeSettings(ctx, client.SettingsChange{Set: []client.Setting{{Path: "durability", Value: "provider"}}}, now.ETag)
	must(t, err)
	made, err := p.admin.InviteClone(ctx, client.CloneInvitation{})
	must(t, err)
	joined, err := setup.Join(ctx, setup.JoinOptions{
		Dir: two.dir, Token: made.Token, Release: "test", Name: two.name, Address: "https://" + two.api, Listen: two.api, Public: freeAddress(t),
		Metrics: freeAddress(t), DatabaseFile: config.DatabaseFile,
		Waiting: func(name, fingerprint string) {
			_, err := p.admin.ApproveClone(ctx, name, fingerprint)
			must(t, err)
		},
	})
	must(t, err)
	if joined.State != client.CloneActive {
		t.Fatalf("the second node joined as %+v", joined)
	}
	must(t, os.CopyFS(filepath.Join(string(two.dir), "admin"), os.DirFS(filepath.Join(string(p.nodes[0].dir), "admin"))))
}

// lead accepts calls at an address and leads each to the node that it is turned to.
func (p *pair) lead(address string) {
	p.t.Helper()
	l, err := net.Listen("tcp", address)
	must(p.t, err)
	var all sync.WaitGroup
	p.t.Cleanup(func() { l.Close(); p.turnTo(nil); all.Wait() })
	all.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { p.carry(from) })
		}
	})
}

func (p *pair) carry(from net.Conn) {
	defer from.Close()
	p.mu.Lock()
	to, err := net.Dial("tcp", p.to)
	if err != nil {
		p.mu.Unlock()
		return
	}
	defer to.Close()
	p.conns[from], p.conns[to] = true, true
	p.mu.Unlock()
	go func() { _, _ = io.Copy(to, from); to.Close() }()
	_, _ = io.Copy(from, to)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, from)
	delete(p.conns, to)
}

// turnTo leads further calls to a node, and ends those that are with another.
func (p *pair) turnTo(n *node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.to = "127.0.0.1:1"; n != nil {
		p.to = n.api
	}
	for c := range p.conns {
		c.Close()
	}
}

func (p *pair) start(n *node) {
	p.t.Helper()
	var err error
	n.process, err = consumer.Start(context.WithoutCancel(p.t.Context()), consumer.Program{
		Path: program(p.t), Args: []string{"serve", "--dir", string(n.dir)}, Ready: consumer.Listening(n.api),
	})
	must(p.t, err)
	if n == p.nodes[0] {
		p.world.process = n.process
	}
}

// driving are the node that holds the lease of rollouts, the other, and the lease's epoch.
func (p *pair) driving() (driver, other *node, epoch int64) {
	p.t.Helper()
	until(p.t, "a node drives", func() bool {
		all, err := p.store.DB.Leases(p.t.Context())
		must(p.t, err)
		for _, l := range all {
			for i, n := range p.nodes {
				if l.Name == "rollout" && l.Holder == n.name && l.Expires.After(time.Now()) {
					driver, other, epoch = n, p.nodes[1-i], l.Epoch
				}
			}
		}
		return driver != nil
	})
	return driver, other, epoch
}

// steps are how many steps of rollouts each node has taken by its chain of the audit.
func (p *pair) steps() map[string]int64 {
	p.t.Helper()
	count := map[string]int64{}
	must(p.t, p.store.DB.Read(p.t.Context(), func(tx *db.Tx) error {
		rows, err := tx.Query(p.t.Context(), `SELECT node, COUNT(*) FROM audit_event WHERE action LIKE 'rollout.%' GROUP BY node`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var name string
			var n int64
			if err := rows.Scan(&name, &n); err != nil {
				return err
			}
			count[name] = n
		}
		return rows.Err()
	}))
	return count
}

// TestRotationOnTwoNodes rotates a root while the node that drives is killed, or stands still until the other has taken its
// place and then goes on: whoever was fenced takes no step any more, and no connection between hosts fails.
func TestRotationOnTwoNodes(t *testing.T) {
	t.Parallel()
	for name, strike := range map[string]func(p *pair, driver, other *node, epoch int64){
		"killed": func(p *pair, driver, other *node, epoch int64) {
			kill(p.t, driver.process)
			p.turnTo(other)
			p.takenOver(other, epoch)
			p.start(driver)
		},
		"paused": func(p *pair, driver, other *node, epoch int64) {
			must(p.t, driver.process.Signal(syscall.SIGSTOP))
			p.turnTo(other)
			p.takenOver(other, epoch)
			before := p.steps()[driver.name]
			must(p.t, driver.process.Signal(syscall.SIGCONT))
			until(p.t, "the node that stood still answers", func() bool { return consumer.Listening(driver.api)(p.t.Context()) == nil })
			p.fenced(driver, other, before)
		},
		"paused in a transaction": func(p *pair, driver, other *node, epoch int64) {
			p.stopWithin(driver)
			p.turnTo(other)
			p.takenOver(other, epoch)
			before := p.steps()[driver.name]
			must(p.t, driver.process.Signal(syscall.SIGCONT))
			until(p.t, "the node that stood still answers", func() bool { return consumer.Listening(driver.api)(p.t.Context()) == nil })
			p.fenced(driver, other, before)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			r := newRing(t, p.world, 3)
			started, err := p.admin.StartRollout(t.Context(), client.StartRolloutRequest{Kind: client.RolloutRoot, Pool: r.pool.Name, Online: true, Waves: ringWaves})
			must(t, err)
			strikes, stages := 0, map[string]bool{}
			ended := r.follow(started.ID, func(now *client.Rollout) {
				if stages[now.Stage] {
					return
				}
				stages[now.Stage] = true
				strikes++
				driver, other, epoch := p.driving()
				strike(p, driver, other, epoch)
			})
			if ended.State != client.RolloutDone || strikes < 3 {
				t.Errorf("the rollout is %s after %d strikes: %s", ended.State, strikes, ended.Message)
			}
			if steps := p.steps(); steps[p.nodes[0].name] == 0 || steps[p.nodes[1].name] == 0 {
				t.Errorf("both nodes had to drive: %v", steps)
			}
			r.zero(fmt.Sprintf("root rotated by two nodes, the driving one %s %d times", name, strikes))
			r.rotated()
			if wrong := p.wrong(); wrong != "" {
				t.Errorf("verify finds\n%s", wrong)
			}
		})
	}
}

// stopWithin stops the node that drives in the middle of a step: it has its lease's row locked, and waits for that of the rollout,
// which it is then given.
func (p *pair) stopWithin(driver *node) {
	p.t.Helper()
	ctx := p.t.Context()
	stopped := false
	must(p.t, p.store.DB.Tx(ctx, func(tx *db.Tx) error { // anew where a step of the node came between
		for _, query := range []string{`SELECT COUNT(*) FROM (SELECT id FROM rollout FOR UPDATE) r`, `SELECT COUNT(*) FROM (SELECT host FROM rollout_host FOR UPDATE) h`} {
			if _, err := counted(ctx, tx, query); err != nil || stopped {
				return err
			}
		}
		until(p.t, "a step waits", func() bool {
			_, err := counted(ctx, tx, `SELECT 1`) // the server ends transactions that say nothing
			must(p.t, err)
			return p.sessions(`wait_event_type = 'Lock'`) > 0
		})
		stopped = true
		return driver.process.Signal(syscall.SIGSTOP)
	}))
	until(p.t, "the server has done what it was asked for", func() bool { return p.sessions(`state = 'idle in transaction'`) > 0 })
}

// sessions counts those of the database that are as a condition says.
func (p *pair) sessions(condition string) (n int64) {
	p.t.Helper()
	must(p.t, p.store.DB.Read(p.t.Context(), func(tx *db.Tx) (err error) {
		n, err = counted(p.t.Context(), tx, `SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND `+condition)
		return err
	}))
	return n
}

func counted(ctx context.Context, tx *db.Tx, query string) (n int64, err error) {
	err = tx.QueryRow(ctx, query).Scan(&n)
	return n, err
}

// takenOver waits until another node drives.
func (p *pair) takenOver(by *node, epoch int64) {
	p.t.Helper()
	until(p.t, "node "+by.name+" drives", func() bool {
		driver, _, now := p.driving()
		return driver == by && now > epoch
	})
}

// fenced wants a node that stood still to take no step while the other drives.
func (p *pair) fenced(was, drives *node, before int64) {
	p.t.Helper()
	_, _, epoch := p.driving()
	looks := p.steps()[drives.name]
	until(p.t, "the rollout goes on", func() bool { return p.steps()[drives.name] > looks || p.over() })
	now := p.steps()[was.name]
	if driver, _, same := p.driving(); driver == drives && same == epoch && now != before {
		p.t.Errorf("node %s took %d steps after node %s had taken the lease", was.name, now-before, drives.name)
	}
}

// over reports whether no rollout is at work.
func (p *pair) over() bool {
	p.t.Helper()
	for r, err := range p.admin.Rollouts(p.t.Context(), "") {
		must(p.t, err)
		if r.EndedAt.IsZero() {
			return false
		}
	}
	return true
}

// wrong is what verify finds.
func (p *pair) wrong() string {
	p.t.Helper()
	var all []error
	for f, err := range p.admin.Verify(p.t.Context(), client.VerifyRequest{}) {
		must(p.t, err)
		if f.Level == "error" {
			all = append(all, errors.New(strings.TrimSpace(f.Object+" "+f.Message)))
		}
	}
	if err := errors.Join(all...); err != nil {
		return err.Error()
	}
	return ""
}

// TestNodeIsRemoved removes a node that runs: it stops by itself and says why, is believed by no other, and does not start again.
func TestNodeIsRemoved(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	ctx, two := t.Context(), p.nodes[1]
	if err := p.admin.RemoveClone(ctx, two.name, false); !client.IsKind(err, "conflict") {
		t.Fatalf("a node that runs was removed: %v", err)
	}
	must(t, p.admin.RemoveClone(ctx, two.name, true))
	until(t, "the node that was removed stops", func() bool { return consumer.Listening(two.api)(ctx) != nil })
	<-two.process.Done()
	if said := two.process.Output(); !strings.Contains(said, "left or was removed at") {
		t.Errorf("it ended with\n%s", said)
	}
	fails(t, exec.CommandContext(ctx, program(t), "serve", "--dir", string(two.dir)), "left or was removed at")
	gone, err := p.admin.Clone(ctx, two.name)
	must(t, err)
	if gone.State != client.CloneGone || gone.Ready || gone.Keys.Open == 0 {
		t.Errorf("it is shown as %+v", gone)
	}
	if wrong := p.wrong(); wrong != "" {
		t.Errorf("verify finds\n%s", wrong)
	}
}

// TestNodeLeaves has a node leave, which ends by itself, in peace.
func TestNodeLeaves(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	ctx, two := t.Context(), p.nodes[1]
	_, err := p.admin.LeaveClone(ctx, two.name)
	must(t, err)
	until(t, "the node that leaves is gone", func() bool {
		now, err := p.admin.Clone(ctx, two.name)
		must(t, err)
		return now.State == client.CloneGone
	})
	if consumer.Listening(two.api)(ctx) == nil {
		t.Error("a node that is gone answers")
	}
	if _, err := p.admin.LeaveClone(ctx, p.nodes[0].name); !client.IsKind(err, "conflict") {
		t.Errorf("the last node leaves: %v", err)
	}
}
