package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/run/cluster"
	"chancery/internal/run/consumer"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// The names of the nodes that join.
var cloneNames = [...]string{"second", "third"}

// clones measures an authority of several nodes on one machine, which share its cores, and one PostgreSQL: how soon one joins, with a full store;
// with an empty one also what three issue together, how soon another signs the CRLs, and how soon a third shows what was revoked.
func (b *bench) clones(ctx context.Context, a *authority, store string) (err error) {
	if a.pg == nil {
		return nil // an SQLite file has one node
	}
	// What the server acknowledges is on one disk here, which a node of several wants to be told.
	if err := a.setDurability(ctx, "provider"); err != nil {
		return err
	}
	joined, err := b.joins(ctx, a, store, nil)
	defer func() {
		for _, n := range joined {
			err = errors.Join(err, n.stop(), a.client.RemoveClone(ctx, n.config.Name, true))
		}
	}()
	if err != nil || store == full {
		return err
	}
	return b.between(ctx, append([]*authority{a}, joined...), store)
}

func (a *authority) setDurability(ctx context.Context, value string) error {
	now, err := a.client.Settings(ctx)
	if err != nil {
		return err
	}
	_, err = a.client.ChangeSettings(ctx, client.SettingsChange{Set: []client.Setting{{Path: "durability", Value: value}}}, now.ETag)
	return err
}

// joins has two nodes join, each beside a member where there are any. What was started is returned in any case.
func (b *bench) joins(ctx context.Context, a *authority, store string, beside []*cluster.Member) (joined []*authority, err error) {
	var took latencies
	for i, name := range cloneNames {
		var member *cluster.Member
		if beside != nil {
			member = beside[i]
		}
		n, one, err := b.joinClone(ctx, a, name+"-"+store, member)
		if n != nil {
			joined = append(joined, n)
		}
		if err != nil {
			return joined, fmt.Errorf("join: %w", err)
		}
		took = append(took, one)
	}
	b.add(row{what: "clone joins", who: "clone join to ready", engine: a.engine, store: store, p50: took.percentile(50), most: took.percentile(100)})
	if store != empty {
		b.judge(ctx, "clones-join."+a.engine+"."+store, took.percentile(100).Seconds(), nil)
	}
	return joined, nil
}

// between measures what nodes do that concerns the others.
func (b *bench) between(ctx context.Context, all []*authority, store string) error {
	if err := b.together(ctx, all, store); err != nil {
		return fmt.Errorf("issue together: %w", err)
	}
	if err := b.promotions(ctx, all, store); err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	if err := b.elsewhere(ctx, all, store); err != nil {
		return fmt.Errorf("revoke at a node that signs no CRLs: %w", err)
	}
	return nil
}

// joinClone has a node join and starts it, as its operator and an administrator who approves at once do. The time is from the first call
// until the authority says that it is ready.
func (b *bench) joinClone(ctx context.Context, a *authority, name string, beside *cluster.Member) (n *authority, took time.Duration, err error) {
	n = &authority{engine: a.engine, program: a.program, dir: datadir.Dir(filepath.Join(b.dir, name)), pg: a.pg, member: beside, tls: a.tls, issuers: a.issuers}
	o := setup.JoinOptions{Dir: n.dir, Release: "bench", Name: name, DatabaseFile: a.config.DatabaseFile}
	if beside != nil {
		o.ReadDatabaseFile = string(n.dir) + ".read"
		if err := os.WriteFile(o.ReadDatabaseFile, []byte(beside.Local(databaseOwner, database)+"\n"), 0o600); err != nil {
			return nil, 0, err
		}
	}
	for _, address := range []*string{&o.Listen, &o.Public, &o.Metrics} {
		if *address, err = consumer.FreeAddress(); err != nil {
			return nil, 0, err
		}
	}
	o.Address = "https://" + o.Listen
	begin := time.Now()
	made, err := a.client.InviteClone(ctx, client.CloneInvitation{})
	if err != nil {
		return nil, 0, err
	}
	var approved error
	o.Token = made.Token
	o.Waiting = func(name, fingerprint string) { _, approved = a.client.ApproveClone(ctx, name, fingerprint) }
	if _, err := setup.Join(ctx, o); errors.Join(err, approved) != nil {
		return nil, 0, errors.Join(err, approved)
	}
	if n.config, err = n.dir.Load(); err != nil {
		return nil, 0, err
	}
	roots, err := client.RootsFile(a.dir.IdentityRoot())
	if err != nil {
		return nil, 0, err
	}
	n.client, err = client.New(client.Options{Address: o.Address, Roots: roots, Certificate: client.CertificateFiles(a.dir.AdminCert(), a.dir.AdminKey())})
	if err != nil {
		return nil, 0, err
	}
	if _, err := n.start(ctx); err != nil {
		return n, 0, err
	}
	for {
		now, err := n.client.Clone(ctx, name)
		if err == nil && now.Ready {
			return n, time.Since(begin), nil
		}
		if time.Since(begin) > patience {
			return n, 0, fmt.Errorf("node %s is not ready: %+v, %w", name, now, err)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return n, 0, err
		}
	}
}

