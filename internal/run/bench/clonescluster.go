package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"chancery/internal/run/cluster"
	"chancery/internal/run/consumer"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// databaseOwner is the role that cluster.Database gives a database to.
const databaseOwner = "chancery"

// shipped is what the members of a cluster have beside what the package gives them: deploy/patroni's, and PostgreSQL's own shared_buffers.
var shipped = map[string]string{
	"shared_buffers": "128MB", "max_connections": "200", "wal_receiver_timeout": "10s", "max_slot_wal_keep_size": "16GB",
	"tcp_user_timeout": "10s", "tcp_keepalives_idle": "10", "tcp_keepalives_interval": "3", "tcp_keepalives_count": "3",
}

// cluster measures an authority of three nodes on a PostgreSQL of three members under Patroni and etcd. Each node is on the machine of a member,
// at which it reads; each commit waits until a standby has applied it, and is on both disks then. Both, the members of etcd and the load
// share the cores of one machine, and its disk.
func (b *bench) cluster(ctx context.Context) (err error) {
	namespaces := os.Geteuid() == 0
	b.say("%s: starting PostgreSQL, Patroni and etcd, three of each; cut off by namespaces: %v", clustered, namespaces)
	members, err := cluster.Start(ctx, cluster.Options{Namespaces: namespaces, Parameters: shipped})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, members.Stop()) }()
	url, err := members.Database(ctx, database)
	if err != nil {
		return err
	}
	b.say("%s: making an authority", clustered)
	a, err := b.beside(ctx, url, members.Members[0])
	if err != nil {
		return err
	}
	all := []*authority{a}
	defer func() {
		for _, n := range all { // killed, since in order they would look for their primary
			_ = n.node.Signal(syscall.SIGKILL) // stop says what came of it
			err = errors.Join(err, n.stop())
		}
	}()
	b.say("%s: two nodes join", clustered)
	joined, err := b.joins(ctx, a, clustered, members.Members[1:])
	if all = append(all, joined...); err != nil {
		return err
	}
	if err := b.between(ctx, all, clustered); err != nil {
		return err
	}
	return b.outages(ctx, members, all)
}

