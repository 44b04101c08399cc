// Package faults_test runs nodes as processes and does to them what befalls them: they are killed, their database crashes,
// their disk fills, clients flood and stall them. What was acknowledged must be there afterwards, and nothing else.
package faults_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/run/cli"
	"chancery/internal/run/server"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// asProgram makes this test binary the program chancery. childMount has it work on a small file system of its own.
const (
	asProgram  = "CHANCERY_TEST_PROGRAM"
	childMount = "CHANCERY_TEST_MOUNT"
)

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) == "" {
		code := m.Run()
		os.RemoveAll(pristine.parent)
		os.Exit(code)
	}
	syscall.Umask(0) // nothing may rely on it
	if mount := os.Getenv(childMount); mount != "" {
		if err := mountSmall(mount); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	stop()
	os.Exit(code)
}

// mountSmall puts a small tmpfs over a directory that only this process sees, with a copy of another directory in it.
// The order is FROM,TO,OPTIONS; "ro" among the options makes it read-only in the end.
func mountSmall(order string) error {
	parts := strings.SplitN(order, ",", 3)
	from, to, options := parts[0], parts[1], parts[2]
	options, readOnly := strings.CutSuffix(options, ",ro")
	if err := syscall.Mount("tmpfs", to, "tmpfs", 0, options); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if out, err := exec.Command("cp", "-a", from+"/.", to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy: %w: %s", err, out)
	}
	if readOnly {
		return syscall.Mount("tmpfs", to, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, options)
	}
	return nil
}

// passphrase seals what init seals in these tests. It must be seen nowhere.
const passphrase = "correct horse battery staple"

// pristine is a data directory on SQLite as init makes it. Making one takes a second, for the passphrase's sake.
var pristine struct {
	sync.Once
	parent string
	err    error
}

// newAuthority makes a data directory whose node listens where the system chooses, on a store of the given engine.
func newAuthority(t *testing.T, engine db.Dialect) datadir.Dir {
	t.Helper()
	url := ""
	if engine == db.Postgres {
		url = pkitest.URL(t, engine)
	}
	return authorityOn(t, url)
}

// authorityOn makes it on the PostgreSQL database of that URL, or in an SQLite file where it is empty.
func authorityOn(t *testing.T, url string) datadir.Dir {
	t.Helper()
	base := t.TempDir()
	if url != "" {
		dir, err := initialize(t.Context(), base, url)
		must(t, err)
		return dir
	}
	pristine.Do(func() {
		if pristine.parent, pristine.err = os.MkdirTemp("", "chancery-faults-"); pristine.err == nil {
			_, pristine.err = initialize(context.Background(), pristine.parent, "")
		}
	})
	must(t, pristine.err)
	if out, err := exec.Command("cp", "-a", filepath.Join(pristine.parent, "d"), base).CombinedOutput(); err != nil {
		t.Fatalf("copy the data directory: %v: %s", err, out)
	}
	return datadir.Dir(filepath.Join(base, "d"))
}

func initialize(ctx context.Context, base, url string) (datadir.Dir, error) {
	o := setup.Options{
		Dir: datadir.Dir(filepath.Join(base, "d")), Address: "https://localhost:8443", Online: true, PublicURL: "http://pki.test",
		Listen: "127.0.0.1:0", PublicListen: "127.0.0.1:0", Metrics: "127.0.0.1:0", Passphrase: []byte(passphrase), RecoveryWork: pkitest.RecoveryWork,
	}
	if url != "" {
		o.DatabaseFile = filepath.Join(base, "url")
		if err := os.WriteFile(o.DatabaseFile, []byte(url+"\n"), 0o600); err != nil {
			return "", err
		}
	}
	_, err := setup.Init(ctx, o)
	return o.Dir, err
}

// process is a child of this test: a node, or another command.
type process struct {
	server.Addresses
	t     testing.TB
	dir   datadir.Dir
	cmd   *exec.Cmd
	out   text
	log   text
	lines chan string // of standard error, while somebody takes them
	ended chan struct{}
	err   error // why it ended; read after ended
}

// text is what a process prints, read while it prints.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (x *text) Write(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.Write(p)
}

func (x *text) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.String()
}

// launch starts chancery with some arguments. It ends with the test at the latest.
func launch(t testing.TB, mount string, args ...string) *process {
	t.Helper()
	p := &process{t: t, ended: make(chan struct{}), lines: make(chan string, 64)}
	p.cmd = exec.Command(os.Args[0], args...)
	p.cmd.Env = append(os.Environ(), asProgram+"=1")
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if mount != "" {
		p.cmd.Env = append(p.cmd.Env, childMount+"="+mount)
		ownMounts(p.cmd.SysProcAttr)
	}
	p.cmd.Stdout = &p.out
	stderr, err := p.cmd.StderrPipe()
	must(t, err)
	started := make(chan error)
	go p.run(stderr, started)
	must(t, <-started)
	t.Cleanup(p.kill)
	return p
}

