package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/run/consumer"
)

// placedPair is where the hosts of a rotation have key and certificate: in one file, so that consumers which read it at each
// connection never meet one without the other.
const placedPair = "/etc/pki/bench/pair.pem"

// rollouts measures what it takes to change the certificates of whole pools: first the root of a pool whose consumers visit
// each other all the while, then the certificates of pools of several sizes.
func (b *bench) rollouts(ctx context.Context, engine string) error {
	for _, part := range []struct {
		name    string
		measure func(context.Context, *authority) error
	}{{"rotation", b.rotation}, {"reissue", b.reissues}} {
		dir := filepath.Join(b.dir, part.name+"-"+engine)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		a, err := b.newAuthority(ctx, engine, dir)
		if err != nil {
			return err
		}
		err = part.measure(ctx, a)
		err = errors.Join(err, a.stop())
		if a.pg != nil {
			err = errors.Join(err, a.pg.Stop())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

// rotation rotates the root of a pool of real agents, with a consumer beside each of them.
func (b *bench) rotation(ctx context.Context, a *authority) (err error) {
	b.say("%s: the root of %d hosts", a.engine, b.rotationCount)
	f := &fleet{authority: a, hosts: make([]client.HostToken, b.rotationCount)}
	if f.dir, err = b.memoryDir(); err != nil {
		return err
	}
	defer os.RemoveAll(f.dir)
	if _, err := a.client.AddPool(ctx, client.AddPoolRequest{Name: "rotation", Online: true}); err != nil {
		return err
	}
	order := crewOrder{Dir: f.dir, Consume: true}
	err = each(ctx, len(f.hosts), func(ctx context.Context, i int) error {
		h, err := a.client.AddHost(ctx, client.AddHostRequest{Name: fmt.Sprintf("agent-%05d.bench.example", i), Pool: "rotation", Placements: []client.PlacementOrder{
			{Recipe: "plain", Parameters: map[string]string{"profile": "peer", "combined": placedPair, "trust": placedTrust, "crl": placedCRL}},
		}})
		if err == nil {
			f.hosts[i] = *h
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("add hosts: %w", err)
	}
	for _, h := range f.hosts {
		order.Members = append(order.Members, crewMember{Name: h.Host.Name, Token: h.Token})
	}
	if f.crew, f.at, err = b.startCrew(ctx, order); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.crew.Stop()) }()
	if _, err := fetch(ctx, f.at+"/begin"); err != nil {
		return err
	}
	if _, err := f.until(ctx, b.agentPatience, inPlace); err != nil {
		return f.explain(ctx, err)
	}
	if _, err := b.visitsUntil(ctx, f.at, func(s *visitState) bool { return s.Ready == len(f.hosts) }); err != nil {
		return f.explain(ctx, err)
	}
	if _, err := fetch(ctx, f.at+"/visits/begin"); err != nil {
		return err
	}
	// Nothing is changed before each has visited some: what fails then is not the rotation's doing.
	begun, err := b.visitsUntil(ctx, f.at, func(s *visitState) bool { return s.Tried >= int64(2*len(f.hosts)) })
	if err != nil {
		return err
	}
	if begun.Failed > 0 {
		return fmt.Errorf("connections failed before anything was changed: %s", strings.Join(begun.First, "; "))
	}
	took, err := b.roll(ctx, a, client.StartRolloutRequest{Kind: client.RolloutRoot, Pool: "rotation", Online: true}, len(f.hosts))
	if err != nil {
		return f.explain(ctx, err)
	}
	after, err := visited(ctx, f.at)
	if err != nil {
		return err
	}
	end, err := b.visitsUntil(ctx, f.at, func(s *visitState) bool { return s.Tried >= after.Tried+int64(2*len(f.hosts)) })
	if err != nil {
		return err
	}
	b.say("%s: %v", a.engine, end.Count)
	for _, failure := range end.First {
		b.say("  %s", failure)
	}
	b.add(row{what: "visits meanwhile", who: fmt.Sprintf("%d hosts", len(f.hosts)), engine: a.engine, store: empty, errors: int(end.Failed),
		rate: float64(after.Tried-begun.Tried) / took.Seconds(), note: fmt.Sprintf("verified connections between all pairs, %d in all", end.Tried)})
	b.judge(ctx, "rollout-root."+a.engine+"."+empty, took.Seconds(), nil)
	b.judge(ctx, "rollout-failures."+a.engine+"."+empty, float64(end.Failed), nil)
	return nil
}

// roll carries a rollout out, and returns how long it took.
func (b *bench) roll(ctx context.Context, a *authority, in client.StartRolloutRequest, hosts int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, b.rolloutPatience)
	defer cancel()
	before, server, err := a.cpu()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	r, err := a.client.StartRollout(ctx, in)
	if err != nil {
		return 0, err
	}
	for r.State != client.RolloutDone {
		switch r.State {
		case client.RolloutRunning:
		default:
			return 0, fmt.Errorf("the rollout is %s in stage %s, wave %d: %s %v", r.State, r.Stage, r.Wave, r.Message, r.Holding)
		}
		if err := pause(ctx, 300*time.Millisecond); err != nil {
			return 0, errors.Join(fmt.Errorf("the rollout is in stage %s, wave %d: %s %v", r.Stage, r.Wave, r.Message, r.Holding), err)
		}
		if r, err = a.client.Rollout(ctx, r.ID); err != nil {
			return 0, err
		}
	}
	took := time.Since(begin)
	after, served, err := a.cpu()
	if err != nil {
		return 0, err
	}
	rss, err := memory(a.node.PID(), "VmRSS")
	if err != nil {
		return 0, err
	}
	b.add(row{what: in.Kind, who: fmt.Sprintf("%d hosts", hosts), engine: a.engine, store: empty, most: took, rate: float64(hosts) / took.Seconds(),
		cpu: (after - before + served - server) / time.Duration(hosts), rss: rss, note: fmt.Sprintf("%d waves", len(r.Waves))})
	return took, nil
}

// reissues re-keys all hosts of pools of several sizes, one pool after the other, and holds what it costs for each host at
// one size against the size before.
func (b *bench) reissues(ctx context.Context, a *authority) (err error) {
	for _, n := range b.reissueCounts {
		if _, err := a.client.AddPool(ctx, client.AddPoolRequest{Name: reissuePool(n), Online: true}); err != nil {
			return err
		}
	}
	if err := a.stop(); err != nil {
		return err
	}
	var members []crewMember
	for _, n := range b.reissueCounts {
		some, err := b.enrol(ctx, a, n, reissuePool(n))
		if err != nil {
			return fmt.Errorf("add hosts that have joined: %w", err)
		}
		members = append(members, some...)
	}
	if _, err := a.start(ctx); err != nil {
		return err
	}
	roots, err := os.ReadFile(a.dir.IdentityRoot())
	if err != nil {
		return err
	}
	crew, at, err := b.startCrew(ctx, crewOrder{Members: members, Authority: a.config.Listen.API, Roots: string(roots), Wait: pollWait, Hold: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, crew.Stop()) }()
	if _, err := fetch(ctx, at+"/begin"); err != nil {
		return err
	}
	if err := b.crewUntil(ctx, at, func(s *crewState) bool { return s.Waiting == len(members) }); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return b.reissueEach(ctx, a, crew)
}

func reissuePool(hosts int) string { return fmt.Sprintf("reissue-%d", hosts) }

func (b *bench) reissueEach(ctx context.Context, a *authority, crew *consumer.Process) error {
	var each []float64 // the time that a host took, by size
	for _, n := range b.reissueCounts {
		b.say("%s: re-issue of %d hosts", a.engine, n)
		before, server, err := a.cpu()
		if err != nil {
			return err
		}
		if _, err := b.roll(ctx, a, client.StartRolloutRequest{Kind: client.RolloutReissue, Pool: reissuePool(n)}, n); err != nil {
			return err
		}
		select {
		case <-crew.Done():
			return fmt.Errorf("the agents ended: %s", crew.Output())
		default:
		}
		after, served, err := a.cpu()
		if err != nil {
			return err
		}
		each = append(each, (after-before+served-server).Seconds()/float64(n))
	}
	most := 1.0
	for i := 1; i < len(each); i++ {
		most = max(most, each[i]/each[i-1])
	}
	peak, err := memory(a.node.PID(), "VmHWM")
	if err != nil {
		return err
	}
	b.judge(ctx, "rollout-linear."+a.engine+"."+empty, most, nil)
	b.judge(ctx, "rollout-memory."+a.engine+"."+empty, float64(peak)/1e6, b.inuse(a))
	return nil
}
