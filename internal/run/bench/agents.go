package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/run/consumer"
)

// Where the simulated agents place their files, below the root of each.
const (
	placedKey   = "/etc/pki/bench/key.pem"
	placedCert  = "/etc/pki/bench/cert.pem"
	placedTrust = "/etc/pki/bench/trust.pem"
	placedCRL   = "/etc/pki/bench/crl.pem"
)

// briefProfile issues certificates that are due soon after.
const briefProfile = "brief"

// fleet is a node with many hosts, and the process that has their agents.
type fleet struct {
	*authority
	hosts []client.HostToken
	dir   string // of the agents
	crew  *consumer.Process
	at    string // where the crew is asked
}

// agents measures what agents cost: on an authority of its own, with a process that has all of them.
func (b *bench) agents(ctx context.Context, engine string) (err error) {
	if err := os.Mkdir(filepath.Join(b.dir, "agents-"+engine), 0o755); err != nil {
		return err
	}
	a, err := b.newAuthority(ctx, engine, filepath.Join(b.dir, "agents-"+engine))
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, a.stop())
		if a.pg != nil {
			err = errors.Join(err, a.pg.Stop())
		}
	}()
	if err := b.fleet(ctx, a); err != nil {
		return err
	}
	if engine != sqliteEngine {
		return nil
	}
	if err := b.oneAgent(ctx, a); err != nil {
		return err
	}
	return b.idleAgents(ctx, a)
}

// memoryDir makes a directory for agents' files, in memory where the system has such a place: each host of a real fleet has
// a disk of its own, and a thousand on one would measure that disk.
func (b *bench) memoryDir() (string, error) {
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		if dir, err := os.MkdirTemp("/dev/shm", "chancery-bench-"); err == nil {
			return dir, nil
		}
	}
	return os.MkdirTemp(b.dir, "agents-")
}

// fleet measures the join of many agents, the quiet after it, and two storms.
func (b *bench) fleet(ctx context.Context, a *authority) (err error) {
	b.say("%s: %d agents", a.engine, b.agentCount)
	f := &fleet{authority: a}
	if f.dir, err = b.memoryDir(); err != nil {
		return err
	}
	defer os.RemoveAll(f.dir)
	before, _, err := a.cpu()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := f.addHosts(ctx, b.agentCount); err != nil {
		return fmt.Errorf("add hosts: %w", err)
	}
	b.row(a, row{what: "host add", who: "chancery"}, before, begin, len(f.hosts))
	order := crewOrder{Dir: f.dir}
	for _, h := range f.hosts {
		order.Members = append(order.Members, crewMember{Name: h.Host.Name, Token: h.Token})
	}
	if f.crew, f.at, err = b.startCrew(ctx, order); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.crew.Stop()) }()
	for _, stage := range []func(context.Context, *fleet) error{b.join, b.steady, b.storms} {
		if err := stage(ctx, f); err != nil {
			return f.explain(ctx, err)
		}
	}
	if err := f.crew.Stop(); err != nil {
		return err
	}
	return f.checkFiles()
}

// row adds a row with the node's processor time since before, and the rate of n since begin.
func (b *bench) row(a *authority, r row, before time.Duration, begin time.Time, n int) {
	took := time.Since(begin)
	r.engine, r.store = a.engine, empty
	r.most, r.rate = took, float64(n)/took.Seconds()
	if after, _, err := a.cpu(); err == nil && n > 0 {
		r.cpu = (after - before) / time.Duration(n)
	}
	if rss, err := memory(a.node.PID(), "VmRSS"); err == nil {
		r.rss = rss
	}
	b.add(r)
}

// startCrew starts a process of simulated agents, which wait for the word to begin.
func (b *bench) startCrew(ctx context.Context, order crewOrder) (*consumer.Process, string, error) {
	var err error
	if order.Listen, err = consumer.FreeAddress(); err != nil {
		return nil, "", err
	}
	text, err := json.Marshal(order)
	if err != nil {
		return nil, "", err
	}
	file, err := os.CreateTemp(b.dir, "crew-*.json") // for its owner alone
	if err != nil {
		return nil, "", err
	}
	_, err = file.Write(text)
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, "", err
	}
	p, err := consumer.Start(ctx, consumer.Program{Path: b.Program, Args: []string{"bench", "--agents", file.Name()}, Ready: consumer.Listening(order.Listen)})
	if err != nil {
		return nil, "", fmt.Errorf("start the agents: %w", err)
	}
	return p, "http://" + order.Listen, os.Remove(file.Name())
}

func crewDoes(ctx context.Context, at string) (*crewState, error) {
	text, err := fetch(ctx, at+"/state")
	if err != nil {
		return nil, err
	}
	var s crewState
	return &s, json.Unmarshal(text, &s)
}

