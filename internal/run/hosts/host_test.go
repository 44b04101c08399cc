package hosts_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"chancery/client"
	"chancery/internal/run/consumer"
)

// holdMounts makes this test binary a process that holds a mount table and a host name; its value is where the host's
// directories are.
const (
	holdMounts = "CHANCERY_TEST_HOLD"
	holdName   = "CHANCERY_TEST_HOLD_NAME"
)

// ownDirectories are those that each host has for itself.
var ownDirectories = []string{"etc", "run", "home", "opt"}

// machineDirectories are the machine's, with hundreds of files and links that no test changes: hosts see them where they are, without a copy.
var machineDirectories = []string{"/etc/alternatives", "/etc/ssl/certs", "/etc/java-17-openjdk", "/etc/ldap/schema"}

// hold puts a host's own directories in the place of the machine's, says so, and waits until its input ends.
func hold(home string) {
	for _, d := range machineDirectories {
		if _, err := os.Stat(d); err != nil {
			continue
		}
		at := filepath.Join(home, d)
		if err := errors.Join(os.MkdirAll(at, 0o755), syscall.Mount(d, at, "", syscall.MS_BIND, ""),
			syscall.Mount("", at, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, "")); err != nil {
			fmt.Fprintln(os.Stderr, "mount:", err)
			os.Exit(3)
		}
	}
	for _, d := range ownDirectories {
		if err := syscall.Mount(filepath.Join(home, d), "/"+d, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
			fmt.Fprintln(os.Stderr, "mount:", err)
			os.Exit(3)
		}
	}
	if err := syscall.Sethostname([]byte(os.Getenv(holdName))); err != nil {
		fmt.Fprintln(os.Stderr, "hostname:", err)
		os.Exit(3)
	}
	fmt.Println("held")
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// host is a machine as far as programs see it: with an /etc of its own and an agent.
type host struct {
	t     testing.TB
	world *world
	name  string
	pool  string
	home  string         // where its directories are
	state string         // of its agent
	at    string         // its address, on loopback
	dns   []string       // its other names
	root  string         // --root of its agent; empty where it has a mount table of its own
	holds string         // /proc directory of the process that holds that table; empty where it has none
	env   []string       // of its programs
	users map[string]int // by name
}

// machine is what a host may have that others do not.
type machine struct {
	pool      string   // a pool of the host's own where it is empty
	dns       []string // more names
	resolves  []string // names that lead to it there, beside its own
	groups    []string // of the system, for example libvirt-qemu
	users     []string // with a home directory
	plainName bool     // the name is not made unique
	directory bool     // the host is a directory (--root) although a mount table could be had
}

// account is the number of the first user or group that a host is given.
const account = 23100

// newHost makes a machine that has not joined.
func (w *world) newHost(t testing.TB, name string, m machine) *host {
	t.Helper()
	home, err := os.MkdirTemp("", "host-") // short, for the sake of sockets
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(home)) })
	must(t, os.Chmod(home, 0o755))
	h := &host{t: t, world: w, name: name, pool: m.pool, dns: m.dns, home: home, state: filepath.Join(home, "state"), users: map[string]int{}}
	if h.pool == "" {
		h.pool = w.pool(t).Name
	}
	// Names and addresses of hosts are unique in an authority.
	number := shared.hosts.Add(1)
	h.at = fmt.Sprintf("127.%d.%d.%d", 16+os.Getpid()%200, number/250, 1+number%250)
	if !m.plainName {
		h.name = fmt.Sprintf("%s-%d", name, number)
	}
	for _, d := range ownDirectories {
		must(t, os.Mkdir(filepath.Join(home, d), 0o755))
	}
	h.settle(m)
	if h.directory(m) {
		h.root = home
		return h
	}
	h.env = []string{"HOME=" + filepath.Join(home, "root"), "XDG_RUNTIME_DIR=/run", "XDG_CACHE_HOME=" + filepath.Join(home, "root")}
	must(t, os.Mkdir(filepath.Join(home, "root"), 0o700))
	h.holdMounts()
	return h
}

func (h *host) directory(m machine) bool { return m.directory || os.Geteuid() != 0 }

