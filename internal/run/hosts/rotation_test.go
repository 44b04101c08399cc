package hosts_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/run/consumer"
	"chancery/internal/run/prober"
	"chancery/internal/store/db"
)

// ring is a pool of hosts whose consumers visit each other all the while. Both sides of a visit are strict: they verify the
// path and the name, and want a CRL of each issuer.
type ring struct {
	t      testing.TB
	w      *world
	pool   *client.Pool
	hosts  []*ringHost
	prober *prober.Prober
}

type ringHost struct {
	*host
	consumer *prober.Consumer
	agent    *consumer.Process
}

// newRing makes a ring of n hosts with agents that run, and waits until all have what they shall.
func newRing(t testing.TB, w *world, n int) *ring {
	t.Helper()
	r := &ring{t: t, w: w, pool: w.pool(t)}
	for range n {
		r.add()
	}
	r.settled()
	r.visit()
	return r
}

// add adds a host with its agent and its consumer.
func (r *ring) add() *ringHost {
	r.t.Helper()
	h := &ringHost{host: r.w.newHost(r.t, "ring", machine{pool: r.pool.Name, directory: true})}
	h.join(order("plain", "profile=peer", "combined=/etc/ssl/ring/pair.pem", "trust=/etc/ssl/ring/trust.pem", "crl=/etc/ssl/ring/crl.pem"))
	var err error
	h.consumer, err = prober.Serve(h.name, h.at+":0", prober.Files{
		Pair: h.path("/etc/ssl/ring/pair.pem"), Trust: h.path("/etc/ssl/ring/trust.pem"), CRLs: h.path("/etc/ssl/ring/crl.pem"),
	})
	must(r.t, err)
	r.t.Cleanup(func() { must(r.t, h.consumer.Close()) })
	h.runAgent()
	r.hosts = append(r.hosts, h)
	return h
}

// runAgent starts the host's agent.
func (h *ringHost) runAgent() {
	h.t.Helper()
	h.agent = h.start(consumer.Program{Path: program(h.t), Args: []string{"agent", "run", "--state", h.state}})
}

// killAgent kills it, at whatever it is doing.
func (h *ringHost) killAgent() {
	h.t.Helper()
	kill(h.t, h.agent)
}

// kill ends a process by SIGKILL.
func kill(t testing.TB, p *consumer.Process) {
	t.Helper()
	must(t, p.Signal(syscall.SIGKILL))
	select {
	case <-p.Done():
	case <-time.After(time.Minute):
		t.Fatal("a process outlives SIGKILL")
	}
}

// settled waits until every consumer has all of its files.
func (r *ring) settled() {
	r.t.Helper()
	for _, h := range r.hosts {
		until(r.t, "host "+h.name+" has its files", func() bool { return h.consumer.Ready() == nil })
		until(r.t, "host "+h.name+" has reported", func() bool { return h.observed("plain").Trust > 0 })
	}
}

// visit has the prober begin, and waits until all have visited all.
func (r *ring) visit() {
	r.t.Helper()
	var all []*prober.Consumer
	for _, h := range r.hosts {
		all = append(all, h.consumer)
	}
	r.prober = prober.Start(all, 4, 50*time.Millisecond)
	r.t.Cleanup(func() { r.prober.Stop() })
	r.again()
}

// again waits until all pairs were visited once more than by now.
func (r *ring) again() {
	r.t.Helper()
	now := r.prober.Count().Rounds
	until(r.t, "all visited all", func() bool { return r.prober.Count().Rounds > now+1 })
}

// zero ends the visits, and wants that none failed.
func (r *ring) zero(what string) {
	r.t.Helper()
	r.again()
	seen := r.prober.Stop()
	if tell(r.t, what, seen); seen.Failed != 0 || seen.Tried == 0 {
		r.t.Errorf("%s: %v\n%s", what, seen, strings.Join(seen.First, "\n"))
	}
}

var telling sync.Mutex

// tell says what a prober saw, to the file that make test names and shows.
func tell(t testing.TB, what string, seen fmt.Stringer) {
	t.Helper()
	t.Logf("%s: %v", what, seen)
	file := os.Getenv("CHANCERY_PROBED")
	if file == "" {
		return
	}
	telling.Lock()
	defer telling.Unlock()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	must(t, err)
	_, err = fmt.Fprintf(f, "%s: %s: %v\n", t.Name(), what, seen)
	must(t, errors.Join(err, f.Close()))
}

