package loop_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/agent/loop"
	"chancery/internal/agent/place"
	"chancery/internal/run/cli"
	"chancery/internal/run/consumer"
)

// TestMain runs tests; or, where the environment says so, is an agent that a test kills.
func TestMain(m *testing.M) {
	if os.Getenv(killAt) != "" {
		os.Exit(agentToKill())
	}
	if len(os.Args) > 2 && os.Args[1] == "agent" { // the agent's child, which tries to read a file
		os.Exit(cli.Run(context.Background(), os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
	}
	code := m.Run()
	theNode.end()
	os.Exit(code)
}

// node is an authority whose node runs in this process.
type node struct {
	once    sync.Once
	err     error
	dir     string
	address string // where the API listens
	stop    context.CancelFunc
	ended   chan struct{}
	admin   *client.Client
	hosts   atomic.Int64
}

var theNode = &node{}

// command runs a command in this process.
func command(ctx context.Context, args ...string) error {
	var out, wrong bytes.Buffer
	if code := cli.Run(ctx, args, cli.Streams{In: strings.NewReader(""), Out: &out, Err: &wrong}); code != 0 {
		return fmt.Errorf("chancery %s: exit %d: %s", strings.Join(args, " "), code, wrong.String())
	}
	return nil
}

func (n *node) start() error {
	var err error
	if n.dir, err = os.MkdirTemp("", "loop-"); err != nil {
		return err
	}
	if err := n.initialize(); err != nil {
		return err
	}
	if err := n.serve(); err != nil {
		return err
	}
	// A host that is given CRLs is not whole before there are any, which the node signs when it has started.
	for _, issuer := range []string{"default-root", "default"} {
		for late := time.Now().Add(2 * time.Minute); err == nil; time.Sleep(10 * time.Millisecond) {
			var list bytes.Buffer
			failed := n.admin.DownloadCRL(context.Background(), &list, issuer, "current", "", "der")
			if failed == nil {
				break
			}
			if time.Now().After(late) {
				err = failed
			}
		}
	}
	return err
}

func (n *node) authority() string { return filepath.Join(n.dir, "authority") }

func (n *node) initialize() error {
	var at [3]string
	for i := range at {
		var err error
		if at[i], err = consumer.FreeAddress(); err != nil {
			return err
		}
	}
	n.address = at[0]
	_, port, _ := strings.Cut(at[0], ":")
	return command(context.Background(), "init", "--dir", n.authority(), "--address", "https://localhost:"+port, "--public-url", "http://"+at[1],
		"--public-listen", at[1], "--metrics-listen", at[2], "--root", "online")
}

// serve starts the node, and waits until it answers.
func (n *node) serve() error {
	ctx, stop := context.WithCancel(context.Background())
	n.stop, n.ended = stop, make(chan struct{})
	failed := make(chan error, 1)
	go func(ended chan struct{}) {
		defer close(ended)
		said := &lastWords{}
		if code := cli.Run(ctx, []string{"serve", "--dir", n.authority()}, cli.Streams{In: strings.NewReader(""), Out: said, Err: said}); code != 0 {
			failed <- fmt.Errorf("serve: exit %d", code)
		}
	}(n.ended)
	roots, err := client.RootsFile(filepath.Join(n.authority(), "ca", "identity-root.pem"))
	if err != nil {
		return err
	}
	_, port, _ := strings.Cut(n.address, ":")
	n.admin, err = client.New(client.Options{
		Address: "https://localhost:" + port, Roots: roots,
		Certificate: client.CertificateFiles(filepath.Join(n.authority(), "admin", "cert.pem"), filepath.Join(n.authority(), "admin", "key.pem")),
	})
	for err == nil {
		select {
		case err := <-failed:
			return err
		default:
		}
		// Its caller may be in a bubble whose time stands while sockets are waited for, so there is no pause here.
		if consumer.Listening(n.address)(ctx) == nil {
			return nil
		}
		runtime.Gosched()
	}
	return err
}

// leave stops the node; its directory stays.
func (n *node) leave() {
	if n.stop == nil {
		return
	}
	n.admin.Close()
	n.stop()
	<-n.ended
	n.stop = nil
}

// lastWords keeps the errors of a node's log, and prints them at once: a test that fails for one of them is understood.
type lastWords struct{}

func (*lastWords) Write(p []byte) (int, error) {
	for line := range bytes.Lines(p) {
		if bytes.Contains(line, []byte(`"level":"ERROR"`)) {
			os.Stderr.Write(line)
		}
	}
	return len(p), nil
}

func (n *node) end() {
	n.leave()
	if n.dir != "" {
		os.RemoveAll(n.dir)
	}
}

// authority is the node that the tests of this package share.
func authority(t testing.TB) *node {
	t.Helper()
	theNode.once.Do(func() { theNode.err = theNode.start() })
	must(t, theNode.err)
	return theNode
}

// machine is a host: a root directory and the state of its agent.
type machine struct {
	t           testing.TB
	node        *node
	name        string
	root, state string
	options     loop.Options
}

// newMachine adds a host with placements and lets it join.
func newMachine(t testing.TB, recipes ...client.PlacementOrder) *machine {
	t.Helper()
	n := authority(t)
	m := &machine{t: t, node: n, name: fmt.Sprintf("host%d", n.hosts.Add(1)), root: t.TempDir()}
	m.state = filepath.Join(t.TempDir(), "state")
	for _, dir := range []string{"etc/ssl", "etc/chancery"} {
		must(t, os.MkdirAll(filepath.Join(m.root, dir), 0o755))
	}
	m.options = loop.Options{State: m.state, Version: "test"}
	added, err := n.admin.AddHost(t.Context(), client.AddHostRequest{Name: m.name, DNS: []string{m.name + ".example"}, Placements: recipes, Profiles: []string{"server"}})
	must(t, err)
	_, err = loop.Join(t.Context(), loop.JoinOptions{State: m.state, Root: m.root, Token: added.Token, Version: "test"})
	must(t, err)
	return m
}

// plain is a placement of files.
func plain(parameters map[string]string) client.PlacementOrder {
	p := map[string]string{"key": "/etc/ssl/a.key", "cert": "/etc/ssl/a.pem", "trust": "/etc/ssl/ca.pem", "crl": "/etc/ssl/crl.pem"}
	for name, value := range parameters {
		p[name] = value
	}
	return client.PlacementOrder{Recipe: "plain", Parameters: p}
}

// once runs one pass of an agent.
func (m *machine) once() *loop.Result {
	m.t.Helper()
	result, err := m.pass()
	must(m.t, err)
	return result
}

// pass is once for goroutines that are not the test's.
func (m *machine) pass() (*loop.Result, error) {
	a, err := loop.New(m.options)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	return a.Once(m.t.Context())
}

// settled runs a pass that must leave everything in place.
func (m *machine) settled() *loop.Result {
	m.t.Helper()
	result := m.once()
	if !result.Done() {
		m.t.Fatalf("not everything is in place: %+v %v", result.Observations, result.Problems)
	}
	return result
}

func (m *machine) path(p string) string { return filepath.Join(m.root, p) }

func (m *machine) read(p string) []byte {
	m.t.Helper()
	text, err := os.ReadFile(m.path(p))
	must(m.t, err)
	return text
}

// pair is the key and certificate that lie on the host; they must match.
func (m *machine) pair(cert, key string) tls.Certificate {
	m.t.Helper()
	pair, err := tls.LoadX509KeyPair(m.path(cert), m.path(key))
	must(m.t, err)
	return pair
}

// issued are the certificates that this host was issued, other than its identities.
func (m *machine) issued() []client.Certificate {
	m.t.Helper()
	found, err := client.Collect(m.node.admin.Certificates(m.t.Context(), client.CertificateFilter{Name: m.name + ".example"}))
	must(m.t, err)
	return found
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// killAt names the step at which an agent ends by SIGKILL, counted from 1; 0 counts them all. killIn says which steps count:
// those of the state directory, or the operations on files.
const (
	killAt = "CHANCERY_TEST_KILL_AT"
	killIn = "CHANCERY_TEST_KILL_IN"
)

// agentToKill is an agent that ends by SIGKILL at the step that the environment names; 0 prints how many steps there were.
func agentToKill() int {
	var at, n int64
	fmt.Sscan(os.Getenv(killAt), &at)
	step := func() {
		if n++; n == at {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	o := loop.Options{State: os.Getenv("CHANCERY_TEST_STATE"), Version: "test"}
	if os.Getenv(killIn) == "files" {
		o.CutFiles = func(place.Operation) error { step(); return nil }
	} else {
		o.Cut = func(string) { step() }
	}
	agent, err := loop.New(o)
	if err == nil {
		_, err = agent.Once(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Print(n)
	return 0
}
