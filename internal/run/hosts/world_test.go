// Package hosts_test runs an authority's node, agents and the consumers that read what agents place: libvirtd, nginx,
// PostgreSQL, Apache, HAProxy and stunnel, each in its usual place. Every host has a mount table of its own, in which /etc, /run, /home and /opt are its
// own, so that nothing of the machine is touched. An ordinary user's hosts are directories instead (--root).
package hosts_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/run/cli"
	"chancery/internal/run/consumer"
	"chancery/internal/run/server"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// programName is what this test binary is called where it is the program.
const programName = "chancery"

func TestMain(m *testing.M) {
	switch {
	case filepath.Base(executable()) == programName:
		runProgram()
	case os.Getenv(holdMounts) != "":
		hold(os.Getenv(holdMounts))
	default:
		spread()
		// Most programs live for milliseconds: a third of them went into collecting garbage.
		for name, value := range map[string]string{"GOGC": "400", "GOMEMLIMIT": "off"} {
			if err := os.Setenv(name, value); err != nil {
				panic(err)
			}
		}
		code := m.Run()
		shared.end()
		os.Exit(code)
	}
}

// spread has more tests run at once than there are processors, where nobody has said how many: most of their time they wait
// for other programs.
func spread() {
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if !said {
		if err := flag.Set("test.parallel", "6"); err != nil {
			panic(err)
		}
	}
}

func executable() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}

