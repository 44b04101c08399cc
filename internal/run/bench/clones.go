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

// clones measures an authority of several nodes on one machine, which share its cores: how soon one joins, with a full store; with an empty
// one also what three issue together, how soon another signs the CRLs, and whether OCSP goes on without the primary.
func (b *bench) clones(ctx context.Context, a *authority, store string) (err error) {
	if a.pg == nil {
		return nil // an SQLite file has one node
	}
	now, err := a.client.Settings(ctx)
	if err != nil {
		return err
	}
	// What the server acknowledges is on one disk here, which a node of several wants to be told.
	change := client.SettingsChange{Set: []client.Setting{{Path: "durability", Value: "provider"}}}
	if _, err := a.client.ChangeSettings(ctx, change, now.ETag); err != nil {
		return err
	}
	all := []*authority{a}
	defer func() {
		for _, n := range all[1:] {
			err = errors.Join(err, n.stop(), a.client.RemoveClone(ctx, n.config.Name, true))
		}
	}()
	var joins latencies
	for _, name := range cloneNames {
		n, took, err := b.joinClone(ctx, a, name+"-"+store)
		if n != nil {
			all = append(all, n)
		}
		if err != nil {
			return fmt.Errorf("join: %w", err)
		}
		joins = append(joins, took)
	}
	b.add(row{what: "clone joins", who: "clone join to ready", engine: a.engine, store: store, p50: joins.percentile(50), most: joins.percentile(100)})
	if store == full {
		b.judge(ctx, "clones-join."+a.engine+"."+store, joins.percentile(100).Seconds(), nil)
		return nil
	}
	if err := b.together(ctx, all); err != nil {
		return fmt.Errorf("issue together: %w", err)
	}
	if err := b.promotions(ctx, all); err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	if err := b.elsewhere(ctx, all); err != nil {
		return fmt.Errorf("revoke at a node that signs no CRLs: %w", err)
	}
	if err := b.outage(ctx); err != nil {
		return fmt.Errorf("OCSP without the primary: %w", err)
	}
	return nil
}

// joinClone has a node join and starts it, as its operator and an administrator who approves at once do. The time is from the first call
// until the authority says that it is ready.
func (b *bench) joinClone(ctx context.Context, a *authority, name string) (n *authority, took time.Duration, err error) {
	n = &authority{engine: a.engine, program: a.program, dir: datadir.Dir(filepath.Join(b.dir, name)), pg: a.pg, tls: a.tls, issuers: a.issuers}
	o := setup.JoinOptions{Dir: n.dir, Release: "bench", Name: name, DatabaseFile: a.config.DatabaseFile}
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
		if time.Since(begin) > time.Minute {
			return n, 0, fmt.Errorf("node %s is not ready: %+v, %w", name, now, err)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return n, 0, err
		}
	}
}