// ownMounts gives a process a mount table of its own; without root a user namespace, in which it may mount.
func ownMounts(a *syscall.SysProcAttr) {
	a.Unshareflags = syscall.CLONE_NEWNS
	if os.Geteuid() != 0 {
		a.Cloneflags = syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
}

// run starts the process and reaps it, on one thread: its death signal is sent when that thread ends.
func (p *process) run(stderr io.Reader, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fmt.Fprintln(&p.log, lines.Text())
		select {
		case p.lines <- lines.Text():
		default: // nobody waits for one
		}
	}
	p.err = p.cmd.Wait()
	close(p.ended)
}

// kill ends it as a power cut would.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.ended
}

// stop ends it as a supervisor does, and wants it to end well.
func (p *process) stop() {
	p.t.Helper()
	must(p.t, p.cmd.Process.Signal(syscall.SIGTERM))
	if err := p.wait(); err != nil {
		p.t.Fatalf("the node ended with %v:\n%s", err, p.log.String())
	}
}

// wait waits for its end.
func (p *process) wait() error {
	p.t.Helper()
	select {
	case <-p.ended:
		return p.err
	case <-time.After(2 * time.Minute):
		p.t.Fatalf("the process does not end:\n%s", p.log.String())
		return nil
	}
}

// startNode starts a node and waits until it serves.
func startNode(t testing.TB, dir datadir.Dir) *process {
	t.Helper()
	return startNodeOn(t, dir, "")
}

func startNodeOn(t testing.TB, dir datadir.Dir, mount string) *process {
	t.Helper()
	p := launch(t, mount, "serve", "--dir", string(dir))
	p.dir = dir
	late := time.After(2 * time.Minute)
	for {
		select {
		case line := <-p.lines:
			var event struct{ Msg, API, Public, Metrics string }
			if json.Unmarshal([]byte(line), &event) == nil && event.Msg == "the node serves" {
				p.Addresses = server.Addresses{API: event.API, Public: event.Public, Metrics: event.Metrics}
				return p
			}
		case <-p.ended:
			t.Fatalf("the node ended: %v\n%s", p.err, p.log.String())
		case <-late:
			t.Fatalf("the node does not serve:\n%s", p.log.String())
		}
	}
}

// command runs a command to its end.
func command(t testing.TB, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	p := launch(t, "", args...)
	err = p.wait()
	return p.out.String(), p.log.String(), err
}

// admin is a client with the credential of the data directory, which tries each call once.
func (p *process) admin() *client.Client {
	p.t.Helper()
	return p.client(client.Options{Certificate: client.CertificateFiles(p.dir.AdminCert(), p.dir.AdminKey()), NoRetry: true})
}

func (p *process) client(o client.Options) *client.Client {
	p.t.Helper()
	roots, err := client.RootsFile(p.dir.IdentityRoot())
	must(p.t, err)
	o.Address, o.Roots = "https://"+p.API, roots
	c, err := client.New(o)
	must(p.t, err)
	p.t.Cleanup(c.Close)
	return c
}

// get fetches from one of the plain listeners.
func get(t testing.TB, url string) (int, []byte) {
	t.Helper()
	resp, err := http.Get(url)
	must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, body
}

// crl fetches an issuer's complete CRL.
func (p *process) crl(issuer string) *x509.RevocationList {
	p.t.Helper()
	status, der := get(p.t, "http://"+p.Public+"/crl/"+issuer+".crl")
	if status != http.StatusOK {
		p.t.Fatalf("CRL of %s: %d %s", issuer, status, der)
	}
	list, err := x509.ParseRevocationList(der)
	must(p.t, err)
	return list
}

// verified has the node check its whole store, and wants no error.
func verified(t testing.TB, c *client.Client, checkpoints ...string) {
	t.Helper()
	n := 0
	for f, err := range c.Verify(t.Context(), client.VerifyRequest{Checkpoints: checkpoints}) {
		must(t, err)
		if n++; f.Level == "error" {
			t.Errorf("verify: %s %s: %s", f.Check, f.Object, f.Message)
		}
	}
	if n == 0 {
		t.Error("verify looked at nothing")
	}
}

// order asks for a certificate for one name, for a key that is the same each time.
func order(name string) client.IssueRequest {
	return client.IssueRequest{Profile: "server", PublicKey: fixedKey(), Names: &client.Names{SAN: []string{"dns:" + name}}}
}

var fixedKey = sync.OnceValue(func() string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
})

// parsed reads the certificate of an answer.
func parsed(t testing.TB, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("no PEM in %q", text)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return c
}

// problem is the refusal that err is; anything else fails the test.
func problem(t testing.TB, err error, kind string) *client.Problem {
	t.Helper()
	p, ok := errors.AsType[*client.Problem](err)
	if !ok || p.Kind() != kind {
		t.Fatalf("want a problem of kind %s, got %v", kind, err)
	}
	return p
}

// until asks again until something is so that comes by itself.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("it never came to be that %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// post sends a body to one of the plain listeners.
func post(t testing.TB, url, mediaType string, body []byte) (int, []byte) {
	t.Helper()
	resp, err := http.Post(url, mediaType, bytes.NewReader(body))
	must(t, err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, answer
}

// certificateWith is as much of a certificate as an OCSP request needs.
func certificateWith(serial *big.Int, issuer *x509.Certificate) *x509.Certificate {
	return &x509.Certificate{SerialNumber: serial, RawIssuer: issuer.RawSubject}
}
