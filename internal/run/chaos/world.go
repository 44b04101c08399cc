package chaos

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"chancery/client"
	"chancery/internal/run/cluster"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// Options say how long chaos lasts, and in which order.
type Options struct {
	Program string // this program, whose serve is under test
	Length  time.Duration
	Seed    uint64
	History string    // the file to which calls are written; empty means one among temporary files
	Keep    bool      // leave the logs of the nodes where the history is
	Rush    int       // certificates that two nodes issue at once before, from each
	Out     io.Writer // figures and verdict
	Err     io.Writer // progress
}

// The issuer that is used, which setup makes.
const issuerName = "default"

// patience bounds every wait; two loaded cores need it.
const patience = 2 * time.Minute

// world is an authority of three nodes on a cluster of three members.
type world struct {
	Options
	dir     string
	cluster *cluster.Cluster
	parted  bool // machines are cut off by namespaces; else their members stand still
	nodes   []*node
	admin   []*client.Client // by node, through its door
	issuer  *x509.Certificate
	roots   *x509.CertPool
	pair    func() (*tls.Certificate, error)
	history *history
	dice    *rand.Rand // of the schedule alone
	begun   time.Time

	struck   string // the member or node that was struck last; this and the next are the schedule's alone
	restarts int    // of members that did not come to themselves

	mu    sync.Mutex // guards what follows
	valid []string   // serials that were acknowledged, and nobody has asked to revoke
	ended []string   // serials whose revocation was asked for
}

func (w *world) say(format string, args ...any) {
	fmt.Fprintf(w.Err, "%7s  %s\n", time.Since(w.begun).Round(100*time.Millisecond), fmt.Sprintf(format, args...))
}

// newWorld starts members and nodes. Whatever came of it is ended by close.
func newWorld(ctx context.Context, o Options) (w *world, err error) {
	w = &world{Options: o, begun: time.Now(), dice: rand.New(rand.NewPCG(o.Seed, 5))}
	if w.dir, err = os.MkdirTemp("", "chancery-chaos-"); err != nil {
		return w, err
	}
	if w.History == "" {
		w.History = filepath.Join(w.dir, "history.jsonl")
	}
	if w.history, err = newHistory(w.History); err != nil {
		return w, err
	}
	w.parted = os.Geteuid() == 0 // who is not root makes no namespaces
	w.say("starting PostgreSQL, Patroni and etcd, three of each; cut off by namespaces: %v", w.parted)
	if w.cluster, err = cluster.Start(ctx, cluster.Options{Namespaces: w.parted}); err != nil {
		return w, err
	}
	url, err := w.cluster.Database(ctx, "chancery")
	if err != nil {
		return w, err
	}
	if err := w.makeNodes(url); err != nil {
		return w, err
	}
	if err := w.first(ctx); err != nil {
		return w, fmt.Errorf("make the authority: %w", err)
	}
	for i := 1; i < len(w.nodes); i++ {
		if err := w.join(ctx, w.nodes[i], i-1); err != nil {
			return w, fmt.Errorf("join node %s: %w", w.nodes[i].name, err)
		}
	}
	return w, nil
}

// makeNodes plans a node for each member, which reads at that member by its socket.
func (w *world) makeNodes(url string) error {
	for i, m := range w.cluster.Members {
		n := &node{name: fmt.Sprintf("node%d", i+1), member: m, program: w.Program}
		n.dir = datadir.Dir(filepath.Join(w.dir, n.name))
		n.log = filepath.Join(w.dir, n.name+".log")
		for name, text := range map[string]string{"write": url, "read": m.Local("chancery", "chancery")} {
			if err := os.WriteFile(w.file(n, name), []byte(text+"\n"), 0o600); err != nil {
				return err
			}
		}
		var err error
		if n.api, err = openDoor(m.Link, n.at(apiPort)); err != nil {
			return err
		}
		if n.public, err = openDoor(m.Link, n.at(publicPort)); err != nil {
			return err
		}
		w.nodes = append(w.nodes, n)
	}
	return nil
}

func (w *world) file(n *node, name string) string {
	return filepath.Join(w.dir, n.name+"."+name)
}

