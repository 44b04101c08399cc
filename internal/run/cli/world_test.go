package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"chancery/internal/pkitest"
	"chancery/internal/run/consumer"
	"chancery/internal/store/db"
)

// passphrase opens what init leaves offline in every script.
const passphrase = "correct horse battery staple"

// world is where scripts run: the program under its name, and the nodes that were started.
type world struct {
	t       *testing.T
	engine  db.Dialect
	program string // the test binary, named chancery
	dir     string // the data directory of the shared node; empty where there is none
	public  string // what it serves by plain http

	mu    sync.Mutex
	nodes map[string]*node // by data directory; guarded by mu
}

// node is a running chancery serve.
type node struct{ process *consumer.Process }

func newWorld(t *testing.T, engine db.Dialect) *world {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, engine: engine, program: filepath.Join(t.TempDir(), "chancery"), nodes: map[string]*node{}}
	if err := os.Symlink(self, w.program); err != nil {
		t.Fatal(err)
	}
	return w
}

// share makes an authority and starts the node that scripts share.
func (w *world) share() {
	w.t.Helper()
	w.dir = filepath.Join(w.t.TempDir(), "authority")
	args, at, err := w.places()
	if err != nil {
		w.t.Fatal(err)
	}
	w.public = at.public
	secret := filepath.Join(w.t.TempDir(), "passphrase")
	if err := os.WriteFile(secret, []byte(passphrase+"\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	args = append(args, "--organization", "Lab", "--passphrase-file", secret)
	out, err := exec.Command(w.program, append([]string{"init", "--dir", w.dir}, args...)...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("init: %v\n%s", err, out)
	}
	if err := w.start(w.t.Context(), w.dir); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.stop(w.dir) })
}

// places are the addresses of a node, as flags of init, and its database where that is not SQLite.
func (w *world) places() (flags []string, at struct{ api, public, metrics string }, err error) {
	for _, a := range []*string{&at.api, &at.public, &at.metrics} {
		if *a, err = consumer.FreeAddress(); err != nil {
			return nil, at, err
		}
	}
	flags = []string{
		"--address", "https://" + at.api, "--public-url", "http://" + at.public, "--public-listen", at.public, "--metrics-listen", at.metrics,
	}
	if w.engine == db.Postgres {
		file := filepath.Join(w.t.TempDir(), "database-url")
		if err := os.WriteFile(file, []byte(pkitest.URL(w.t, db.Postgres)+"\n"), 0o600); err != nil {
			return nil, at, err
		}
		flags = append(flags, "--database-file", file)
	}
	return flags, at, nil
}

var metricsLine = regexp.MustCompile(`(?m)^  metrics: ["']?([0-9.:]+)`)

// start runs chancery serve until it is ready.
func (w *world) start(ctx context.Context, dir string, env ...string) error {
	config, err := os.ReadFile(filepath.Join(dir, "node.yaml"))
	if err != nil {
		return err
	}
	metrics := metricsLine.FindSubmatch(config)
	if metrics == nil {
		return fmt.Errorf("no metrics address in %s", config)
	}
	p, err := consumer.Start(context.WithoutCancel(ctx), consumer.Program{
		Path: w.program, Args: []string{"serve", "--dir", dir}, Env: env, Says: "the node serves", Ready: func(ctx context.Context) error {
			return fetch(ctx, "http://"+string(metrics[1])+"/readyz", io.Discard)
		},
	})
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[dir] = &node{process: p}
	return nil
}

// stop ends a node and gives what it logged.
func (w *world) stop(dir string) string {
	w.mu.Lock()
	n := w.nodes[dir]
	delete(w.nodes, dir)
	w.mu.Unlock()
	if n == nil {
		return ""
	}
	if err := n.process.Stop(); err != nil {
		w.t.Errorf("the node of %s: %v", dir, err)
	}
	return n.process.Output()
}

func fetch(ctx context.Context, url string, to io.Writer) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, answer.Status)
	}
	_, err = io.Copy(to, answer.Body)
	return err
}