// follow looks at a rollout until it has ended, and calls at once for each wave of each stage that it sees.
func (r *ring) follow(id string, at func(*client.Rollout)) *client.Rollout {
	r.t.Helper()
	seen := map[string]bool{}
	var last *client.Rollout
	for deadline := time.Now().Add(3 * time.Minute); ; {
		now, err := r.w.admin.Rollout(r.t.Context(), id)
		if err == nil {
			last = now
			if !now.EndedAt.IsZero() {
				return now
			}
			if now.State == client.RolloutPaused {
				r.t.Fatalf("the rollout paused in stage %s, wave %d: %s", now.Stage, now.Wave, now.Message)
			}
			where := fmt.Sprintf("%s %d", now.Stage, now.Wave)
			if at != nil && !seen[where] {
				seen[where] = true
				at(now)
				deadline = time.Now().Add(3 * time.Minute) // it goes on, however slow the machine
			}
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("the rollout did not end: %+v (%v)", last, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// roots are the subjects in a host's trust file.
func (h *ringHost) roots() string { return string(h.read("/etc/ssl/ring/trust.pem")) }

// rotated wants that all hosts are under the pool's new root, and trust nothing else.
func (r *ring) rotated() {
	r.t.Helper()
	now, err := r.w.admin.Pool(r.t.Context(), r.pool.Name)
	must(r.t, err)
	if now.Root.Name == r.pool.Root.Name || now.Issuer.Name == r.pool.Issuer.Name {
		r.t.Fatalf("the pool has its old root %s or issuer %s", now.Root.Name, now.Issuer.Name)
	}
	for _, h := range r.hosts {
		leaf := parsed(r.t, leafOf(h.read("/etc/ssl/ring/pair.pem")))
		issuer := parsed(r.t, []byte(now.Issuer.PEM))
		if err := leaf.CheckSignatureFrom(issuer); err != nil {
			r.t.Errorf("%s: %v", h.name, err)
		}
		if trust := strings.TrimSpace(h.roots()); trust != strings.TrimSpace(now.Root.PEM) {
			r.t.Errorf("%s trusts\n%s", h.name, trust)
		}
	}
}

// leafOf is the first certificate of a file that begins with a key.
func leafOf(text []byte) []byte {
	at := strings.Index(string(text), "-----BEGIN CERTIFICATE-----")
	return text[max(at, 0):]
}

var ringWaves = []string{"25%", "50%", "100%"}

// TestRotationUnderKills rotates the root of a pool while the node, or agents, are killed at each wave of each stage. No
// connection between any two hosts fails.
func TestRotationUnderKills(t *testing.T) {
	t.Parallel()
	for _, engine := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run(string(engine)+"/node", func(t *testing.T) {
			t.Parallel()
			r := newRing(t, worldOn(t, engine), 4)
			started, err := r.w.admin.StartRollout(t.Context(), client.StartRolloutRequest{Kind: client.RolloutRoot, Pool: r.pool.Name, Online: true, Waves: ringWaves})
			must(t, err)
			kills := 0
			ended := r.follow(started.ID, func(now *client.Rollout) {
				kills++
				r.w.restart(t)
			})
			if ended.State != client.RolloutDone || kills < 4 { // each stage has waves that a busy machine may miss
				t.Errorf("the rollout is %s after %d kills: %s", ended.State, kills, ended.Message)
			}
			r.zero(fmt.Sprintf("root rotated, node killed %d times", kills))
			r.rotated()
		})
	}
	t.Run("agents", func(t *testing.T) {
		t.Parallel()
		r := newRing(t, theWorld(t), 4)
		started, err := r.w.admin.StartRollout(t.Context(), client.StartRolloutRequest{Kind: client.RolloutRoot, Pool: r.pool.Name, Online: true, Waves: ringWaves})
		must(t, err)
		kills := 0
		ended := r.follow(started.ID, func(now *client.Rollout) {
			h := r.hosts[kills%len(r.hosts)]
			kills++
			h.killAgent()
			h.runAgent()
		})
		if ended.State != client.RolloutDone || kills < 4 { // each stage has waves that a busy machine may miss
			t.Errorf("the rollout is %s after %d kills: %s", ended.State, kills, ended.Message)
		}
		r.zero(fmt.Sprintf("root rotated, agents killed %d times", kills))
		r.rotated()
	})
}

// restart kills the node and starts it anew.
func (w *world) restart(t testing.TB) {
	t.Helper()
	kill(t, w.process)
	var err error
	w.process, err = consumer.Start(t.Context(), consumer.Program{
		Path: program(t), Args: []string{"serve", "--dir", string(w.dir)}, Ready: consumer.Listening(w.API),
	})
	must(t, err)
}

// TestEveryRotation carries out each kind of rollout, and undoes one, while all visit all.
func TestEveryRotation(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	for _, in := range []client.StartRolloutRequest{
		{Kind: client.RolloutReissue}, {Kind: client.RolloutIssuer}, {Kind: client.RolloutRoot, Online: true}, {Kind: client.RolloutIdentities},
		{Kind: client.RolloutAlgorithm, Algorithm: "ecdsa-p384"},
	} {
		t.Run(in.Kind, func(t *testing.T) {
			t.Parallel()
			r := newRing(t, w, 3)
			before := map[string]string{}
			for _, h := range r.hosts {
				before[h.name] = h.consumer.Serial()
			}
			in.Pool = r.pool.Name
			started, err := w.admin.StartRollout(t.Context(), in)
			must(t, err)
			if ended := r.follow(started.ID, nil); ended.State != client.RolloutDone {
				t.Errorf("it is %s: %s", ended.State, ended.Message)
			}
			r.zero(in.Kind)
			for _, h := range r.hosts {
				if same := before[h.name] == h.consumer.Serial(); same != (in.Kind == client.RolloutIdentities) {
					t.Errorf("%s: the certificate of %s is the old one: %t", in.Kind, h.name, same)
				}
			}
		})
	}
	t.Run("undone half-way", func(t *testing.T) {
		t.Parallel()
		r := newRing(t, w, 4)
		started, err := w.admin.StartRollout(t.Context(), client.StartRolloutRequest{Kind: client.RolloutRoot, Pool: r.pool.Name, Online: true, Waves: ringWaves})
		must(t, err)
		undone := false
		ended := r.follow(started.ID, func(now *client.Rollout) {
			if now.Stage == client.StageRekey && now.Wave == 3 && !undone {
				undone = true
				_, err := w.admin.UndoRollout(t.Context(), started.ID)
				must(t, err)
			}
		})
		if ended.State != client.RolloutUndone || !undone {
			t.Errorf("it is %s: %s", ended.State, ended.Message)
		}
		r.zero("a root's rotation undone after half of the hosts")
		for _, h := range r.hosts {
			if strings.TrimSpace(h.roots()) != strings.TrimSpace(r.pool.Root.PEM) {
				t.Errorf("%s trusts\n%s", h.name, h.roots())
			}
		}
	})
}

// TestHostsThatHold: a host that is away holds a rotation and is named; it goes on when the host is back. One that was left out
// with a reason holds nothing.
func TestHostsThatHold(t *testing.T) {
	t.Parallel()
	r := newRing(t, theWorld(t), 3)
	away := r.hosts[1]
	away.killAgent()
	started, err := r.w.admin.StartRollout(t.Context(), client.StartRolloutRequest{Kind: client.RolloutRoot, Pool: r.pool.Name, Online: true, Waves: []string{"100%"}})
	must(t, err)
	until(t, "the rollout names who holds it", func() bool {
		now, err := r.w.admin.Rollout(t.Context(), started.ID)
		must(t, err)
		return now.Stage == client.StageTrust && len(now.Holding) == 1 && now.Holding[0].Host == away.name
	})
	if _, err := r.w.admin.StartRollout(t.Context(), client.StartRolloutRequest{Kind: client.RolloutReissue, Pool: r.pool.Name}); err == nil ||
		!strings.Contains(err.Error(), started.ID) {
		t.Errorf("a second rollout on the pool: %v", err)
	}
	r.again()
	away.runAgent()
	if ended := r.follow(started.ID, nil); ended.State != client.RolloutDone {
		t.Errorf("it is %s: %s", ended.State, ended.Message)
	}
	r.zero("a host was away")
	r.rotated()
}

// TestRotateLibvirt, scenario S13, is two libvirtd, each of which is the other's client all the while: in no stage of a
// rotation of the root does virsh fail in either direction; the old root cannot be taken out before; and who is away is
// waited for.
func TestRotateLibvirt(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	if os.Geteuid() != 0 {
		t.Fatal("two libvirtd with their files in the usual places need mount tables of their own: run the tests as root")
	}
	pool := w.pool(t)
	var hosts []*host
	var daemons []*daemon
	for range 2 {
		h := w.newHost(t, "virt", machine{pool: pool.Name})
		port := h.configure()
		h.join(order("libvirt-server", "address="+h.at+":"+port), order("libvirt-client", "beside_server=true"))
		h.converge()
		hosts, daemons = append(hosts, h), append(daemons, h.libvirtd(port))
	}
	var agents []*consumer.Process
	for _, h := range hosts {
		agents = append(agents, h.start(consumer.Program{Path: program(t), Args: []string{"agent", "run", "--state", h.state}}))
	}
	count := &virshes{hosts: hosts, daemons: daemons, had: map[*daemon]string{}}
	count.again(t)

	entry := anchorOf(t, w, pool)
	err := w.admin.DropTrust(t.Context(), pool.Name, entry, client.DropTrustRequest{})
	for _, h := range hosts {
		if err == nil || !strings.Contains(err.Error(), h.name) {
			t.Errorf("the root that %s is under is to be dropped: %v", h.name, err)
		}
	}
	kill(t, agents[1])
	started, err := w.admin.StartRollout(t.Context(), client.StartRolloutRequest{Kind: client.RolloutRoot, Pool: pool.Name, Online: true, Waves: []string{"50%", "100%"}})
	must(t, err)
	until(t, "the rollout waits for the host that is away", func() bool {
		now, err := w.admin.Rollout(t.Context(), started.ID)
		must(t, err)
		return len(now.Holding) == 1 && now.Holding[0].Host == hosts[1].name
	})
	count.again(t)
	hosts[1].start(consumer.Program{Path: program(t), Args: []string{"agent", "run", "--state", hosts[1].state}})
	r := &ring{t: t, w: w}
	if ended := r.follow(started.ID, func(*client.Rollout) { count.again(t) }); ended.State != client.RolloutDone {
		t.Errorf("it is %s: %s", ended.State, ended.Message)
	}
	count.end(t)
	now, err := w.admin.Pool(t.Context(), pool.Name)
	must(t, err)
	for _, h := range hosts {
		if text := string(h.read(caFile)); strings.Contains(text, strings.TrimSpace(pool.Root.PEM)) || !strings.Contains(text, strings.TrimSpace(now.Root.PEM)) {
			t.Errorf("%s has in %s\n%s", h.name, filepath.Base(caFile), text)
		}
	}
}

// anchorOf is the ID of the entry of a pool's root.
func anchorOf(t testing.TB, w *world, pool *client.Pool) string {
	t.Helper()
	for e, err := range w.admin.Trust(t.Context(), pool.Name, "") {
		must(t, err)
		if e.Kind == client.TrustAnchor && e.Issuer == pool.Root.Name {
			return e.ID
		}
	}
	t.Fatalf("the root of pool %s is not in its trust set", pool.Name)
	return ""
}

// virshes have each host list the domains of each, with the certificates that lie on it, whenever they are told to. They do not go
// on by themselves: libvirtd 9.0 may end where server-update-tls falls into a handshake, which is told in the recipe's traps.
type virshes struct {
	hosts   []*host
	daemons []*daemon
	tried   int
	failed  []string
	met     int                // handshakes in which the daemon was told of new files
	had     map[*daemon]string // its files when virsh last got through
}

func (v *virshes) String() string {
	return fmt.Sprintf("%d connections of virsh in all directions, %d failures, %d cut off by server-update-tls and repeated", v.tried, len(v.failed), v.met)
}

// again has each call each.
func (v *virshes) again(t testing.TB) {
	t.Helper()
	for _, from := range v.hosts {
		for _, to := range v.daemons {
			v.tried++
			before := filesOf(to)
			out, ok := v.call(from, to)
			// libvirtd frees what a handshake in progress uses when it is told to read its files again.
			if !ok && strings.Contains(out, "Unable to read TLS confirmation") && v.had[to] != filesOf(to) {
				v.met++
				until(t, "libvirtd answers, which may have ended of it and is started again", func() bool {
					out, ok = v.call(from, to)
					return !strings.Contains(out, "Connection refused")
				})
			}
			if !ok {
				v.failed = append(v.failed, fmt.Sprintf("%s → %s: %s", from.name, to.h.name, out))
				continue
			}
			v.had[to] = before
		}
	}
}

func (v *virshes) call(from *host, to *daemon) (string, bool) {
	out, err := from.command("virsh", "-q", "-c", to.uri(to.h.at, nil), "list", "--name").CombinedOutput()
	return fmt.Sprintf("%v %s", err, out), err == nil && strings.TrimSpace(string(out)) == "test"
}

func filesOf(d *daemon) string { return string(d.h.read(caFile)) + string(d.h.read(serverCert)) }

func (v *virshes) end(t testing.TB) {
	t.Helper()
	v.again(t)
	if tell(t, "libvirtd", v); len(v.failed) != 0 {
		t.Errorf("%v\n%s", v, strings.Join(v.failed[:min(5, len(v.failed))], "\n"))
	}
}