// explain adds what the agents say of themselves to an error.
func (f *fleet) explain(ctx context.Context, err error) error {
	if s, asked := crewDoes(context.WithoutCancel(ctx), f.at); asked == nil && s.Errors > 0 {
		return fmt.Errorf("%w; agents told of %d errors, first: %s", err, s.Errors, strings.Join(s.First, "; "))
	}
	return err
}

// placements are what each host shall hold.
func placements(profile string) []client.PlacementOrder {
	return []client.PlacementOrder{{Recipe: "plain", Parameters: map[string]string{
		"profile": profile, "algorithm": "ecdsa-p256", "key": placedKey, "cert": placedCert, "trust": placedTrust, "crl": placedCRL,
	}}}
}

// addHosts adds n hosts by the API, and keeps their tokens.
func (f *fleet) addHosts(ctx context.Context, n int) error {
	f.hosts = make([]client.HostToken, n)
	return each(ctx, n, func(ctx context.Context, i int) error {
		h, err := f.client.AddHost(ctx, client.AddHostRequest{Name: fmt.Sprintf("agent-%05d.bench.example", i), Placements: placements("server")})
		if err == nil {
			f.hosts[i] = *h
		}
		return err
	})
}

// each does work for 0 … n-1, some at a time.
func each(ctx context.Context, n int, work func(context.Context, int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(32)
	for i := range n {
		g.Go(func() error { return work(ctx, i) })
	}
	return g.Wait()
}

// join lets all agents begin at once, and waits until the authority has seen of each that everything is in place.
func (b *bench) join(ctx context.Context, f *fleet) error {
	before, _, err := f.cpu()
	if err != nil {
		return err
	}
	begin := time.Now()
	if _, err := fetch(ctx, f.at+"/begin"); err != nil {
		return err
	}
	if _, err := f.until(ctx, b.agentPatience, func(h *client.Host) bool { return inPlace(h) }); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	took := time.Since(begin)
	b.row(f.authority, row{what: "agent joins, holds", who: "chancery", note: "all at once, from token to report"}, before, begin, len(f.hosts))
	b.judge(ctx, "agents-join."+f.engine+"."+empty, took.Seconds(), nil)
	return nil
}

// inPlace reports whether the authority has seen that a host holds what it shall.
func inPlace(h *client.Host) bool {
	if h.State != client.HostJoined || len(h.Placements) != 1 {
		return false
	}
	o := h.Placements[0].Observed
	return o.State == client.PlacementPlaced && o.Serial != ""
}

// until looks at the hosts until each is as it shall be, and returns them by name. It looks no further than the first that is
// not: the list is made by the node whose time is measured.
func (f *fleet) until(ctx context.Context, patience time.Duration, done func(*client.Host) bool) (map[string]client.Host, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		all, missing := map[string]client.Host{}, ""
		for h, err := range f.client.Hosts(ctx, client.HostFilter{}) {
			if err != nil {
				return nil, err
			}
			if !f.member(h.Name) {
				continue
			}
			if !done(&h) {
				text, _ := json.Marshal(h)
				missing = fmt.Sprintf("%.600s", text)
				break
			}
			all[h.Name] = h
		}
		if missing == "" && len(all) == len(f.hosts) {
			return all, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("not all %d hosts are as they shall be after %s: %s", len(f.hosts), patience, missing)
		case <-f.node.Done():
			return nil, fmt.Errorf("the node ended: %s", f.node.Output())
		case <-time.After(300 * time.Millisecond):
		}
	}
}

func (f *fleet) member(name string) bool { return strings.HasPrefix(name, "agent-") }

// steady measures what the node takes while nothing happens: agents poll, and look at their files by themselves.
func (b *bench) steady(ctx context.Context, f *fleet) error {
	if err := pause(ctx, b.agentSettle); err != nil {
		return err
	}
	share, server, err := b.quiet(ctx, f.authority)
	if err != nil {
		return err
	}
	s, err := crewDoes(ctx, f.at)
	if err != nil {
		return err
	}
	if s.Errors > 0 {
		return fmt.Errorf("%d agents ended", s.Errors)
	}
	note := fmt.Sprintf("%.2f%% of a core over %s", 100*share, short(b.agentQuiet))
	if f.pg != nil {
		note += fmt.Sprintf(", and the database server %.2f%%", 100*server)
	}
	rss, err := memory(f.node.PID(), "VmRSS")
	b.add(row{what: "idle agents", who: fmt.Sprintf("%d agents", len(f.hosts)), engine: f.engine, store: empty, rss: rss, note: note})
	b.judge(ctx, "agents-steady."+f.engine+"."+empty, 100*share, b.profiler(f.authority, func(ctx context.Context) error {
		return pause(ctx, b.profileLength)
	}))
	return err
}