// setup gives a script the shared node, and a passphrase file.
func (w *world) setup(e *testscript.Env) error {
	e.Setenv("HOME", e.WorkDir)
	e.Setenv("TZ", "UTC")
	e.Setenv("GOGC", "400") // a command lives for milliseconds: a third of them went into collecting garbage
	e.Setenv("PASSPHRASE", filepath.Join(e.WorkDir, "passphrase"))
	if w.dir != "" {
		e.Setenv("CHANCERY_DIR", w.dir)
		e.Setenv("PUBLIC", w.public)
	}
	return os.WriteFile(filepath.Join(e.WorkDir, "passphrase"), []byte(passphrase+"\n"), 0o600)
}

// commands are what scripts can do beside running programs.
func (w *world) commands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"exits": exits, "json": jsonIs, "get": jsonVariable, "node": w.node, "line": line, "fetch": fetchFile, "mode": mode, "until": until,
		"database": w.database, "tokens": w.tokens, "free": free,
	}
}

// exits CODE COMMAND… runs a command that must end with exactly this code, and whose refusals must be readable.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARG…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, not %d", got, want)
	}
	if stderr := ts.ReadFile("stderr"); args[1] == "chancery" && want != 0 {
		readable(ts, stderr)
	}
}

// until REGEXP COMMAND… runs a command until its standard output matches, or with ! until it does not.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] until REGEXP COMMAND ARG…")
	}
	want, err := regexp.Compile(args[0])
	ts.Check(err)
	// Each look starts a program: what does not come soon is looked for less and less often.
	pause := 20 * time.Millisecond
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(pause) {
		pause = min(pause*3/2, 250*time.Millisecond)
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && want.MatchString(ts.ReadFile("stdout")) != neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("it never was so")
		}
	}
}

// leak is what of our insides must not reach a person.
var leak = regexp.MustCompile(`goroutine \d|runtime error|0x[0-9a-f]{8}|internal error|panic|sql:|SQLSTATE|UNIQUE constraint|&\{|%!`)

func readable(ts *testscript.TestScript, stderr string) {
	if strings.TrimSpace(stderr) == "" {
		ts.Fatalf("it failed and said nothing")
	}
	if found := leak.FindString(stderr); found != "" {
		ts.Fatalf("%q is not for the reader", found)
	}
	for _, r := range stderr {
		if r == 0x1b || (r < ' ' && r != '\n' && r != '\t') {
			ts.Fatalf("standard error holds the control character %U", r)
		}
	}
	if len(stderr) > 4000 {
		ts.Fatalf("%d octets of explanation", len(stderr))
	}
}

// values reads the JSON values of standard output, or of a file.
func values(ts *testscript.TestScript, file string) (all []any) {
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(file)))
	for {
		var v any
		if err := d.Decode(&v); err == io.EOF {
			return all
		} else if err != nil {
			ts.Fatalf("%s is no JSON: %v", file, err)
		}
		all = append(all, v)
	}
}

// at goes down a dotted path; a number is an index. The path count counts the values instead.
func at(ts *testscript.TestScript, file, path string) string {
	all := values(ts, file)
	if path == "count" {
		return strconv.Itoa(len(all))
	}
	if len(all) == 0 {
		ts.Fatalf("%s holds no JSON", file)
	}
	v := all[0]
	for step := range strings.SplitSeq(path, ".") {
		switch here := v.(type) {
		case map[string]any:
			v = here[step]
		case []any:
			if step == "count" {
				return strconv.Itoa(len(here))
			}
			i, err := strconv.Atoi(step)
			if err != nil || i >= len(here) {
				ts.Fatalf("%s: %q is no index of a list of %d", path, step, len(here))
			}
			v = here[i]
		default:
			v = nil
		}
	}
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	}
	text, err := json.Marshal(v)
	ts.Check(err)
	return string(text)
}

// json [stderr] PATH VALUE holds what is at PATH in the JSON on standard output against a regular expression.
func jsonIs(ts *testscript.TestScript, neg bool, args []string) {
	file := "stdout"
	if len(args) == 3 {
		file, args = args[0], args[1:]
	}
	if len(args) != 2 {
		ts.Fatalf("usage: [!] json [FILE] PATH REGEXP")
	}
	got := at(ts, file, args[0])
	want, err := regexp.Compile(`^(?:` + args[1] + `)$`)
	ts.Check(err)
	if want.MatchString(got) == neg {
		ts.Fatalf("%s is %q (pattern %s)", args[0], got, args[1])
	}
}