// together measures what one node issues, and what all do at once, in turns. The number of clients is the same.
func (b *bench) together(ctx context.Context, all []*authority) error {
	targets := make([]*target, len(all))
	for i, a := range all {
		targets[i] = b.issueTarget(a)
		if _, err := targets[i].put(ctx, b.clients, b.warm); err != nil {
			return err
		}
	}
	var ratios, ones, threes []float64
	for range b.rounds {
		one, err := targets[0].put(ctx, b.clients, b.length)
		if err != nil {
			return err
		}
		rates := make([]float64, len(all))
		group, ctx := errgroup.WithContext(ctx)
		for i, t := range targets {
			group.Go(func() error {
				m, err := t.put(ctx, b.clients/len(all)+1, b.length)
				if err != nil {
					return err
				}
				if rates[i] = m.rate(); m.errors > 0 {
					return fmt.Errorf("%d calls failed, first: %w", m.errors, m.first)
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		sum := 0.0
		for _, rate := range rates {
			sum += rate
		}
		ones, threes, ratios = append(ones, one.rate()), append(threes, sum), append(ratios, sum/one.rate())
	}
	b.add(row{what: "issue", who: "one of three nodes", engine: all[0].engine, store: empty, rate: median(ones)})
	b.add(row{what: "issue", who: "three nodes at once", engine: all[0].engine, store: empty, rate: median(threes)})
	b.judge(ctx, "clones-issue."+all[0].engine+"."+empty, median(ratios), nil)
	return nil
}

// promotions has each node in turn sign the CRLs. The call returns when the node has taken that up; then it has signed one.
func (b *bench) promotions(ctx context.Context, all []*authority) error {
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
	b.add(row{what: "promote", who: "call to the next CRL", engine: all[0].engine, store: empty, p50: took.percentile(50), most: took.percentile(100)})
	b.judge(ctx, "clones-promote."+all[0].engine+"."+empty, took.percentile(100).Seconds(), nil)
	return nil
}

// elsewhere revokes at a node that does not sign the CRLs, and looks at a third until the list that it publishes has it. The first node signs: it
// was promoted last.
func (b *bench) elsewhere(ctx context.Context, all []*authority) error {
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
		limited, cancel := context.WithTimeout(ctx, 30*time.Second)
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
	b.add(row{what: "revoke at one node", who: "until in the CRL of a third", engine: signs.engine, store: empty,
		p50: took.percentile(50), p99: took.percentile(99), most: took.percentile(100)})
	b.judge(ctx, "clones-revoke-visible."+signs.engine+"."+empty, took.percentile(100).Seconds(), nil)
	return nil
}

// outage asks a node by OCSP, without a pause, while the machine of its primary is killed and until another member is the primary. The
// node reads at a standby.
func (b *bench) outage(ctx context.Context) (err error) {
	members, err := cluster.Start(ctx, cluster.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, members.Stop()) }()
	url, err := members.Database(ctx, database)
	if err != nil {
		return err
	}
	primary, err := members.Primary(ctx)
	if err != nil {
		return err
	}
	local, err := members.Synchronous(ctx)
	if err != nil {
		return err
	}
	a, err := b.beside(ctx, url, local.URL("chancery", database))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	questions, err := b.asked(ctx, a)
	if err != nil {
		return err
	}
	t := cachedTarget(a.public(), questions)
	lost, answered := 0, 0
	killed, again := time.Now(), time.Duration(0)
	if err := primary.Kill(cluster.Machine); err != nil {
		return err
	}
	for again == 0 && time.Since(killed) < 2*time.Minute {
		m, err := t.put(ctx, 4, b.length)
		if err != nil {
			return err
		}
		lost, answered = lost+m.errors, answered+len(m.latencies)
		if now, err := members.Primary(ctx); err == nil && now != primary {
			again = time.Since(killed)
		}
	}
	if again == 0 {
		return errors.New("no other member became the primary")
	}
	b.add(row{what: "OCSP without primary", who: "chancery", engine: a.engine, store: empty, errors: lost, rate: float64(answered) / again.Seconds(),
		note: fmt.Sprintf("%d answers in %s, until there was a primary again", answered, short(again))})
	b.judge(ctx, "clones-ocsp-lost."+postgresEngine+"."+empty, float64(lost), nil)
	return nil
}

// beside makes an authority on a cluster, whose one node reads at a member of its own.
func (b *bench) beside(ctx context.Context, url, local string) (*authority, error) {
	a := &authority{engine: postgresEngine, program: b.Program, dir: datadir.Dir(filepath.Join(b.dir, "beside"))}
	write, read := string(a.dir)+".write", string(a.dir)+".read"
	if err := errors.Join(os.WriteFile(write, []byte(url+"\n"), 0o600), os.WriteFile(read, []byte(local+"\n"), 0o600)); err != nil {
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
		return nil, err
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
	return a, a.makeIssuers(ctx)
}

// asked issues some certificates, and waits until the node answers about each from the standby.
func (b *bench) asked(ctx context.Context, a *authority) ([]*question, error) {
	requests, err := b.makeRequests(b.questions)
	if err != nil {
		return nil, err
	}
	all := make([]*question, len(requests))
	err = each(ctx, len(requests), func(ctx context.Context, i int) error {
		made, err := a.client.Issue(ctx, client.IssueRequest{Profile: "server", CSR: requests[i].pem})
		if err != nil {
			return err
		}
		leaf, err := parsePEM(made.Certificate.PEM)
		if err != nil {
			return err
		}
		if all[i], err = ask(leaf, a.issuers[plainIssuer]); err != nil {
			return err
		}
		_, _, err = all[i].status(ctx, a.public())
		return err
	})
	return all, err
}
