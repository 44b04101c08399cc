package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/upkeep/setup"
)

// pollWait is how long agents have the authority hold a poll.
const pollWait = 55 * time.Second

// idleAgents measures a node that holds the polls of many agents to whom nothing happens, and how soon they hear of something.
func (b *bench) idleAgents(ctx context.Context, a *authority) (err error) {
	begin := time.Now()
	if err := a.stop(); err != nil {
		return err
	}
	members, err := b.enrol(ctx, a, b.idleCount, "")
	if err != nil {
		return fmt.Errorf("add hosts that have joined: %w", err)
	}
	b.say("%s: %d hosts were added and joined in %s", a.engine, len(members), short(time.Since(begin)))
	if _, err := a.start(ctx); err != nil {
		return err
	}
	bare, err := memory(a.node.PID(), "VmRSS")
	if err != nil {
		return err
	}
	roots, err := os.ReadFile(a.dir.IdentityRoot())
	if err != nil {
		return err
	}
	crew, at, err := b.startCrew(ctx, crewOrder{Members: members, Authority: a.config.Listen.API, Roots: string(roots), Wait: pollWait})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, crew.Stop()) }()
	before, _, err := a.cpu()
	if err != nil {
		return err
	}
	begin = time.Now()
	if _, err := fetch(ctx, at+"/begin"); err != nil {
		return err
	}
	err = b.crewUntil(ctx, at, func(s *crewState) bool { return s.Waiting == len(members) })
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	b.row(a, row{what: "agents connect", who: "chancery", note: fmt.Sprintf("64 at a time; the node alone had %s", octets(bare))}, before, begin, len(members))
	if err := b.hold(ctx, a, at, len(members)); err != nil {
		return err
	}
	if err := b.hear(ctx, a, at, members); err != nil {
		return err
	}
	// The peak is judged, after all were woken at once: what the kernel has not taken back yet is taken all the same.
	peak, err := memory(a.node.PID(), "VmHWM")
	if err != nil {
		return err
	}
	b.judge(ctx, "agents-held-memory."+a.engine+"."+empty, float64(peak)/1e6, b.inuse(a))
	return nil
}

// hold measures the memory and the processor time of a node while all wait.
func (b *bench) hold(ctx context.Context, a *authority, at string, n int) error {
	if err := pause(ctx, b.agentSettle); err != nil {
		return err
	}
	s, err := crewDoes(ctx, at)
	if err != nil {
		return err
	}
	polls := s.Polls
	share, _, err := b.quiet(ctx, a)
	if err != nil {
		return err
	}
	if s, err = crewDoes(ctx, at); err != nil {
		return err
	}
	if s.Errors > 0 {
		return fmt.Errorf("%d polls failed, first: %q", s.Errors, s.First)
	}
	rss, err := memory(a.node.PID(), "VmRSS")
	if err != nil {
		return err
	}
	peak, err := memory(a.node.PID(), "VmHWM")
	if err != nil {
		return err
	}
	b.add(row{what: "idle agents", who: fmt.Sprintf("%d agents", n), engine: a.engine, store: empty, rss: rss, size: peak / int64(n),
		rate: float64(s.Polls-polls) / b.agentQuiet.Seconds(), note: fmt.Sprintf("polls a second, %.2f%% of a core over %s; peak %s", 100*share, short(b.agentQuiet), octets(peak))})
	return nil
}

// hear measures how long it takes until all have heard of a change that concerns all, and until one has heard of one that
// concerns it alone.
func (b *bench) hear(ctx context.Context, a *authority, at string, members []crewMember) error {
	for _, change := range []struct {
		what  string
		heard int
		make  func(context.Context) error
	}{
		{"new CRL → all agents", len(members), func(ctx context.Context) error {
			_, err := a.client.IssueCRL(ctx, plainIssuer, issueCRL)
			return err
		}},
		{"host set → its agent", 1, func(ctx context.Context) error {
			names := []string{"another-name.bench.example"}
			_, err := a.client.ChangeHost(ctx, members[0].Name, client.ChangeHostRequest{DNS: &names})
			return err
		}},
	} {
		before, _, err := a.cpu()
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := change.make(ctx); err != nil {
			return err
		}
		answered := time.Since(begin)
		var n int
		var last int64
		err = b.crewUntil(ctx, at, func(s *crewState) bool {
			n, last = 0, 0
			for _, at := range s.Heard {
				if at >= begin.UnixNano() {
					n++
					last = max(last, at)
				}
			}
			return n >= change.heard
		})
		if err != nil {
			return fmt.Errorf("%s: %w", change.what, err)
		}
		after, _, err := a.cpu()
		if err != nil {
			return err
		}
		b.add(row{what: change.what, who: fmt.Sprintf("%d agents", len(members)), engine: a.engine, store: empty, cpu: (after - before) / time.Duration(change.heard),
			most: time.Duration(last - begin.UnixNano()), note: fmt.Sprintf("from the call, which was answered in %s, to the last of %d that were told", short(answered), n)})
	}
	return nil
}

// crewUntil asks agents how they do until they do as they shall.
func (b *bench) crewUntil(ctx context.Context, at string, done func(*crewState) bool) error {
	ctx, cancel := context.WithTimeout(ctx, b.agentPatience)
	defer cancel()
	for {
		s, err := crewDoes(ctx, at)
		if err != nil {
			return err
		}
		if done(s) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %d wait, %d polls were answered, %d failed, first: %q", b.agentPatience, s.Waiting, s.Polls, s.Errors, s.First)
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// inuse returns a function that has the node write what it keeps in memory.
func (b *bench) inuse(a *authority) func(context.Context, string) (*profile, error) {
	return func(ctx context.Context, name string) (*profile, error) {
		octets, err := fetch(ctx, "http://"+a.config.Listen.Metrics+"/debug/pprof/heap?gc=1")
		if err != nil {
			return nil, err
		}
		return b.keep(ctx, name+".heap.pprof", octets)
	}
}

// enrol adds hosts to the stopped authority and redeems their tokens, by the services that the node itself has: each host has
// all rows, certificate and audit events that it would have by the API.
func (b *bench) enrol(ctx context.Context, a *authority, n int, pool string) ([]crewMember, error) {
	members := make([]crewMember, n)
	domain := "bench.example"
	if pool != "" {
		domain = pool + "." + domain
	}
	err := a.open(ctx, func(s *setup.Services) error {
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(128) // writers share a commit
		for i := range members {
			g.Go(func() (err error) {
				members[i], err = enrolOne(ctx, s, fmt.Sprintf("idle-%05d.%s", i, domain), pool)
				return err
			})
		}
		return g.Wait()
	})
	return members, err
}

func enrolOne(ctx context.Context, s *setup.Services, name, pool string) (crewMember, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return crewMember{}, err
	}
	text, err := keyfile.EncodePKCS8(key)
	if err != nil {
		return crewMember{}, err
	}
	csr, err := cert.CreateCSR(&cert.CSRTemplate{}, key)
	if err != nil {
		return crewMember{}, err
	}
	added, err := s.Hosts.Add(ctx, access.System("bench"), client.AddHostRequest{Name: name, Pool: pool, Placements: placements("server")}, "")
	if err != nil {
		return crewMember{}, err
	}
	joined, err := s.Hosts.Join(ctx, client.JoinRequest{
		Token: added.Token, CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})), Agent: "bench",
	})
	if err != nil {
		return crewMember{}, err
	}
	return crewMember{Name: name, Pair: string(text) + joined.Certificate + joined.Chain}, nil
}