// first makes the authority on the first machine, and starts its node.
func (w *world) first(ctx context.Context) error {
	n := w.nodes[0]
	_, err := setup.Init(ctx, setup.Options{Dir: n.dir, Node: n.name, Organization: "Chaos", Online: true, Address: "https://" + n.at(apiPort),
		Listen: n.at(apiPort), PublicURL: "http://" + n.at(publicPort), PublicListen: n.at(publicPort), Metrics: n.at(metricsPort),
		DatabaseFile: w.file(n, "write")})
	if err != nil {
		return err
	}
	config, err := os.OpenFile(n.dir.Config(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(config, "database_read: %s\n", w.file(n, "read"))
	if err := errors.Join(err, config.Close()); err != nil {
		return err
	}
	if w.roots, err = client.RootsFile(n.dir.IdentityRoot()); err != nil {
		return err
	}
	w.pair = client.CertificateFiles(n.dir.AdminCert(), n.dir.AdminKey())
	if err := n.start(); err != nil {
		return err
	}
	if err := w.ready(ctx, n); err != nil {
		return err
	}
	now, err := w.admin[0].Settings(ctx)
	if err != nil {
		return err
	}
	change := client.SettingsChange{Set: []client.Setting{{Path: "durability", Value: "synchronous"}}}
	if _, err := w.admin[0].ChangeSettings(ctx, change, now.ETag); err != nil {
		return err
	}
	issuer, err := w.admin[0].Issuer(ctx, issuerName)
	if err != nil {
		return err
	}
	block, _ := pem.Decode([]byte(issuer.PEM))
	if block == nil {
		return errors.New("the issuer has no certificate")
	}
	w.issuer, err = x509.ParseCertificate(block.Bytes)
	return err
}

// connect is a client of a node; it does not repeat calls, so that the history has each attempt.
func (w *world) connect(n *node) (*client.Client, error) {
	return client.New(client.Options{Address: "https://" + n.api.address, ServerName: n.member.Address, Roots: w.roots, Certificate: w.pair, NoRetry: true})
}

// ready waits until the node says by clone status that it is ready.
func (w *world) ready(ctx context.Context, n *node) error {
	c, err := w.connect(n)
	if err != nil {
		return err
	}
	if len(w.admin) < len(w.nodes) {
		w.admin = append(w.admin, c)
	}
	return w.until(ctx, n.name+" is ready", func(ctx context.Context) error {
		now, err := c.Clone(ctx, n.name)
		if err != nil {
			text, _ := os.ReadFile(n.log)
			return fmt.Errorf("%w; its log ends with: %s", err, text[max(0, len(text)-1000):])
		}
		if !now.Ready {
			return fmt.Errorf("not ready: %s, %v", now.State, now.NotReady)
		}
		return nil
	})
}

// until asks again and again until there is no error.
func (w *world) until(ctx context.Context, what string, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		once, done := context.WithTimeout(ctx, 10*time.Second)
		err := ask(once)
		done()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %s: %w", what, patience, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

var approval = regexp.MustCompile(`chancery clone approve (\S+) ([0-9a-f]{64})`)

// join has a node join by the commands that an operator uses, invited and approved by the node before it: so the third is a clone
// of a clone.
func (w *world) join(ctx context.Context, n *node, by int) error {
	host := w.nodes[by]
	as := []string{"--address", "https://" + host.at(apiPort), "--identity-root", w.nodes[0].dir.IdentityRoot(),
		"--cert", w.nodes[0].dir.AdminCert(), "--cert-key", w.nodes[0].dir.AdminKey()}
	run := func(args ...string) error {
		out, err := host.command(ctx, append(args, as...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%v: %w: %s", args[:2], err, out)
		}
		return nil
	}
	token := w.file(n, "token")
	if err := run("clone", "invite", "--out", token); err != nil {
		return err
	}
	cmd := n.command(ctx, "clone", "join", "--token-file", token, "--dir", string(n.dir), "--address", "https://"+n.at(apiPort), "--name", n.name,
		"--listen", n.at(apiPort), "--public-listen", n.at(publicPort), "--metrics-listen", n.at(metricsPort),
		"--database-file", w.file(n, "write"), "--database-read-file", w.file(n, "read"))
	said := &words{seen: make(chan struct{}), want: approval}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return fmt.Errorf("clone join ended: %v: %s", err, said)
	case <-said.seen:
	case <-time.After(patience):
		return errors.Join(fmt.Errorf("clone join shows no fingerprint: %s", said), cmd.Process.Kill(), <-ended)
	}
	match := approval.FindStringSubmatch(said.String())
	if err := run("clone", "approve", match[1], match[2]); err != nil {
		return errors.Join(err, cmd.Process.Kill(), <-ended)
	}
	if err := <-ended; err != nil {
		return fmt.Errorf("clone join: %w: %s", err, said)
	}
	if err := n.start(); err != nil {
		return err
	}
	return w.ready(ctx, n)
}

// words keep what a program says, and tell when it has said something.
type words struct {
	want *regexp.Regexp
	seen chan struct{}

	mu   sync.Mutex // guards what follows
	text bytes.Buffer
	told bool
}

// Write is what exec calls.
func (s *words) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(b)
	if !s.told && s.want.Match(s.text.Bytes()) {
		s.told = true
		close(s.seen)
	}
	return len(b), nil
}

func (s *words) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// close ends everything.
func (w *world) close() error {
	var errs []error
	for _, c := range w.admin {
		c.Close()
	}
	for _, n := range w.nodes {
		errs = append(errs, n.signal(syscall.SIGKILL))
		for _, d := range []*door{n.api, n.public} {
			if d != nil {
				d.close()
			}
		}
	}
	if w.cluster != nil {
		errs = append(errs, w.cluster.Stop())
	}
	if w.history != nil {
		errs = append(errs, w.history.close())
	}
	if !w.Keep {
		errs = append(errs, os.RemoveAll(w.dir))
	}
	return errors.Join(errs...)
}