// quiet is what share of a core the node, and the database server, take for a while.
func (b *bench) quiet(ctx context.Context, a *authority) (node, server float64, err error) {
	n1, s1, err := a.cpu()
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	if err := pause(ctx, b.agentQuiet); err != nil {
		return 0, 0, err
	}
	n2, s2, err := a.cpu()
	took := time.Since(begin).Seconds()
	return (n2 - n1).Seconds() / took, (s2 - s1).Seconds() / took, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// storms has every host re-keyed: first because the authority says so, to all within a few seconds; then because all their
// certificates, which live for a minute or two, are due within the twelfth of that by which agents spread what is due.
func (b *bench) storms(ctx context.Context, f *fleet) error {
	if err := f.saveBrief(ctx, b.agentLife); err != nil {
		return err
	}
	hosts, err := f.until(ctx, b.agentPatience, inPlace)
	if err != nil {
		return err
	}
	kept := len(f.hosts)
	for _, storm := range []struct {
		name  string
		begin func(context.Context) error
	}{
		{"ordered", func(ctx context.Context) error {
			return each(ctx, len(f.hosts), func(ctx context.Context, i int) error {
				orders := placements(briefProfile)
				_, err := f.client.ChangeHost(ctx, f.hosts[i].Host.Name, client.ChangeHostRequest{Placements: &orders})
				return err
			})
		}},
		{"due", func(context.Context) error { return nil }},
	} {
		b.say("%s: %d agents, all %s", f.engine, len(f.hosts), storm.name)
		before, _, err := f.cpu()
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := storm.begin(ctx); err != nil {
			return err
		}
		was := hosts
		hosts, err = f.until(ctx, b.agentPatience+2*b.agentLife, func(h *client.Host) bool {
			o := h.Placements[0].Observed
			return inPlace(h) && o.Serial != was[h.Name].Placements[0].Observed.Serial && o.NotAfter.After(time.Now())
		})
		if err != nil {
			return fmt.Errorf("storm (%s): %w", storm.name, err)
		}
		lost := 0
		for name, h := range hosts {
			if h.Placements[0].Observed.At.After(was[name].Placements[0].Observed.NotAfter) { // it was placed too late
				lost++
			}
		}
		kept = min(kept, len(f.hosts)-lost)
		b.row(f.authority, row{what: "re-key, all " + storm.name, who: "chancery", errors: lost, note: "from the first to the last report; errors: hosts without a valid certificate meanwhile"},
			before, begin, len(f.hosts))
	}
	b.judge(ctx, "agents-storm."+f.engine+"."+empty, float64(kept)/float64(len(f.hosts)), nil)
	return nil
}

// saveBrief saves a profile as the servers' is, but for its life.
func (f *fleet) saveBrief(ctx context.Context, life time.Duration) error {
	server, err := f.client.Profile(ctx, "server", 0)
	if err != nil {
		return err
	}
	text := strings.NewReplacer("name: server\n", "name: "+briefProfile+"\n", "default: 90d", "default: "+life.String(), "max: 90d", "max: "+life.String(),
		"backdate: 5m", "backdate: 1s").Replace(server.YAML)
	if _, err := f.client.SaveProfile(ctx, briefProfile, client.ProfileText{YAML: text}); err != nil {
		return fmt.Errorf("save profile %s: %w", briefProfile, err)
	}
	return nil
}

// checkFiles reads what every agent has placed: a pair, in force, for the host's name, under the trust that lies beside it,
// and as the authority has seen it.
func (f *fleet) checkFiles() error {
	for _, h := range f.hosts {
		_, root := memberDirs(f.dir, h.Host.Name)
		if err := checkPlaced(root, h.Host.Name); err != nil {
			return fmt.Errorf("host %s: %w", h.Host.Name, err)
		}
	}
	return nil
}

func checkPlaced(root, name string) error {
	pair, err := tls.LoadX509KeyPair(filepath.Join(root, placedCert), filepath.Join(root, placedKey))
	if err != nil {
		return err
	}
	trust, err := os.ReadFile(filepath.Join(root, placedTrust))
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(root, placedCRL)); err != nil {
		return err
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM(trust) {
		return errors.New("the trust file holds no certificate")
	}
	for _, der := range pair.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		between.AddCert(c)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: name, CurrentTime: pair.Leaf.NotBefore}); err != nil {
		return fmt.Errorf("certificate %s: %w", cert.FormatSerial(pair.Leaf.SerialNumber), err)
	}
	return nil
}