// together measures what one node issues, and what all do at once, in turns. The number of clients is the same. Only what was issued counts: a node
// refuses a call that met with too many others of the same objects, and its client would ask again.
func (b *bench) together(ctx context.Context, all []*authority, store string) error {
	targets := make([]*target, len(all))
	for i, a := range all {
		targets[i] = b.issueTarget(a)
		if _, err := targets[i].put(ctx, b.clients, b.warm); err != nil {
			return err
		}
	}
	one, three := &side{name: "one of three nodes"}, &side{name: "three nodes at once"}
	var ratios []float64
	for range b.rounds {
		alone, err := targets[0].put(ctx, b.clients, b.length)
		if err != nil {
			return err
		}
		found, clients := make([]*measured, len(all)), make([]int, len(all))
		for i, t := range targets { // first, so that then all begin at once
			clients[i] = b.clients / len(all)
			if i < b.clients%len(all) {
				clients[i]++
			}
			if err := t.stock(clients[i], b.length); err != nil {
				return err
			}
		}
		group, ctx := errgroup.WithContext(ctx)
		for i, t := range targets {
			group.Go(func() (err error) {
				found[i], err = t.run(ctx, clients[i], b.length)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		sum := 0.0
		for i, m := range found {
			if i > 0 {
				m.cpu = 0 // which is of this process, whoever asks
			}
			sum += m.rate()
			three.sum.merge(m)
		}
		one.sum.merge(alone)
		one.rates, three.rates, ratios = append(one.rates, alone.rate()), append(three.rates, sum), append(ratios, sum/alone.rate())
	}
	all[0].issued += one.calls() + three.calls()
	one.report(b, "issue", all[0].engine, store)
	three.report(b, "issue", all[0].engine, store)
	b.judge(ctx, "clones-issue."+all[0].engine+"."+store, median(ratios), nil)
	return nil
}

// promotions has each node in turn sign the CRLs. The call returns when the node has taken that up; then it has signed one.
func (b *bench) promotions(ctx context.Context, all []*authority, store string) error {
	var took latencies
	for range b.rounds {
		for _, n := range []*authority{all[1], all[2], all[0]} {
			begin := time.Now()
			if _, err := all[0].client.TurnClone(ctx, n.config.Name, "promote", client.CloneTurn{}); err != nil {
				return err
			}
			if _, err := n.client.IssueCRL(ctx, plainIssuer, issueCRL); err != nil {
				return err
			}
			took = append(took, time.Since(begin))
		}
	}
	b.add(row{what: "promote", who: "call to the next CRL", engine: all[0].engine, store: store, p50: took.percentile(50), most: took.percentile(100)})
	b.judge(ctx, "clones-promote."+all[0].engine+"."+store, took.percentile(100).Seconds(), nil)
	return nil
}

// elsewhere revokes at a node that does not sign the CRLs, and looks at a third until the list that it publishes has it. The first node signs: it
// was promoted last.
func (b *bench) elsewhere(ctx context.Context, all []*authority, store string) error {
	signs, revokes, publishes := all[0], all[1], all[2]
	certificates, err := b.issueSome(ctx, signs, plainIssuer, 1+b.revocations)
	if err != nil {
		return err
	}
	var took latencies
	for i, c := range certificates {
		begin := time.Now()
		if _, err := revokes.client.Revoke(ctx, plainIssuer, cert.FormatSerial(c.SerialNumber), client.RevokeRequest{Reason: "superseded"}); err != nil {
			return err
		}
		limited, cancel := context.WithTimeout(ctx, patience)
		seen, err := since(limited, begin, func() (bool, error) {
			der, err := fetch(limited, "http://"+publishes.public()+"/crl/"+plainIssuer+".crl")
			return bytes.Contains(der, c.SerialNumber.Bytes()), err
		})
		cancel()
		if err != nil {
			return err
		}
		if i > 0 { // the first is not counted, as with one node
			took = append(took, seen)
		}
	}
	now, err := signs.client.Clone(ctx, signs.config.Name)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(now.Leases, func(l client.CloneLease) bool { return l.Name == "crl" }) {
		return fmt.Errorf("node %s signs no CRLs any more: the figures are of another node", signs.config.Name)
	}
	b.add(row{what: "revoke at one node", who: "until in the CRL of a third", engine: signs.engine, store: store,
		p50: took.percentile(50), p99: took.percentile(99), most: took.percentile(100)})
	b.judge(ctx, "clones-revoke-visible."+signs.engine+"."+store, took.percentile(100).Seconds(), nil)
	return nil
}