// runProgram is the program's main. Nothing may rely on a umask, so there is none.
func runProgram() {
	syscall.Umask(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	stop()
	os.Exit(code)
}

// passphrase seals what init seals. It must be seen nowhere.
const passphrase = "correct horse battery staple"

// shared is what the tests of this process share: the program, and a node on SQLite, on which each test has a pool of its
// own.
var shared = &commons{}

type commons struct {
	once  sync.Once
	err   error
	bin   string // the directory of the program, readable by all
	world sync.Once
	node  *world
	pools atomic.Int64
	hosts atomic.Int64

	initdb  sync.Once
	data    string // PostgreSQL's, of which each database of a host has a copy
	dataErr error
}

// program is the path of this test binary under the program's name, where every user can run it.
func program(t testing.TB) string {
	t.Helper()
	shared.once.Do(func() {
		if shared.bin, shared.err = os.MkdirTemp("", "hosts-"); shared.err != nil {
			return
		}
		if shared.err = os.Chmod(shared.bin, 0o755); shared.err != nil {
			return
		}
		shared.err = copyFile(executable(), filepath.Join(shared.bin, programName), 0o755)
	})
	must(t, shared.err)
	return filepath.Join(shared.bin, programName)
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

func (c *commons) end() {
	if c.node != nil {
		if err := c.node.process.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	if c.bin != "" {
		os.RemoveAll(c.bin)
	}
}

// world is an authority and its node.
type world struct {
	dir     datadir.Dir
	process *consumer.Process
	server.Addresses
	admin *client.Client
}

// theWorld is the world that tests share.
func theWorld(t testing.TB) *world {
	t.Helper()
	program := program(t)
	shared.world.Do(func() { shared.node, shared.err = newWorld(context.Background(), program, shared.bin, "", nil) })
	must(t, shared.err)
	if shared.node == nil {
		t.Fatal("the node that the tests share did not start")
	}
	return shared.node
}

// worldOn is a world of the test's own, on an engine.
func worldOn(t testing.TB, engine db.Dialect) *world {
	t.Helper()
	url := ""
	if engine == db.Postgres {
		url = pkitest.URL(t, engine)
	}
	return ownWorld(t, url, nil)
}

// ownWorld is a world of the test's own. Before its node starts something may be done in its directory.
func ownWorld(t testing.TB, url string, before func(w *world)) *world {
	t.Helper()
	w, err := newWorld(t.Context(), program(t), t.TempDir(), url, before)
	must(t, err)
	t.Cleanup(func() { must(t, w.process.Stop()) })
	return w
}

// newWorld makes an authority and starts its node.
func newWorld(ctx context.Context, program, home, url string, before func(w *world)) (*world, error) {
	w := &world{dir: datadir.Dir(filepath.Join(home, "authority"))}
	var at [3]string
	for i := range at {
		var err error
		if at[i], err = consumer.FreeAddress(); err != nil {
			return nil, err
		}
	}
	w.Addresses = server.Addresses{API: at[0], Public: at[1], Metrics: at[2]}
	_, port, _ := strings.Cut(w.API, ":")
	if err := w.establish(ctx, program, home, url); err != nil {
		return nil, err
	}
	if before != nil {
		before(w)
	}
	ready := consumer.Listening(w.API)
	var err error
	if w.process, err = consumer.Start(context.WithoutCancel(ctx), consumer.Program{
		Path: program, Args: []string{"serve", "--dir", string(w.dir)}, Ready: ready,
	}); err != nil {
		return nil, err
	}
	roots, err := client.RootsFile(w.dir.IdentityRoot())
	if err != nil {
		return nil, err
	}
	w.admin, err = client.New(client.Options{
		Address: "https://localhost:" + port, Roots: roots, Certificate: client.CertificateFiles(w.dir.AdminCert(), w.dir.AdminKey()),
	})
	return w, err
}

// establish makes the authority, as chancery init does; at a token cost of guessing the passphrase, of which each would take a second.
// The shared one is made by the command, at the true cost.
func (w *world) establish(ctx context.Context, program, home, url string) error {
	_, port, _ := strings.Cut(w.API, ":")
	o := setup.Options{
		Dir: w.dir, Address: "https://localhost:" + port, PublicURL: "http://" + w.Public, PublicListen: w.Public, Metrics: w.Metrics, Online: true,
		Passphrase: []byte(passphrase), RecoveryWork: pkitest.RecoveryWork,
	}
	if url != "" {
		o.DatabaseFile = filepath.Join(home, "database-url")
		if err := os.WriteFile(o.DatabaseFile, []byte(url+"\n"), 0o600); err != nil {
			return err
		}
	}
	if home != shared.bin {
		_, err := setup.Init(ctx, o)
		return err
	}
	cmd := exec.Command(program, "init", "--dir", string(o.Dir), "--address", o.Address, "--public-url", o.PublicURL,
		"--public-listen", o.PublicListen, "--metrics-listen", o.Metrics, "--root", "online", "--passphrase-file", "-")
	cmd.Stdin = strings.NewReader(passphrase + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("chancery init: %w\n%s", err, out)
	}
	return nil
}

// pool adds a pool of the test's own, whose root is with the authority.
func (w *world) pool(t testing.TB) *client.Pool {
	t.Helper()
	p, err := w.admin.AddPool(t.Context(), client.AddPoolRequest{Name: fmt.Sprintf("p%d", shared.pools.Add(1)), Online: true})
	must(t, err)
	w.crls(t, p)
	return p
}

// crls has the CRLs of a new pool made at once.
func (w *world) crls(t testing.TB, p *client.Pool) {
	t.Helper()
	for _, issuer := range []*client.Issuer{p.Root, p.Issuer} {
		if !issuer.KeyOnline {
			continue
		}
		_, err := w.admin.IssueCRL(t.Context(), issuer.Name, client.IssueCRLRequest{})
		must(t, err)
	}
}

// chancery runs a command with the administrator's credential, and returns what it prints.
func (w *world) chancery(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command(program(t), append([]string{"--dir", string(w.dir)}, args...)...)
	return output(t, cmd)
}

// output runs a command that must succeed.
func output(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	var wrong strings.Builder
	cmd.Stderr = &wrong
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, out, wrong.String())
	}
	return string(out)
}

// fails runs a command that must fail, with a text on either stream.
func fails(t testing.TB, cmd *exec.Cmd, text string) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), text) {
		t.Errorf("%s: %v, and not a failure that says %q:\n%s", strings.Join(cmd.Args, " "), err, text, out)
	}
}

// decode reads JSON.
func decode[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

// parsed reads the first certificate of a PEM text.
func parsed(t testing.TB, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("no PEM in %q", text)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return c
}

// until asks again until something is so that comes by itself. Its bound is beyond the minute after which an agent tries again what
// failed once.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	for pause := 20 * time.Millisecond; ; pause = min(pause*3/2, 200*time.Millisecond) {
		asked := time.Now()
		if done() {
			return
		}
		// Asking often starts a program. Whatever it takes, half of the time is another's.
		rest := max(pause, min(time.Since(asked), 2*time.Second))
		select {
		case <-ctx.Done():
			t.Fatalf("it never came to be that %s", what)
		case <-time.After(rest):
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