// beside makes an authority on a cluster, whose first node is on the machine of a member.
func (b *bench) beside(ctx context.Context, url string, member *cluster.Member) (*authority, error) {
	a := &authority{engine: postgresEngine, program: b.Program, dir: datadir.Dir(filepath.Join(b.dir, "first-"+clustered)), member: member}
	write, read := string(a.dir)+".write", string(a.dir)+".read"
	if err := errors.Join(os.WriteFile(write, []byte(url+"\n"), 0o600), os.WriteFile(read, []byte(member.Local(databaseOwner, database)+"\n"), 0o600)); err != nil {
		return nil, err
	}
	o := setup.Options{Dir: a.dir, Organization: "Bench", Online: true, RecoveryWork: recoveryWork, DatabaseFile: write}
	for _, address := range []*string{&o.Listen, &o.PublicListen, &o.Metrics} {
		var err error
		if *address, err = consumer.FreeAddress(); err != nil {
			return nil, err
		}
	}
	o.Address, o.PublicURL = "https://"+o.Listen, "http://"+o.PublicListen
	if _, err := setup.Init(ctx, o); err != nil {
		return nil, fmt.Errorf("make an authority on a cluster: %w", err)
	}
	config, err := os.OpenFile(a.dir.Config(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(config, "database_read: %s\n", read)
	if err := errors.Join(err, config.Close()); err != nil {
		return nil, err
	}
	if a.config, err = a.dir.Load(); err != nil {
		return nil, err
	}
	if err := a.connect(); err != nil {
		return nil, err
	}
	if _, err := a.start(ctx); err != nil {
		return nil, err
	}
	if err := errors.Join(a.setDurability(ctx, "synchronous"), a.makeIssuers(ctx)); err != nil {
		return nil, errors.Join(err, a.stop())
	}
	return a, nil
}

// outage is a way to take the machine of a primary away, with the node on it.
type outage struct {
	budget, what string
	strike       func(*cluster.Member, *authority) error
	heal         func(*cluster.Member, *authority) error // nil where nothing is measured afterwards
}

// outagesOf are those that are measured, in their order.
var outagesOf = []outage{
	{"clones-ocsp-frozen", "OCSP, primary frozen", func(m *cluster.Member, n *authority) error {
		return errors.Join(m.Freeze(cluster.Machine), n.node.Signal(syscall.SIGSTOP))
	}, func(m *cluster.Member, n *authority) error {
		return errors.Join(m.Thaw(cluster.Machine), n.node.Signal(syscall.SIGCONT))
	}},
	{"clones-ocsp-lost", "OCSP, primary killed", func(m *cluster.Member, n *authority) error {
		if err := n.node.Signal(syscall.SIGKILL); err != nil {
			return err
		}
		<-n.node.Done()
		return m.Kill(cluster.Machine)
	}, nil},
}

// outages takes the machine of the primary away, with the node on it, in one way after the other, and asks the two other nodes by OCSP all the while, each
// of which reads at a standby of its own.
func (b *bench) outages(ctx context.Context, members *cluster.Cluster, all []*authority) error {
	questions, err := b.asked(ctx, all)
	if err != nil {
		return fmt.Errorf("OCSP before an outage: %w", err)
	}
	for _, o := range outagesOf {
		primary, err := members.Primary(ctx)
		if err != nil {
			return err
		}
		b.say("%s: %s", clustered, o.what)
		err = b.outage(ctx, members, primary, all, questions, o)
		if o.heal != nil {
			err = errors.Join(err, o.heal(primary, on(all, primary)))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", o.what, err)
		}
		if o.heal == nil {
			return nil // and it was the last
		}
		if err := b.well(ctx, members, all); err != nil {
			return fmt.Errorf("after %q: %w", o.what, err)
		}
	}
	return nil
}

// on is the node on the machine of a member.
func on(all []*authority, m *cluster.Member) *authority {
	for _, n := range all {
		if n.member == m {
			return n
		}
	}
	return nil
}

// asked issues some certificates, and waits until each node answers about each.
func (b *bench) asked(ctx context.Context, all []*authority) ([]*question, error) {
	leaves, err := b.issueSome(ctx, all[0], plainIssuer, b.questions)
	if err != nil {
		return nil, err
	}
	questions := make([]*question, len(leaves))
	err = each(ctx, len(leaves), func(ctx context.Context, i int) (err error) {
		if questions[i], err = ask(leaves[i], all[0].issuers[plainIssuer]); err != nil {
			return err
		}
		for _, n := range all {
			if err := questions[i].good(ctx, n.public()); err != nil {
				return fmt.Errorf("ask node %s: %w", n.config.Name, err)
			}
		}
		return nil
	})
	return questions, err
}

// answerWithin is how long those who ask by OCSP wait for an answer.
const answerWithin = 5 * time.Second

// askers are how many clients ask a node for answers that it may have kept, and how many for answers with a nonce, which it has to sign, by
// what it reads at its standby.
const askers = 2

// outage asks the nodes that are not on the primary's machine from before that is taken away until another member is the primary, or for as
// long as the scale says.
func (b *bench) outage(ctx context.Context, members *cluster.Cluster, primary *cluster.Member, all []*authority, questions []*question, o outage) error {
	var targets []*target
	for _, n := range all {
		if n.member == primary {
			continue
		}
		signed, err := nonceTarget(n.public(), questions)
		if err != nil {
			return err
		}
		targets = append(targets, cachedTarget(n.public(), questions), signed)
	}
	found, over := make([]*measured, len(targets)), make(chan struct{})
	var loads sync.WaitGroup
	for i, t := range targets {
		t.patience = answerWithin
		loads.Go(func() { found[i] = t.keep(ctx, askers, b.short, over) })
	}
	begin := time.Now()
	err := o.strike(primary, on(all, primary))
	if err == nil {
		err = b.succeeded(ctx, members, primary)
	}
	took := time.Since(begin)
	close(over)
	loads.Wait()
	if err != nil {
		return err
	}
	var sum measured
	for _, one := range found {
		sum.merge(one)
	}
	note := fmt.Sprintf("%d answers in %s", len(sum.latencies), short(took))
	if b.away == 0 {
		note += ", until there was a primary again"
	}
	if sum.first != nil {
		note += "; first error: " + sum.first.Error()
	}
	b.add(row{what: o.what, who: fmt.Sprintf("%d nodes at standbys", len(all)-1), engine: postgresEngine, store: clustered, errors: sum.errors,
		rate: float64(len(sum.latencies)) / found[0].elapsed.Seconds(), p50: sum.latencies.percentile(50), p99: sum.latencies.percentile(99), most: sum.latencies.percentile(100), note: note})
	b.judge(ctx, o.budget+"."+postgresEngine+"."+clustered, float64(sum.errors), nil)
	return nil
}

// succeeded waits until another member is the primary, or for as long as the scale says.
func (b *bench) succeeded(ctx context.Context, members *cluster.Cluster, old *cluster.Member) error {
	if b.away > 0 {
		return pause(ctx, b.away)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		now, err := members.Primary(ctx)
		if err == nil && now != old {
			return nil
		}
		if ended := pause(ctx, 100*time.Millisecond); ended != nil {
			return fmt.Errorf("no other member became the primary: %w", errors.Join(ended, err))
		}
	}
}

// well waits until members and nodes are as they were.
func (b *bench) well(ctx context.Context, members *cluster.Cluster, all []*authority) error {
	if err := members.WaitHealthy(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, n := range all {
		_, err := since(ctx, time.Now(), func() (bool, error) {
			once, done := context.WithTimeout(ctx, 10*time.Second)
			defer done()
			now, err := n.client.Clone(once, n.config.Name)
			return err == nil && now.Ready, err
		})
		if err != nil {
			return fmt.Errorf("node %s is not ready: %w", n.config.Name, err)
		}
	}
	return nil
}