// get NAME PATH sets a variable from the JSON on standard output; get NAME alone takes its text.
func jsonVariable(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 || len(args) > 2 {
		ts.Fatalf("usage: get NAME [PATH]")
	}
	value := strings.TrimSpace(ts.ReadFile("stdout"))
	if len(args) == 2 {
		value = at(ts, "stdout", args[1])
	}
	if value == "" {
		ts.Fatalf("there is nothing to set %s to", args[0])
	}
	ts.Setenv(args[0], value)
}

// line FILE N prints a line of a file on standard output, counted from 1.
func line(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: line FILE N")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	lines := strings.Split(ts.ReadFile(args[0]), "\n")
	if n < 1 || n > len(lines) {
		ts.Fatalf("%s has %d lines", args[0], len(lines))
	}
	fmt.Fprintln(ts.Stdout(), lines[n-1])
}

// tokens puts chancery-pkcs11 where PATH has it, and has SoftHSM keep tokens in the script's directory; MODULE is its library.
func (w *world) tokens(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: tokens")
	}
	conf, dir := ts.MkAbs("softhsm2.conf"), ts.MkAbs("tokens")
	ts.Check(os.Mkdir(dir, 0o700))
	ts.Check(os.WriteFile(conf, []byte("directories.tokendir = "+dir+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600))
	ts.Setenv("SOFTHSM2_CONF", conf)
	ts.Setenv("MODULE", pkitest.SoftHSMModule(w.t))
	ts.Setenv("PATH", filepath.Dir(pkitest.TokenHelper(w.t))+string(os.PathListSeparator)+ts.Getenv("PATH"))
}

// free NAME… sets variables to addresses on which nothing listens.
func free(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: free NAME…")
	}
	for _, name := range args {
		at, err := consumer.FreeAddress()
		ts.Check(err)
		ts.Setenv(name, at)
	}
}

// database FILE makes a PostgreSQL database with nothing of an authority in it, and writes its URL into a file.
func (w *world) database(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: database FILE")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(pkitest.URL(w.t, db.Postgres)+"\n"), 0o600))
}

// fetch URL FILE gets what is published.
func fetchFile(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] fetch URL FILE")
	}
	var body bytes.Buffer
	err := fetch(context.Background(), args[0], &body)
	if (err != nil) != neg {
		ts.Fatalf("fetch %s: %v", args[0], err)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), body.Bytes(), 0o644))
}

// mode OCTAL FILE checks permissions.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode OCTAL FILE")
	}
	st, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", st.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, not %s", args[1], got, args[0])
	}
}

// node init DIR FLAG… makes an authority with free ports; node start DIR serves it, node stop DIR ends that and leaves what
// was logged in DIR.log. Start makes it the one that commands speak to.
func (w *world) node(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: node init|start|stop DIR FLAG…")
	}
	dir := ts.MkAbs(args[1])
	switch args[0] {
	case "init":
		flags, at, err := w.places()
		ts.Check(err)
		ts.Setenv("PUBLIC", at.public)
		ts.Setenv("API", at.api)
		ts.Setenv("METRICS", at.metrics)
		flags = append([]string{"init", "--dir", dir, "--passphrase-file", ts.Getenv("PASSPHRASE")}, append(flags, args[2:]...)...)
		ts.Check(ts.Exec("chancery", flags...))
	case "start":
		ts.Check(w.start(context.Background(), dir, "PATH="+ts.Getenv("PATH"), "SOFTHSM2_CONF="+ts.Getenv("SOFTHSM2_CONF")))
		ts.Setenv("CHANCERY_DIR", dir)
		ts.Defer(func() { w.stop(dir) })
	case "stop":
		ts.Check(os.WriteFile(dir+".log", []byte(w.stop(dir)), 0o600))
	default:
		ts.Fatalf("node %s?", args[0])
	}
}