// machineFiles are those of the machine's /etc that programs of a host need. Each is copied for each host, so they are few.
var machineFiles = []string{"apache2/envvars", "gnutls", "host.conf", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "libvirt", "localtime", "mime.types",
	"nginx", "nsswitch.conf", "pam.d", "passwd", "group", "postgresql-common", "protocols", "services", "ssl/openssl.cnf", "ssl/private", "ldap/ldap.conf",
	"security", "environment", "login.defs"}

// settle fills the host's /etc.
func (h *host) settle(m machine) {
	h.t.Helper()
	etc := filepath.Join(h.home, "etc")
	add := func(name, line string) {
		f, err := os.OpenFile(filepath.Join(etc, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		must(h.t, err)
		_, err = fmt.Fprintln(f, line)
		must(h.t, errors.Join(err, f.Close()))
	}
	files := machineFiles
	if h.directory(m) {
		files = []string{"passwd", "group"}
	}
	args := []string{"-a", "--parents"}
	for _, name := range files {
		if _, err := os.Lstat("/etc/" + name); err == nil {
			args = append(args, "etc/"+name)
		}
	}
	copying := exec.Command("cp", append(args, h.home)...)
	copying.Dir = "/"
	output(h.t, copying)
	for _, name := range append(m.resolves, h.name) {
		add("hosts", h.at+" "+name)
	}
	next := account
	for _, g := range m.groups {
		add("group", fmt.Sprintf("%s:x:%d:", g, next))
		next++
	}
	for _, u := range m.users {
		add("passwd", fmt.Sprintf("%s:x:%d:%d::/home/%s:/bin/sh", u, next, next, u))
		add("group", fmt.Sprintf("%s:x:%d:", u, next))
		dir := filepath.Join(h.home, "home", u)
		must(h.t, os.Mkdir(dir, 0o700))
		must(h.t, os.Chown(dir, next, next))
		h.users[u] = next
		next++
	}
}

// holdMounts starts the process that holds the host's mount table until the test ends.
func (h *host) holdMounts() {
	h.t.Helper()
	cmd := exec.Command(executable())
	cmd.Env = append(os.Environ(), holdMounts+"="+h.home, holdName+"="+h.name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS}
	var wrong bytes.Buffer
	cmd.Stderr = &wrong
	in, err := cmd.StdinPipe()
	must(h.t, err)
	out, err := cmd.StdoutPipe()
	must(h.t, err)
	must(h.t, cmd.Start())
	h.t.Cleanup(func() {
		in.Close() // which ends it; should this process be killed, its end of the pipe closes as well
		cmd.Wait()
	})
	if line, err := io.ReadAll(io.LimitReader(out, 5)); string(line) != "held\n" {
		h.t.Fatalf("a mount table of the host's own: %q %v %s", line, err, wrong.String())
	}
	h.holds = fmt.Sprintf("/proc/%d/ns/", cmd.Process.Pid)
}

// path is where a path of the host lies for the test.
func (h *host) path(path string) string {
	for _, d := range ownDirectories {
		if h.root == "" && (path == "/"+d || strings.HasPrefix(path, "/"+d+"/")) {
			return filepath.Join(h.home, path)
		}
	}
	if h.root != "" && !strings.HasPrefix(path, h.root+"/") {
		return filepath.Join(h.root, path)
	}
	return path
}

// vector is an argument vector that runs another on this host.
func (h *host) vector(args ...string) []string {
	if h.holds == "" {
		return args
	}
	return append([]string{"nsenter", "--mount=" + h.holds + "mnt", "--uts=" + h.holds + "uts", "--wdns=" + h.home, "--"}, args...)
}

// command is a command on this host.
func (h *host) command(args ...string) *exec.Cmd {
	args = h.vector(args...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Dir = append(os.Environ(), h.env...), h.home
	return cmd
}

// as is a command on this host as one of its users.
func (h *host) as(user string, args ...string) *exec.Cmd {
	id := h.users[user]
	if id == 0 {
		h.t.Fatalf("host %s has no user %s", h.name, user)
	}
	home := "/home/" + user
	words := []string{"setpriv", fmt.Sprintf("--reuid=%d", id), fmt.Sprintf("--regid=%d", id), "--clear-groups", "env", "-i", "PATH=" + os.Getenv("PATH"),
		"HOME=" + home, "USER=" + user}
	return h.command(append(words, args...)...)
}

// run runs a command on this host that must succeed, and returns what it prints.
func (h *host) run(args ...string) string {
	h.t.Helper()
	return output(h.t, h.command(args...))
}

// start starts a program on this host, which ends with the test at the latest.
func (h *host) start(p consumer.Program) *consumer.Process {
	h.t.Helper()
	run, err := h.tryStart(p)
	must(h.t, err)
	return run
}

func (h *host) tryStart(p consumer.Program) (*consumer.Process, error) {
	vector := h.vector(append([]string{p.Path}, p.Args...)...)
	p.Path, p.Args, p.Env = vector[0], vector[1:], append(slices.Clone(h.env), p.Env...)
	run, err := consumer.Start(context.WithoutCancel(h.t.Context()), p)
	if err == nil {
		h.t.Cleanup(func() { must(h.t, run.Stop()) })
	}
	return run, err
}

// agent is a command of the host's agent.
func (h *host) agent(verb string, args ...string) *exec.Cmd {
	return h.command(append([]string{program(h.t), "agent", verb, "--state", h.state}, args...)...)
}

// join adds the host to the authority with what it shall hold, and has its agent join.
func (h *host) join(placements ...client.PlacementOrder) {
	h.t.Helper()
	added, err := h.world.admin.AddHost(h.t.Context(), client.AddHostRequest{Name: h.name, Pool: h.pool, DNS: h.dns, IP: []string{h.at}, Placements: placements})
	must(h.t, err)
	h.redeem(added.Token)
}

// redeem has the agent join with a token.
func (h *host) redeem(token string, more ...string) {
	h.t.Helper()
	args := append([]string{"--token-file", "-"}, more...)
	if h.root != "" {
		args = append(args, "--root", h.root)
	}
	cmd := h.agent("join", args...)
	cmd.Stdin = strings.NewReader(token + "\n")
	output(h.t, cmd)
}

// order is a placement with its parameters, written as on the command line.
func order(recipe string, parameters ...string) client.PlacementOrder {
	o := client.PlacementOrder{Recipe: recipe, Parameters: map[string]string{}}
	for _, p := range parameters {
		name, value, _ := strings.Cut(p, "=")
		o.Parameters[name] = value
	}
	return o
}

// converge runs the agent once. It must succeed: every placement is in place.
func (h *host) converge() {
	h.t.Helper()
	output(h.t, h.agent("run", "--once"))
}

// refuses runs the agent once. It must fail and say why.
func (h *host) refuses(text string) {
	h.t.Helper()
	fails(h.t, h.agent("run", "--once"), text)
}

// observed is what the authority knows of a placement, as the agent reported it.
func (h *host) observed(placement string) client.Observation {
	h.t.Helper()
	seen, err := h.world.admin.Host(h.t.Context(), h.name)
	must(h.t, err)
	for _, p := range seen.Placements {
		if p.Observed.Placement == placement || p.Name == placement || p.Name == "" && p.Recipe == placement {
			return p.Observed
		}
	}
	h.t.Fatalf("host %s has no placement %s: %+v", h.name, placement, seen.Placements)
	return client.Observation{}
}

// read reads a file of the host.
func (h *host) read(path string) []byte {
	h.t.Helper()
	text, err := os.ReadFile(h.path(path))
	must(h.t, err)
	return text
}

// write writes a file of the host as its operator would.
func (h *host) write(path, text string) {
	h.t.Helper()
	must(h.t, os.MkdirAll(filepath.Dir(h.path(path)), 0o755))
	must(h.t, os.WriteFile(h.path(path), []byte(text), 0o644))
}

// absent wants nothing at some paths.
func (h *host) absent(paths ...string) {
	h.t.Helper()
	for _, p := range paths {
		if _, err := os.Lstat(h.path(p)); !errors.Is(err, os.ErrNotExist) {
			h.t.Errorf("%s is there (%v)", p, err)
		}
	}
}

// inode tells whether a file was replaced.
func (h *host) inode(path string) uint64 {
	h.t.Helper()
	st, err := os.Lstat(h.path(path))
	must(h.t, err)
	return st.Sys().(*syscall.Stat_t).Ino
}

// inside is a path as the host's programs name it.
func (h *host) inside(path string) string {
	if h.root != "" {
		return h.path(path)
	}
	return path
}
